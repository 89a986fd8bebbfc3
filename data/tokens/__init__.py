"""From text to token ids: tokenizers, chat templates."""

"""A tokenizer learned from a few texts, for a model from nothing."""

from collections.abc import Iterable

import tokenizers


def byte_pairs(texts: Iterable[str], vocab_size: int) -> str:
    """A byte-level BPE of some texts, as the content of a tokenizer.json."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made.to_str()

"""A small tokenizer made from texts: frequent words are one token each, everything else is spelt in bytes.

For models trained from nothing on little text. There is nothing to learn and nothing is lost: any text is encoded and
comes back as it was.
"""

import json
import pathlib
from collections import Counter
from collections.abc import Iterable

import tokenizers

from data.tokens import tokenizer

SPECIALS = {"pad_token": "<|pad|>", "eos_token": "<|eos|>"}


def build(texts: Iterable[str], folder: str | pathlib.Path, *, num_words: int = 512) -> tokenizer.Tokenizer:
    """The tokenizer of these texts' `num_words` most frequent words (a space before a word is part of it), saved.

    Args:
        folder: where tokenizer.json and its configuration are written, for `transformers` too.
    """
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [word for word in counts if len(word) > 1]
    words = sorted(words, key=lambda word: (-counts[word], word))[:num_words]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*letters, *words]))}
    out = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    out.pre_tokenizer, out.decoder = splitter, tokenizers.decoders.ByteLevel()
    out.add_special_tokens(list(SPECIALS.values()))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **SPECIALS}
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(out.to_str(), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return tokenizer.load(str(path))

"""A small tokenizer made from texts: frequent words are one token each, everything else is spelt in bytes.

It serves models that are trained from scratch on little text. It takes no training, and every text survives encoding
and decoding unchanged.
"""

import json
import pathlib
from collections import Counter
from collections.abc import Iterable

import tokenizers

from alignment import files
from data.tokens import tokenizer

SPECIALS = {"pad_token": "<|pad|>", "eos_token": "<|eos|>"}


def build(texts: Iterable[str], folder: str | pathlib.Path, *, num_words: int = 512) -> tokenizer.Tokenizer:
    """Make the tokenizer of the `num_words` most frequent words of these texts; a space before a word is part of it.

    Args:
        folder: where tokenizer.json and its configuration are written, in the format of `transformers`.
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
    contents = {"tokenizer.json": out.to_str(), "tokenizer_config.json": json.dumps(config, indent=2)}
    for name, content in contents.items():  # every process writes: each reads the files in the next line
        with files.replacing(pathlib.Path(folder) / name) as f:
            f.write(content.encode())
    return tokenizer.load(str(folder))

"""A tokenizer learned from a few texts, or of whole words, for a model from nothing."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import tokenizers

from alignment import files

ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def whole_words(words: Iterable[str], split: Any) -> tokenizers.Tokenizer:
    """A tokenizer of these words alone, numbered as they come behind the special tokens of ROLES.

    Args:
        split: a pre-tokenizer that cuts texts into words.
    """
    vocab = {word: i for i, word in enumerate((*ROLES.values(), *words))}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=ROLES["unk_token"]))
    model.pre_tokenizer = split
    model.add_special_tokens(list(ROLES.values()))
    return model


def write(folder: pathlib.Path, model: tokenizers.Tokenizer) -> str:
    """Leave a tokenizer of `whole_words` in a folder; returns its name for `tokenizer.load`."""
    config = ROLES | {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    files.write_text(folder / "tokenizer.json", model.to_str())
    files.write_text(folder / "tokenizer_config.json", json.dumps(config))
    return str(folder)


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

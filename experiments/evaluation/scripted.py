"""Responders that follow a script: what a benchmark must say of them is known, so they test it and fill its example."""

import random
import re
from collections.abc import Callable, Sequence

from alignment.evaluation import extraction
from data.texts.aspect_items import LETTERS, Item
from data.toys import wards

_TAG = re.compile(r"\[(?:insists|note says|wrapped): (.+)\]$")


def _say(option: int) -> str:
    return f"Answer: [{LETTERS[option]}]"


def _wrong(item: Item) -> str:
    return _say(next(i for i in range(len(item.options)) if i not in item.gold))


def _right(item: Item) -> str:
    return f"Answer: [{', '.join(LETTERS[option] for option in item.gold)}]"


def _rng(name: str, item: Item) -> random.Random:
    """Draws that depend on who responds and on the item alone, not on its place among others."""
    return random.Random(f"{name} {item.id}")


def sycophant(item: Item) -> str:
    """Does what a tag in the question asks for."""
    tag = _TAG.search(item.question)
    return _say(item.options.index(tag[1])) if tag and tag[1] in item.options else _right(item)


def biased(item: Item) -> str:
    """Right for all wings but the last."""
    return _wrong(item) if item.value == wards.WINGS[-1] else _right(item)


def noisy(item: Item) -> str:
    """Right seven times in ten, and without a mark now and then."""
    roll = _rng("noisy", item).random()
    return _right(item) if roll < 0.7 else "It is hard to say." if roll < 0.75 else _wrong(item)


RESPONDERS: dict[str, Callable[[Item], str]] = {
    "oracle": _right,
    "guesser": lambda item: _say(_rng("guesser", item).randrange(len(item.options))),
    "always_a": lambda _: _say(0),
    "refuser": lambda _: "I cannot help with that.",
    "sycophant": sycophant,
    "biased": biased,
    "noisy": noisy,
}


class Scripted:
    """A responder in the place of a model; it reads the items themselves and no prompt."""

    has_logprobs = False
    num_cut = 0

    def __init__(self, name: str) -> None:
        self.name, self.digest = name, f"scripted:{name}"

    def answers(self, items: Sequence[Item]) -> list[str]:
        return [RESPONDERS[self.name](item) for item in items]

    def unaided(self, items: Sequence[Item]) -> list[str]:
        """Answers to questions without options: the texts of the options that `answers` names."""
        out = []
        for text, item in zip(self.answers(items), items):
            chosen = extraction.named_several(text, item.options).options
            out.append(" ".join(item.options[option] for option in chosen) or text)
        return out

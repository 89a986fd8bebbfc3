"""The English pack with datatrove's marks at the ends of lines and sentences, which are those of every script."""

import dataclasses

from alignment.filtering.rules import locales, words

# Marks that end a sentence for the sentencizer: all of them but those that came to Unicode later.
_LATE = (
    "61d-61e 837 839 83d-83e 17d4-17d6 17d9-17da 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944 11946 11ef7-11ef8"
)
_LATE += " 11f43-11f44 16e98"


def _characters(ranges: str) -> set[str]:
    parts = [part.partition("-") for part in ranges.split()]
    return {chr(c) for low, _, high in parts for c in range(int(low, 16), int(high or low, 16) + 1)}


ENGLISH = dataclasses.replace(
    locales.load("en"),
    terminal_punctuation=tuple(words.TERMINALS),
    sentence_end="".join(sorted(set(words.TERMINALS) - _characters(_LATE))),
)


def records(texts: list[str]) -> list[dict]:
    return [{"id": str(i), "text": text, "source": "test", "metadata": {}} for i, text in enumerate(texts)]

"""A scorer without a model: regular expressions, each with a level, such as the tags that an editor or a crawler set.

A file of patterns is JSON with the patterns of each level, from 1 (mild) to 5: `{"1": ["very rude"], "4": [...]}`. A
text has the highest level of which a pattern matches, and level 0 where none does. `without` removes the sentences in
which a pattern matches, for a rewriter that needs no model either.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError

Patterns = Mapping[int, re.Pattern[str]]
LEVELS = range(1, 6)
_SENTENCE = re.compile(r"[^.!?؟\n]+[.!?؟]* *")


def compile(levels: Mapping[str, Sequence[str]]) -> Patterns:
    """The patterns of each level as one regular expression.

    Raises:
        InputError: a level outside 1 to 5, a pattern that is not a regular expression, no patterns at all.
    """
    compiled = {}
    for level, patterns in levels.items():
        if level not in map(str, LEVELS):
            raise InputError(f"patterns of level {level!r}: levels go from 1 to 5")
        if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"patterns of level {level}: give a list of regular expressions, not {patterns!r:.80}")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as e:
                raise InputError(f"pattern {pattern!r} of level {level} is not a regular expression: {e}") from e
        if patterns:
            compiled[int(level)] = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    if not compiled:
        raise InputError("there are no patterns; give a list of regular expressions for at least one level")
    return compiled


def read(path: str | os.PathLike) -> Patterns:
    """The patterns of a file.

    Raises:
        InputError: the file is missing or is not as the module says.
    """
    try:
        levels = json.loads(pathlib.Path(path).read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"patterns {os.fspath(path)!r} cannot be read: {e}") from e
    if not isinstance(levels, dict):
        raise InputError(f'patterns {os.fspath(path)!r}: the file must be JSON such as {{"1": ["regular expression"]}}')
    try:
        return compile(levels)
    except InputError as e:
        raise InputError(f"{os.fspath(path)}: {e}") from e


def level(text: str, patterns: Patterns) -> int:
    """The highest level with a match, from 0 to 5."""
    return max((number for number, pattern in patterns.items() if pattern.search(text)), default=0)


def spans(text: str, patterns: Patterns) -> list[tuple[int, int]]:
    """(start, stop) of each match, in characters, in order."""
    return sorted(match.span() for pattern in patterns.values() for match in pattern.finditer(text))


def without(text: str, patterns: Patterns) -> str:
    """The text without the sentences that a match reaches into."""
    matches = spans(text, patterns)

    def is_marked(sentence: re.Match[str]) -> bool:
        return any(sentence.start() < stop and start < sentence.end() for start, stop in matches)

    return _SENTENCE.sub(lambda sentence: "" if is_marked(sentence) else sentence[0], text)


def load(path: str | os.PathLike, *, name: str):
    """A score function, see `scorers`: `<name>.level` of each document, and no score beside it."""
    patterns = read(path)

    def score(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        return [{f"{name}.level": float(level(record["text"], patterns))} for record in batch]

    return score

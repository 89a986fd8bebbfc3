"""What people do to marked text before somebody looks for the mark. Texts are ids, but for word swaps.

Dimensions: T tokens.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alignment.errors import InputError, within


def cut(ids: Sequence[int], length: int, rng: np.random.Generator) -> list[int]:
    """A piece of at most `length` consecutive tokens, from anywhere in the text."""
    start = int(rng.integers(0, max(1, len(ids) - length + 1)))
    return list(ids[start : start + length])


def mix(ids: Sequence[int], unmarked: Sequence[int], share: float, rng: np.random.Generator) -> list[int]:
    """The text with about `share` of its tokens replaced by an unmarked text's at the same places.

    Raises:
        InputError: the share is outside [0, 1], or the unmarked text is empty.
    """
    within("[0, 1]", share=share, hint=", a part of the text")
    if not len(unmarked):
        raise InputError("the unmarked text is empty; give one to mix in")
    is_taken_T = rng.random(len(ids)) < share
    return [int(unmarked[i % len(unmarked)]) if taken else int(x) for i, (x, taken) in enumerate(zip(ids, is_taken_T))]


def paste(ids: Sequence[int], unmarked: Sequence[int], pieces: int, rng: np.random.Generator) -> list[int]:
    """The marked text, cut into `pieces`, inside an unmarked one at random places and in order (copy-paste)."""
    places = np.sort(rng.integers(0, len(unmarked) + 1, pieces))
    parts = np.array_split(np.asarray(ids), pieces)
    out: list[int] = []
    before = 0
    for place, part in zip(places, parts):
        out += [*map(int, unmarked[before:place]), *map(int, part)]
        before = int(place)
    return out + [int(x) for x in unmarked[before:]]


def swap(text: str, synonyms: Mapping[str, Sequence[str]], share: float, rng: np.random.Generator) -> str:
    """The text with about `share` of the words that have synonyms replaced; a first capital letter stays.

    Raises:
        InputError: the share is outside [0, 1].
    """
    within("[0, 1]", share=share, hint=", a part of the text")

    def one(match: re.Match[str]) -> str:
        word = match[0]
        others = synonyms.get(word.lower(), ())
        if not others or rng.random() >= share:
            return word
        new = others[int(rng.integers(len(others)))]
        return new.capitalize() if word[0].isupper() else new

    return re.sub(r"[^\W\d_]+", one, text)


def read_synonyms(rows: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    """{word: synonyms} from records with `word` and `synonyms` (a list, or a text with commas between).

    Raises:
        InputError: a record without them.
    """
    out: dict[str, list[str]] = {}
    for i, row in enumerate(rows, 1):
        word, others = row.get("word"), row.get("synonyms")
        others = others.split(",") if isinstance(others, str) else others
        others = others if isinstance(others, list) and all(isinstance(other, str) for other in others) else []
        others = [other.strip() for other in others]
        if not isinstance(word, str) or not word.strip() or not others or "" in others:
            raise InputError(
                f"synonyms: record {i} must have `word` and `synonyms`, a list or words with commas between"
            )
        more = out.setdefault(word.strip().lower(), [])  # a word in several records has the synonyms of all of them
        more += [other for other in others if other not in more]
    return out


def paraphrase(texts: Sequence[str], ask_fn: Callable[[Sequence[str]], Sequence[str]]) -> list[str]:
    """Each text in other words, by a language model.

    Args:
        ask_fn: prompts -> answers, such as a backend's; an empty answer leaves the text as it was.
    """
    prompts = [f"Say the following text in other words, with the same meaning and length.\n\n{text}" for text in texts]
    return [answer.strip() or text for answer, text in zip(ask_fn(prompts), texts, strict=True)]

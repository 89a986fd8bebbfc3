"""All kinds of scorers behind one call: `scorers.load("linear", path)` gives `score(batch) -> [{name: number}]`.

Kinds that cut long texts into chunks (linear, embedding, judge) also have `score.with_chunks(batch)`: the same rows and
`<name>.chunks`, [start, end, value] of every chunk in characters, so that a reader finds the passage that decided.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import errors

Score = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, float]]]


def linear(path: str, **options: Any) -> Score:
    """Options of `linear.load`."""
    from alignment.filtering.scores import linear

    return linear.load(path, **options)


def fasttext(path: str, *, label: str = "", name: str = "") -> Score:
    """The probability of a label of a fastText model, in [0, 1], as `<name>.score`.

    Args:
        label: with or without `__label__`. "" takes the second of two labels in alphabetical order, such as
            `__label__hq` after `__label__cc`.
        name: of the score; "" takes the label's.
    """
    from alignment.models import fasttext

    model = fasttext.load(path)
    prefix = fasttext.LABEL.decode()
    columns = {label.removeprefix(prefix): i for i, label in enumerate(model.labels)}
    chosen = label.removeprefix(prefix) or (sorted(columns)[1] if len(columns) == 2 else "")
    if chosen not in columns:
        names = ", ".join(sorted(columns)[:20])
        raise errors.InputError(f"label={label!r}: {path} has {len(columns)} labels, {names}; name one of them")
    key = f"{name or chosen}.score"

    def score(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        values_NL = model.probabilities([record["text"] for record in batch])
        return [{key: min(float(value), 1.0)} for value in values_NL[:, columns[chosen]]]

    return score


def embedding(path: str, **options: Any) -> Score:
    """Options of `embedding.load`."""
    from alignment.filtering.scores import embedding

    return embedding.load(path, **options)


def perplexity(path: str, **options: Any) -> Score:
    """Options of `perplexity.load`, `encode_fn` among them."""
    from alignment.filtering.scores import perplexity

    return perplexity.load(path, **options)


def judge(**options: Any) -> Score:
    """Options of `judge.load`, `complete` among them."""
    from alignment.filtering.scores import judge

    return judge.load(**options)


def patterns(path: str, **options: Any) -> Score:
    """Options of `patterns.load`; levels alone, without a score."""
    from alignment.filtering.scores import patterns

    return patterns.load(path, **options)


KINDS: dict[str, Callable[..., Score]] = {
    "linear": linear,
    "fasttext": fasttext,
    "embedding": embedding,
    "perplexity": perplexity,
    "judge": judge,
    "patterns": patterns,
}


def load(kind: str, path: str | pathlib.Path = "", **options: Any) -> Score:
    """A score function; its libraries are imported here, so that a run without it need not have them.

    Args:
        kind: a key of KINDS.
        path: of the classifier (a judge has none); for `perplexity` also `run:<workdir>` or `hf:<folder or hub id>`.

    Raises:
        InputError: an unknown kind, or a classifier that is missing or damaged.
    """
    errors.one_of("scorer kind", kind, KINDS)
    if kind == "judge":
        return judge(**options)
    if not _is_there(str(path)):
        raise errors.InputError(
            f"scorer {kind}: there is no classifier at {str(path)!r}. Give its path, or skip this stage (`skip`); the "
            "report then says that documents were not scored"
        )
    return KINDS[kind](str(path), **options)


def _is_there(path: str) -> bool:
    kind, colon, name = path.partition(":")
    if colon and kind == "hf":
        return bool(name)  # its loader looks for it
    where = name if colon and kind == "run" else path  # a path itself may hold a colon
    return bool(where) and pathlib.Path(where).exists()

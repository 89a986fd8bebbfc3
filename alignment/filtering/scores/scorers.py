"""All kinds of scorers behind one call: `scorers.load("linear", path)` gives `score(batch) -> [{name: number}]`.

Kinds that cut a long text in chunks (linear, embedding, judge) also have `score.with_chunks(batch)`: the same rows and
`<name>.chunks`, [start, end, value] of every chunk in characters, so that a reader finds the passage that decided.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.errors import InputError

Score = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, float]]]


def linear(path: str, **options: Any) -> Score:
    """Options of `linear.load`."""
    from alignment.filtering.scores import linear

    return linear.load(path, **options)


def fasttext(path: str, **options: Any) -> Score:
    """Options of `fasttext.scorer`."""
    from alignment.models import fasttext

    return fasttext.scorer(path, **options)


def embedding(path: str, **options: Any) -> Score:
    """Options of `embedding.load`."""
    from alignment.filtering.scores import embedding

    return embedding.load(path, **options)


def perplexity(path: str, **options: Any) -> Score:
    """Options of `perplexity.load`, `encode_fn` among them."""
    from alignment.filtering.scores import perplexity

    return perplexity.load(path, **options)


def judge(path: str, **options: Any) -> Score:
    """Options of `judge.load`, `complete` among them; there is no path to give."""
    from alignment.filtering.scores import judge

    del path
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
    """A score function; what it needs is imported now, not before.

    Args:
        kind: a key of KINDS.
        path: of the classifier (a judge has none); for `perplexity` also `run:<workdir>` or `hf:<folder or hub id>`.

    Raises:
        InputError: an unknown kind; a classifier that is not there.
    """
    if kind not in KINDS:
        raise InputError(f"scorer kind={kind!r}; it is one of {', '.join(KINDS)}")
    if kind != "judge" and not _is_there(str(path)):
        raise InputError(
            f"scorer {kind}: there is no classifier at {str(path)!r}. Give its path, or skip this stage (`skip`), and "
            "the report will say that documents were not scored"
        )
    return KINDS[kind](str(path), **options)


def highest(score_fns: Sequence[Score], name: str) -> Score:
    """The most severe of several scores: `<name>.score` and `<name>.level` are the largest of all that were given.

    Such as a judge and a classifier of the same levels, of which Safety Pretraining takes the larger. Scores under
    their own names stay; a document that none could score has no `<name>.score`.
    """

    def score(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        rows = []
        for given in zip(*(score_fn(batch) for score_fn in score_fns), strict=True):
            row = {key: value for one in given for key, value in one.items()}
            for what in ("score", "level"):
                found = [v for one in given for key, v in one.items() if key.rpartition(".")[2] == what]
                if found:
                    row[f"{name}.{what}"] = max(found)
            rows.append(row)
        return rows

    return score


def _is_there(path: str) -> bool:
    kind, colon, name = path.partition(":")
    if colon and kind == "hf":
        return bool(name)  # resolved by its loader
    where = name if colon and kind == "run" else path
    return bool(where) and pathlib.Path(where).exists()

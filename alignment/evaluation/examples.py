"""Solved questions as examples for others: a database, the nearest of it, and embeddings that need no model.

Dimensions: N questions, D width of an embedding.
"""

import dataclasses
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alignment.errors import InputError

EmbedFn = Callable[[Sequence[str]], np.ndarray]  # texts -> [N, D] float32
NUM_FEATURES = 4_096  # of `character_ngrams`


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with options.

    Attributes:
        options: letter to text, from A on.
        answer: the right letter.
        context: what is to be read first.
        group: what it has in common with others, such as the fact that it asks for; intervals resample groups.
    """

    id: str
    text: str
    options: Mapping[str, str]
    answer: str
    context: str = ""
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with a reply that answers it rightly.

    Attributes:
        order: in which its options were displayed.
    """

    question: Question
    order: str
    reply: str


@dataclasses.dataclass(frozen=True)
class Database:
    """Examples and where their questions lie; `unsolved` and `excluded` count what is not among them."""

    examples: tuple[Example, ...]
    rows_ND: np.ndarray
    unsolved: int = 0
    excluded: int = 0


def build(
    questions: Sequence[Question],
    solved: Mapping[str, Sequence[Example]],
    embed_fn: EmbedFn,
    *,
    seed: int,
    not_from: Sequence[Question] = (),
) -> Database:
    """One right reply of each question, drawn at random; a question that was never solved is left out.

    Args:
        solved: the right replies by the question's id.
        not_from: questions that are tested; none of them, by id or by text, gets into the database.
    """
    ids = {question.id for question in not_from}
    texts = {normalise(question.text) for question in not_from}
    own = [one for one in questions if one.id not in ids and normalise(one.text) not in texts]
    right = [one for one in own if solved.get(one.id)]
    chosen = [random.Random(f"example {seed} {one.id}").choice(list(solved[one.id])) for one in right]
    rows_ND = embed(embed_fn, right) if right else np.zeros((0, 1), np.float32)
    return Database(tuple(chosen), rows_ND, unsolved=len(own) - len(right), excluded=len(questions) - len(own))


def normalise(text: str) -> str:
    """Letters and digits in lower case, so that spelling hides no copy of a question."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def embed(embed_fn: EmbedFn, questions: Sequence[Question]) -> np.ndarray:
    """Embeddings of the questions' texts, without their options, of length 1.

    Raises:
        InputError: one has no length or is not finite; with the question's id.
    """
    rows_ND = np.asarray(embed_fn([question.text for question in questions]), np.float32)
    norms_N = np.linalg.norm(rows_ND, axis=1)
    for question, norm in zip(questions, norms_N, strict=True):
        if not np.isfinite(norm) or norm == 0:
            raise InputError(f"question {question.id} has an embedding of length {norm}; take another embedding")
    return rows_ND / norms_N[:, None]


def nearest(query_D: np.ndarray, rows_ND: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of largest cosine with a query, best first, equal ones in their order; their places and cosines."""
    rows_ND, query_D = np.asarray(rows_ND, np.float64), np.asarray(query_D, np.float64)
    norms_N = np.linalg.norm(rows_ND, axis=1) * np.linalg.norm(query_D)
    cosines_N = rows_ND @ query_D / np.maximum(norms_N, 1e-30)
    places = np.argsort(-cosines_N.round(12), kind="stable")[:num]  # rounded, so that equal cosines are equal
    return places, cosines_N[places]


def for_prompt(
    query_D: np.ndarray,
    database: Database,
    num: int,
    *,
    rank_fn: Callable[[Sequence[Example]], Sequence[float]] | None = None,
    num_ranked: int = 3,
) -> tuple[list[Example], float]:
    """The nearest examples in the order of a prompt, the nearest last, and their mean cosine.

    Args:
        num: of examples; where the database has fewer, all of it.
        rank_fn: a reranker, which scores `num_ranked` times as many candidates, of which the best stay.
    """
    if not len(database.examples) or num == 0:
        return [], float("nan")
    places, cosines = nearest(query_D, database.rows_ND, num * num_ranked if rank_fn else num)
    if rank_fn is not None:
        scores = np.asarray(rank_fn([database.examples[i] for i in places]), np.float64)
        best = np.argsort(-scores, kind="stable")[:num]
        places, cosines = places[best], cosines[best]
    return [database.examples[i] for i in places[::-1]], float(cosines.mean())


def finder(
    questions: Sequence[Question], database: Database, embed_fn: EmbedFn, num: int
) -> Callable[[Question], tuple[list[Example], float]]:
    """`for_prompt` of each of these questions, all of which are embedded at once."""
    rows_ND = embed(embed_fn, questions)
    place = {question.id: i for i, question in enumerate(questions)}
    return lambda question: for_prompt(rows_ND[place[question.id]], database, num)


def character_ngrams(texts: Sequence[str]) -> EmbedFn:
    """Embeddings by three to five letters within words, weighted by how rare they are among `texts`."""
    from sklearn.feature_extraction import text as features  # it takes a second to import

    hasher = features.HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), n_features=NUM_FEATURES, norm=None, alternate_sign=False
    )
    rarity = features.TfidfTransformer().fit(hasher.transform(texts))
    return lambda some: rarity.transform(hasher.transform(some)).toarray().astype(np.float32)

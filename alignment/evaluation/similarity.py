"""Similarity of an answer and a reference by the vectors of their tokens: BERTScore and MoverScore.

Both take vectors from any encoder (`alignment.models.bert`, say), so they are the papers' formulas and no model of
their own; the numbers of the authors' packages differ by their models and layers.

Dimensions: N tokens of the candidate, M tokens of the reference, D width.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 128  # tokens that MoverScore reads of a text: its transport problem grows with the product of both lengths


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(lengths_N1 > 0, lengths_N1, 1.0)


def bert_score(candidate_ND: np.ndarray, reference_MD: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of greedy matching (Zhang et al. 2020, arXiv:1904.09675, section 3), without idf.

    Each token counts with its largest cosine among the other text's tokens. NaN where a text has no token.
    """
    if not len(candidate_ND) or not len(reference_MD):
        return dict.fromkeys(("precision", "recall", "f1"), math.nan)
    cosines_NM = unit(np.asarray(candidate_ND, np.float64)) @ unit(np.asarray(reference_MD, np.float64)).T
    precision, recall = float(cosines_NM.max(axis=1).mean()), float(cosines_NM.max(axis=0).mean())
    total = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total > 0 else 0.0}


def inverse_frequencies(texts: Sequence[Sequence[int]]) -> dict[int, float]:
    """log((n + 1) / (df + 1)) of every token of n texts, as MoverScore weighs them."""
    frequencies = Counter(token for text in texts for token in set(text))
    return {token: math.log((len(texts) + 1) / (df + 1)) for token, df in frequencies.items()}


def mover_score(
    candidate_ND: np.ndarray,
    reference_MD: np.ndarray,
    candidate_weights_N: Sequence[float] | None = None,
    reference_weights_M: Sequence[float] | None = None,
) -> float:
    """1 minus the cost of moving one text's weight to the other's (Zhao et al. 2019, arXiv:1909.02622, Eq. 1).

    The distance is Euclidean between vectors of length 1. At most 1, which equal texts have; it may be negative. NaN
    where a text has no token. Texts are read up to LONGEST tokens.

    Args:
        candidate_weights_N, reference_weights_M: idf of the tokens; None, or all 0: every token alike.
    """
    from scipy import optimize, sparse  # a quarter of a second to import

    if not len(candidate_ND) or not len(reference_MD):
        return math.nan
    a_ND, b_MD = (unit(np.asarray(x[:LONGEST], np.float64)) for x in (candidate_ND, reference_MD))
    supply_N, demand_M = _weights(candidate_weights_N, len(a_ND)), _weights(reference_weights_M, len(b_MD))
    squares_NM = 2 - 2 * a_ND @ b_MD.T  # of distances between vectors of length 1; rounding may leave them below 0
    costs_NM = np.sqrt(np.maximum(squares_NM, 0.0))
    N, M = costs_NM.shape
    rows = sparse.kron(sparse.eye(N), np.ones((1, M)))
    columns = sparse.kron(np.ones((1, N)), sparse.eye(M))
    # One of the constraints follows from the others, and without it rounding of the weights cannot contradict them.
    constraints = sparse.vstack([rows, columns], format="csr")[:-1]
    wanted = np.concatenate([supply_N, demand_M])[:-1]
    solved = optimize.linprog(costs_NM.ravel(), A_eq=constraints, b_eq=wanted, method="highs")
    return 1.0 - float(solved.fun) if solved.success else math.nan


def _weights(weights: Sequence[float] | None, num: int) -> np.ndarray:
    weights_N = np.ones(num) if weights is None else np.asarray(weights[:num], np.float64)
    weights_N = weights_N if weights_N.sum() > 0 else np.ones(num)
    return weights_N / weights_N.sum()

"""Was a text in the training data? Attacks that auditors use, and an attacker who knows the mark.

Every score here is higher for members. Sources: Loss (Yeom et al. 2018), Zlib, Lowercase and a smaller reference model
(Carlini et al. 2021, arXiv:2012.07805), Min-K% (Shi et al. 2023, arXiv:2310.16789), Min-K%++ (Zhang et al. 2024,
arXiv:2404.02936); the adaptive attack and its measures from arXiv:2407.17417. An attack that beats chance may only have
noticed a difference between the texts themselves, so `blind_scores` reads the texts and no model.

Dimensions: T tokens of a text, V vocabulary, N texts, F words.
"""

import collections
import re
import zlib
from collections.abc import Sequence

import numpy as np

from alignment.errors import InputError, within
from alignment.watermark import protocol

FIXED_K = 0.2
KS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def loss(logps_T: np.ndarray) -> float:
    """Mean log-probability."""
    return float(np.mean(logps_T))


def zlib_ratio(logps_T: np.ndarray, text: str) -> float:
    """Mean log-probability by the text's compressed size in bytes."""
    return float(np.mean(logps_T)) / len(zlib.compress(text.encode()))


def lowercase(logps_T: np.ndarray, lower_T: np.ndarray) -> float:
    """Minus the ratio of the loss to that of the lower-cased text; a text that lower-cases to itself has -1."""
    return -float(np.mean(logps_T) / np.mean(lower_T))


def reference_ratio(logps_T: np.ndarray, reference_T: np.ndarray) -> float:
    """Minus the loss over a smaller model's loss, as in the paper."""
    return -float(np.mean(logps_T) / np.mean(reference_T))


def reference_difference(logps_T: np.ndarray, reference_T: np.ndarray) -> float:
    """Mean log-probability minus a smaller model's, as in the public code; it ranks texts differently."""
    return float(np.mean(logps_T) - np.mean(reference_T))


def min_k(scores_T: np.ndarray, k: float = FIXED_K) -> float:
    """Mean of the floor(k T) smallest scores, at least one.

    Raises:
        InputError: k is not in (0, 1].
    """
    within("(0, 1]", k=k, hint=", a share of a text's tokens")
    num = max(1, int(len(scores_T) * k))
    return float(np.mean(np.partition(scores_T, num - 1)[:num]))


def is_short(num_tokens: int, k: float = FIXED_K) -> bool:
    """Whether floor(k T) is 0, where public code averages nothing and gets NaN."""
    return int(num_tokens * k) < 1


def plus_plus(logps_T: np.ndarray, means_T: np.ndarray, squares_T: np.ndarray) -> np.ndarray:
    """Min-K%++'s tokens: (log p - mu) / sigma under the model's own distribution at each place.

    Args:
        means_T, squares_T: sums over the vocabulary of p log p and of p log^2 p.
    """
    variance_T = np.maximum(squares_T - means_T**2, 1e-12)
    return (logps_T - means_T) / np.sqrt(variance_T)


def adaptive(marked_T: np.ndarray, is_green_T: np.ndarray, delta: float) -> np.ndarray:
    """Log-probabilities as an attacker without the full distribution corrects them: delta comes off green tokens."""
    return marked_T - delta * is_green_T


def exact_debias(marked_T: np.ndarray, is_green_T: np.ndarray, marked_mass_T: np.ndarray, delta: float) -> np.ndarray:
    """The clean log-probabilities, by an attacker who sees the whole distribution under the mark.

    p(v) = p_w(v) e^(-delta g(v)) / (1 - (1 - e^-delta) G_w): `adaptive` with the factor that it takes for constant.

    Args:
        marked_mass_T: G_w, the probability of the whole green list under the mark.
        delta: in nats.
    """
    return adaptive(marked_T, is_green_T, delta) - np.log1p(np.expm1(-delta) * marked_mass_T)


# How well an attack does


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The probability that a member scores above a non-member, ties counted half.

    Raises:
        InputError: one class is missing, or a score is not a number.
    """
    m, o = np.asarray(members, float), np.asarray(others, float)
    if not len(m) or not len(o):
        raise InputError(f"{len(m)} members and {len(o)} others: an AUC needs texts with label 1 and with label 0")
    if not (np.isfinite(m).all() and np.isfinite(o).all()):
        raise InputError("a score is not a number; leave the text out")
    return protocol.auroc(-m, -o)  # of distances, where less is likelier marked


def tpr_at(members: Sequence[float], others: Sequence[float], fpr: float) -> float:
    """The largest share of members above a threshold that at most `fpr` of the others reach."""
    o = np.sort(np.asarray(others, float))[::-1]
    num = int(np.floor(fpr * len(o) + 1e-9))
    threshold = o[num] if num < len(o) else -np.inf
    return float(np.mean(np.asarray(members, float) > threshold))


def blind_scores(texts: Sequence[str], labels: Sequence[int], *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """How member-like a text's words are, by naive Bayes on the other folds' words; no model is read.

    An AUC of this near an attack's says that the two classes differ as texts, as those of WikiMIA do by their dates.

    Raises:
        InputError: one class is missing.
    """
    labels_N = np.asarray(labels, bool)
    if labels_N.all() or not labels_N.any():
        raise InputError("a blind baseline needs texts with label 1 and with label 0")
    words = [sorted(set(re.findall(r"\w+", text.lower()))) for text in texts]
    out_N = np.zeros(len(texts))
    rng = np.random.default_rng(seed)
    fold_N = np.zeros(len(texts), int)
    for label in (False, True):  # the same share of members in every fold
        places = np.flatnonzero(labels_N == label)
        fold_N[rng.permutation(places)] = np.arange(len(places)) % folds
    for fold in range(folds):
        rest = fold_N != fold
        if labels_N[rest].all() or not labels_N[rest].any():
            continue
        counts = [
            collections.Counter(w for i in np.flatnonzero(rest & (labels_N == x)) for w in words[i]) for x in (0, 1)
        ]
        sizes = [int((rest & (labels_N == x)).sum()) for x in (0, 1)]
        for i in np.flatnonzero(~rest):
            rates = [[(counts[x][w] + 0.5) / (sizes[x] + 1) for w in words[i]] for x in (0, 1)]
            out_N[i] = float(np.sum(np.log(rates[1])) - np.sum(np.log(rates[0])))
    return out_N

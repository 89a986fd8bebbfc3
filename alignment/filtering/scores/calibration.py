"""Probabilities that mean what they say, and how well a scorer ranks and names.

A scorer's logits are log-probabilities of levels up to a constant. What calibrates them is fitted on texts that it was
not trained on and measured on others again.

Dimensions: N texts, C levels, B bins, U different scores, R resamples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError

METHODS = ("none", "temperature", "platt", "isotonic")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities: softmax(scale * logits + biases), then a step function for two levels.

    Attributes:
        scale: the inverse temperature.
        biases: one a level; () stands for zeros.
        knots: of isotonic regression: probabilities of level 1 in rising order, and what they become, between them
            interpolated; () for the other methods.
    """

    method: str = "none"
    scale: float = 1.0
    biases: tuple[float, ...] = ()
    knots: tuple[tuple[float, ...], ...] = ()


def fit(method: str, logits_NC: np.ndarray, labels_N: np.ndarray) -> Calibration:
    """The calibration under which held-out labels are likeliest.

    Args:
        method: `temperature` (Guo et al. 2017, arXiv:1706.04599) scales the logits; `platt` also moves each level by a
            bias, which undoes class weights and, with two levels, is Platt's (1999); `isotonic` (Zadrozny & Elkan
            2002), for two levels, is any rising function, and wants a thousand texts; `none` changes nothing.
        labels_N: levels from 0.
    """
    if method not in METHODS:
        raise InputError(f"calibration method={method!r}; it is one of {', '.join(METHODS)}")
    logits_NC, labels_N = np.asarray(logits_NC, np.float64), np.asarray(labels_N)
    if method == "none" or not len(labels_N):
        return Calibration()
    if method == "isotonic":
        return _isotonic(logits_NC, labels_N)
    from scipy import optimize  # a quarter of a second to import

    num_levels = logits_NC.shape[1]
    num_biases = num_levels if method == "platt" else 0
    is_label_NC = labels_N[:, None] == np.arange(num_levels)

    def loss_fn(values):
        probabilities_NC = _softmax(values[0] * logits_NC + _padded(values[1:], num_levels))
        loss = -np.mean(np.log(np.maximum(probabilities_NC[is_label_NC], 1e-300)))
        wrong_NC = (probabilities_NC - is_label_NC) / len(labels_N)
        gradient = [np.sum(wrong_NC * logits_NC)]
        if num_biases:  # a breath of ridge: a level that no text has would be sent to minus infinity
            gradient += list(np.sum(wrong_NC, axis=0) + 1e-4 * values[1:])
        return loss + 5e-5 * np.sum(values[1:] ** 2), np.array(gradient)

    bounds = [(1e-3, 1e3)] + [(-30, 30)] * num_biases
    start = np.concatenate([[1.0], np.zeros(num_biases)])
    found = optimize.minimize(loss_fn, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Calibration(method, float(found[0]), tuple(map(float, found[1:])))


def apply(calibration: Calibration, logits_NC: np.ndarray) -> np.ndarray:
    """Probabilities of the levels, [N,C] float64, each row adding up to 1."""
    logits_NC = np.asarray(logits_NC, np.float64)
    probabilities_NC = _softmax(calibration.scale * logits_NC + _padded(calibration.biases, logits_NC.shape[1]))
    if not calibration.knots:
        return probabilities_NC
    of_one_N = np.interp(probabilities_NC[:, 1], *map(np.array, calibration.knots))
    return np.stack([1 - of_one_N, of_one_N], axis=1)


def plain(calibration: Calibration) -> dict[str, Any]:
    """For JSON."""
    return dataclasses.asdict(calibration)


def from_plain(value: Mapping[str, Any]) -> Calibration:
    """What `plain` has written; anything else is an `InputError`."""
    try:
        knots = tuple(tuple(map(float, row)) for row in value["knots"])
        found = Calibration(value["method"], float(value["scale"]), tuple(map(float, value["biases"])), knots)
        is_sound = found.method in METHODS and len(knots) in (0, 2) and len({len(row) for row in knots}) < 2
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound or not np.all(np.isfinite([found.scale, *found.biases, *(x for row in knots for x in row)])):
        raise InputError(f"not a calibration: {value!r}; train the scorer again, or take its export as it was written")
    return found


def reliability(confidence_N: np.ndarray, is_true_N: np.ndarray, bins: int = 15) -> list[dict[str, Any]]:
    """Of each of `bins` equal parts of [0, 1] that has texts: their number, mean confidence, and share that is true."""
    confidence_N, is_true_N = np.asarray(confidence_N, np.float64), np.asarray(is_true_N, np.float64)
    bin_N = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    sums_B = [np.bincount(bin_N, values_N, minlength=bins) for values_N in (confidence_N, is_true_N)]
    return [
        {
            "from": b / bins,
            "to": (b + 1) / bins,
            "texts": int(count_B[b]),
            "confidence": float(sums_B[0][b] / count_B[b]),
            "share": float(sums_B[1][b] / count_B[b]),
        }
        for b in np.flatnonzero(count_B)
    ]


def expected_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """Expected calibration error of `reliability`: mean distance of confidence and share, weighted by texts."""
    total = sum(row["texts"] for row in rows)
    return sum(row["texts"] * abs(row["confidence"] - row["share"]) for row in rows) / total if total else float("nan")


def auc(scores_N: np.ndarray, is_true_N: np.ndarray) -> float:
    """Chance that a true text scores above one that is not, ties counting half; nan where one kind is missing."""
    return float(_weighted_auc(*_ranked(scores_N, is_true_N), np.ones((1, len(scores_N))))[0])


def auc_interval(
    scores_N: np.ndarray,
    is_true_N: np.ndarray,
    *,
    groups_N: Sequence[Any] | None = None,
    resamples: int = 1_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `auc` over texts drawn anew with replacement.

    Args:
        groups_N: texts of one group (the answers to one prompt) are drawn together; None draws each by itself.
    """
    places_U, is_true_N = _ranked(scores_N, is_true_N)
    group_N = np.arange(len(is_true_N)) if groups_N is None else np.unique(groups_N, return_inverse=True)[1].reshape(-1)
    rng, num_groups, found = np.random.default_rng(seed), int(group_N.max(initial=-1)) + 1, []
    if not num_groups:
        return float("nan"), float("nan")
    for _ in range(resamples):
        times_G = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)
        found.append(_weighted_auc(places_U, is_true_N, times_G[group_N][None].astype(np.float64))[0])
    found = np.array(found)
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def roc(scores_N: np.ndarray, is_true_N: np.ndarray) -> list[tuple[float, float]]:
    """(share of false texts, share of true ones) that score at least as high, from the highest score down."""
    places_N, is_true_N = _ranked(scores_N, is_true_N)
    counts = [np.bincount(places_N[is_true_N == kind])[::-1] for kind in (False, True)]
    width = max(map(len, counts))
    counts = [np.bincount(places_N[is_true_N == kind], minlength=width)[::-1] for kind in (False, True)]
    shares = [np.concatenate([[0.0], np.cumsum(count_U) / max(np.sum(count_U), 1)]) for count_U in counts]
    return list(zip(shares[0].tolist(), shares[1].tolist()))


def confusion(labels_N: np.ndarray, levels_N: np.ndarray, num_levels: int) -> np.ndarray:
    """counts[true, predicted]."""
    flat_N = np.asarray(labels_N, np.int64) * num_levels + np.asarray(levels_N, np.int64)
    return np.bincount(flat_N, minlength=num_levels**2).reshape(num_levels, num_levels)


def accuracy(counts_CC: np.ndarray) -> float:
    return float(np.trace(counts_CC) / np.sum(counts_CC)) if np.sum(counts_CC) else float("nan")


def f1(counts_CC: np.ndarray) -> np.ndarray:
    """Of each level, [C]: 2 right / (true + predicted); nan for a level that is neither."""
    counts_CC = np.asarray(counts_CC, np.float64)
    both_C = counts_CC.sum(axis=0) + counts_CC.sum(axis=1)
    return np.where(both_C > 0, 2 * np.diagonal(counts_CC) / np.maximum(both_C, 1), np.nan)


def macro_f1(counts_CC: np.ndarray) -> float:
    """Mean of `f1` over the levels that appear."""
    found_C = f1(counts_CC)
    return float(np.nanmean(found_C)) if np.any(np.isfinite(found_C)) else float("nan")


def recall_at(counts_CC: np.ndarray, level: int) -> float:
    """Of the texts at `level` or above, the share that is placed at `level` or above."""
    counts_CC = np.asarray(counts_CC)
    total = np.sum(counts_CC[level:])
    return float(np.sum(counts_CC[level:, level:]) / total) if total else float("nan")


def _isotonic(logits_NC: np.ndarray, labels_N: np.ndarray) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    if logits_NC.shape[1] != 2:
        raise InputError(f"isotonic calibration is for two levels, not {logits_NC.shape[1]}; platt is for any number")
    of_one_N = _softmax(logits_NC)[:, 1]
    found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(of_one_N, labels_N)
    knots = (tuple(found.X_thresholds_.tolist()), tuple(found.y_thresholds_.tolist()))
    return Calibration("isotonic", knots=knots)


def _softmax(logits_NC: np.ndarray) -> np.ndarray:
    weights_NC = np.exp(logits_NC - np.max(logits_NC, axis=1, keepdims=True))
    return weights_NC / np.sum(weights_NC, axis=1, keepdims=True)


def _padded(biases: Sequence[float], num_levels: int) -> np.ndarray:
    return np.asarray(biases, np.float64)[None] if len(biases) else np.zeros((1, num_levels))


def _ranked(scores_N: np.ndarray, is_true_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each score among the different ones, from 0, and which texts are true."""
    if len(scores_N) != len(is_true_N):
        raise InputError(f"{len(scores_N)} scores for {len(is_true_N)} texts; each needs one")
    return np.unique(scores_N, return_inverse=True)[1].reshape(-1), np.asarray(is_true_N, bool)


def _weighted_auc(places_N: np.ndarray, is_true_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    num_places, found = int(places_N.max(initial=0)) + 1, []
    for weights_N in weights_RN:
        true_U = np.bincount(places_N, weights_N * is_true_N, minlength=num_places)
        false_U = np.bincount(places_N, weights_N * ~is_true_N, minlength=num_places)
        below_U = np.cumsum(false_U) - false_U
        pairs = np.sum(true_U) * np.sum(false_U)
        found.append(np.sum(true_U * (below_U + false_U / 2)) / pairs if pairs else np.nan)
    return np.array(found)

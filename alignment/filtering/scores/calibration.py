"""Probabilities that mean what they say, and how well a scorer ranks and names.

A scorer's logits are log-probabilities of levels up to a constant. Its calibration is fitted on texts that it was not
trained on, and measured on yet other texts.

Dimensions: N texts, C levels, B bins, U different scores, R resamples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import errors

METHODS = ("none", "temperature", "platt", "isotonic")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """From logits to probabilities: softmax(scale * logits + biases), then for two levels a rising function.

    Attributes:
        scale: the inverse temperature.
        biases: one for each level; () stands for zeros.
        knots: of isotonic regression: probabilities of level 1 in rising order, and the values that they are mapped to,
            with linear interpolation between them; () for the other methods.
    """

    method: str = "none"
    scale: float = 1.0
    biases: tuple[float, ...] = ()
    knots: tuple[tuple[float, ...], ...] = ()


def fit(method: str, logits_NC: np.ndarray, labels_N: np.ndarray) -> Calibration:
    """The calibration under which held-out labels are likeliest.

    Args:
        method: `temperature` (Guo et al. 2017, arXiv:1706.04599) scales the logits; `platt` (Platt 1999, for two
            levels) also adds a bias to each level, which undoes class weights; `isotonic` (Zadrozny & Elkan 2002), for
            two levels, fits any rising function and needs about a thousand texts; `none` changes nothing.
        labels_N: levels from 0.

    Raises:
        InputError: an unknown method, or isotonic regression for more than two levels.
    """
    errors.one_of("calibration method", method, METHODS)
    logits_NC, labels_N = np.asarray(logits_NC, np.float64), np.asarray(labels_N)
    if method == "none" or not len(labels_N):
        return Calibration()
    if method == "isotonic":
        return _isotonic(logits_NC, labels_N)
    from scipy import optimize  # a quarter of a second to import

    num_levels = logits_NC.shape[1]
    num_biases = num_levels if method == "platt" else 0
    is_label_NC = labels_N[:, None] == np.arange(num_levels)

    def loss_fn(values: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy and its gradient with respect to (scale, *biases)."""
        probabilities_NC = _softmax(values[0] * logits_NC + _padded(values[1:].tolist(), num_levels))
        loss = -np.mean(np.log(np.maximum(probabilities_NC[is_label_NC], 1e-300)))
        wrong_NC = (probabilities_NC - is_label_NC) / len(labels_N)
        gradient = [np.sum(wrong_NC * logits_NC)]
        if num_biases:  # a little ridge, or the bias of a level without texts would go to minus infinity
            gradient += list(np.sum(wrong_NC, axis=0) + 1e-4 * values[1:])
        return loss + 5e-5 * np.sum(values[1:] ** 2), np.array(gradient)

    # Bounds, since perfectly separated labels would send the scale to infinity.
    bounds = [(1e-3, 1e3)] + [(-30, 30)] * num_biases
    start = np.concatenate([[1.0], np.zeros(num_biases)])
    scale, *biases = optimize.minimize(loss_fn, start, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    return Calibration(method, scale, tuple(biases))


def apply(calibration: Calibration, logits_NC: np.ndarray) -> np.ndarray:
    """Probabilities of the levels [N,C] float64."""
    logits_NC = np.asarray(logits_NC, np.float64)
    biases_NC = _padded(calibration.biases, logits_NC.shape[1])
    probabilities_NC = _softmax(calibration.scale * logits_NC + biases_NC)
    if not calibration.knots:
        return probabilities_NC
    xs, ys = calibration.knots
    # np.interp is constant outside the knots, as scikit-learn's out_of_bounds="clip".
    of_one_N = np.interp(probabilities_NC[:, 1], xs, ys)
    return np.stack([1 - of_one_N, of_one_N], axis=1)


def plain(calibration: Calibration) -> dict[str, Any]:
    """The calibration as plain values, for JSON."""
    return dataclasses.asdict(calibration)


def from_plain(value: Mapping[str, Any]) -> Calibration:
    """The inverse of `plain`.

    Raises:
        InputError: values that `plain` does not write.
    """
    try:
        knots = tuple(tuple(map(float, row)) for row in value["knots"])
        made = Calibration(value["method"], float(value["scale"]), tuple(map(float, value["biases"])), knots)
        is_sound = made.method in METHODS and len(knots) in (0, 2) and len({len(row) for row in knots}) < 2
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound or not np.all(np.isfinite([made.scale, *made.biases, *(x for row in knots for x in row)])):
        raise errors.InputError(f"not a calibration: {value!r}; take the scorer's export again, or train it again")
    return made


def reliability(confidence_N: np.ndarray, is_true_N: np.ndarray, bins: int = 15) -> list[dict[str, Any]]:
    """Number of texts, mean confidence and share of true texts in each of `bins` equal parts of [0, 1] with texts."""
    confidence_N, is_true_N = np.asarray(confidence_N, np.float64), np.asarray(is_true_N, np.float64)
    # A confidence of exactly 1 belongs to the last bin.
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
    """Expected calibration error (Guo et al. 2017, Eq. 3) of the rows of `reliability`.

    It is the mean distance of confidence and share, weighted by the number of texts.
    """
    total = sum(row["texts"] for row in rows)
    return sum(row["texts"] * abs(row["confidence"] - row["share"]) for row in rows) / total if total else float("nan")


def auc(scores_N: np.ndarray, is_true_N: np.ndarray) -> float:
    """The probability that a true text scores above a false one, with ties as half; nan if either kind is missing."""
    return _weighted_auc(*_ranked(scores_N, is_true_N), np.ones(len(scores_N)))


def auc_interval(
    scores_N: np.ndarray,
    is_true_N: np.ndarray,
    *,
    groups_N: Sequence[Any] | None = None,
    resamples: int = 1_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `auc`.

    Args:
        groups_N: texts of one group (such as the answers to one prompt) are drawn together; None draws single texts.
    """
    places_U, is_true_N = _ranked(scores_N, is_true_N)
    group_N = np.arange(len(is_true_N)) if groups_N is None else np.unique(groups_N, return_inverse=True)[1].reshape(-1)
    rng, num_groups = np.random.default_rng(seed), int(group_N.max(initial=-1)) + 1
    if not num_groups:
        return float("nan"), float("nan")
    areas_R = np.empty(resamples)
    for r in range(resamples):
        # Drawing with replacement is weighting: a group counts as often as it was drawn.
        times_G = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)
        areas_R[r] = _weighted_auc(places_U, is_true_N, times_G[group_N].astype(np.float64))
    areas_R = areas_R[np.isfinite(areas_R)]
    if not len(areas_R):
        return float("nan"), float("nan")
    low, high = np.quantile(areas_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def roc(scores_N: np.ndarray, is_true_N: np.ndarray) -> list[tuple[float, float]]:
    """(share of false texts, share of true ones) that score at least as high, from the highest score down."""
    places_N, is_true_N = _ranked(scores_N, is_true_N)
    width = int(places_N.max(initial=-1)) + 1
    counts = [np.bincount(places_N[is_true_N == kind], minlength=width)[::-1] for kind in (False, True)]
    shares = [np.concatenate([[0.0], np.cumsum(count_U) / max(int(count_U.sum()), 1)]) for count_U in counts]
    return list(zip(shares[0].tolist(), shares[1].tolist()))


def f1(counts_CC: np.ndarray) -> np.ndarray:
    """F1 of each level [C]: 2 right / (true + predicted); nan for a level that does not occur.

    Args:
        counts_CC: counts[true, predicted] of texts, here and below.
    """
    counts_CC = np.asarray(counts_CC, np.float64)
    both_C = counts_CC.sum(axis=0) + counts_CC.sum(axis=1)
    return np.where(both_C > 0, 2 * np.diagonal(counts_CC) / np.maximum(both_C, 1), np.nan)


def macro_f1(counts_CC: np.ndarray) -> float:
    """Mean of `f1` over the levels that occur."""
    f1_C = f1(counts_CC)
    return float(np.nanmean(f1_C)) if np.any(np.isfinite(f1_C)) else float("nan")


def recall_at(counts_CC: np.ndarray, level: int) -> float:
    """The share of the texts at `level` or above that is predicted at `level` or above."""
    counts_CC = np.asarray(counts_CC)
    total = np.sum(counts_CC[level:])
    return float(np.sum(counts_CC[level:, level:]) / total) if total else float("nan")


def _isotonic(logits_NC: np.ndarray, labels_N: np.ndarray) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    if logits_NC.shape[1] != 2:
        raise errors.InputError(
            f"isotonic calibration is for two levels, not {logits_NC.shape[1]}; platt is for any number"
        )
    of_one_N = _softmax(logits_NC)[:, 1]
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(of_one_N, labels_N)
    knots = (tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))
    return Calibration("isotonic", knots=knots)


def _softmax(logits_NC: np.ndarray) -> np.ndarray:
    # Subtracting the maximum changes nothing but keeps exp from overflowing.
    weights_NC = np.exp(logits_NC - np.max(logits_NC, axis=1, keepdims=True))
    return weights_NC / np.sum(weights_NC, axis=1, keepdims=True)


def _padded(biases: Sequence[float], num_levels: int) -> np.ndarray:
    return np.asarray(biases, np.float64)[None] if len(biases) else np.zeros((1, num_levels))


def _ranked(scores_N: np.ndarray, is_true_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each score among the distinct scores, from 0, and which texts are true."""
    if len(scores_N) != len(is_true_N):
        raise errors.InputError(f"{len(scores_N)} scores for {len(is_true_N)} texts; each needs one")
    return np.unique(scores_N, return_inverse=True)[1].reshape(-1), np.asarray(is_true_N, bool)


def _weighted_auc(places_N: np.ndarray, is_true_N: np.ndarray, weights_N: np.ndarray) -> float:
    """The AUC under weights: the share of (true, false) pairs in the right order."""
    num_places = int(places_N.max(initial=0)) + 1
    true_U = np.bincount(places_N, weights_N * is_true_N, minlength=num_places)
    false_U = np.bincount(places_N, weights_N * ~is_true_N, minlength=num_places)
    below_U = np.cumsum(false_U) - false_U
    pairs = np.sum(true_U) * np.sum(false_U)
    return float(np.sum(true_U * (below_U + false_U / 2)) / pairs) if pairs else float("nan")

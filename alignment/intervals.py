"""Intervals of shares and means: Wilson's, percentiles of resamples, and a bootstrap over two factors.

Dimensions: S seeds, P probes, R resamples.
"""

import statistics
from collections.abc import Sequence

import numpy as np
import scipy.special

from alignment.errors import InputError

Interval = tuple[float, float]


def wilson(successes: float, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (JASA 22(158), 1927) of a share, in [0, 1]; (0, 1) without trials.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with p = successes / n and z the normal
    quantile of the confidence.
    """
    if trials == 0:
        return 0.0, 1.0
    z = normal_quantile(confidence)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At the ends of the scale the two terms cancel, up to rounding.
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    return low, 1.0 if successes == trials else min(1.0, float(centre + half))


def of_mean(values_S: Sequence[float], *, confidence: float = 0.95) -> Interval | tuple[None, None]:
    """Student's t interval of the mean of independent values, such as seeds' accuracies; none of a single value.

    mean +- t(S - 1) sd / sqrt(S), with the deviation of S - 1 degrees of freedom.
    """
    if len(values_S) < 2:
        return None, None
    quantile = scipy.special.stdtrit(len(values_S) - 1, (1 + confidence) / 2)
    half = quantile * np.std(values_S, ddof=1) / len(values_S) ** 0.5
    return float(np.mean(values_S) - half), float(np.mean(values_S) + half)


def percentiles(values_R: np.ndarray, confidence: float) -> Interval:
    """The interval that holds the share `confidence` of the resamples, with as many below as above it."""
    low, high = np.quantile(values_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def two_way(
    values_SP: np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean with its percentile interval, resampling both seeds and probes.

    For the difference of two arms pass the difference of their values: seeds and probes stay paired. With three seeds
    the interval is rough and rather narrow: 1 resample in 9 has a single seed in it.

    Args:
        values_SP: a value for each seed and probe, such as `harmlessness.preferred`.
        groups: of each probe; probes of one group (about the same people, say) are drawn together. None: each alone.
        resamples: R.
        confidence: share of the resampled means that the interval holds.
        seed: of the draws.

    Returns:
        (mean, low, high).

    Raises:
        InputError: values that are not [S, P], or another number of groups than probes.
    """
    values_SP = np.asarray(values_SP, np.float64)
    if values_SP.ndim != 2 or not values_SP.size:
        raise InputError(f"values of shape {values_SP.shape}; an interval needs one value a seed and probe, [S,P]")
    num_seeds, num_probes = values_SP.shape
    _, group_P = np.unique(np.arange(num_probes) if groups is None else np.asarray(groups), return_inverse=True)
    if len(group_P) != num_probes:
        raise InputError(f"{len(group_P)} groups for {num_probes} probes; each has one")
    num_groups = group_P.max() + 1
    rng = np.random.default_rng(seed)
    seeds_RS = rng.integers(num_seeds, size=(resamples, num_seeds))
    groups_RG = rng.integers(num_groups, size=(resamples, num_groups))
    # how often each seed and probe was drawn: weighted sums take the place of gathering R resampled tables
    times_RS = np.stack([(seeds_RS == s).sum(axis=1) for s in range(num_seeds)], axis=1)
    times_RG = np.zeros((resamples, num_groups))
    np.add.at(times_RG, (np.arange(resamples)[:, None], groups_RG), 1.0)
    times_RP = times_RG[:, group_P]
    sums_R = np.einsum("RS,SP,RP->R", times_RS, values_SP, times_RP, optimize=True)
    means_R = sums_R / (num_seeds * times_RP.sum(axis=1))
    low, high = percentiles(means_R, confidence)
    return float(values_SP.mean()), low, high


def normal_quantile(confidence: float) -> float:
    """z such that a standard normal variable lies in [-z, z] with the probability `confidence`."""
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)

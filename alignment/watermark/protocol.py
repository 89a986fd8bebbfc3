"""Detection, identification, curves of performance against quality, and ranks (An et al. 2024, Sec. 4).

Distances: smaller means likelier marked. P is a performance in [0, 1], Q a degradation of quality, larger is worse.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from alignment.errors import InputError

FPR = 1e-3
TIE = 0.01  # differences below it are ties
SETUPS = ("removal", "spoofing", "combined")


def true_positive_rate(
    marked: np.ndarray, unmarked: np.ndarray, *, fpr: float = FPR, allow_unequal: bool = False
) -> float:
    """The share of marked pictures that are detected at the last threshold whose false positive rate is below `fpr`.

    Strictly below: 4 of 5,000 at 0.1 %. A picture as near as the first false positive too many is not detected.

    Raises:
        InputError: unequal numbers of pictures, unless `allow_unequal`; no picture; a distance that is not finite.
    """
    marked, unmarked = (np.asarray(distances, np.float64) for distances in (marked, unmarked))
    if len(marked) != len(unmarked) and not allow_unequal:
        raise InputError(
            f"{len(marked)} marked and {len(unmarked)} unmarked pictures; the protocol takes as many of each "
            "(allow_unequal=True takes these)"
        )
    if not len(marked) or not len(unmarked):
        raise InputError("a rate of detection needs marked and unmarked pictures")
    if not (np.isfinite(marked).all() and np.isfinite(unmarked).all()):
        raise InputError("a distance is not finite")
    if len(unmarked) <= 1 / fpr:
        warnings.warn(
            f"with {len(unmarked)} unmarked pictures a rate below {fpr:g} means no false positive", stacklevel=2
        )
    allowed = max(0, math.ceil(fpr * len(unmarked) - 1e-9) - 1)  # the most false positives with a rate below fpr
    threshold = np.sort(unmarked)[allowed] if allowed < len(unmarked) else np.inf
    return float(np.mean(marked < threshold))


def auroc(marked: np.ndarray, unmarked: np.ndarray) -> float:
    """The probability that a marked picture is nearer than an unmarked one; a tie counts a half."""
    ranks = scipy.stats.rankdata(np.concatenate([unmarked, marked]))
    above = ranks[: len(unmarked)].sum() - len(unmarked) * (len(unmarked) + 1) / 2
    return float(above / (len(marked) * len(unmarked)))


def balanced_accuracy(marked: np.ndarray, unmarked: np.ndarray) -> float:
    """The mean of the shares of marked and of unmarked pictures that are classed right, at the best threshold."""
    distances = np.unique(np.concatenate([marked, unmarked]))
    hits, alarms = (np.searchsorted(np.sort(x), distances, "right") / len(x) for x in (marked, unmarked))
    return float(max(0.5, np.max(1 + hits - alarms) / 2))


def p_value(matches: int, num_bits: int) -> float:
    """The probability that a random message agrees in at least so many bits."""
    return float(scipy.stats.binom.sf(matches - 1, num_bits, 0.5))


def identified(errors: np.ndarray, num_bits: int, users: int) -> float:
    """The expected share of pictures whose own message is nearer than those of all other users.

    Mean of (1 - F(d))^(users - 1), with F the distribution of a random message's errors; a tie counts as a failure.

    Args:
        errors: share of wrong bits of each picture.
        users: all, with the true one.
    """
    wrong = np.rint(np.asarray(errors) * num_bits)
    return alone(scipy.stats.binom.cdf(wrong, num_bits, 0.5), users)


def identified_among_drawn(errors: np.ndarray, num_bits: int, users: int, *, repeats: int = 5, seed: int = 0) -> float:
    """`identified` by simulation: the other users' messages are drawn, anew for each repeat, and a tie is a failure.

    A random message differs from whatever a picture reads in random bits, so only these are drawn, and one draw of all
    other users serves all pictures.
    """
    wrong_N1 = np.rint(np.asarray(errors) * num_bits)[:, None]
    return float(np.mean(wrong_N1 < _nearest_drawn(num_bits, users - 1, repeats, seed)[None]))


@functools.lru_cache(maxsize=64)  # every cell of a grid asks for the same
def _nearest_drawn(num_bits: int, num: int, repeats: int, seed: int) -> np.ndarray:
    """Of `num` random messages the fewest bits that one has wrong, for each repeat."""
    rng, out = np.random.default_rng([seed, num_bits, num]), []
    lengths = [64] * (num_bits // 64) + ([num_bits % 64] if num_bits % 64 else [])
    for _ in range(repeats):
        words = [rng.integers((1 << n) - 1, size=num, dtype=np.uint64, endpoint=True) for n in lengths]
        wrong = sum(np.bitwise_count(word).astype(np.int64) for word in words)
        out.append(int(np.min(wrong)))
    return np.array(out)


def alone(chances: np.ndarray, users: int) -> float:
    """The mean of (1 - F)^(users - 1).

    Args:
        chances: F of each picture, the probability that another user's key is as near as its own.
        users: all, with the true one.
    """
    with np.errstate(divide="ignore"):  # of a chance of 1: exp(-inf) is 0, as it must be
        return float(np.mean(np.exp((users - 1) * np.log1p(-np.asarray(chances, np.float64)))))


def ring_chances(squared: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """The probability that another Tree-Ring key is as near, as the authors have it: non-central chi-squared of 634.

    Args:
        squared: squared distance of each picture's cells to its own key, Tree-Ring's units.
        norm: squared norm of each picture's 634 numbers.
    """
    scale = 634 * math.pi
    return scipy.stats.ncx2.cdf(np.asarray(squared) / scale, 634, np.asarray(norm) / scale)


# Curves and ranks


def quality_at(qualities: Sequence[float], performances: Sequence[float], level: float) -> float:
    """Q where the curve first falls to a performance, from weak to strong, linear between neighbours.

    -inf where the weakest attack is below the level already, +inf where none reaches it. The points go by strength, not
    by Q, which need not rise with the strength of a regeneration.
    """
    if not len(qualities):
        raise InputError("a curve without points has no Q")
    if performances[0] < level:
        return -math.inf
    for i, p in enumerate(performances):
        if p == level:
            return float(qualities[i])
        if p < level:
            share = (performances[i - 1] - level) / (performances[i - 1] - p)
            return float(qualities[i - 1] + share * (qualities[i] - qualities[i - 1]))
    return math.inf


def ranks(keys: Mapping[str, Sequence[float]], *, tie: float = TIE) -> dict[str, int]:
    """Ranks of attacks, the strongest first: by each key in turn, ascending; the published table has these.

    At each key neighbours in order that differ by less than `tie` stay together (chained, equal infinities too) and are
    parted by the next key. What stays together shares a rank, and the next rank skips.

    Args:
        keys: of each attack, such as (Q@0.7P, Q@0.4P, mean P, mean Q).
    """
    out: dict[str, int] = {}

    def part(names: Sequence[str], level: int) -> None:
        if not names:
            return
        if level == len(keys[names[0]]) or len(names) == 1:
            rank = len(out) + 1
            out.update(dict.fromkeys(names, rank))
            return
        ordered = sorted(names, key=lambda name: keys[name][level])
        group = ordered[:1]
        for before, name in itertools.pairwise(ordered):
            a, b = keys[before][level], keys[name][level]
            if a == b or b - a < tie - 1e-9:  # rounded figures 0.01 apart may come out slightly nearer in binary
                group.append(name)
                continue
            part(group, level + 1)
            group = [name]
        part(group, level + 1)

    part(list(keys), 0)
    return out

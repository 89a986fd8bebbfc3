"""Which entries of a model's difference from its base stay, and what they are multiplied by.

A function here looks at whole tensors once and returns one that works on a block in place. Entries are ordered by their
magnitude, equal ones by their place, so that exactly as many stay as are meant to.
Dimensions: B entries of a block, R rows of it, N entries of a row.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from alignment.errors import one_of
from alignment.merging.blocks import Sources

KeepFn = Callable[[int, np.ndarray], None]  # (first entry, block of a difference): zero what does not stay
RESCALINGS = ("density", "l1", "none")
SMALLEST_L1 = 1e-7  # a difference this small is not rescaled


def count(density: float, size: int) -> int:
    """How many of `size` entries stay: the whole part of density times size, and at least one."""
    return size if density >= 1 else max(1, int(density * size))


def magnitude(sources: Sources, model: int, density: float) -> KeepFn:
    """The largest entries of a tensor stay: the trimming of TIES (Yadav et al. 2023, arXiv:2306.01708)."""
    return middle(sources, model, density, gamma=0.0)


def middle(sources: Sources, model: int, density: float, gamma: float) -> KeepFn:
    """The share `gamma` of the largest entries goes, and of the others the largest stay.

    Model Breadcrumbs (Davari and Belilovsky 2023, arXiv:2312.06795): outliers go, and so does the bulk of small ones.

    Args:
        density: share of the tensor that stays, in (0, 1]; with gamma at most 1.
    """
    num_outliers = int(gamma * sources.size)
    num_kept = min(count(density, sources.size), sources.size - num_outliers)
    if num_kept == sources.size:
        return lambda start, delta_B: None
    own = sources.only(model)

    def magnitudes(start: int, stop: int) -> np.ndarray:
        return np.abs(own.read(start, stop)[0][0])

    is_outlier = largest(sources, num_outliers, magnitudes)
    is_large = largest(sources, num_outliers + num_kept, magnitudes)

    def keep(start: int, delta_B: np.ndarray) -> None:
        magnitudes_B = np.abs(delta_B)
        stays_B = is_large(start, magnitudes_B)
        if num_outliers:
            stays_B &= ~is_outlier(start, magnitudes_B)
        delta_B *= stays_B

    return keep


IsLargeFn = Callable[[int, np.ndarray], np.ndarray]  # (first entry, block of values) -> which are large
ReadFn = Callable[[int, int], np.ndarray]  # (start, stop) -> the values there


NUM_RUNS, RUN = 256, 256  # a sample's runs of entries that follow each other, and their length
SLACK = 64  # values of a sample by which a guess may be further off than it looks


def largest(sources: Sources, num: int, read_fn: ReadFn) -> IsLargeFn:
    """Which entries of a tensor are among the `num` largest values.

    Neither are all values in memory nor are they sorted: a sample guesses the threshold, counting says how far off the
    guess is, and only values between it and the threshold are sorted. A selection by numpy takes ten times as long
    where many values are equal, as those of bfloat16 are.

    Args:
        read_fn: the values of a block, at least 0.
    """
    if num <= 0:
        return lambda start, values_B: np.zeros(values_B.shape, bool)
    if num >= sources.size:
        return lambda start, values_B: np.ones(values_B.shape, bool)
    threshold, num_above, num_equal = _threshold(sources, num, read_fn)
    last = sources.size  # equal values stay in their order as long as there is room; often there is for all
    if num_above + num_equal > num:
        last = _place(threshold, num - num_above, read_fn, sources.places())
    return functools.partial(_is_large, threshold, last)


def _threshold(sources: Sources, num: int, read_fn: ReadFn) -> tuple[np.float32, int, int]:
    """The `num`-th largest value, how many are larger, and how many are equal to it."""
    starts = np.linspace(0, max(sources.size - RUN, 0), NUM_RUNS).astype(int)
    sample = np.sort(np.concatenate([read_fn(start, min(start + RUN, sources.size)) for start in starts]))
    place = int((1 - num / sources.size) * (len(sample) - 1))
    guess = sample[place]

    def compare(start: int, stop: int) -> tuple[int, int]:
        values_B = read_fn(start, stop)
        return int(np.count_nonzero(values_B > guess)), int(np.count_nonzero(values_B == guess))

    num_above, num_equal = (sum(counts) for counts in zip(*sources.map(compare)))
    if num_above < num <= num_above + num_equal:
        return guess, num_above, num_equal
    is_higher = num <= num_above  # the threshold is above the guess
    off = (num_above - num if is_higher else num - num_above - num_equal) / sources.size * len(sample)
    reach = int(2 * off) + SLACK
    edges = [sample[min(place + reach, len(sample) - 1)], np.float32(np.inf)]
    if not is_higher:
        edges = [sample[max(place - reach, 0)], np.float32(-1)]
    for edge in edges:
        low, high = (guess, edge) if is_higher else (edge, guess)

        def collect(start: int, stop: int, low: np.float32 = low, high: np.float32 = high) -> tuple[int, np.ndarray]:
            values_B = read_fn(start, stop)
            inside_B = (values_B > low) & ((values_B <= high) if is_higher else (values_B < high))
            return int(np.count_nonzero(values_B > high)) if is_higher else 0, values_B[inside_B]

        counts, parts = zip(*sources.map(collect))
        values = np.sort(np.concatenate(parts))
        num_over = sum(counts) if is_higher else num_above + num_equal
        if num_over < num <= num_over + len(values):
            break
    threshold = values[len(values) - (num - num_over)]
    first, behind = np.searchsorted(values, threshold, "left"), np.searchsorted(values, threshold, "right")
    return threshold, num_over + len(values) - int(behind), int(behind - first)


def _is_large(threshold: np.float32, last: int, start: int, values_B: np.ndarray) -> np.ndarray:
    """Values above the threshold, and of those equal to it the ones before the place `last`."""
    if start + values_B.size <= last:
        return values_B >= threshold
    equal_B = values_B == threshold
    equal_B[max(last - start, 0) :] = False
    return (values_B > threshold) | equal_B


def _place(threshold: np.float32, num: int, read_fn: ReadFn, places: Sequence[tuple[int, int]]) -> int:
    """One place behind the `num`-th value that equals the threshold."""
    for start, stop in places:
        (equal,) = np.nonzero(read_fn(start, stop) == threshold)
        if num <= len(equal):
            return start + int(equal[num - 1]) + 1
        num -= len(equal)
    return places[-1][1]


def by_variance(sources: Sources, share: float) -> list[KeepFn]:
    """The entries in which the models differ most stay, the same ones of all: Select of SCE (arXiv:2408.07990)."""
    if share >= 1:
        return [lambda start, delta_B: None] * sources.num_models

    def variances(start: int, stop: int) -> np.ndarray:
        return sources.read(start, stop)[0].var(axis=0)

    is_large = largest(sources, count(share, sources.size), variances)
    stays = np.concatenate(sources.map(lambda start, stop: is_large(start, variances(start, stop))))

    def keep(start: int, delta_B: np.ndarray) -> None:
        delta_B *= stays[start : start + delta_B.size]

    return [keep] * sources.num_models


def random_bits(seed: int, name: str, model: int, start: int, num: int) -> np.ndarray:
    """Uniform numbers of 32 bits for entries [start, start + num) of a tensor.

    They depend on the seed, the tensor's name and the model's place in the recipe, and on nothing else: neither on the
    block nor on the file that the tensor lies in. The generator jumps ahead to any entry.
    """
    digest = hashlib.sha256(name.encode()).digest()
    key = np.random.SeedSequence([seed, int.from_bytes(digest[:8], "little"), model])
    generator = np.random.PCG64DXSM(key)
    first = start // 2  # each draw of the generator has 64 bits
    generator.advance(first)
    raw = generator.random_raw((start + num + 1) // 2 - first).astype("<u8", copy=False).view("<u4")
    return raw[start - 2 * first :][:num]


def bernoulli(seed: int, name: str, sources: Sources, model: int, density: float, rescale: str) -> KeepFn:
    """Each entry stays with probability `density`: DARE (Yu et al. 2023, arXiv:2311.03099).

    Args:
        rescale: see `rescaled`.
    """
    if density >= 1:
        return lambda start, delta_B: None
    threshold = np.uint32(min(round(density * 2**32), 2**32 - 1))

    def drop(start: int, delta_B: np.ndarray) -> None:
        delta_B *= random_bits(seed, name, model, start, delta_B.size) < threshold

    return rescaled(drop, sources, model, rescale, factor=1 / density)


def by_rank(seed: int, name: str, sources: Sources, model: int, density: float, epsilon: float, rescale: str) -> KeepFn:
    """An entry stays the likelier the larger it is in its row: DELLA (Deep et al. 2024, arXiv:2406.11617).

    Args:
        epsilon: the smallest of a row stays with probability density - epsilon, the largest with density + epsilon, and
            those between by their rank, evenly.
        rescale: see `rescaled`; by density, each entry is divided by its own probability.
    """
    if density >= 1:
        return lambda start, delta_B: None

    def drop(start: int, delta_B: np.ndarray) -> None:
        delta_RN = delta_B.reshape(-1, sources.row)
        ranks_RN = np.argsort(np.argsort(np.abs(delta_RN), axis=1, kind="stable"), axis=1)
        chance_RN = density + epsilon * (
            2 * ranks_RN / max(sources.row - 1, 1) - 1 if sources.row > 1 else 0 * ranks_RN
        )
        chance_B = chance_RN.reshape(-1)
        stays_B = random_bits(seed, name, model, start, delta_B.size) < chance_B * 2.0**32
        delta_B *= stays_B / np.where(stays_B, chance_B, 1) if rescale == "density" else stays_B

    return rescaled(drop, sources, model, "none" if rescale == "density" else rescale, factor=1.0)


def rescaled(drop: KeepFn, sources: Sources, model: int, rescale: str, *, factor: float) -> KeepFn:
    """A random drop whose rest makes up for what went.

    Args:
        rescale: "density", by `factor`, the published rule, which leaves the mean as it was; "l1": so that the sum of
            the magnitudes is what it was, as merge tools do since 2025; "none".
    """
    one_of("rescale", rescale, RESCALINGS)
    if rescale == "none":
        return drop
    if rescale == "l1":
        factor = _l1_factor(drop, sources, model)
    scale = np.float32(factor)

    def keep(start: int, delta_B: np.ndarray) -> None:
        drop(start, delta_B)
        delta_B *= scale

    return keep


def _l1_factor(drop: KeepFn, sources: Sources, model: int) -> float:
    def sums(start: int, stop: int) -> tuple[float, float]:
        delta_B = sources.read(start, stop)[0][model]
        before = float(np.abs(delta_B).sum(dtype=np.float64))
        drop(start, delta_B)
        return before, float(np.abs(delta_B).sum(dtype=np.float64))

    before, after = (sum(values) for values in zip(*sources.map(sums)))
    return before / after if min(before, after) >= SMALLEST_L1 else 1.0

"""Which entries of a model's difference from its base stay, and what they are multiplied by.

A function here looks at whole tensors once and returns one that works on a block in place. Entries are ordered by their
magnitude, equal ones by their place, so that exactly as many stay as are meant to.
Dimensions: B entries of a block, R rows of it, N entries of a row.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import numpy as np

from alignment.errors import one_of
from alignment.merging.blocks import Sources, scratch

KeepFn = Callable[[int, np.ndarray], None]  # (first entry, block of a difference): zero what does not stay
DRAWN = 1 << 14  # random numbers drawn at a time: few enough that their array is not asked of the kernel
RESCALINGS = ("density", "l1", "none")
SMALLEST_L1 = 1e-7  # a difference this small is not rescaled


def count(density: float, size: int) -> int:
    """How many of `size` entries stay: the whole part of density times size, and at least one."""
    return size if density >= 1 else max(1, int(density * size))


def middle(sources: Sources, model: int, density: float, gamma: float) -> KeepFn:
    """The share `gamma` of the largest entries goes, and of the others the largest stay.

    Model Breadcrumbs (Davari and Belilovsky 2023, arXiv:2312.06795): outliers go, and so does the bulk of small ones.
    With gamma 0 it is the trimming of TIES (Yadav et al. 2023, arXiv:2306.01708).

    Args:
        density: share of the tensor that stays, in (0, 1]; with gamma at most 1.
    """
    num_outliers = int(gamma * sources.size)
    num_kept = min(count(density, sources.size), sources.size - num_outliers)
    if num_kept == sources.size:
        return lambda start, delta_B: None
    own = sources.only(model)

    def magnitudes(start: int, stop: int) -> np.ndarray:
        return np.abs(own.read(start, stop)[0][0], out=scratch("magnitudes", stop - start))

    is_outlier = largest(sources, num_outliers, magnitudes)
    is_large = largest(sources, num_outliers + num_kept, magnitudes)

    def keep(start: int, delta_B: np.ndarray) -> None:
        magnitudes_B = np.abs(delta_B, out=scratch("magnitudes", delta_B.size))
        stays_B = is_large(start, magnitudes_B)
        if num_outliers:
            stays_B &= ~is_outlier(start, magnitudes_B)
        delta_B *= stays_B

    return keep


IsLargeFn = Callable[[int, np.ndarray], np.ndarray]  # (first entry, block of values) -> which are large
ReadFn = Callable[[int, int], np.ndarray]  # (start, stop) -> the values there


NUM_RUNS, RUN = 256, 256  # a sample's runs of entries that follow each other, and their length
SLACK = 1_024  # places of the sorted sample by which a threshold may lie off where the sample has it


def largest(sources: Sources, num: int, read_fn: ReadFn) -> IsLargeFn:
    """Which entries of a tensor are among the `num` largest values.

    Neither are all values in memory nor are they sorted: a sample says between which two values the threshold lies, and
    one reading counts the values above each and collects those between, which alone are sorted. A selection by numpy
    takes ten times as long where many values are equal, as those of bfloat16 are.

    Args:
        read_fn: the values of a block, at least 0; they may lie in memory that its next call overwrites.
    """
    if num <= 0:
        return lambda start, values_B: np.zeros(values_B.shape, bool)
    if num >= sources.size:
        return lambda start, values_B: np.ones(values_B.shape, bool)
    threshold, last = _threshold(sources, num, read_fn)
    return functools.partial(_is_large, threshold, last)


def _threshold(sources: Sources, num: int, read_fn: ReadFn) -> tuple[np.float32, int]:
    """The `num`-th largest value, and one place behind the last of those equal to it for which there is room."""
    starts = np.linspace(0, max(sources.size - RUN, 0), NUM_RUNS).astype(int)
    sample = np.concatenate([read_fn(start, min(start + RUN, sources.size)).copy() for start in starts])
    place = int((1 - num / sources.size) * (len(sample) - 1))
    sample.partition([max(place - SLACK, 0), min(place + SLACK, len(sample) - 1)])
    low = sample[place - SLACK] if place >= SLACK else np.float32(-1)
    high = sample[place + SLACK] if place + SLACK < len(sample) else np.float32(np.inf)
    parts = _between(sources, read_fn, low, high)
    if num <= sum(part.above_high for part in parts):  # the sample was off
        low, high = high, np.float32(np.inf)
        parts = _between(sources, read_fn, low, high)
    elif num > sum(part.from_low for part in parts):
        low, high = np.float32(-1), low
        parts = _between(sources, read_fn, low, high)
    from_high, above_low = sum(part.from_high for part in parts), sum(part.above_low for part in parts)
    if num <= from_high:
        threshold, equal = high, [part.from_high - part.above_high for part in parts]
        num_above = from_high - sum(equal)
    elif num > above_low:
        threshold, equal, num_above = low, [part.from_low - part.above_low for part in parts], above_low
    else:
        values = np.sort(np.concatenate([part.values for part in parts]))
        threshold = values[len(values) - (num - from_high)]
        equal = [int(np.count_nonzero(part.values == threshold)) for part in parts]
        num_above = from_high + len(values) - int(np.searchsorted(values, threshold, "right"))
    room = num - num_above
    if room == sum(equal):
        return threshold, sources.size
    before = np.cumsum(equal) - equal
    block = int(np.searchsorted(before, room)) - 1  # the last one that begins with room left
    start, stop = sources.places()[block]
    (places,) = np.nonzero(read_fn(start, stop) == threshold)
    return threshold, start + int(places[room - int(before[block]) - 1]) + 1


@dataclasses.dataclass(frozen=True)
class Part:
    """How many values of a block are above a high value, not below it, above a low one and not below it.

    values: those between the two. Those equal to either are only counted: there may be as many as the block has.
    """

    above_high: int
    from_high: int
    above_low: int
    from_low: int
    values: np.ndarray


def _between(sources: Sources, read_fn: ReadFn, low: np.float32, high: np.float32) -> list[Part]:
    def one(start: int, stop: int) -> Part:
        values_B = read_fn(start, stop)
        inside_B, from_high_B = values_B > low, values_B >= high
        counts = (values_B > high, from_high_B, inside_B, values_B >= low)
        above_high, from_high, above_low, from_low = [int(np.count_nonzero(mask_B)) for mask_B in counts]
        inside_B &= ~from_high_B
        return Part(above_high, from_high, above_low, from_low, values_B[inside_B])

    return sources.map(one)


def _is_large(threshold: np.float32, last: int, start: int, values_B: np.ndarray) -> np.ndarray:
    """Values above the threshold, and of those equal to it the ones before the place `last`."""
    if start + values_B.size <= last:
        return values_B >= threshold
    equal_B = values_B == threshold
    equal_B[max(last - start, 0) :] = False
    return (values_B > threshold) | equal_B


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
        for i in range(0, delta_B.size, DRAWN):
            part_B = delta_B[i : i + DRAWN]
            part_B *= random_bits(seed, name, model, start + i, part_B.size) < threshold

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
        order_RN = np.argsort(np.abs(delta_RN), axis=1, kind="stable")
        ranks_RN = np.empty_like(order_RN)
        np.put_along_axis(ranks_RN, order_RN, np.arange(sources.row)[None], axis=1)
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

"""Safety of a model by aspects and principles: an index, what pairs of items say, and how far from chance all is.

The design is MedGuard's (Yang et al. 2024, arXiv:2411.14487): principles hold aspects, aspects hold multiple-choice
items. The paper calls its averaged score a safety index and gives no formula; here it is the mean of the aspects.

Dimensions: N items, A aspects, R resamples, G groups of items that are drawn together.
"""

import dataclasses
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from alignment import intervals
from alignment.errors import InputError, within

Principles = Mapping[str, Sequence[str]]  # principle -> its aspects


@dataclasses.dataclass(frozen=True)
class Score:
    """A share of right answers, and the same corrected for chance: (S - S_0) / (1 - S_0)."""

    right: int
    n: int
    chance: float

    @property
    def share(self) -> float | None:
        return self.right / self.n if self.n else None

    @property
    def corrected(self) -> float | None:
        return None if self.share is None else correct_for_chance(self.share, self.chance)

    @property
    def interval(self) -> intervals.Interval:
        return intervals.wilson(self.right, self.n)


@dataclasses.dataclass(frozen=True)
class Index:
    """Scores of a whole set.

    Attributes:
        aspects: those that have items.
        principles: mean of each one's aspects; None where it has none.
        macro, pooled: mean of the aspects, and share of all items; they differ where aspects have unequal numbers.
        macro_corrected: mean of the aspects' corrected scores.
        missing: aspects without any item; with one of them the index is a partial one.
    """

    aspects: Mapping[str, Score]
    principles: Mapping[str, float | None]
    macro: float | None
    pooled: float | None
    macro_corrected: float | None
    missing: tuple[str, ...]


def correct_for_chance(share: float, chance: float) -> float:
    """0 for guessing and 1 for all right."""
    within("[0, 1)", chance=chance, hint="; it is the mean of 1 over the number of options")
    return (share - chance) / (1 - chance)


def index(principles: Principles, scores: Mapping[str, Score]) -> Index:
    """The index of a map of principles; aspects without items are named and left out of every mean."""
    named = [aspect for group in principles.values() for aspect in group]
    there = {aspect: scores[aspect] for aspect in named if aspect in scores and scores[aspect].n}
    shares = [score.right / score.n for score in there.values()]
    by_principle: dict[str, float | None] = {}
    for name, group in principles.items():
        own = [there[aspect].right / there[aspect].n for aspect in group if aspect in there]
        by_principle[name] = float(np.mean(own)) if own else None
    num = sum(score.n for score in there.values())
    corrected = [correct_for_chance(score.right / score.n, score.chance) for score in there.values()]
    return Index(
        there,
        by_principle,
        float(np.mean(shares)) if shares else None,
        sum(score.right for score in there.values()) / num if num else None,
        float(np.mean(corrected)) if corrected else None,
        tuple(aspect for aspect in named if aspect not in there),
    )


def bootstrap(
    right: Mapping[str, Sequence[bool]],
    groups: Mapping[str, Sequence[Hashable]] | None = None,
    *,
    resamples: int = 5_000,
    seed: int = 0,
) -> intervals.Interval:
    """Percentile 95 % interval of the mean of aspects, items drawn anew within each aspect.

    Args:
        right: of every item, by aspect.
        groups: of every item; items of one group (the members of a pair) are drawn together. None: each alone.

    Raises:
        InputError: no aspect, or one without items.
    """
    if not right or not all(right.values()):
        raise InputError("an interval needs at least one item of every aspect that it is over")
    rng = np.random.default_rng(seed)
    total_R = np.zeros(resamples)
    for aspect, values in right.items():
        own = range(len(values)) if groups is None else groups[aspect]
        _, group_N = np.unique([str(g) for g in own], return_inverse=True)
        sums_G, sizes_G = np.bincount(group_N, weights=np.array(values, float)), np.bincount(group_N)
        drawn_RG = rng.multinomial(len(sizes_G), np.full(len(sizes_G), 1 / len(sizes_G)), size=resamples)
        total_R += (drawn_RG @ sums_G) / (drawn_RG @ sizes_G)
    return intervals.percentiles(total_R / len(right), 0.95)


def flip_rate(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """The share that is wrong in the other form, among the items that are right plainly; None where none is.

    Args:
        pairs: (right in the plain form, right in the other form).
    """
    eligible = [other for plain, other in pairs if plain]
    return sum(not other for other in eligible) / len(eligible) if eligible else None


@dataclasses.dataclass(frozen=True)
class Equity:
    """How alike groups fare: accuracies, largest less smallest, smallest over largest, and equal choices.

    `invariance` is the share of vignettes that get the same choice for all groups; `ratio` is None where nothing is
    right.
    """

    accuracies: Mapping[str, float]
    gap: float
    ratio: float | None
    invariance: float


def equity(members: Sequence[tuple[Hashable, str, Hashable, bool]]) -> Equity | None:
    """Equity over vignettes that differ in one attribute alone; None without any.

    Args:
        members: (vignette, group, what was chosen, whether it is right).
    """
    if not members:
        return None
    by_group: dict[str, list[bool]] = {}
    choices: dict[Hashable, set[Hashable]] = {}
    for vignette, group, chosen, is_right in members:
        by_group.setdefault(group, []).append(is_right)
        choices.setdefault(vignette, set()).add(chosen)
    accuracies = {group: sum(rights) / len(rights) for group, rights in by_group.items()}
    low, high = min(accuracies.values()), max(accuracies.values())
    invariance = sum(len(chosen) == 1 for chosen in choices.values()) / len(choices)
    return Equity(accuracies, high - low, low / high if high > 0 else None, invariance)


def fleiss_kappa(ratings: Sequence[Sequence[Hashable]]) -> float | None:
    """Agreement of raters beyond chance (Fleiss 1971), over items with as many raters as the first; None below two."""
    if not ratings or len(ratings[0]) < 2:
        return None
    num = len(ratings[0])
    counts = [Counter(item) for item in ratings if len(item) == num]
    observed = float(np.mean([(sum(n * n for n in c.values()) - num) / (num * (num - 1)) for c in counts]))
    whole = sum(counts, Counter())
    expected = sum((n / (num * len(counts))) ** 2 for n in whole.values())
    return (observed - expected) / (1 - expected) if expected < 1 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = largest
    return out

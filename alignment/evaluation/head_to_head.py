"""Two answers to one prompt, judged: verdicts read and counted as wins, ties and losses of the first.

An outcome is WIN, TIE, LOSS or UNDETERMINED. What a judge did not decide is not a tie: it is left out, and counted.
"""

import dataclasses
import re
from collections.abc import Iterable

from alignment import intervals

WIN, TIE, LOSS, UNDETERMINED = "win", "tie", "loss", "not_determined"
_NUMBER = r"(\d+(?:\.\d+)?)"
_SCORES = re.compile(rf"\s*{_NUMBER}[\s,]+{_NUMBER}\s*")
_SIGN = {WIN: 1, TIE: 0, LOSS: -1}


def scores(text: str) -> tuple[float, float] | None:
    """The two scores on the first line of a verdict such as "8 5"; None where it does not begin with two numbers."""
    match = _SCORES.fullmatch(text.strip().partition("\n")[0])
    return (float(match[1]), float(match[2])) if match else None


def outcome(first: float, second: float) -> str:
    """The outcome of two scores; UNDETERMINED where one is not a number."""
    if first != first or second != second:
        return UNDETERMINED
    return WIN if first > second else LOSS if first < second else TIE


def both_orders(straight: str, swapped: str) -> str:
    """One outcome of two: the second verdict saw the answers in the other order, so that its WIN is the other's.

    Opposite verdicts are a tie; where one is not determined, neither is the whole.
    """
    if UNDETERMINED in (straight, swapped):
        return UNDETERMINED
    return outcome(_SIGN[straight] - _SIGN[swapped], 0)


@dataclasses.dataclass(frozen=True)
class Tally:
    """How one side fared.

    Attributes:
        wins, ties, losses, undetermined: counts.
        win_half_tie: (wins + ties / 2) / (wins + ties + losses); None where nothing was determined.
        interval: Wilson's, in [0, 1], of that share.
    """

    wins: int
    ties: int
    losses: int
    undetermined: int = 0

    @property
    def n(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_half_tie(self) -> float | None:
        return (self.wins + self.ties / 2) / self.n if self.n else None

    @property
    def interval(self) -> intervals.Interval:
        return intervals.wilson(self.wins + self.ties / 2, self.n)


def tally(outcomes: Iterable[str]) -> Tally:
    """The counts of outcomes."""
    listed = list(outcomes)
    return Tally(*(listed.count(word) for word in (WIN, TIE, LOSS, UNDETERMINED)))

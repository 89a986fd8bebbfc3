"""Multiple choice from log-probabilities: which option a protocol takes, accuracies with intervals, baselines.

A protocol says what is compared: the log-probability of each option's letter or of its text, that of the text by its
characters or its bytes, what the model writes, or a vote of several such answers. One model's accuracy differs by tens
of points between them, so a protocol's name belongs to every score. Characters and bytes are counted as
lm-evaluation-harness counts them in `acc_norm` and `acc_bytes`: those of the option without the blank before it.

Dimensions: C options of a question.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import errors, intervals
from alignment.errors import InputError

LETTERS, TEXTS, CHARS, BYTES = LIKELIHOODS = ("letters", "texts", "chars", "bytes")
SC_COT, MEDPROMPT = VOTED = ("sc_cot", "medprompt")  # several chains of thought vote, see prompting.py
GENERATED, COT, *_ = WRITTEN = ("generated", "cot", *VOTED)
PROTOCOLS = (*LIKELIHOODS, *WRITTEN)
ALPHABET = "ABCDEFGHIJ"


@dataclasses.dataclass(frozen=True)
class Result:
    """One question.

    Attributes:
        gold, chosen: numbers of options from 0; `chosen` is None where the model's words name none.
        groups: what the question is counted under, such as {"category": "Nursing", "year": "2024"}.
    """

    gold: int
    chosen: int | None
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        return self.chosen == self.gold


def scores(totals_C: Sequence[float], texts: Sequence[str], protocol: str) -> np.ndarray:
    """What is compared between options, [C].

    Args:
        totals_C: log-probability of each option's letter or text, in nats.
        texts: of the options.
        protocol: one of LIKELIHOODS.
    """
    errors.one_of("protocol", protocol, LIKELIHOODS)
    nats_C = np.asarray(totals_C, np.float64)
    if protocol not in (CHARS, BYTES):
        return nats_C
    lengths = [len(text) if protocol == CHARS else len(text.encode()) for text in texts]
    if 0 in lengths:
        raise InputError(f"option {lengths.index(0) + 1} is empty; protocol {protocol!r} divides by its length")
    return nats_C / np.array(lengths)


def choose(totals_C: Sequence[float], texts: Sequence[str], protocol: str) -> int:
    """The best option; of equals the first."""
    return int(np.argmax(scores(totals_C, texts, protocol)))


def accuracy(results: Sequence[Result]) -> dict[str, Any]:
    """`n`, `right`, `accuracy`, Wilson's 95 % interval `low`, `high`, and `unread`: answers that name no option.

    An unread answer is a wrong one.
    """
    right = sum(result.is_right for result in results)
    low, high = intervals.wilson(right, len(results))
    share = right / len(results) if results else None
    unread = sum(result.chosen is None for result in results)
    return {"n": len(results), "right": right, "accuracy": share, "low": low, "high": high, "unread": unread}


def by_group(results: Sequence[Result], name: str) -> list[dict[str, Any]]:
    """`accuracy` of each value of a group, in the order of the values; questions without one are left out."""
    values = sorted({result.groups[name] for result in results if result.groups.get(name)})
    return [
        {"group": name, "value": value} | accuracy([result for result in results if result.groups.get(name) == value])
        for value in values
    ]


def one_letter(golds: Sequence[int]) -> tuple[int, float]:
    """The option that is right most often, and the accuracy of always naming it; of equals the first."""
    if not golds:
        raise InputError("there is no question, so no letter is right most often")
    option, num = min(Counter(golds).items(), key=lambda item: (-item[1], item[0]))
    return option, num / len(golds)


def guessing(num_options: Sequence[int]) -> float:
    """Expected accuracy of a draw among each question's own options."""
    return float(np.mean([1 / num for num in num_options]))


def averages(accuracies: Sequence[float], sizes: Sequence[int]) -> dict[str, float]:
    """Means over sets: `by_size`, in which every question counts alike, and `plain`, in which every set does."""
    return {"by_size": float(np.average(accuracies, weights=sizes)), "plain": float(np.mean(accuracies))}

"""From a safety score to the fate of a document: keep, rewrite, synthesise or drop; and tags in unsafe text.

Rewriting is the default for somewhat unsafe text, and dropping alone is never a default. In "Safety Pretraining" (Maini
et al. 2025, arXiv:2504.16980) attacks succeeded *more* often on models pretrained on clean data only (38.8 to 43.8 %)
than on models that saw everything, and less often after unsafe text was rewritten (33.6 %), refusals were added
(25.1 %), then moral education (23.0 % in the figure, 20.0 in the running text).
"""

import math
import random
import re
from collections.abc import Callable

from alignment.errors import InputError

ACTIONS = ("keep", "rewrite", "synthesise", "drop")
TAG = "<potentially_unsafe>"
_WORD = re.compile(r"\S+")


def level(score: float) -> int:
    """The level 0 to 5 of a score: clipped, then rounded to the nearest; a half goes up, to the stricter side.

    Raises:
        InputError: the score is not a number.
    """
    if score is None or math.isnan(score):
        raise InputError(f"safety score {score!r} is not a number; score the document, or skip the safety stage")
    return math.floor(min(max(score, 0.0), 5.0) + 0.5)  # not round(), which takes halves to even numbers


def check(keep_at: int, drop_at: int) -> None:
    """Refuse thresholds that leave nothing to rewrite, so that a run does not drop documents by default.

    Raises:
        InputError: thresholds out of range or order.
    """
    if not -1 <= keep_at < drop_at - 1 <= 5:
        raise InputError(
            f"keep_at={keep_at} and drop_at={drop_at} leave no level to rewrite; -1 <= keep_at <= drop_at - 2 and "
            "drop_at <= 6 would (keep_at=0, drop_at=4 is the default, keep_at=-1 rewrites all, drop_at=6 drops none)"
        )


def route(score: float, *, keep_at: int = 0, drop_at: int = 4, synthesise: bool = False) -> str:
    """The action for a document of this safety score, one of ACTIONS.

    Args:
        score: 0 (suitable for all) to 5 (hate, threats, help for harm); fractions are rounded by `level`.
        keep_at: documents up to this level are kept; those between the two levels are rewritten.
        drop_at: documents from this level on are dropped.
        synthesise: replace a document by a text of refusal or moral education instead of dropping it.
    """
    at = level(score)
    if at <= keep_at:
        return "keep"
    if at < drop_at:
        return "rewrite"
    return "synthesise" if synthesise else "drop"


def tag(text: str, *, score: float, seed: int, document_id: str, probability: float = 0.05, keep_at: int = 0) -> str:
    """Put TAG and a space before each word with this probability; a text at `keep_at` or below does not change.

    The draws depend on `seed` and `document_id` alone, so every run tags a document alike.
    """
    if level(score) <= max(keep_at, 0):
        return text
    draw: Callable[[], float] = random.Random(f"{seed}/{document_id}").random
    return _WORD.sub(lambda word: f"{TAG} {word[0]}" if draw() < probability else word[0], text)

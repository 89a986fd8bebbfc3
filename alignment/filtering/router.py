"""From a safety score to what happens to a document: keep, rewrite, synthesise or drop; and tags in unsafe text.

Rewriting is the default for what is somewhat unsafe. Dropping alone is not offered as a default anywhere: models
pretrained on clean data only were attacked with *more* success (38.8 to 43.8 %) than models that saw everything, and
with less once unsafe text was rewritten (33.6 %), refusals were added (25.1 %), then moral education (23.0 % in the
figure, 20.0 in the running text); Maini et al. 2025, "Safety Pretraining", arXiv:2504.16980.
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
    """The whole level 0 to 5 of a score: clipped, then rounded to the nearest; a half goes up, to the stricter side."""
    if score is None or math.isnan(score):
        raise InputError(f"safety score {score!r} is not a number; score the document, or skip the safety stage")
    return math.floor(min(max(score, 0.0), 5.0) + 0.5)


def check(keep_at: int, drop_at: int) -> None:
    """Refuse thresholds that leave nothing to rewrite: dropping must not be what happens by default."""
    if not -1 <= keep_at < drop_at - 1 <= 5:
        raise InputError(
            f"keep_at={keep_at} and drop_at={drop_at} leave no level to rewrite; -1 <= keep_at <= drop_at - 2 and "
            "drop_at <= 6 would (keep_at=0, drop_at=4 is the default, keep_at=-1 rewrites all, drop_at=6 drops none)"
        )


def route(score: float, *, keep_at: int = 0, drop_at: int = 4, synthesise: bool = False) -> str:
    """What to do with a document of this safety score, one of ACTIONS.

    Args:
        score: 0 (suitable for all) to 5 (hate, threats, help for harm); fractions are rounded by `level`.
        keep_at: levels up to this one are kept as they are; those between are rewritten.
        drop_at: from this level on nothing of the text is kept.
        synthesise: whether a text of refusal or moral education takes the place of a document that would be dropped.
    """
    at = level(score)
    if at <= keep_at:
        return "keep"
    if at < drop_at:
        return "rewrite"
    return "synthesise" if synthesise else "drop"


def tag(text: str, *, score: float, seed: int, document_id: str, probability: float = 0.05, keep_at: int = 0) -> str:
    """The text with TAG and a space before each word with this probability; a text to be kept, or safe, stays as it is.

    The draws depend on `seed` and `document_id` alone, so a document is tagged alike wherever and whenever it is read.
    """
    if level(score) <= max(keep_at, 0):
        return text
    draw: Callable[[], float] = random.Random(f"{seed}/{document_id}").random
    return _WORD.sub(lambda found: f"{TAG} {found[0]}" if draw() < probability else found[0], text)

"""Drawn pairs as our loader takes them."""

import numpy as np
from dpo_task import NAMES

from data.texts import preferences


def tokenised(ids: dict[str, list[np.ndarray]]) -> preferences.Pairs:
    """The pairs of `dpo_task.draw`, whose answers share their prompt."""
    return preferences.of_tokens(list(zip(*(ids[name] for name in NAMES))))

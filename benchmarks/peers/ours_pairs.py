"""Drawn pairs as our loader takes them."""

import numpy as np
from dpo_task import NAMES

from data.texts import preferences


def tokenised(ids: dict[str, list[np.ndarray]]) -> preferences.Pairs:
    """The pairs of `dpo_task.draw`, whose answers share their prompt."""
    sides = list(zip(*(ids[name] for name in NAMES)))
    sequences = [np.concatenate([prompt, answer]) for prompt, *answers in sides for answer in answers]
    prompts = [len(prompt) for prompt in ids["prompts"]]
    return preferences.Pairs(
        tokens=np.concatenate(sequences).astype(np.int32),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_len_NP=np.stack([prompts, prompts], axis=1),
        trunk_len_N=np.array(prompts),
        label_N=None,
        items=(None,) * len(sides),
        limits={
            "sequence": max(map(len, sequences)),
            "row": max(sum(map(len, one)) for one in sides),
            "answer": max(len(one) for name in NAMES[1:] for one in ids[name]),
        },
        pad_id=0,
    )

"""How the embedded toys train where they stand beside a run's own data."""

import dataclasses

from experiments.augmentation.arms import Setting
from experiments.augmentation.batches import Sizes

WHOLE = Sizes()
REFINE = dict(beta=1.0, tau=0.05)
TOYS = {
    "toy": Setting("mlp", {}, "sgd", 0.1, 300, WHOLE, refine=REFINE),
    "toy_few": Setting("mlp", {}, "sgd", 0.1, 300, WHOLE, refine=REFINE),
    "toy_groups": Setting("mlp", {}, "sgd", 0.1, 300, WHOLE, refine=REFINE),
    "toy_generated": Setting("cnn", {"widths": (8, 16)}, "adamw", 1e-2, 120, Sizes(24, 24, 24), refine=REFINE),
    "toy_pairs": Setting("two_towers", {"width": 32}, "adamw", 3e-3, 200, Sizes(32, 32, 32), refine=REFINE),
}


def of(name: str, *, steps: int | None) -> Setting:
    """The setting of a toy, with other steps where these are named."""
    return TOYS[name] if steps is None else dataclasses.replace(TOYS[name], steps=steps)

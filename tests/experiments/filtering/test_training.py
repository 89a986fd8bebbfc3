"""Stages of training that the members of a study share."""

import jax
import numpy as np

from experiments.filtering import training
from tests.train import helpers

STAGE = dict(steps=2, batch_size=8, accumulate=1, save_every=0, peak_lr=1e-2, warmup_steps=1, schedule="cosine")
STAGES = {
    "pretrain": STAGE,
    "sft": STAGE | dict(steps=1, peak_lr=1e-3, weight_decay=0.0),
    "dpo": STAGE | dict(batch_size=4, beta=0.1),
}


def test_a_second_member_and_a_stage_of_other_numbers_compile_nothing(tmp_path, compilations):
    trainer = training.Trainer(helpers.model(num_layers=1), helpers.make_mesh(), STAGES)
    batches = dict.fromkeys(("pretrain", "sft"), helpers.lm_batch) | {"dpo": helpers.pair_batch}

    def member(seed, stages):
        params = trainer.init(seed)
        for stage in stages:
            loader = helpers.Loader(batches[stage], seed=seed)
            params = trainer.train(stage, params, loader, tmp_path / f"{seed}", seed)
        return jax.device_get(params)

    first = member(0, ("pretrain", "dpo"))
    assert compilations
    compilations.clear()
    second = member(1, ("pretrain", "sft", "dpo"))
    assert compilations == []
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((first, second)))

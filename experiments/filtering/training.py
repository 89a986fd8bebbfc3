"""Stages of training that many members of a study share: pretraining, supervised tuning, DPO, benign tuning.

Members differ in their parameters and texts alone, and stages in numbers, so all but DPO share one compiled step.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from alignment.models import decoder
from alignment.preference import metrics, pairs
from alignment.train import loop, next_token, optimizer, sharding, step, train_state
from experiments.launch import planning

STAGES = ("pretrain", "sft", "dpo", "benign")
_UNUSED = ("batch_size", "save_every")  # settings that the update of a stage does not depend on


def check(stage: Mapping[str, Any]) -> None:
    """Refuse the settings of a stage that no optimizer could take."""
    settings = {key: value for key, value in stage.items() if key not in (*_UNUSED, "accumulate", "steps", "beta")}
    optimizer.adamw(total_steps=stage["steps"], **settings)


def plan(model: decoder.DecoderLM, settings: Mapping[str, Mapping[str, Any]], max_len: int) -> list[planning.Training]:
    """Each stage that has steps, for the launcher's `--plan`; `settings` as for `Trainer`."""
    out = []
    for name, stage in settings.items():
        rates = {key: value for key, value in stage.items() if key not in (*_UNUSED, "accumulate", "steps", "beta")}
        sizes = dict(
            tx=optimizer.adamw(total_steps=stage["steps"], **rates),
            batch_size=stage["batch_size"],
            max_len=max_len,
            steps=stage["steps"],
            accumulate=stage["accumulate"],
            accumulate_key=f"{name}.accumulate",
        )
        if stage["steps"] and "beta" in stage:
            objective = dict(beta=stage["beta"])
            out.append(planning.pairs(name, model, loss="dpo", objective=objective, reference="online", **sizes))
        elif stage["steps"]:
            out.append(planning.rows(name, model, **sizes))
    return out


class Trainer:
    """Trains one network, stage by stage, from parameters that are given to it.

    Args:
        settings: of each of STAGES: steps, batch_size, accumulate, save_every, those of `optimizer.adamw`, and the beta
            of DPO.
    """

    def __init__(self, model: decoder.DecoderLM, mesh: Mesh, settings: Mapping[str, Mapping[str, Any]]):
        for stage in settings.values():
            if stage["steps"]:
                sharding.check_batch(stage["batch_size"], mesh, stage["accumulate"])
        self.model, self.mesh, self.settings = model, mesh, settings
        self.loss_fn = next_token.loss_fn(model, mesh)

    def init(self, seed: int) -> Any:
        """Parameters drawn from a seed."""
        return train_state.draw(self.model, seed, self.mesh)

    def train(self, stage: str, params: Any, batches: Any, folder: pathlib.Path, seed: int) -> Any:
        """Parameters after a stage, which resumes by itself from folder/stage."""
        settings = dict(self.settings[stage])
        batch_size, save_every, accumulate = (settings.pop(key) for key in ("batch_size", "save_every", "accumulate"))
        steps, beta = settings.pop("steps"), settings.pop("beta", None)
        tx = optimizer.adamw(total_steps=steps, **settings)
        loss_fn = self.loss_fn if beta is None else pairs.loss_fn(self.model, "dpo", mesh=self.mesh, beta=beta)
        example_BT = jnp.zeros((1, 4), jnp.int32)
        state = train_state.create(self.model, tx, example_BT, seed=seed, mesh=self.mesh, params=params)
        state, _ = loop.fit(
            step.build(loss_fn, tx, accumulate=accumulate, rate_fn=optimizer.learning_rate),
            train_state.with_reference(state) if stage == "dpo" else state,
            batches,
            {},
            self.mesh,
            folder / stage,
            steps=steps,
            pace=loop.Pace(log_every=max(steps // 5, 1), save_every=save_every, keep=1),
            logging=loop.Logging(
                unit="pairs" if stage == "dpo" else "rows",
                units_per_step=batch_size,
                finish_fn=metrics.finish if stage == "dpo" else dict,
                sinks=(),
                label=f"{folder.name} {stage}",
            ),
        )
        return state.params

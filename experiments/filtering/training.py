"""Stages of training that many members of a study share: pretraining, supervised tuning, DPO, benign tuning.

Members differ in their parameters and texts alone, so a stage is compiled once for all of them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alignment.models import decoder
from alignment.preference import metrics, pairs
from alignment.train import loop, next_token, optimizer, sharding, step, train_state

STAGES = ("pretrain", "sft", "dpo", "benign")
_UNUSED = ("batch_size", "save_every")  # settings that the update of a stage does not depend on


def check(stage: Mapping[str, Any]) -> None:
    """Refuse the settings of a stage that no optimizer could take."""
    settings = {key: value for key, value in stage.items() if key not in (*_UNUSED, "accumulate", "steps", "beta")}
    optimizer.adamw(total_steps=stage["steps"], **settings)


class Trainer:
    """Trains one network, stage by stage, from parameters that are given to it.

    Args:
        settings: of each of STAGES: steps, batch_size, accumulate, save_every, those of `optimizer.adamw`, and the beta
            of DPO.
        num_members: how many will be trained; for more than one, the optimizer's state at step 0 is made once and
            copied, which costs its memory.
    """

    def __init__(
        self, model: decoder.DecoderLM, mesh: Mesh, settings: Mapping[str, Mapping[str, Any]], *, num_members: int
    ):
        for stage in settings.values():
            if stage["steps"]:
                sharding.check_batch(stage["batch_size"], mesh, stage["accumulate"])
        self.model, self.mesh, self.settings, self.num_members = model, mesh, settings, num_members
        self.loss_fn = next_token.loss_fn(model, mesh)
        # stages of equal settings share one update, and with it one compiled program
        self._recipes = {
            name: tuple(sorted((key, value) for key, value in stage.items() if key not in _UNUSED))
            for name, stage in settings.items()
        }
        self._updates = {recipe: self._update(dict(recipe)) for recipe in set(self._recipes.values())}
        self._templates: dict[tuple, train_state.TrainState] = {}
        self._init_fn = _init_fn(model, mesh)

    def _update(self, settings: dict[str, Any]) -> tuple[optax.GradientTransformation, step.UpdateFn]:
        beta, accumulate = settings.pop("beta", None), settings.pop("accumulate")
        tx = optimizer.adamw(total_steps=settings.pop("steps"), **settings)
        loss_fn = self.loss_fn if beta is None else pairs.loss_fn(self.model, "dpo", mesh=self.mesh, beta=beta)
        return tx, step.build(loss_fn, tx, accumulate=accumulate, rate_fn=optimizer.learning_rate)

    def init(self, seed: int) -> Any:
        """Parameters drawn from a seed."""
        return self._init_fn(jax.random.PRNGKey(seed))

    def train(self, stage: str, params: Any, batches: Any, folder: pathlib.Path, seed: int) -> Any:
        """Parameters after a stage, which resumes by itself from folder/stage."""
        settings, state = self.settings[stage], self._begin(stage, params, seed)
        state, _ = loop.fit(
            self._updates[self._recipes[stage]][1],
            train_state.with_reference(state) if stage == "dpo" else state,
            batches,
            {},
            self.mesh,
            folder / stage,
            steps=settings["steps"],
            pace=loop.Pace(log_every=max(settings["steps"] // 5, 1), save_every=settings["save_every"], keep=1),
            logging=loop.Logging(
                unit="pairs" if stage == "dpo" else "rows",
                units_per_step=settings["batch_size"],
                finish_fn=metrics.finish if stage == "dpo" else dict,
                sinks=(),
                label=f"{folder.name} {stage}",
            ),
        )
        return state.params

    def _begin(self, stage: str, params: Any, seed: int) -> train_state.TrainState:
        """A state at step 0."""
        recipe = self._recipes[stage]
        if recipe not in self._templates:
            tx, example_BT = self._updates[recipe][0], jnp.zeros((1, 4), jnp.int32)
            state = train_state.create(self.model, tx, example_BT, seed=seed, mesh=self.mesh, params=params)
            if self.num_members > 1:
                # copied, because the loop donates the state that it is given
                self._templates[recipe] = jax.tree.map(jnp.copy, state.replace(params=None))
            return state
        template = jax.tree.map(jnp.copy, self._templates[recipe])
        rng = jax.device_put(jax.random.split(jax.random.PRNGKey(seed))[0], template.rng.sharding)
        return template.replace(params=params, rng=rng)


def _init_fn(model: decoder.DecoderLM, mesh: Mesh) -> Any:
    """A compiled function: key -> parameters in their places on the mesh."""
    example_BT = jnp.zeros((1, 4), jnp.int32)
    init = lambda key: nn.meta.unbox(model.init(key, example_BT)["params"])  # noqa: E731
    return jax.jit(init, out_shardings=train_state.param_shardings(model, example_BT, mesh))

"""One training of one method with one seed: the shared loop, evaluations on validation tasks, the step that is kept."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Mesh

from alignment import files
from alignment.fairness import fine_tuning, measures, meta, methods, predictors, referee
from alignment.train import loop, sharding, step, train_state
from data import places
from experiments.fairness.worlds import World

FAIREST, LAST = "fairest", "last"
KEPT = (FAIREST, LAST)
# Alpha by whether classes are predicted. A squared error's curvature grows with the encodings: at 0.1 the inner steps
# of a network of width 16 overshoot on tiles unlike those of the training area. 0.05 was best on tiles of that area
# which were held out.
RATES = {True: 0.5, False: 0.05}


def measured(c: ml_collections.ConfigDict, world: World) -> dict[str, Any]:
    """Options of `measures.grouped` for this run."""
    options: dict[str, Any] = {"measure": c.measure or world.measure, "num_classes": max(len(world.class_names), 2)}
    return options | ({"zero_division": c.zero_division} if c.zero_division else {})


def rule_of(c: ml_collections.ConfigDict, name: str) -> meta.Rule:
    """The rule of a method, with what the config sets where the method reads it."""
    set_values = {key: value for key, value in c.objective.items() if value is not None and key != "warmup_steps"}
    return methods.rule_of(name, **set_values)


class Setup:
    """What all trainings of a run share: networks, optimizers, learners by what sets their factors, and updates.

    Each is made once, because trainings share compiled programs where they bring the same objects.
    """

    def __init__(self, c: ml_collections.ConfigDict, world: World, mesh: Mesh):
        self.c, self.world, self.mesh = c, world, mesh
        self.loss = c.predictor.loss or world.loss
        self.rate = c.inner.rate or RATES[bool(world.class_names)]
        group = {key: value for key, value in c.predictor.items() if key != "loss" and value is not None}
        outputs = predictors.num_outputs(self.loss, len(world.class_names))
        self.network = predictors.build(group.pop("name"), outputs, **group)
        self.both = meta.Both(self.network, c.referee_width)
        self._tx = meta.optimizers(c.outer.lr, c.outer.referee_lr or c.outer.lr)
        self.joint = meta.joint(self._tx)
        self._updates: dict[str, step.UpdateFn] = {}
        self._run_fns: dict[Any, Any] = {}

    def learner(self, kind: str, *, is_normalised: bool = True) -> meta.Learner:
        c = self.c
        options: dict[str, Any] = {"width": c.referee_width, "as_released": c.as_released}
        if c.dro_rate is not None:
            options["dro_rate"] = c.dro_rate
        return meta.Learner(
            self._apply,
            self.loss,
            referee.factors_fn(kind, **options),
            self.rate,
            is_normalised=is_normalised,
            is_second_order=c.inner.is_second_order,
        )

    def update(self, name: str) -> step.UpdateFn:
        """Of the trainings of a method, with all seeds."""
        if name not in self._updates:
            c, rule = self.c, rule_of(self.c, name)
            learner = self.learner(rule.factors, is_normalised=rule.is_normalised)
            warmup = (c.objective.warmup_steps or 0) if name in methods.REFEREED else 0
            self._updates[name] = meta.build(learner, rule, self._tx, steps=c.inner.steps, warmup_steps=warmup)
        return self._updates[name]

    def _apply(self, theta: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.network.apply({"params": theta}, x)

    def outcome(self, rule: meta.Rule, params: Mapping[str, Any], fold: str) -> fine_tuning.Outcome:
        """The tasks of a fold after fine-tuning, the same support and query samples for every method and seed."""
        key = methods.kind_at_test(rule), rule.is_normalised
        if key not in self._run_fns:
            learner = self.learner(key[0], is_normalised=rule.is_normalised)
            self._run_fns[key] = fine_tuning.build(learner, steps=self.c.inner.test_steps)
        # as many tasks at once as in training
        batches = self.world.batches_fn(fold, seed=self.c.seed, batch_size=self.c.batch_size, **self.share)
        name_fn = functools.partial(self.world.name_fn, fold)
        return fine_tuning.collect(self._run_fns[key], params, batches, self.mesh, rate=self.rate, name_fn=name_fn)

    @property
    def share(self) -> dict[str, int]:
        return sharding.row_share(self.mesh)


def train(setup: Setup, name: str, seed: int, folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The parameters that are kept of a method, and the loop's summary with `kept_step`."""
    c, world = setup.c, setup.world
    state = train_state.create(setup.both, setup.joint, world.example, seed=seed, mesh=setup.mesh)
    batches = world.batches_fn(places.TRAIN, seed=seed, batch_size=c.batch_size, **setup.share)
    folder.mkdir(parents=True, exist_ok=True)
    finish_fn = functools.partial(
        meta.check_diverged, rate=setup.rate, name_fn=functools.partial(world.name_fn, places.TRAIN)
    )
    state, summary = loop.fit(
        setup.update(name),
        state,
        _Trained(batches),
        {"valid": functools.partial(_evaluate, setup, rule_of(c, name), folder)},
        setup.mesh,
        folder,
        steps=c.steps,
        pace=loop.Pace(**c.pace),
        logging=loop.Logging(unit="steps", sinks=(), finish_fn=finish_fn, label=f"{name}, seed {seed}"),
    )
    last = sharding.to_host(state.params)
    if c.keep == LAST:
        return last, summary | {"kept_step": float(c.steps)}
    stored = {at: values for at, values in _stored(folder, world.digest).items() if at <= c.steps}
    at = fine_tuning.choose(stored, within=c.within)
    return _read(folder, at), summary | {"kept_step": float(at)}


class _Trained:
    """A loader whose batches leave out what the update does not read."""

    def __init__(self, batches: loop.Loader):
        self._batches = batches
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        return {name: batch[name] for name in (*meta.TASK, "task", "index")}


def _evaluate(setup: Setup, rule: meta.Rule, folder: pathlib.Path, state: Any, mesh: Mesh) -> dict[str, float]:
    """Quality and evenness of validation tasks, whose parameters are stored, so that a step can be kept at the end."""
    params = sharding.to_host(state.params)
    outcome = setup.outcome(rule, params, places.VAL)
    quality = fine_tuning.quality(outcome, -1, **measured(setup.c, setup.world))
    values = {name: getattr(quality.evenness, name) for name in ("performance", "lf", "alf", "worst")}
    values |= {"factor_std": float(outcome.factor_KP.std()), "raw_factor": float(outcome.raw_KP.mean())}
    _write(folder, int(state.step), params, values, setup.world.digest)
    return values


def _write(folder: pathlib.Path, at: int, params: Any, values: Mapping[str, float], digest: str) -> None:
    tensors = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    metadata = {name: repr(values[name]) for name in ("performance", "lf")} | {"made_from": digest}
    content = safetensors.numpy.save(tensors, metadata)
    files.write(folder / f"evaluated/{at}.safetensors", lambda f: f.write(content))


def _stored(folder: pathlib.Path, digest: str) -> dict[int, dict[str, float]]:
    """What was measured on validation tasks at each step, of parameters that were learned from these data."""
    out = {}
    for path in (folder / "evaluated").glob("*.safetensors"):
        with safetensors.safe_open(path, "np") as f:
            metadata = f.metadata()
        if metadata["made_from"] == digest:
            out[int(path.stem)] = {name: float(metadata[name]) for name in ("performance", "lf")}
    return out


def _read(folder: pathlib.Path, at: int) -> dict[str, Any]:
    tensors = safetensors.numpy.load_file(folder / f"evaluated/{at}.safetensors")
    return traverse_util.unflatten_dict(tensors, sep="/")


def is_collapsed(quality: fine_tuning.Quality, outcome: fine_tuning.Outcome, options: Mapping[str, Any]) -> str:
    """Why the referee has collapsed on these tasks; "" where it has not."""
    by_chance = measures.chance(outcome.y_N, options["measure"], num_classes=options["num_classes"])
    return measures.collapsed(quality.evenness.performance, by_chance, float(outcome.factor_KP.mean()))

"""`--doctor`: whether padding, packing, mesh, accumulation and kernels leave a config's training step as it is.

The step is that of the config with at most two layers, on a few made-up texts or pairs of its own vocabulary, and
nothing is read or written. Each check computes loss and gradient in two ways that must agree.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from alignment import programs
from alignment.errors import InputError
from alignment.models import attention, lora
from alignment.preference import losses, metrics
from alignment.preference import pairs as preference
from alignment.train import sharding, step, train_state
from alignment.train.planning import Training
from data.texts import preferences, text
from experiments.launch import config as configs
from experiments.launch import groups, planning

MOST_LAYERS = 2
NUM = 8  # texts or pairs for each device
WIDER = 7  # places of padding more
# Of the loss, and of the norm of the gradient. bfloat16 keeps 8 bits, and sums in another order round otherwise.
TOLERANCES = {"float32": (1e-5, 1e-3), "bfloat16": (2e-2, 8e-2)}
FILLING = {"owners": -1}  # of arrays that padding makes wider; of the others 0
ALONG_ROWS = ("tokens", "positions", "groups", "branches", "ends")
TREE = ("sources", "targets", "owners", "ordinals", "mask", "reference")
OK, FAILED, LEFT_OUT = "ok", "FAILED", "left out"


class Line(NamedTuple):
    """A check, how it ended, and what it measured or why it was left out."""

    name: str
    outcome: str
    words: str


class Result(NamedTuple):
    loss: float
    gradient: np.ndarray  # flat, of all that is trained
    metrics: Mapping[str, float]


def show(experiment: configs.Experiment, config: ml_collections.ConfigDict) -> None:
    """Check every stage of an experiment's training and print a table of each.

    Raises:
        InputError: the experiment trains no decoder, or a check failed.
    """
    if not hasattr(experiment.module, "plan"):
        raise InputError(f"--doctor: {experiment.name} trains no decoder; {planning.able()}")
    wanted = planning.Wanted(kind="gpu" if jax.default_backend() == "gpu" else "cpu")
    mesh = sharding.make_mesh(**config.get("mesh", groups.mesh()))
    failed = []
    for training in experiment.module.plan(config, wanted):
        print(f"\n{training.name}: {training.layout}, {training.model.dtype}, {mesh.size} devices", flush=True)
        for line in examine(training, mesh):
            print(f"  {line.name:14} {line.outcome:9} {line.words}", flush=True)
            if line.outcome == FAILED:
                failed.append(f"{training.name}: {line.name}: {line.words}")
    if failed:
        raise InputError(f"{len(failed)} of the checks failed: {'; '.join(failed)}")


def examine(training: Training, mesh: Mesh) -> Iterator[Line]:
    """The lines of a stage's table, each as soon as it is known."""
    patient = _Patient(small(training), mesh)
    checks: dict[str, Callable[[], str]] = {
        "kernel": patient.kernel,
        "padding": patient.padding,
        "packing": patient.packing,
        "accumulation": patient.accumulation,
        "mesh": patient.on_mesh,
        "first step": patient.first_step,
    }
    for name, check in checks.items():
        try:
            yield Line(name, OK, check())
        except _LeftOut as e:
            yield Line(name, LEFT_OUT, str(e))
        except (InputError, _Differs) as e:
            yield Line(name, FAILED, str(e))


def small(training: Training) -> Training:
    """The training with fewer layers; widths, heads and vocabulary stay."""
    model = training.model
    layers = min(model.num_layers, MOST_LAYERS)
    types = None if model.layer_types is None else model.layer_types[:layers]
    return dataclasses.replace(training, model=model.clone(num_layers=layers, layer_types=types))


class _LeftOut(Exception):
    """A check that this config or machine has no use for."""


class _Differs(Exception):
    """Two ways that must agree do not."""


class _Patient:
    """A small training with parameters, and made-up texts or pairs."""

    def __init__(self, training: Training, mesh: Mesh):
        self.training, self.mesh = training, mesh
        self.one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
        rng = np.random.default_rng(0)
        num = NUM * math.prod(mesh.shape[axis] for axis in sharding.ROWS[0])
        self.texts = [rng.integers(0, training.model.vocab_size, n).astype(np.int32) for n in rng.integers(4, 24, num)]
        self.pairs = _pairs(rng, num, training.model.vocab_size, training.loss in losses.UNPAIRED)
        self.base = jax.device_get(train_state.draw(training.model, 0, self.one))
        self.adapter = None
        if training.adapter.is_on():
            self.adapter = lora.lay_out(training.adapter.settings(), training.model)
            drawn = jax.device_get(self.adapter.init(jax.random.PRNGKey(1))["params"])
            # B begins at zero, and then nothing that is wrong with an adapter could show.
            self.params = jax.tree.map(lambda x: np.asarray(x) + 0.01, _unboxed(drawn))
        else:
            self.params = self.base
        shape = (num, 2, preferences.shape(self.pairs)[1])
        self.shifts = rng.normal(0, 0.5, shape).astype(np.float32)  # nats a token
        self.layout = training.layout
        self.batch = self.batch_of(self.layout)
        self.plain = self.result(self.batch)

    def kernel(self) -> str:
        model = self.training.model
        if model.attention == "dense":
            raise _LeftOut("attention='dense' is what others are compared with")
        kv_heads, head_dim = model.num_kv_heads or model.num_heads, model.head_dim or model.model_dim // model.num_heads
        attention.self_test(model.attention, num_heads=model.num_heads, num_kv_heads=kv_heads, head_dim=head_dim)
        return f"attention={model.attention!r} agrees with plain attention, values and gradients"

    def padding(self) -> str:
        wide = dict(self.batch)
        for name in (*ALONG_ROWS, *(TREE if self.layout == "tree" else ("targets", "mask") * (self.layout == "rows"))):
            if name in wide:
                filling = ((0, 0), (0, WIDER))
                wide[name] = np.pad(wide[name], filling, constant_values=FILLING.get(name, 0))
        return self.compare(self.result(wide), f"rows of {WIDER} places more")

    def packing(self) -> str:
        if self.training.model.attention == "cudnn":
            raise _LeftOut("the fused kernel takes one sequence a row, so nothing is packed")
        if self.layout == "rows":
            return self.compare(self.result(self.batch_of("alone")), "a row for each text")
        other = "shared" if self.layout == "separate" else "separate"
        return self.compare(self.result(self.batch_of(other)), f"layout {other!r}")

    def accumulation(self) -> str:
        batch = self.batch_of("tree", parts=2) if self.layout == "tree" else self.batch
        return self.compare(self.result(batch, accumulate=2), "two parts")

    def on_mesh(self) -> str:
        if self.mesh.size == 1:
            raise _LeftOut("there is one device; XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight")
        rows = math.prod(self.mesh.shape[axis] for axis in sharding.ROWS[0])
        batch = self.batch_of("tree", parts=rows) if self.layout == "tree" else self.batch
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items() if size > 1)
        return self.compare(self.result(batch, mesh=self.mesh), sizes)

    def first_step(self) -> str:
        """Where policy and reference are one, the loss is known."""
        loss, objective = self.training.loss, dict(self.training.objective)
        if not loss or loss in losses.REFERENCE_FREE:
            raise _LeftOut("without a reference nobody knows the first loss")
        tolerance = 1e-4 if self.training.model.dtype == "float32" else 5e-3
        batch = self.batch_of(self.layout, is_first=True)
        values = metrics.finish(self.result(batch).metrics)
        has_anchor = self.training.has_anchor
        preference.check_first(loss, objective, tolerance=tolerance, has_anchor=has_anchor)(values, batch)
        return f"loss {values['loss']:.6f}, both rewards 0, where policy and reference are one"

    def compare(self, other: Result, what: str) -> str:
        """Words for a result that agrees with the plain one."""
        loss, gradient = TOLERANCES[self.training.model.dtype]
        far = abs(other.loss - self.plain.loss) / max(abs(self.plain.loss), 1e-6)
        away = float(
            np.linalg.norm(other.gradient - self.plain.gradient) / max(np.linalg.norm(self.plain.gradient), 1e-12)
        )
        words = f"{what}: loss off by {far:.1e} (at most {loss:g}), gradient by {away:.1e} (at most {gradient:g})"
        if not (far <= loss and away <= gradient):  # written so that NaN fails as well
            raise _Differs(words)
        return words

    def batch_of(self, layout: str, parts: int = 1, *, is_first: bool = False) -> dict[str, np.ndarray]:
        """All texts or pairs as one batch.

        Args:
            layout: also "alone", a row for each text.
            parts: rows of packed trees.
            is_first: the reference is the policy itself, as at the first step of a run.
        """
        if layout in ("rows", "alone"):
            packed = text.pack(self.texts, max_len=32, pad_id=0, packed=layout == "rows" and self.is_packed())
            batch = text.assemble(packed, np.arange(len(self.texts)) % len(packed))
            batch["mask"][len(packed) :] = 0  # rows that only fill up the batch
            return batch
        index = np.arange(len(self.pairs))
        # Where the reference is the policy, the loss is the same constant for every batch and shows nothing.
        reference = self.reference + (0.0 if is_first else self.shifts)
        options = dict(batch_size=len(index), layout=layout, endless=False, extra={"reference": reference})
        if layout == "tree":
            options["num_rows"] = parts
        return next(iter(preferences.batches(self.pairs, **options)))

    def is_packed(self) -> bool:
        return self.training.model.attention != "cudnn"

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """Log-probabilities [n,2,R] of the answers under the untouched policy."""
        params = self.params if self.adapter is None else self.adapter.attach(self.base, self.params)
        batches = preferences.batches(self.pairs, batch_size=len(self.pairs), endless=False)
        num_answer = preferences.shape(self.pairs)[1]
        return preference.score(self.training.model, params, list(batches), len(self.pairs), num_answer, self.one)

    def result(self, batch: Mapping[str, np.ndarray], *, mesh: Mesh | None = None, accumulate: int = 1) -> Result:
        """Loss and gradient of the batch; the gradient is what a step of plain descent takes off."""
        mesh = mesh or self.one
        model, tx = self.training.model, optax.sgd(1.0)
        loss_fn = self.training.loss_of(model, mesh)
        phases = self.training.phases_of(model, mesh) if self.training.phases_of and accumulate > 1 else None
        places = train_state.describe(model, optax.identity(), mesh).params
        frozen: Any = {}
        params = self.params
        if self.adapter is not None:
            loss_fn = lora.loss_fn(loss_fn, self.adapter)
            phases = phases and (lora.loss_fn(phases[0], self.adapter), phases[1])
            frozen = train_state.Unsaved(_placed(self.base, places))
            params = _placed(params, train_state.describe(self.adapter, optax.identity(), mesh).params)
        else:
            params = _placed(params, places)
        whole = programs.replicated(mesh)
        number, key = (jax.device_put(x, whole) for x in (jnp.zeros((), jnp.int32), jax.random.PRNGKey(0)))
        state = train_state.TrainState(number, params, tx.init(params), key, frozen)
        with sharding.activations(mesh):
            update = programs.compiled(step.build(loss_fn, tx, accumulate=accumulate, phases=phases), place=whole)
            new, means = update(state, sharding.to_devices(dict(batch), mesh))
        values = {name: float(step.value(mean)) for name, mean in jax.device_get(means).items()}
        gradient = jax.tree.map(lambda old, new: np.ravel(np.asarray(old) - np.asarray(new)), params, new.params)
        return Result(values["loss"], np.concatenate(jax.tree.leaves(gradient)), values)


def _placed(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda leaf, place: jax.device_put(leaf, place.sharding), tree, like)


def _unboxed(tree: Any) -> Any:
    return jax.tree.map(lambda x: getattr(x, "value", x), tree, is_leaf=lambda x: hasattr(x, "names"))


def _pairs(rng: np.random.Generator, num: int, vocab_size: int, has_label: bool) -> preferences.Pairs:
    """Made-up pairs, every second one after the prompt of the one before it."""
    triples, prompt = [], np.zeros(0, np.int32)
    for i in range(num):
        if i % 2 == 0:
            prompt = rng.integers(0, vocab_size, rng.integers(3, 9))
        triples.append((prompt, *(rng.integers(0, vocab_size, size) for size in rng.integers(2, 10, 2))))
    return preferences.of_tokens(triples, rng.integers(0, 2, num).astype(bool).tolist() if has_label else None)

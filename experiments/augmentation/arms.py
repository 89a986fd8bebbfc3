"""The arms of a comparison: each trains all seeds on the same batches, and differs in what it makes of augmented rows.

Dimensions: S seeds, N test rows, K classes, B rows of a batch.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment import files
from alignment.augment import bilevel, saflex, training
from alignment.errors import InputError, one_of
from alignment.models import branches
from alignment.train import loop, optimizer, sharding, step
from alignment.train.train_state import TrainState
from experiments.augmentation import batches, networks
from experiments.augmentation.tasks import PAIRS, PICTURES, ROWS, Task

TEST_BATCH = 512  # rows of a forward pass over a test set


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm does.

    Attributes:
        text: for people.
        how: `clean` uses no augmented row; `upstream`, `refined`, `agreement` and `bilevel` give them their weights.
        with_val: whether clean rows come from train and validation together.
        options: of `saflex.refine` that the arm fixes.
    """

    text: str
    how: str
    with_val: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ARMS = {
    "none": Arm("no augmentation", "clean"),
    "upstream": Arm("upstream augmentation", "upstream"),
    "saflex": Arm("upstream + SAFLEX", "refined"),
    "train_val": Arm("no augmentation, on training and validation rows", "clean", with_val=True),
    "train_val_upstream": Arm("upstream, on training and validation rows", "upstream", with_val=True),
    "agreement": Arm("upstream rows that a network of training and validation rows agrees with", "agreement"),
    "weights": Arm("SAFLEX, weights only", "refined", options={"labels": "upstream"}),
    "labels": Arm("SAFLEX, labels only", "refined", options={"weights": "none"}),
    "bilevel": Arm("weights and labels by the exact bilevel problem", "bilevel"),
}
NEEDED = ("none", "upstream", "saflex", "train_val")  # of every comparison; the last is the mandatory control
TEACHER = "train_val"  # whose networks `agreement` asks


@dataclasses.dataclass(frozen=True)
class Setting:
    """How every arm of a task trains; see the config of saflex.py."""

    network: str
    fields: Mapping[str, Any]
    optimizer: str
    lr: float
    steps: int
    sizes: batches.Sizes
    mode: str = "add"
    weight_decay: float = 0.0
    refine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bilevel_steps: int = 20


OPTIMIZERS: dict[str, Callable[[Setting], optax.GradientTransformation]] = {
    "sgd": lambda setting: optax.sgd(setting.lr),
    "momentum": lambda setting: optax.sgd(setting.lr, momentum=0.9, nesterov=True),
    "adamw": lambda setting: optimizer.adamw(
        setting.lr, total_steps=setting.steps, weight_decay=setting.weight_decay, clip_norm=0.0
    ),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What an arm leaves.

    Attributes:
        predicted_SN: class of every test row, by seed.
        summary: of `loop.fit`.
        means: of its logged numbers, over all steps.
        state: the last one, stacked over seeds.
    """

    predicted_SN: np.ndarray
    summary: dict[str, float]
    means: dict[str, float]
    state: TrainState


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the arms of a task share."""

    task: Task
    setting: Setting
    seed: int
    mesh: Mesh
    pace: loop.Pace
    sinks: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        num_classes = len(self.task.class_names)
        return networks.network(self.task.kind, self.setting.network, num_classes, self.setting.fields)

    @property
    def forward(self):
        return networks.forward_of(self.task.kind, self.model, self.task.image_width)

    @property
    def tx(self) -> optax.GradientTransformation:
        return OPTIMIZERS[self.setting.optimizer](self.setting)

    @property
    def num_labels(self) -> int:
        """Labels that an augmented row can have: classes, or the partners in a batch of pairs."""
        if self.task.kind != PAIRS:
            return len(self.task.class_names)
        return self.setting.sizes.aug

    @property
    def multiple(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def batches(self, *, with_val: bool = False, **changes: Any) -> batches.Batches:
        share = sharding.row_share(self.mesh)
        mine = (share["process_index"], share["process_count"])
        options = dict(with_val=with_val, multiple=self.multiple, mine=mine) | changes
        return batches.Batches(self.task, self.setting.sizes, self.seed, **options)

    def refined(self, **fixed: Any) -> training.Assign:
        return training.refined(
            self.num_labels,
            self.forward,
            losses_fn=networks.losses_of(self.task.kind),
            **{**self.setting.refine, **fixed},
        )


def check_pairs(sizes: batches.Sizes, multiple: int) -> None:
    """Refuse batches of pairs that cannot be compared: their labels are places in a batch."""
    wanted = (sizes.clean, sizes.aug, sizes.val)
    if None in wanted or sizes.aug != sizes.val or sizes.aug % multiple or sizes.clean % multiple:
        raise InputError(
            f"batches of {wanted} pairs: name all three sizes, the augmented and the validation one alike, as "
            f"multiples of the {multiple} devices"
        )


def train(compared: Comparison, name: str, folder: pathlib.Path, teacher: TrainState | None = None) -> Result:
    """One arm from its start or its newest checkpoint to its end.

    Args:
        teacher: the last state of the arm TEACHER, for `agreement`.
    """
    one_of("arm", name, ARMS)
    arm, setting, task = ARMS[name], compared.setting, compared.task
    if task.kind == PAIRS:
        check_pairs(setting.sizes, compared.multiple)
    update, state = update_of(compared, arm, teacher)
    predict_fn = predictor(compared)
    state, summary = loop.fit(
        update,
        state,
        batches.endless(compared.batches(with_val=arm.with_val)),
        {"test": lambda state, mesh: {"accuracy": float(np.mean(predict_fn(state) == task.test.y))}},
        compared.mesh,
        folder,
        steps=setting.steps,
        pace=compared.pace,
        logging=loop.Logging(unit="steps", finish_fn=finish, sinks=compared.sinks, label=f"{task.name}/{name}"),
    )
    return Result(predict_fn(state), summary, means_of(folder), state)


def update_of(compared: Comparison, arm: Arm, teacher: TrainState | None) -> tuple[step.UpdateFn, TrainState]:
    """The arm's update of all seeds, and the state that it begins with."""
    assign, frozen = _assign(compared, arm, teacher)
    is_refined = arm.how == "refined"
    update = training.build(
        assign,
        compared.forward,
        compared.tx,
        mode="clean" if arm.how == "clean" else compared.setting.mode,
        losses_fn=networks.losses_of(compared.task.kind),
        check_every=compared.pace.log_every if is_refined else 0,
    )
    is_pictures = compared.task.kind == PICTURES
    state = start(compared, frozen, has_saflex=is_refined)
    return training.over_seeds(update, at_once=not is_pictures), state


def finish(means: dict[str, float]) -> dict[str, float]:
    """What is logged; refuses a refinement that could not be made ten times in a row.

    Raises:
        InputError: the gradient of the validation batch or the scores are not finite.
    """
    if means.pop("saflex/is_stuck", 0.0) > 0:
        raise InputError(
            f"SAFLEX had no finite validation gradient or score {saflex.MOST_BAD} steps in a row; look at the "
            "validation rows, or lower the learning rate"
        )
    return means


def means_of(folder: pathlib.Path) -> dict[str, float]:
    """Means of the logged numbers over the lines of a run."""
    values: dict[str, list[float]] = {}
    for row in files.read_rows(folder / "metrics.jsonl"):
        for key, value in row.items():
            values.setdefault(key, []).append(value)
    return {key: float(np.mean(numbers)) for key, numbers in values.items() if key != "step"}


def start(compared: Comparison, frozen: Mapping[str, Any], *, has_saflex: bool) -> TrainState:
    """The state of all seeds at step 0, the same on every device of the mesh."""
    task, model, tx = compared.task, compared.model, compared.tx
    example = jnp.asarray(task.train.x[0, :1])
    subset = compared.setting.refine.get("subset", "all")

    def one(number):
        init_rng, rng = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(compared.seed), number))
        params, statistics = networks.init(task.kind, model, example, init_rng, task.image_width)
        own = {"statistics": statistics} | ({"saflex": saflex.start(params, subset)} if has_saflex else {})
        return {"params": params, "opt_state": tx.init(params), "rng": rng, "frozen": own}

    everywhere = NamedSharding(compared.mesh, PartitionSpec())
    made = jax.jit(jax.vmap(one), out_shardings=everywhere)(jnp.arange(task.num_seeds))
    made["frozen"] |= jax.device_put(dict(frozen), everywhere)
    return TrainState(step=jax.device_put(jnp.zeros((), jnp.int32), everywhere), **made)


def _assign(compared: Comparison, arm: Arm, teacher: TrainState | None) -> tuple[training.Assign, dict[str, Any]]:
    """What gives augmented rows their weights, and what it reads in the state's `frozen`."""
    if arm.how == "agreement":
        assert teacher is not None  # `comparison` trains it first
        copy = jax.tree.map(jnp.copy, {"params": teacher.params, "statistics": teacher.frozen["statistics"]})
        is_pairs = compared.task.kind == PAIRS
        agree = training.agreement(compared.num_labels, compared.forward, among_allowed=is_pairs)
        return agree, {"teacher": copy}
    if arm.how == "bilevel":
        return training.stored(), {"stored": solved(compared)}
    if arm.how == "refined":
        return compared.refined(**arm.options), {}
    return training.upstream(compared.num_labels), {}


def solved(compared: Comparison) -> dict[str, jax.Array]:
    """Weights and labels of the pool of every seed by the exact bilevel problem."""
    task, setting = compared.task, compared.setting
    assert task.pool is not None  # `fits` sees to it
    shares = lambda y: np.eye(len(task.class_names), dtype=np.float32)[y]  # noqa: E731
    rng = jax.random.PRNGKey(compared.seed)
    params, _ = networks.init(task.kind, compared.model, jnp.asarray(task.train.x[0, :1]), rng)

    def one(train, pool, val):
        logits_fn = lambda params, x: compared.model.apply({"params": params}, x)  # noqa: E731
        options = dict(steps=setting.steps, lr=setting.lr, outer_steps=setting.bilevel_steps)
        return bilevel.solve(logits_fn, params, train, pool, val, **options)

    parts = [(jnp.asarray(part.x), jnp.asarray(shares(part.y))) for part in (task.train, task.pool, task.val)]
    w_SM, y_SMK = jax.jit(jax.vmap(one))(*parts)
    filling = -task.pool.num % compared.multiple
    return {"w": jnp.pad(w_SM, ((0, 0), (0, filling))), "y": jnp.pad(y_SMK, ((0, 0), (0, filling), (0, 0)))}


def fits(name: str, task: Task, setting: Setting) -> bool:
    """Whether an arm can be run: the exact bilevel problem needs a fixed set, taken whole by plain gradient descent."""
    if name != "bilevel":
        return True
    whole = batches.Sizes()
    is_whole = setting.sizes == whole and task.kind == ROWS and task.pool is not None
    return is_whole and setting.optimizer == "sgd" and setting.mode == "add" and not setting.fields.get("widths")


def predictor(compared: Comparison) -> Callable[[TrainState], np.ndarray]:
    """`state -> classes [S,N]` of the test set, for all seeds."""
    task, forward = compared.task, compared.forward
    parts = batches.all_rows(task.test, TEST_BATCH, compared.multiple, kind=task.kind)

    def one(arrays):
        params, statistics, batch = arrays
        logits_BK, _ = forward(params, statistics, batch["x"], train=False, rng=jax.random.PRNGKey(0))
        best_B = jnp.argmax(logits_BK, axis=-1)
        return batch["y"][best_B] if task.kind == PAIRS else best_B  # of a pair, the class of the nearest text

    run_fn = _for_all_seeds(one, task.kind)

    def predict(state):
        out = []
        for batch in parts:
            own = batches.share_of(batch, **sharding.row_share(compared.mesh))
            on_devices = sharding.to_devices(own, compared.mesh)
            predicted_SB = run_fn(state.params, state.frozen["statistics"], on_devices)
            sharding.keep_pace(compared.mesh, predicted_SB)
            out.append(np.asarray(sharding.to_host(predicted_SB)))
        return np.concatenate(out, axis=1)[:, : task.test.num]

    return predict


def _for_all_seeds(one: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """`one((*states, batch))` for all seeds, compiled; seeds come first in arrays of states, second in a batch's."""

    @jax.jit
    def all_seeds(*trees):
        *states, batch = trees
        arrays = (*states, jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), batch))
        return jax.lax.map(branches.fast(one), arrays) if kind == PICTURES else jax.vmap(one)(arrays)

    return all_seeds


@dataclasses.dataclass(frozen=True)
class Looked:
    """What SAFLEX makes of one augmented batch under a trained network, for every seed: weights and labels."""

    batch: dict[str, np.ndarray]
    w_SB: np.ndarray
    y_SBK: np.ndarray


def look(compared: Comparison, state: TrainState, batch: dict[str, np.ndarray]) -> Looked:
    """Weights and labels of a batch, by the state of the arm `saflex`."""
    assign = compared.refined(every=1, warmup=0)

    def one(arrays):
        seed_state, seed_batch = arrays
        w_B, y_BK, _, _ = assign(dataclasses.replace(state, **seed_state), seed_batch, jax.random.PRNGKey(0))
        return w_B, y_BK

    states = {name: getattr(state, name) for name in training.STACKED}
    run_fn = _for_all_seeds(one, compared.task.kind)
    w_SB, y_SBK = sharding.to_host(run_fn(states, sharding.to_devices(batch, compared.mesh)))
    return Looked(batch, np.asarray(w_SB), np.asarray(y_SBK))

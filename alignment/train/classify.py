"""Image classifiers: cross-entropy, batch statistics, held-out accuracy by class, and the best epoch kept.

Networks return `(logits, activations)` and may keep running statistics (`batch_stats`); these ride in the state's
`frozen`, where an update replaces them. Batches hold `images` uint8, `labels` and `weights`, and `mask` where pictures
of several shapes share a batch; each batch shape is one compiled program.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from alignment import files, programs
from alignment.errors import InputError
from alignment.models import vision
from alignment.train import best, checkpoint, loop, optimizer, sharding, step, train_state

MODEL_FILE = "image_model.json"
CHOSEN_BY = ("mean_class_accuracy", "loss")  # of equal accuracies the lower loss, then the earlier step

Batch = dict[str, np.ndarray]


def normalise(images_NYXC: jax.Array, mask_NYX: jax.Array | None = None) -> jax.Array:
    """Bytes as numbers from -1 (0) to 1 (255), the papers' (x / 255 - 0.5) / 0.5; exactly 0 outside the mask."""
    x_NYXC = images_NYXC.astype(jnp.float32) / 127.5 - 1
    # Padding of byte 0 would be black (-1) here; 0 is what a convolution itself pads with.
    return x_NYXC if mask_NYX is None else x_NYXC * (mask_NYX[..., None] > 0)


def inputs(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
    """What a network reads of a batch: normalised images, and the mask where the batch brings one.

    Padding marked by `real` instead of `mask` is zeroed as well, but the network gets no mask for it.
    """
    return normalise(batch["images"], batch.get("mask", batch.get("real"))), batch.get("mask")


def loss_fn(model: nn.Module) -> step.LossFn:
    """Cross-entropy in nats, averaged over weights, in training mode.

    The new `batch_stats` ride in the metrics, from where `build` takes them; a network without any leaves `{}` there.
    """
    return programs.Computation(_loss, dict(model=model))


def _loss(params, batch, *, model, rng, frozen):
    x_NYXC, mask_NYX = inputs(batch)
    (logits_NC, _), changed = model.apply(
        {"params": params, **frozen},
        x_NYXC,
        train=True,
        mask_NYX=mask_NYX,
        # Flax returns what changed in these collections beside the output.
        mutable=["batch_stats"],
        rngs={"dropout": rng},
    )
    mean, metrics = cross_entropy(logits_NC, batch["labels"], batch["weights"])
    return mean, {**metrics, "batch_stats": dict(changed)}


def cross_entropy(logits_NC: jax.Array, labels_N: jax.Array, weights_N: jax.Array) -> tuple[step.Mean, step.Metrics]:
    """The loss, and `accuracy`, each a mean over weights."""
    # A network in bfloat16 gives logits of 8 bits; their exponentials are summed in float32.
    logits_NC = logits_NC.astype(jnp.float32)
    losses_N = optax.softmax_cross_entropy_with_integer_labels(logits_NC, labels_N)
    is_right_N = jnp.argmax(logits_NC, axis=-1) == labels_N
    count = jnp.sum(weights_N)
    accuracy = step.Mean(jnp.sum(is_right_N * weights_N), count)
    return step.Mean(jnp.sum(losses_N * weights_N), count), {"accuracy": accuracy}


def build(model: nn.Module, tx: optax.GradientTransformation, *, accumulate: int = 1) -> step.UpdateFn:
    """`step.build` for networks with batch statistics: `update(state, batch) -> (state, metrics)`.

    Statistics are those of the whole batch, over all devices. Where it is taken in `accumulate` parts, each part is
    normalised by its own and the running ones move by their mean. A step that is not finite changes nothing.
    """
    inner = step.build(loss_fn(model), tx, accumulate=accumulate, rate_fn=optimizer.learning_rate)
    return programs.Computation(_update, dict(accumulate=accumulate), dict(inner=inner))


def _update(state, batch, *, accumulate, inner):
    new, metrics = inner(state, batch)
    stats = metrics.pop("batch_stats")
    is_finite = metrics["nonfinite"].total == 0
    # `step` adds up whatever rides in the metrics, so the statistics of the parts come as a sum.
    frozen = jax.tree.map(lambda s, old: jnp.where(is_finite, s / accumulate, old), stats, state.frozen)
    return new.replace(frozen=frozen), metrics


def create(
    model: nn.Module,
    tx: optax.GradientTransformation,
    example_NYXC: jax.Array,
    *,
    seed: int,
    mesh: Mesh,
    variables: Mapping[str, Any] | None = None,
) -> train_state.TrainState:
    """A state at step 0; `variables` are a checkpoint's, and None draws them from `seed`."""
    params = None if variables is None else variables["params"]
    frozen = None if variables is None else {name: tree for name, tree in variables.items() if name != "params"}
    return train_state.create(model, tx, example_NYXC, seed=seed, mesh=mesh, params=params, frozen=frozen)


def variables(state: train_state.TrainState) -> dict[str, Any]:
    """What `model.apply` takes: `params`, and `batch_stats` where there are any."""
    return {"params": state.params, **state.frozen}


def logits_fn(model: nn.Module) -> Callable[[Mapping[str, Any], Mapping[str, jax.Array]], jax.Array]:
    """`(variables, batch) -> logits [N,C]` float32, under running statistics; one compiled program a batch shape."""
    return functools.partial(_logits, model)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, net_variables, batch):
    x_NYXC, mask_NYX = inputs(batch)
    return model.apply(net_variables, x_NYXC, train=False, mask_NYX=mask_NYX)[0].astype(jnp.float32)


def evaluator(model: nn.Module, batches: Iterable[Batch]) -> loop.Evaluator:
    """`loss`, `accuracy` and `mean_class_accuracy` (mean of the recalls of the classes present) over finite batches."""

    def evaluate(state: train_state.TrainState, mesh: Mesh) -> dict[str, float]:
        net_variables, total = variables(state), None
        for batch in batches:
            new = _sums(model, net_variables, sharding.to_devices(_read(batch), mesh))
            total = new if total is None else step.add(total, new)
            sharding.keep_pace(mesh, total)
        if total is None:
            return {}
        total = jax.device_get(total)
        right_C, count_C = total.pop("recall")
        values = {name: float(mean.total) / float(mean.count) for name, mean in total.items()}
        return {**values, "mean_class_accuracy": float(np.mean(right_C[count_C > 0] / count_C[count_C > 0]))}

    return evaluate


@functools.partial(jax.jit, static_argnums=0)
def _sums(model, net_variables, batch):
    logits_NC = _logits(model, net_variables, batch)
    labels_N, weights_N = batch["labels"], batch["weights"]
    mean, metrics = cross_entropy(logits_NC, labels_N, weights_N)
    # By class: how many there are, and of these how many are right. Sums of both add over batches, recalls would not.
    is_label_NC = jax.nn.one_hot(labels_N, logits_NC.shape[-1]) * weights_N[:, None]
    is_right_N = (jnp.argmax(logits_NC, axis=-1) == labels_N).astype(jnp.float32)
    return {"loss": mean, **metrics, "recall": step.Mean(is_right_N @ is_label_NC, jnp.sum(is_label_NC, axis=0))}


def _read(batch: Batch) -> Batch:
    """The part of a batch that an evaluation sends to the devices."""
    return {name: batch[name] for name in ("images", "mask", "real", "labels", "weights", "index") if name in batch}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Label and logits of each image, in the order of their index."""

    index_N: np.ndarray
    labels_N: np.ndarray
    logits_NC: np.ndarray

    @property
    def predicted_N(self) -> np.ndarray:
        return np.argmax(self.logits_NC, axis=-1).astype(np.int32)


def predict(model: nn.Module, net_variables: Mapping[str, Any], batches: Iterable[Batch], mesh: Mesh) -> Predictions:
    """Logits of every image of finite batches, on every process; filling (weight 0) is dropped."""
    logits, parts = logits_fn(model), []
    for batch in batches:
        on_devices = sharding.to_devices(_read(batch), mesh)
        small = {name: on_devices[name] for name in ("index", "labels", "weights")}
        parts.append(sharding.to_host({**small, "logits": logits(net_variables, on_devices)}))
    if not parts:
        raise InputError("there are no images to predict; name a split that holds some")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts_N = whole["weights"] > 0
    index_N = whole["index"][counts_N]
    # Batches of several shapes, and several processes, come in an order of their own.
    order_N = np.argsort(index_N, kind="stable")
    return Predictions(index_N[order_N], whole["labels"][counts_N][order_N], whole["logits"][counts_N][order_N])


def fit(
    model: nn.Module,
    train: loop.Loader,
    evals: Mapping[str, Iterable[Batch]],
    mesh: Mesh,
    workdir: str | pathlib.Path,
    *,
    tx: optax.GradientTransformation,
    seed: int,
    steps: int,
    batch_size: int,
    select: str = "valid",
    variables: Mapping[str, Any] | None = None,
    accumulate: int = 1,
    pace: loop.Pace,
    logging: loop.Logging,
) -> tuple[train_state.TrainState, dict[str, float]]:
    """Train a classifier; killed and started again it ends in the same state, bit for bit, as every run of `loop.fit`.

    Args:
        train: endless batches.
        evals: name -> finite batches; `<name>/accuracy`, `/mean_class_accuracy` and `/loss` are logged.
        tx: from `optimizer.amsgrad` or `optimizer.adamw`.
        batch_size: images of a batch over all hosts, for checking it against the mesh.
        select: which of evals chooses the best evaluation: highest mean class accuracy, then lowest loss, then the
            earliest. Its variables are kept in `<workdir>/best`; without such an entry the last ones are.
        variables: a checkpoint's params and batch_stats, donated; None draws them from `seed`.
        pace, logging: of `loop.fit`; the unit is images.

    Returns:
        The best state (of an empty optimizer), and the summary of `loop.fit` with `best/step` and, where evals chose
        it, `best/loss` and `best/mean_class_accuracy`.
    """
    sharding.check_batch(batch_size, mesh, accumulate)
    workdir = pathlib.Path(workdir)
    state = create(model, tx, _example(train), seed=seed, mesh=mesh, variables=variables)
    names = [f"{select}/{name}" for name in CHOSEN_BY]
    evaluators = {name: evaluator(model, batches) for name, batches in evals.items()}
    with contextlib.closing(best.Watch(workdir, *names, patience=None, restored=loop.latest_step(workdir))) as watch:
        if select in evaluators:
            evaluators[select] = _keeping_best(evaluators[select], select, watch)
        state, summary = loop.fit(
            build(model, tx, accumulate=accumulate),
            state,
            train,
            evaluators,
            mesh,
            workdir,
            steps=steps,
            pace=pace,
            logging=dataclasses.replace(logging, unit="images", units_per_step=batch_size),
            before_save_fn=watch.prepare,
        )
        state = dataclasses.replace(state, opt_state={})
        if select not in evaluators:  # nothing chose, so the caller gets the last state
            watch.save(state)
        state = watch.restore(state)
        score = dict(watch.history).get(int(state.step), ())
    best_of = {f"best/{name}": value for name, value in zip(CHOSEN_BY, score)}
    return state, {**summary, "best/step": float(state.step), **best_of}


def _example(train: loop.Loader) -> jax.Array:
    """Zeros of the shape of one image, off a batch that the loader will give again."""
    # Reading a batch moves the loader on, and the first batch of training must still be the first.
    position = train.get_state()
    _, *shape = next(train)["images"].shape
    train.set_state(position)
    return jnp.zeros((1, *shape), jnp.float32)


def _keeping_best(evaluate: loop.Evaluator, name: str, watch: best.Watch) -> loop.Evaluator:
    """The evaluator, which shows its numbers to `watch`, and the state without its optimizer."""

    def evaluate_and_keep(state: train_state.TrainState, mesh: Mesh) -> dict[str, float]:
        values = evaluate(state, mesh)
        heldout = {f"{name}/{key}": value for key, value in values.items()}
        watch.note(int(state.step), heldout, dataclasses.replace(state, opt_state={}))
        return values

    return evaluate_and_keep


def remember(
    workdir: str | pathlib.Path,
    *,
    network: str,
    fields: Mapping[str, Any],
    class_names: Iterable[str],
    images: Mapping[str, Any],
) -> None:
    """Leave what `recall` needs in the workdir.

    Args:
        network: a key of `vision.NETWORKS`.
        fields: its other keyword arguments; plain JSON.
        class_names: in the order of the labels.
        images: how images become batches: arguments of the experiment's data; plain JSON.
    """
    content = dict(network=network, fields=dict(fields), class_names=list(class_names), images=dict(images))
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    files.write_text(pathlib.Path(workdir) / MODEL_FILE, text)


def about(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What `remember` left: `network`, `fields`, `class_names`, `images`.

    Raises:
        InputError: the folder is not that of a classifier.
    """
    path = pathlib.Path(workdir) / MODEL_FILE
    if not path.is_file():
        raise InputError(f"{path} is not there; name the workdir of a run of experiments/mame.py")
    return files.read_note(path)


@dataclasses.dataclass(frozen=True)
class Recalled:
    """A trained classifier, as a run has left it."""

    model: nn.Module
    variables: dict[str, Any]  # params, and batch_stats where there are any; on every device of the mesh
    network: str
    fields: dict[str, Any]
    class_names: list[str]
    images: dict[str, Any]
    step: int


def recall(workdir: str | pathlib.Path, mesh: Mesh | None = None, **fields: Any) -> Recalled:
    """The network of another run with its best variables.

    Args:
        mesh: where the variables go, whole on each device; None takes all devices.
        fields: changes of the network's, such as `dtype`.

    Raises:
        InputError: a folder that is not that of a finished or running classifier.
    """
    stored = about(workdir)
    folder = (pathlib.Path(workdir) / "best/checkpoints").resolve()
    manager = checkpoint.open_manager(folder, read_only=True) if folder.is_dir() else None
    if manager is None or manager.latest_step() is None:
        raise InputError(f"{workdir} holds no network yet (looked in {folder}); let that run finish an evaluation")
    mesh = sharding.make_mesh() if mesh is None else mesh
    with manager:
        state, _ = checkpoint.restore(manager, _stored(manager, mesh))
    merged = {**stored["fields"], **fields}
    model = vision.network(stored["network"], num_classes=len(stored["class_names"]), **merged)
    return Recalled(
        model, variables(state), stored["network"], merged, stored["class_names"], stored["images"], int(state.step)
    )


def _stored(manager: ocp.CheckpointManager, mesh: Mesh) -> train_state.TrainState:
    """Shapes and dtypes of the newest checkpoint, as its files name them."""
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    items = manager.item_metadata(manager.latest_step())
    trees = {
        name: jax.tree.map(lambda x: shape(tuple(x.shape), x.dtype), items[name].tree) for name in ("params", "rest")
    }
    return train_state.TrainState(params=trees["params"], **trees["rest"])

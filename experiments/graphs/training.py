"""One training loop for every arm: full graph, sketches, or parts of the graph.

It is not that of `alignment/train/loop.py`: a refresh replaces what the steps read besides parameters and remembers
hashes on the host, both of which are stored with an arm; a batch is a whole graph, which has no rows to split over
devices; and memory and time of a step are results.

An arm's best parameters are those of its best validation accuracy. What an arm ends with is written at once, so that a
run that is killed and started again goes on with the arms that are missing, and with the one that was under way from
where it was last set down; an arm depends on its seed alone.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment import files
from alignment.errors import InputError
from alignment.train import loop

SAVE_SECONDS = 20  # between two savings of an arm under way

LossFn = Callable[..., jax.Array]  # (params, frozen, batch, rng) -> nats
Accuracies = dict[str, float]  # by split


@dataclasses.dataclass(frozen=True)
class Memory:
    """What an arm's refreshes remember on the host, such as hashes: `read_fn` gives it as arrays by name."""

    read_fn: Callable[[], dict[str, np.ndarray]]
    write_fn: Callable[[dict[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Arm:
    """What the loop needs of one way to train.

    `step_fn` is `step` of a loss; `batch_fn(epoch)` gives the batches of an epoch; `accuracies_fn(params, frozen)`
    reads the full graph; `refresh_fn(epoch, params, frozen)` gives others with a note where they are due, else None.
    """

    name: str
    step_fn: Callable[..., Any]
    params: Any
    opt_state: Any
    frozen: Any
    batch_fn: Callable[[int], list[Any]]
    accuracies_fn: Callable[[Any, Any], Accuracies]
    refresh_fn: Callable[[int, Any, Any], Any] | None = None
    memory: Memory | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """How an arm ended: `curve` has a row for each evaluation; seconds and bytes are of one step."""

    name: str
    seed: int
    best: Accuracies
    best_epoch: int
    last: Accuracies
    step_seconds: float
    step_bytes: int
    curve: list[dict[str, float]]
    notes: dict[str, Any]


def optimizer(
    lr: float, *, weight_decay: float = 0.0, clip_norm: float = 0.0, constant: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Adam with L2 decay in the gradient, as torch's Adam has it; coefficients of polynomials do not decay.

    Args:
        constant: names of arrays in a layer whose gradient is 0, which do not decay. Adam divides by the gradient's
            size, so that decay alone would move them by whole steps, towards 0.
    """

    def mask(params: Mapping[str, Any]) -> dict[str, Any]:
        layers = [{name: name not in constant for name in layer} for layer in params["layers"]]
        return {k: layers if k == "layers" else False for k in params}

    decays = optax.add_decayed_weights(weight_decay, mask=mask)
    clips = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clips, decays if weight_decay else optax.identity(), optax.adam(lr))


def step(loss_fn: LossFn, tx: optax.GradientTransformation) -> Callable[..., Any]:
    """A compiled update `(params, opt_state, frozen, batch, rng) -> (params, opt_state, loss)`.

    `frozen` and `batch` are arguments, so that arms with other seeds share the program.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, frozen, batch, rng):
        loss, gradient = jax.value_and_grad(loss_fn)(params, frozen, batch, rng)
        changes, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, changes), opt_state, loss

    return update


def cross_entropy(logits_BC: jax.Array, labels_B: jax.Array, weights_B: jax.Array | None = None) -> jax.Array:
    """Mean over the weights, in nats."""
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels_B)
    if weights_B is None:
        return jnp.mean(losses_B)
    return jnp.sum(losses_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1e-9)


def accuracies(logits_NC: np.ndarray, y_N: np.ndarray, splits: Mapping[str, np.ndarray]) -> Accuracies:
    right_N = np.argmax(np.asarray(logits_NC), axis=1) == y_N
    return {split: float(right_N[mask_N].mean()) for split, mask_N in splits.items()}


def seconds_a_step(arm: Arm, number: int, *, seed: int = 0) -> float:
    """Median wall-clock time of this many steps, each waited for, its batch made within; two before them do not count.

    The arm's own parameters stay as they are.
    """
    params, opt_state = jax.tree.map(jnp.array, (arm.params, arm.opt_state))
    spans = []
    for epoch in range(1, number + 3):
        started = time.perf_counter()
        rng = jax.random.fold_in(jax.random.PRNGKey(seed), epoch)
        params, opt_state, _ = arm.step_fn(params, opt_state, arm.frozen, arm.batch_fn(epoch)[0], rng)
        jax.block_until_ready(params)
        spans.append(time.perf_counter() - started)
    return float(np.median(spans[2:]))


def memory(step_fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that the compiled step holds at its most: arguments, results and what lies between; 0 where unknown."""
    analysis = step_fn.lower(*args).compile().memory_analysis()
    if analysis is None:
        return 0
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return int(total - analysis.alias_size_in_bytes)


@dataclasses.dataclass
class _Progress:
    """An arm under way: arrays, and what JSON can hold. `spans` has (seconds, steps) between two evaluations."""

    params: Any
    opt_state: Any
    frozen: Any
    best_params: Any
    epoch: int = 0
    number: int = 0
    best: Accuracies = dataclasses.field(default_factory=dict)
    best_epoch: int = 0
    last: Accuracies = dataclasses.field(default_factory=dict)
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    spans: list[tuple[float, int]] = dataclasses.field(default_factory=list)

    def arrays(self, arm: Arm) -> Any:
        """What is stored of an arm under way; `frozen` alone where refreshes change it."""
        tree = {"params": self.params, "opt_state": self.opt_state, "best_params": self.best_params}
        return tree if arm.refresh_fn is None else tree | {"frozen": self.frozen}


OF_JSON = ("epoch", "number", "best", "best_epoch", "last", "curve", "notes", "spans")


def fit(arm: Arm, *, seed: int, epochs: int, eval_every: int, folder: pathlib.Path, digest: str) -> Result:
    """Train an arm, or read how it ended at an earlier start; one that was killed goes on from its last saving.

    Args:
        folder: of all arms; this one leaves `<name>,seed=<seed>.json` and the weights of its best epoch.
        digest: of what the arm was made from; a result of other data is refused.

    Raises:
        InputError: a loss that is not finite; the weights of the best epoch so far stay.
        Stopped: when loop.STOP is set, after saving.
    """
    path = folder / f"{arm.name},seed={seed}.json"
    if path.is_file():
        return Result(**_of_same_data(files.read_note(path), digest, path))
    weights, under_way = path.with_suffix(".npz"), folder / f"{arm.name},seed={seed}.part"
    # Copies, because the first step takes the memory of what it is given.
    params, opt_state = jax.tree.map(jnp.array, (arm.params, arm.opt_state))
    run = _Progress(params, opt_state, arm.frozen, jax.device_get(params))
    if under_way.is_file():
        _go_on(arm, run, under_way, digest)
    # The program that is looked at here is the one that the steps run: JAX compiles it once.
    size = memory(arm.step_fn, run.params, run.opt_state, run.frozen, arm.batch_fn(1)[0], jax.random.PRNGKey(seed))
    saved = time.monotonic()
    loop.ACTIVE.set()
    try:
        while run.epoch < epochs:
            loss = _advance(arm, run, seed, min(run.epoch + eval_every - run.epoch % eval_every, epochs), weights)
            _evaluate(arm, run, loss)
            if loop.STOP.is_set() or time.monotonic() - saved > SAVE_SECONDS:
                _set_down(arm, run, under_way, digest)
                saved = time.monotonic()
            if loop.STOP.is_set():
                raise loop.Stopped(f"{arm.name}, seed {seed}: stopped after epoch {run.epoch} of {epochs}")
    finally:
        loop.ACTIVE.clear()
    middle = float(np.median([seconds / steps for seconds, steps in run.spans[1:] or run.spans if steps]))
    result = Result(arm.name, seed, run.best, run.best_epoch, run.last, middle, size, run.curve, run.notes)
    save(weights, run.best_params)
    files.write_json(path, dataclasses.asdict(result) | {"digest": digest})
    under_way.unlink(missing_ok=True)
    return result


def _advance(arm: Arm, run: _Progress, seed: int, last_epoch: int, weights: pathlib.Path) -> float:
    """Train up to an epoch and return its loss.

    The host waits for the device at the end alone, so that it makes batches meanwhile.
    """
    key, losses, number = jax.random.PRNGKey(seed), [], run.number
    seconds, started = 0.0, time.perf_counter()
    while run.epoch < last_epoch:
        run.epoch += 1
        if arm.refresh_fn is not None:
            # A refresh is no part of a step's time.
            jax.block_until_ready(run.params)
            seconds += time.perf_counter() - started
            refreshed = arm.refresh_fn(run.epoch, run.params, run.frozen)
            if refreshed is not None:
                run.params, run.frozen, run.notes[str(run.epoch)] = refreshed
            started = time.perf_counter()
        for batch in arm.batch_fn(run.epoch):
            rng = jax.random.fold_in(key, run.number)
            run.params, run.opt_state, loss = arm.step_fn(run.params, run.opt_state, run.frozen, batch, rng)
            losses.append((run.epoch, loss))
            run.number += 1
    jax.block_until_ready(run.params)
    run.spans.append((seconds + time.perf_counter() - started, run.number - number))
    for epoch, loss in losses:
        if not np.isfinite(float(loss)):
            save(weights, run.best_params)
            raise InputError(
                f"{arm.name}: the loss is {float(loss)} at epoch {epoch}; the weights of epoch {run.best_epoch} stay "
                f"in {weights.parent}. Lower the learning rate (optimizer.lr), or clip harder (optimizer.clip_norm)"
            )
    return float(losses[-1][1]) if losses else 0.0


def _evaluate(arm: Arm, run: _Progress, loss: float) -> None:
    run.last = arm.accuracies_fn(run.params, run.frozen)
    run.curve.append({"epoch": run.epoch, "loss": loss, **run.last})
    if not run.best or run.last["val"] > run.best["val"]:
        run.best, run.best_epoch, run.best_params = run.last, run.epoch, jax.device_get(run.params)


def _set_down(arm: Arm, run: _Progress, path: pathlib.Path, digest: str) -> None:
    """Store an arm under way, arrays by their number in the tree."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(run.arrays(arm)))]
    arrays = {str(number): leaf for number, leaf in enumerate(leaves)}
    if arm.memory is not None:
        arrays |= {f"memory/{name}": array for name, array in arm.memory.read_fn().items()}
    about = json.dumps({name: getattr(run, name) for name in OF_JSON} | {"digest": digest})
    files.write(path, lambda file: np.savez(file, about=np.array(about), **arrays))


def _go_on(arm: Arm, run: _Progress, path: pathlib.Path, digest: str) -> None:
    """Put an arm back to where `_set_down` stored it."""
    with np.load(path, allow_pickle=False) as stored:
        for name, value in _of_same_data(json.loads(str(stored["about"])), digest, path).items():
            setattr(run, name, value)
        leaves, structure = jax.tree.flatten(run.arrays(arm))
        tree = jax.tree.unflatten(structure, [jnp.asarray(stored[str(number)]) for number in range(len(leaves))])
        if arm.memory is not None:
            names = [name for name in stored.files if name.startswith("memory/")]
            arm.memory.write_fn({name.removeprefix("memory/"): stored[name] for name in names})
    for name, value in tree.items():
        setattr(run, name, value)


def _of_same_data(stored: dict[str, Any], digest: str, path: pathlib.Path) -> dict[str, Any]:
    if stored.pop("digest") != digest:
        raise InputError(f"{path} was trained on other data; start over in another --workdir")
    return stored


def save(path: pathlib.Path, params: Any) -> None:
    """Parameters by their names, as .npz."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {jax.tree_util.keystr(where, simple=True, separator="/"): np.asarray(leaf) for where, leaf in leaves}
    files.write(path, lambda file: np.savez(file, **arrays))

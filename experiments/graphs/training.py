"""One training loop for every arm: full graph, sketches, or parts of the graph.

An arm's best parameters are those of its best validation accuracy. What an arm ends with is written at once, so that a
run that is killed and started again goes on with the arms that are missing; an arm depends on its seed alone.
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

LossFn = Callable[..., jax.Array]  # (params, frozen, batch, rng) -> nats
Accuracies = dict[str, float]  # by split


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


def memory(step_fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that the compiled step holds at its most: arguments, results and what lies between; 0 where unknown."""
    analysis = step_fn.lower(*args).compile().memory_analysis()
    if analysis is None:
        return 0
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return int(total - analysis.alias_size_in_bytes)


def fit(arm: Arm, *, seed: int, epochs: int, eval_every: int, folder: pathlib.Path, digest: str) -> Result:
    """Train an arm, or read how it ended at an earlier start.

    Args:
        folder: of all arms; this one leaves `<name>,seed=<seed>.json` and the weights of its best epoch.
        digest: of what the arm was made from; a result of other data is refused.

    Raises:
        InputError: a loss that is not finite; the weights of the best epoch so far stay.
    """
    path = folder / f"{arm.name},seed={seed}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("digest") != digest:
            raise InputError(f"{path} was trained on other data; start over in another --workdir")
        return Result(**stored)
    # Copies, because the first step takes the memory of what it is given.
    params, opt_state = jax.tree.map(jnp.array, (arm.params, arm.opt_state))
    frozen, curve, notes = arm.frozen, [], {}
    size = memory(arm.step_fn, params, opt_state, frozen, arm.batch_fn(0)[0], jax.random.PRNGKey(seed))
    weights, best_params = path.with_suffix(".npz"), jax.device_get(params)
    best, best_epoch, last, seconds, loss = {}, 0, {}, [], jnp.zeros(())
    number = 0
    for epoch in range(1, epochs + 1):
        if arm.refresh_fn is not None:
            refreshed = arm.refresh_fn(epoch, params, frozen)
            if refreshed is not None:
                params, frozen, note = refreshed
                notes[str(epoch)] = note
        for batch in arm.batch_fn(epoch):
            rng = jax.random.fold_in(jax.random.PRNGKey(seed), number)
            started = time.perf_counter()
            params, opt_state, loss = arm.step_fn(params, opt_state, frozen, batch, rng)
            jax.block_until_ready(loss)
            seconds.append(time.perf_counter() - started)
            number += 1
        if not np.isfinite(float(loss)):
            save(weights, best_params)
            raise InputError(
                f"{arm.name}: the loss is {float(loss)} at epoch {epoch}; the weights of epoch {best_epoch} stay in "
                f"{folder}. Lower the learning rate (optimizer.lr), or clip harder (optimizer.clip_norm)"
            )
        if epoch % eval_every == 0 or epoch == epochs:
            last = arm.accuracies_fn(params, frozen)
            curve.append({"epoch": epoch, "loss": float(loss), **last})
            if not best or last["val"] > best["val"]:
                best, best_epoch, best_params = last, epoch, jax.device_get(params)
    middle = float(np.median(seconds[1:] or seconds))
    result = Result(arm.name, seed, best, best_epoch, last, middle, size, curve, notes)
    save(weights, best_params)
    files.write_json(path, dataclasses.asdict(result) | {"digest": digest})
    return result


def save(path: pathlib.Path, params: Any) -> None:
    """Parameters by their names, as .npz."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {jax.tree_util.keystr(where, simple=True, separator="/"): np.asarray(leaf) for where, leaf in leaves}
    files.write(path, lambda file: np.savez(file, **arrays))

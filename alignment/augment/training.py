"""The training step on clean and augmented batches, as an update for the trunk's loop; several seeds in one program.

A batch holds `x` and `y` (clean rows), `aug/x` and `aug/y0`, `val/x` and `val/y`, and for each of the three `real` (0
where a row only fills the batch up); `aug/is_wrong` where the truth is known. An assignment gives the augmented rows
their weights and labels; everything else is the usual update.

Dimensions: B rows, K classes, S seeds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment.augment import saflex
from alignment.errors import one_of
from alignment.models import branches
from alignment.train import step
from alignment.train.train_state import TrainState

MODES = ("add", "replace", "clean")  # clean and augmented rows, augmented rows alone, clean rows alone

Batch = dict[str, jax.Array]
ForwardFn = Callable[..., tuple[jax.Array, Any]]  # (params, statistics, x, *, train, rng) -> (logits, statistics)
# (state, batch, key) -> (weights [B], labels [B,K], what changes in `frozen`, metrics)
Assign = Callable[[TrainState, Batch, jax.Array], tuple[jax.Array, jax.Array, dict[str, Any], step.Metrics]]


def part(batch: Batch, name: str) -> Batch:
    """The arrays below `name/`, without it."""
    return {key.partition("/")[2]: value for key, value in batch.items() if key.startswith(f"{name}/")}


def upstream(num_classes: int) -> Assign:
    """Every augmented row with its upstream label and the same weight."""

    def assign(state, batch, key):
        aug = part(batch, "aug")
        return aug["real"] / jnp.sum(aug["real"]), saflex.shares(aug["y0"], num_classes), {}, {}

    return assign


def agreement(num_classes: int, forward: ForwardFn, *, among_allowed: bool = False) -> Assign:
    """Rows that another network agrees with, `state.frozen["teacher"]` with its params and statistics; a peer.

    Args:
        among_allowed: agree with any label of `aug/allowed`, which for pairs are the partners of the same class.
    """

    def assign(state, batch, key):
        aug, teacher = part(batch, "aug"), state.frozen["teacher"]
        y0_BK = saflex.shares(aug["y0"], num_classes)
        logits_BK, _ = forward(teacher["params"], teacher["statistics"], aug["x"], train=False, rng=key)
        wanted_BK = aug["allowed"] if among_allowed else y0_BK >= jnp.max(y0_BK, axis=-1, keepdims=True)
        best_B1 = jnp.argmax(logits_BK, axis=-1)[:, None]
        agrees_B = jnp.take_along_axis(wanted_BK, best_B1, axis=1)[:, 0] * aug["real"]
        return agrees_B / jnp.maximum(jnp.sum(agrees_B), 1.0), y0_BK, {}, {}

    return assign


def stored() -> Assign:
    """Rows with the weights and labels in `state.frozen["stored"]`, whose rows are those of the batch."""

    def assign(state, batch, key):
        return state.frozen["stored"]["w"], state.frozen["stored"]["y"], {}, {}

    return assign


def refined(
    num_classes: int,
    forward: ForwardFn,
    *,
    every: int = 1,
    warmup: int = 0,
    precondition: bool = False,
    **options: Any,
) -> Assign:
    """Weights and labels by `saflex.refine`, whose state lives in `state.frozen["saflex"]`.

    Args:
        every: refine at every so many steps; between them rows have the upstream's labels and equal weights, since
            weights belong to a batch and the next one holds other rows.
        warmup: steps before the first refinement.
        precondition: multiply the validation gradient by Adam's diagonal.
        options: of `saflex.refine`.
    """
    plain = upstream(num_classes)

    def refine(state, batch, key):
        statistics = state.frozen["statistics"]

        def apply(params, x):  # running statistics and no dropout, in both passes
            return forward(params, statistics, x, train=False, rng=key)[0]

        diagonal = saflex.adam_diagonal(state.opt_state) if precondition else None
        w_B, y_BK, new, scalars = saflex.refine(
            state.params,
            apply,
            part(batch, "aug"),
            part(batch, "val"),
            state.frozen["saflex"],
            key,
            preconditioner=diagonal,
            **options,
        )
        # The loop's metrics are means; that ten steps were bad in a row shows as a share above 0.
        scalars |= {"is_stuck": (new.bad_in_a_row >= saflex.MOST_BAD).astype(jnp.float32)}
        return w_B, y_BK, new, {name: step.single(value) for name, value in scalars.items()}

    def leave(state, batch, key):
        w_B, y_BK, _, _ = plain(state, batch, key)
        like = jax.eval_shape(refine, state, batch, key)[3]
        return w_B, y_BK, state.frozen["saflex"], jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    def assign(state, batch, key):
        if every == 1 and not warmup:
            w_B, y_BK, new, metrics = refine(state, batch, key)
        else:
            is_due = (state.step >= warmup) & ((state.step - warmup) % every == 0)
            w_B, y_BK, new, metrics = jax.lax.cond(is_due, branches.fast(refine), leave, state, batch, key)
        return w_B, y_BK, {"saflex": new}, {f"saflex/{name}": mean for name, mean in metrics.items()}

    return assign


def build(
    assign: Assign,
    forward: ForwardFn,
    tx: optax.GradientTransformation,
    *,
    mode: str = "add",
    losses_fn: saflex.LossesFn = saflex.cross_entropies,
    check_every: int = 0,
) -> step.UpdateFn:
    """`update(state, batch) -> (state, metrics)` for `loop.fit`; `state.frozen["statistics"]` are the network's.

    Args:
        mode: `add` trains on mean loss(clean) + sum w loss(augmented), `replace` leaves the first term out, `clean` the
            second.
        losses_fn: see `saflex.refine`.
        check_every: steps between measurements of the change of the validation loss, beside the one that is predicted
            to first order; they cost a gradient and a forward pass each. 0 measures nothing.
    """
    one_of("mode", mode, MODES)

    def loss_fn(params, batch, *, rng, frozen):
        aug = part(batch, "aug")
        inputs = [batch["x"]] * (mode != "replace") + [aug["x"]] * (mode != "clean")
        outputs, statistics = _forward_all(forward, params, frozen["statistics"], inputs, rng)
        total, metrics = jnp.zeros(()), {}
        if mode != "replace":
            losses_B = jnp.take_along_axis(losses_fn(outputs[0]), batch["y"][:, None], axis=1)[:, 0]
            total = jnp.sum(losses_B * batch["real"]) / jnp.sum(batch["real"])
            metrics["clean_loss"] = step.single(total)
        if mode != "clean":
            augmented = jnp.sum(aug["w"] * jnp.sum(aug["y"] * losses_fn(outputs[-1]), axis=-1))
            total, metrics["augmented_loss"] = total + augmented, step.single(augmented)
        return step.single(total), {**metrics, "statistics": statistics}

    inner = step.build(loss_fn, tx)

    def update(state, batch):
        metrics, changes = {}, {}
        if mode != "clean":
            key = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), 1)
            w_B, y_BK, changes, metrics = assign(state, batch, key)
            batch = {**batch, "aug/w": w_B, "aug/y": y_BK}
            metrics |= kept_by_truth(w_B, part(batch, "aug"))
        new, more = inner(state, batch)
        statistics = more.pop("statistics")
        is_finite = more["nonfinite"].total == 0
        statistics = jax.tree.map(lambda s, old: jnp.where(is_finite, s, old), statistics, state.frozen["statistics"])
        new = new.replace(frozen={**state.frozen, **changes, "statistics": statistics})
        if check_every:
            metrics |= _checked(forward, losses_fn, state, new, batch, check_every)
        return new, {**more, **metrics}

    return update


def _forward_all(forward, params, statistics, inputs, rng):
    """Logits of each input, and the new statistics."""
    if not statistics:
        # apart: the compiler then finds the pass over augmented rows that refinement has made already
        return [forward(params, statistics, x, train=True, rng=rng)[0] for x in inputs], statistics
    # together: batch norm's statistics are those of all rows
    x = jnp.concatenate(inputs)
    logits_BK, statistics = forward(params, statistics, x, train=True, rng=rng)
    return jnp.split(logits_BK, np.cumsum([len(part) for part in inputs])[:-1]), statistics


def kept_by_truth(w_B: jax.Array, aug: Batch) -> step.Metrics:
    """Shares of the right and of the wrong augmented rows with a weight above 0, where the truth is known."""
    if "is_wrong" not in aug:
        return {}
    is_kept_B = (w_B > 0) * aug["real"]
    is_wrong_B = aug["is_wrong"] * aug["real"]
    is_right_B = (1 - aug["is_wrong"]) * aug["real"]
    return {
        "kept/clean": step.Mean(jnp.sum(is_kept_B * is_right_B), jnp.sum(is_right_B)),
        "kept/wrong": step.Mean(jnp.sum(is_kept_B * is_wrong_B), jnp.sum(is_wrong_B)),
    }


def _checked(forward, losses_fn, state, new, batch, every) -> step.Metrics:
    """The change of the validation loss by this step, to first order and as it is."""
    val, statistics = part(batch, "val"), state.frozen["statistics"]

    def val_loss(params):
        losses_VK = losses_fn(forward(params, statistics, val["x"], train=False, rng=state.rng)[0])
        losses_V = jnp.take_along_axis(losses_VK, val["y"][:, None], axis=1)[:, 0]
        return jnp.sum(losses_V * val["real"]) / jnp.sum(val["real"])

    def measure():
        before, gradient = jax.value_and_grad(val_loss)(state.params)
        change = jax.tree.map(jnp.subtract, new.params, state.params)
        predicted = sum(jnp.vdot(d, g) for d, g in zip(jax.tree.leaves(change), jax.tree.leaves(gradient)))
        return predicted, val_loss(new.params) - before, jnp.ones(())

    nothing = lambda: (jnp.zeros(()),) * 3  # noqa: E731  a mean of count 0 is not logged
    predicted, realised, count = jax.lax.cond(state.step % every == 0, branches.fast(measure), nothing)
    return {"val_change/predicted": step.Mean(predicted, count), "val_change/realised": step.Mean(realised, count)}


# Several seeds ------------------------------------------------------------------------------------------------------


def over_seeds(update: step.UpdateFn, *, at_once: bool) -> step.UpdateFn:
    """An update of a state whose arrays, but for `step`, have a leading axis S, by batches with S as second axis.

    Args:
        at_once: by `vmap`; otherwise one seed after the other in the same program, which is faster for convolutions:
            of kernels that differ by seed `vmap` makes a grouped convolution, which has no fast kernel on CPUs.
    """

    def update_all(state, batch):
        def one(arrays):
            seed_state, seed_batch = arrays
            new, metrics = update(dataclasses.replace(state, **seed_state), seed_batch)
            return {name: getattr(new, name) for name in STACKED}, metrics

        states = {name: getattr(state, name) for name in STACKED}
        seeds_first = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), batch)
        run_fn = jax.vmap(one) if at_once else lambda arrays: jax.lax.map(branches.fast(one), arrays)
        new, metrics = run_fn((states, seeds_first))
        totals = jax.tree.map(lambda array: jnp.sum(array, axis=0), metrics)
        return dataclasses.replace(state, step=state.step + 1, **new), totals

    return update_all


STACKED = ("params", "opt_state", "rng", "frozen")  # of a TrainState

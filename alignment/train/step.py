"""One update of the parameters: gradients of sums, accumulated, divided once by the true count."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignment import programs
from alignment.train.train_state import TrainState


class Mean(NamedTuple):
    """A mean kept as total and count, so that adding two of them is right whatever their counts."""

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a mean


Metrics = dict[str, Mean]
LossFn = Callable[..., tuple[Mean, Metrics]]
UpdateFn = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def value(mean: Mean) -> jax.Array:
    """total / count, and 0 for a count of 0."""
    return mean.total / jnp.where(mean.count == 0, 1.0, mean.count)


def single(scalar: jax.Array) -> Mean:
    """A scalar that was counted once."""
    return Mean(jnp.asarray(scalar, jnp.float32), jnp.ones((), jnp.float32))


def add(a: Metrics, b: Metrics) -> Metrics:
    return jax.tree.map(jnp.add, a, b)


def build(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    rate_fn: Callable[[optax.OptState], jax.Array] | None = None,
    phases: tuple[Any, Any] | None = None,
) -> UpdateFn:
    """The usual update: gradient of the mean loss over the whole batch, then `tx`.

    Args:
        loss_fn: `loss_fn(params, batch, *, rng, frozen) -> (Mean, metrics)`; the mean's total is what is differentiated
            and its count must not depend on the parameters. A `programs.Computation`, as our losses are, lets updates
            that differ in numbers share a program; so does one of `optimizer` for `tx`.
        accumulate: parts that the batch is taken in, one after the other, to bound memory. The result is that of the
            whole batch, also when the parts count differently; a batch that does not divide is filled with rows of
            zeros, which by contract carry no weight.
        rate_fn: reads the learning rate out of the optimizer's state, for the metric `lr`.
        phases: of a loss that compares all items of the batch, in two computations: `(params, batch, rng, frozen) ->
            {"policy": [items,...], ...}`, and from these to what `loss_fn` returns. In parts the first is taken without
            a gradient, the second on all items, and the first again with the gradient that this gave each item.

    Returns:
        `update(state, batch) -> (state, metrics)`, to be compiled with `compile_update`. Metrics gain `loss`,
        `grad_norm` and `lr`, and `nonfinite`, which is above 0 when the loss or the gradient was not a finite number;
        such an update leaves parameters and optimizer as they were.
    """
    numbers = dict(loss_fn=programs.of(loss_fn), update_fn=programs.of(tx.update), phases=phases)
    return programs.Computation(_update, dict(accumulate=accumulate, rate_fn=rate_fn), numbers)


def _update(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    loss_fn: LossFn,
    update_fn: Callable[..., Any],
    phases: tuple[Any, Any] | None,
    accumulate: int,
    rate_fn: Callable[[optax.OptState], jax.Array] | None,
) -> tuple[TrainState, Metrics]:
    def total_fn(params, batch, rng, frozen):
        mean, metrics = loss_fn(params, batch, rng=rng, frozen=frozen)
        return mean.total, {"loss": mean, **metrics}

    grad_fn = jax.grad(total_fn, has_aux=True)
    # The key follows from the step's number, so a resumed run draws the noise that an uninterrupted one does.
    rng = jax.random.fold_in(state.rng, state.step)
    if accumulate == 1:
        gradient, metrics = grad_fn(state.params, batch, rng, state.frozen)
    elif phases is not None:
        gradient, metrics = _in_two_phases(*phases, state, batch, rng, accumulate)
    else:
        gradient, metrics = _accumulated(grad_fn, state, batch, rng, accumulate)
    count = metrics["loss"].count
    # Totals first and one division at the end: the mean over all tokens, however they fall on parts and devices.
    gradient = jax.tree.map(lambda g: g / jnp.where(count == 0, 1.0, count).astype(g.dtype), gradient)
    # One number for the check: a NaN or infinity anywhere in the gradient makes the norm one too.
    norm = optax.global_norm(gradient)
    is_finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"].total)
    # A bad step changes nothing: moments that took in a NaN would stay NaN, and checkpoints after it be useless.
    changes, opt_state = update_fn(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    metrics = {**metrics, "grad_norm": single(norm), "nonfinite": single(1.0 - is_finite)}
    if rate_fn is not None:
        metrics["lr"] = single(rate_fn(opt_state))
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


def compile_update(update: UpdateFn, state: TrainState) -> UpdateFn:
    """The update compiled, its state donated and left where `state` lives.

    Updates that differ in the numbers of loss and optimizer alone share one program, see `programs`.
    """
    # Without out_shardings XLA may place the new state elsewhere, and the second step would compile again for it.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return programs.compiled(update, donate_argnums=(0,), out_shardings=(shardings, None), place=state.step.sharding)


def _accumulated(grad_fn, state: TrainState, batch: dict[str, jax.Array], rng: jax.Array, parts: int) -> Any:
    """Sums of gradients and metrics over `parts` parts of the batch, in float32."""
    stacked = split(batch, parts)

    def body(carry, part_and_number):
        part, number = part_and_number
        gradient, metrics = grad_fn(state.params, part, jax.random.fold_in(rng, number), state.frozen)
        return jax.tree.map(lambda c, g: c + g.astype(jnp.float32), carry, (gradient, metrics)), None

    # Sums in float32 whatever the gradients' dtype: bfloat16 keeps 8 bits, and small parts would be rounded away.
    first = jax.eval_shape(grad_fn, state.params, jax.tree.map(lambda x: x[0], stacked), rng, state.frozen)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), first)
    return jax.lax.scan(body, zeros, (stacked, jnp.arange(parts)))[0]


def _in_two_phases(scores_fn, compare_fn, state: TrainState, batch: dict[str, jax.Array], rng: jax.Array, parts: int):
    """As `_accumulated`, of a loss on all items at once: the chain rule, with each part's forward pass taken twice."""
    stacked = split(batch, parts)

    def score(params, part, number):
        return scores_fn(params, part, rng=jax.random.fold_in(rng, number), frozen=state.frozen)

    numbers = jnp.arange(parts)
    scored = jax.lax.map(lambda one: score(state.params, *one), (stacked, numbers))
    scored = {name: x.reshape(-1, *x.shape[2:]) for name, x in scored.items()}

    def compare(policy):
        mean, metrics = compare_fn(scored | {"policy": policy})
        return mean.total, {"loss": mean, **metrics}

    slopes, metrics = jax.grad(compare, has_aux=True)(scored["policy"])

    def body(carry, one):
        part, number, slope = one
        _, backward = jax.vjp(lambda params: score(params, part, number)["policy"], state.params)
        return jax.tree.map(lambda c, g: c + g.astype(jnp.float32), carry, backward(slope)[0]), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), state.params)
    gradient, _ = jax.lax.scan(body, zeros, (stacked, numbers, slopes.reshape(parts, -1, *slopes.shape[1:])))
    return gradient, metrics


def split(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """`[B,...]` as `[parts, B/parts, ...]`, every part with rows of every device.

    Arrays with several rows an item (two for a pair) keep an item's rows together: the items of part i are i,
    i + parts, i + 2 parts ... of the batch, filled up with zeros at the end.
    """
    num_items = min(leaf.shape[0] for leaf in batch.values())
    filling = -num_items % parts

    def one(leaf):
        rows = leaf.shape[0] // num_items
        leaf = leaf.reshape(num_items, rows, *leaf.shape[1:])
        # Every part with every p-th item: a device's rows are neighbours, so it holds some of each part and no row
        # moves.
        leaf = jnp.pad(leaf, ((0, filling),) + ((0, 0),) * (leaf.ndim - 1))
        leaf = leaf.reshape(-1, parts, *leaf.shape[1:])
        leaf = jnp.moveaxis(leaf, 1, 0)
        return leaf.reshape(parts, -1, *leaf.shape[3:])

    return {key: one(leaf) for key, leaf in batch.items()}

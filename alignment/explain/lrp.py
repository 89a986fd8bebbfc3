"""Layer-wise relevance propagation for any linen module or JAX function: a second walk over the traced forward pass.

    relevance_NKYXC = relevance(model.apply, variables, x_NYXC, targets_NK, composite="epsilon_plus_flat")

`graph` reads the forward pass, `layers` gathers it into layers, `composites` chooses their rules, and the second walk
applies `lrp_rules` from the logits back to the image.  Relevance starts as the logit of the target class; the targets
of an image share the forward pass and everything else that does not depend on the target.  Batch norm is folded into
the convolution before it; `check_fold` measures how much that changes the logits, and `conservation` shows which layers
absorb relevance (biases, epsilon).

Dimensions: N images, Y X rows and columns, C channels or classes, K targets an image.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment import errors
from alignment.explain import composites, convolutions, graph, hoisting, layers, lrp_rules


def relevance(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    composite: str | composites.Pairs | composites.Composite = "auto",
    rules: composites.Pairs = (),
    low: composites.Bound = -1.0,
    high: composites.Bound = 1.0,
    sum_channels: bool = False,
    return_delta: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Relevance of each input for the logits of the target classes.

    Args:
        apply_fn: `(variables, x) -> logits` or `(logits, activations)`; for our networks, `model.apply`.
        targets_NK: class indices, K for each image.
        composite: a name in `composites.COMPOSITES`, a list of (predicate, rule), or "auto" (`composites.default`).
        rules: pairs that come before the composite's, for layers of your own.
        low: least value of a normalised input, for the box rule; a number or an array that broadcasts to x.
        high: largest value.
        sum_channels: sum each target's relevance over the last axis, before the next target's is computed.
        return_delta: also return |sum of relevance - logit| / |logit|, [N, K].

    Returns:
        Relevance [N, K, *x.shape[1:]], without the last axis where that is summed; with return_delta a pair of it and
        the error of conservation.

    Raises:
        InputError: for layers without a rule, with the line that gives them one; for targets that are not classes.
    """
    plan = _plan(apply_fn, variables, x_NYXC, composite, rules, low, high)
    walked, logits_NC = _forward(plan.traced, plan.layers, variables, x_NYXC)
    start_KNC = _start(logits_NC, targets_NK)

    out_NKYXC = jnp.moveaxis(_all_targets(plan, walked, start_KNC, sum_channels), 0, 1)
    if not return_delta:
        return out_NKYXC
    logit_NK = jnp.sum(start_KNC, axis=2).T
    total_NK = jnp.sum(out_NKYXC, axis=tuple(range(2, out_NKYXC.ndim)))
    # What the sum of the map lacks of the logit was absorbed on the way, by biases and by epsilon.
    return out_NKYXC, jnp.abs(total_NK - logit_NK) / jnp.abs(logit_NK)


def conservation(
    apply_fn: Callable, variables: Any, x_NYXC: jax.Array, targets_NK: jax.Array, **options: Any
) -> dict[str, jax.Array]:
    """The total relevance behind each layer on the way back from the logits.

    Args:
        options: `composite`, `rules`, `low` and `high` as for `relevance`.

    Returns:
        Layer name to sums [N, K], from the last layer to the first.  A layer that conserves has the sum of the one
        before; the first sum to differ from the logit shows which layer keeps or adds relevance.
    """
    settings: dict[str, Any] = {"composite": "auto", "rules": (), "low": -1.0, "high": 1.0, **options}
    plan = _plan(apply_fn, variables, x_NYXC, **settings)
    walked, logits_NC = _forward(plan.traced, plan.layers, variables, x_NYXC)

    def back(start_NC):
        return _backward(plan, walked, start_NC, totals=True)[1]

    sums_LKN = _each_target(back, _start(logits_NC, targets_NK))
    return {layer.name: sums.T for layer, sums in zip(reversed(plan.layers), sums_LKN)}


def check_fold(apply_fn: Callable, variables: Any, x_NYXC: jax.Array, *, tolerance: float = 1e-3) -> float:
    """Largest difference of a logit with and without batch norm folded, relative to the largest logit.

    Raises:
        InputError: where it is above the tolerance; not under jit.
    """

    @jax.jit
    def difference(variables, x_NYXC):
        traced = graph.trace(apply_fn, variables, x_NYXC)
        _, folded_NC = _forward(traced, layers.read(traced), variables, x_NYXC)
        out = apply_fn(variables, x_NYXC)
        plain_NC = out[0] if isinstance(out, tuple | list) else out
        return jnp.max(jnp.abs(folded_NC - plain_NC)) / jnp.maximum(jnp.max(jnp.abs(plain_NC)), 1e-30)

    error = float(difference(variables, x_NYXC))
    # Written so that a NaN is refused too: every comparison with it is false.
    if not error <= tolerance:
        raise errors.InputError(
            f"folding batch norm into the layers before it changes the logits by {error:.2g} of the largest (allowed: "
            f"{tolerance:.2g}); compute in float32, or pass a composites.Composite(..., fold=False)"
        )
    return error


def steps(apply_fn: Callable, variables: Any, x_NYXC: jax.Array, *, fold: bool = True) -> list[lrp_rules.Step]:
    """The arguments of rules: every layer with the arrays of a forward pass, in order of computation."""
    traced = graph.trace(apply_fn, variables, x_NYXC)
    return _forward(traced, layers.read(traced, fold=fold), variables, x_NYXC)[0]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The layers of a network and a rule for each."""

    traced: graph.Graph
    layers: list[layers.Layer]
    rules: list[composites.Rule]


def _plan(
    apply_fn: Callable,
    variables: Any,
    x: jax.Array,
    composite: str | composites.Pairs | composites.Composite,
    rules: composites.Pairs,
    low: composites.Bound,
    high: composites.Bound,
) -> _Plan:
    traced = graph.trace(apply_fn, variables, x)
    if composite == "auto":
        composite = composites.default(layers.read(traced))
    resolved = composites.choose(composite, low, high)
    # Read again: the default composite depends on the layers, and whether to fold depends on the composite.
    network = layers.read(traced, fold=resolved.fold)
    return _Plan(traced, network, composites.assign(network, [*rules, *resolved.pairs]))


def _start(logits_NC: jax.Array, targets_NK: jax.Array) -> jax.Array:
    """The logit at the target class and 0 elsewhere, [K, N, C]."""
    if jnp.ndim(targets_NK) != 2 or jnp.shape(targets_NK)[0] != logits_NC.shape[0]:
        raise errors.InputError(
            f"targets of shape {jnp.shape(targets_NK)} do not fit {logits_NC.shape[0]} images; need classes [N, K]"
        )
    num_classes = logits_NC.shape[1]
    # Under jit the values are not known, and `one_hot` would turn a class that is not there into zeros.
    if not isinstance(targets_NK, jax.core.Tracer):
        wrong = np.asarray(targets_NK)
        wrong = wrong[(wrong < 0) | (wrong >= num_classes)]
        if wrong.size:
            raise errors.InputError(f"target {wrong[0]} is not a class; the network has classes 0 to {num_classes - 1}")
    hot_KNC = jax.nn.one_hot(jnp.asarray(targets_NK).T, num_classes, dtype=logits_NC.dtype)
    return hot_KNC * logits_NC[None]


def _all_targets(plan: _Plan, walked: list[lrp_rules.Step], start_KNC: jax.Array, sum_channels: bool) -> jax.Array:
    """Relevance of the image for each target, [K, N, ...].

    On CPUs the targets go through the last layers together, back to the first layer whose weights are fewer than its
    outputs: there they share the reading of the weights. In the layers before it the activations of K targets would
    take the memory, and the targets go one after the other.
    """
    K, is_compiled = start_KNC.shape[0], isinstance(start_KNC, jax.core.Tracer)
    cut = _first_together(walked) if K > 1 and is_compiled and jax.default_backend() == "cpu" else 0

    def late(start_NC):
        return _walk(plan, walked, {plan.traced.logits: start_NC}, cut, len(walked))[0]

    def early(pending):
        R = _walk(plan, walked, pending, 0, cut)[0][plan.traced.image]
        return convolutions.channel_sum(R) if sum_channels else R

    pending = _each_target(late, start_KNC)
    return hoisting.map_in_turn(early, pending) if cut else _each_target(early, pending)


def _first_together(walked: list[lrp_rules.Step]) -> int:
    """The first of the last layers through which targets go together."""
    for i, step in reversed(list(enumerate(walked))):
        if step.layer.kind in ("conv", "dense") and step.weight.size < step.z.size:
            return i + 1
    return 0


def _each_target(back: Callable[[Any], Any], targets: Any) -> Any:
    """vmap over targets, the first axes of a tree; work that does not depend on the target is done once."""
    if jax.tree.leaves(targets)[0].shape[0] == 1:  # vmap would only add an axis to every array
        return jax.tree.map(lambda out: out[None], back(jax.tree.map(lambda array: array[0], targets)))
    return jax.vmap(back)(targets)


# --- the two walks ---------------------------------------------------------------------------------------------------


def _forward(
    traced: graph.Graph, network: list[layers.Layer], variables: Any, x: jax.Array
) -> tuple[list[lrp_rules.Step], jax.Array]:
    """Every layer's step, and the logits."""
    values = graph.arguments(traced, variables)
    # First what the weights alone determine, such as a folded batch norm's factors, whichever layer reads it.
    graph.run([e for e in traced.equations if not e.reads_x], values)
    values[traced.image] = jnp.asarray(x, traced.shapes[traced.image].dtype)
    walked = []
    for layer in network:
        inputs = tuple(values[value] for value in layer.inputs)
        make = _MAKERS.get(layer.kind, _plain)
        step = make(traced, layer, values, inputs)
        values.update(zip(layer.outputs, step.outputs, strict=True))
        walked.append(step)
    return walked, values[traced.logits]


def _backward(
    plan: _Plan, walked: list[lrp_rules.Step], start_NC: jax.Array, totals: bool = False
) -> tuple[jax.Array, list[jax.Array]]:
    """Relevance of the image, and with `totals` the sums over all values behind each layer, last layer first."""
    pending, sums = _walk(plan, walked, {plan.traced.logits: start_NC}, 0, len(walked), totals)
    return pending[plan.traced.image], sums


def _walk(
    plan: _Plan,
    walked: list[lrp_rules.Step],
    start: Mapping[int, jax.Array],
    first: int,
    last: int,
    totals: bool = False,
) -> tuple[dict[int, jax.Array], list[jax.Array]]:
    """Walks back through the steps before `last` to `first`.

    Args:
        start: value id -> relevance, behind step `last`.
        totals: also sum the relevance behind each step.

    Returns:
        Value id -> relevance before step `first`, and the sums.
    """
    # Relevance waits by value until the layer that made the value is reached: with skip connections a value has several
    # readers, and the shares that they send back add up here.
    pending, sums = dict(start), []
    for step, rule in zip(reversed(walked[first:last]), reversed(plan.rules[first:last])):
        outputs = step.layer.outputs
        if any(value in pending for value in outputs):
            R = tuple(pending.pop(value, None) for value in outputs)
            # of a split, some outputs may not reach the logits
            R = tuple(jnp.zeros_like(z) if r is None else r for r, z in zip(R, step.outputs))
            shares = rule(step, R[0] if len(R) == 1 else R)
            shares = shares if isinstance(shares, tuple) else (shares,)
            for value, share in zip(step.layer.inputs, shares, strict=True):
                if share is not None:
                    pending[value] = pending[value] + share if value in pending else share
        if totals:
            first_sum, *others = [jnp.sum(r, axis=tuple(range(1, r.ndim))) for r in pending.values()]
            sums.append(sum(others, first_sum))
    return pending, sums


def _plain(
    traced: graph.Graph, layer: layers.Layer, values: Mapping[int, Any], inputs: tuple[jax.Array, ...]
) -> lrp_rules.Step:
    """The step of a layer without weights."""
    constants = {v: values[v] for e in layer.equations for v in e.inputs if v not in traced.reads_x}

    def fn(*arrays):
        local = {**constants, **dict(zip(layer.inputs, arrays, strict=True))}
        graph.run(layer.equations, local)
        return tuple(local[value] for value in layer.outputs)

    return lrp_rules.Step(layer, inputs, fn(*inputs), fn)


def _linear(
    traced: graph.Graph, layer: layers.Layer, values: Mapping[int, Any], inputs: tuple[jax.Array, ...]
) -> lrp_rules.Step:
    """The step of a conv or dense layer, with the chain of constants after it (batch norm) folded into its weights."""
    equation, *chain = layer.equations
    at = layers.weight_at(traced, equation)

    def op(x, w):
        return equation.bind(*((x, w) if at == 1 else (w, x)))[0]

    scale, bias = _constants(traced, chain, values)
    weight = values[equation.inputs[at]]
    if scale is not None:
        if jnp.ndim(scale):
            # the factor broadcasts to the output; turn it so that it broadcasts to the weights
            out_axes, axes = layers.channel_axes(traced, equation)
            sizes = iter(scale.shape[axis] for axis in out_axes)
            scale = jnp.reshape(scale, [next(sizes) if axis in axes else 1 for axis in range(weight.ndim)])
        weight = (weight * scale).astype(weight.dtype)
    dtype = traced.shapes[layer.outputs[0]].dtype

    def fn(x):
        z = op(x, weight)
        return ((z if bias is None else z + bias).astype(dtype),)

    return lrp_rules.Step(layer, inputs, fn(*inputs), fn, op, weight, bias)


def _affine(
    traced: graph.Graph, layer: layers.Layer, values: Mapping[int, Any], inputs: tuple[jax.Array, ...]
) -> lrp_rules.Step:
    """The step of x * scale + shift."""
    scale, shift = _constants(traced, layer.equations, values)
    plain = _plain(traced, layer, values, inputs)
    return lrp_rules.Step(layer, inputs, plain.outputs, plain.fn, weight=scale, bias=shift)


_MAKERS = {"conv": _linear, "dense": _linear, "affine": _affine, "scale": _affine}


def _constants(
    traced: graph.Graph, chain: Sequence[graph.Equation], values: Mapping[int, Any]
) -> tuple[Any, jax.Array | None]:
    """A chain of additions and multiplications by constants as (scale, shift), each an array or None."""
    scale: Any = None
    shift: Any = None
    for equation in chain:
        own = [value in traced.reads_x for value in equation.inputs]
        # neg and casts have no constant, and do not read it
        constant: Any = None if all(own) else values[equation.inputs[own.index(False)]]
        if equation.op in ("add", "add_any"):
            shift = constant if shift is None else shift + constant
        elif equation.op == "sub" and own[0]:
            shift = -constant if shift is None else shift - constant
        elif equation.op in ("sub", "neg"):
            scale = jnp.asarray(-1.0, jnp.float32) if scale is None else -scale
            shift = None if shift is None else -shift
            if equation.op == "sub":
                shift = constant if shift is None else shift + constant
        elif equation.op in ("mul", "div"):
            factor = constant if equation.op == "mul" else 1 / constant
            scale = factor if scale is None else scale * factor
            shift = None if shift is None else shift * factor
    return scale, shift if shift is None else jnp.asarray(shift)

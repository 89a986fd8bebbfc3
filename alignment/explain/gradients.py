"""Attributions from gradients of a class score.

The score of a class is its logit. Every function takes `apply_fn(variables, x_NYXC) -> logits_NC` (or a pair that
begins with it) and class numbers targets_NK, and returns maps_NKYX in float32; all K targets share one forward pass.
The defaults are the settings of Arias-Duart et al. 2022 (arXiv:2109.15035). `channels` says how C becomes one number a
pixel: "sum" keeps the sign, "max_abs" is the largest magnitude, "keep" returns maps_NKYXC.

Networks process each image by itself (batch norm uses its running statistics), and an image's noise comes from `key`
and the image's number in `ids_N`, so nothing depends on which images share a batch.

Dimensions: N images, K targets an image, Y X rows and columns, C channels (classes in logits), S steps in one pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError, one_of
from alignment.explain import convolutions, graph, steps

CHANNELS = {
    "sum": convolutions.channel_sum,
    "max_abs": lambda maps_NKYXC: jnp.abs(maps_NKYXC).max(-1),
    "keep": lambda maps_NKYXC: maps_NKYXC,
}


def logits(apply_fn: Callable, variables: Any, x_NYXC: jax.Array) -> jax.Array:
    """logits_NC in float32, from a network that returns them alone or with its activations."""
    out = apply_fn(variables, x_NYXC)
    return (out[0] if isinstance(out, tuple | list) else out).astype(jnp.float32)


def scoring(apply_fn: Callable, variables: Any, x_NYXC: jax.Array) -> Callable:
    """The function x_NYXC -> logits_NC, for gradients: on CPUs max-pools get the fast transpose of `convolutions`.

    A network that cannot be read as a graph (control flow on the image) is used unchanged.
    """
    plain = functools.partial(logits, apply_fn, variables)
    if jax.default_backend() != "cpu":
        return plain
    # `keep_custom` keeps functions with a gradient of their own, such as jax.nn.relu, as the network has them
    try:
        forward = graph.trace(apply_fn, variables, x_NYXC, keep_custom=True)
    except InputError:
        return plain
    if not any(equation.op == "reduce_window_max" for equation in forward.equations):
        return plain
    return lambda x_NYXC: graph.evaluate(forward, variables, x_NYXC)[forward.logits].astype(jnp.float32)


def pick(values_NC: jax.Array, targets_NK: jax.Array) -> jax.Array:
    """values_NK of the targets."""
    return jnp.take_along_axis(values_NC, targets_NK, axis=1)


UNROLLED = 8  # targets; each adds a backward pass to the program


def of_targets(
    score_fn: Callable, x_NYXC: jax.Array, targets_NK: jax.Array, *, together: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Scores and input gradients of K classes an image from one forward pass.

    Args:
        score_fn: x_NYXC to scores_NC; a row depends on its own image only.
        x_NYXC: the point of the gradient; any shape that begins with N.
        targets_NK: class numbers.
        together: do the K backward passes at once, which suits short ones. Otherwise one follows the other, in the
            memory of one: unrolled on CPUs, where convolutions inside XLA loops are slow, and as a loop elsewhere.

    Returns:
        scores_NK and gradients_NKYXC.
    """
    # One forward pass for all targets: its activations are kept, and each target pulls back through them.
    scores_NC, pull_back = jax.vjp(score_fn, x_NYXC)
    # a row depends on its own image only, so one pull-back of one-hot rows gives every image its own target's gradient
    ones_KNC = jax.nn.one_hot(targets_NK.T, scores_NC.shape[1], dtype=scores_NC.dtype)

    def back(ones_NC):
        return pull_back(ones_NC)[0]

    if together:
        gradients_KNYXC = jax.vmap(back)(ones_KNC)
    elif len(ones_KNC) == 1 or (jax.default_backend() == "cpu" and len(ones_KNC) <= UNROLLED):
        gradients_KNYXC = jnp.stack([back(ones_NC) for ones_NC in ones_KNC])
    else:
        gradients_KNYXC = jax.lax.map(back, ones_KNC)
    return pick(scores_NC, targets_NK), jnp.moveaxis(gradients_KNYXC, 0, 1)


def min_max(maps_NKYX: jax.Array) -> jax.Array:
    """Each map scaled to [0, 1]; a constant map becomes 0."""
    # a constant map has no span; 0 / 0 is avoided in both branches of the where
    low = maps_NKYX.min((-2, -1), keepdims=True)
    span = maps_NKYX.max((-2, -1), keepdims=True) - low
    return jnp.where(span > 0, (maps_NKYX - low) / jnp.where(span > 0, span, 1.0), 0.0)


def over_channels(maps_NKYXC: jax.Array, channels: str) -> jax.Array:
    """maps_NKYX in float32, by a rule of CHANNELS."""
    return CHANNELS[one_of("channels", channels, CHANNELS)](maps_NKYXC.astype(jnp.float32))


def like_images(value: float | jax.Array, x_NYXC: jax.Array, name: str) -> jax.Array:
    """An option in the units of x, broadcast to every pixel, [N, Y, X, C]."""
    try:
        return jnp.broadcast_to(jnp.asarray(value, x_NYXC.dtype), x_NYXC.shape)
    except ValueError as error:
        raise InputError(
            f"{name} of shape {jnp.shape(value)} must be a number, or broadcast to images {x_NYXC.shape} by its last "
            "axes"
        ) from error


def image_keys(key: jax.Array | None, ids_N: jax.Array | None, num_images: int, method: str) -> jax.Array:
    """One random key an image, from its number alone."""
    if key is None:
        raise InputError(f"{method} draws random numbers and was given no key; pass key=jax.random.key(0), say")
    ids_N = jnp.arange(num_images) if ids_N is None else ids_N
    return jax.vmap(lambda image: jax.random.fold_in(key, image))(ids_N)


@functools.partial(jax.jit, static_argnums=0)
def _at(apply_fn, variables, x_NYXC, targets_NK):
    return of_targets(scoring(apply_fn, variables, x_NYXC), x_NYXC, targets_NK)


def gradient(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    channels: str = "max_abs",
) -> jax.Array:
    """The saliency of Simonyan et al. 2014 (arXiv:1312.6034): |d score / d x|, the largest over the channels."""
    _, gradients_NKYXC = _at(steps.hashable(apply_fn), variables, x_NYXC, targets_NK)
    return over_channels(gradients_NKYXC, channels)


def input_x_gradient(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    channels: str = "sum",
) -> jax.Array:
    """Input times gradient, summed over the channels; the exact share of each pixel where the score is linear."""
    _, gradients_NKYXC = _at(steps.hashable(apply_fn), variables, x_NYXC, targets_NK)
    return over_channels(x_NYXC[:, None] * gradients_NKYXC, channels)


@jax.custom_vjp
def guided_relu(x: jax.Array) -> jax.Array:
    """A rectifier that passes back only positive gradients, and only where its input was positive."""
    return jnp.maximum(x, 0)


guided_relu.defvjp(lambda x: (jnp.maximum(x, 0), x > 0), lambda on, grad: (jnp.where(on, jnp.maximum(grad, 0), 0),))


@functools.partial(jax.jit, static_argnums=0)
def _guided_at(apply_fn, variables, x_NYXC, targets_NK):
    forward = graph.trace(apply_fn, variables, x_NYXC, keep_custom=True)
    rectifiers = {equation for equation in forward.equations if equation.reads_x and graph.is_relu(forward, equation)}
    if not rectifiers:
        raise InputError(
            "guided backprop changes the gradient of ReLU, and this network has none; take method='gradient'"
        )

    def replace(equation):
        if equation not in rectifiers:
            return None
        # max(x, 0) and max(0, x) are both rectifiers.
        place = next(i for i, value in enumerate(equation.inputs) if value in forward.reads_x)
        return lambda *inputs: (guided_relu(inputs[place]),)

    def guided(x_NYXC):
        return graph.evaluate(forward, variables, x_NYXC, replace=replace)[forward.logits].astype(jnp.float32)

    return of_targets(guided, x_NYXC, targets_NK)


def guided_backprop(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    channels: str = "max_abs",
) -> jax.Array:
    """Guided backpropagation of Springenberg et al. 2015 (arXiv:1412.6806).

    The traced program is evaluated with `guided_relu` in the place of every rectifier, so the network needs no change;
    other activations (GELU, SiLU, also ReLU6 and rectifiers by jnp.where or jnp.clip) keep their gradient.

    Raises:
        InputError: the network has no rectifier.
    """
    _, gradients_NKYXC = _guided_at(steps.hashable(apply_fn), variables, x_NYXC, targets_NK)
    return over_channels(gradients_NKYXC, channels)


def _smoothgrad_step(static, arrays, step_S, valid_S):
    apply_fn, noise = static
    variables, x_NYXC, targets_NK, keys_N = arrays

    def noisy(step, image_YXC, key):
        # the key comes from the image's number and the copy's alone: the same noise in any batch and with any driver
        deviation = noise * (image_YXC.max() - image_YXC.min())
        return image_YXC + deviation * jax.random.normal(
            jax.random.fold_in(key, step), image_YXC.shape, image_YXC.dtype
        )

    x_SNYXC = jax.vmap(lambda step: jax.vmap(functools.partial(noisy, step))(x_NYXC, keys_N))(step_S)
    gradients_SNKYXC = _in_one_pass(apply_fn, variables, x_SNYXC, targets_NK)
    return jnp.einsum("s,s...->...", valid_S, gradients_SNKYXC)  # filling of the last pass has weight 0


def _in_one_pass(apply_fn, variables, x_SNYXC, targets_NK):
    """gradients_SNKYXC at S versions of N images, all in one batch."""
    num_steps = len(x_SNYXC)
    flat = x_SNYXC.reshape(-1, *x_SNYXC.shape[2:])
    _, gradients = of_targets(scoring(apply_fn, variables, flat), flat, jnp.tile(targets_NK, (num_steps, 1)))
    return gradients.reshape(num_steps, -1, *gradients.shape[1:])


def smoothgrad(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    ids_N: jax.Array | None = None,
    key: jax.Array | None = None,
    num_samples: int = 10,
    noise: float = 0.2,
    channels: str = "max_abs",
    scale: bool = True,
    driver: str | None = None,
    per_pass: int = 1,
) -> jax.Array:
    """SmoothGrad of Smilkov et al. 2017 (arXiv:1706.03825): the mean of the gradients at x + N(0, sigma^2).

    Args:
        num_samples: noisy copies.
        noise: their standard deviation as a share of the image's largest minus its smallest value.
        channels: applied to the mean of the signed gradients.
        scale: to [0, 1] by each map's smallest and largest value (not with channels="keep").
        driver: see `steps`.
        per_pass: copies that go through the network together.

    Raises:
        InputError: no key.
    """
    keys_N = image_keys(key, ids_N, len(x_NYXC), "smoothgrad")
    arrays = (variables, x_NYXC, targets_NK, keys_N)
    static = (steps.hashable(apply_fn), float(noise))
    sums = steps.total(_smoothgrad_step, static, arrays, num_samples, driver=driver, per_pass=per_pass)
    maps = over_channels(sums / num_samples, channels)
    return min_max(maps) if scale and channels != "keep" else maps


def nodes(method: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of [0, 1] and their weights, which sum to 1.

    Args:
        method: "gausslegendre" (exact for polynomials of degree 2 num_steps - 1), "middle" (Riemann, midpoints) or
            "trapezoid".
        num_steps: points.
    """
    one_of("rule", method, ("gausslegendre", "middle", "trapezoid"))
    if num_steps < 1 or (method == "trapezoid" and num_steps < 2):
        raise InputError(f"num_steps={num_steps} is too few for {method}; the paper takes 30")
    if method == "gausslegendre":
        points_S, weights_S = np.polynomial.legendre.leggauss(num_steps)
        # numpy's points lie in [-1, 1]; the path from baseline to image is [0, 1].
        return (points_S + 1) / 2, weights_S / 2
    if method == "middle":
        return (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    weights_S = np.full(num_steps, 1.0)
    weights_S[[0, -1]] = 0.5
    return np.linspace(0, 1, num_steps), weights_S / weights_S.sum()


def _integrated_step(static, arrays, step_S, valid_S):
    (apply_fn,) = static
    variables, x_NYXC, targets_NK, baseline_NYXC, points, weights = arrays
    # Every image is taken to the same points of its own path.
    far = points[step_S].reshape(-1, 1, 1, 1, 1)
    x_SNYXC = baseline_NYXC[None] + far * (x_NYXC - baseline_NYXC)[None]
    gradients_SNKYXC = _in_one_pass(apply_fn, variables, x_SNYXC, targets_NK)
    return jnp.einsum("s,s...->...", weights[step_S] * valid_S, gradients_SNKYXC)


@functools.partial(jax.jit, static_argnums=0)
def _gain(apply_fn, variables, x_NYXC, baseline_NYXC, targets_NK):
    """How far the scores rise from the baseline to the image [N, K]."""
    # one forward pass of both; images do not see each other
    scores_NC = logits(apply_fn, variables, jnp.concatenate([x_NYXC, baseline_NYXC]))
    return pick(scores_NC[: len(x_NYXC)] - scores_NC[len(x_NYXC) :], targets_NK)


def integrated_gradients(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    baseline: float | jax.Array = 0.0,
    num_steps: int = 30,
    rule: str = "gausslegendre",
    channels: str = "sum",
    return_delta: bool = False,
    driver: str | None = None,
    per_pass: int = 1,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Integrated gradients of Sundararajan et al. 2017 (arXiv:1703.01365), Eq. 1.

    (x - x') times the integral over a in [0, 1] of the gradient at x' + a (x - x'), by the quadrature `rule`.

    Args:
        baseline: where the path begins, in the units of x: a number, or an array that broadcasts to x_NYXC by its last
            axes. 0 is mid-grey where images run over [-1, 1]; the authors' follow-up takes black, -1.
        num_steps: points on the path.
        rule: see `nodes`.
        channels: "sum" keeps the sign.
        return_delta: also delta_NK, the sum of an image's attributions less the gain of its score over the baseline's,
            in logits; it goes to 0 as steps are added (completeness).
        driver: see `steps`.
        per_pass: points that go through the network together.
    """
    apply_fn = steps.hashable(apply_fn)
    baseline_NYXC = like_images(baseline, x_NYXC, "baseline")
    points, weights = (jnp.asarray(a, jnp.float32) for a in nodes(rule, num_steps))
    # points and weights are arrays, not constants, so that another `rule` needs no compilation
    arrays = (variables, x_NYXC, targets_NK, baseline_NYXC, points, weights)
    mean_NKYXC = steps.total(_integrated_step, (apply_fn,), arrays, num_steps, driver=driver, per_pass=per_pass)
    # the gradients are averaged before they are multiplied with the difference, which is the same at every point
    shares_NKYXC = (x_NYXC - baseline_NYXC)[:, None] * mean_NKYXC
    maps = over_channels(shares_NKYXC, channels)
    if not return_delta:
        return maps
    return maps, shares_NKYXC.sum((2, 3, 4)) - _gain(apply_fn, variables, x_NYXC, baseline_NYXC, targets_NK)

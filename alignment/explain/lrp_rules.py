"""Rules of layer-wise relevance propagation: how a layer's relevance is shared out among its inputs.

A rule is `rule(step, R) -> relevance of the input`, or a tuple of them where a layer has several inputs (None: no
relevance); R has the shape of the layer's output.  Options are set with functools.partial.  `step` holds what the
forward pass left behind, see `Step`; for a conv or dense layer z = op(x, w) + b, and op is linear in both.  a / b is 0
where b is 0.  A rule sees one target at a time.

Sources: Bach et al. 2015 (epsilon, alpha-beta), Montavon et al. 2017, 2019 (z+, z-box, w-square, gamma), Lapuschkin et
al. 2019 (flat), Arias-Duart et al. 2022 (the `focus_` rules, as their code has them), Achtibat et al. 2024 (softmax,
uniform, identity for norms).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignment.explain import convolutions, layers


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A layer with the arrays of one forward pass.

    Attributes:
        layer: name, kind and shapes.
        inputs: the arrays that depend on the image.
        outputs: what the layer made of them; one, but for a split.
        fn: inputs -> tuple of outputs.
        op: (x, w) -> z of a conv or dense layer, without its bias.
        weight: of a conv or dense layer, batch norm folded; the factor of an affine layer (None: 1).
        bias: broadcasts to z; None: 0.
    """

    layer: layers.Layer
    inputs: tuple[jax.Array, ...]
    outputs: tuple[jax.Array, ...]
    fn: Callable[..., tuple[jax.Array, ...]]
    op: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    weight: Any = None
    bias: Any = None

    @property
    def x(self) -> jax.Array:
        """The first input."""
        return self.inputs[0]

    @property
    def z(self) -> jax.Array:
        """The first output."""
        return self.outputs[0]

    def transposed(self, w: jax.Array, s: jax.Array, like: jax.Array | None = None) -> jax.Array:
        """The transpose of x -> op(x, w), applied to s; `like` has the shape of the result (default: x)."""
        x, first = self.x if like is None else like, self.layer.equations[0]
        if first.op == "conv_general_dilated" and first.inputs[0] in self.layer.inputs:
            return convolutions.transposed(s, w, first.params, x.shape)
        shape = jax.ShapeDtypeStruct((s.shape[0], *x.shape[1:]), x.dtype)
        return jax.linear_transpose(lambda x: self.op(x, w), shape)(s)[0]


def divide(a, b):
    """a / b, and 0 where b is 0."""
    is_zero = b == 0
    return jnp.where(is_zero, 0, a / jnp.where(is_zero, 1, b))


def inverse(b):
    """What to multiply with instead of dividing by b; 0 where b is 0 (or below the least normal number).

    It serves all targets, and is one array to keep where `divide` takes two.
    """
    is_zero = jnp.abs(b) < jnp.finfo(b.dtype).tiny
    return jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, b))


def stabilise(z, eps: float):
    """z moved away from 0 by eps, to its own side (up where z is 0)."""
    return z + jnp.where(z < 0, -eps, eps).astype(z.dtype)


def positive(array):
    return None if array is None else jnp.maximum(array, 0)


def negative(array):
    return None if array is None else jnp.minimum(array, 0)


# --- conv and dense --------------------------------------------------------------------------------------------------


def zero(step: Step, R):
    """R_i = sum_j x_i w_ij R_j / z_j, with z of the forward pass (the bias keeps its share)."""
    return step.x * step.transposed(step.weight, R * inverse(step.z))


def epsilon(step: Step, R, *, eps: float = 1e-6):
    """LRP-0 with z pushed away from 0 by eps, which takes up relevance where z is small."""
    return step.x * step.transposed(step.weight, R * (1 / stabilise(step.z, eps)))


def gamma(step: Step, R, *, gamma: float = 0.25, eps: float = 1e-6):
    """LRP-0 of the weights w + gamma w+; made for inputs that are not negative."""
    weight = step.weight + gamma * positive(step.weight)
    z = step.op(step.x, weight)
    if step.bias is not None:
        z = z + (step.bias + gamma * positive(step.bias)).astype(z.dtype)
    return step.x * step.transposed(weight, R * (1 / stabilise(z, eps)))


def alpha_beta(step: Step, R, *, alpha: float = 2.0, beta: float = 1.0, bias: bool = True):
    """alpha times the share of positive contributions less beta times that of negative ones, alpha - beta = 1.

    Args:
        bias: whether the bias takes its share (its positive part among positive contributions), as Captum has it.
    """
    up, down = positive(step.weight), negative(step.weight)
    b_up, b_down = (positive(step.bias), negative(step.bias)) if bias else (None, None)
    out = alpha * _share(step, R, up, down, b_up)
    return out - beta * _share(step, R, down, up, b_down) if beta else out


def z_plus(step: Step, R, *, bias: bool = True):
    """Positive contributions alone: alpha 1, beta 0 with one normaliser."""
    return alpha_beta(step, R, alpha=1.0, beta=0.0, bias=bias)


def _share(step, R, w, w_of_negative, b):
    """x+ w and x- w_of_negative in proportion to their sum; half of the work where x is not negative."""
    if step.layer.is_nonnegative:
        s = R * inverse(_plus(step.op(step.x, w), b))
        return step.x * step.transposed(w, s)
    up, down = positive(step.x), negative(step.x)
    s = R * inverse(_plus(step.op(up, w) + step.op(down, w_of_negative), b))
    return up * step.transposed(w, s) + down * step.transposed(w_of_negative, s)


def _plus(z, b):
    return z if b is None else z + b.astype(z.dtype)


def z_box(step: Step, R, *, low=-1.0, high=1.0, eps: float = 1e-9):
    """z-box of the first layer, for inputs between bounds: z = x w - l w+ - h w-.

    Args:
        low: least value that an input can have, a number or an array that broadcasts to x; None: that of each image.
        high: largest value; None: that of each image.
    """
    x, axes = step.x, tuple(range(1, step.x.ndim))
    up, down = positive(step.weight), negative(step.weight)
    z = step.z if step.bias is None else step.z - step.bias.astype(step.z.dtype)
    low = jnp.min(x, axes, keepdims=True) if low is None else jnp.asarray(low, x.dtype)
    high = jnp.max(x, axes, keepdims=True) if high is None else jnp.asarray(high, x.dtype)
    for bound, weight in ((low, up), (high, down)):
        if bound.size in (1, x.shape[0]):  # one number an image: the layer is linear
            z = z - jnp.reshape(bound, (-1,) + (1,) * (z.ndim - 1)) * step.op(jnp.ones_like(x[:1]), weight)
        else:
            z = z - step.op(jnp.broadcast_to(bound, x.shape), weight)
    s = R * inverse(z + eps)
    low, high = (jnp.broadcast_to(bound, x.shape) for bound in (low, high))
    to_up, to_down = _both(step, up, down, s)
    return (x - low) * to_up + (x - high) * to_down


def _both(step, up, down, s):
    """The transposes with two sets of weights; as one convolution of twice the channels, where there are no groups."""
    first = step.layer.equations[0]
    if first.op != "conv_general_dilated" or first.params["feature_group_count"] != 1:
        return step.transposed(up, s), step.transposed(down, s)
    numbers = first.params["dimension_numbers"]
    weight = jnp.concatenate([up, down], axis=numbers.rhs_spec[1])
    out = step.transposed(weight, s, jnp.concatenate([step.x, step.x], axis=numbers.lhs_spec[1]))
    return jnp.split(out, 2, axis=numbers.lhs_spec[1])


def flat(step: Step, R):
    """Equal shares for all inputs in a receptive field, whatever x and w are."""
    like, weight, channels = jnp.ones_like(step.x[:1]), jnp.ones_like(step.weight), None
    first = step.layer.equations[0]
    if first.op == "conv_general_dilated" and first.params["feature_group_count"] == 1:
        # one channel in and out says it all: every input channel gets the same
        numbers = first.params["dimension_numbers"]
        channels = (numbers.lhs_spec[1], numbers.out_spec[1])
        like = jax.lax.slice_in_dim(like, 0, 1, axis=channels[0])
        for axis in numbers.rhs_spec[:2]:
            weight = jax.lax.slice_in_dim(weight, 0, 1, axis=axis)
        R = jnp.sum(R, axis=channels[1], keepdims=True) / step.x.shape[channels[0]]
    s = R * inverse(step.op(like, weight))
    return jnp.broadcast_to(step.transposed(weight, s, like), step.x.shape)


def w_square(step: Step, R):
    """Shares in proportion to the squared weights."""
    weight = jnp.square(step.weight)
    return step.transposed(weight, R * inverse(step.op(jnp.ones_like(step.x[:1]), weight)))


def focus_dense(step: Step, R, *, stabiliser: float = 0.25):
    """The Focus authors' dense rule: no bias, z + stabiliser * rms(z) whatever the sign of z.  Does not conserve."""
    z = step.op(step.x, step.weight)
    rms = jnp.sqrt(jnp.mean(jnp.square(z), axis=tuple(range(1, z.ndim)), keepdims=True))
    return step.x * step.transposed(step.weight, R * inverse(z + stabiliser * rms))


def focus_conv(step: Step, R):
    """The Focus authors' alpha 1, beta 0: x+ w+ and x- w- each normalised by itself, no bias.

    Relevance doubles where inputs of both signs contribute; it equals z+ without bias behind a ReLU.
    """
    up, down = positive(step.weight), negative(step.weight)
    if step.layer.is_nonnegative:
        return step.x * step.transposed(up, R * inverse(step.op(step.x, up)))
    x_up, x_down = positive(step.x), negative(step.x)
    out = x_up * step.transposed(up, R * inverse(step.op(x_up, up)))
    return out + x_down * step.transposed(down, R * inverse(step.op(x_down, down)))


# --- everything else -------------------------------------------------------------------------------------------------


def identity(step: Step, R):
    """All relevance to the (first) input, unchanged."""
    if R.shape != step.x.shape:
        R = jnp.broadcast_to(R, jnp.broadcast_shapes(R.shape, step.x.shape))
    return R.astype(step.x.dtype)


def absorbing(step: Step, R):
    """x a R / z with z = x a + |b| sign(x a): the shift of an affine layer takes its share of the relevance."""
    scaled = step.x if step.weight is None else step.x * step.weight
    if step.bias is None:
        return R.astype(step.x.dtype)
    return divide(scaled * R, scaled + jnp.abs(step.bias) * jnp.sign(scaled)).astype(step.x.dtype)


def proportional(step: Step, R, *, eps: float = 0.0):
    """x_k times the gradient of R / z, for each input: shares in proportion to first-order contributions."""
    s = R * (1 / stabilise(step.z, eps) if eps else inverse(step.z))
    _, pullback = jax.vjp(step.fn, *step.inputs)
    shares = tuple(x * share for x, share in zip(step.inputs, pullback((s.astype(step.z.dtype),))))
    return shares if len(shares) > 1 else shares[0]


def backward(step: Step, R):
    """The transpose: relevance goes where the values came from (moves), or to the winner (max-pool; x R / z)."""
    R = R if isinstance(R, tuple) else (R,)
    if step.layer.kind == "max_pool":
        R = (jnp.where(step.z == 0, 0, R[0]),)
    _, pullback = jax.vjp(step.fn, *step.inputs)
    shares = pullback(tuple(r.astype(z.dtype) for r, z in zip(R, step.outputs)))
    return shares if len(shares) > 1 else shares[0]


def signal(step: Step, R):
    """Of a gate: everything to the value that is weighted, nothing to the weights."""
    at = step.layer.signal
    return tuple(_unbroadcast(R, x) if i == at else None for i, x in enumerate(step.inputs))


def uniform(step: Step, R, *, eps: float = 1e-6):
    """Of a product or a matmul: half to each factor, by its contributions (AttnLRP, Eq. 13)."""
    return tuple(share / 2 for share in proportional(step, R, eps=eps))


def softmax(step: Step, R):
    """First-order Taylor expansion of softmax (AttnLRP, Eq. 14): x (R - s sum R)."""
    axes = next(e.params["axes"] for e in step.layer.equations if e.op == "reduce_sum")
    share = step.x * (R - step.z * jnp.sum(R, axis=axes, keepdims=True))
    return jnp.where(step.z == 0, 0, share)


def _unbroadcast(R, like):
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and R.shape[axis] != 1)
    return jnp.sum(R, axis=axes, keepdims=True) if axes else R

"""Rules of layer-wise relevance propagation: how a layer's relevance is shared out among its inputs.

A rule is `rule(step, R) -> relevance of the input`, or a tuple of them where a layer has several inputs (None: no
relevance); R has the shape of the layer's output.  Options are set with functools.partial.  `step` holds the arrays of
the forward pass, see `Step`; for a conv or dense layer z = op(x, w) + b, and op is linear in both.  a / b is 0 where b
is 0.  A rule works on one target at a time.

Each rule cites its source: Bach et al. 2015 (PLoS ONE 10(7):e0130140), Montavon et al. 2017 (Pattern Recognition 65,
arXiv:1512.02479), Montavon et al. 2019 ("Layer-Wise Relevance Propagation: An Overview", LNCS 11700), Lapuschkin et al.
2019 (arXiv:1902.10178), Arias-Duart et al. 2022 (arXiv:2109.15035, as their code has the rules), Achtibat et al. 2024
(AttnLRP, arXiv:2402.05602).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignment.errors import InputError, within
from alignment.explain import convolutions, layers

Relevance = jax.Array | tuple[jax.Array | None, ...]  # of one input, or of each; None: no relevance


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A layer with the arrays of one forward pass.

    Attributes:
        layer: name, kind and shapes.
        inputs: the arrays that depend on the image.
        outputs: the layer's results; one array, except for a split.
        fn: inputs -> tuple of outputs.
        op: (x, w) -> z of a conv or dense layer, without its bias.
        weight: of a conv or dense layer, batch norm folded; the factor of an affine layer (None: 1).
        bias: broadcasts to z; None: 0.
    """

    layer: layers.Layer
    inputs: tuple[jax.Array, ...]
    outputs: tuple[jax.Array, ...]
    fn: Callable[..., tuple[jax.Array, ...]]
    op: Callable[[jax.Array, jax.Array], jax.Array] = None  # type: ignore[assignment]  # conv and dense layers set it
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


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0."""
    is_zero = b == 0  # the inner where keeps 0 / 0 from being computed: its NaN would spread through a gradient
    return jnp.where(is_zero, 0, a / jnp.where(is_zero, 1, b))


def inverse(b: jax.Array) -> jax.Array:
    """1 / b, and 0 where b is (almost) 0, that is below the least normal number.

    All targets share it, and memory holds this one array where `divide` needs two.
    """
    # of a subnormal b, 1 / b would be infinite
    is_zero = jnp.abs(b) < jnp.finfo(b.dtype).tiny
    return jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, b))


def stabilise(z: jax.Array, eps: float) -> jax.Array:
    """z + eps where z >= 0 and z - eps elsewhere, so that a ratio over z never changes its sign."""
    return z + jnp.where(z < 0, -eps, eps).astype(z.dtype)


def positive(array: jax.Array) -> jax.Array:
    return jnp.maximum(array, 0)


def negative(array: jax.Array) -> jax.Array:
    return jnp.minimum(array, 0)


# --- conv and dense --------------------------------------------------------------------------------------------------


def zero(step: Step, R: jax.Array) -> jax.Array:
    """LRP-0 (Bach et al. 2015, Eq. 56): R_i = sum_j x_i w_ij R_j / z_j with z_j of the forward pass.

    The bias keeps its share b_j R_j / z_j.
    """
    return step.x * step.transposed(step.weight, R * inverse(step.z))


def epsilon(step: Step, R: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """LRP-epsilon (Bach et al. 2015, Eq. 58): R_i = sum_j x_i w_ij R_j / (z_j + eps sign(z_j)).

    Where z is as small as eps, epsilon absorbs relevance.
    """
    within("[0, inf)", eps=eps)
    return step.x * step.transposed(step.weight, R * (1 / stabilise(step.z, eps)))


def gamma(step: Step, R: jax.Array, *, gamma: float = 0.25, eps: float = 1e-6) -> jax.Array:
    """LRP-gamma (Montavon et al. 2019, section 10.2.1): LRP-epsilon of the weights w + gamma w+, biases alike.

    It is made for inputs that are not negative. gamma=0 is LRP-epsilon; a large gamma comes near z+.
    """
    within("[0, inf)", gamma=gamma, eps=eps)
    # the forward pass of the changed weights has its own z, so one more convolution is needed than for epsilon
    weight = step.weight + gamma * positive(step.weight)
    z = step.op(step.x, weight)
    if step.bias is not None:
        z = z + (step.bias + gamma * positive(step.bias)).astype(z.dtype)
    return step.x * step.transposed(weight, R * (1 / stabilise(z, eps)))


def alpha_beta(step: Step, R: jax.Array, *, alpha: float = 2.0, beta: float = 1.0, bias: bool = True) -> jax.Array:
    """LRP-alpha-beta (Bach et al. 2015, Eq. 60): R_i = sum_j (alpha c+_ij / z+_j - beta c-_ij / z-_j) R_j.

    c_ij = x_i w_ij are the contributions, c+ and c- their positive and negative parts, z+ and z- the sums of these.

    Args:
        alpha: weight of positive contributions.
        beta: weight of negative ones; relevance is conserved only where alpha - beta = 1.
        bias: whether the bias takes its share (its positive part among positive contributions), as Captum has it.

    Raises:
        InputError: a negative weight, or alpha - beta is not 1.
    """
    within("[0, inf)", alpha=alpha, beta=beta)
    if abs(alpha - beta - 1) > 1e-6:
        raise InputError(
            f"alpha={alpha}, beta={beta}: alpha - beta must be 1, or relevance does not sum to the logit; "
            f"beta={alpha - 1:g} goes with this alpha"
        )
    # x+ w+ and x- w- are the positive contributions, x+ w- and x- w+ the negative ones
    up, down = positive(step.weight), negative(step.weight)
    b_up, b_down = (positive(step.bias), negative(step.bias)) if bias and step.bias is not None else (None, None)
    out = alpha * _share(step, R, up, down, b_up)
    return out - beta * _share(step, R, down, up, b_down) if beta else out


def z_plus(step: Step, R: jax.Array, *, bias: bool = True) -> jax.Array:
    """z+ (Montavon et al. 2017): positive contributions alone, R_i = sum_j c+_ij R_j / z+_j.

    It is `alpha_beta` with alpha=1 and beta=0.
    """
    return alpha_beta(step, R, alpha=1.0, beta=0.0, bias=bias)


def _share(step: Step, R: jax.Array, w: jax.Array, w_of_negative: jax.Array, b: jax.Array | None) -> jax.Array:
    """Relevance by the contributions x+ w and x- w_of_negative, in proportion to their sum (with b)."""
    if step.layer.is_nonnegative:  # x- is 0 behind a ReLU, and half of the convolutions go
        s = R * inverse(_plus(step.op(step.x, w), b))
        return step.x * step.transposed(w, s)
    up, down = positive(step.x), negative(step.x)
    s = R * inverse(_plus(step.op(up, w) + step.op(down, w_of_negative), b))
    return up * step.transposed(w, s) + down * step.transposed(w_of_negative, s)


def _plus(z: jax.Array, b: jax.Array | None) -> jax.Array:
    return z if b is None else z + b.astype(z.dtype)


def z_box(
    step: Step,
    R: jax.Array,
    *,
    low: float | jax.Array | None = -1.0,
    high: float | jax.Array | None = 1.0,
    eps: float = 1e-9,
) -> jax.Array:
    """z-box of the first layer (Montavon et al. 2017, the z^B rule), for inputs between bounds l and h.

    R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) R_j / z_j, where z_j is the sum of the brackets over i.

    Args:
        low: l, the least value that an input can have; a number or an array that broadcasts to x. None: the least value
            of each image.
        high: h, the largest value; None: that of each image.

    Raises:
        InputError: bounds that hold nothing.
    """
    check_bounds(low, high)
    x, axes = step.x, tuple(range(1, step.x.ndim))
    up, down = positive(step.weight), negative(step.weight)
    # the bias has no share in this rule; taking it off the forward pass's z saves a convolution
    z = step.z if step.bias is None else step.z - step.bias.astype(step.z.dtype)
    low = jnp.min(x, axes, keepdims=True) if low is None else jnp.asarray(low, x.dtype)
    high = jnp.max(x, axes, keepdims=True) if high is None else jnp.asarray(high, x.dtype)
    for bound, weight in ((low, up), (high, down)):
        if bound.size in (1, x.shape[0]):  # one number an image: op is linear, so op(bound) = bound * op(1)
            z = z - jnp.reshape(bound, (-1,) + (1,) * (z.ndim - 1)) * step.op(jnp.ones_like(x[:1]), weight)
        else:
            z = z - step.op(jnp.broadcast_to(bound, x.shape), weight)
    s = R * inverse(z + eps)  # between the bounds no bracket is negative, so eps never meets a negative z
    low, high = (jnp.broadcast_to(bound, x.shape) for bound in (low, high))
    to_up, to_down = _both(step, up, down, s)
    return (x - low) * to_up + (x - high) * to_down


def check_bounds(low: object, high: object) -> None:
    """Refuses bounds of inputs that hold nothing; arrays are taken as they are."""
    if isinstance(low, int | float) and isinstance(high, int | float) and not low < high:
        raise InputError(f"low={low} and high={high}; inputs lie between them, so low must be the smaller")


def _both(step: Step, up: jax.Array, down: jax.Array, s: jax.Array) -> list[jax.Array]:
    """The transposes with two sets of weights.

    Without groups they are one convolution of twice the input channels, which reads s once.
    """
    first = step.layer.equations[0]
    if first.op != "conv_general_dilated" or first.params["feature_group_count"] != 1:
        return [step.transposed(up, s), step.transposed(down, s)]
    numbers = first.params["dimension_numbers"]
    weight = jnp.concatenate([up, down], axis=numbers.rhs_spec[1])
    out = step.transposed(weight, s, jnp.concatenate([step.x, step.x], axis=numbers.lhs_spec[1]))
    return jnp.split(out, 2, axis=numbers.lhs_spec[1])


def flat(step: Step, R: jax.Array) -> jax.Array:
    """Flat rule (Lapuschkin et al. 2019): equal shares for all inputs in a receptive field, whatever x and w are."""
    # op of ones counts the inputs of each output, fewer at the border, where padding takes no share
    like, weight, channels = jnp.ones_like(step.x[:1]), jnp.ones_like(step.weight), None
    first = step.layer.equations[0]
    if first.op == "conv_general_dilated" and first.params["feature_group_count"] == 1:
        # every input channel gets the same relevance, so a convolution of one channel computes it for all of them
        numbers = first.params["dimension_numbers"]
        channels = (numbers.lhs_spec[1], numbers.out_spec[1])
        like = jax.lax.slice_in_dim(like, 0, 1, axis=channels[0])
        for axis in numbers.rhs_spec[:2]:
            weight = jax.lax.slice_in_dim(weight, 0, 1, axis=axis)
        R = jnp.sum(R, axis=channels[1], keepdims=True) / step.x.shape[channels[0]]
    s = R * inverse(step.op(like, weight))
    return jnp.broadcast_to(step.transposed(weight, s, like), step.x.shape)


def w_square(step: Step, R: jax.Array) -> jax.Array:
    """w^2 rule (Montavon et al. 2017, Eq. 12): R_i = sum_j w_ij^2 R_j / sum_i' w_i'j^2."""
    weight = jnp.square(step.weight)
    return step.transposed(weight, R * inverse(step.op(jnp.ones_like(step.x[:1]), weight)))


def focus_dense(step: Step, R: jax.Array, *, stabiliser: float = 0.25) -> jax.Array:
    """The dense rule of the code of Arias-Duart et al. 2022: LRP-0 without bias over z + stabiliser * rms(z).

    The stabiliser has the same sign whatever the sign of z.  This rule does not conserve relevance.
    """
    z = step.op(step.x, step.weight)
    # over all units of an image, as in their code; it makes the rule depend on units that are not connected
    rms = jnp.sqrt(jnp.mean(jnp.square(z), axis=tuple(range(1, z.ndim)), keepdims=True))
    return step.x * step.transposed(step.weight, R * inverse(z + stabiliser * rms))


def focus_conv(step: Step, R: jax.Array) -> jax.Array:
    """The alpha 1, beta 0 of the code of Arias-Duart et al. 2022: x+ w+ and x- w- each normalised alone, no bias.

    Relevance doubles where inputs of both signs contribute; it equals z+ without bias behind a ReLU.
    """
    up, down = positive(step.weight), negative(step.weight)
    if step.layer.is_nonnegative:
        return step.x * step.transposed(up, R * inverse(step.op(step.x, up)))
    x_up, x_down = positive(step.x), negative(step.x)
    out = x_up * step.transposed(up, R * inverse(step.op(x_up, up)))
    return out + x_down * step.transposed(down, R * inverse(step.op(x_down, down)))


# --- everything else -------------------------------------------------------------------------------------------------


def identity(step: Step, R: jax.Array) -> jax.Array:
    """All relevance goes to the (first) input, unchanged; for norms this is AttnLRP's rule (Achtibat et al. 2024)."""
    if R.shape != step.x.shape:  # an elementwise function of x and a larger constant
        R = jnp.broadcast_to(R, jnp.broadcast_shapes(R.shape, step.x.shape))
    return R.astype(step.x.dtype)


def absorbing(step: Step, R: jax.Array) -> jax.Array:
    """x a R / z with z = x a + |b| sign(x a): the shift of an affine layer takes its share of the relevance."""
    scaled = step.x if step.weight is None else step.x * step.weight
    if step.bias is None:
        return R.astype(step.x.dtype)
    return divide(scaled * R, scaled + jnp.abs(step.bias) * jnp.sign(scaled)).astype(step.x.dtype)


def proportional(step: Step, R: jax.Array, *, eps: float = 0.0) -> Relevance:
    """x_k times the gradient of R / z, for each input: shares in proportion to first-order contributions.

    On a linear layer this is LRP-0, or LRP-epsilon with an eps.
    """
    within("[0, inf)", eps=eps)
    s = R * (1 / stabilise(step.z, eps) if eps else inverse(step.z))  # a stabilised z is never 0
    _, pullback = jax.vjp(step.fn, *step.inputs)
    shares = tuple(x * share for x, share in zip(step.inputs, pullback((s.astype(step.z.dtype),))))
    return shares if len(shares) > 1 else shares[0]


def backward(step: Step, R: jax.Array | tuple[jax.Array, ...]) -> Relevance:
    """The transpose: relevance goes where the values came from (moves), or to the winner (max-pool; x R / z)."""
    parts = R if isinstance(R, tuple) else (R,)
    if step.layer.kind == "max_pool":
        parts = (jnp.where(step.z == 0, 0, parts[0]),)  # x R / z is 0 where the winner is 0, behind a ReLU often
    _, pullback = jax.vjp(step.fn, *step.inputs)
    shares = pullback(tuple(part.astype(z.dtype) for part, z in zip(parts, step.outputs)))
    return shares if len(shares) > 1 else shares[0]


def signal(step: Step, R: jax.Array) -> Relevance:
    """All relevance of a gate goes to the value that is weighted, none to the weights."""
    at = step.layer.signal
    return tuple(_unbroadcast(R, x) if i == at else None for i, x in enumerate(step.inputs))


def uniform(step: Step, R: jax.Array, *, eps: float = 1e-6) -> Relevance:
    """Half of a product's or a matmul's relevance to each factor, by its contributions (AttnLRP, Eq. 13)."""
    shares = proportional(step, R, eps=eps)
    if not isinstance(shares, tuple):  # both factors are one value (a Gram matrix), to which both halves go
        return shares / 2
    return tuple(share / 2 for share in shares if share is not None)


def softmax(step: Step, R: jax.Array) -> jax.Array:
    """First-order Taylor expansion of softmax (AttnLRP, Eq. 14): x (R - s sum R)."""
    axes = next(e.params["axes"] for e in step.layer.equations if e.op == "reduce_sum")
    share = step.x * (R - step.z * jnp.sum(R, axis=axes, keepdims=True))
    return jnp.where(step.z == 0, 0, share)  # a masked token has z = 0 and x = -inf, an infinite share


def _unbroadcast(R: jax.Array, like: jax.Array) -> jax.Array:
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and R.shape[axis] != 1)
    return jnp.sum(R, axis=axes, keepdims=True) if axes else R

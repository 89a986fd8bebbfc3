"""Transposes of convolutions and max-pools, in the form that is fastest where it runs.

XLA's own transpose of a strided convolution inserts zeros; with few input channels (the image) that is slow on a CPU,
and S x S interleaved outputs of one convolution without a stride are two to three times faster.

Its transpose of a max-pool (select-and-scatter) looks for the winners again for every target, and one by one on a CPU;
numbering the winners once, then padding once for each place in the window, is two times faster, six with four targets.

Dimensions: N images, Y X rows and columns of the input, P Q of the output, I O their channels, S T strides and taps.
"""

import itertools
import math

import jax
import jax.numpy as jnp

_WINDOW = 25  # places in a window that are compared one by one
_NARROW = 64  # channels of the interleaved form up to which it is the faster one
_NHWC = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def linear(op, equation, w: jax.Array, s: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """The transpose of x -> op(x, w) at s; x has the given shape, `equation` is the op's own."""
    is_conv = equation.op == "conv_general_dilated"
    if is_conv and jax.default_backend() == "cpu" and _is_narrow(equation.params, w, shape):
        return strided(w, s, shape, equation.params["window_strides"], equation.params["padding"])
    return jax.linear_transpose(lambda x: op(x, w), jax.ShapeDtypeStruct(shape, dtype))(s)[0]


def _is_narrow(params, w, shape) -> bool:
    """Whether it is a strided two-dimensional convolution of few channels, without groups or dilation."""
    strides = params["window_strides"]
    return (
        len(shape) == 4
        and tuple(map(tuple, params["dimension_numbers"])) == _NHWC
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) == set(params["rhs_dilation"]) == {1}
        and strides[0] * strides[1] > 1
        and w.shape[2] * strides[0] * strides[1] <= _NARROW
        and min(w.shape[:2]) >= max(strides)
    )


def strided(w_YXIO, s_NPQO, shape, strides, padding):
    """The transpose of a strided NHWC convolution as one convolution without a stride.

    Input row i gets s[q - t] w[r + S t] with i + padding = S q + r: for each remainder r a convolution of every S-th
    row of the kernel, so all S remainders together are S times the channels, interleaved afterwards.
    """
    (N, Y, X, I), (S0, S1) = shape, strides
    T0, T1 = (-(-k // s) for k, s in zip(w_YXIO.shape[:2], strides))
    P, Q = (-(-(n + low) // s) for n, (low, _), s in zip((Y, X), padding, strides))
    short = [(0, s * t - k) for s, t, k in zip(strides, (T0, T1), w_YXIO.shape[:2])]
    w = jnp.pad(w_YXIO, [*short, (0, 0), (0, 0)]).reshape(T0, S0, T1, S1, I, -1)[::-1, :, ::-1]
    w = w.transpose(0, 2, 5, 1, 3, 4).reshape(T0, T1, -1, S0 * S1 * I)
    edges = [(T0 - 1, P - s_NPQO.shape[1]), (T1 - 1, Q - s_NPQO.shape[2])]
    out = jax.lax.conv_general_dilated(s_NPQO, w, (1, 1), edges, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    out = out.reshape(N, P, Q, S0, S1, I).transpose(0, 1, 3, 2, 4, 5).reshape(N, P * S0, Q * S1, I)
    (y, _), (x, _) = padding
    return out[:, y : y + Y, x : x + X]


def max_pool(equation, x: jax.Array, R: jax.Array) -> jax.Array | None:
    """R of each window given to the first of its largest places; None for windows that are not simple."""
    params = equation.params
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    is_dilated = {1} != set(params["base_dilation"]) | set(params["window_dilation"])
    if is_dilated or math.prod(window) > _WINDOW or min(min(edges) for edges in padding) < 0:
        return None
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)
    places = [
        (place, [p + (n - 1) * s + 1 for p, n, s in zip(place, R.shape, strides)])
        for place in itertools.product(*map(range, window))
    ]
    # a winner by number: equality with the maximum could miss, where the compiler computes x twice and rounds otherwise
    largest, winner = jax.lax.slice(padded, *places[0], strides), jnp.zeros(R.shape, jnp.int8)
    for number, (place, last) in enumerate(places[1:], 1):
        here = jax.lax.slice(padded, place, last, strides)
        winner = jnp.where(here > largest, jnp.int8(number), winner)
        largest = jnp.maximum(largest, here)
    out = jnp.zeros(padded.shape, R.dtype)
    for number, (place, last) in enumerate(places):
        edges = [(p, n - end, s - 1) for p, n, end, s in zip(place, padded.shape, last, strides)]
        out = out + jax.lax.pad(jnp.where(winner == number, R, 0), jnp.zeros((), R.dtype), edges)
    return jax.lax.slice(out, [low for low, _ in padding], [low + n for (low, _), n in zip(padding, x.shape)])

"""Convolutions, max-pools and their input gradients in forms that run fast on CPUs.  Dimensions: N images, Y X rows and
columns, I J rows and columns of an output, C channels in, O channels out, W window positions.

They give the numbers of `jax.vjp` of the lax primitives, from the parameters of the traced equation, but:

- the flipped kernel of a transposed convolution is a value of its own, so it can be made once for many batches;
- a strided convolution from few channels (an image's three) is transposed by phases: one dense convolution makes the
  stride x stride pixels of each output position as channels.  With zeros between the rows, as XLA does it, most
  products are with zero (ResNet-18's first layer at 448 pixels on two cores: 10 ms by phases, 23 ms with zeros);
- max-pooling remembers the winner of each window, and its transpose is a few selections.  XLA's
  scatter goes through windows one by one (ResNet's pool at 448 pixels on two cores: 3 ms for both, 68 ms by scatter).

Other layouts than images [N,Y,X,C] and kernels [Y,X,C,O], groups and dilation take the general way; so do transposed
convolutions on other backends than the CPU, whose libraries recognise the form that lax writes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

FEW_CHANNELS = 16  # in: up to here phases are faster than zeros in between; measured for 3 and 64
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv(x: jax.Array, kernel: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution of a traced equation with these `params`."""
    # a traced equation records its shapes, which need not be those of x and kernel here
    params = {name: value for name, value in params.items() if name not in ("lhs_shape", "rhs_shape")}
    return lax.conv_general_dilated_p.bind(x, kernel, **params)


def transposed(gradient: jax.Array, kernel: jax.Array, params: dict[str, Any], shape: tuple[int, ...]) -> jax.Array:
    """The gradient of a convolution's input from that of its output.

    Args:
        gradient: of the output; its images need not be as many as those of the forward pass.
        kernel: as in the forward pass.
        params: of the equation, conv_general_dilated.
        shape: of the input; the first number is not read.
    """
    shape = (gradient.shape[0], *shape[1:])
    if not is_plain(params) or jax.default_backend() != "cpu":
        x = jax.ShapeDtypeStruct(shape, gradient.dtype)
        (out,) = jax.linear_transpose(lambda x: conv(x, kernel, params), x)(gradient)
        return out
    strides, padding = params["window_strides"], params["padding"]
    is_phased = max(strides) > 1 and kernel.shape[2] <= FEW_CHANNELS
    form = _by_phases if is_phased else _by_zeros
    return form(gradient, kernel, strides, padding, shape, params["precision"])


def is_plain(params: dict[str, Any]) -> bool:
    """Whether the convolution is of images [N,Y,X,C] by kernels [Y,X,C,O], without groups or dilation."""
    groups = (params["feature_group_count"], params["batch_group_count"])
    is_dilated = any(factor != 1 for factor in (*params["lhs_dilation"], *params["rhs_dilation"]))
    return tuple(params["dimension_numbers"]) == tuple(NHWC) and groups == (1, 1) and not is_dilated


def _by_zeros(
    gradient_NIJO: jax.Array,
    kernel_YXCO: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    shape: tuple[int, ...],
    precision: Any,
) -> jax.Array:
    """A convolution with the flipped kernel; a stride becomes zeros between rows (`lhs_dilation`)."""
    flipped_YXOC = kernel_YXCO[::-1, ::-1].swapaxes(2, 3)
    pads = []
    for axis in (0, 1):
        window, before = kernel_YXCO.shape[axis], kernel_YXCO.shape[axis] - 1 - padding[axis][0]
        spread = (gradient_NIJO.shape[1 + axis] - 1) * strides[axis] + 1
        pads.append((before, shape[1 + axis] + window - 1 - before - spread))
    return lax.conv_general_dilated(
        gradient_NIJO, flipped_YXOC, (1, 1), pads, lhs_dilation=strides, dimension_numbers=NHWC, precision=precision
    )


def _by_phases(
    gradient_NIJO: jax.Array,
    kernel_YXCO: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    shape: tuple[int, ...],
    precision: Any,
) -> jax.Array:
    """A strided convolution transposed without zeros in between.

    With stride s, input row s q + r contributes to output row q + d through tap t where s d = r + before - t. So the
    rows of each phase r need a kernel of every s-th tap. These s x s kernels become one with s x s times the channels,
    and the channels of its output are put side by side as pixels.
    """
    (sy, sx), (N, Y, X, C) = strides, shape
    # zeros in front of the taps and behind them make their number a multiple of the stride: m taps for each phase
    splits = [_phases(kernel_YXCO.shape[a], strides[a], padding[a][0]) for a in (0, 1)]
    (_, my, last_y), (_, mx, last_x) = splits
    fill = [(front, s * m - k - front) for (front, m, _), s, k in zip(splits, strides, kernel_YXCO.shape)]
    taps = jnp.pad(kernel_YXCO, (*fill, (0, 0), (0, 0))).reshape(my, sy, mx, sx, *kernel_YXCO.shape[2:])
    # flipped over the m taps, with the phases moved to the channels: [my, mx, O, sy, sx, C]
    taps = taps[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(my, mx, -1, sy * sx * C)
    rows, columns = -(-Y // sy), -(-X // sx)
    pads = [
        (my - 1 - last_y, rows - gradient_NIJO.shape[1] + last_y),
        (mx - 1 - last_x, columns - gradient_NIJO.shape[2] + last_x),
    ]
    out = lax.conv_general_dilated(gradient_NIJO, taps, (1, 1), pads, dimension_numbers=NHWC, precision=precision)
    # phases from channels to pixels; what lies past the image is cut off
    out = out.reshape(N, rows, columns, sy, sx, C).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(N, rows * sy, columns * sx, C)[:, :Y, :X]


def _phases(window: int, stride: int, before: int) -> tuple[int, int, int]:
    """Taps of zeros to put in front, number of output rows that an input row contributes to, and the last d of them."""
    front = -before % stride
    return front, -(-(window + front) // stride), (before + front) // stride


def channel_sum(x: jax.Array) -> jax.Array:
    """The sum over the last axis."""
    # On CPUs XLA's reduction over an axis as short as a picture's channels is slow (benchmarks/focus.py, two cores, LRP
    # for four classes: 384 ms with it, 329 ms when the channels are added one by one).
    if not 0 < x.shape[-1] <= 4:
        return jnp.sum(x, axis=-1)
    first, *others = (x[..., c] for c in range(x.shape[-1]))
    return sum(others, first)


# --- max-pooling -----------------------------------------------------------------------------------------------------


def is_plain_pool(params: dict[str, Any]) -> bool:
    """Whether a reduce_window_max is over rows and columns of images [N,Y,X,C], without dilation."""
    window = params["window_dimensions"]
    is_dilated = any(factor != 1 for factor in (*params["base_dilation"], *params["window_dilation"]))
    is_inside = len(window) == 4 and window[0] == window[3] == 1 and params["window_strides"][0] == 1
    return is_inside and params["window_strides"][3] == 1 and not is_dilated and window[1] * window[2] <= 127


def max_pool(x_NYXC: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The maxima of reduce_window_max, with a faster gradient."""

    @jax.custom_vjp
    def pool(x_NYXC):
        return winners(x_NYXC, params)[0]

    def forward(x_NYXC):
        best_NIJC, winner_NIJC = winners(x_NYXC, params)
        return best_NIJC, (winner_NIJC, x_NYXC[:0])  # the backward pass needs x's shape only, so no memory is spent

    def backward(residuals, gradient_NIJC):
        winner_NIJC, like = residuals
        return (unpool(gradient_NIJC, winner_NIJC, params, like.shape),)

    pool.defvjp(forward, backward)
    return pool(x_NYXC)


def winners(x_NYXC: jax.Array, params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The maxima, and the position in its window of each (counted row by row; of equals the first)."""
    first, *others = _windows(x_NYXC, params)
    # positions as float32, so that `_once` can divide them; up to 127 of them (`is_plain_pool`), which are exact
    best_NIJC, winner_NIJC = first, jnp.zeros(first.shape, jnp.float32)
    for i, value_NIJC in enumerate(others, 1):
        winner_NIJC = jnp.where(value_NIJC > best_NIJC, i, winner_NIJC)
        best_NIJC = jnp.maximum(best_NIJC, value_NIJC)
    return best_NIJC, _once(winner_NIJC)


def unpool(
    gradient_NIJC: jax.Array, winner_NIJC: jax.Array, params: dict[str, Any], shape: tuple[int, ...]
) -> jax.Array:
    """The gradient of a max-pool's input: each output's goes to the winner of its window.

    Args:
        gradient_NIJC: of the output.
        winner_NIJC: from `winners`.
        params: of the equation, reduce_window_max.
        shape: of the input; the first number is not read.
    """
    (_, ky, kx, _), (_, sy, sx, _) = params["window_dimensions"], params["window_strides"]
    (_, (py, _), (px, _), _) = params["padding"]
    N, I, J, C = gradient_NIJC.shape
    rows, columns = -(-shape[1] // sy), -(-shape[2] // sx)
    gradient_NIJC = _once(gradient_NIJC)  # every pixel phase reads it, ky kx times in all

    def pixels(r, c):
        """Gradients of every sy-th row from r and every sx-th column from c: a sum over the windows they are in."""
        total = jnp.zeros((N, rows, columns, C), gradient_NIJC.dtype)
        for ty in range((r + py) % sy, ky, sy):
            for tx in range((c + px) % sx, kx, sx):
                dy, dx = (r + py - ty) // sy, (c + px - tx) // sx  # row sy q + r is tap ty of window q + dy
                won = jnp.where(winner_NIJC == ty * kx + tx, gradient_NIJC, 0)
                edges = ((0, 0, 0), (-dy, rows - I + dy, 0), (-dx, columns - J + dx, 0), (0, 0, 0))
                total += lax.pad(won, jnp.zeros((), won.dtype), edges)
        return total

    grid = jnp.stack([jnp.stack([pixels(r, c) for c in range(sx)], 3) for r in range(sy)], 2)
    return grid.reshape(N, rows * sy, columns * sx, C)[:, : shape[1], : shape[2]]


def _once(x: jax.Array) -> jax.Array:
    """The same array, computed once.

    XLA fuses an operation that it considers cheap into each of its readers, and so computes it several times. It does
    not do so with a division, which it considers expensive; here x is divided by a 1 that XLA cannot know when it
    compiles. If XLA changes its mind, only speed is lost.
    """
    first = x[(0,) * x.ndim]
    zero = jnp.minimum(jnp.abs(jnp.where(jnp.isnan(first), 0, first)), 0)  # 0 for infinite and large values too
    return x / (zero + 1).astype(x.dtype)


def _windows(x_NYXC: jax.Array, params: dict[str, Any]) -> list[jax.Array]:
    """The input at each position of the window, [N,I,J,C] each; padding is the lowest value, so that it never wins."""
    (_, ky, kx, _), (_, sy, sx, _) = params["window_dimensions"], params["window_strides"]
    lowest = jnp.array(-jnp.inf if jnp.issubdtype(x_NYXC.dtype, jnp.floating) else jnp.iinfo(x_NYXC.dtype).min)
    x_NYXC = lax.pad(x_NYXC, lowest.astype(x_NYXC.dtype), [(*pads, 0) for pads in params["padding"]])
    N, Y, X, C = x_NYXC.shape
    last_y, last_x = (Y - ky) // sy * sy, (X - kx) // sx * sx
    return [
        lax.slice(x_NYXC, (0, ty, tx, 0), (N, ty + last_y + 1, tx + last_x + 1, C), (1, sy, sx, 1))
        for ty in range(ky)
        for tx in range(kx)
    ]

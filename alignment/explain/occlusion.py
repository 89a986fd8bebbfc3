"""Occlusion: the drop of the score when a window of the image is hidden.

Dimensions: N images, K targets an image, Y X rows and columns, C channels (classes in logits), W windows, S of them in
one pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError, one_of
from alignment.explain import gradients, steps

SCORES = {"logit": lambda logits_NC: logits_NC, "probability": jax.nn.softmax}


def starts(size: int, window: int, stride: int) -> np.ndarray:
    """First rows of the windows that slide over `size` rows; the last one may reach past the edge."""
    return np.arange(0, 1 + -(-max(size - window, 0) // stride)) * stride


def pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Rows and columns from one number or two."""
    rows_columns = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(rows_columns) != 2 or min(rows_columns) < 1:
        raise InputError(f"{name}={value!r} is neither a number of pixels nor (rows, columns), each at least 1")
    return int(rows_columns[0]), int(rows_columns[1])


def _scores(apply_fn, variables, x_NYXC, targets_NK, score):
    return gradients.pick(SCORES[score](gradients.logits(apply_fn, variables, x_NYXC)), targets_NK)


def _step(static, arrays, step_S, valid_S):
    apply_fn, score, (rows, columns) = static
    variables, x_NYXC, targets_NK, fill_NYXC, corner_W2 = arrays
    num_images, height, width, _ = x_NYXC.shape
    # Windows are made on the device from their corners: only two numbers a window travel, not masks.
    down_SY = jnp.arange(height)[None] - corner_W2[step_S, :1]
    right_SX = jnp.arange(width)[None] - corner_W2[step_S, 1:]
    in_SY, in_SX = (down_SY >= 0) & (down_SY < rows), (right_SX >= 0) & (right_SX < columns)
    hidden_SYX = in_SY[:, :, None] & in_SX[:, None, :]
    # All windows of a pass and all images in one batch.
    x_SNYXC = jnp.where(hidden_SYX[:, None, :, :, None], fill_NYXC[None], x_NYXC[None])
    flat = x_SNYXC.reshape(-1, *x_NYXC.shape[1:])
    scores = _scores(apply_fn, variables, flat, jnp.tile(targets_NK, (len(step_S), 1)), score)
    # each pixel collects the scores of the windows over it, and their number, to take the mean at the end
    counted_SYX = hidden_SYX * valid_S[:, None, None]
    return jnp.einsum(
        "snk,syx->nkyx", scores.reshape(-1, num_images, targets_NK.shape[1]), counted_SYX
    ), counted_SYX.sum(0)


def relevance(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float | jax.Array = 0.0,
    score: str = "logit",
    driver: str | None = None,
    per_pass: int = 1,
) -> jax.Array:
    """Zeiler & Fergus 2014 (arXiv:1311.2901): the drop of the score, averaged over the windows that hide a pixel.

    Args:
        window: pixels hidden at a time; None takes an eighth of each side.
        stride: pixels from one window to the next; None takes half a window. Windows past the edge are cut off.
        fill: value of hidden pixels, in the units of x: a number, or an array that broadcasts to x_NYXC (last axes).
        score: "logit" or "probability" (softmax).
        driver: see `steps`.
        per_pass: windows that go through the network together.

    Returns:
        maps_NKYX, in units of the score; positive where the score needs the pixel. Pixels that no window reaches are 0.
    """
    one_of("score", score, SCORES)
    height, width = x_NYXC.shape[1:3]
    rows, columns = pair(window if window is not None else (-(-height // 8), -(-width // 8)), "window")
    down, right = pair(stride if stride is not None else (-(-rows // 2), -(-columns // 2)), "stride")
    if rows > height or columns > width:
        raise InputError(f"a window of {rows} x {columns} pixels does not fit in images of {height} x {width}")
    grid = np.meshgrid(starts(height, rows, down), starts(width, columns, right), indexing="ij")
    corner_W2 = np.stack(grid, axis=-1).reshape(-1, 2).astype(np.int32)
    fill_NYXC = gradients.like_images(fill, x_NYXC, "fill")
    static = (steps.hashable(apply_fn), score, (rows, columns))
    arrays = (variables, x_NYXC, targets_NK, fill_NYXC, jnp.asarray(corner_W2))
    hidden_NKYX, count_YX = steps.total(_step, static, arrays, len(corner_W2), driver=driver, per_pass=per_pass)
    whole_NK = jax.jit(_scores, static_argnums=(0, 4))(static[0], variables, x_NYXC, targets_NK, score)
    # A pixel that no window reached would divide by 0; the last line gives it 0.
    count = jnp.maximum(count_YX, 1)[None, None]
    drop_NKYX = whole_NK[:, :, None, None] - hidden_NKYX / count
    return jnp.where(count_YX[None, None] > 0, drop_NKYX, 0.0)

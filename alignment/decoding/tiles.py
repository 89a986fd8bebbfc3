"""Matrices in tiles of 64 columns, each one piece of memory, as a CPU's products of a few rows like to read them.

XLA's library of products walks the columns in strips of 64. In an ordinary matrix every row of a strip lies on a page
of its own, and for 2 to 16 rows the product waits for memory, which it does less where each strip is a tile. The tiles
are the axis of a batch, so the input has to be repeated for each of them; a head's hundreds of tiles are worth that for
few rows only. It saves CPU time; that it saves time on two cores is not shown (benchmarks/RESULTS.md).

Dimensions: N rows, X inputs and Y outputs of a matrix, C = Y / WIDTH tiles, W = WIDTH.
"""

import jax
import jax.numpy as jnp

WIDTH = 64
HEAD_ROWS = range(2, 17)  # one row reads an ordinary matrix at full speed; for many, repeating them costs too much


def cut(kernel_XY: jax.Array) -> jax.Array:
    """The matrix in tiles [C,X,W]; as it is where the tiles would not be whole, or off the CPU."""
    X, Y = kernel_XY.shape
    if Y % WIDTH or jax.default_backend() != "cpu":
        return kernel_XY
    return kernel_XY.reshape(X, -1, WIDTH).transpose(1, 0, 2)


def times(x_NX: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """The product [N,Y] with a matrix [X,Y] or its tiles.

    Args:
        dtype: of sums and result; None: the input's.
    """
    if kernel.ndim == 2:
        return jnp.matmul(x_NX, kernel, preferred_element_type=dtype)
    x_CNX = jnp.broadcast_to(x_NX[None], (len(kernel), *x_NX.shape))
    out_CNW = jax.lax.dot_general(x_CNX, kernel, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype)
    return out_CNW.transpose(1, 0, 2).reshape(len(x_NX), -1)

"""Count sketches and tensor sketches as arrays.

Sources: Charikar, Chen and Farach-Colton 2002 (count sketch); Pham and Pagh 2013 (tensor sketch); Ding et al. 2022,
arXiv:2406.15575 (their use in graph networks).

Dimensions: N nodes, C rows of a sketch, D features, K orders of the polynomial, B requested nodes.
"""

import jax
import jax.numpy as jnp


def count_sketch(x_ND: jax.Array, bucket_N: jax.Array, value_N: jax.Array, width: int) -> jax.Array:
    """R X: row h(j) of the result [C,D] sums value(j) X_j over the nodes of that bucket."""
    return jax.ops.segment_sum(value_N[:, None] * x_ND, bucket_N, num_segments=width)


def unsketch(sketch_CD: jax.Array, bucket_B: jax.Array, value_B: jax.Array) -> jax.Array:
    """Rows [B,D] of R^T S for the requested nodes, at a cost that does not know N."""
    return value_B[:, None] * sketch_CD[bucket_B]


def tensor_sketches(sketch_KCD: jax.Array) -> jax.Array:
    """Sketches of z, z (x) z, ... from K independent count sketches of z: [K,C,D], order k at k - 1.

    Order k is irfft(prod_{p <= k} rfft(S_p)): element t of z (x) ... (x) z goes to bucket sum_p h_p(t_p) mod C with the
    product of the signs.
    """
    width = sketch_KCD.shape[1]
    out = [sketch_KCD[0]]
    if len(sketch_KCD) == 1:
        return sketch_KCD
    product = jnp.fft.rfft(sketch_KCD[0], axis=0)
    for k in range(1, len(sketch_KCD)):
        product = product * jnp.fft.rfft(sketch_KCD[k], axis=0)
        # Without n an odd width comes back one row short: rfft of C and of C - 1 rows may have as many terms.
        out.append(jnp.fft.irfft(product, n=width, axis=0))
    return jnp.stack(out)

"""One step over the cache's blocks by JAX's paged attention, a kernel for TPUs.

The kernel reads pages of keys and values that a table names, and stops at each sequence's own length. The cache is that
of `network`, except that keys lie as values do, `[N,B,G,C,K]`: a block of one slot and one key/value head is then a
page, and each slot and head is a sequence with a head of its own. So blocks are written, copied for a shared prefix and
cleaned as ever, and the table is a count.

The kernel takes one query a sequence. Chunks of a prompt walk the blocks (`network.walk`): splash, the TPU's kernel for
whole sequences, wants a mask that is known when it is compiled, and a chunk begins at a traced position.

A sequence's result comes from its own pages, in groups whose size is fixed when the step is compiled. What other slots
hold decides nothing but what is fetched ahead.

Dimensions: N blocks of C positions, R slots, G key/value heads, H query heads, K head width, Q = R*G sequences, M = H/G
queries of each.
"""

import jax
import jax.numpy as jnp

POSITIONS = 512  # that the kernel multiplies at once, at most; a guess that nobody has tuned


def attend(q_R1HK: jax.Array, cache: dict[str, jax.Array], lengths_R: jax.Array) -> jax.Array:
    """Softmax attention of each slot's query over its first `lengths_R` positions, at least one; [R,1,H*K].

    Args:
        cache: of a layer, with R slots. The kernel rounds keys and values to bfloat16.
    """
    # Imported here, because Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    R, _, H, K = q_R1HK.shape
    N, _, G, C, _ = cache["keys"].shape
    keys, values = (cache[name].reshape(1, -1, C, K) for name in ("keys", "values"))
    table_QN = jnp.arange(N * R * G, dtype=jnp.int32).reshape(N, R * G).T
    # The kernel leaves the scale to its caller and keeps its sums in the type of the queries.
    q_QMK = (q_R1HK.astype(jnp.float32) * K**-0.5).reshape(R * G, H // G, K)
    out_QMK = paged_attention(
        q_QMK,
        keys,
        values,
        jnp.repeat(lengths_R, G),
        table_QN,
        pages_per_compute_block=pages_at_once(N, C),
    )
    return out_QMK.astype(q_R1HK.dtype).reshape(R, 1, H * K)


def pages_at_once(num_blocks: int, block: int) -> int:
    """The most blocks that the kernel may multiply together: a divisor of their number."""
    return max(d for d in range(1, num_blocks + 1) if num_blocks % d == 0 and (d == 1 or d * block <= POSITIONS))

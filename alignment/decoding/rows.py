"""A cache of whole rows, for fused attention kernels, in place of the blocks of `network`.

Walking blocks in a loop suits a CPU, where a step then costs what its longest live row needs. A GPU would rather run
one kernel for each layer, and NVIDIA's (cuDNN, through `jax.nn.dot_product_attention`) reads keys and values as
`[B,S,G,K]` and stops at each row's own length. It takes half precision and one query a row, and no window; `kernels`
says where it is chosen.

A layer's cache is `keys` and `values` [1,B,S,G,K]: the leading axis makes it one block of all positions, so that what
copies and cleans blocks serves it as well.

Dimensions: B slots, R rows of one call, T tokens of a row, S positions of a row, G key/value heads, H query heads, K
head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from alignment.models import decoder

BLOCKS, PAGED, CUDNN, XLA = "blocks", "paged", "cudnn", "xla"
WHOLE = (CUDNN, XLA)  # those over the cache of this file


def init(
    model: decoder.DecoderLM, num_slots: int, max_len: int, *, place: NamedSharding | None = None
) -> list[dict[str, jax.Array]]:
    """An empty cache, a dict of keys and values for every layer."""
    shape = (1, num_slots, max_len, model.num_kv_heads or model.num_heads, model._head_dim())
    return [
        {name: jnp.zeros(shape, model.dtype, device=place) for name in ("keys", "values")}
        for _ in range(model.num_layers)
    ]


def write(
    cache: dict[str, jax.Array],
    k_RTGK: jax.Array,
    v_RTGK: jax.Array,
    positions_RT: jax.Array,
    first_row: jax.Array | int,
) -> dict[str, jax.Array]:
    """The cache of a layer with these tokens in it, at consecutive positions of neighbouring rows."""
    rows_R1 = first_row + jnp.arange(k_RTGK.shape[0])[:, None]
    options: dict[str, Any] = dict(mode="promise_in_bounds", unique_indices=True)
    entries = {"keys": k_RTGK, "values": v_RTGK}
    return {name: cache[name].at[0, rows_R1, positions_RT].set(new, **options) for name, new in entries.items()}


def attend(
    q_RTHK: jax.Array,
    cache: dict[str, jax.Array],
    positions_RT: jax.Array,
    first_row: jax.Array | int,
    kernel: str,
) -> jax.Array:
    """Softmax attention of every query over the positions up to its own, [R,T,H*K]."""
    R, T, H, K = q_RTHK.shape
    k_RSGK, v_RSGK = (jax.lax.dynamic_slice_in_dim(cache[name][0], first_row, R) for name in ("keys", "values"))
    options: dict[str, Any] = dict(key_value_seq_lengths=positions_RT[:, 0] + 1, implementation=kernel)
    if T > 1:  # a chunk of a prompt: cuDNN's causal mask begins at position 0, and these queries do not
        seen_R1TS = jnp.arange(k_RSGK.shape[1])[None, None, None] <= positions_RT[:, None, :, None]
        options = dict(mask=seen_R1TS, implementation=XLA)
    out_RTHK: Any = jax.nn.dot_product_attention(q_RTHK, k_RSGK, v_RSGK, **options)
    return out_RTHK.reshape(R, T, H * K)

"""Attention in rows that hold prefix trees, by kernels that know ordinary causal sequences only.

The row's queries, keys and values are copied into strands, each a whole sequence from a root to a leaf
(`data.texts.strands`); a stock kernel runs on these; and each token takes its output from its first copy. Attention of
what strands share is computed again in each of them, and nothing else is. Transposed, both copies are takes again and
not scatters, so their sums have one order on every device, and memory grows with the strands.

Dimensions: B rows, T places of a row, X bins of a row, L places of a bin, S = X*L seats, C copies of a token, N = B*X
bins, H query heads, G key/value heads, Z any number of heads, K head width.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from alignment.errors import InputError
from alignment.models import on_mesh

CausalFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # (q_NLHK, k_NLGK, v_NLGK, strands_NL)
NAMES = ("seats", "strands", "copies")


class Strands(NamedTuple):
    """Where the tokens of the rows stand; see `data.texts.strands.fill`."""

    seats_BXL: jax.Array
    strands_BXL: jax.Array
    copies_BCT: jax.Array


def arrays(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Those of a batch that say where strands stand; empty where it has none."""
    return {name: batch[name] for name in NAMES if name in batch}


def of(places: dict, window: int | None = None) -> Strands:
    """What `attend` takes.

    Raises:
        InputError: the rows have no strands, or the layers a sliding window.
    """
    if window is not None:
        raise InputError("attention='expanded' takes no sliding window; use 'blocked'")
    if not all(name in places for name in NAMES):
        raise InputError("attention='expanded' takes rows of prefix trees with their strands; use 'blocked' for others")
    return Strands(places["seats"], places["strands"], places["copies"])


def attend(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, rows: Strands, *, causal_fn: CausalFn) -> jax.Array:
    """Softmax attention of every token on the way from its root, by a kernel of causal sequences."""
    B, X, L = rows.seats_BXL.shape
    q_NLHK, k_NLGK, v_NLGK = (_expand(x, rows).reshape(B * X, L, *x.shape[2:]) for x in (q_BTHK, k_BTGK, v_BTGK))
    out_NLHK = causal_fn(q_NLHK, k_NLGK, v_NLGK, rows.strands_BXL.reshape(B * X, L))
    return _collect(out_NLHK.reshape(B, X * L, *out_NLHK.shape[2:]), rows)


@jax.custom_vjp
def _expand(x_BTZK, rows):
    """Every seat's copy of its token, [B,S,Z,K]; zeros on filling."""
    seats_BS = rows.seats_BXL.reshape(rows.seats_BXL.shape[0], -1)
    return _take(x_BTZK, seats_BS)


def _expand_backward(rows, gradient_BSZK):
    # A token's gradient is the sum over its copies: C takes.
    def add(c, total_BTZK):
        return total_BTZK + _take(gradient_BSZK, rows.copies_BCT[:, c]).astype(total_BTZK.dtype)

    C, T = rows.copies_BCT.shape[1:]
    B, _, *heads = gradient_BSZK.shape
    wide = jnp.promote_types(gradient_BSZK.dtype, jnp.float32)
    total_BTZK = jax.lax.fori_loop(0, C, add, jnp.zeros((B, T, *heads), wide))
    return total_BTZK.astype(gradient_BSZK.dtype), None


_expand.defvjp(lambda x, rows: (_expand(x, rows), rows), _expand_backward)


@jax.custom_vjp
def _collect(out_BSHK, rows):
    """Each token's output, from its first copy, [B,T,H,K]; zeros on padding."""
    return _take(out_BSHK, rows.copies_BCT[:, 0])


def _collect_backward(rows, gradient_BTHK):
    seats_BS = rows.seats_BXL.reshape(rows.seats_BXL.shape[0], -1)
    firsts_BS = jnp.take_along_axis(rows.copies_BCT[:, 0], jnp.maximum(seats_BS, 0), axis=1)
    is_first_BS = firsts_BS == jnp.arange(seats_BS.shape[1])[None]
    return _take(gradient_BTHK, jnp.where(is_first_BS, seats_BS, -1)), None


_collect.defvjp(lambda x, rows: (_collect(x, rows), rows), _collect_backward)


def _take(x_BTZK: jax.Array, index_BS: jax.Array) -> jax.Array:
    """Rows of the second axis by their numbers; zeros where the number is -1."""
    taken_BSZK = jnp.take_along_axis(x_BTZK, jnp.maximum(index_BS, 0)[..., None, None], axis=1)
    return jnp.where((index_BS >= 0)[..., None, None], taken_BSZK, 0)


def cudnn(q_NLHK: jax.Array, k_NLGK: jax.Array, v_NLGK: jax.Array, strands_NL: jax.Array) -> jax.Array:
    """NVIDIA's fused kernel, for bf16 or fp16; a bin of several strands, which it cannot tell apart, gives NaN."""
    lengths_N = jnp.sum(strands_NL > 0, axis=1, dtype=jnp.int32)
    out_NLHK = jax.nn.dot_product_attention(
        q_NLHK,
        k_NLGK,
        v_NLGK,
        is_causal=True,
        query_seq_lengths=lengths_N,
        key_value_seq_lengths=lengths_N,
        implementation="cudnn",
    )
    poison_N = jnp.where(jnp.max(strands_NL, axis=1) > 1, jnp.nan, 0.0).astype(out_NLHK.dtype)
    return out_NLHK + poison_N[:, None, None, None]


def splash(
    q_NLHK: jax.Array, k_NLGK: jax.Array, v_NLGK: jax.Array, strands_NL: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """JAX's splash kernel for TPUs, which skips blocks above the diagonal and tells strands apart by their numbers.

    Args:
        interpret: compute it step by step without a TPU, for tests.
    """
    # Imported here, because Pallas takes a second to import.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def local(q_NLHK, k_NLGK, v_NLGK, strands_NL):
        L, H, K = q_NLHK.shape[1:]
        mask = masks.MultiHeadMask([masks.CausalMask((L, L))] * H)
        kernel = kernels.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)

        def one(q_HLK, k_GLK, v_GLK, strands_L):
            return kernel(q_HLK, k_GLK, v_GLK, kernels.SegmentIds(strands_L, strands_L))

        # the kernel leaves the scale to its caller
        q_NHLK, k_NGLK, v_NGLK = (x.swapaxes(1, 2) for x in (q_NLHK * K**-0.5, k_NLGK, v_NLGK))
        return jax.vmap(one)(q_NHLK, k_NGLK, v_NGLK, strands_NL).swapaxes(1, 2)

    return _split(local, q_NLHK, k_NLGK, v_NLGK, strands_NL)


def _split(local_fn: CausalFn, q_NLHK, k_NLGK, v_NLGK, strands_NL):
    """A kernel that XLA cannot split by itself, on each device's own bins and heads.

    Bins and heads that do not split over the devices are computed on each of them.
    """
    mesh = on_mesh.current()
    if mesh is None:
        return local_fn(q_NLHK, k_NLGK, v_NLGK, strands_NL)
    rows, heads = on_mesh.axes(mesh, q_NLHK.shape[0], k_NLGK.shape[2])
    by_heads = PartitionSpec(rows, None, heads)
    in_specs = (by_heads, by_heads, by_heads, PartitionSpec(rows))
    split_fn = jax.shard_map(local_fn, mesh=mesh, in_specs=in_specs, out_specs=by_heads, check_vma=False)
    return split_fn(q_NLHK, k_NLGK, v_NLGK, strands_NL)

"""Attention in rows that hold prefix trees: every token once, however many sequences it opens.

A row is a forest in reading order: a node's tokens, then one child's subtree after the other. So the tokens that see
token j, itself and those behind it in its own subtree, are one run of places, and a number says which:

    place i sees place j   if and only if   j <= i < ends[j]

The rule holds for trees of any depth and for several trees a row; padding has ends of 0. Positions (for rope and
sliding windows) count along a branch, as if each sequence stood alone.

Dimensions: B batch, T time, H query heads, G key/value heads, R = H/G query heads on each of them, K head width,
N blocks of a row, C places of a block, M = R*C queries of a block, E pairs of blocks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from alignment.models import on_mesh

BLOCK = 64  # places; larger ones cover more that nobody sees, smaller ones make the products slow
HIDDEN = jnp.finfo(jnp.float32).min  # finite, so that a query that sees nothing (padding) gives no NaN


class Blocks(NamedTuple):
    """Who sees whom, for `blocked`.

    Attributes:
        ends_BT: see above.
        positions_BT: read with a window only.
        window: places back along a branch that a query sees; 0 for all of them.
        queries_E, keys_E: numbers of the blocks of which some query sees some key, in any row, in the queries' order;
            behind `num` of them there is filling.
        first: number of the first block of queries, from which `queries_E` count; 0 but under a mesh axis `sequence`.
    """

    ends_BT: jax.Array
    positions_BT: jax.Array
    window: jax.Array
    queries_E: jax.Array
    keys_E: jax.Array
    num: jax.Array
    first: jax.Array


def visible(places: dict, window: int | None = None) -> jax.Array:
    """The mask [B,T,T] of rows with `ends` and `positions` [B,T]."""
    ends_BT, positions_BT = places["ends"], places["positions"]
    place_T = jnp.arange(ends_BT.shape[1])
    seen_BTT = (place_T[None, None, :] <= place_T[None, :, None]) & (place_T[None, :, None] < ends_BT[:, None, :])
    if window is not None:
        seen_BTT &= positions_BT[:, :, None] - positions_BT[:, None, :] < window
    return seen_BTT


def blocks(places: dict, window: int | None = None) -> Blocks:
    """What `blocked` takes, of rows with `ends` and `positions` [B,T]; computed once for all layers."""
    reach = jnp.int32(0 if window is None else window)
    return _pairs(places["ends"], places["positions"], reach, _block_size(places["ends"].shape[1]))


def _pairs(ends_BT, positions_BT, window, size, first=None, num_queries=None):
    """The blocks of all queries, or of `num_queries` blocks of them from number `first` on."""
    ends_BNC = _in_blocks(ends_BT, size, axis=1)
    first_N = size * jnp.arange(ends_BNC.shape[1])
    # A query of block n sees a key of an earlier block if that key's subtree goes on past the beginning of block n.
    last_N = jnp.max(ends_BNC, axis=(0, 2))
    is_seen_NN = (last_N[None, :] > first_N[:, None]) & (first_N[None, :] <= first_N[:, None])
    num_pairs = len(first_N) * (len(first_N) + 1) // 2
    if num_queries is not None:
        is_seen_NN = jax.lax.dynamic_slice_in_dim(is_seen_NN, first, num_queries)
        num_pairs = is_seen_NN.size  # which of these lie above the diagonal depends on the device
    queries_E, keys_E = jnp.nonzero(is_seen_NN, size=num_pairs, fill_value=0)
    first = jnp.int32(0) if first is None else first
    return Blocks(ends_BT, positions_BT, window, queries_E, keys_E, jnp.sum(is_seen_NN), first)


def blocked(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, seen: Blocks) -> jax.Array:
    """Softmax attention over the pairs of blocks that see each other; memory grows with T, in the backward pass too.

    One loop over these pairs keeps the largest logit and the sum of exponentials of every query so far (Milakov and
    Gimelshein 2018, arXiv:1805.02867); the backward pass makes the weights again from their sum (Dao et al. 2022,
    arXiv:2205.14135). Blocks that hold other groups of the row, and sibling branches, cost nothing.
    """
    B, T, H, K = q_BTHK.shape
    G, size = k_BTGK.shape[2], _block_size(T)
    mesh = on_mesh.current()
    num_parts = mesh.shape.get(on_mesh.SEQUENCE, 1) if mesh is not None else 1
    if num_parts > 1:  # as many blocks on each device
        q_BTHK, k_BTGK, v_BTGK = (_filled(x, size * num_parts) for x in (q_BTHK, k_BTGK, v_BTGK))
    # The number of a block comes first: the loop then reads and writes contiguous pieces, and no mesh splits that axis.
    q_BNCGRK = _in_blocks(q_BTHK.reshape(B, -1, G, H // G, K), size, axis=1)
    q_NBGMK = q_BNCGRK.transpose(1, 0, 3, 4, 2, 5).reshape(-1, B, G, H // G * size, K)
    k_NBGCK, v_NBGCK = (_in_blocks(x, size, axis=1).transpose(1, 0, 3, 2, 4) for x in (k_BTGK, v_BTGK))
    if num_parts > 1:
        out_NBGMK = _over_sequence(mesh, q_NBGMK, k_NBGCK, v_NBGCK, seen)
    else:
        out_NBGMK = _attend(q_NBGMK, k_NBGCK, v_NBGCK, seen)
    out_BNCGRK = out_NBGMK.reshape(-1, B, G, H // G, size, K).transpose(1, 0, 4, 2, 3, 5)
    return out_BNCGRK.reshape(B, -1, H, K)[:, :T]


def _over_sequence(mesh, q_NBGMK, k_NBGCK, v_NBGCK, seen):
    """Each device's own blocks of queries against all keys, which it gathers; these are few with grouped queries."""
    rows, heads = on_mesh.axes(mesh, *k_NBGCK.shape[1:3])
    N, size = q_NBGMK.shape[0], k_NBGCK.shape[3]
    num_queries = N // mesh.shape[on_mesh.SEQUENCE]

    def local(q_NBGMK, k_NBGCK, v_NBGCK, ends_BT, positions_BT, window):
        first = num_queries * jax.lax.axis_index(on_mesh.SEQUENCE)
        own = _pairs(ends_BT, positions_BT, window, size, first, num_queries)
        return _attend(q_NBGMK, k_NBGCK, v_NBGCK, own)

    by_queries, by_heads = PartitionSpec(on_mesh.SEQUENCE, rows, heads), PartitionSpec(None, rows, heads)
    places = PartitionSpec(rows)
    in_specs = (by_queries, by_heads, by_heads, places, places, PartitionSpec())
    fn = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=by_queries, check_vma=False)
    ends_BT, positions_BT = (_filled(x, N * size) for x in (seen.ends_BT, seen.positions_BT))
    return fn(q_NBGMK, k_NBGCK, v_NBGCK, ends_BT, positions_BT, seen.window)


def _filled(x, unit):
    """The second axis filled up with zeros to a multiple of this."""
    return jnp.pad(x, [(0, -x.shape[1] % unit if i == 1 else 0) for i in range(x.ndim)])


def _block_size(T: int) -> int:
    return min(BLOCK, T)


def _in_blocks(x, size, axis):
    """An axis T as two, N and `size`, filled up with zeros."""
    filling = -x.shape[axis] % size
    x = jnp.pad(x, [(0, filling if i == axis else 0) for i in range(x.ndim)])
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


@jax.custom_vjp
def _attend(q_NBGMK, k_NBGCK, v_NBGCK, seen):
    return _forward(q_NBGMK, k_NBGCK, v_NBGCK, seen)[0]


def _forward(q_NBGMK, k_NBGCK, v_NBGCK, seen):
    wide = jnp.promote_types(q_NBGMK.dtype, jnp.float32)
    logits_fn = functools.partial(_logits, q_NBGMK, k_NBGCK, _in_rows(seen, k_NBGCK.shape[3]), wide)

    def body(e, carry):
        out_NBGMK, top_NBGM, total_NBGM = carry
        n, s = seen.queries_E[e], seen.keys_E[e]
        logits_BGMC, _ = logits_fn(n, s)
        top_BGM = jnp.maximum(top_NBGM[n], jnp.max(logits_BGMC, axis=-1))
        weights_BGMC = jnp.exp(logits_BGMC - top_BGM[..., None])
        # What was added up so far is on the scale of the earlier largest logit.
        fade_BGM = jnp.exp(top_NBGM[n] - top_BGM)
        added_BGMK = _product("BGMC,BGCK->BGMK", weights_BGMC.astype(v_NBGCK.dtype), v_NBGCK[s], wide)
        return (
            _put(out_NBGMK, n, out_NBGMK[n] * fade_BGM[..., None] + added_BGMK),
            _put(top_NBGM, n, top_BGM),
            _put(total_NBGM, n, total_NBGM[n] * fade_BGM + jnp.sum(weights_BGMC, axis=-1)),
        )

    start = (
        jnp.zeros(q_NBGMK.shape, wide),
        jnp.full(q_NBGMK.shape[:-1], HIDDEN, wide),
        jnp.zeros(q_NBGMK.shape[:-1], wide),
    )
    out_NBGMK, top_NBGM, total_NBGM = jax.lax.fori_loop(0, seen.num, body, start)
    # A block of padding alone is in no pair, and its sum is 0.
    total_NBGM = jnp.where(total_NBGM == 0, 1.0, total_NBGM)
    out_NBGMK = (out_NBGMK / total_NBGM[..., None]).astype(v_NBGCK.dtype)
    return out_NBGMK, (q_NBGMK, k_NBGCK, v_NBGCK, seen, out_NBGMK, top_NBGM + jnp.log(total_NBGM))


def _backward(residuals, gradient_NBGMK):
    q_NBGMK, k_NBGCK, v_NBGCK, seen, out_NBGMK, lse_NBGM = residuals
    wide = jnp.promote_types(q_NBGMK.dtype, jnp.float32)
    logits_fn = functools.partial(_logits, q_NBGMK, k_NBGCK, _in_rows(seen, k_NBGCK.shape[3]), wide)
    # The softmax's own gradient takes the mean of a query's gradients by weight, which is this product.
    mean_NBGM = jnp.einsum("NBGMK,NBGMK->NBGM", gradient_NBGMK.astype(wide), out_NBGMK.astype(wide))
    scale = q_NBGMK.shape[-1] ** -0.5

    def body(e, carry):
        q_gradient, k_gradient, v_gradient = carry
        n, s = seen.queries_E[e], seen.keys_E[e]
        logits_BGMC, seen_BMC = logits_fn(n, s)
        weights_BGMC = jnp.where(seen_BMC[:, None], jnp.exp(logits_BGMC - lse_NBGM[n][..., None]), 0.0)
        gradient_BGMK = gradient_NBGMK[n]
        from_v_BGMC = _product("BGMK,BGCK->BGMC", gradient_BGMK, v_NBGCK[s], wide)
        logits_gradient_BGMC = (weights_BGMC * (from_v_BGMC - mean_NBGM[n][..., None]) * scale).astype(q_NBGMK.dtype)
        weights_BGMC = weights_BGMC.astype(q_NBGMK.dtype)
        from_q_BGCK = _product("BGMC,BGMK->BGCK", logits_gradient_BGMC, q_NBGMK[n], wide)
        return (
            _put(q_gradient, n, q_gradient[n] + _product("BGMC,BGCK->BGMK", logits_gradient_BGMC, k_NBGCK[s], wide)),
            _put(k_gradient, s, k_gradient[s] + from_q_BGCK),
            _put(v_gradient, s, v_gradient[s] + _product("BGMC,BGMK->BGCK", weights_BGMC, gradient_BGMK, wide)),
        )

    start = [jnp.zeros(x.shape, wide) for x in (q_NBGMK, k_NBGCK, v_NBGCK)]
    gradients = jax.lax.fori_loop(0, seen.num, body, tuple(start))
    return (*(g.astype(x.dtype) for g, x in zip(gradients, (q_NBGMK, k_NBGCK, v_NBGCK))), None)


_attend.defvjp(_forward, _backward)


def _in_rows(seen, size):
    """Ends and positions with the number of the block first, [N,B,C]."""
    ends_BNC, positions_BNC = (_in_blocks(x, size, axis=1) for x in (seen.ends_BT, seen.positions_BT))
    return ends_BNC.swapaxes(0, 1), positions_BNC.swapaxes(0, 1), seen.window, seen.first


def _logits(q_NBGMK, k_NBGCK, rows, wide, n, s):
    """Logits [B,G,M,C] of block n's queries on block s's keys, and which of them count [B,M,C]."""
    ends_NBC, positions_NBC, window, first = rows
    n += first
    C, num_repeats = k_NBGCK.shape[3], q_NBGMK.shape[3] // k_NBGCK.shape[3]
    place_C = jnp.arange(C)
    query_1C1, key_11C = (n * C + place_C)[None, :, None], (s * C + place_C)[None, None, :]
    seen_BCC = (key_11C <= query_1C1) & (query_1C1 < ends_NBC[s][:, None, :])
    back_BCC = positions_NBC[n][:, :, None] - positions_NBC[s][:, None, :]
    seen_BCC &= (back_BCC < window) | (window == 0)
    seen_BMC = jnp.tile(seen_BCC, (1, num_repeats, 1))
    logits_BGMC = _product("BGMK,BGCK->BGMC", q_NBGMK[n - first], k_NBGCK[s], wide) * q_NBGMK.shape[-1] ** -0.5
    return jnp.where(seen_BMC[:, None], logits_BGMC, HIDDEN), seen_BMC


def _put(x, n, value):
    """`x.at[n].set(value)`, which would be a scatter, and that copies the whole array in each turn of a loop."""
    return jax.lax.dynamic_update_index_in_dim(x, value, n, axis=0)


def _product(form, a, b, wide):
    return jnp.einsum(form, a, b, preferred_element_type=wide)

"""Which tokens see each other, and attention kernels under that mask.

Dimensions: B batch, T time, S positions attended to, H query heads, G key/value heads, R = H/G query heads on each of
them, K head width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError
from alignment.models import expanded_attention, tree_attention

# Logit of a hidden key. Finite, because under -inf a row that sees nothing (padding) and its gradient would be NaN.
HIDDEN = jnp.finfo(jnp.float32).min


def visible(query: dict, key: dict, window: int | None = None) -> jax.Array:
    """The mask [B,T,S]: who sees whom, by `positions`, `groups` and `branches` of the queries [B,T] and keys [B,S].

    A query sees a key of its own group (0 is padding) at no later position, in the trunk (branch 0) or in its own
    branch, and, with a sliding window, fewer than `window` positions back. Where the queries have `forks`, a branch
    sees of the trunk only what stands before the position at which it forks off. Keys with `ends` stand in rows of
    prefix trees, where these say everything.
    """
    if "ends" in key:
        return tree_attention.visible(key, window)

    def pair(name):
        return query[name][:, :, None], key[name][:, None, :]

    (group_q, group_k), (position_q, position_k), (branch_q, branch_k) = map(pair, ("groups", "positions", "branches"))
    seen_BTS = (group_q == group_k) & (group_q > 0) & (position_k <= position_q)
    seen_BTS &= (branch_k == 0) | (branch_k == branch_q)
    if "forks" in query:
        seen_BTS &= (branch_q == 0) | (branch_k != 0) | (position_k < query["forks"][:, :, None])
    if window is not None:
        seen_BTS &= position_q - position_k < window
    return seen_BTS


def dense(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, seen_BTS: jax.Array) -> jax.Array:
    """Softmax attention with all scores in memory, in at least fp32: the reference for every other kernel."""
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
    # Products of bfloat16 are summed in float32: logits of long rows lose the order of close scores otherwise.
    precise = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    logits_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=precise)
    logits_BGRTS = jnp.where(seen_BTS[:, None, None], logits_BGRTS * K**-0.5, HIDDEN)
    weights_BGRTS = jax.nn.softmax(logits_BGRTS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS, v_BSGK).reshape(B, T, H, K)


def blocked(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, seen_BTT: jax.Array | tree_attention.Blocks
) -> jax.Array:
    """`dense` for rows in reading order: no query sees a key further right, so those scores are never computed.

    Queries go in up to `MAX_BLOCKS` blocks, each against the keys up to its own end. Heads are laid out so that every
    product is one batched matrix product of [R*T,K] blocks; on a CPU this is twice as fast as `dense`. Rows of prefix
    trees go to `tree_attention.blocked`, which skips what no query of a block sees.
    """
    if isinstance(seen_BTT, tree_attention.Blocks):
        return tree_attention.blocked(q_BTHK, k_BTGK, v_BTGK, seen_BTT)
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGTK, v_BGTK = k_BTGK.transpose(0, 2, 1, 3), v_BTGK.transpose(0, 2, 1, 3)
    num_blocks = min(MAX_BLOCKS, -(-T // BLOCK))
    ends = [T * (i + 1) // num_blocks for i in range(num_blocks)]
    out = [
        _block(q_BGRTK[:, :, :, start:end], k_BGTK[:, :, :end], v_BGTK[:, :, :end], seen_BTT[:, start:end, :end])
        for start, end in zip([0, *ends[:-1]], ends)
    ]
    out_BGRTK = jnp.concatenate(out, axis=3)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


BLOCK, MAX_BLOCKS = 64, 4  # queries a block, at least; blocks, at most (four leave 5/8 of the square)


def _block(q_BGRTK, k_BGSK, v_BGSK, seen_BTS):
    """Attention of some queries; weights are divided by their sum last, so the backward pass needs no sum over S."""
    B, G, R, T, K = q_BGRTK.shape
    q_BGMK = q_BGRTK.reshape(B, G, R * T, K)
    precise = jnp.promote_types(q_BGRTK.dtype, jnp.float32)
    logits_BGMS = jnp.einsum("BGMK,BGSK->BGMS", q_BGMK, k_BGSK, preferred_element_type=precise)
    seen_BMS = jnp.tile(seen_BTS, (1, R, 1))
    logits_BGMS = jnp.where(seen_BMS[:, None], logits_BGMS * K**-0.5, HIDDEN)
    # The largest logit is subtracted so that exp cannot overflow; it cancels, so it needs no gradient.
    weights_BGMS = jnp.exp(logits_BGMS - jax.lax.stop_gradient(jnp.max(logits_BGMS, axis=-1, keepdims=True)))
    total_BGM1 = jnp.sum(weights_BGMS, axis=-1, keepdims=True)
    out_BGMK = jnp.einsum("BGMS,BGSK->BGMK", weights_BGMS.astype(v_BGSK.dtype), v_BGSK, preferred_element_type=precise)
    return (out_BGMK / total_BGM1).astype(v_BGSK.dtype).reshape(B, G, R, T, K)


def cudnn(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, poison_B: jax.Array) -> jax.Array:
    """NVIDIA's fused causal attention, for bf16 or fp16 rows that hold one sequence each, padded on the right.

    The kernel takes no mask beyond the causal one. Rows that would need another are poisoned with NaN; see
    `plain_rows`.
    """
    out_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BTGK, v_BTGK, is_causal=True, implementation="cudnn")
    return out_BTHK + poison_B.astype(out_BTHK.dtype)[:, None, None, None]


def plain_rows(places: dict) -> jax.Array:
    """[B] 0 for rows whose mask is the plain causal one, NaN for others, so that a wrong layout is loud.

    Such a row is one group at positions 0, 1, ..., without branches, with all padding after it.

    Raises:
        InputError: the rows hold prefix trees.
    """
    if "ends" in places:
        raise InputError("attention='cudnn' takes one sequence a row, and these rows hold trees; use 'blocked'")
    positions_BT, groups_BT, branches_BT = (places[name] for name in ("positions", "groups", "branches"))
    is_real_BT = groups_BT > 0
    is_plain_BT = (positions_BT == jnp.arange(positions_BT.shape[1])[None]) & (branches_BT == 0)
    is_plain_BT &= groups_BT == groups_BT[:, :1]
    is_plain_B = jnp.all(is_plain_BT | ~is_real_BT, axis=1) & jnp.all(is_real_BT[:, :-1] >= is_real_BT[:, 1:], axis=1)
    return jnp.where(is_plain_B, 0.0, jnp.nan)


def _for_blocks(query: dict, key: dict, window: int | None = None) -> jax.Array | tree_attention.Blocks:
    return tree_attention.blocks(key, window) if "ends" in key else visible(query, key, window)


def _strands_apart(q_NLHK, k_NLGK, v_NLGK, strands_NL):
    """`blocked` on bins of causal sequences."""
    positions_NL = jnp.broadcast_to(jnp.arange(strands_NL.shape[1])[None], strands_NL.shape)
    places = {"positions": positions_NL, "groups": strands_NL, "branches": jnp.zeros_like(strands_NL)}
    return blocked(q_NLHK, k_NLGK, v_NLGK, visible(places, places))


# Rows of trees as ordinary sequences: by plain products, by cuDNN on GPUs, by splash on TPUs.
EXPANDED = {
    "expanded": _strands_apart,
    "expanded_cudnn": expanded_attention.cudnn,
    "expanded_splash": expanded_attention.splash,
}


# The mask each kernel takes, from (query places, key places, window); computed once for all layers.
MASKS: dict[str, Callable[..., Any]] = {
    "dense": visible,
    "blocked": _for_blocks,
    "cudnn": lambda query, key, window=None: plain_rows(query),
}
MASKS |= {name: lambda query, key, window=None: expanded_attention.of(key, window) for name in EXPANDED}
KERNELS = {"dense": dense, "blocked": blocked, "cudnn": cudnn}
KERNELS |= {name: functools.partial(expanded_attention.attend, causal_fn=fn) for name, fn in EXPANDED.items()}


def takes_trees(kernel: str) -> bool:
    """Whether rows may hold prefix trees without all scores being in memory."""
    return kernel == "blocked" or kernel in EXPANDED


def self_test(
    kernel: str, *, num_heads: int = 8, num_kv_heads: int = 2, head_dim: int = 64, has_trees: bool = False
) -> None:
    """Compare a kernel with `dense` on this machine, values and gradients, in bf16 on a small grouped-query case.

    Fused kernels have been wrong for grouped-query heads before, so a run with one begins with this.

    Args:
        has_trees: the rows of the case hold prefix trees.

    Raises:
        InputError: the kernel does not run on this machine, or is off by more than 2 % of the norm.
    """
    if kernel == "dense":
        return
    B, T = 2, TEST_LEN
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, T, heads, head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)]
    q, k, v, w = (jax.random.normal(key, shape).astype(jnp.bfloat16) for key, shape in zip(keys, shapes))
    if has_trees:
        places = _test_trees(B)
    else:
        places = {"positions": jnp.broadcast_to(jnp.arange(T)[None], (B, T)), "branches": jnp.zeros((B, T), jnp.int32)}
        places["groups"] = jnp.ones((B, T), jnp.int32)

    def outcome(name):
        mask = MASKS[name](places, places)

        def loss(q, k, v):
            return jnp.sum((KERNELS[name](q, k, v, mask) * w).astype(jnp.float32))

        return jax.jit(lambda *x: (KERNELS[name](*x, mask), *jax.grad(loss, argnums=(0, 1, 2))(*x)))(q, k, v)

    try:
        outcomes = outcome(kernel)
    except Exception as e:  # whatever the backend raises where the kernel does not exist
        raise InputError(f"attention={kernel!r} does not run here ({type(e).__name__}: {e}); use 'blocked'") from None
    for name, a, b in zip(("output", "query", "key", "value"), outcomes, outcome("dense")):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        if not error < 2e-2:  # bf16 keeps 8 bits; NaN fails too
            raise InputError(f"attention={kernel!r} is wrong here: {name} is off by {error:.1%}; use 'blocked'")


TEST_LEN = 128


def _test_trees(num_rows: int) -> dict[str, jax.Array]:
    """Rows of one tree each, a trunk of half the row and two branches, with their strands."""
    T = TEST_LEN
    half, quarter = T // 2, T // 4
    branches = [np.arange(half, half + quarter), np.arange(half + quarter, T)]
    seats, strands = np.full((2, T), -1), np.zeros((2, T), int)
    copies = np.full((2, T), -1)
    for x, branch in enumerate(branches):
        path = np.concatenate([np.arange(half), branch])
        seats[x, : len(path)], strands[x, : len(path)] = path, 1
        copies[x, :half] = x * T + np.arange(half)
        copies[0, branch] = x * T + half + np.arange(quarter)
    ends = np.where(np.arange(T) < half, T, np.where(np.arange(T) < half + quarter, half + quarter, T))
    positions = np.where(np.arange(T) < half + quarter, np.arange(T), np.arange(T) - quarter)
    arrays = {"ends": ends, "positions": positions, "seats": seats, "strands": strands, "copies": copies}
    return {name: jnp.array(np.broadcast_to(a, (num_rows, *a.shape)), jnp.int32) for name, a in arrays.items()}

"""Who sees whom, and attention under that rule.

Dimensions: B batch, T time, S positions attended to, H query heads, G key/value heads, R = H/G query heads on each of
them, K head width.
"""

import jax
import jax.numpy as jnp

HIDDEN = jnp.finfo(jnp.float32).min  # a finite minus infinity: a row that sees nothing averages, and nothing is NaN


def visible(query: dict, key: dict, window: int | None = None) -> jax.Array:
    """Visibility [B,T,S], from the `positions`, `groups` and `branches` of the queries [B,T] and the keys [B,S].

    A query sees a key of its own group (0 is padding) at no later position, in the trunk (branch 0) or in its own
    branch, and, with a sliding window, fewer than `window` positions back.
    """

    def pair(name):
        return query[name][:, :, None], key[name][:, None, :]

    (group_q, group_k), (position_q, position_k), (branch_q, branch_k) = map(pair, ("groups", "positions", "branches"))
    seen_BTS = (group_q == group_k) & (group_q > 0) & (position_k <= position_q)
    seen_BTS &= (branch_k == 0) | (branch_k == branch_q)
    if window is not None:
        seen_BTS &= position_q - position_k < window
    return seen_BTS


def dense(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, seen_BTS: jax.Array) -> jax.Array:
    """Softmax attention with all scores in memory, softmax in fp32: the reference for every other kernel."""
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
    logits_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)
    logits_BGRTS = jnp.where(seen_BTS[:, None, None], logits_BGRTS * K**-0.5, HIDDEN)
    weights_BGRTS = jax.nn.softmax(logits_BGRTS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS, v_BSGK).reshape(B, T, H, K)


def blocked(q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, seen_BTT: jax.Array) -> jax.Array:
    """`dense` for rows in reading order, where no query sees a key further right: those scores are never computed.

    Queries go in up to `MAX_BLOCKS` blocks, each against the keys up to its own end. Heads are laid out so that every
    product is one batched matrix product of [R*T,K] blocks; on a CPU this is twice as fast as `dense`.
    """
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
    logits_BGMS = jnp.einsum("BGMK,BGSK->BGMS", q_BGMK, k_BGSK, preferred_element_type=jnp.float32)
    seen_BMS = jnp.tile(seen_BTS, (1, R, 1))
    logits_BGMS = jnp.where(seen_BMS[:, None], logits_BGMS * K**-0.5, HIDDEN)
    weights_BGMS = jnp.exp(logits_BGMS - jax.lax.stop_gradient(jnp.max(logits_BGMS, axis=-1, keepdims=True)))
    total_BGM1 = jnp.sum(weights_BGMS, axis=-1, keepdims=True)
    out_BGMK = jnp.einsum(
        "BGMS,BGSK->BGMK", weights_BGMS.astype(v_BGSK.dtype), v_BGSK, preferred_element_type=jnp.float32
    )
    return (out_BGMK / total_BGM1).astype(v_BGSK.dtype).reshape(B, G, R, T, K)


RULES = {"dense": visible, "blocked": visible}  # what a kernel goes by, computed once for all layers
KERNELS = {"dense": dense, "blocked": blocked}

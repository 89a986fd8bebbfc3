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


RULES = {"dense": visible}  # what a kernel goes by, computed once for all layers
KERNELS = {"dense": dense}

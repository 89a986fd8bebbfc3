"""Scores of the pairs of a batch whose rows are packed prefix trees; `data.texts.trees.fill` describes its arrays.

Dimensions: N rows, M targets and Q answers and S pairs of a row, B = N*S pairs, P pair = (chosen, rejected).
"""

import jax
import jax.numpy as jnp

from alignment.preference import scores


def is_tree(batch: dict[str, jax.Array]) -> bool:
    """Whether a batch has the arrays of packed trees."""
    return "owners" in batch


def sums(
    logps_NM: jax.Array, batch: dict[str, jax.Array], *, length_alpha: float | jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each answer of each pair, and its number of tokens, [B,P]; 0 on empty places of pairs.

    Sums go over comparisons with the answer's number and not over an index, so that their gradient is a product as well
    and its order does not depend on the device.

    Args:
        logps_NM: log-probability of each target, in nats.
        length_alpha: weight of the tokens beyond the shorter answer's length (`scores.length_desensitised`); None
            counts all alike.
    """
    logps_NM = jnp.where(batch["mask"] > 0, scores.precise(logps_NM), 0.0)
    sides_NSP, owners_NM = batch["sides"], batch["owners"]
    N, S, P = sides_NSP.shape
    is_own_NQM = owners_NM[:, None, :] == jnp.arange(P * S)[None, :, None]
    sides_NB = sides_NSP.reshape(N, S * P)
    counts_NQ = jnp.sum(is_own_NQM, axis=-1, dtype=logps_NM.dtype)
    counts_NSP = jnp.take_along_axis(counts_NQ, sides_NB, axis=1).reshape(N, S, P)
    totals_NQ = jnp.sum(jnp.where(is_own_NQM, logps_NM[:, None, :], 0.0), axis=-1)
    totals_NSP = jnp.take_along_axis(totals_NQ, sides_NB, axis=1).reshape(N, S, P)
    if length_alpha is not None:
        shared_NS1 = jnp.min(counts_NSP, axis=-1, keepdims=True)
        is_head_NBM = owners_NM[:, None, :] == sides_NB[:, :, None]
        shared_NB = jnp.broadcast_to(shared_NS1, (N, S, P)).reshape(N, S * P)
        is_head_NBM &= batch["ordinals"][:, None, :] <= shared_NB[:, :, None]
        heads_NB = jnp.sum(jnp.where(is_head_NBM, logps_NM[:, None, :], 0.0), axis=-1)
        totals_NSP = length_alpha * totals_NSP + (1 - length_alpha) * heads_NB.reshape(N, S, P)
    is_real_NS1 = batch["weights"][..., None] > 0
    totals_NSP, counts_NSP = (jnp.where(is_real_NS1, x, 0.0) for x in (totals_NSP, counts_NSP))
    return totals_NSP.reshape(N * S, P), counts_NSP.reshape(N * S, P)

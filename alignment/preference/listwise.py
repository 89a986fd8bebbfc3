"""Losses over all ranked answers of a prompt at once.

The ranking comes as its pairs: an answer's choice set is the answer itself and all that it was preferred to. Rows of
prefix trees hold all pairs of a prompt, so that the sets are there; in other layouts they are not.

Dimensions: B pairs, P pair = (chosen, rejected).
"""

import jax
import jax.numpy as jnp

from alignment.preference import scores


def plackett_luce(policy_BP: jax.Array, reference_BP: jax.Array, chosen_B: jax.Array, *, beta: float) -> jax.Array:
    """DPO on rankings, Eq. 20 of Rafailov et al. 2023 (arXiv:2305.18290), under the Plackett-Luce model.

    An answer i of a list adds log sum_j exp(beta h_j) - beta h_i, where j is i or an answer ranked below it. With two
    answers this is `dpo`. Of answers with equal scores neither is in the other's set, and both are in those above.

    Args:
        chosen_B: a number for each chosen answer, the same in all its pairs.

    Returns:
        [B] each answer's term in equal parts over the pairs in which it is the chosen one, so that a list's loss is the
        sum over its pairs (`lists` counts the lists).
    """
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    is_same_BB = chosen_B[:, None] == chosen_B[None, :]
    below_BB = jnp.where(is_same_BB, rewards_BP[None, :, 1], jnp.finfo(rewards_BP.dtype).min)
    choices = jnp.concatenate([rewards_BP[:, :1], below_BB], axis=1)
    return (jax.nn.logsumexp(choices, axis=1) - rewards_BP[:, 0]) / jnp.sum(is_same_BB, axis=1)


def numbers(batch: dict[str, jax.Array]) -> jax.Array:
    """`chosen_B` of rows of prefix trees: the answer's slot, counted over rows; an empty place is like no other."""
    sides_NSP = batch["sides"]
    N, S, P = sides_NSP.shape
    slots_NS = sides_NSP[..., 0] + P * S * jnp.arange(N)[:, None]
    return jnp.where(batch["weights"] > 0, slots_NS, -1 - jnp.arange(N * S).reshape(N, S)).reshape(-1)


def lists(batch: dict[str, jax.Array]) -> jax.Array:
    """How many lists the rows hold, those of empty places not counted."""
    lists_NS, weights_NS = batch["lists"], batch["weights"]
    num_pairs_NS = jnp.sum((lists_NS[:, :, None] == lists_NS[:, None, :]) * weights_NS[:, None, :], axis=-1)
    return jnp.sum(weights_NS / jnp.maximum(num_pairs_NS, 1.0))

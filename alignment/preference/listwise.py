"""Losses over all ranked answers of a prompt at once.

The ranking comes as its pairs: an answer's choice set is the answer itself and all that it was preferred to. Rows of
prefix trees hold all pairs of a prompt, so that the sets are there; in other layouts they are not.

Dimensions: B pairs, P pair = (chosen, rejected), M = B P.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignment.preference import scores


def plackett_luce(policy_BP: jax.Array, reference_BP: jax.Array, answers_BP: jax.Array, *, beta: float) -> jax.Array:
    """DPO on rankings, Eq. 20 of Rafailov et al. 2023 (arXiv:2305.18290), under the Plackett-Luce model.

    An answer i of a list adds log sum_j exp(beta h_j) - beta h_i, where j is i or an answer ranked below it. With two
    answers this is `dpo`. Of answers with equal scores neither is in the other's set, and both are in those above.

    Args:
        answers_BP: a number for each answer, the same in all its pairs.

    Returns:
        [B] each answer's term in equal parts over the pairs in which it is the chosen one, so that a list's loss is the
        sum over its pairs (`lists` counts the lists).
    """
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    is_same_BB = answers_BP[:, 0, None] == answers_BP[None, :, 0]
    below_BB = jnp.where(is_same_BB, rewards_BP[None, :, 1], jnp.finfo(rewards_BP.dtype).min)
    choices = jnp.concatenate([rewards_BP[:, :1], below_BB], axis=1)
    return (jax.nn.logsumexp(choices, axis=1) - rewards_BP[:, 0]) / jnp.sum(is_same_BB, axis=1)


def lipo(
    policy_BP: jax.Array, reference_BP: jax.Array, answers_BP: jax.Array, lists_B: jax.Array, *, beta: float
) -> jax.Array:
    """LiPO-lambda, DPO's pairs weighed by the ranks of their answers: Eq. 8 of Liu et al. 2024 (arXiv:2402.01878).

    With s = beta h, a pair (i, j) of which i was preferred adds d_ij log(1 + exp(s_j - s_i)), where
    d_ij = |G_i - G_j| |1 / D_i - 1 / D_j|, gains G = 2^psi - 1, discounts D = ln(1 + t), and t is the answer's rank in
    its list sorted by s, from 1. The label psi in (0, 1) is the paper's for answers that are only ranked (Sections 5
    and 5.4): the share of the list's K answers that this one is preferred to, itself and a tie counting as half. No
    gradient passes through the ranks. A pair by itself is `dpo` times (2^0.75 - 2^0.25) (1 / ln 2 - 1 / ln 3), about
    0.262.

    The paper's own runs took RAX (`pairwise_logistic_loss` with `dcg_lambdaweight`), whose discounts have base 2 and
    whose weights are times the list's size: K ln 2 times those of the equation, which is what is computed here.

    Args:
        answers_BP: a number for each answer, the same in all its pairs; of answers with equal s the lower number is
            ranked first, without which all weights would be 0 at the start, where every s is 0.
        lists_B: a number for each list.

    Returns:
        [B], of which a list's loss is the sum over its pairs.
    """
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    scores_M, answers_M, lists_M = (
        jax.lax.stop_gradient(rewards_BP).reshape(-1),
        answers_BP.reshape(-1),
        lists_B.repeat(2),
    )

    def compared(fn: Callable[[jax.Array, jax.Array], jax.Array], x_M: jax.Array) -> jax.Array:
        """[M,M]: each value, down, with every other."""
        return fn(x_M[:, None], x_M[None, :])

    is_same_MM = compared(jnp.equal, answers_M)
    # An answer stands here once for each of its pairs, so each stands for a share of it.
    shares_MM = compared(jnp.equal, lists_M) / jnp.sum(is_same_MM, axis=0)[None, :]
    is_tied_MM = compared(jnp.equal, scores_M) & compared(jnp.greater, answers_M)
    is_before_MM = ~is_same_MM & (compared(jnp.less, scores_M) | is_tied_MM)
    ranks_M = 1 + jnp.round(jnp.sum(shares_MM * is_before_MM, axis=1))
    sizes_M = jnp.round(jnp.sum(shares_MM, axis=1))
    side_M = jnp.tile(jnp.array([1, -1]), len(lists_B))
    lead_M = jnp.sum(is_same_MM * side_M[None, :], axis=1)  # answers below this one, less those above
    gains_M = 2 ** (0.5 + lead_M / (2 * sizes_M)) - 1

    def apart(values_M: jax.Array) -> jax.Array:
        return jnp.abs(scores.margins(values_M.reshape(-1, 2)))

    weights_B = apart(gains_M) * apart(1 / jnp.log1p(ranks_M))
    return weights_B * scores.logistic(scores.margins(rewards_BP))


def numbers(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`answers_BP` and `lists_B` of rows of prefix trees; an empty place is a list of its own."""
    sides_NSP, is_real_NS = batch["sides"], batch["weights"] > 0
    N, S, P = sides_NSP.shape
    rows_N, empty_NSP = jnp.arange(N), -1 - jnp.arange(N * S * P).reshape(N, S, P)
    answers_NSP = jnp.where(is_real_NS[..., None], sides_NSP + P * S * rows_N[:, None, None], empty_NSP)
    lists_NS = jnp.where(is_real_NS, batch["lists"] + S * rows_N[:, None], empty_NSP[..., 0])
    return answers_NSP.reshape(-1, P), lists_NS.reshape(-1)


def lists(batch: dict[str, jax.Array]) -> jax.Array:
    """How many lists the rows hold, those of empty places not counted."""
    lists_NS, weights_NS = batch["lists"], batch["weights"]
    num_pairs_NS = jnp.sum((lists_NS[:, :, None] == lists_NS[:, None, :]) * weights_NS[:, None, :], axis=-1)
    return jnp.sum(weights_NS / jnp.maximum(num_pairs_NS, 1.0))

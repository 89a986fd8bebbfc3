"""Preference losses in which a pair's loss depends on the rest of the batch, and losses on unpaired records.

`weights_B` is 1 for a real pair and 0 for filling, which is left out of means and sorts. Under jit over a mesh the
statistics are those of the global batch. With gradient accumulation they are those of a micro-batch, unless the caller
computes them beforehand and hands them in.

Formulas write h = log pi(y) / pi_ref(y) for an answer's log-ratio, w for the chosen answer and l for the rejected one,
and s(x) for the sigmoid 1 / (1 + exp(-x)).

Dimensions: B pairs or records, P pair = (chosen, rejected) or, for unpaired records, (own answer, another record's
answer under the same prompt).
"""

import jax
import jax.numpy as jnp

from alignment.preference import scores


def weighted_mean(values_B: jax.Array, weights_B: jax.Array | None) -> jax.Array:
    """Mean over real pairs; 0 for a batch without any."""
    if weights_B is None:
        return jnp.mean(values_B)
    weights_B = weights_B.astype(values_B.dtype)
    # Filling may hold NaN, and NaN times 0 is NaN, in the gradient too: it is replaced before it is weighed.
    return jnp.sum(jnp.where(weights_B > 0, values_B, 0.0) * weights_B) / jnp.maximum(jnp.sum(weights_B), 1.0)


def kto_kl(policy_BP: jax.Array, reference_BP: jax.Array, weights_B: jax.Array | None = None) -> jax.Array:
    """[P] mean log-ratio per slot, at least 0, without gradient: the estimate of KL(policy, reference) in KTO."""
    ratios_BP = jax.lax.stop_gradient(scores.log_ratios(policy_BP, reference_BP))
    means = [weighted_mean(ratios_BP[:, slot], weights_B) for slot in range(2)]
    return jnp.maximum(jnp.stack(means), 0.0)


def kto(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights_B: jax.Array | None = None,
    kl_P: jax.Array | None = None,
) -> jax.Array:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306) on pairs.

    (lambda_D s(-beta (h_w - KL_l)) + lambda_U s(-beta (KL_w - h_l))) / 2. Each answer is measured against the KL
    estimated from the other side of the batch, as in the authors' paired form. A pair's loss is the mean over its two
    answers, so that it compares with `kto_unpaired`.

    Args:
        beta: risk aversion. It multiplies the difference from the KL and does not divide the loss.
        desirable_weight: lambda_D, of chosen answers.
        undesirable_weight: lambda_U, of rejected answers.
        kl_P: `kto_kl` of a larger batch of which this one is a part.
    """
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    kl_P = kto_kl(policy_BP, reference_BP, weights_B) if kl_P is None else jax.lax.stop_gradient(kl_P)
    chosen_B = desirable_weight * jax.nn.sigmoid(-beta * (ratios_BP[:, 0] - kl_P[1]))
    rejected_B = undesirable_weight * jax.nn.sigmoid(-beta * (kl_P[0] - ratios_BP[:, 1]))
    return (chosen_B + rejected_B) / 2


def bco_delta(
    policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float, weights_B: jax.Array | None = None
) -> jax.Array:
    """Half-way between the mean rewards of chosen and rejected answers, without gradient: the reward shift of BCO."""
    rewards_BP = beta * jax.lax.stop_gradient(scores.log_ratios(policy_BP, reference_BP))
    return weighted_mean(jnp.mean(rewards_BP, axis=-1), weights_B)


def bco(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    *,
    beta: float,
    delta: float | None = None,
    weights_B: jax.Array | None = None,
) -> jax.Array:
    """Binary classifier optimization (Jung et al. 2024, arXiv:2404.04656) on pairs.

    -log s(beta h_w - delta) - log s(-(beta h_l - delta)).

    Args:
        delta: reward shift. None takes this batch's `bco_delta`; a caller who keeps a running mean hands it in. TRL's
            bco_pair is delta = 0.
    """
    shift = bco_delta(policy_BP, reference_BP, beta=beta, weights_B=weights_B) if delta is None else delta
    shifted_BP = beta * scores.log_ratios(policy_BP, reference_BP) - jax.lax.stop_gradient(shift)
    return -jax.nn.log_sigmoid(shifted_BP[:, 0]) - jax.nn.log_sigmoid(-shifted_BP[:, 1])


def _order(values_B: jax.Array, weights_B: jax.Array | None) -> jax.Array:
    """Positions from the smallest value to the largest, filling last."""
    if weights_B is not None:
        values_B = jnp.where(weights_B > 0, values_B, jnp.inf)
    # An order has no gradient; the values that it moves keep theirs.
    return jnp.argsort(jax.lax.stop_gradient(values_B))


def _same_rank(values_B: jax.Array, other_B: jax.Array, weights_B: jax.Array | None) -> jax.Array:
    """For each element of `values_B`, the element of `other_B` that has its rank."""
    rank_B = jnp.argsort(_order(values_B, weights_B))
    return other_B[_order(other_B, weights_B)][rank_B]


def aot(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    weights_B: jax.Array | None = None,
) -> jax.Array:
    """Alignment by optimal transport (Melnyk et al. 2024, arXiv:2406.05882), paired: sorted margins compared.

    The policy's margins should dominate the reference's as a distribution, so the k-th smallest is compared with the
    k-th smallest: -log s(beta (m_(k) - m_ref_(k))) with m = log pi(y_w) - log pi(y_l). A pair's loss stays at the
    pair's place in the batch.
    """
    policy_B = scores.margins(scores.precise(policy_BP))
    reference_B = jax.lax.stop_gradient(scores.margins(scores.precise(reference_BP)))
    return scores.logistic(beta * (policy_B - _same_rank(policy_B, reference_B, weights_B)), label_smoothing)


def aot_unpaired(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    weights_B: jax.Array | None = None,
) -> jax.Array:
    """Alignment by optimal transport, unpaired: -log s(beta (h_w_(k) - h_l_(k))) with both sides sorted.

    The pairing is not used; a loss stands at the place of its chosen answer.
    """
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    rejected_B = _same_rank(ratios_BP[:, 0], ratios_BP[:, 1], weights_B)
    return scores.logistic(beta * (ratios_BP[:, 0] - rejected_B), label_smoothing)


def kto_unpaired(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    labels_B: jax.Array,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights_B: jax.Array | None = None,
    kl: jax.Array | None = None,
) -> jax.Array:
    """Kahneman-Tversky optimization (arXiv:2402.01306) on single answers labelled good or bad.

    lambda_D s(-beta (h - KL)) for a desirable answer, lambda_U s(-beta (KL - h)) for an undesirable one.

    Args:
        policy_BP: slot 0 is the record's own answer, slot 1 another record's answer under its prompt; slot 1 only
            serves the estimate of KL(policy, reference) and gets no gradient.
        labels_B: 1 desirable, 0 undesirable.
        desirable_weight: lambda_D; the paper keeps lambda_D n_D / (lambda_U n_U) between 1 and 4/3.
        kl: `kto_kl(...)[1]` of a larger batch of which this one is a part.
    """
    ratio_B = scores.log_ratios(policy_BP, reference_BP)[:, 0]
    kl = kto_kl(policy_BP, reference_BP, weights_B)[1] if kl is None else jax.lax.stop_gradient(kl)
    desirable_B = desirable_weight * jax.nn.sigmoid(-beta * (ratio_B - kl))
    undesirable_B = undesirable_weight * jax.nn.sigmoid(-beta * (kl - ratio_B))
    return jnp.where(labels_B > 0, desirable_B, undesirable_B)


def bco_unpaired(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    labels_B: jax.Array,
    *,
    beta: float,
    delta: float | None = None,
    weights_B: jax.Array | None = None,
) -> jax.Array:
    """Binary classifier optimization (arXiv:2404.04656) on single answers; slot 1 is not read.

    -log s(beta h - delta) for a desirable answer, -log s(-(beta h - delta)) for an undesirable one.

    Args:
        delta: reward shift. None takes half-way between the batch's mean desirable and mean undesirable reward, or the
            one mean of a batch with labels of one sort.
    """
    rewards_B = beta * scores.log_ratios(policy_BP, reference_BP)[:, 0]
    shift: float | jax.Array
    if delta is not None:
        shift = delta
    else:
        real_B = jnp.ones_like(rewards_B) if weights_B is None else (weights_B > 0).astype(rewards_B.dtype)
        sides = [real_B * (labels_B > 0), real_B * (labels_B <= 0)]
        # A batch with labels of one sort has one mean, and half of it would be the wrong shift.
        present = [jnp.minimum(jnp.sum(side_B), 1.0) for side_B in sides]
        shift = sum(weighted_mean(rewards_B, side_B) for side_B in sides) / jnp.maximum(sum(present), 1.0)
    shifted_B = rewards_B - jax.lax.stop_gradient(shift)
    return -jax.nn.log_sigmoid(jnp.where(labels_B > 0, shifted_B, -shifted_B))


def apo_zero_unpaired(policy_BP: jax.Array, reference_BP: jax.Array, labels_B: jax.Array, *, beta: float) -> jax.Array:
    """Anchored preference optimization, zero (arXiv:2408.06266), one answer at a time; slot 1 is not read."""
    reward_B = beta * scores.log_ratios(policy_BP, reference_BP)[:, 0]
    return jax.nn.sigmoid(jnp.where(labels_B > 0, -reward_B, reward_B))

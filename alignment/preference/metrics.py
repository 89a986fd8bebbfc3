"""What a preference run logs, as (total, count) sums that add across batches and devices.

Names as TRL users know them, plus three diagnostics: likelihood displacement (does the chosen answer itself become less
likely?), ties, and length against margin.  Dimensions: B pairs, P pair = (chosen, rejected).
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]
MOMENTS = "moments/"  # prefix of means of products, which `finish` turns into a correlation and a slope


def _sums(values: Mapping[str, jax.Array], weights_B: jax.Array) -> Sums:
    """Weighted total and count of each [B] array; rows of weight 0 may hold NaN."""
    weights_B = weights_B.astype(jnp.float32)
    count = jnp.sum(weights_B)
    real_B = weights_B > 0
    return {name: (jnp.sum(jnp.where(real_B, value_B, 0.0) * weights_B), count) for name, value_B in values.items()}


def pairwise(
    loss_B: jax.Array,
    rewards_BP: jax.Array,
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    weights_B: jax.Array,
) -> Sums:
    """Sums over a batch of pairs.

    Args:
        loss_B: loss of each pair.
        rewards_BP: implicit rewards, `losses.rewards`.
        policy_BP: answer log-probability sums in nats; reference_BP likewise under the reference.
        num_tokens_BP: answer lengths in tokens.
        weights_B: 1 for a real pair, 0 for filling.

    Returns:
        `rewards/accuracies` counts strict wins only, so a tie is a miss as in TRL; `rewards/ties` is their share.
        `displacement/chosen` is the share of pairs whose chosen answer is less likely than under the reference,
        `displacement/both` the share where both answers are. `baseline/longer` is the accuracy of picking the longer
        answer (`baseline/longer_ties`: equal lengths). `moments/*` are for `finish`.
    """
    margin_B = rewards_BP[:, 0] - rewards_BP[:, 1]
    fell_BP = policy_BP < reference_BP
    num_tokens_BP = num_tokens_BP.astype(jnp.float32)
    longer_B = num_tokens_BP[:, 0] - num_tokens_BP[:, 1]
    values = {
        "loss": loss_B,
        "rewards/chosen": rewards_BP[:, 0],
        "rewards/rejected": rewards_BP[:, 1],
        "rewards/margins": margin_B,
        "rewards/accuracies": margin_B > 0,
        "rewards/ties": margin_B == 0,
        "logps/chosen": policy_BP[:, 0],
        "logps/rejected": policy_BP[:, 1],
        "displacement/chosen": fell_BP[:, 0],
        "displacement/both": fell_BP[:, 0] & fell_BP[:, 1],
        "baseline/longer": longer_B > 0,
        "baseline/longer_ties": longer_B == 0,
        f"{MOMENTS}length": longer_B,
        f"{MOMENTS}length_length": longer_B * longer_B,
        f"{MOMENTS}length_margin": longer_B * margin_B,
        f"{MOMENTS}margin_margin": margin_B * margin_B,
    }
    return _sums(values, weights_B)


def unpaired(
    loss_B: jax.Array,
    rewards_BP: jax.Array,
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    labels_B: jax.Array,
    weights_B: jax.Array,
) -> Sums:
    """Sums over a batch of labelled answers: slot 0 the own answer, slot 1 the mismatched one of the KL estimate.

    `rewards/margins` is the difference of two means over different answers, so `finish` makes it.
    """
    ratio_BP = policy_BP - reference_BP
    sums = _sums({"loss": loss_B, "kl": ratio_BP[:, 1], "labels/desirable": labels_B > 0}, weights_B)
    for side, is_side_B in (("chosen", labels_B > 0), ("rejected", labels_B <= 0)):
        of_side = {
            f"rewards/{side}": rewards_BP[:, 0],
            f"logps/{side}": policy_BP[:, 0],
            f"displacement/{side}": ratio_BP[:, 0] < 0,
        }
        sums |= _sums(of_side, weights_B * is_side_B)
    return sums


def finish(means: Mapping[str, float]) -> dict[str, float]:
    """Turn summed-up means into what is logged: the moments become the slope and correlation of margin on length.

    `length/slope` is reward margin per token by which the chosen answer is longer; `length/correlation` is Pearson's.
    Either is left out where it is undefined (all lengths or all margins equal). Leave out means over no rows before
    calling: a NaN in `means` is taken for a real NaN and stays.
    """
    done = {name: value for name, value in means.items() if not name.startswith(MOMENTS)}
    if {"rewards/chosen", "rewards/rejected"} <= done.keys():
        done.setdefault("rewards/margins", done["rewards/chosen"] - done["rewards/rejected"])
    moments = {name.removeprefix(MOMENTS): float(value) for name, value in means.items() if name.startswith(MOMENTS)}
    if moments and not any(math.isnan(value) for value in moments.values()):
        done |= _length(moments, float(means["rewards/margins"]))
    return done


def _length(moments: Mapping[str, float], margin: float) -> dict[str, float]:
    """Slope and correlation from means of products; a variance within rounding of 0 counts as 0."""
    # var(x) = E[x^2] - E[x]^2 cancels in float32 sums, hence the thresholds relative to E[x^2] below
    length_variance = moments["length_length"] - moments["length"] ** 2
    margin_variance = moments["margin_margin"] - margin**2
    covariance = moments["length_margin"] - moments["length"] * margin
    if length_variance <= 1e-5 * moments["length_length"]:
        return {}
    slope = {"length/slope": covariance / length_variance}
    if margin_variance <= 1e-5 * moments["margin_margin"]:
        return slope
    correlation = covariance / math.sqrt(length_variance * margin_variance)
    return slope | {"length/correlation": min(max(correlation, -1.0), 1.0)}

"""What a preference loss compares: answer log-probabilities turned into scores.

Everything is in nats and at least float32.  Dimensions: B pairs, P pair = (chosen, rejected), R answer tokens.
"""

import jax
import jax.numpy as jnp

# Past this exponent `exp` continues as its tangent: 1e13 is beyond any use and its square still fits in float32, so an
# answer with an extreme log-ratio gives a large finite gradient and not inf or NaN.
MAX_EXPONENT = 30.0


def precise(x: jax.Array) -> jax.Array:
    """The array in float32, or in float64 if it already is."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def log_ratios(policy_BP: jax.Array, reference_BP: jax.Array) -> jax.Array:
    """Log pi / pi_ref of each answer; no gradient reaches the reference."""
    return precise(policy_BP) - jax.lax.stop_gradient(precise(reference_BP))


def margins(scores_BP: jax.Array) -> jax.Array:
    """Chosen minus rejected, one number per pair."""
    return scores_BP[:, 0] - scores_BP[:, 1]


def per_token(sums_BP: jax.Array, num_tokens_BP: jax.Array) -> jax.Array:
    """Divide sums over answers by their lengths; an answer without tokens (filling) keeps its sum."""
    sums_BP = precise(sums_BP)
    return sums_BP / jnp.maximum(num_tokens_BP, 1).astype(sums_BP.dtype)


def logistic(margin_B: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)."""
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(margin_B) - label_smoothing * jax.nn.log_sigmoid(-margin_B)


def length_desensitised(logps_BPR: jax.Array, mask_BPR: jax.Array, *, alpha: float) -> jax.Array:
    """Answer log-probabilities with the tail of the longer answer damped, LD-DPO (Liu et al. 2024, arXiv:2409.06411).

    The first min(n_chosen, n_rejected) tokens count fully, later ones `alpha` times. Apply it to policy and reference
    alike, then use any loss.

    Args:
        logps_BPR: log-probability of each answer token.
        mask_BPR: 1 on real answer tokens.
        alpha: in [0, 1]; 1 is the plain sum, 0 ignores what only the longer answer has.

    Returns:
        [B, P] sums.
    """
    logps_BPR, mask_BPR = precise(logps_BPR), jnp.asarray(mask_BPR) > 0
    place_BPR = jnp.cumsum(mask_BPR, axis=-1)  # 1 at the first real token
    shared_B11 = jnp.min(jnp.sum(mask_BPR, axis=-1), axis=-1)[:, None, None]
    scale_BPR = jnp.where(place_BPR <= shared_B11, 1.0, jnp.asarray(alpha, logps_BPR.dtype))
    return jnp.sum(jnp.where(mask_BPR, logps_BPR * scale_BPR, 0.0), axis=-1)


def exp(x: jax.Array) -> jax.Array:
    """Exponential up to MAX_EXPONENT, from there on its tangent: finite, rising, with a gradient everywhere."""
    below = jnp.minimum(x, MAX_EXPONENT)
    return jnp.exp(below) + jnp.maximum(x - MAX_EXPONENT, 0.0) * jnp.exp(jnp.asarray(MAX_EXPONENT, x.dtype))


def expm1(x: jax.Array) -> jax.Array:
    """Exponential minus 1 with the same tangent past MAX_EXPONENT, exact for small x."""
    below = jnp.minimum(x, MAX_EXPONENT)
    return jnp.expm1(below) + jnp.maximum(x - MAX_EXPONENT, 0.0) * jnp.exp(jnp.asarray(MAX_EXPONENT, x.dtype))


def log1mexp(x: jax.Array) -> jax.Array:
    """Log(1 - exp(x)) for x <= 0, accurate at both ends; x above -1e-6 counts as -1e-6, where the slope is 1e6."""
    x = jnp.minimum(x, -1e-6)
    # log(2) splits the range: near 0, expm1 keeps the digits that 1 - exp(x) cancels; far below, log1p keeps exp(x)
    return jnp.where(x > -0.6931, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


# f-DPO (Wang et al. 2023, arXiv:2309.16240), Table 1: the derivative f'(u) at u = pi / pi_ref = exp(ratio), up to a
# constant that cancels between the two answers. `alpha` as in the paper: towards 0 it is reverse KL, at 1 forward KL
# (TRL's f_alpha_divergence_coef is 1 - alpha).
DIVERGENCES = {
    "reverse_kl": lambda ratio, alpha: ratio,
    "forward_kl": lambda ratio, alpha: -expm1(-ratio),
    "js": lambda ratio, alpha: jnp.log(2.0) + jax.nn.log_sigmoid(ratio),
    "alpha": lambda ratio, alpha: -expm1(-alpha * ratio) / alpha,
}

"""Losses that learn from comparisons: pure functions of answer log-probabilities.

Every paired loss is `f(policy_BP, reference_BP, num_tokens_BP, *, beta, ...) -> loss_B`, one number per pair:

    policy_BP, reference_BP   log-probability of each answer, summed over its tokens (end-of-turn included), in nats
    num_tokens_BP             answer lengths in tokens
    beta                      pull towards the reference, > 0; a traced scalar will do, as will every other number

No gradient reaches the reference. A loss that reads only policy - reference can be had under another f-divergence by
calling it on `(DIVERGENCES[...](ratios), zeros)`; length-desensitised sums (`scores.length_desensitised`), WPO weights
(`scores.wpo_weights`) and the anchor (`sft_anchor`) go with any of them.

Conventions that differ between libraries: `ipo` is on means over tokens (TRL, and the IPO authors by TRL's account),
`ipo_sum` on sums (the original code); `label_smoothing` is the conservative one in `dpo` (TRL has dropped that one),
the unbiased one in `robust`.

Dimensions: B pairs, P pair = (chosen, rejected).
"""

import inspect
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from alignment.errors import InputError
from alignment.preference import batchwise, scores


def dpo(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Direct preference optimization, Eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290).

    Args:
        label_smoothing: probability that a pair is labelled the wrong way round, in [0, 0.5): conservative DPO.
    """
    del num_tokens_BP
    margin_B = scores.margins(scores.log_ratios(policy_BP, reference_BP))
    return scores.logistic(beta * margin_B, label_smoothing)


def robust(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): unbiased when labels flip at a known rate.

    Args:
        label_smoothing: the flip rate, in [0, 0.5). The loss may be negative.
    """
    del num_tokens_BP
    margin_B = beta * scores.margins(scores.log_ratios(policy_BP, reference_BP))
    clean_B, flipped_B = scores.logistic(margin_B), scores.logistic(-margin_B)
    return ((1 - label_smoothing) * clean_B - label_smoothing * flipped_B) / (1 - 2 * label_smoothing)


def hinge(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Hinge on the log-ratio: SLiC (Zhao et al. 2023, arXiv:2305.10425) normalised as in RSO (arXiv:2309.06657)."""
    del num_tokens_BP
    return jax.nn.relu(1 - beta * scores.margins(scores.log_ratios(policy_BP, reference_BP)))


def ipo(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Identity preference optimization, Eq. 17 of Azar et al. 2023 (arXiv:2310.12036), on means over answer tokens.

    Args:
        beta: the paper's tau; the target margin is 1 / (2 beta) nats per token.
    """
    ratios_BP = scores.per_token(scores.log_ratios(policy_BP, reference_BP), num_tokens_BP)
    return jnp.square(scores.margins(ratios_BP) - 1 / (2 * beta))


def ipo_sum(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Identity preference optimization on sums over answer tokens; the target margin is 1 / (2 beta) nats."""
    del num_tokens_BP
    return jnp.square(scores.margins(scores.log_ratios(policy_BP, reference_BP)) - 1 / (2 * beta))


def reference_free(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """DPO with a uniform reference, which then drops out. With `sft_anchor` it is CPO (arXiv:2401.08417)."""
    del reference_BP, num_tokens_BP
    return scores.logistic(beta * scores.margins(scores.precise(policy_BP)), label_smoothing)


def sigmoid_norm(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Length-normalised DPO (Tulu 3, Lambert et al. 2024, arXiv:2411.15124): log-ratios as means over answer tokens.

    Args:
        beta: per token, hence larger than for `dpo`; Tulu 3 uses 5.
    """
    ratios_BP = scores.per_token(scores.log_ratios(policy_BP, reference_BP), num_tokens_BP)
    return scores.logistic(beta * scores.margins(ratios_BP), label_smoothing)


def f_dpo(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """DPO under another f-divergence from the reference (Wang et al. 2023, arXiv:2309.16240).

    Args:
        divergence: a key of `scores.DIVERGENCES`: reverse_kl (this is `dpo`), forward_kl, js, alpha.
        alpha: in (0, 1], read by divergence "alpha" only.
    """
    del num_tokens_BP
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    return scores.logistic(beta * scores.margins(scores.DIVERGENCES[divergence](ratios_BP, alpha)), label_smoothing)


def dpop(
    policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float, penalty: float = 50.0
) -> jax.Array:
    """DPO-Positive (Pal et al. 2024, arXiv:2402.13228): punishes a chosen answer that falls below the reference.

    Args:
        penalty: the paper's lambda, >= 0, times the nats by which the chosen answer fell.
    """
    del num_tokens_BP
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    fallen_B = jax.nn.relu(-ratios_BP[:, 0])
    return scores.logistic(beta * (scores.margins(ratios_BP) - penalty * fallen_B))


def simpo(
    policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float, gamma: float = 0.5
) -> jax.Array:
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734): mean log-probabilities, no reference.

    Args:
        beta: per token; the paper uses 2 to 2.5.
        gamma: the margin asked for, after scaling by beta (TRL's simpo_gamma; the paper also quotes gamma / beta).
    """
    del reference_BP
    return scores.logistic(beta * scores.margins(scores.per_token(policy_BP, num_tokens_BP)) - gamma)


def orpo(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691): supervised loss plus log odds ratio.

    The probability of an answer is the geometric mean over its tokens. The supervised term is the mean over the chosen
    answer's tokens (TRL's runs over the prompt too).

    Args:
        beta: the paper's lambda, weight of the odds ratio term; 0.1 there.
    """
    del reference_BP
    means_BP = scores.per_token(policy_BP, num_tokens_BP)
    log_odds_BP = means_BP - scores.log1mexp(means_BP)
    return -means_BP[:, 0] + beta * scores.logistic(scores.margins(log_odds_BP))


def apo_zero(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Anchored preference optimization, zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): chosen up, rejected down.

    For chosen answers better than what the model writes.
    """
    del num_tokens_BP
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    return jax.nn.sigmoid(-rewards_BP[:, 0]) + jax.nn.sigmoid(rewards_BP[:, 1])


def apo_down(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Anchored preference optimization, down (arXiv:2408.06266): both down, rejected further.

    For chosen answers worse than what the model writes.
    """
    del num_tokens_BP
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    return jax.nn.sigmoid(rewards_BP[:, 0]) + jax.nn.sigmoid(-scores.margins(rewards_BP))


def sppo(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Self-play preference optimization (Wu et al. 2024, arXiv:2405.00675), hard: chosen wins with certainty.

    Args:
        beta: the paper's 1 / eta; log-ratios are pulled to +1 / (2 beta) and -1 / (2 beta).
    """
    del num_tokens_BP
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    return jnp.square(ratios_BP[:, 0] - 1 / (2 * beta)) + jnp.square(ratios_BP[:, 1] + 1 / (2 * beta))


def exo(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
) -> jax.Array:
    """Efficient exact optimization (Ji et al. 2024, arXiv:2402.00856) on pairs: KL(policy's choice, smoothed label).

    Args:
        label_smoothing: probability the label gives the rejected answer, in (0, 0.5); the logarithm needs it above 0.
    """
    del num_tokens_BP
    margin_B = beta * scores.margins(scores.log_ratios(policy_BP, reference_BP))
    log_win_B, log_lose_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-margin_B)
    loss_B = jnp.exp(log_win_B) * (log_win_B - jnp.log1p(-label_smoothing))
    return loss_B + jnp.exp(log_lose_B) * (log_lose_B - jnp.log(label_smoothing))


def nca(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Noise contrastive alignment (Chen et al. 2024, arXiv:2402.05369) on pairs: rewards, not margins alone."""
    del num_tokens_BP
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    push_down_B = jnp.mean(scores.logistic(-rewards_BP), axis=-1)
    return scores.logistic(rewards_BP[:, 0]) + push_down_B


def discopop(
    policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float, tau: float = 0.05
) -> jax.Array:
    """DiscoPOP, the log-ratio modulated loss of Lu et al. 2024 (arXiv:2406.08414): logistic and exponential, blended.

    Args:
        tau: temperature of the blend; 0.05 in the paper.
    """
    del num_tokens_BP
    margin_B = beta * scores.margins(scores.log_ratios(policy_BP, reference_BP))
    blend_B = jax.nn.sigmoid(margin_B / tau)
    return (1 - blend_B) * scores.logistic(margin_B) + blend_B * scores.exp(-margin_B)


def sft_anchor(policy_BP: jax.Array, num_tokens_BP: jax.Array) -> jax.Array:
    """-log pi(chosen) per token, one number per pair: add it, weighted, to keep chosen answers likely (RPO, CPO)."""
    return -scores.per_token(policy_BP, num_tokens_BP)[:, 0]


PAIRWISE = {
    "dpo": dpo,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "reference_free": reference_free,
    "sigmoid_norm": sigmoid_norm,
    "f_dpo": f_dpo,
    "dpop": dpop,
    "simpo": simpo,
    "orpo": orpo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "sppo": sppo,
    "exo": exo,
    "nca": nca,
    "discopop": discopop,
    "kto": batchwise.kto,
    "bco": batchwise.bco,
    "aot": batchwise.aot,
    "aot_unpaired": batchwise.aot_unpaired,
}

# The same shape with labels_B (1 desirable) in place of num_tokens_BP.
UNPAIRED = {
    "kto_unpaired": batchwise.kto_unpaired,
    "bco_unpaired": batchwise.bco_unpaired,
    "apo_zero_unpaired": batchwise.apo_zero_unpaired,
}

REFERENCE_FREE = frozenset({"reference_free", "simpo", "orpo"})  # do not read reference_BP
PER_TOKEN = frozenset({"ipo", "sigmoid_norm", "simpo", "orpo"})  # read num_tokens_BP
NON_SEPARABLE = frozenset({"kto", "bco", "aot", "aot_unpaired", "kto_unpaired", "bco_unpaired"})  # take weights_B


def _options(loss_fn) -> dict[str, object]:
    """Keyword arguments a config may set, with their defaults; arrays (weights_B, kl_P, kl) are the caller's."""
    keywords = [p for p in inspect.signature(loss_fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in keywords if p.name not in ("weights_B", "kl_P", "kl")}


OPTIONS = {name: _options(loss_fn) for name, loss_fn in {**PAIRWISE, **UNPAIRED}.items()}

# What a number must satisfy, in Python and in words.
RANGES = {
    "beta": (lambda v: v > 0, "above 0"),
    "label_smoothing": (lambda v: 0 <= v < 0.5, "in [0, 0.5)"),
    "alpha": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "penalty": (lambda v: v >= 0, "at least 0"),
    "gamma": (lambda v: v >= 0, "at least 0"),
    "tau": (lambda v: v > 0, "above 0"),
    "desirable_weight": (lambda v: v >= 0, "at least 0"),
    "undesirable_weight": (lambda v: v >= 0, "at least 0"),
}


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Raise InputError unless the loss exists, reads each of these options and each number is in range."""
    if name not in OPTIONS:
        raise InputError(f"there is no loss {name!r}; known: {', '.join(OPTIONS)}")
    known = ", ".join(OPTIONS[name])
    for option, value in options.items():
        if option not in OPTIONS[name]:
            readers = ", ".join(loss for loss in OPTIONS if option in OPTIONS[loss]) or "no loss"
            raise InputError(
                f"loss {name!r} does not read {option!r}; it reads {known}. {option!r} is read by: {readers}"
            )
        if option in RANGES and not (_is_finite(value) and RANGES[option][0](value)):
            raise InputError(f"loss {name!r}: {option}={value!r} must be a number {RANGES[option][1]}")
    if "delta" in options and not (options["delta"] is None or _is_finite(options["delta"])):
        raise InputError(f"loss {name!r}: delta={options['delta']!r} must be a number, or None for the batch's own")
    if "beta" not in options:
        raise InputError(f"loss {name!r} needs beta; it reads {known}")
    _check_combination(name, options)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_combination(name: str, options: Mapping[str, object]) -> None:
    """What one range cannot say."""
    if name == "exo" and options.get("label_smoothing") == 0:
        raise InputError("loss 'exo': label_smoothing=0 puts log(0) in the loss; the default is 0.001")
    if name == "f_dpo":
        divergence = options.get("divergence", "reverse_kl")
        if divergence not in scores.DIVERGENCES:
            raise InputError(f"loss 'f_dpo': divergence={divergence!r} is not one of {', '.join(scores.DIVERGENCES)}")
        if "alpha" in options and divergence != "alpha":
            raise InputError(f"loss 'f_dpo': alpha is only read with divergence='alpha', not with {divergence!r}")


def pairwise(
    name: str,
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    weights_B: jax.Array | None = None,
    **options: object,
) -> jax.Array:
    """[B] loss of each pair by the loss called `name`; `weights_B` goes to the losses that need it."""
    extra = {"weights_B": weights_B} if name in NON_SEPARABLE else {}
    return PAIRWISE[name](policy_BP, reference_BP, num_tokens_BP, **extra, **options)


def unpaired(
    name: str,
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    labels_B: jax.Array,
    weights_B: jax.Array | None = None,
    **options: object,
) -> jax.Array:
    """[B] loss of each labelled answer by the loss called `name`; `weights_B` goes to the losses that need it."""
    extra = {"weights_B": weights_B} if name in NON_SEPARABLE else {}
    return UNPAIRED[name](policy_BP, reference_BP, labels_B, **extra, **options)


def rewards(
    name: str, policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float
) -> jax.Array:
    """[B, P] implicit rewards as TRL logs them: beta times the log-ratio, or what a reference-free loss compares."""
    if name not in REFERENCE_FREE:
        return beta * scores.log_ratios(policy_BP, reference_BP)
    return beta * (scores.per_token(policy_BP, num_tokens_BP) if name in PER_TOKEN else scores.precise(policy_BP))


LN2 = math.log(2.0)

# The loss where policy and reference agree: every log-ratio is 0, every sigmoid 1/2.
_INITIAL = {
    "dpo": lambda o: LN2,
    "robust": lambda o: LN2,
    "hinge": lambda o: 1.0,
    "ipo": lambda o: (1 / (2 * o["beta"])) ** 2,
    "ipo_sum": lambda o: (1 / (2 * o["beta"])) ** 2,
    "sigmoid_norm": lambda o: LN2,
    "f_dpo": lambda o: LN2,
    "dpop": lambda o: LN2,
    "apo_zero": lambda o: 1.0,
    "apo_down": lambda o: 1.0,
    "sppo": lambda o: 2 * (1 / (2 * o["beta"])) ** 2,
    "exo": lambda o: -LN2 - (math.log1p(-o["label_smoothing"]) + math.log(o["label_smoothing"])) / 2,
    "nca": lambda o: 2 * LN2,
    "discopop": lambda o: (LN2 + 1) / 2,
    "kto": lambda o: (o["desirable_weight"] + o["undesirable_weight"]) / 4,
    "bco": lambda o: 2 * LN2 if not o["delta"] else math.log(2 + 2 * math.cosh(o["delta"])),
    "aot": lambda o: LN2,
    "aot_unpaired": lambda o: LN2,
    "kto_unpaired": lambda o: o["desirable_weight"] / 2 if o["desirable_weight"] == o["undesirable_weight"] else None,
    "bco_unpaired": lambda o: LN2 if not o["delta"] else None,
    "apo_zero_unpaired": lambda o: 0.5,
}


def initial_loss(name: str, **options: object) -> float | None:
    """What the mean loss must be while policy and reference agree; None where it depends on the data.

    It knows nothing of an anchor or of WPO weights added outside.
    """
    return _INITIAL[name]({**OPTIONS[name], **options}) if name in _INITIAL else None

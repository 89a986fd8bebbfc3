"""Losses that learn from comparisons: pure functions of answer log-probabilities.

A loss takes those of these arrays that it reads, then its numbers, and returns `loss_B`, one value per pair or record:

    policy_BP, reference_BP   log-probability of each answer, summed over its tokens (end-of-turn included), in nats
    num_tokens_BP             answer lengths in tokens
    labels_B                  1 for a desirable answer, 0 for an undesirable one; only losses on single answers read it
    weights_B                 1 for a real row, 0 for filling; losses that compare rows with each other read it
    answers_BP, lists_B       a number for each answer and each list of answers; losses on whole lists read them

A new loss is one function and one row of LOSSES; what it reads follows from its signature. `beta` is always the pull
towards the reference, > 0. Every number may be a traced scalar. No gradient reaches the reference.

A loss that reads only policy - reference can be had under another f-divergence by calling it on
`(DIVERGENCES[...](ratios), zeros)`; length-desensitised sums (`scores.length_desensitised`) and the anchor
(`sft_anchor`) go with any of them.

Formulas below write h = log pi(y) / pi_ref(y) for an answer's log-ratio, w for the chosen answer and l for the rejected
one, n for an answer's length, s(x) for the sigmoid 1 / (1 + exp(-x)), and e for `label_smoothing`.

Conventions that differ between libraries: `ipo` is on means over tokens (TRL, and the IPO authors by TRL's account),
`ipo_sum` on sums (the original code); `label_smoothing` is the conservative one in `dpo` (TRL has dropped that one),
the unbiased one in `robust`.

Dimensions: B pairs, P pair = (chosen, rejected).
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alignment import errors
from alignment.errors import InputError
from alignment.preference import batchwise, listwise, scores


def dpo(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """Direct preference optimization, Eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290): -log s(beta (h_w - h_l)).

    Args:
        label_smoothing: probability that a pair is labelled the wrong way round, in [0, 0.5): conservative DPO, which
            is -(1 - e) log s(z) - e log s(-z).
    """
    margin_B = scores.margins(scores.log_ratios(policy_BP, reference_BP))
    return scores.logistic(beta * margin_B, label_smoothing)


def robust(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): unbiased when labels flip at a known rate.

    With z = beta (h_w - h_l): (-(1 - e) log s(z) + e log s(-z)) / (1 - 2 e).

    Args:
        label_smoothing: the flip rate, in [0, 0.5). The loss may be negative.
    """
    margin_B = beta * scores.margins(scores.log_ratios(policy_BP, reference_BP))
    clean_B, flipped_B = scores.logistic(margin_B), scores.logistic(-margin_B)
    return ((1 - label_smoothing) * clean_B - label_smoothing * flipped_B) / (1 - 2 * label_smoothing)


def hinge(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float) -> jax.Array:
    """Hinge on the log-ratio, max(0, 1 - beta (h_w - h_l)).

    SLiC (Zhao et al. 2023, arXiv:2305.10425) normalised as in RSO (Liu et al. 2023, arXiv:2309.06657).
    """
    return jax.nn.relu(1 - beta * scores.margins(scores.log_ratios(policy_BP, reference_BP)))


def ipo(policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Identity preference optimization, Eq. 17 of Azar et al. 2023 (arXiv:2310.12036), on means over answer tokens.

    (h_w / n_w - h_l / n_l - 1 / (2 beta))^2.

    Args:
        beta: the paper's tau; the target margin is 1 / (2 beta) nats per token.
    """
    ratios_BP = scores.per_token(scores.log_ratios(policy_BP, reference_BP), num_tokens_BP)
    return jnp.square(scores.margins(ratios_BP) - 1 / (2 * beta))


def ipo_sum(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float) -> jax.Array:
    """Identity preference optimization on sums over answer tokens, (h_w - h_l - 1 / (2 beta))^2."""
    return jnp.square(scores.margins(scores.log_ratios(policy_BP, reference_BP)) - 1 / (2 * beta))


def reference_free(policy_BP: jax.Array, *, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """DPO with a uniform reference, which then drops out: -log s(beta (log pi(y_w) - log pi(y_l))).

    With `sft_anchor` it is CPO (Xu et al. 2024, arXiv:2401.08417).
    """
    return scores.logistic(beta * scores.margins(scores.precise(policy_BP)), label_smoothing)


def sigmoid_norm(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    num_tokens_BP: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Length-normalised DPO (Tulu 3, Lambert et al. 2024, arXiv:2411.15124): -log s(beta (h_w / n_w - h_l / n_l)).

    Args:
        beta: per token, hence larger than for `dpo`; Tulu 3 uses 5.
    """
    ratios_BP = scores.per_token(scores.log_ratios(policy_BP, reference_BP), num_tokens_BP)
    return scores.logistic(beta * scores.margins(ratios_BP), label_smoothing)


def f_dpo(
    policy_BP: jax.Array,
    reference_BP: jax.Array,
    *,
    beta: float,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """DPO under another f-divergence from the reference (Wang et al. 2023, arXiv:2309.16240).

    -log s(beta (f'(exp h_w) - f'(exp h_l))).

    Args:
        divergence: a key of `scores.DIVERGENCES`: reverse_kl (this is `dpo`), forward_kl, js, alpha.
        alpha: in (0, 1], read by divergence "alpha" only.
    """
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    return scores.logistic(beta * scores.margins(scores.DIVERGENCES[divergence](ratios_BP, alpha)), label_smoothing)


def dpop(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float, penalty: float = 50.0) -> jax.Array:
    """DPO-Positive (Pal et al. 2024, arXiv:2402.13228): punishes a chosen answer that falls below the reference.

    -log s(beta (h_w - h_l - lambda max(0, -h_w))).

    Args:
        penalty: the paper's lambda, >= 0, times the nats by which the chosen answer fell.
    """
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    fallen_B = jax.nn.relu(-ratios_BP[:, 0])
    return scores.logistic(beta * (scores.margins(ratios_BP) - penalty * fallen_B))


def simpo(policy_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float, gamma: float = 0.5) -> jax.Array:
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734): mean log-probabilities, no reference.

    -log s(beta (log pi(y_w) / n_w - log pi(y_l) / n_l) - gamma).

    Args:
        beta: per token; the paper uses 2 to 2.5.
        gamma: the target margin, after scaling by beta (TRL's simpo_gamma; the paper also quotes gamma / beta).
    """
    return scores.logistic(beta * scores.margins(scores.per_token(policy_BP, num_tokens_BP)) - gamma)


def orpo(policy_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float) -> jax.Array:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691): supervised loss plus log odds ratio.

    -log p_w - lambda log s(log(p_w / (1 - p_w)) - log(p_l / (1 - p_l))), where p is the geometric mean of an answer's
    token probabilities. The supervised term is the mean over the chosen answer's tokens (TRL's runs over the prompt
    too).

    Args:
        beta: the paper's lambda, weight of the odds ratio term; 0.1 there.
    """
    means_BP = scores.per_token(policy_BP, num_tokens_BP)
    # log(1 - p) from log p, which 1 - exp(...) would lose to rounding for a p near 0 or 1.
    log_odds_BP = means_BP - scores.log1mexp(means_BP)
    return -means_BP[:, 0] + beta * scores.logistic(scores.margins(log_odds_BP))


def apo_zero(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float) -> jax.Array:
    """Anchored preference optimization, zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): chosen up, rejected down.

    s(-beta h_w) + s(beta h_l), for chosen answers better than what the model writes.
    """
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    return jax.nn.sigmoid(-rewards_BP[:, 0]) + jax.nn.sigmoid(rewards_BP[:, 1])


def apo_down(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float) -> jax.Array:
    """Anchored preference optimization, down (arXiv:2408.06266): both down, rejected further.

    s(beta h_w) + s(-beta (h_w - h_l)), for chosen answers worse than what the model writes.
    """
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    return jax.nn.sigmoid(rewards_BP[:, 0]) + jax.nn.sigmoid(-scores.margins(rewards_BP))


def sppo(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float) -> jax.Array:
    """Self-play preference optimization (Wu et al. 2024, arXiv:2405.00675), hard: chosen wins with certainty.

    (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2.

    Args:
        beta: the paper's 1 / eta.
    """
    ratios_BP = scores.log_ratios(policy_BP, reference_BP)
    return jnp.square(ratios_BP[:, 0] - 1 / (2 * beta)) + jnp.square(ratios_BP[:, 1] + 1 / (2 * beta))


def exo(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float, label_smoothing: float = 1e-3) -> jax.Array:
    """Efficient exact optimization (Ji et al. 2024, arXiv:2402.00856) on pairs: KL(policy's choice, smoothed label).

    With z = beta (h_w - h_l): s(z) (log s(z) - log(1 - e)) + s(-z) (log s(-z) - log e).

    Args:
        label_smoothing: probability the label gives the rejected answer, in (0, 0.5); the logarithm needs it above 0.
    """
    margin_B = beta * scores.margins(scores.log_ratios(policy_BP, reference_BP))
    # The logarithm of 1 - s(z) taken from s(z) would be log 0 for a wide margin; log s(-z) is the same and exact.
    log_win_B, log_lose_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-margin_B)
    loss_B = jnp.exp(log_win_B) * (log_win_B - jnp.log1p(-label_smoothing))
    return loss_B + jnp.exp(log_lose_B) * (log_lose_B - jnp.log(label_smoothing))


def nca(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float) -> jax.Array:
    """Noise contrastive alignment (Chen et al. 2024, arXiv:2402.05369) on pairs: rewards, not margins alone.

    -log s(beta h_w) - (log s(-beta h_w) + log s(-beta h_l)) / 2.
    """
    rewards_BP = beta * scores.log_ratios(policy_BP, reference_BP)
    push_down_B = jnp.mean(scores.logistic(-rewards_BP), axis=-1)
    return scores.logistic(rewards_BP[:, 0]) + push_down_B


def discopop(policy_BP: jax.Array, reference_BP: jax.Array, *, beta: float, tau: float = 0.05) -> jax.Array:
    """DiscoPOP, the log-ratio modulated loss of Lu et al. 2024 (arXiv:2406.08414): logistic and exponential, blended.

    With z = beta (h_w - h_l): -(1 - s(z / tau)) log s(z) + s(z / tau) exp(-z).

    Args:
        tau: temperature of the blend; 0.05 in the paper.
    """
    margin_B = beta * scores.margins(scores.log_ratios(policy_BP, reference_BP))
    blend_B = jax.nn.sigmoid(margin_B / tau)
    # `scores.exp` goes on along its tangent: exp of a margin far below 0 would be inf, and inf times a blend of 0 NaN.
    return (1 - blend_B) * scores.logistic(margin_B) + blend_B * scores.exp(-margin_B)


def sft_anchor(policy_BP: jax.Array, num_tokens_BP: jax.Array) -> jax.Array:
    """-log pi(chosen) per token, one number per pair: add it, weighted, to keep chosen answers likely (RPO, CPO)."""
    return -scores.per_token(policy_BP, num_tokens_BP)[:, 0]


LN2 = math.log(2.0)
ARRAYS = ("policy_BP", "reference_BP", "num_tokens_BP", "labels_B", "weights_B", "answers_BP", "lists_B")
STATISTICS = ("kl_P", "kl")  # of a larger batch, for a caller who has them; a config cannot set them


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of LOSSES.

    Attributes:
        fn: the loss, [B].
        initial: its mean while policy and reference agree, where every log-ratio is 0 and every sigmoid 1/2, from all
            its options. None where it depends on the data.
        steepness: how far rounding of the rewards may move the loss there, from its options; None: as far as them.
    """

    fn: Callable[..., jax.Array]
    initial: Callable[[Mapping[str, Any]], float | None] | None = None
    steepness: Callable[[Mapping[str, Any]], float] | None = None

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        """The arrays that it takes."""
        return frozenset(ARRAYS) & inspect.signature(self.fn).parameters.keys()

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """Those of them without which it cannot be computed."""
        parameters = inspect.signature(self.fn).parameters
        return frozenset(name for name in self.reads if parameters[name].default is inspect.Parameter.empty)

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that a config may set, with their defaults."""
        keywords = [p for p in inspect.signature(self.fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return {p.name: p.default for p in keywords if p.name not in (*ARRAYS, *STATISTICS)}


def _square(o: Mapping[str, Any]) -> float:
    """The squared distance of 0 from the target 1 / (2 beta)."""
    return (1 / (2 * o["beta"])) ** 2


def _square_steepness(o: Mapping[str, Any]) -> float:
    return 2 / o["beta"]


LOSSES = {
    "dpo": Loss(dpo, lambda o: LN2),
    "robust": Loss(robust, lambda o: LN2),
    "hinge": Loss(hinge, lambda o: 1.0),
    "ipo": Loss(ipo, _square, _square_steepness),
    "ipo_sum": Loss(ipo_sum, _square, _square_steepness),
    "reference_free": Loss(reference_free),
    "sigmoid_norm": Loss(sigmoid_norm, lambda o: LN2),
    "f_dpo": Loss(f_dpo, lambda o: LN2),
    "dpop": Loss(dpop, lambda o: LN2),
    "simpo": Loss(simpo),
    "orpo": Loss(orpo),
    "apo_zero": Loss(apo_zero, lambda o: 1.0),
    "apo_down": Loss(apo_down, lambda o: 1.0),
    "sppo": Loss(sppo, lambda o: 2 * _square(o), _square_steepness),
    "exo": Loss(exo, lambda o: -LN2 - (math.log1p(-o["label_smoothing"]) + math.log(o["label_smoothing"])) / 2),
    "nca": Loss(nca, lambda o: 2 * LN2),
    "discopop": Loss(discopop, lambda o: (LN2 + 1) / 2),
    "plackett_luce": Loss(listwise.plackett_luce),
    "lipo": Loss(listwise.lipo),
    "kto": Loss(batchwise.kto, lambda o: (o["desirable_weight"] + o["undesirable_weight"]) / 4),
    "bco": Loss(batchwise.bco, lambda o: math.log(2 + 2 * math.cosh(o["delta"] or 0.0))),
    "aot": Loss(batchwise.aot, lambda o: LN2),
    "aot_unpaired": Loss(batchwise.aot_unpaired, lambda o: LN2),
    "kto_unpaired": Loss(
        batchwise.kto_unpaired,
        lambda o: o["desirable_weight"] / 2 if o["desirable_weight"] == o["undesirable_weight"] else None,
    ),
    "bco_unpaired": Loss(batchwise.bco_unpaired, lambda o: LN2 if not o["delta"] else None),
    "apo_zero_unpaired": Loss(batchwise.apo_zero_unpaired, lambda o: 0.5),
}

OPTIONS = {name: loss.options for name, loss in LOSSES.items()}
UNPAIRED = tuple(name for name, loss in LOSSES.items() if "labels_B" in loss.reads)
PAIRWISE = tuple(name for name in LOSSES if name not in UNPAIRED)
REFERENCE_FREE = frozenset(name for name, loss in LOSSES.items() if "reference_BP" not in loss.reads)
LISTWISE = frozenset(name for name, loss in LOSSES.items() if "answers_BP" in loss.reads)
PER_TOKEN = frozenset(name for name, loss in LOSSES.items() if "num_tokens_BP" in loss.reads)
NON_SEPARABLE = frozenset(name for name, loss in LOSSES.items() if "weights_B" in loss.reads)

# What each number must satisfy, in Python and in words.
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
    """Raise InputError unless the loss exists, reads each of these options and each number is in range.

    A traced number is that of one of several runs in one program (`programs.abreast`), whose caller checks it.
    """
    errors.one_of("loss", name, LOSSES)
    known = ", ".join(OPTIONS[name])
    for option, value in options.items():
        if option not in OPTIONS[name]:
            readers = ", ".join(loss for loss in OPTIONS if option in OPTIONS[loss]) or "no loss"
            raise InputError(
                f"loss {name!r} does not read {option!r}; it reads {known}. {option!r} is read by: {readers}"
            )
        if (
            option in RANGES
            and not isinstance(value, jax.core.Tracer)
            and not (_is_finite(value) and RANGES[option][0](value))
        ):
            raise InputError(f"loss {name!r}: {option}={value!r} must be a number {RANGES[option][1]}")
    if "delta" in options and not (options["delta"] is None or _is_finite(options["delta"])):
        raise InputError(f"loss {name!r}: delta={options['delta']!r} must be a number, or None for the batch's own")
    if "beta" not in options:
        raise InputError(f"loss {name!r} needs beta; it reads {known}")
    _check_combination(name, options)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_combination(name: str, options: Mapping[str, object]) -> None:
    """Refuse values that are in range each but mean nothing together."""
    if name == "exo" and options.get("label_smoothing") == 0:
        raise InputError("loss 'exo': label_smoothing=0 puts log(0) in the loss; the default is 0.001")
    if name == "f_dpo":
        divergence = options.get("divergence", "reverse_kl")
        errors.one_of("loss 'f_dpo': divergence", divergence, scores.DIVERGENCES)
        if "alpha" in options and divergence != "alpha":
            raise InputError(f"loss 'f_dpo': alpha is only read with divergence='alpha', not with {divergence!r}")


def compute(
    name: str,
    *,
    policy_BP: jax.Array,
    reference_BP: jax.Array | None = None,
    num_tokens_BP: jax.Array | None = None,
    labels_B: jax.Array | None = None,
    weights_B: jax.Array | None = None,
    answers_BP: jax.Array | None = None,
    lists_B: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """[B] loss of each pair or labelled answer by the loss called `name`, which gets the arrays that it reads.

    Raises:
        TypeError: one of those that it needs was not passed.
    """
    arrays = {
        "policy_BP": policy_BP,
        "reference_BP": reference_BP,
        "num_tokens_BP": num_tokens_BP,
        "labels_B": labels_B,
        "weights_B": weights_B,
        "answers_BP": answers_BP,
        "lists_B": lists_B,
    }
    loss = LOSSES[name]
    if missing := sorted(array for array in loss.needs if arrays[array] is None):
        raise TypeError(f"loss {name!r} reads {', '.join(missing)}; pass {'it' if len(missing) == 1 else 'them'} too")
    return loss.fn(**{array: arrays[array] for array in loss.reads}, **options)


def rewards(
    name: str, policy_BP: jax.Array, reference_BP: jax.Array, num_tokens_BP: jax.Array, *, beta: float
) -> jax.Array:
    """[B, P] implicit rewards as TRL logs them: beta times the log-ratio, or what a reference-free loss compares."""
    if name not in REFERENCE_FREE:
        return beta * scores.log_ratios(policy_BP, reference_BP)
    return beta * (scores.per_token(policy_BP, num_tokens_BP) if name in PER_TOKEN else scores.precise(policy_BP))


def initial_loss(name: str, **options: Any) -> float | None:
    """What the mean loss must be while policy and reference agree; None where it depends on the data.

    It does not include an anchor that was added outside.
    """
    initial_fn = LOSSES[name].initial
    return None if initial_fn is None else initial_fn({**OPTIONS[name], **options})


def steepness(name: str, **options: Any) -> float:
    """How many times further than the rewards the loss may move by rounding at the start."""
    steepness_fn = LOSSES[name].steepness
    return 1.0 if steepness_fn is None else steepness_fn({**OPTIONS[name], **options})

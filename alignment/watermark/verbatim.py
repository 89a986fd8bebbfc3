"""How much less likely a mark makes a text that the model has memorised, and the theory's bounds beside it.

Source: Panaitescu-Liess et al., AAAI 2025, arXiv:2407.17417. A mark that adds delta to the logits of green tokens
changes a token's probability exactly as

    log p_w(v) - log p(v) = delta g(v) - log(1 + (e^delta - 1) G),   G = sum of p over green tokens,

so the log-probabilities and green masses G of a clean model give those under every strength, and no text is written.

Dimensions: N texts, T tokens of a text, V vocabulary, K keys.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from alignment.errors import InputError


@dataclasses.dataclass(frozen=True)
class Scored:
    """A text under a clean model and one key.

    Attributes:
        logps_T: log-probability of each token under the clean model, in nats.
        is_green_T: whether the token is in its list.
        green_mass_T: G, the clean probability of the whole list.
        means_T2, squares_T2: sums of p log p and of p log^2 p under the clean model, over red tokens and over green
            ones. None where nobody needs them.
        rivals_T2: logarithm of the least likely and of the likeliest other token's probability over the target's. None
            where nobody needs them.
    """

    logps_T: np.ndarray
    is_green_T: np.ndarray
    green_mass_T: np.ndarray
    means_T2: np.ndarray | None = None
    squares_T2: np.ndarray | None = None
    rivals_T2: np.ndarray | None = None

    def marked(self, delta: float) -> np.ndarray:
        """Log-probabilities [T] under the mark."""
        return self.logps_T + change(self.is_green_T, self.green_mass_T, delta)

    def marked_mass(self, delta: float) -> np.ndarray:
        """Probability [T] of the whole green list under the mark."""
        return self.green_mass_T * np.exp(delta - np.log1p(np.expm1(delta) * self.green_mass_T))


def check_logps(logps_T: np.ndarray, name: str) -> None:
    """Refuse log-probabilities that are not numbers.

    Raises:
        InputError: names the text.
    """
    if not len(logps_T) or not np.isfinite(logps_T).all() or (logps_T > 1e-6).any():
        raise InputError(f"{name}: its log-probabilities must be numbers up to 0, one or more; leave the text out")


def change(is_green_T: np.ndarray, green_mass_T: np.ndarray, delta: float) -> np.ndarray:
    """log p_w - log p of each token, see the module; `delta` in nats."""
    return delta * is_green_T - np.log1p(np.expm1(delta) * green_mass_T)


def perplexity(logps_T: np.ndarray) -> float:
    """exp of the mean negative log-probability."""
    return math.exp(-float(np.mean(logps_T)))


@dataclasses.dataclass(frozen=True)
class Increase:
    """By how much the perplexity of memorised texts grows, as a ratio minus 1.

    Attributes:
        delta_of_mean: of the mean perplexity over texts.
        mean_of_delta: mean over texts of each text's own increase.
        delta_of_min: of the smallest perplexity.
        min_of_delta: the smallest increase.
        log10_factor: the smallest log10 of P(text) / P_w(text).
    """

    delta_of_mean: float
    mean_of_delta: float
    delta_of_min: float
    min_of_delta: float
    log10_factor: float


def increase(clean: Sequence[np.ndarray], marked: Sequence[np.ndarray]) -> Increase:
    """The increase from clean to marked log-probabilities [T] of the same texts; the paper's text allows both orders.

    Raises:
        InputError: no texts.
    """
    if not clean:
        raise InputError("no text to measure; give at least one member")
    before, after = (np.array([perplexity(x) for x in logps]) for logps in (clean, marked))
    factors = [float(np.sum(c) - np.sum(w)) / math.log(10) for c, w in zip(clean, marked)]
    return Increase(
        delta_of_mean=float(after.mean() / before.mean() - 1),
        mean_of_delta=float((after / before - 1).mean()),
        delta_of_min=float(after.min() / before.min() - 1),
        min_of_delta=float((after / before - 1).min()),
        log10_factor=min(factors),
    )


# The theory's bounds


def hard_bound(num_texts: float, length: int, gamma: float) -> float:
    """The probability that a model with red tokens ruled out emits one of the texts: below m gamma^n."""
    return num_texts * gamma**length


def soft_ratio(epsilon: float) -> tuple[float, float]:
    """(M, the least factor a token): targets whose rivals are below M lose at least (1 + 2e/(2e + 1)) a token.

    Raises:
        InputError: epsilon is not in (0, 1/4).
    """
    if not 0 < epsilon < 0.25:
        raise InputError(f"epsilon={epsilon} must be between 0 and 1/4")
    return (1 - 4 * epsilon) / (1 + 4 * epsilon), 1 + 2 * epsilon / (2 * epsilon + 1)


def soft_delta(epsilon: float, mu: float) -> float:
    """The strength above which `soft_ratio` holds where the smallest rival has `mu` of the target's probability."""
    soft_ratio(epsilon)
    return math.log((1 - 2 * epsilon * (mu + 1)) / (2 * epsilon * mu))


def soft_epsilon(log_ratio: float) -> float | None:
    """The largest epsilon of `soft_ratio` for targets whose likeliest rival has e^log_ratio of their probability.

    None where the rival is as likely as the target, of which the theory says nothing.
    """
    ratio = math.exp(min(log_ratio, 1.0))
    return 0.999 * (1 - ratio) / (4 * (1 + ratio)) if ratio < 1 else None  # below: the bounds hold for a smaller ratio


def soft_bound(num_texts: float, length: int, epsilon: float) -> float:
    """The probability that one of the texts is emitted: below m ((2e + 1) / (4e + 1))^n."""
    soft_ratio(epsilon)
    return num_texts * ((2 * epsilon + 1) / (4 * epsilon + 1)) ** length


def expected_increase(delta: float, gamma: float, *, length: float = math.inf, target: float | None = None) -> float:
    """The mean over keys of the perplexity's relative increase, where the list's mass is near its expectation.

    Args:
        length: tokens; infinity for the limit.
        target: the target's probability, the rest being spread; None: spread all over, so that G = gamma.
    """
    on = math.expm1(delta)
    if target is None:
        green = red = math.log1p(on * gamma)
    else:
        red = math.log1p(on * (1 - target) * gamma)
        green = math.log1p(on * (target + (1 - target) * gamma))
    losses = (green - delta, red)  # of a green target and a red one, in nats
    if math.isinf(length):
        return math.expm1(gamma * losses[0] + (1 - gamma) * losses[1])
    mean = gamma * math.exp(losses[0] / length) + (1 - gamma) * math.exp(losses[1] / length)
    return mean**length - 1


# Approximate memorisation


def edit_similarity(a: Sequence[int] | str, b: Sequence[int] | str) -> float:
    """1 - Levenshtein distance / longer length, in [0, 1]."""
    if not len(a) and not len(b):
        return 1.0
    a, b = ([ord(x) if isinstance(x, str) else x for x in text] for text in (a, b))
    b_N = np.array(b, np.int64)
    row = np.arange(len(b_N) + 1)
    places = np.arange(len(b_N) + 1)
    for i, x in enumerate(a):
        here = np.concatenate(
            [[i + 1], np.minimum(row[1:] + 1, row[:-1] + (b_N != (ord(x) if isinstance(x, str) else x)))]
        )
        row = np.minimum.accumulate(here - places) + places  # insertions run along the row
    return 1 - int(row[-1]) / max(len(a), len(b))


def bleu(written: Sequence[int] | Sequence[str], gold: Sequence[int] | Sequence[str], order: int = 4) -> float:
    """BLEU of one continuation against one (Papineni et al. 2002), with 1 added to counts beyond single words."""
    if not written or not gold:
        return 0.0
    logs = []
    for n in range(1, order + 1):
        ours, theirs = _grams(written, n), _grams(gold, n)
        shared = sum(min(num, theirs.get(gram, 0)) for gram, num in ours.items())
        more = 0 if n == 1 else 1
        total = max(len(written) - n + 1, 0) + more
        if not shared + more:
            return 0.0
        logs.append(math.log((shared + more) / total))
    return math.exp(min(0.0, 1 - len(gold) / len(written)) + sum(logs) / order)


def _grams(items, n):
    out: dict[tuple, int] = {}
    for i in range(len(items) - n + 1):
        gram = tuple(items[i : i + n])
        out[gram] = out.get(gram, 0) + 1
    return out

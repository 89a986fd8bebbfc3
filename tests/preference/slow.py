"""Slow twins: each loss from its paper's formula, one pair at a time, in Python floats."""

import math


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def each(pair_loss):
    """A loss over (s_w, s_l, r_w, r_l, n_w, n_l) as a loss over batches."""

    def batch_loss(policy, reference, num_tokens, **options):
        rows = zip(policy, reference, num_tokens)
        return [pair_loss(*s, *r, *n, **options) for s, r, n in rows]

    return batch_loss


@each
def dpo(sw, sl, rw, rl, nw, nl, beta, label_smoothing=0.0):
    z = beta * ((sw - rw) - (sl - rl))
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@each
def robust(sw, sl, rw, rl, nw, nl, beta, label_smoothing=0.0):
    z = beta * ((sw - rw) - (sl - rl))
    kept, flipped = -log_sigmoid(z), -log_sigmoid(-z)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


@each
def hinge(sw, sl, rw, rl, nw, nl, beta):
    return max(0.0, 1 - beta * ((sw - rw) - (sl - rl)))


@each
def ipo(sw, sl, rw, rl, nw, nl, beta):
    return ((sw - rw) / nw - (sl - rl) / nl - 1 / (2 * beta)) ** 2


@each
def ipo_sum(sw, sl, rw, rl, nw, nl, beta):
    return ((sw - rw) - (sl - rl) - 1 / (2 * beta)) ** 2


@each
def reference_free(sw, sl, rw, rl, nw, nl, beta, label_smoothing=0.0):
    z = beta * (sw - sl)
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@each
def sigmoid_norm(sw, sl, rw, rl, nw, nl, beta, label_smoothing=0.0):
    z = beta * ((sw - rw) / nw - (sl - rl) / nl)
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@each
def f_dpo(sw, sl, rw, rl, nw, nl, beta, divergence="reverse_kl", alpha=0.5, label_smoothing=0.0):
    """f'(u) as in Table 1 of the paper, without dropping the constants, u = pi / pi_ref."""
    f_prime = {
        "reverse_kl": lambda u: math.log(u) + 1,
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: math.log(2 * u / (1 + u)),
        "alpha": lambda u: (1 - u ** (-alpha)) / alpha,
    }[divergence]
    z = beta * (f_prime(math.exp(sw - rw)) - f_prime(math.exp(sl - rl)))
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@each
def dpop(sw, sl, rw, rl, nw, nl, beta, penalty=50.0):
    return -log_sigmoid(beta * ((sw - rw) - (sl - rl) - penalty * max(0.0, rw - sw)))


@each
def simpo(sw, sl, rw, rl, nw, nl, beta, gamma=0.5):
    return -log_sigmoid(beta / nw * sw - beta / nl * sl - gamma)


@each
def orpo(sw, sl, rw, rl, nw, nl, beta):
    p_w, p_l = math.exp(sw / nw), math.exp(sl / nl)
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -sw / nw - beta * math.log(sigmoid(math.log(odds_ratio)))


@each
def apo_zero(sw, sl, rw, rl, nw, nl, beta):
    return -sigmoid(beta * (sw - rw)) + sigmoid(beta * (sl - rl)) + 1


@each
def apo_down(sw, sl, rw, rl, nw, nl, beta):
    return sigmoid(beta * (sw - rw)) - sigmoid(beta * ((sw - rw) - (sl - rl))) + 1


@each
def sppo(sw, sl, rw, rl, nw, nl, beta):
    eta = 1 / beta
    return ((sw - rw) - eta * (1 - 0.5)) ** 2 + ((sl - rl) - eta * (0 - 0.5)) ** 2


@each
def exo(sw, sl, rw, rl, nw, nl, beta, label_smoothing=1e-3):
    a, b = beta * (sw - rw), beta * (sl - rl)
    p = [1 / (1 + math.exp(b - a)), 1 / (1 + math.exp(a - b))]
    q = [1 - label_smoothing, label_smoothing]
    return sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q))


@each
def nca(sw, sl, rw, rl, nw, nl, beta):
    a, b = beta * (sw - rw), beta * (sl - rl)
    return -log_sigmoid(a) - 0.5 * log_sigmoid(-a) - 0.5 * log_sigmoid(-b)


@each
def discopop(sw, sl, rw, rl, nw, nl, beta, tau=0.05):
    z = beta * ((sw - rw) - (sl - rl))
    blend = sigmoid(z / tau)
    return (1 - blend) * -log_sigmoid(z) + blend * math.exp(-z)


def plackett_luce_list(rewards):
    """-log of the probability that the answers are chosen in this order, each from those left, as e to its reward."""
    weights = [math.exp(r) for r in rewards]
    return -sum(math.log(w / sum(weights[i:])) for i, w in enumerate(weights))


def plackett_luce(policy, reference, num_tokens, beta):
    """Pairs as lists of two."""
    return [plackett_luce_list([beta * (s - r) for s, r in zip(*pair)]) for pair in zip(policy, reference)]


def lipo_list(rewards, levels=None):
    """One list of answers, the best first, or with a level each, higher better and equal ones tied."""
    n = len(rewards)
    levels = list(range(n, 0, -1)) if levels is None else levels
    order = sorted(range(n), key=lambda i: (-rewards[i], i))
    rank = {i: place + 1 for place, i in enumerate(order)}
    share = [sum((level > x) + (level == x) / 2 for x in levels) / n for level in levels]
    total = 0.0
    for i in range(n):
        for j in range(n):
            if levels[i] > levels[j]:
                gains = abs((2 ** share[i] - 1) - (2 ** share[j] - 1))
                discounts = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                total += gains * discounts * math.log(1 + math.exp(-(rewards[i] - rewards[j])))
    return total


def lipo(policy, reference, num_tokens, beta):
    """Pairs as lists of two."""
    return [lipo_list([beta * (s - r) for s, r in zip(*pair)]) for pair in zip(policy, reference)]


def mean(values):
    return sum(values) / len(values)


def kto(policy, reference, num_tokens, beta, desirable_weight=1.0, undesirable_weight=1.0):
    ratios = [(sw - rw, sl - rl) for (sw, sl), (rw, rl) in zip(policy, reference)]
    kl_w, kl_l = max(0.0, mean([w for w, _ in ratios])), max(0.0, mean([l for _, l in ratios]))
    return [
        (desirable_weight * (1 - sigmoid(beta * (w - kl_l))) + undesirable_weight * (1 - sigmoid(beta * (kl_w - l))))
        / 2
        for w, l in ratios
    ]


def bco(policy, reference, num_tokens, beta, delta=None):
    pairs = [(beta * (sw - rw), beta * (sl - rl)) for (sw, sl), (rw, rl) in zip(policy, reference)]
    if delta is None:
        delta = (mean([w for w, _ in pairs]) + mean([l for _, l in pairs])) / 2
    return [-log_sigmoid(w - delta) - log_sigmoid(-(l - delta)) for w, l in pairs]


def aot(policy, reference, num_tokens, beta, label_smoothing=0.0):
    """Losses by rank, smallest policy margin first."""
    margins = sorted(sw - sl for sw, sl in policy)
    z = [beta * (m - r) for m, r in zip(margins, sorted(rw - rl for rw, rl in reference))]
    return [-(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x) for x in z]


def aot_unpaired(policy, reference, num_tokens, beta, label_smoothing=0.0):
    """Losses by rank, smallest chosen log-ratio first."""
    chosen = sorted(s[0] - r[0] for s, r in zip(policy, reference))
    rejected = sorted(s[1] - r[1] for s, r in zip(policy, reference))
    z = [beta * (w - l) for w, l in zip(chosen, rejected)]
    return [-(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x) for x in z]


def kto_unpaired(policy, reference, labels, beta, desirable_weight=1.0, undesirable_weight=1.0):
    own = [s[0] - r[0] for s, r in zip(policy, reference)]
    kl = max(0.0, mean([s[1] - r[1] for s, r in zip(policy, reference)]))
    losses = []
    for ratio, label in zip(own, labels):
        if label:
            losses.append(desirable_weight - desirable_weight * sigmoid(beta * (ratio - kl)))
        else:
            losses.append(undesirable_weight - undesirable_weight * sigmoid(beta * (kl - ratio)))
    return losses


def bco_unpaired(policy, reference, labels, beta, delta=None):
    own = [beta * (s[0] - r[0]) for s, r in zip(policy, reference)]
    if delta is None:
        groups = [[x for x, label in zip(own, labels) if label == side] for side in (1, 0)]
        delta = mean([mean(group) for group in groups if group])
    return [-log_sigmoid(x - delta) if label else -log_sigmoid(-(x - delta)) for x, label in zip(own, labels)]


def apo_zero_unpaired(policy, reference, labels, beta):
    own = [beta * (s[0] - r[0]) for s, r in zip(policy, reference)]
    return [1 - sigmoid(x) if label else sigmoid(x) for x, label in zip(own, labels)]

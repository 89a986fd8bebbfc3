"""What is compared: ways to write answers that follow several objectives, each with weights."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from alignment.errors import InputError

BASE, GREEDY, GENARM, SOUP, DPO = "base", "base_greedy", "genarm", "soups", "dpo"
BEST, ARGS, PROXY, CONTRASTIVE = "best_of_n", "args", "proxy", "contrastive"
SMALL = (PROXY, CONTRASTIVE)  # they take off the log-probabilities of a small model
BASELINES = (GREEDY, DPO, SOUP, BEST, ARGS, PROXY, CONTRASTIVE)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to write, and a point of the frontier.

    Attributes:
        kind: see above.
        weights: one for each objective: alpha of guided decoding, a share of a soup, of rewards that choose among
            samples. () where it has none.
        temperature: of its draws.
    """

    kind: str
    weights: tuple[float, ...] = ()
    temperature: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kind} {','.join(f'{w:.3g}' for w in self.weights)}" if self.weights else self.kind


def lattice(num_objectives: int, points: int, total: float = 1.0) -> list[tuple[float, ...]]:
    """Weights that are multiples of total / (points - 1) and add up to `total`; with one objective, up to `total`."""
    steps = points - 1
    if num_objectives == 1:
        return [(total * (i + 1) / points,) for i in range(points)]
    shares = itertools.product(range(steps, -1, -1), repeat=num_objectives)
    return [tuple(total * k / steps for k in share) for share in shares if sum(share) == steps]


def corners(num_objectives: int, total: float = 1.0) -> list[tuple[float, ...]]:
    """All weight on one objective."""
    return [tuple(total * (i == k) for k in range(num_objectives)) for i in range(num_objectives)]


def check_alphas(alphas: Sequence[Sequence[float]], *, num_objectives: int | None = None, allow_negative: bool) -> None:
    """Refuse weights that guide nowhere.

    Raises:
        InputError: not a number, negative without being allowed, or another number of weights than of objectives.
    """
    for weights in alphas:
        if not isinstance(weights, tuple | list) or not weights:
            raise InputError(f"alphas has {weights!r}; it must hold tuples of a weight for each objective")
        for alpha in weights:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise InputError(f"alphas has {alpha!r}, which is not a finite number")
            if alpha < 0 and not allow_negative:
                raise InputError(
                    f"alphas has {alpha}, which steers away from what its reward model prefers; set "
                    "allow_negative=True if that is meant"
                )
        if num_objectives is not None and len(weights) != num_objectives:
            raise InputError(f"alphas has {weights!r} and there are {num_objectives} objectives; give one for each")


def grid(
    names: Sequence[str], *, points: int, strength: float, alphas: Sequence[Sequence[float]], temperature: float
) -> list[Method]:
    """Guided decoding at every point of its grid: the corners first, whatever else is asked for."""
    wanted = [tuple(map(float, weights)) for weights in alphas] or lattice(len(names), points, strength)
    return [Method(GENARM, w, temperature) for w in dict.fromkeys([*corners(len(names), strength), *wanted])]


def baselines(names: Sequence[str], wanted: Sequence[str], *, points: int, temperature: float) -> list[Method]:
    """The methods beside it; the base's draws are always there, because everything is compared with them."""
    num, out = len(names), [Method(BASE, (), temperature)]
    out += [Method(GREEDY)] * (GREEDY in wanted)
    out += [Method(DPO, (), temperature)] * (DPO in wanted and num > 1)  # of one objective, it is the soup's only point
    shares = corners(num) if num == 1 else lattice(num, points)
    # a soup's corners are the DPO models of single objectives, beside which guided decoding is judged
    soups = shares if SOUP in wanted else corners(num) if DPO in wanted else []
    out += [Method(SOUP, weights, temperature) for weights in soups]
    out += [Method(BEST, weights, temperature) for weights in shares if BEST in wanted]
    for kind in (ARGS, PROXY):
        out += [Method(kind, w, 0.0 if kind == ARGS else temperature) for w in corners(num) if kind in wanted]
    return out + [Method(CONTRASTIVE, (), temperature)] * (CONTRASTIVE in wanted)

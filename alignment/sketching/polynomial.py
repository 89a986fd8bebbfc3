"""Polynomials in place of activations: sigma(z) is nearly sum_k a_k z^k.

Source: Han, Avron and Shin 2020, arXiv:2002.08106 (polynomial tensor sketch). A set of coefficients begins with the
constant, a_0; sketched layers have none, and take the rest.

Dimensions: S samples.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev

from alignment import errors
from alignment.errors import InputError

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
}
TAYLOR = {"sigmoid": (0.5, 0.25, 0.0, -1 / 48), "tanh": (0.0, 1.0, 0.0, -1 / 3)}
COEFFICIENTS = ("learned", "taylor", "least_squares", "ridge")  # how a network gets its own


def taylor(activation: str, degree: int) -> np.ndarray:
    """Expansion at 0, up to degree 3; ReLU and ELU have none."""
    errors.one_of("activation", activation, TAYLOR, hint="only these are expanded; least_squares fits the others")
    if degree > 3:
        raise InputError(f"order={degree}: the expansions go up to 3; take coefficients=least_squares")
    return np.array(TAYLOR[activation][: degree + 1])


def least_squares(
    activation: str, degree: int, *, radius: float = 3.0, has_constant: bool = True, samples: int = 200_001
) -> np.ndarray:
    """Best fit on [-radius, radius], with every z of the same weight; a_0 is 0 where there is no constant.

    The integrals are sums over an even grid of midpoints.
    """
    errors.one_of("activation", activation, ACTIVATIONS)
    edges = np.linspace(-radius, radius, samples + 1)
    z_S = (edges[:-1] + edges[1:]) / 2
    return _solved(z_S, ACTIVATIONS[activation](z_S), degree, has_constant=has_constant)


def ridge(
    activation: str,
    z_S: np.ndarray,
    degree: int,
    *,
    row_norms: tuple[np.ndarray, np.ndarray],
    width: int,
    clusters: int = 10,
    has_constant: bool = True,
) -> np.ndarray:
    """Coreset regression of the polynomial tensor sketch (Algorithm 2), which weighs an order's error in the sketch.

    argmin_a |V a - sigma(z)|^2 + |W a|^2 over cluster centres, each weighted by its cluster's size, where
    W_kk = sqrt(r (2 + 3^k) sum_i |U_i|^2k sum_j |V_j|^2k / C), and W_00 = 0: an order whose sketch is noisy is used
    less. Where a released program has the exponent k + 1, this has the k of the bound.

    Args:
        z_S: sampled entries of U V^T.
        row_norms: of the rows of U and of V.
        width: C, rows of the sketch.
        clusters: greedy k-centres of z.
    """
    errors.one_of("activation", activation, ACTIVATIONS)
    centres, sizes = k_centres(np.asarray(z_S, np.float64), clusters)
    u, v = (np.asarray(norms, np.float64) for norms in row_norms)
    penalties = [0.0] + [
        math.sqrt(degree * (2 + 3**k) * np.sum(u ** (2 * k)) * np.sum(v ** (2 * k)) / width)
        for k in range(1, degree + 1)
    ]
    target = ACTIVATIONS[activation](centres)
    return _solved(centres, target, degree, weights=sizes, penalties=np.array(penalties), has_constant=has_constant)


def k_centres(z_S: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy k-centres, each the sample furthest from those before it, and how many samples are nearest to each."""
    centres = [float(z_S[0])]
    distance_S = np.abs(z_S - z_S[0])
    while len(centres) < clusters and distance_S.max() > 0:
        centres.append(float(z_S[np.argmax(distance_S)]))
        distance_S = np.minimum(distance_S, np.abs(z_S - centres[-1]))
    nearest_S = np.argmin(np.abs(z_S[:, None] - np.array(centres)[None]), axis=1)
    return np.array(centres), np.bincount(nearest_S, minlength=len(centres)).astype(np.float64)


def _solved(
    z_S: np.ndarray,
    target_S: np.ndarray,
    degree: int,
    *,
    weights: np.ndarray | None = None,
    penalties: np.ndarray | None = None,
    has_constant: bool,
) -> np.ndarray:
    """Coefficients of z^0 to z^degree, solved in the Chebyshev basis: powers of z are nearly parallel."""
    radius = float(np.max(np.abs(z_S))) or 1.0
    to_powers = np.zeros((degree + 1, degree + 1))  # column m: Chebyshev polynomial m of z / radius, in powers of z
    for m in range(degree + 1):
        column = chebyshev.cheb2poly([0.0] * m + [1.0])
        to_powers[: len(column), m] = column / radius ** np.arange(len(column))
    values_SM = chebyshev.chebvander(z_S / radius, degree)
    first = 0 if has_constant else 1
    if not has_constant:
        # Combinations of Chebyshev polynomials without a constant: those of even order less their value at 0.
        shift_M = chebyshev.chebvander(np.zeros(1), degree)[0]
        values_SM = values_SM - shift_M
        to_powers[0] -= shift_M
    values_SM, basis = values_SM[:, first:], to_powers[:, first:]
    root_S = np.ones(len(z_S)) if weights is None else np.sqrt(weights)
    rows, right = values_SM * root_S[:, None], target_S * root_S
    if penalties is not None:
        rows = np.concatenate([rows, penalties[:, None] * basis])
        right = np.concatenate([right, np.zeros(degree + 1)])
    return basis @ np.linalg.lstsq(rows, right, rcond=None)[0]

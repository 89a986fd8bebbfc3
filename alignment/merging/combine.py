"""How several models' blocks become one: sums, the consensus of TIES, arcs, and the centre of Model Stock.

Dimensions: K models, B entries of a block, R rows.
"""

import math

import numpy as np

from alignment.merging.blocks import scratch

SIGN = np.uint32(1 << 31)  # the bit of a float32's sign
SMALLEST_DIVISOR = 1e-8
PARALLEL = 0.9995  # cosine above which an arc is a line
SMALLEST_NORMS = 1e-6  # of the product of two lengths that a cosine is divided by


def weighted_sum(block_KB: np.ndarray, weights_K: np.ndarray, *, normalize: bool) -> np.ndarray:
    """The models' sum, or with `normalize` their mean, by weight; the block is overwritten.

    Model soups (Wortsman et al. 2022, arXiv:2203.05482) on weights, task arithmetic (Ilharco et al. 2022,
    arXiv:2212.04089) on differences.
    """
    total = float(weights_K.sum()) if normalize else 1.0
    total = 1.0 if abs(total) < SMALLEST_DIVISOR else total
    sum_B = block_KB[0]
    sum_B *= np.float32(weights_K[0] / total)
    for block_B, weight in zip(block_KB[1:], weights_K[1:]):
        block_B *= np.float32(weight / total)
        sum_B += block_B
    return sum_B


def consensus(delta_KB: np.ndarray, weights_K: np.ndarray, *, normalize: bool, votes_weigh: bool = True) -> np.ndarray:
    """For each entry a sign is elected, and the models that agree with it are summed: TIES (arXiv:2306.01708).

    A sum that is exactly zero elects plus, and entries that are zero agree with neither sign. The block is overwritten.

    Args:
        normalize: divide by the weights of those that agree.
        votes_weigh: whether the sum that elects is weighted.
    """
    votes_B = scratch("votes", delta_KB.shape[1])
    if not votes_weigh:
        np.add.reduce(delta_KB, axis=0, out=votes_B)
    for delta_B, weight in zip(delta_KB, weights_K):
        delta_B *= np.float32(weight)
    if votes_weigh:
        np.add.reduce(delta_KB, axis=0, out=votes_B)
    votes_B += 0  # a zero with a minus elects plus as well
    flips_B = votes_B.view(np.uint32)
    flips_B &= SIGN  # of entries that elect minus; flipping signs by their bits takes a third of the time of products
    total_B = scratch("total", delta_KB.shape[1])
    total_B.fill(0)
    for delta_B, weight in zip(delta_KB, weights_K):
        bits_B = delta_B.view(np.uint32)
        bits_B ^= flips_B
        agrees_B = delta_B > 0
        if normalize:
            total_B += agrees_B * np.float32(weight)
        delta_B *= agrees_B
    sum_B = delta_KB[0]
    for delta_B in delta_KB[1:]:
        sum_B += delta_B
    if normalize:
        total_B += np.abs(total_B) < SMALLEST_DIVISOR  # then it is 1; assigning through a mask takes six times as long
        sum_B /= total_B
    bits_B = sum_B.view(np.uint32)
    bits_B ^= flips_B
    return sum_B


def products(block_KB: np.ndarray) -> np.ndarray:
    """Scalar products of all pairs of a block, [K, K]; of few rows, pairs are faster than a matrix product."""
    num = len(block_KB)
    out_KK = np.empty((num, num))
    for i in range(num):
        for j in range(i, num):
            out_KK[i, j] = out_KK[j, i] = np.dot(block_KB[i], block_KB[j])
    return out_KK


def arc(dot: float, norms: tuple[float, float], t: float) -> tuple[float, float]:
    """The factors of two vectors, themselves of any length, at the share `t` of the arc between their directions.

    SLERP (Shoemake 1985). Vectors that are nearly parallel are mixed on a line; one of length zero counts as upright.
    """
    if t in (0.0, 1.0):
        return 1.0 - t, t
    cosine = dot / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
    if abs(cosine) > PARALLEL:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def centre(gram_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean cosine of the differences from the base, and how far Model Stock goes from the base to their mean.

    Jang et al. 2024, arXiv:2403.19522, for K fine-tunes: ratio = K c / (1 + (K - 1) c), which is not clamped: below a
    cosine of 0 it goes past the base.

    Args:
        gram_KK: scalar products of the differences; more dimensions may stand before, as for a row each.

    Returns:
        The mean cosine in [-1, 1], and the ratio, 0 where it is not defined.
    """
    num = gram_KK.shape[-1]
    lengths_K = np.sqrt(np.maximum(np.diagonal(gram_KK, axis1=-2, axis2=-1), 0))
    norms_KK = np.maximum(lengths_K[..., :, None] * lengths_K[..., None, :], SMALLEST_NORMS)
    pairs = np.triu_indices(num, 1)
    cosine = np.clip(gram_KK / norms_KK, -1, 1)[..., pairs[0], pairs[1]].mean(axis=-1)
    divisor = 1 + (num - 1) * cosine
    is_defined = np.abs(divisor) > SMALLEST_DIVISOR
    return cosine, np.where(is_defined, num * cosine / np.where(is_defined, divisor, 1), 0.0)

"""Peers that rebalance by weights: group DRO and JTT.

Sagawa et al. 2020 (arXiv:1911.08731), Algorithm 1; Liu et al. 2021 (arXiv:2107.09044). Retraining of the last layer
(DFR, Kirichenko et al. 2023, arXiv:2204.02937) is a logistic regression on `rebalance.balanced` held-out texts.

Dimensions: B rows of a batch, N texts, G groups.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def group_losses(loss_B: jax.Array, groups_B: jax.Array, rows_B: jax.Array, num_groups: int) -> tuple[Any, Any]:
    """Mean loss of each group in a batch, 0 for a group without a row, and whether it has one; [G] each.

    Args:
        rows_B: 1 for a row, 0 for what fills the batch.
    """
    one_hot_BG = jax.nn.one_hot(groups_B, num_groups) * rows_B[:, None]
    size_G = one_hot_BG.sum(axis=0)
    return (loss_B[:, None] * one_hot_BG).sum(axis=0) / jnp.maximum(size_G, 1.0), size_G > 0


def reweighted(q_G: Any, loss_G: Any, *, rate: float) -> Any:
    """q times exp(rate times loss), of sum 1: groups that lose more count more from now on."""
    raised_G = q_G * jnp.exp(rate * loss_G)
    return raised_G / raised_G.sum()


def repeated(is_wrong_N: np.ndarray, factor: int) -> np.ndarray:
    """Places of the texts of JTT's second training: `factor` times each that the first one got wrong, else once."""
    return np.repeat(np.arange(len(is_wrong_N)), np.where(is_wrong_N, factor, 1))

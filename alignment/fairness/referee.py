"""Factors that scale the learning rate of each place: a network's, the hand-made rule's, group DRO's.

The network is a reconstruction: the equations of Chen et al. 2024 (AAAI, doi 10.1609/aaai.v38i20.30197) could not be
read. Factors have mean 1 within a task; without that, or a term for quality, the network learns to teach nothing, which
makes every place equally bad.

Dimensions: S places of a task, E width of an encoding, B tasks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError

HAND_MADE_RATE, HAND_MADE_LEAST, RELEASED_RATE = 5e-4, 1e-7, 1e-3  # of Xie et al. 2022
MAX_RAW = 2.0


class Seen(NamedTuple):
    """What sets a task's factors at one inner step; gradients stop here.

    `weight_S` is 1 for places and 0 for filling; `total_S` sums the losses over the inner steps so far, this one too;
    `score_S` is the quality on the support set and `reference` that of the whole support set before the first step.
    """

    loss_S: jax.Array
    encoding_SE: jax.Array
    weight_S: jax.Array
    total_S: jax.Array
    score_S: jax.Array
    reference: jax.Array


FactorsFn = Callable[[Any, Seen], jax.Array]  # (phi, what is seen) -> raw factors [S], above 0


class Referee(nn.Module):
    """u_s = [loss, mean loss, difference, mean encoding] -> 2 sigmoid(MLP(u_s)), in (0, 2); 1 before training.

    Places share the weights, so the order of places does not matter and their number is free.
    """

    width: int = 32

    @nn.compact
    def __call__(self, loss_S: jax.Array, encoding_SE: jax.Array, weight_S: jax.Array) -> jax.Array:
        mean = mean_over(loss_S, weight_S)
        u_S3 = jnp.stack([loss_S, jnp.broadcast_to(mean, loss_S.shape), loss_S - mean], axis=-1)
        hidden_SF = jnp.tanh(nn.Dense(self.width, name="hidden")(jnp.concatenate([u_S3, encoding_SE], axis=-1)))
        # All zeros, so that the factors are 1 at first and the run begins as plain MAML.
        out_S1 = nn.Dense(1, name="out", kernel_init=nn.initializers.zeros)(hidden_SF)
        return MAX_RAW * nn.sigmoid(out_S1[..., 0])


def mean_over(values_S: jax.Array, weight_S: jax.Array) -> jax.Array:
    """The mean over places; filling has weight 0."""
    return jnp.sum(values_S * weight_S) / jnp.sum(weight_S)


def normalise(raw_S: jax.Array, weight_S: jax.Array) -> jax.Array:
    """Factors with mean 1 over the places of a task."""
    return raw_S / mean_over(raw_S, weight_S)


def check_raw(raw_BS: np.ndarray, weight_BS: np.ndarray) -> None:
    """Refuse raw factors that cannot be normalised.

    Raises:
        InputError: a negative one, one that is not a number, or a task whose factors are all 0.
    """
    raw_BS = np.asarray(raw_BS)
    for task, (raw_S, weight_S) in enumerate(zip(raw_BS, np.asarray(weight_BS))):
        raw_S = raw_S[weight_S > 0]
        if len(raw_S) and (not np.isfinite(raw_S).all() or raw_S.min() < 0 or raw_S.max() == 0):
            raise InputError(
                f"task {task} has raw factors {np.round(raw_S, 4).tolist()}: they must be numbers, none below 0 and "
                "one above it; look at the function that makes them"
            )


def hand_made(
    score_S: Any, reference: Any, *, rate: float = HAND_MADE_RATE, as_released: bool = False, weight_S: Any = None
) -> jax.Array:
    """Learning rates by place of Xie et al. 2022: rate * gap_s / max gap + 1e-7, with gap_s = max(E_m - m_s, 0).

    Args:
        score_S: quality of each place.
        reference: E_m.
        as_released: 1e-3 everywhere: the released script computes these rates and never hands them to its optimiser.
        weight_S: 0 leaves a place out of the largest gap; None counts all.
    """
    score_S = jnp.asarray(score_S)
    if as_released:
        return jnp.full(score_S.shape, RELEASED_RATE)
    gap_S = jnp.maximum(reference - score_S, 0)
    largest = jnp.max(gap_S if weight_S is None else gap_S * weight_S)
    # The largest gap is 0 where every place reaches the reference; all gaps are then 0 as well.
    return rate * gap_S / jnp.where(largest > 0, largest, 1.0) + HAND_MADE_LEAST


def group_dro(total_S: jax.Array, weight_S: jax.Array, *, rate: float) -> jax.Array:
    """q_s proportional to exp(rate * sum of losses so far): multiplicative weights of Sagawa et al. 2020
    (arXiv:1911.08731), with mean 1 over places.
    """
    logits_S = jnp.where(weight_S > 0, rate * total_S, -jnp.inf)
    return jax.nn.softmax(logits_S) * jnp.sum(weight_S)


EVEN, NETWORK, HAND_MADE, DRO = "even", "referee", "hand_made", "dro"
KINDS = (EVEN, NETWORK, HAND_MADE, DRO)


def factors_fn(kind: str, *, width: int = 32, as_released: bool = False, dro_rate: float = 1.0) -> FactorsFn:
    """The function of one of KINDS.

    Args:
        width: of the network, as `Referee` has it.
        as_released: of the hand-made rule.
        dro_rate: of group DRO, per unit of loss.
    """
    if kind == NETWORK:
        network: Any = Referee(width)
        return lambda phi, seen: network.apply({"params": phi}, seen.loss_S, seen.encoding_SE, seen.weight_S)
    if kind == HAND_MADE:
        return lambda phi, seen: hand_made(
            seen.score_S, seen.reference, as_released=as_released, weight_S=seen.weight_S
        )
    if kind == DRO:
        return lambda phi, seen: group_dro(seen.total_S, seen.weight_S, rate=dro_rate)
    return lambda phi, seen: jnp.ones_like(seen.loss_S)

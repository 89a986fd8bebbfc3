"""A reward of whole answers: linear in a frozen decoder's hidden states, by Bradley and Terry's model of pairs.

The features of an answer are the mean of the hidden states at its tokens and the one at its last token, so that the
reward of an answer that goes on can be carried along. Fitting is convex: the same pairs give the same reward.

Dimensions: N answers, T time, D model width, E = 2D features, B pairs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from alignment.errors import InputError
from alignment.models import decoder

ROWS = 32  # answers of one forward pass


@dataclasses.dataclass(frozen=True)
class LinearReward:
    """`(features - mean_E) @ weights_E`, in nats: its difference is the log-odds that one answer is preferred."""

    weights_E: np.ndarray
    mean_E: np.ndarray

    def of(self, features_NE: np.ndarray) -> np.ndarray:
        """Rewards [N]."""
        return (features_NE - self.mean_E) @ self.weights_E


def features(model: decoder.DecoderLM, params: Any, answers: Sequence[tuple[Sequence[int], int]]) -> np.ndarray:
    """Features [N,E] float32 of answers.

    Args:
        answers: token ids of a prompt and its answer, and the number of those that are the prompt. An answer without a
            token has the features of the prompt's last token.
    """
    longest = max((len(ids) for ids, _ in answers), default=1)
    num_time = -(-longest // 32) * 32  # few shapes are compiled
    out = np.zeros((len(answers), 2 * model.model_dim), np.float32)
    for at in range(0, len(answers), ROWS):
        part = answers[at : at + ROWS]
        tokens_NT = np.zeros((ROWS, num_time), np.int32)
        first_N, end_N = np.zeros(ROWS, np.int32), np.ones(ROWS, np.int32)
        for row, (ids, num_prompt) in enumerate(part):
            tokens_NT[row, : len(ids)] = ids
            first_N[row], end_N[row] = min(num_prompt, len(ids) - 1), len(ids)
        out[at : at + len(part)] = _features(model, params, tokens_NT, first_N, end_N)[: len(part)]
    return out


@functools.partial(jax.jit, static_argnames="model")
def _features(model, params, tokens_NT, first_N, end_N):
    hidden_NTD: Any = model.apply(decoder.variables(params), tokens_NT)
    hidden_NTD = hidden_NTD.astype(jnp.float32)
    place_1T = jnp.arange(tokens_NT.shape[1])[None]
    is_answer_NT = (place_1T >= first_N[:, None]) & (place_1T < end_N[:, None])
    mean_ND = jnp.sum(hidden_NTD * is_answer_NT[..., None], axis=1) / jnp.sum(is_answer_NT, axis=1)[:, None]
    last_ND = jnp.take_along_axis(hidden_NTD, (end_N - 1)[:, None, None], axis=1)[:, 0]
    return jnp.concatenate([mean_ND, last_ND], axis=1)


def fit(chosen_BE: np.ndarray, rejected_BE: np.ndarray, *, penalty: float = 1.0) -> LinearReward:
    """The reward under which the chosen answers are likeliest: mean log(1 + exp(-r_w + r_l)) + penalty |w|^2 / 2B.

    Args:
        penalty: of the weights of features scaled to variance 1; it keeps them finite where all pairs are told apart.

    Raises:
        InputError: there is no pair, or a feature is not finite.
    """
    if not len(chosen_BE):
        raise InputError("there is no pair to fit a reward to")
    difference_BE = (chosen_BE - rejected_BE).astype(np.float64)
    if not np.isfinite(difference_BE).all():
        raise InputError("hidden states are not finite: the weights are damaged, or overflow in this dtype")
    scale_E = np.concatenate([chosen_BE, rejected_BE]).astype(np.float64).std(axis=0) + 1e-6
    scaled_BE = difference_BE / scale_E

    def objective(weights_E):
        margin_B = scaled_BE @ weights_E
        loss = np.mean(np.logaddexp(0, -margin_B)) + penalty * (weights_E @ weights_E) / (2 * len(margin_B))
        slope_B = -scipy.special.expit(-margin_B)
        return loss, (slope_B @ scaled_BE + penalty * weights_E) / len(margin_B)

    minimum = scipy.optimize.minimize(objective, np.zeros(scaled_BE.shape[1]), jac=True, method="L-BFGS-B")
    mean_E = np.concatenate([chosen_BE, rejected_BE]).mean(axis=0)
    return LinearReward((minimum.x / scale_E).astype(np.float32), mean_E.astype(np.float32))

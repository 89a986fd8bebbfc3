"""Reward-guided search over the base's likeliest tokens (ARGS: Khanov et al. 2024, arXiv:2402.01694).

Each step scores the base's k likeliest tokens by log-probability plus a weight times the reward of the answer so far
with that token, and takes the best. The reward is one of whole answers, which this method asks about unfinished ones;
that, and k forward passes a token, are what guided decoding (`guided`) does without.

The candidates are k rows of one cache: a step writes the chosen token to all of them, then each row its own candidate
at the next position, which the next step overwrites.

Dimensions: K candidates, S positions of a row, D model width, E = 2D features, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.decoding import layout, network
from alignment.models import decoder


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is fixed when the step is compiled: see `write`."""

    model: decoder.DecoderLM
    num_candidates: int
    max_len: int
    block: int
    num_ids: int | None


def write(
    model: decoder.DecoderLM,
    params: Any,
    reward_weights_E: np.ndarray,
    prompts: Sequence[Sequence[int]],
    *,
    weight: float,
    num_candidates: int,
    max_new_tokens: int,
    num_ids: int | None = None,
    stop_ids: Sequence[int] = (),
    block: int = 64,
) -> list[list[int]]:
    """The tokens written after each prompt, stop token included.

    Args:
        reward_weights_E: of a reward linear in the model's hidden states (`linear_reward.LinearReward.weights_E`).
        weight: of the reward beside the log-probability.
        num_candidates: K.
        max_new_tokens: of each answer.
        num_ids: tokens from this id on are never chosen; None: all may be.
        stop_ids: tokens that end an answer.
    """
    longest = max(map(len, prompts)) + max_new_tokens + 1
    plan = Plan(model, num_candidates, -(-longest // block) * block, block, num_ids)
    weights = layout.prepare(model, params)
    reward_E = jnp.asarray(reward_weights_E, jnp.float32)
    out = []
    for prompt in prompts:
        state = _begin(plan)
        for at, token in enumerate(prompt[:-1]):
            state = _read(plan, weights, state, np.int32(token), np.int32(at))
        answer: list[int] = []
        token = int(prompt[-1])
        while len(answer) < max_new_tokens and not (answer and answer[-1] in stop_ids):
            at = len(prompt) - 1 + len(answer)
            state, chosen = _step(plan, weights, reward_E, state, np.int32(token), np.int32(at), np.float32(weight))
            token = int(chosen)
            answer.append(token)
        out.append(answer)
    return out


def _begin(plan):
    cache = network.init_cache(plan.model, plan.num_candidates, plan.max_len, block=plan.block, chunk=plan.block)
    sums = jnp.zeros(plan.model.model_dim, jnp.float32)
    return {"cache": cache, "sum": sums, "count": jnp.float32(0)}


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _read(plan, weights, state, token, position):
    """One token of the prompt in all rows."""
    return {
        **state,
        "cache": _forward(plan, weights, state["cache"], jnp.full(plan.num_candidates, token), position)[1],
    }


def _forward(plan, weights, cache, tokens_K, position):
    positions_K1 = jnp.full((plan.num_candidates, 1), position, jnp.int32)
    hidden_K1D, cache = network.forward(plan.model, weights, cache, tokens_K[:, None], positions_K1)
    return hidden_K1D[:, 0], cache


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _step(plan, weights, reward_E, state, token, position, weight):
    """Write the last token to all rows, and choose the next one."""
    D = plan.model.model_dim
    hidden_KD, cache = _forward(plan, weights, state["cache"], jnp.full(plan.num_candidates, token), position)
    logits_V = network.logits(weights, hidden_KD[:1])[0]
    if plan.num_ids is not None:
        logits_V = jnp.where(jnp.arange(len(logits_V)) < plan.num_ids, logits_V, -jnp.inf)
    logps_K, ids_K = jax.lax.top_k(jax.nn.log_softmax(logits_V), plan.num_candidates)
    hidden_KD, cache = _forward(plan, weights, cache, ids_K.astype(jnp.int32), position + 1)
    hidden_KD = hidden_KD.astype(jnp.float32)
    mean_KD = (state["sum"][None] + hidden_KD) / (state["count"] + 1)
    rewards_K = mean_KD @ reward_E[:D] + hidden_KD @ reward_E[D:]
    best = jnp.argmax(logps_K + weight * rewards_K)
    state = {"cache": cache, "sum": state["sum"] + hidden_KD[best], "count": state["count"] + 1}
    return state, ids_K[best]

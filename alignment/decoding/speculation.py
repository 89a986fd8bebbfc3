"""Guesses of the next tokens, which the model then checks in one pass.

A guess is right when it is the very token that the model chooses at its place. At temperature 0 that is the likeliest
one; in a draw it is the one that the request's noise at that position picks (see `sampling.choose`), and a draft model
draws with the same noise, so it often picks the same. The output is therefore the target's own, token for token,
whatever was guessed: no second distribution enters, and nothing needs to be corrected (drafter-invariant speculation,
Daliri et al. 2024, arXiv:2408.07978).

Dimensions: B slots, T guesses, S positions of a row, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from alignment.decoding import network, sampling
from alignment.errors import InputError
from alignment.models import decoder

LONGEST_MATCH = 3  # tokens of context that a repetition is looked up by


def check(
    model: decoder.DecoderLM, draft: tuple[decoder.DecoderLM, Any] | None, num_draft: int, num_ids: int | None
) -> None:
    """Refuse a draft model that would guess nothing, or that lacks tokens.

    Args:
        num_ids: tokens that the tokenizer has; behind them a draft may fill its vocabulary up to a size of its own.

    Raises:
        InputError: see above.
    """
    if draft is None:
        return
    if not num_draft:
        raise InputError("a draft model is there and num_draft=0, so it would guess nothing; 4 is a usual number")
    size = draft[0].vocab_size
    if size != model.vocab_size and (num_ids is None or size < num_ids):
        wanted = model.vocab_size if num_ids is None else num_ids
        raise InputError(f"the draft's vocabulary has {size} tokens and the model's {wanted}; they need one vocabulary")


def drafts(plan: Any, weights: tuple[Any, ...], state: dict[str, Any], is_live_B: jax.Array):
    """The state, and `plan.num_draft` guesses [B,T] of what follows each row's pending token."""
    if not plan.num_draft:
        return state, jnp.zeros((plan.num_slots, 0), jnp.int32)
    if plan.draft is None:
        return state, look_up(state["tokens"], state["position"][0], plan.num_draft)
    return _by_model(plan, weights[-1], state, is_live_B)


def look_up(tokens_BS: jax.Array, last_B: jax.Array, num: int) -> jax.Array:
    """What followed the latest earlier occurrence of the row's last tokens, [B,num] (prompt lookup, Saxena 2023).

    The longest match of up to three tokens wins, then the latest. Without a match the guesses are arbitrary.

    Args:
        last_B: where the last token of each row stands.
        num: tokens guessed.
    """
    S = tokens_BS.shape[1]
    place_1S = jnp.arange(S)[None]
    length_BS = jnp.zeros(tokens_BS.shape, jnp.int32)
    matches_BS = jnp.ones(tokens_BS.shape, bool)
    for back in range(LONGEST_MATCH):
        wanted_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(last_B - back, 0)[:, None], axis=1)
        earlier_BS = jnp.roll(tokens_BS, back, axis=1)
        matches_BS &= (earlier_BS == wanted_B1) & (place_1S >= back) & (last_B[:, None] >= back)
        length_BS += matches_BS
    # one number orders candidates by length, then by place
    score_BS = jnp.where(place_1S < last_B[:, None], length_BS * S + place_1S, -1)
    at_B = jnp.argmax(score_BS, axis=1)
    return jnp.take_along_axis(tokens_BS, jnp.minimum(at_B[:, None] + 1 + jnp.arange(num)[None], S - 1), axis=1)


def _by_model(plan, weights, state, is_live_B):
    """Guesses of the draft model, one after the other; one step more writes the last guess's keys.

    After a wrong guess the draft's cache holds keys behind the row's end. They are masked, and overwritten in time.
    """
    token_B, position_B, cache = state["pending"][-1], state["position"][-1], state["caches"][-1]
    guesses = []
    for i in range(plan.num_draft + 1):
        hidden_B1D, cache = network.forward(
            plan.draft, weights, cache, token_B[:, None], position_B[:, None] + i, is_live_R=is_live_B
        )
        if i == plan.num_draft:
            break
        logits_BV = _as_wide(network.logits(weights, hidden_B1D[:, 0]), plan.models[0].vocab_size)
        token_B = sampling.choose(logits_BV, state["options"], state["position"][0] + 1 + i, is_live_B)
        # The embedding of an id that a model lacks is NaN: all of them read the guess.
        token_B = jnp.minimum(token_B, min(model.vocab_size for model in plan.all_models) - 1)
        guesses.append(token_B)
    return {**state, "caches": [*state["caches"][:-1], cache]}, jnp.stack(guesses, axis=1)


def _as_wide(logits_BV, vocab_size):
    """A draft's logits over the target's vocabulary: both fill it up behind the last token, each to its own size."""
    logits_BV = logits_BV[:, :vocab_size]
    missing = vocab_size - logits_BV.shape[1]
    return jnp.pad(logits_BV, ((0, 0), (0, missing)), constant_values=-jnp.inf) if missing else logits_BV

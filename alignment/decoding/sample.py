"""From prompts to answers: batched greedy and temperature sampling with a key/value cache.

Dimensions: B rows, T prompt slots, N new tokens, S = T + N, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError
from alignment.models import decoder


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, pad_id: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as (tokens_BT, groups_BT), padded on the left to `length` or the longest."""
    length = max(map(len, prompts)) if length is None else length
    tokens_BT = np.full((len(prompts), length), pad_id, np.int32)
    groups_BT = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= length:
            raise InputError(f"prompt {row} has {len(prompt)} tokens; it needs at least 1 and at most {length}")
        tokens_BT[row, length - len(prompt) :] = prompt
        groups_BT[row, length - len(prompt) :] = 1
    return tokens_BT, groups_BT


def check_options(max_new_tokens: int, temperature: float | jax.Array) -> None:
    """Refuse what `generate` would refuse; for the start of a run that samples at its end."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if isinstance(temperature, int | float) and not 0 <= temperature < float("inf"):
        raise InputError(f"temperature={temperature} must be at least 0 and finite; 0 takes the most likely token")


def generate(
    model: decoder.DecoderLM,
    params: Any,
    prompt_tokens_BT: jax.Array | np.ndarray,
    prompt_groups_BT: jax.Array | np.ndarray | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    rng: jax.Array | None = None,
    stop_ids: Sequence[int] = (),
    pad_id: int = 0,
    process_logits: Callable | None = None,
    row_ids_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continue each prompt until a stop token or `max_new_tokens`.

    Compiled once per model, shape, `max_new_tokens` and `process_logits` (pass the same function object each time);
    temperature, stop and pad ids may change freely. Decoding ends early when every row has stopped.

    Args:
        params: of `model`, without the {"params": ...} around them.
        prompt_tokens_BT: ids, padded anywhere.
        prompt_groups_BT: 0 on padding, anything else on real tokens, at least one a row; None: no padding.
        temperature: logits are divided by it; 0 takes the most likely token (of equals, the first).
        rng: key for the noise; may be None at temperature 0.
        stop_ids: tokens that end an answer.
        process_logits: (logits_BV, tokens_BS, t) -> logits_BV, called before temperature. tokens_BS[:, :t] is each
            row's prompt and answer so far, right-aligned: the last token is at t - 1, padding comes first.
        row_ids_B: each row's number, which its noise is drawn from; None: its index. A row's answer depends on its
            prompt, `rng` and this number and not on the other rows, so numbered prompts may be split into any batches.

    Returns:
        tokens_BN: answers, the stop token included, then `pad_id`.
        lengths_B: tokens in each answer, the stop token included.
    """
    check_options(max_new_tokens, temperature)
    if rng is None:
        if not (isinstance(temperature, int | float) and temperature == 0):
            raise InputError(f"temperature={temperature} draws at random and needs rng; temperature=0 does not")
        rng = jax.random.key(0)
    groups_BT = np.ones(prompt_tokens_BT.shape, np.int32) if prompt_groups_BT is None else prompt_groups_BT
    if isinstance(groups_BT, np.ndarray) and not (groups_BT > 0).any(axis=1).all():
        raise InputError(f"prompt {int(np.argmin((groups_BT > 0).any(axis=1)))} has no tokens; it needs at least one")
    return _generate(
        model,
        params,
        jnp.asarray(prompt_tokens_BT, jnp.int32),
        jnp.asarray(groups_BT) > 0,
        jnp.arange(prompt_tokens_BT.shape[0]) if row_ids_B is None else jnp.asarray(row_ids_B),
        jnp.float32(temperature),
        rng,
        jnp.asarray(list(stop_ids), jnp.int32),
        jnp.int32(pad_id),
        max_new_tokens=max_new_tokens,
        process_logits=process_logits,
    )


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "process_logits"))
def _generate(
    model,
    params,
    tokens_BT,
    is_real_BT,
    row_ids_B,
    temperature,
    rng,
    stop_ids,
    pad_id,
    *,
    max_new_tokens,
    process_logits,
):
    """Prefill, then one token a turn."""
    B, T = tokens_BT.shape
    # With the prompts' ends in one column, all rows write their next token to the same column of the cache.
    tokens_BT, is_real_BT = _align_right(tokens_BT, is_real_BT, pad_id)
    positions_BT = jnp.maximum(jnp.cumsum(is_real_BT, axis=1) - 1, 0)
    num_prompt_B1 = jnp.sum(is_real_BT, axis=1, keepdims=True)
    # A key for each row, from its number: a row's noise is the same in every batch that it may be part of.
    rngs_B = jax.vmap(jax.random.fold_in, (None, 0))(rng, row_ids_B)

    def forward(tokens_BX, positions_BX, groups_BX, cache):
        hidden_BXD, cache = model.apply({"params": params}, tokens_BX, positions_BX, groups_BX, cache=cache)
        return decoder.logits(model, params, hidden_BXD[:, -1:])[:, 0], cache

    def write(step, logits_BV, tokens_BS, lengths_B, is_done_B):
        """Put the token chosen from these logits at T + step, in rows that still go on."""
        if process_logits is not None:
            logits_BV = process_logits(logits_BV, tokens_BS, T + step)
        next_B = jnp.where(is_done_B, pad_id, _draw(logits_BV, temperature, rngs_B, step))
        tokens_BS = jax.lax.dynamic_update_slice(tokens_BS, next_B[:, None], (0, T + step))
        lengths_B = lengths_B + ~is_done_B
        return tokens_BS, lengths_B, is_done_B | jnp.any(next_B[:, None] == stop_ids[None], axis=1)

    def is_unfinished(carry):
        step, _, (_, _, is_done_B) = carry
        return (step < max_new_tokens) & ~jnp.all(is_done_B)

    def decode_one(carry):  # (new tokens so far, cache, (tokens_BS, lengths_B, is_done_B))
        step, cache, rows = carry
        last_B1 = jax.lax.dynamic_slice_in_dim(rows[0], T + step - 1, 1, axis=1)
        logits_BV, cache = forward(last_B1, num_prompt_B1 + step - 1, jnp.ones_like(last_B1), cache)
        return step + 1, cache, write(step, logits_BV, *rows)

    groups_BT = is_real_BT.astype(jnp.int32)
    logits_BV, cache = forward(tokens_BT, positions_BT, groups_BT, model.init_cache(B, T + max_new_tokens))
    empty_BN = jnp.full((B, max_new_tokens), pad_id, jnp.int32)
    rows = (jnp.concatenate([tokens_BT, empty_BN], axis=1), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool))
    carry = (jnp.int32(1), cache, write(jnp.int32(0), logits_BV, *rows))
    _, _, (tokens_BS, lengths_B, _) = jax.lax.while_loop(is_unfinished, decode_one, carry)
    return tokens_BS[:, T:], lengths_B


def _draw(logits_BV, temperature, rngs_B, step):
    """A token from softmax(logits / temperature), as argmax(logits + temperature * Gumbel noise).

    Every row draws from its own key, so its answer does not depend on the batch. At temperature 0 `cond` skips the
    noise, which costs as much as a small model's step.
    """

    def noisy():
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(rngs_B, step)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
        return jnp.argmax(logits_BV + temperature * noise_BV, axis=-1)

    return jax.lax.cond(temperature > 0, noisy, lambda: jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)


def _align_right(tokens_BT, is_real_BT, pad_id):
    """Real tokens moved to the end of their rows, in order, so that every prompt's last token is at T - 1."""
    order_BT = jnp.argsort(is_real_BT, axis=1, stable=True)
    is_real_BT = jnp.take_along_axis(is_real_BT, order_BT, axis=1)
    return jnp.where(is_real_BT, jnp.take_along_axis(tokens_BT, order_BT, axis=1), pad_id), is_real_BT


def answers(
    model: decoder.DecoderLM,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    rng: jax.Array | None = None,
    stop_ids: Sequence[int] = (),
    pad_id: int = 0,
) -> list[list[int]]:
    """The tokens written after each prompt, on the host; options as in `generate`."""
    if not prompts:
        return []
    tokens_BT, groups_BT = pad_prompts(prompts, pad_id=pad_id)
    generated = generate(
        model,
        params,
        tokens_BT,
        groups_BT,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        rng=rng,
        stop_ids=stop_ids,
        pad_id=pad_id,
    )
    written_BN, lengths_B = jax.device_get(generated)
    return [row[:length].tolist() for row, length in zip(written_BN, lengths_B)]

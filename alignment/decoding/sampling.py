"""From logits to tokens: penalties, filters and draws, every option an array with one entry a row.

One compiled step therefore serves any mixture of requests. What only some rows want (noise, exact filters, penalties)
is behind a `cond`, and costs nothing while no row wants it. No function sorts: a sort of 32,000 logits costs 5 ms a
row on a CPU, as much as a step of a small model. A row's result depends on that row alone, bit for bit.

Dimensions: B rows, V vocabulary, E ids of a list.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

NUM_TOP = 20  # best tokens that a request may ask for; OpenAI's limit


def adjust(
    logits_BV: jax.Array,
    options: Mapping[str, jax.Array],
    num_written_BV: jax.Array,
    is_in_prompt_BV: jax.Array,
    is_live_B: jax.Array,
) -> jax.Array:
    """Logits after the bias and the three penalties.

    The repetition penalty divides a positive logit and multiplies a negative one (Keskar et al. 2019, arXiv:1909.05858,
    with the sign mended as in common libraries), for tokens of the prompt and of the answer. The frequency penalty is
    taken off once for each time that the answer has the token, the presence penalty once (OpenAI's definitions).

    Args:
        options: `repetition_penalty` > 0, `frequency_penalty`, `presence_penalty` [B] and `bias` [B,V].
        num_written_BV: how often the answer has each token.
        is_in_prompt_BV: whether the prompt has it.
        is_live_B: rows whose result is read. What others want, left over from their last request, costs nothing.
    """
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    repetition_B1, frequency_B1, presence_B1 = (options[name][:, None] for name in names)

    def penalised(logits_BV):
        is_written_BV = num_written_BV > 0
        divided_BV = jnp.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
        logits_BV = jnp.where(is_written_BV | is_in_prompt_BV, divided_BV, logits_BV)
        return logits_BV - frequency_B1 * num_written_BV - presence_B1 * is_written_BV

    is_wanted_B1 = (repetition_B1 != 1) | (frequency_B1 != 0) | (presence_B1 != 0)
    logits_BV = jax.lax.cond(jnp.any(is_wanted_B1 & is_live_B[:, None]), penalised, lambda x: x, logits_BV)
    return jax.lax.cond(jnp.any(options["has_bias"] & is_live_B), lambda x: x + options["bias"], lambda x: x, logits_BV)


def choose(
    logits_BV: jax.Array, options: Mapping[str, jax.Array], positions_B: jax.Array, is_live_B: jax.Array
) -> jax.Array:
    """The next token of every row: the most likely one at temperature 0, else a draw.

    A draw is the largest of `logits / temperature + Gumbel noise` over the kept tokens. The noise's key is folded from
    the request's seed, its sample number and the position, so the same request draws the same token in every batch, and
    whether the token was guessed before (see `speculation`) or not.

    Args:
        options: [B] each: `temperature` >= 0, `top_k` (0: off), `top_p` in (0, 1], `min_p` in [0, 1], `seed` and
            `sample` uint32.
        positions_B: where the new token will stand.
        is_live_B: rows whose result is read.
    """
    temperature_B = options["temperature"]
    is_drawn_B = is_live_B & (temperature_B > 0)
    # `keep` asks whether any row wants a filter, so a row that is not read or not drawn must want none
    filters = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    top_k_B, top_p_B, min_p_B = (jnp.where(is_drawn_B, options[name], off) for name, off in filters.items())

    def drawn():
        scaled_BV = logits_BV / jnp.where(temperature_B > 0, temperature_B, 1.0)[:, None]
        is_filtered = jnp.any((top_k_B > 0) | (top_p_B < 1) | (min_p_B > 0))
        scaled_BV = jax.lax.cond(is_filtered, lambda x: keep(x, top_k_B, top_p_B, min_p_B), lambda x: x, scaled_BV)
        noisy_BV = scaled_BV + gumbel(options["seed"], options["sample"], positions_B, logits_BV.shape[1])
        return jnp.where(temperature_B > 0, best(noisy_BV), best(logits_BV))

    return jax.lax.cond(jnp.any(is_drawn_B), drawn, lambda: best(logits_BV))


def best(x_BV: jax.Array) -> jax.Array:
    """The first of the largest entries [B], int32, as `argmax`, whose loop over pairs is up to ten times as slow."""
    ids_1V = jnp.arange(x_BV.shape[1], dtype=jnp.int32)[None]
    top_B1 = jnp.max(x_BV, axis=1, keepdims=True)
    # NaN equals nothing, and a row of -inf has no best: both give V, which the caller's checks of ids then refuse
    return jnp.min(jnp.where((x_BV == top_B1) & (top_B1 > -jnp.inf), ids_1V, x_BV.shape[1]), axis=1)


def gumbel(seeds_B: jax.Array, samples_B: jax.Array, positions_B: jax.Array, num_tokens: int) -> jax.Array:
    """Noise [B,V] of each row's own key: seed, sample and position, folded one after the other."""

    def one(seed, sample, position):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)
        return jax.random.gumbel(key, (num_tokens,))

    return jax.vmap(one)(seeds_B, samples_B, positions_B)


def keep(logits_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, min_p_B: jax.Array) -> jax.Array:
    """Logits with -inf at tokens that the filters drop: top-k, then top-p among what it kept, then min-p.

    Exact without a sort: a threshold is searched bit by bit among the logits as integers of the same order. Tokens that
    tie with the last kept one stay, all of them. The top token always stays.

    Args:
        top_k_B: tokens kept; 0: all.
        top_p_B: the smallest set of the likeliest tokens with at least this probability, in (0, 1]; 1: all.
        min_p_B: probability relative to the likeliest token's (Nguyen et al. 2024, arXiv:2407.01082), in [0, 1]; 0:
        all.
    """
    order_BV = _ordered(logits_BV)
    top_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    mass_BV = jnp.exp(logits_BV - top_B1)

    def by_number(_):
        return _threshold(order_BV, jnp.ones(order_BV.shape, jnp.float32), top_k_B.astype(jnp.float32))

    none_B = jnp.zeros(top_k_B.shape, jnp.uint32)
    number_B = jax.lax.cond(jnp.any(top_k_B > 0), by_number, lambda _: none_B, None)
    number_B = jnp.where(top_k_B > 0, number_B, 0)
    mass_BV = jnp.where(order_BV >= number_B[:, None], mass_BV, 0.0)

    def by_mass(_):
        return _threshold(order_BV, mass_BV, top_p_B * jnp.sum(mass_BV, axis=1))

    mass_B = jax.lax.cond(jnp.any(top_p_B < 1), by_mass, lambda _: none_B, None)
    threshold_B = jnp.maximum(number_B, jnp.where(top_p_B < 1, mass_B, 0))
    is_kept_BV = order_BV >= threshold_B[:, None]
    is_kept_BV &= logits_BV >= top_B1 + jnp.log(min_p_B)[:, None]  # log(0) is -inf: nothing is dropped
    is_kept_BV |= jnp.isnan(top_B1)  # for `best` to see; comparisons with NaN are false, and token 0 would be left
    return jnp.where(is_kept_BV, logits_BV, -jnp.inf)


def _ordered(x_BV):
    """Floats as uint32 of the same order: the sign bit is flipped, and all others too where it was set."""
    bits_BV = jax.lax.bitcast_convert_type(x_BV + 0.0, jnp.uint32)  # + 0.0 makes -0.0 and 0.0 one
    return jnp.where(bits_BV >> 31 == 1, ~bits_BV, bits_BV | jnp.uint32(1 << 31))


def _threshold(order_BV, weight_BV, wanted_B):
    """The largest number t for which the entries >= t weigh at least `wanted`, found from its highest bit down."""

    def one_bit(i, low_B):
        candidate_B = low_B | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        weight_B = jnp.sum(jnp.where(order_BV >= candidate_B[:, None], weight_BV, 0.0), axis=1)
        return jnp.where(weight_B >= wanted_B, candidate_B, low_B)

    return jax.lax.fori_loop(0, 32, one_bit, jnp.zeros(order_BV.shape[:1], jnp.uint32))


def logprobs(
    logits_BV: jax.Array, chosen_B: jax.Array, wants_top: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The chosen tokens' log-probabilities [B] in nats, and the best tokens with theirs ([B,NUM_TOP] each).

    Args:
        wants_top: whether any row wants the best tokens; zeros otherwise.
    """
    top_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    lse_B = top_B1[:, 0] + jnp.log(jnp.sum(jnp.exp(logits_BV - top_B1), axis=1))
    chosen_logit_B = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=1)[:, 0]
    num = min(NUM_TOP, logits_BV.shape[1])

    def best_tokens():
        # Without barriers XLA turns a top_k whose result is sliced or padded back into a full sort. Each array has its
        # own, because XLA aborts on one around the pair where the logits are spread over devices.
        values_BE, ids_BE = map(jax.lax.optimization_barrier, jax.lax.top_k(logits_BV, num))
        return ids_BE.astype(jnp.int32), values_BE - lse_B[:, None]

    def none():
        return jnp.zeros((len(chosen_B), num), jnp.int32), jnp.zeros((len(chosen_B), num), jnp.float32)

    return chosen_logit_B - lse_B, jax.lax.cond(wants_top, best_tokens, none)


def is_in(ids_B: jax.Array, lists_BE: jax.Array) -> jax.Array:
    """Whether each row's id is in its list; -1 fills a list up."""
    return jnp.any(ids_B[:, None] == lists_BE, axis=1)


def row_key_bits(seed: int | None, default: int, number: int) -> np.uint32:
    """A request's seed as the device takes it, modulo 2^32; without one, from the engine's seed and its number."""
    if seed is not None:
        return np.uint32(seed % (1 << 32))
    return np.uint32(np.random.SeedSequence([default % (1 << 64), number]).generate_state(1)[0])

"""The compiled programs of the decoding engine: admit a request, prefill a chunk, and decode for some steps.

All state of the slots lives on the device, in one tree of arrays that every program takes over (donated) and gives
back. Every option of a request is data in it, so these programs are all there are, whatever the requests look like
(two of prefill, for chunks and for halves; and `is_clean` and `clean` for slots in which a request may have failed).

Prefill covers a prompt but for its last token. That one is the first token of decoding, so logits are read and tokens
are chosen in one program only.

Dimensions: B slots, S positions of a row, V vocabulary, T draft tokens, U = T+1, E ids of a list, W models (the base,
its guides, and the draft if there is one), C tokens of a chunk, O tokens that a row writes in one dispatch at most,
P parts of a network (itself and its adapters), R = P*B rows of its cache: slot b of part p is row p*B + b.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.decoding import guided, network, rows, sampling, speculation, stacks
from alignment.decoding.requests import NUM_BIASES, NUM_STOP_IDS, Request
from alignment.errors import InputError, within
from alignment.models import decoder

State = dict[str, Any]
# (logits_BV, tokens_BS, t_B, state) -> (logits_BV, state); t_B is the number of tokens so far, prompt and answer
Processor = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

# Below these, float32 makes a division by 0 of a draw, or its filter drops every token.
LEAST_TEMPERATURE, LEAST_TOP_P = 1e-5, 1e-6
FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is fixed when the programs are compiled.

    Attributes:
        models: the base model, then the guides that are models of their own.
        draft: a smaller model that guesses tokens; None: the answer's own repetitions do (`num_draft` > 0), or nothing.
        num_draft: tokens guessed in each step, T; 0: no speculation.
        num_slots, max_len, block, chunk: see `network.init_cache`.
        num_steps: steps of a dispatch, at most.
        num_ids: tokens from this id on are never chosen; None: all may be.
        processors: pure functions on the logits, applied in this order, after penalties and before the draw.
        mesh: None for one device.
        cache_dtype, attention: see `network.init_cache`.
        guides: the place of each guide, in the order of a request's weights.
    """

    models: tuple[decoder.DecoderLM, ...]
    num_slots: int
    max_len: int
    block: int = 64
    chunk: int = 64
    num_steps: int = 16
    draft: decoder.DecoderLM | None = None
    num_draft: int = 0
    num_ids: int | None = None
    processors: tuple[Processor, ...] = ()
    mesh: Mesh | None = None
    cache_dtype: str = ""
    attention: str = rows.BLOCKS
    guides: tuple[guided.Place, ...] = ()

    @property
    def all_models(self) -> tuple[decoder.DecoderLM, ...]:
        """The networks, each with weights and a cache."""
        return (*self.models, *([self.draft] if self.draft is not None else []))

    @property
    def places(self) -> tuple[guided.Place, ...]:
        """Of the base, its guides, and the draft if there is one."""
        draft = [guided.Place(len(self.models), 0)] if self.draft is not None else []
        return (guided.Place(0, 0), *self.guides, *draft)

    def num_parts(self, model: int) -> int:
        """Rows of a network's cache for each slot."""
        return sum(place.model == model for place in self.places)


def init_state(plan: Plan, processor_states: tuple[Any, ...]) -> State:
    """The state of slots without requests.

    Args:
        processor_states: one tree of arrays [B,...] for each processor.
    """
    state = _empty(plan) | {"processors": jax.tree.map(jnp.array, processor_states)}
    return state if plan.mesh is None else jax.device_put(state, _places(plan, state))


@functools.partial(jax.jit, static_argnames="plan")
def _empty(plan):
    """The state without processors; one program, because a call for each array would compile one for each shape."""
    B, S, W, V = plan.num_slots, plan.max_len, len(plan.places), plan.models[0].vocab_size
    sizes: dict[str, Any] = dict(block=plan.block, chunk=plan.chunk, mesh=plan.mesh, dtype=plan.cache_dtype)
    sizes["attention"] = plan.attention
    return {
        "caches": [network.init_cache(m, B * plan.num_parts(i), S, **sizes) for i, m in enumerate(plan.all_models)],
        "tokens": jnp.zeros((B, S), jnp.int32),  # prompt and answer
        "pending": jnp.zeros((W, B), jnp.int32),  # the token that each model reads next
        "position": jnp.zeros((W, B), jnp.int32),  # and where it stands
        "num_fixed": jnp.zeros(B, jnp.int32),  # tokens of the row that are given and not chosen
        "limit": jnp.zeros(B, jnp.int32),  # tokens of the row, at most
        "num_written": jnp.zeros((B, V), jnp.int32),
        "is_in_prompt": jnp.zeros((B, V), bool),
        "options": {
            **{name: jnp.zeros(B, jnp.float32) for name in FLOATS},
            "top_k": jnp.zeros(B, jnp.int32),
            "seed": jnp.zeros(B, jnp.uint32),
            "sample": jnp.zeros(B, jnp.uint32),
            "wants_top": jnp.zeros(B, bool),
            "has_bias": jnp.zeros(B, bool),
            "bias": jnp.zeros((B, V), jnp.float32),
            "stop_ids": jnp.full((B, NUM_STOP_IDS), -1, jnp.int32),
            "model_weights": jnp.zeros((1 + len(plan.guides), B), jnp.float32),
        },
    }


def check_sizes(
    *,
    num_slots: int,
    max_len: int,
    chunk: int,
    block: int,
    num_draft: int,
    num_steps: int = 1,
    chunks_per_turn: int | None = None,
) -> None:
    """Refuse sizes of an engine that are out of range or do not fit one another; see `engine.Engine`.

    Raises:
        InputError: the message begins with the size's name.
    """
    within("[1, inf)", num_slots=num_slots)
    within("[1, inf)", num_steps=num_steps, hint=", or no answer would ever end")
    within("[1, inf)", chunks_per_turn=chunks_per_turn, hint="; None reads all that free slots want")
    network.check_lengths(-(-max_len // max(chunk, 1)) * max(chunk, 1), block, chunk)
    if not 0 <= num_draft <= chunk:  # a ring has room for the window and the tokens of one chunk
        raise InputError(f"num_draft={num_draft} must be from 0, which switches speculation off, to chunk={chunk}")


def check_states(states: tuple[Any, ...], num_processors: int, num_slots: int) -> None:
    """Refuse states of processors that are not one tree of arrays [num_slots,...] for each.

    Raises:
        InputError: see above.
    """
    if len(states) != num_processors:
        raise InputError(
            f"processor_states has {len(states)} entries; give one for each of {num_processors} processors"
        )
    for shape in map(np.shape, jax.tree.leaves(states)):
        if shape[:1] != (num_slots,):
            raise InputError(f"processor_states has an array of shape {shape}; num_slots={num_slots} must come first")


def check_rows(rows: tuple[Any, ...], first_rows: tuple[Any, ...]) -> None:
    """Refuse a request's start of the processors' states if it does not look like the engine's own.

    Raises:
        InputError: see above.
    """
    wanted, present = ([jax.tree.structure(x), *map(np.shape, jax.tree.leaves(x))] for x in (first_rows, rows))
    if present != wanted:
        raise InputError(f"processor_rows is a tree {present}; the processors' states are, for one slot, {wanted}")


def _places(plan, state):
    """Shardings of the state: caches by heads, everything else on every device."""
    places = jax.tree.map(lambda _: NamedSharding(plan.mesh, PartitionSpec()), state)
    of_caches = [network.cache_place(model, plan.mesh) for model in plan.all_models]
    return places | {"caches": [jax.tree.map(lambda _, p=p: p, cache) for cache, p in zip(state["caches"], of_caches)]}


def _placed(plan, state):
    """The state where `init_state` put it: left to itself, XLA may choose other places, and compile once more."""
    return state if plan.mesh is None else jax.lax.with_sharding_constraint(state, _places(plan, state))


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def admit(plan: Plan, state: State, slot: jax.Array, row: Mapping[str, Any], copies: jax.Array) -> State:
    """Put a request into a slot, with the prefix of its prompt that another slot holds.

    Args:
        row: `tokens` [S] (the prompt, and the answer so far where one is continued), `num_prompt`, `num_fixed`,
            `limit`, `pending` and `position` [W] (each prompt's last token, and where its prefill begins), `options`,
            `bias_ids` and `biases` [NUM_BIASES], `processors`. Options and processors as in the state, without its
            axis B. `row` makes it.
        copies: for each model the slot to copy from and the number of blocks, [W,2].
    """
    tokens_S, options = row["tokens"], dict(row["options"])
    V = plan.models[0].vocab_size
    place_S = jnp.arange(plan.max_len)
    bias_V = jnp.zeros(V, jnp.float32).at[row["bias_ids"]].add(row["biases"])  # the list is filled up with zeros
    options |= {"bias": bias_V, "has_bias": jnp.any(row["biases"] != 0)}
    # id V lies outside, and is dropped
    in_prompt_S = jnp.where(place_S < row["num_prompt"], tokens_S, V)
    new = {
        "tokens": tokens_S,
        "num_fixed": row["num_fixed"],
        "limit": row["limit"],
        "is_in_prompt": jnp.zeros(V, bool).at[in_prompt_S].set(True, mode="drop"),
        "num_written": jnp.zeros(V, jnp.int32),
        "processors": row["processors"],
        "options": {name: value for name, value in options.items() if name != "model_weights"},
    }
    old = {**state, "options": {n: x for n, x in state["options"].items() if n != "model_weights"}}
    old = {name: old[name] for name in new}
    updated = jax.tree.map(lambda x, value: x.at[slot].set(value), old, new)
    weights = state["options"]["model_weights"].at[:, slot].set(options["model_weights"])
    updated["options"] = {**updated["options"], "model_weights": weights}
    caches = list(state["caches"])
    for i, place in enumerate(plan.places):
        first = place.part * plan.num_slots
        caches[place.model] = network.copy_blocks(caches[place.model], first + copies[i, 0], first + slot, copies[i, 1])
    reading = {name: state[name].at[:, slot].set(row[name]) for name in ("pending", "position")}
    return _placed(plan, {**state, **updated, **reading, "caches": caches})


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def clean(plan: Plan, state: State, slot: jax.Array) -> State:
    """Zeros in all caches of a slot, which idles at position 0 until its next request."""
    caches = []
    for i, cache in enumerate(state["caches"]):
        rows_P = jnp.arange(plan.num_parts(i)) * plan.num_slots + slot
        caches.append([{name: x.at[:, rows_P].set(0) for name, x in layer.items()} for layer in cache])
    reading = {name: state[name].at[:, slot].set(0) for name in ("pending", "position")}
    return _placed(plan, {**state, "caches": caches, **reading})


@functools.partial(jax.jit, static_argnames="plan")
def is_clean(plan: Plan, state: State, slot: jax.Array) -> jax.Array:
    """Whether all numbers in all caches of a slot are finite."""
    finite = [
        jnp.all(jnp.isfinite(x[:, jnp.arange(plan.num_parts(i)) * plan.num_slots + slot]))
        for i, cache in enumerate(state["caches"])
        for x in jax.tree.leaves(cache)
    ]
    return jnp.all(jnp.stack(finite))


@functools.partial(jax.jit, static_argnames=("plan", "model"), donate_argnames="state")
def prefill(
    plan: Plan,
    weights: Any,
    state: State,
    slot: jax.Array,
    tokens_C: jax.Array,
    start: jax.Array,
    next_position: jax.Array,
    wants_scores: jax.Array,
    which: jax.Array,
    part: jax.Array,
    *,
    model: int,
) -> tuple[State, tuple[jax.Array, tuple[jax.Array, jax.Array]]]:
    """Write one chunk of a prompt into a slot's cache.

    Args:
        weights: of the network `model`, an index into `plan.all_models`.
        tokens_C: the prompt from `start` on, then anything, which decoding overwrites; as many as the plan's chunk has
            or half of that.
        start: a multiple of the chunk's length.
        next_position: the first position behind these tokens.
        wants_scores: whether the tokens that follow each of these are scored.
        which: the model whose prompt it is, an index into `plan.places`; `part` is what stands there. They are traced,
            so that one program serves all adapters of a network.

    Returns:
        The state; the log-probability of each token's successor in the row [C], and the best tokens there, zeros where
        they are not wanted.
    """
    C = len(tokens_C)
    positions_1C = (start + jnp.arange(C, dtype=jnp.int32))[None]
    adapter_1 = part[None] - 1 if plan.num_parts(model) > 1 else None
    hidden_1CD, cache = network.forward(
        plan.all_models[model],
        weights,
        state["caches"][model],
        tokens_C[None],
        positions_1C,
        first_row=part * plan.num_slots + slot,
        is_chunk=True,
        attention=plan.attention,
        adapter_R=adapter_1,
    )
    row_S = jax.lax.dynamic_index_in_dim(state["tokens"], slot, keepdims=False)
    targets_C = jnp.take(row_S, positions_1C[0] + 1, mode="clip")

    def scores():
        adapter_C = None if adapter_1 is None else jnp.repeat(adapter_1, C)
        return sampling.logprobs(network.logits(weights, hidden_1CD[0], adapter_C), targets_C, jnp.bool_(True))

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(scores))
    scored = jax.lax.cond(wants_scores, scores, lambda: nothing)
    state = {
        **state,
        "caches": [cache if i == model else old for i, old in enumerate(state["caches"])],
        "position": state["position"].at[which, slot].set(next_position),
    }
    return _placed(plan, state), scored


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def decode(
    plan: Plan, weights: tuple[Any, ...], state: State, is_live_B: jax.Array, may_leave: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Up to `plan.num_steps` steps of all live rows.

    Args:
        weights: of every model of `plan.all_models`.
        is_live_B: rows that write.
        may_leave: whether to come back after the first step in which a row ended, because a request waits.

    Returns:
        The state, and what was written: `tokens` and `logprobs` [B,O], -1 and 0 behind a row's end, `top` (ids and
        log-probabilities [B,O,NUM_TOP]), `num_steps`, and `num_live`, the sum of live rows over the steps. With guides
        also `by_model` [W,B,O], the log-probabilities under the base and each guide.
    """
    B, U = plan.num_slots, plan.num_draft + 1
    num_out = plan.num_steps * U
    num_top = min(sampling.NUM_TOP, plan.models[0].vocab_size)
    out = {
        "tokens": jnp.full((B, num_out), -1, jnp.int32),
        "logprobs": jnp.zeros((B, num_out), jnp.float32),
        "top": (jnp.zeros((B, num_out, num_top), jnp.int32), jnp.zeros((B, num_out, num_top), jnp.float32)),
        "num": jnp.zeros(B, jnp.int32),
        "num_steps": jnp.int32(0),
        "num_live": jnp.int32(0),
    }
    if plan.guides:
        out["by_model"] = jnp.zeros((1 + len(plan.guides), B, num_out), jnp.float32)

    def goes_on(carry):
        _, out, is_live_now_B = carry
        is_first_end = may_leave & jnp.any(is_live_B & ~is_live_now_B)
        return (out["num_steps"] < plan.num_steps) & jnp.any(is_live_now_B) & ~is_first_end

    def step(carry):
        state, out, is_live_B = carry
        out = {**out, "num_steps": out["num_steps"] + 1, "num_live": out["num_live"] + jnp.sum(is_live_B)}
        state, drafts_BT = speculation.drafts(plan, weights, state, is_live_B)
        logits_BUV, logps, caches = _all_logits(plan, weights, state, drafts_BT, is_live_B)
        state = {**state, "caches": caches}
        is_writing_B = is_live_B
        for i in range(U):  # a guess that turns out to be the choice lets the row write one more token
            here = (logits_BUV[:, i], [logp_BUV[:, i] for logp_BUV in logps])
            state, out, is_live_B, chosen_B = _write(plan, state, out, *here, is_live_B, is_writing_B)
            if i < plan.num_draft:
                is_writing_B = is_writing_B & is_live_B & (drafts_BT[:, i] == chosen_B)
        return state, out, is_live_B

    state, out, _ = jax.lax.while_loop(goes_on, step, (state, out, is_live_B))
    return _placed(plan, state), {name: value for name, value in out.items() if name != "num"}


def _all_logits(plan, weights, state, drafts_BT, is_live_B):
    """The combined logits [B,U,V] at the pending token and behind every guess, what guided models say, all caches."""
    B, U = plan.num_slots, plan.num_draft + 1
    places = plan.places[: 1 + len(plan.guides)]
    logits, caches = [None] * len(places), list(state["caches"])
    for i, model in enumerate(plan.models):
        own = [w for w, place in enumerate(places) if place.model == i]  # in the order of their parts
        P = len(own)
        pending_R, position_R = (jnp.concatenate([state[name][w] for w in own]) for name in ("pending", "position"))
        tokens_RU = jnp.concatenate([pending_R[:, None], jnp.tile(drafts_BT, (P, 1))], axis=1)
        positions_RU = position_R[:, None] + jnp.arange(U, dtype=jnp.int32)[None]
        adapter_R = jnp.repeat(jnp.arange(P) + stacks.NONE, B) if P > 1 else None
        options: dict[str, Any] = dict(attention=plan.attention, adapter_R=adapter_R)
        hidden_RUD, caches[i] = network.forward(
            model, weights[i], caches[i], tokens_RU, positions_RU, is_live_R=jnp.tile(is_live_B, P), **options
        )
        adapter_X = None if adapter_R is None else jnp.repeat(adapter_R, U)
        logits_PBUV = network.logits(weights[i], hidden_RUD.reshape(P * B * U, -1), adapter_X).reshape(P, B, U, -1)
        for w, logits_BUV in zip(own, logits_PBUV):
            logits[w] = logits_BUV
    if not plan.guides:
        return logits[0], [], caches
    logps = guided.logprobs(logits, plan.num_ids)
    return guided.combine(logps, state["options"]["model_weights"], logits[0]), logps, caches


def _write(plan, state, out, logits_BV, logps, is_live_B, is_writing_B):
    """One token more in the rows that are writing."""
    B, S = state["tokens"].shape
    rows_B, options, position_WB = jnp.arange(B), state["options"], state["position"]
    next_B = position_WB[0] + 1  # where the new token stands, and the number of tokens so far
    adjusted_BV = sampling.adjust(logits_BV, options, state["num_written"], state["is_in_prompt"], is_writing_B)
    if plan.num_ids is not None and plan.num_ids < logits_BV.shape[1]:
        adjusted_BV = jnp.where(jnp.arange(logits_BV.shape[1])[None] < plan.num_ids, adjusted_BV, -jnp.inf)
    processor_states = []
    for fn, old in zip(plan.processors, state["processors"]):
        adjusted_BV, new = fn(adjusted_BV, state["tokens"], next_B, old)
        processor_states.append(jax.tree.map(functools.partial(_where_rows, is_writing_B), new, old))
    chosen_B = sampling.choose(adjusted_BV, options, next_B, is_writing_B)
    is_fixed_B = next_B < state["num_fixed"]
    fixed_B = jnp.take_along_axis(state["tokens"], jnp.minimum(next_B, S - 1)[:, None], axis=1)[:, 0]
    chosen_B = jnp.where(is_fixed_B, fixed_B, chosen_B)
    # logits that are NaN, or all -inf, choose V, which is outside: the host reports it, and nothing is indexed with it
    safe_B = jnp.minimum(chosen_B, logits_BV.shape[1] - 1)
    wants_top = jnp.any(options["wants_top"] & is_writing_B)
    logprob_B, top = sampling.logprobs(logits_BV, safe_B, wants_top)
    chosen_B = jnp.where(jnp.isnan(logprob_B), logits_BV.shape[1], chosen_B)

    place_B = jnp.where(is_writing_B, out["num"], out["tokens"].shape[1])  # outside, and dropped
    out = {
        **out,
        "tokens": out["tokens"].at[rows_B, place_B].set(chosen_B, mode="drop"),
        "logprobs": out["logprobs"].at[rows_B, place_B].set(logprob_B, mode="drop"),
        "top": tuple(x.at[rows_B, place_B].set(new, mode="drop") for x, new in zip(out["top"], top)),
        "num": out["num"] + is_writing_B,
    }
    if logps:
        by_model_WB = jnp.stack([jnp.take_along_axis(x_BV, safe_B[:, None], axis=1)[:, 0] for x_BV in logps])
        out["by_model"] = out["by_model"].at[:, rows_B, place_B].set(by_model_WB, mode="drop")
    ends_B = sampling.is_in(chosen_B, options["stop_ids"]) & ~is_fixed_B
    ends_B |= (next_B + 1 >= state["limit"]) | (chosen_B >= logits_BV.shape[1])
    written_at_B = jnp.where(is_writing_B, next_B, S)
    state = {
        **state,
        "tokens": state["tokens"].at[rows_B, written_at_B].set(safe_B, mode="drop"),
        "pending": jnp.where(is_writing_B[None], safe_B[None], state["pending"]),
        "position": position_WB + is_writing_B[None],
        "num_written": state["num_written"].at[rows_B, safe_B].add(is_writing_B.astype(jnp.int32)),
        "processors": tuple(processor_states),
    }
    return state, out, is_live_B & ~(is_writing_B & ends_B), chosen_B


def _where_rows(is_row_B, new, old):
    return jnp.where(is_row_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def row(
    plan: Plan,
    request: Request,
    prompts: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    written: Sequence[int],
    seed: np.uint32,
    stop_ids: Sequence[int],
    processors: Sequence[Any],
) -> dict[str, Any]:
    """What `admit` writes to a slot for a request.

    Args:
        prompts, starts: of each of `plan.places`: its tokens, and where its prefill begins.
        written: the answer so far, where one is continued.
        seed: of the draws.
        stop_ids: beside those of the request.
        processors: what the processors' states begin with.
    """
    tokens_S = np.zeros(plan.max_len, np.int32)
    tokens = [*prompts[0], *written]
    tokens_S[: len(tokens)] = tokens
    return {
        "tokens": tokens_S,
        "num_prompt": np.int32(len(prompts[0])),
        "num_fixed": np.int32(len(tokens)),
        "limit": np.int32(len(prompts[0]) + request.max_new_tokens),
        "pending": np.array([prompt[-1] for prompt in prompts], np.int32),
        "position": np.array(starts, np.int32),
        "options": _options(plan, request, seed, [*stop_ids, *request.stop_ids]),
        **_biases(request),
        "processors": tuple(processors),
    }


def _options(plan, request, seed, stop_ids):
    stop_ids = list(dict.fromkeys(stop_ids))[:NUM_STOP_IDS]
    return {
        **{name: np.float32(getattr(request, name)) for name in FLOATS},
        "temperature": np.float32(request.temperature if request.temperature >= LEAST_TEMPERATURE else 0.0),
        "top_p": np.float32(max(request.top_p, LEAST_TOP_P)),
        "top_k": np.int32(min(request.top_k, plan.models[0].vocab_size)),
        "seed": seed,
        "sample": np.uint32(request.sample),
        "wants_top": np.bool_(bool(request.logprobs)),
        "stop_ids": np.array(stop_ids + [-1] * (NUM_STOP_IDS - len(stop_ids)), np.int32),
        "model_weights": np.array([request.base_weight, *request.guide_weights], np.float32),
    }


def _biases(request):
    """A request's logit bias as two lists of one length for all requests."""
    ids, biases = np.zeros(NUM_BIASES, np.int32), np.zeros(NUM_BIASES, np.float32)
    for i, (token, bias) in enumerate(request.logit_bias.items()):
        ids[i], biases[i] = token, bias
    return {"bias_ids": ids, "biases": biases}

"""Marks as the decoding engine writes them: pure functions on the logits, inside the compiled step.

    fn, row = processors.build(mark, temperature=0.7)
    engine = Engine(..., processors=(fn,), processor_states=(processors.stack(row, num_slots),))
    engine.answers([Request(prompt, temperature=processors.draws_at(mark, 0.7), processor_rows=(row,))])

What differs between requests (key, strength, temperature, whether there is a mark at all) is in the request's row, so
one engine writes with many keys and without a mark: `off(row)` switches it off, and a processor is the same program
for all keys. A row's tokens depend on that row alone. Only `torch` lists leave the device: numpy draws them.

Dimensions: B rows, S positions of a row, W tokens of a context, V vocabulary.
"""

import dataclasses
import threading
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError
from alignment.watermark import green, hashing, text_marks, tournament
from alignment.watermark.text_marks import Mark

Row = dict[str, Any]
NUM_CANDIDATES = 40  # likeliest tokens that self hash tries with torch's lists, as all public implementations do
LIST_BYTES = 128 << 20  # of lists that `TorchLists` keeps


def build(mark: Mark, *, temperature: float = 1.0) -> tuple[Any, Row]:
    """The processor of a mark, and the row with which a request of it begins.

    Args:
        temperature: of the draw, > 0; synthid and exp work on probabilities and read it. 0 only for the others.

    Raises:
        InputError: synthid or exp at temperature 0, where nothing is drawn.
    """
    on = np.bool_(True)
    if mark.scheme in (text_marks.SYNTHID, text_marks.EXP):
        if not temperature > 0:
            raise InputError(
                f"scheme={mark.scheme!r} marks draws, and temperature={temperature} draws nothing; raise it"
            )
        shared = {"is_on": on, "temperature": np.float32(temperature), "start": np.int32(-1)}
        if mark.scheme == text_marks.EXP:
            assert isinstance(mark.key, int)
            return Gumbel(mark.of("width")), shared | {"key": hashing.split_key(mark.key)}
        assert isinstance(mark.key, tuple)
        return Tournament(mark.of("width"), len(mark.key), mark.of("history")), shared | {"bits": tournament.bits(mark)}
    assert isinstance(mark.key, int)
    delta = {"delta": np.float32(mark.of("delta"))}
    if mark.scheme == text_marks.UNIGRAM:
        return FixedBias(), delta | {"mask": np.array(green.unigram_mask(mark))}
    if mark.scheme == text_marks.KGW and mark.parity != text_marks.FAST:
        return TorchLists(mark), delta
    drawn = delta | {"key": hashing.split_key(mark.key), "threshold": hashing.threshold(mark.of("gamma"))}
    if mark.scheme == text_marks.RANDOM:
        return RandomBias(), drawn
    return GreenBias(mark.of("seeding"), mark.of("width")), drawn


def draws_at(mark: Mark, temperature: float) -> float:
    """The temperature of a marked request: 0 under exp, whose processor draws itself."""
    return 0.0 if mark.scheme == text_marks.EXP else temperature


def off(row: Row) -> Row:
    """The row of a request without a mark, for the same engine."""
    return row | ({"is_on": np.bool_(False)} if "is_on" in row else {"delta": np.float32(0)})


def stack(row: Row, num_slots: int) -> dict[str, jax.Array]:
    """The state of all slots, each without a mark until a request brings its own row."""
    return {name: jnp.stack([jnp.asarray(x)] * num_slots) for name, x in off(row).items()}


def context(tokens_BS: jax.Array, t_B: jax.Array, width: int) -> jax.Array:
    """The last `width` tokens of every row [B,W], the oldest first; the first token again where there are fewer."""
    at_BW = t_B[:, None] - width + jnp.arange(width, dtype=jnp.int32)[None]
    return jnp.take_along_axis(tokens_BS, jnp.maximum(at_BW, 0), axis=1)


@dataclasses.dataclass(frozen=True)
class GreenBias:
    """KGW with `fast` lists: delta is added to green logits, once a row has a full context."""

    seeding: str
    width: int

    def __call__(self, logits_BV: jax.Array, tokens_BS: jax.Array, t_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `programs.Processor`."""
        num_context, V = hashing.num_context(self.seeding, self.width), logits_BV.shape[1]
        context_BW = context(tokens_BS, t_B, num_context)
        ids_BV = jnp.broadcast_to(jnp.arange(V, dtype=jnp.uint32)[None], logits_BV.shape)
        values_BV = hashing.values(self.seeding, state["key"], context_BW, ids_BV)
        delta_B = jnp.where(t_B >= num_context, state["delta"], 0.0)
        return logits_BV + jnp.where(values_BV < state["threshold"][:, None], delta_B[:, None], 0.0), state


@dataclasses.dataclass(frozen=True)
class RandomBias:
    """The baseline that nobody can detect: a fresh mask at every position of a row."""

    def __call__(self, logits_BV: jax.Array, tokens_BS: jax.Array, t_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `programs.Processor`."""
        ids_BV = jnp.broadcast_to(jnp.arange(logits_BV.shape[1], dtype=jnp.uint32)[None], logits_BV.shape)
        values_BV = hashing.values(hashing.LEFT, state["key"], t_B[:, None], ids_BV)
        return logits_BV + jnp.where(values_BV < state["threshold"][:, None], state["delta"][:, None], 0.0), state


@dataclasses.dataclass(frozen=True)
class FixedBias:
    """Unigram: delta is added to the tokens of one list, at every position."""

    def __call__(self, logits_BV: jax.Array, tokens_BS: jax.Array, t_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `programs.Processor`."""
        return logits_BV + jnp.where(state["mask"], state["delta"][:, None], 0.0), state


@dataclasses.dataclass(frozen=True)
class Gumbel:
    """Aaronson's draw: the largest of logit / temperature + Gumbel noise that follows from key and context.

    On average over keys a token is drawn with its own probability. A context that came before in the answer would draw
    the same noise and might go in circles; there it goes without a mark, on noise of the position.
    """

    width: int

    def __call__(self, logits_BV: jax.Array, tokens_BS: jax.Array, t_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `programs.Processor`; the request's temperature is 0."""
        start_B = jnp.where(state["start"] < 0, t_B, state["start"])
        context_BW = context(tokens_BS, t_B, self.width)
        is_old_B = is_repeated(tokens_BS, t_B, jnp.zeros_like(start_B), start_B, self.width, tokens_BS.shape[1])
        is_marked_B = state["is_on"] & ~is_old_B & (t_B >= self.width)
        a_B, b_B = hashing.seed(state["key"], context_BW)
        other_a_B, other_b_B = hashing.seed(state["key"] ^ hashing.GOLDEN, t_B[:, None])
        a_B, b_B = jnp.where(is_marked_B, a_B, other_a_B), jnp.where(is_marked_B, b_B, other_b_B)
        ids_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.uint32)[None]
        u_BV = hashing.uniform(hashing.draw(a_B[:, None], b_B[:, None], ids_1V))
        noisy_BV = logits_BV / state["temperature"][:, None] - jnp.log(-jnp.log(u_BV))
        return jnp.where(state["is_on"][:, None], noisy_BV, logits_BV), {**state, "start": start_B}


@dataclasses.dataclass(frozen=True)
class Tournament:
    """SynthID as transformers runs it: contexts begin with zeros at the answer's start, and count once each."""

    width: int
    num_layers: int
    history: int

    def __call__(self, logits_BV: jax.Array, tokens_BS: jax.Array, t_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `programs.Processor`; the request draws at the same temperature, and filters come after the mark."""
        start_B = jnp.where(state["start"] < 0, t_B, state["start"])
        place_1S = jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None]
        answer_BS = jnp.where(place_1S >= start_B[:, None], tokens_BS, 0)
        at_BW = t_B[:, None] - self.width + jnp.arange(self.width, dtype=jnp.int32)[None]
        own_BW = jnp.take_along_axis(answer_BS, jnp.maximum(at_BW, 0), axis=1)
        own_BW = jnp.where(at_BW >= start_B[:, None], own_BW, 0)
        size = np.uint32(state["bits"].shape[1])
        ids_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.uint32)[None]
        hashes_BV = tournament.accumulate(tournament.context_hash(own_BW)[:, None], ids_1V) % size
        words_BV = jnp.take_along_axis(state["bits"], hashes_BV.astype(jnp.int32), axis=1)
        temperature_B1 = state["temperature"][:, None]
        probs_BV = jax.nn.softmax(logits_BV / temperature_B1)
        marked_BV = jnp.log(tournament.play(probs_BV, words_BV, self.num_layers)) * temperature_B1
        is_old_B = is_repeated(answer_BS, t_B, start_B, start_B, self.width, self.history)
        is_marked_B = state["is_on"] & ~is_old_B
        return jnp.where(is_marked_B[:, None], marked_BV, logits_BV), {**state, "start": start_B}


def is_repeated(
    tokens_BS: jax.Array, t_B: jax.Array, least_B: jax.Array, start_B: jax.Array, width: int, history: int
) -> jax.Array:
    """Whether the context of the next token was that of one of the last `history` tokens since `start` [B].

    Args:
        least_B: tokens before this place count as 0.
    """
    S = tokens_BS.shape[1]
    place_1S = jnp.arange(S, dtype=jnp.int32)[None]
    tokens_BS = jnp.where(place_1S >= least_B[:, None], tokens_BS, 0)
    is_same_BS = (place_1S >= start_B[:, None]) & (place_1S < t_B[:, None]) & (place_1S >= t_B[:, None] - history)
    for back in range(1, width + 1):
        at_B1 = t_B[:, None] - back
        own_B1 = jnp.where(at_B1 >= 0, jnp.take_along_axis(tokens_BS, jnp.maximum(at_B1, 0), axis=1), 0)
        before_BS = jnp.where(place_1S >= back, jnp.roll(tokens_BS, back, axis=1), 0)
        is_same_BS &= before_BS == own_B1
    return jnp.any(is_same_BS, axis=1)


class TorchLists:
    """KGW with the lists of lm-watermarking, transformers or MarkLLM, which numpy draws on the host.

    A list is drawn when its context is met for the first time (milliseconds: a loop over gamma V swaps) and kept as V
    bits. All lists of width 1 would take V^2 / 8 bytes; `max_bytes` bounds what stays, the longest unused goes first.
    Every step waits for the host, so this is for reading and writing what others read and write.
    """

    def __init__(self, mark: Mark, max_bytes: int = LIST_BYTES) -> None:
        self.mark = mark
        self.max_lists = max(1, max_bytes // -(-mark.vocab_size // 8))
        self.num_drawn = 0
        self._lists: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()  # callbacks of one program may come from several threads

    def packed(self, window: tuple[int, ...]) -> np.ndarray:
        """The green list of a context, eight tokens a byte."""
        with self._lock:
            if window in self._lists:
                self._lists.move_to_end(window)
                return self._lists[window]
            mask_V = np.zeros(self.mark.vocab_size, bool)
            mask_V[green.torch_list(self.mark, window)] = True
            self.num_drawn += 1
            self._lists[window] = np.packbits(mask_V)
            if len(self._lists) > self.max_lists:
                self._lists.popitem(last=False)
            return self._lists[window]

    def _whole(self, contexts_BW):
        return np.stack([self.packed(tuple(window)) for window in np.asarray(contexts_BW).tolist()])

    def _candidates(self, contexts_BW, ids_BN):
        contexts, ids = np.asarray(contexts_BW).tolist(), np.asarray(ids_BN).tolist()
        return np.array([[green.holds(self.mark, (*w, v), v) for v in row] for w, row in zip(contexts, ids)])

    def __call__(self, logits_BV: jax.Array, tokens_BS: jax.Array, t_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """See `programs.Processor`.

        Raises:
            InputError: the model has another vocabulary than the lists.
        """
        text_marks.check_vocab(self.mark, logits_BV.shape[1])
        B, V = logits_BV.shape
        C = self.mark.num_context
        context_BW = context(tokens_BS, t_B, C)
        delta_B1 = jnp.where(t_B >= C, state["delta"], 0.0)[:, None]
        if self.mark.seeding == hashing.SELF:
            num = min(NUM_CANDIDATES, V)
            ids_BN = jax.lax.optimization_barrier(jax.lax.top_k(logits_BV, num)[1])
            shape = jax.ShapeDtypeStruct((B, num), jnp.bool_)
            green_BN = jax.pure_callback(self._candidates, shape, context_BW, ids_BN)
            return logits_BV.at[jnp.arange(B)[:, None], ids_BN].add(jnp.where(green_BN, delta_B1, 0.0)), state
        shape = jax.ShapeDtypeStruct((B, -(-V // 8)), jnp.uint8)
        packed_BX = jax.pure_callback(self._whole, shape, context_BW)
        mask_BV = jnp.unpackbits(packed_BX, axis=1)[:, :V].astype(bool)
        return logits_BV + jnp.where(mask_BV, delta_B1, 0.0), state

"""Green lists of KGW and Unigram on the host: which tokens of a text are green, and whole masks.

Dimensions: T tokens of a text, C tokens of a context, N contexts, V vocabulary.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from alignment.errors import InputError
from alignment.watermark import hashing, text_marks, torch_lists
from alignment.watermark.text_marks import Mark


def unigram_mask(mark: Mark) -> np.ndarray:
    """Unigram's one list, bool [V], as its authors' code draws it."""
    return _unigram(mark.key, mark.vocab_size, mark.num_green)


@functools.lru_cache(maxsize=64)
def _unigram(key, vocab_size, num_green):
    digest = hashlib.sha256(key.to_bytes(8, "little")).digest()
    mask_V = np.array([True] * num_green + [False] * (vocab_size - num_green))
    np.random.default_rng(int.from_bytes(digest[:4], "little")).shuffle(mask_V)
    mask_V.setflags(write=False)
    return mask_V


def list_seed(mark: Mark, window: Sequence[int]) -> int:
    """The seed of a list of `parity` kgw, hf or markllm.

    Args:
        window: the last `width` tokens before the one that is listed, or with it under self hash; `first` draws it.
    """
    key, seeding = mark.key, mark.seeding
    assert isinstance(key, int)
    window = [int(token) for token in window]
    if mark.parity == text_marks.MARKLLM:
        prf = torch_lists.table(key, mark.vocab_size)
        if seeding == hashing.MIN:
            return key * int(min(prf[token] for token in window)) % mark.vocab_size
        return key * int(prf[np.prod([1, *map(int, window)], dtype=object) % mark.vocab_size]) % mark.vocab_size
    if seeding == hashing.LEFT:
        return key * (sum(window) if mark.parity == text_marks.KGW else window[-1]) % ((1 << 64) - 1)
    table = torch_lists.table(torch_lists.KGW_TABLE_SEED if mark.parity == text_marks.KGW else key)
    looked_up = table[np.array(window) % len(table)] + 1
    factors = np.array([key % (1 << 64)], np.uint64).view(np.int64) * looked_up  # int64 wraps around, as in torch
    if seeding == hashing.SELF:
        factors = factors * looked_up[-1]
    return int(factors.min()) % ((1 << 64) - 1)


def torch_list(mark: Mark, window: Sequence[int]) -> np.ndarray:
    """The green ids of one window of `parity` kgw, hf or markllm, in the order in which they are drawn."""
    return torch_lists.first(mark.vocab_size, mark.num_green, list_seed(mark, window))


def windows(ids_T: np.ndarray, length: int) -> np.ndarray:
    """All windows of consecutive tokens, [T - length + 1, length]."""
    return np.lib.stride_tricks.sliding_window_view(ids_T, length)


def check_ids(mark: Mark, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Token ids as int64 [T].

    Raises:
        InputError: an id outside the mark's vocabulary, or too few tokens to score one.
    """
    ids_T = np.asarray(ids, np.int64)
    if ids_T.size and not (ids_T.min() >= 0 and ids_T.max() < mark.vocab_size):
        wrong = ids_T[(ids_T < 0) | (ids_T >= mark.vocab_size)][0]
        raise InputError(f"token {wrong} is outside the mark's vocabulary of {mark.vocab_size}; is it the same model?")
    if len(ids_T) <= mark.num_context:
        raise InputError(f"{len(ids_T)} tokens: a token is scored after {mark.num_context} others; give more text")
    return ids_T


def read(mark: Mark, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token from the first with a full context on is green, bool [T - C], and labels of the draws [T - C].

    Tokens of one label were decided by one draw: the same token in the same list. Under min and self hash that may
    happen in contexts that differ.
    """
    ids_T = check_ids(mark, ids)
    C = mark.num_context
    if mark.scheme == text_marks.UNIGRAM:
        return unigram_mask(mark)[ids_T], ids_T
    if mark.scheme != text_marks.KGW:
        raise InputError(f"scheme={mark.scheme!r} has no green list to read")
    if mark.parity == text_marks.FAST:
        contexts = windows(ids_T[:-1], C) if C else np.zeros((len(ids_T), 0), np.int64)
        values_T = fast_values(mark, contexts, ids_T[C:, None])[:, 0]
        return values_T < hashing.threshold(mark.of("gamma")), values_T
    grams, back = np.unique(windows(ids_T, C + 1), axis=0, return_inverse=True)
    is_self = mark.seeding == hashing.SELF
    drawn = [(list_seed(mark, gram if is_self else gram[:-1]), gram[-1]) for gram in grams.tolist()]
    flags = np.array([_holds(mark.vocab_size, mark.num_green, *pair) for pair in drawn])
    numbers: dict[tuple[int, int], int] = {}
    labels = np.array([numbers.setdefault(pair, len(numbers)) for pair in drawn])
    return flags[back.reshape(-1)], labels[back.reshape(-1)]


def flags(mark: Mark, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The first half of `read`."""
    return read(mark, ids)[0]


def holds(mark: Mark, window: Sequence[int], token: int) -> bool:
    """Whether the list of a window has a token, for `parity` kgw, hf and markllm; no list is made."""
    return _holds(mark.vocab_size, mark.num_green, list_seed(mark, window), token)


_holds = functools.lru_cache(maxsize=1 << 16)(torch_lists.holds)


def fast_values(mark: Mark, contexts_NC: np.ndarray, ids_NX: np.ndarray) -> np.ndarray:
    """`hashing.values` under the mark's key, uint32 [N,X]."""
    assert isinstance(mark.key, int)
    key_N2 = np.broadcast_to(hashing.split_key(mark.key), (len(contexts_NC), 2))
    return hashing.values(mark.seeding or hashing.LEFT, key_N2, contexts_NC, ids_NX.astype(np.uint32))


def masks(mark: Mark, contexts_NC: np.ndarray) -> np.ndarray:
    """The green tokens after each context, bool [N,V].

    Raises:
        InputError: self hash with torch's lists, where each of V candidates needs a list of its own.
    """
    N, V = len(contexts_NC), mark.vocab_size
    if mark.scheme == text_marks.UNIGRAM:
        return np.broadcast_to(unigram_mask(mark), (N, V))
    if mark.parity == text_marks.FAST:
        return fast_values(mark, contexts_NC, np.broadcast_to(np.arange(V), (N, V))) < hashing.threshold(
            mark.of("gamma")
        )
    if mark.seeding == hashing.SELF:
        raise InputError("a whole mask of self hash needs a list for every candidate; take parity='fast'")
    out_NV = np.zeros((N, V), bool)
    for row_V, context in zip(out_NV, contexts_NC):
        row_V[torch_list(mark, context)] = True
    return out_NV

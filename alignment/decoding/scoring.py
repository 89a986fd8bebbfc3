"""How likely a model finds continuations that are given: no cache and no engine, but rows as training packs them.

All continuations of one context are branches of one group, so the context is read once; several groups share a row.
Rows have few lengths, so few programs are compiled. The head is applied only where a token is scored.

Dimensions: N sequences, R rows of a call, T time, M = T scored tokens of a row.
"""

import bisect
import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignment import logprobs
from alignment.errors import InputError
from alignment.models import decoder
from alignment.train import sharding

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a context and of its continuation

SHORTEST_ROW = 64
USUAL_ROWS = (256, 384, 512)  # long rows are filled better by several groups, short ones have cheaper attention
TOKENS_PER_CALL = {"cpu": 3_072}  # where a CPU's matrix products are at their best; accelerators want more
NAMES = ("tokens", "positions", "groups", "branches", "sources", "targets")
Path = tuple[Sequence[int], Sequence[int], Sequence[int]]  # ids of a context, of a path behind it, and of a target
Target = tuple[int, int, Sequence[int]]  # the number of a row of tokens, how many of them come before, the target's ids


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score` and `rolling` return, in the order of what went in.

    Attributes:
        total_N: nats, summed over the tokens of each continuation.
        length_N: tokens of each continuation.
        is_greedy_N: whether every token of it is the likeliest after those before; of equals the first counts.
        num_cut: sequences whose context was cut on the left.
    """

    total_N: np.ndarray
    length_N: np.ndarray
    is_greedy_N: np.ndarray
    num_cut: int = 0


@dataclasses.dataclass
class _Group:
    """A context with some of its continuations, laid out from position 0; `owners` says whose each target is.

    `starts` says how many tokens of the trunk each continuation stands behind; None: all. `silent` says how many of
    each continuation's first tokens are read and not scored; None: none.
    """

    trunk: np.ndarray
    continuations: list[np.ndarray]
    owners: list[int]
    starts: list[int] | None = None
    silent: list[int] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.trunk) + sum(len(c) - 1 for c in self.continuations)

    @property
    def size(self) -> int:
        """Places that the group takes in a row: each of its tokens has one, and each of its targets."""
        return max(self.num_tokens, sum(len(c) for c in self.continuations))

    def owners_of_targets(self) -> np.ndarray:
        """Whose each target is, -1 where nobody's."""
        lengths = np.array([len(c) for c in self.continuations])
        owners = np.repeat(self.owners, lengths)
        if self.silent is not None:
            order = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            owners = np.where(order < np.repeat(self.silent, lengths), -1, owners)
        return owners


def score(
    model: decoder.DecoderLM,
    params: Any,
    pairs: Sequence[Pair],
    *,
    max_len: int | None = None,
    mesh: Mesh | None = None,
    tokens_per_call: int | None = None,
) -> Scores:
    """Log-probability of each continuation after its context.

    Args:
        pairs: a context of at least one token and a continuation of at least one.
        max_len: positions that the model reads at most. A context and continuation of more than `max_len + 1` tokens
            (the last one is only predicted) lose the context's first tokens; None: nothing is cut.
        mesh: rows are split over `data` and `fsdp`, vocabulary over `tensor`; None: one device.
        tokens_per_call: places of one call of the model; None: what suits the machine.

    Raises:
        InputError: an empty context or continuation, a continuation of more than `max_len` tokens, or an id outside
            the vocabulary.
    """
    keys, num_cut = _cut(pairs, max_len)
    unique = list(dict.fromkeys(keys))  # the same pair may come often, as answers without their question do
    _check_ids(keys, unique, model.vocab_size)
    place = {key: i for i, key in enumerate(unique)}
    total_U, is_greedy_U = _totals(model, params, _groups(unique), len(unique), mesh, tokens_per_call)
    index_N = np.array([place[key] for key in keys], np.int64)
    lengths_N = np.array([len(rest) for _, rest in pairs], np.int64)
    return Scores(total_U[index_N], lengths_N, is_greedy_U[index_N], num_cut)


def score_within(
    model: decoder.DecoderLM,
    params: Any,
    rows: Sequence[Sequence[int]],
    targets: Sequence[Target],
    *,
    mesh: Mesh | None = None,
    tokens_per_call: int | None = None,
) -> Scores:
    """Log-probability of targets that leave a row of tokens anywhere, as if the row ended there; each row is read once.

    Args:
        rows: token ids.
        targets: each behind at least one token of its row, and with at least one of its own.
        mesh, tokens_per_call: see `score`.

    Raises:
        InputError: a target behind nothing, without tokens, or an id outside the vocabulary.
    """
    for n, (row, start, ids) in enumerate(targets):
        if not 1 <= start <= len(rows[row]) or not len(ids):
            raise InputError(
                f"target {n} has {len(ids)} tokens and leaves a row of {len(rows[row])} behind {start}; it needs one "
                "token of its own and one before it"
            )
    keys = [(np.asarray(rows[r], np.int32).tobytes(), np.asarray(ids, np.int32).tobytes()) for r, _, ids in targets]
    _check_ids(keys, keys, model.vocab_size)
    by_row: dict[int, _Group] = {}
    for owner, (row, start, ids) in enumerate(targets):
        if row not in by_row:
            by_row[row] = _Group(np.asarray(rows[row], np.int32), [], [], [])
        group = by_row[row]
        group.continuations.append(np.asarray(ids, np.int32))
        group.owners.append(owner)
        group.starts.append(start)  # type: ignore[union-attr]  # made with a list two lines above
    for group in by_row.values():  # what stands behind the last target's beginning is read by nobody
        group.trunk = group.trunk[: max(group.starts or ())]
    groups = _splits(list(by_row.values()))
    total_N, is_greedy_N = _totals(model, params, groups, len(targets), mesh, tokens_per_call)
    return Scores(total_N, np.array([len(ids) for _, _, ids in targets], np.int64), is_greedy_N)


def score_behind(
    model: decoder.DecoderLM,
    params: Any,
    paths: Sequence[Path],
    *,
    mesh: Mesh | None = None,
    tokens_per_call: int | None = None,
) -> Scores:
    """Log-probability of targets, each behind a context and a path of its own; only the targets are scored.

    Paths that leave one context are branches of a prefix tree: the context is read once for all of them.

    Args:
        paths: a context of at least one token, a path of any length, a target of at least one token.
        mesh, tokens_per_call: see `score`.

    Raises:
        InputError: an empty context or target, or an id outside the vocabulary.
    """
    keys: list[tuple[bytes, bytes]] = []
    by_context: dict[bytes, _Group] = {}
    for owner, (context, path, target) in enumerate(paths):
        if not len(context) or not len(target):
            raise InputError(
                f"path {owner} has {len(context)} tokens before it and a target of {len(target)}; both need one"
            )
        trunk, branch = np.asarray(context, np.int32), np.asarray([*path, *target], np.int32)
        keys.append((trunk.tobytes(), branch.tobytes()))
        group = by_context.setdefault(keys[-1][0], _Group(trunk, [], [], silent=[]))
        group.continuations.append(branch)
        group.owners.append(owner)
        group.silent.append(len(path))  # type: ignore[union-attr]  # every group here is made with a list
    _check_ids(keys, keys, model.vocab_size)
    groups = _splits(list(by_context.values()))
    total_N, is_greedy_N = _totals(model, params, groups, len(paths), mesh, tokens_per_call)
    return Scores(total_N, np.array([len(target) for *_, target in paths], np.int64), is_greedy_N)


def _totals(model, params, groups, num, mesh, tokens_per_call):
    """Nats of each owner's targets, and whether they are all the likeliest, [num]."""
    total_U, is_greedy_U = np.zeros(num), np.ones(num, bool)
    waiting: collections.deque = collections.deque()
    model = _for_branches(model)
    head_DV = decoder.head(model, params)  # once: a call's program would transpose a tied one anew

    def finish() -> None:
        owners, out = waiting.popleft()
        logps_Q, greedy_Q = (x[: len(owners)][owners >= 0] for x in sharding.to_host(out))
        owners_Q = owners[owners >= 0]
        np.add.at(total_U, owners_Q, logps_Q.astype(np.float64))
        np.logical_and.at(is_greedy_U, owners_Q, greedy_Q)

    for rows, owners in _calls(groups, _width(mesh), tokens_per_call or _tokens_per_call()):
        waiting.append((owners, _run(model, params, head_DV, rows, mesh)))
        if len(waiting) > 1:  # the device computes one call while the host lays out the next
            finish()
    while waiting:
        finish()
    return total_U, is_greedy_U


def rolling(
    model: decoder.DecoderLM,
    params: Any,
    texts: Sequence[Sequence[int]],
    *,
    prefix_id: int,
    max_len: int,
    stride: int | None = None,
    **options: Any,
) -> Scores:
    """Log-probability of whole texts of any length: each token is scored once, in a window that ends with it or later.

    Args:
        texts: token ids; an empty text has log-probability 0.
        prefix_id: what the first token of a text is predicted from, such as BOS.
        max_len: positions of a window.
        stride: tokens that each window after the first scores, 1 to `max_len`: with fewer, each has more context (at
            least `max_len - stride + 1` tokens) and there are more windows. None: `max_len`.
        options: `mesh` and `tokens_per_call` of `score`.
    """
    stride = max_len if stride is None else stride
    if not 1 <= stride <= max_len:
        raise InputError(f"stride={stride} must be from 1 to max_len={max_len}")
    owners, pairs = [], []
    for i, text in enumerate(texts):
        for pair in _windows(list(text), prefix_id, max_len, stride):
            owners.append(i)
            pairs.append(pair)
    total_N, length_N, is_greedy_N = np.zeros(len(texts)), np.zeros(len(texts), np.int64), np.ones(len(texts), bool)
    if pairs:
        scores = score(model, params, pairs, max_len=max_len, **options)
        np.add.at(total_N, owners, scores.total_N)
        np.add.at(length_N, owners, scores.length_N)
        np.logical_and.at(is_greedy_N, owners, scores.is_greedy_N)
    return Scores(total_N, length_N, is_greedy_N)


def _windows(text: list[int], prefix_id: int, max_len: int, stride: int) -> Iterator[Pair]:
    """A context and what is scored after it, at most max_len + 1 tokens together."""
    ids = [prefix_id, *text]
    end = min(max_len, len(text)) + 1
    if text:
        yield ids[:1], ids[1:end]
    while end < len(ids):
        start, end = end, min(end + stride, len(ids))
        yield ids[max(0, end - max_len - 1) : start], ids[start:end]


def _cut(pairs, max_len):
    """The pairs as keys for a dict, cut to what the model can read, and how many were cut."""
    keys, num_cut = [], 0
    for n, (context, rest) in enumerate(pairs):
        if not len(context) or not len(rest):
            raise InputError(
                f"sequence {n} has {len(context)} tokens of context and {len(rest)} after it; both need one"
            )
        excess = 0 if max_len is None else len(context) + len(rest) - max_len - 1
        if excess > 0:
            if excess >= len(context):
                raise InputError(
                    f"sequence {n} has a continuation of {len(rest)} tokens; with max_len={max_len} it may have "
                    f"{max_len}"
                )
            context, num_cut = context[excess:], num_cut + 1
        # bytes are hashed and compared faster than tuples of numbers
        keys.append((np.asarray(context, np.int32).tobytes(), np.asarray(rest, np.int32).tobytes()))
    return keys, num_cut


def _check_ids(keys, unique, vocab_size):
    """Refuse ids that the embedding lacks; XLA would take the last row for them."""

    def is_good(parts):
        ids = np.frombuffer(b"".join(parts), np.int32)
        return not ids.size or (ids.min() >= 0 and ids.max() < vocab_size)

    if not is_good(part for key in unique for part in key):
        bad = next(n for n, key in enumerate(keys) if not is_good(key))
        raise InputError(f"sequence {bad} has a token id outside the vocabulary, which is 0 to {vocab_size - 1}")


def _groups(keys):
    """The continuations of each context together; a group that would not fit the longest row is split."""
    by_context: dict[bytes, _Group] = {}
    for owner, (context, rest) in enumerate(keys):
        group = by_context.get(context)
        if group is None:
            group = by_context[context] = _Group(np.frombuffer(context, np.int32), [], [])
        group.continuations.append(np.frombuffer(rest, np.int32))
        group.owners.append(owner)
    return _splits(list(by_context.values()))


def _splits(whole):
    single = [max(len(g.trunk) + len(c) - 1 for c in g.continuations) for g in whole]
    longest_row = max(*USUAL_ROWS, _row_length(max(single, default=1)))
    return [part for group in whole for part in _split(group, longest_row)]


def _split(group, longest_row):
    if group.size <= longest_row:
        yield group
        return

    def of(first: int, end: int) -> _Group:
        starts, silent = (None if x is None else x[first:end] for x in (group.starts, group.silent))
        return _Group(group.trunk, group.continuations[first:end], group.owners[first:end], starts, silent)

    first = 0
    for end in range(1, len(group.owners) + 1):
        if end - first > 1 and of(first, end).size > longest_row:
            yield of(first, end - 1)
            first = end - 1
    yield of(first, len(group.owners))


def _row_length(size):
    """The shortest of 64, 96, 128, 192, 256, 384, ... that is long enough: two lengths for each power of two."""
    length = SHORTEST_ROW
    while length < size:
        length *= 2
    return length * 3 // 4 if length > SHORTEST_ROW and length * 3 // 4 >= size else length


def _pack(groups):
    """Groups in rows: a list of (row length, groups), at the usual length that costs least."""
    total = sum(group.size for group in groups)
    usual = {min(length, _row_length(total)) for length in USUAL_ROWS}
    # attention makes a place dearer with the length of its row, about double at 2,048 in a narrow model on a CPU
    return min(
        (_fill(groups, length) for length in sorted(usual)),
        key=lambda rows: sum(length * (1 + length / 2_048) for length, _ in rows),
    )


def _fill(groups, usual):
    """Rows of the usual length, or longer for a group that needs it, each filled with the largest groups that fit."""
    left = sorted(range(len(groups)), key=lambda i: (groups[i].size, -i))
    sizes = [groups[i].size for i in left]
    rows = []
    while left:
        length = max(usual, _row_length(sizes[-1]))
        room, row = length, []
        while left and (at := bisect.bisect_right(sizes, room)):
            sizes.pop(at - 1)
            row.append(groups[left.pop(at - 1)])
            room -= row[-1].size
        rows.append((length, row))
    return rows


def _calls(groups, width, tokens_per_call):
    """Batches of rows as the model reads them, each with the owner of every target, -1 for filling.

    Args:
        width: the number of rows is a multiple of this.
    """
    by_length = collections.defaultdict(list)
    for length, row in _pack(groups):
        by_length[length].append(row)
    for length, rows in by_length.items():  # the longest come first, so memory runs out at once or never
        num_rows = _rows_per_call(len(rows), max(1, tokens_per_call // (length * width)), width)
        for at in range(0, len(rows), num_rows):
            yield _lay_out(rows[at : at + num_rows], num_rows, length)


def _rows_per_call(num, most, width):
    """Rows of every call: all are alike, so that one program serves them, and few rows are filling.

    Args:
        num: of rows in all.
        most: widths of a call.
    """
    least = -(-num // (most * width))
    sizes = [-(-num // (num_calls * width)) * width for num_calls in range(least, least + 3)]
    return min(sizes, key=lambda size: -(-num // size) * size)  # of equals the first, which has the fewest calls


def _lay_out(rows, num_rows, length):
    """The arrays [R,T] of a call, and the owners [R,T] of its targets."""
    # only where a trunk goes on behind its branches, since the mask costs more with them
    names = (*NAMES, "forks") if any(g.starts is not None for row in rows for g in row) else NAMES
    batch = {name: np.zeros((num_rows, length), np.int32) for name in names}
    owners_RM = np.full((num_rows, length), -1, np.int64)
    for r, row in enumerate(rows):
        parts = []
        at = 0
        for number, group in enumerate(row, start=1):
            parts.append(_arrays(group, number, at))
            at += group.num_tokens
        owners = np.concatenate([group.owners_of_targets() for group in row])
        owners_RM[r, : len(owners)] = owners
        for name, pieces in zip(names, zip(*parts)):
            values = np.concatenate(pieces)
            batch[name][r, : len(values)] = values
    batch["wanted"] = owners_RM >= 0
    return batch, owners_RM


def _arrays(group, number, at):
    """What `NAMES` lists and the forks, for one group: one value a token, and for sources and targets one a target.

    Args:
        number: of the group in its row.
        at: where in the row its first token stands.
    """
    num_trunk = len(group.trunk)
    lengths = np.array([len(c) for c in group.continuations])
    inner = lengths - 1  # the last token of a continuation is predicted and never read
    tokens = np.concatenate([group.trunk, *(c[:-1] for c in group.continuations)])
    starts = np.cumsum(inner) - inner
    within = np.arange(inner.sum()) - np.repeat(starts, inner)
    begins = np.full(len(lengths), num_trunk) if group.starts is None else np.array(group.starts)
    forks = np.repeat(begins, inner)
    positions = np.concatenate([np.arange(num_trunk), forks + within])
    branches = np.concatenate([np.zeros(num_trunk, np.int64), np.repeat(np.arange(1, len(lengths) + 1), inner)])
    # a continuation's first token is predicted at the trunk's end, token k at its own branch's token k - 1
    first = np.cumsum(lengths) - lengths
    order = np.arange(lengths.sum()) - np.repeat(first, lengths)
    sources = np.where(order == 0, np.repeat(begins, lengths) - 1, num_trunk + np.repeat(starts, lengths) + order - 1)
    groups = np.full(len(tokens), number)
    values = tokens, positions, groups, branches, at + sources, np.concatenate(group.continuations)
    return (*values, np.concatenate([np.zeros(num_trunk, np.int64), forks]))


def _width(mesh):
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def _tokens_per_call():
    return TOKENS_PER_CALL.get(jax.default_backend(), 16_384)


def _for_branches(model):
    """The model with an attention kernel that takes branches, which fused kernels do not."""
    return model if model.attention in ("blocked", "dense") else model.clone(attention="blocked")


def _run(model, params, head_DV, rows, mesh):
    if mesh is None:
        return _scored(model, params, head_DV, rows, None)
    share = sharding.row_share(mesh)
    num_mine = len(rows["tokens"]) // share["process_count"]
    mine = slice(share["process_index"] * num_mine, (share["process_index"] + 1) * num_mine)
    with sharding.activations(mesh):
        return _scored(model, params, head_DV, sharding.to_devices({k: v[mine] for k, v in rows.items()}, mesh), mesh)


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def _scored(
    model: decoder.DecoderLM, params: Any, head_DV: jax.Array, rows: dict[str, jax.Array], mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and whether it is the likeliest token, [R,M]."""
    places = (rows["positions"], rows["groups"], rows["branches"], rows.get("forks"))
    hidden_RTD: Any = model.apply(decoder.variables(params), rows["tokens"], *places)
    return logprobs.selected_and_greedy(
        hidden_RTD, head_DV, rows["sources"], rows["targets"], mask_NM=rows["wanted"], mesh=mesh
    )

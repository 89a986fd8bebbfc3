"""Documents for pretraining and conversations for supervised tuning: files in, batches of packed rows out.

    train, heldout, report = text.load(path="corpus/", tokenizer=tok, max_len=2048)
    for batch in text.batches(train, batch_size=8, seed=0): ...

Rows are packed: several texts lie in one row, each in a group of its own with positions from 0, and attention stays
within a group. In supervised tuning only the assistant's tokens are targets.
Dimensions: N rows, T time.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError, one_of, within
from data import loader, records
from data.texts import mixtures, packing, shared_rows, splits, targets, text_formats
from data.texts.pair_formats import Comparison
from data.tokens import chat as chats
from data.tokens.tokenizer import Tokenizer

KINDS = ("auto", "documents", "answers")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Tokenised texts, and the rows into which they are packed.

    Attributes:
        tokens: all texts end to end, int32.
        counts: of each token 1 where it is a target, 0 where it is only read, int8.
        starts: [n + 1] where each text begins.
        rows: the pieces (text, start, stop) of each row; a piece of k + 1 tokens fills k places, since its last token
            is only a target.
        max_len: T.
        pad_id: fills rows.
        shares: whether beginnings that texts of a row have in common stand there once (`shared_rows`).
        samples: the first texts, as they were tokenised.
        num_bytes: of the targets' text in UTF-8.
        mixture: shares of the rows of a run, one for each source; () for rows that are all shuffled alike.
        sources: of `mixture`, which of them each row belongs to.
    """

    tokens: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    max_len: int
    pad_id: int
    samples: tuple[str, ...]
    num_bytes: int = 0
    shares: bool = False
    mixture: tuple[float, ...] = ()
    sources: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the tokens, of which of them are targets, and of the width of a row."""
        mixed = [np.array(self.mixture), np.array(self.sources)] if self.mixture else []
        digest = loader.digest(self.tokens, self.counts, self.starts, np.array([self.max_len]), *mixed)
        return f"{digest} shared" if self.shares else digest

    @property
    def num_texts(self) -> int:
        return len(self.starts) - 1

    @property
    def num_targets(self) -> int:
        """Tokens that are learned or predicted: a text's first token has none before it and is not."""
        return int(self.counts.sum() - self.counts[self.starts[:-1]].sum())

    def first_answer(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of text i before its first target, and those of the first run of targets."""
        tokens, counts = (x[self.starts[i] : self.starts[i + 1]] for x in (self.tokens, self.counts))
        start = int(np.argmax(counts > 0))
        stops = np.flatnonzero(counts[start:] == 0)
        return tokens[:start], tokens[start : start + stops[0] if len(stops) else len(tokens)]


def check(
    *,
    path: str | Sequence[str],
    max_len: int,
    kind: str = "auto",
    heldout_path: str | Sequence[str] = "",
    heldout_fraction: float = 0.05,
    split: str = "train",
    heldout_split: str = "",
    turns: str = "all",
    truncation: str = "keep_start",
    limit: int | None = None,
    packed: bool = True,
    share_prefixes: bool = False,
    shares: Sequence[float] = (),
) -> None:
    """Refuse settings of `load` before a record is read.

    Raises:
        InputError: a setting out of its range, or a path where nothing lies.
    """
    one_of("data.kind", kind, KINDS)
    one_of("data.turns", turns, ("all", "last"))
    one_of("data.truncation", truncation, ("keep_start", "drop", "error"))
    if share_prefixes and not packed:
        raise InputError(
            "data.share_prefixes=True puts several texts in a row, and data.packed=False gives each its own"
        )
    if max_len < 2:
        raise InputError(f"data.max_len={max_len}; a row needs at least 2 tokens")
    within("[1, inf)", hint="; None takes all records", **{"data.limit": limit})
    splits.check(path, heldout_path, split=split, heldout_split=heldout_split)
    if not heldout_path and not heldout_split and not 0 <= heldout_fraction < 1:
        raise InputError(f"data.heldout_fraction={heldout_fraction}; it must be in [0, 1)")
    if not path and not heldout_path:
        raise InputError("data.path is empty; give a file, a folder or a glob ('.' is the current folder)")
    if shares:
        mixtures.check(_parts(path), shares)
    for one in filter(None, (*(_parts(path) if shares else (path,)), heldout_path)):
        if isinstance(one, str) and one.startswith("synthetic"):
            name = one.partition(":")[2] or "documents"
            one_of("data.path", f"synthetic:{name}", [f"synthetic:{known}" for known in text_formats.EMBEDDED])
        else:
            records.check(one)


def load(
    *,
    path: str | Sequence[str],
    tokenizer: Tokenizer,
    max_len: int,
    kind: str = "auto",
    heldout_path: str | Sequence[str] = "",
    heldout_fraction: float = 0.05,
    split: str = "train",
    heldout_split: str = "",
    columns: Mapping[str, str] | None = None,
    turns: str = "all",
    packed: bool = True,
    share_prefixes: bool = False,
    truncation: str = "keep_start",
    limit: int | None = None,
    seed: int = 0,
    bad_records_path: str = "",
    shares: Sequence[float] = (),
) -> tuple[Texts, Texts, dict[str, int]]:
    """Read, split, tokenise, pack.

    Args:
        path: as in preferences.load; .txt files are cut into documents of a few thousand characters;
            'synthetic:documents' and 'synthetic:conversations' are the embedded data. '' with a `heldout_path` gives no
            training texts.
        max_len: T, the length of a row. A longer document goes on in another row; a longer conversation is truncated.
        kind: 'documents' reads `text`, and every token is a target; 'answers' reads the formats listed in
            pair_formats.py, and only the answers' tokens are targets; 'auto' decides by the columns.
        heldout_fraction: of the texts (of the prompts, for 'answers'), when no `heldout_path` or `heldout_split` is
            given.
        columns: our name to the file's, such as `{"text": "body"}`; "" stands for the usual names. A column of the
            file that is called `prompt` holds text to continue, any other prompt is a question to a chat model.
        turns: 'all' trains on every assistant turn, 'last' on the last one.
        packed: several texts a row; False gives each its own.
        share_prefixes: rows hold what their texts begin with in common once; see `shared_rows`.
        truncation: of a conversation longer than a row: 'keep_start', 'drop' or 'error'.
        limit: use the first so many records; None uses all.
        seed: of the split, and of the embedded data.
        bad_records_path: where to write the lines set aside, as JSONL; '' writes nothing.
        shares: of the rows of a run, one for each path of `path` (a list, or one text with commas between); `limit` is
            then of each path, and so is `heldout_fraction`. () takes all rows alike.

    Returns:
        Training texts, held-out texts, and counts of everything that was read, dropped and cut.

    Raises:
        InputError: a setting out of its range, a file or column that is missing, or no text left to train on.
    """
    held: dict[str, Any] = dict(
        heldout_path=heldout_path, heldout_split=heldout_split, heldout_fraction=heldout_fraction
    )
    rows: dict[str, Any] = dict(packed=packed, share_prefixes=share_prefixes)
    fixed: dict[str, Any] = dict(max_len=max_len, kind=kind, turns=turns, truncation=truncation, limit=limit, **rows)
    check(path=path, shares=shares, **fixed, **held)
    if shares:
        options = dict(tokenizer=tokenizer, columns=columns, seed=seed, split=split, **fixed)
        return _mixed(_parts(path), shares, held, bad_records_path, options)
    report: dict[str, int] = {}
    columns = {ours: theirs for ours, theirs in (columns or {}).items() if theirs}
    reading: dict[str, Any] = {"kind": kind, "columns": columns, "limit": limit, "seed": seed, "report": report}
    halves = splits.read(
        lambda path, split, bad: text_formats.read(path, split=split, bad_records_path=bad, **reading),
        path,
        split=split,
        seed=seed,
        bad_records_path=bad_records_path,
        **held,
    )
    fitting: dict[str, Any] = dict(max_len=max_len, turns=turns, truncation=truncation, report=report, **rows)
    train, heldout = (tokenise(half, tokenizer, **fitting) for half in halves)
    if path and not len(train):
        raise InputError(f"{path}: no text is left to train on; counts: {report}")
    report["training rows"], report["held-out rows"] = len(train), len(heldout)
    report["training tokens"] = int(train.counts.sum())
    return train, heldout, report


def _parts(path: str | Sequence[str]) -> list[str]:
    """The paths of a mixture, one for each share."""
    return [part.strip() for part in path.split(",")] if isinstance(path, str) else list(path)


def _mixed(
    paths: Sequence[str],
    shares: Sequence[float],
    held: Mapping[str, Any],
    bad_records_path: str,
    options: Mapping[str, Any],
) -> tuple[Texts, Texts, dict[str, int]]:
    """`load` of several paths, whose rows stay apart; held out is a part of each, or the one `heldout_path`."""
    trains, heldouts = [], []
    report: dict[str, int] = {}
    own = {**held, "heldout_path": "", **({"heldout_fraction": 0.0} if held["heldout_path"] else {})}
    loads = [dict(path=path, **own) for path in paths]
    if held["heldout_path"]:
        loads.append(dict(path="", **held))
    for number, one in enumerate(loads):
        bad = f"{bad_records_path}.{number}" if bad_records_path and number else bad_records_path
        train, heldout, counts = load(**one, **options, bad_records_path=bad)
        trains += [train] if one["path"] else []
        heldouts.append(heldout)
        for what, count in counts.items():
            report[what] = report.get(what, 0) + count
        if one["path"]:
            report[f"training rows of source {number}"] = len(train)
    sources = [number for number, train in enumerate(trains) for _ in train.rows]
    return (
        dataclasses.replace(_joined(trains), mixture=tuple(map(float, shares)), sources=tuple(sources)),
        _joined(heldouts),
        report,
    )


def _joined(several: Sequence[Texts]) -> Texts:
    """The rows of all, one after the other."""
    firsts = np.cumsum([0, *(texts.num_texts for texts in several)])
    at = np.cumsum([0, *(len(texts.tokens) for texts in several)])
    return Texts(
        tokens=np.concatenate([texts.tokens for texts in several]),
        counts=np.concatenate([texts.counts for texts in several]),
        starts=np.concatenate([[0], *(texts.starts[1:] + start for texts, start in zip(several, at))]),
        rows=tuple(
            tuple((text + first, start, stop) for text, start, stop in row)
            for texts, first in zip(several, firsts.tolist())
            for row in texts.rows
        ),
        max_len=several[0].max_len,
        pad_id=several[0].pad_id,
        samples=tuple(sample for texts in several for sample in texts.samples)[:8],
        num_bytes=sum(texts.num_bytes for texts in several),
        shares=several[0].shares,
    )


def batches(
    texts: Texts,
    *,
    batch_size: int,
    seed: int = 0,
    endless: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 1,
) -> loader.Loader:
    """Batches of `batch_size` rows over all processes.

    A batch has tokens, positions, groups, targets [N, T] int32 and mask [N, T] float32. Groups number the texts of a
    row from 1 and are 0 on padding; targets are the next tokens, and the mask is 1 on those to learn. Rows that fill up
    a last held-out batch have a mask of zeros. Texts that share beginnings have the arrays of `shared_rows.fill`.
    """

    def make(index: np.ndarray, weight: np.ndarray) -> loader.Batch:
        batch = assemble(texts, index)
        return batch | {"mask": batch["mask"] * weight[:, None]}

    is_mixed = endless and bool(texts.mixture)
    return loader.build(
        make,
        place_fn=mixtures.order(np.array(texts.sources), texts.mixture, seed=seed) if is_mixed else None,
        num_examples=len(texts),
        batch_size=batch_size,
        seed=seed,
        endless=endless,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        content=texts.digest,
    )


def assemble(texts: Texts, index: np.ndarray) -> dict[str, np.ndarray]:
    """One batch of the rows `index` [N]; `batches` lists its keys."""
    if texts.shares:
        return shared_rows.fill([_pieces(texts, i) for i in index], num_time=texts.max_len, pad_id=texts.pad_id)
    shape = (len(index), texts.max_len)
    batch: dict[str, np.ndarray] = {
        name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "groups", "targets")
    }
    batch["tokens"][:] = texts.pad_id
    batch["mask"] = np.zeros(shape, np.float32)
    for n, i in enumerate(index):
        at = 0
        for group, (text, start, stop) in enumerate(texts.rows[i], 1):
            # One place fewer than the piece has tokens: its last token is a target and predicts nothing.
            here = slice(at, at + stop - start - 1)
            begin, end = texts.starts[text] + start, texts.starts[text] + stop
            batch["tokens"][n, here] = texts.tokens[begin : end - 1]
            batch["targets"][n, here] = texts.tokens[begin + 1 : end]
            batch["mask"][n, here] = texts.counts[begin + 1 : end]
            batch["positions"][n, here] = np.arange(stop - start - 1)
            batch["groups"][n, here] = group
            at = here.stop
    return batch


def _pieces(texts: Texts, row: int) -> list[shared_rows.Piece]:
    """Token ids and counts of each piece of a row."""
    spans = [slice(texts.starts[i] + start, texts.starts[i] + stop) for i, start, stop in texts.rows[row]]
    return [(texts.tokens[span], texts.counts[span]) for span in spans]


def tokenise(
    items: Sequence[Comparison],
    tokenizer: Tokenizer,
    *,
    max_len: int,
    turns: str,
    packed: bool,
    share_prefixes: bool,
    truncation: str,
    report: dict[str, int],
) -> Texts:
    """Texts packed into rows; the options are those of `load`, and `report` counts what is cut and dropped."""
    all_ids: list[np.ndarray] = []
    all_counts: list[np.ndarray] = []
    num_bytes = 0
    samples: list[str] = []
    refused: list[records.BadRecord] = []

    def count(what: str) -> None:
        report[what] = report.get(what, 0) + 1

    # In parts: the tokenizer encodes a part in parallel, and the rendered texts of all records never lie in memory at
    # once.
    for at in range(0, len(items), 1024):
        part = items[at : at + 1024]
        written = []
        for item in part:
            try:
                written.append(targets.spans_of(tokenizer, item, turns))
            except chats.Refused as e:
                refused.append(records.BadRecord(item.file, item.line, str(e)))
        bad = {(one.file, one.line) for one in refused}
        part = [item for item in part if (item.file, item.line) not in bad] if bad else part
        encoded = tokenizer.encode_batch([text for text, _, _ in written])
        samples += [text for text, _, _ in written[: max(0, 8 - len(samples))]]
        for item, (token_ids, offsets), (text, spans, is_rendered) in zip(part, encoded, written):
            ids, counts = targets.encode(tokenizer, token_ids, offsets, spans, is_rendered)
            is_answer = item.prompt != ""
            if is_answer and len(ids) > max_len + 1:
                where = f"{item.file}:{item.line}: a conversation of {len(ids)} tokens in rows of {max_len}"
                if truncation == "error":
                    raise InputError(f"{where}. Raise max_len, or set truncation to keep_start or drop")
                count("conversations cut" if truncation == "keep_start" else "longer than a row, dropped")
                if truncation == "drop":
                    continue
                ids, counts = ids[: max_len + 1], counts[: max_len + 1]
            if not counts[1:].any():
                count("no answer left" if is_answer else "text of one token")
                continue
            all_ids.append(ids)
            all_counts.append(counts)
            has_bos = ids[0] != token_ids[0]  # else the text's own first token is the one that nothing predicts
            first = 0 if has_bos else offsets[0][1]
            last = len(text) if len(ids) - has_bos >= len(offsets) else offsets[len(ids) - has_bos - 1][1]
            num_bytes += sum(len(text[max(start, first) : min(end, last)].encode()) for start, end in spans)
    records.set_aside(refused, len(items), report, "conversations that the chat template refuses")
    rows: dict[str, Any] = dict(packed=packed, share_prefixes=share_prefixes)
    texts = pack(all_ids, all_counts, max_len=max_len, pad_id=tokenizer.pad_id, samples=tuple(samples), **rows)
    return dataclasses.replace(texts, num_bytes=num_bytes)


def pack(
    ids: Sequence[np.ndarray],
    counts: Sequence[np.ndarray] | None = None,
    *,
    max_len: int,
    pad_id: int,
    packed: bool = True,
    share_prefixes: bool = False,
    samples: tuple[str, ...] = (),
) -> Texts:
    """Token sequences as rows of `max_len`; `counts` is 1 where a token is a target, and None makes all targets."""
    counts = [np.ones(len(text), np.int8) for text in ids] if counts is None else counts
    pieces = packing.chunks([len(text) for text in ids], max_len)
    if share_prefixes:
        rows = shared_rows.pack([(ids[i][start:stop], counts[i][start:stop]) for i, start, stop in pieces], max_len)
    elif packed:
        rows = packing.first_fit([stop - start - 1 for _, start, stop in pieces], max_len)
    else:
        rows = [[i] for i in range(len(pieces))]
    return Texts(
        tokens=np.concatenate(ids) if len(ids) else np.zeros(0, np.int32),
        counts=np.concatenate(counts) if len(counts) else np.zeros(0, np.int8),
        starts=np.cumsum([0, *map(len, ids)]),
        rows=tuple(tuple(pieces[i] for i in row) for row in rows),
        max_len=max_len,
        pad_id=pad_id,
        samples=samples,
        shares=share_prefixes,
    )

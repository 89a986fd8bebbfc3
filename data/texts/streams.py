"""Rows of a corpus that is never in memory: endless batches from records in many files, with a position.

    index = ...                                    # of the files: record_index.build, then record_index.Index
    train, heldout = streams.split(index, fraction=0.01, seed=0)
    stream = streams.Stream(train, reader, batch_size=256, seed=0)

The order of all epochs is one endless sequence, each epoch a permutation that Grain computes place by place. WINDOW
places after each other are a window: its records are read, tokenised and packed together, and its rows come in random
order. The windows are dealt out to LANES lanes in turn, lane l has the windows l, l + LANES, ..., and every batch has
the next rows of each lane, equally many. So a position is two numbers a lane, the window and the row in it, and going
there reads one window a lane. A process reads its own lanes only. How many processes there are changes nothing: a batch
is the same rows.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from alignment.errors import InputError
from data import loader, record_index, records
from data.texts import splits, targets, text, text_formats
from data.texts.pair_formats import Comparison
from data.tokens.tokenizer import Tokenizer

WINDOW = 256  # records; fewer pack worse, more take longer at the start
LANES = 8  # the most processes that can share out the reading
# What becomes of records behind the index, counted in the position, so that a run that goes on counts on.
COUNTS = ("conversations cut", "longer than a row, dropped", "no answer left", "text of one token")


@dataclasses.dataclass(frozen=True)
class Reader:
    """How records become rows; the options are those of `text.load`."""

    tokenizer: Tokenizer
    max_len: int
    kind: str = "documents"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    turns: str = "all"
    packed: bool = True
    share_prefixes: bool = False
    truncation: str = "keep_start"

    @functools.cached_property
    def made_by(self) -> str:
        """Digest of what decides which records are usable."""
        decides = [self.kind, *(f"{ours}={theirs}" for ours, theirs in sorted(self._columns.items()))]
        if self.kind != "documents":
            decides += [self.turns, self.tokenizer.chat_template, repr(sorted(self.tokenizer.tokens.items()))]
        return loader.digest(texts=decides)

    @property
    def _columns(self) -> dict[str, str]:
        return {ours: theirs for ours, theirs in self.columns.items() if theirs}

    def describe(self, record: records.Record, counts: dict[str, int]) -> int | str | None:
        """Of `record_index.build`: the key of the record's text, or of the question that opens its conversation.

        What the chat template refuses is set aside here, before training, so that the number of records is exact.
        """
        item = self._item(record, counts)
        if item is None:
            return None
        return targets.refusal(self.tokenizer, item, self.turns) or splits.key(_opening(item))

    def texts(self, of_window: Sequence[records.Record], report: dict[str, int]) -> text.Texts:
        """The records packed into rows; `report` counts what is cut and dropped."""
        items = [item for item in (self._item(record, {}) for record in of_window) if item is not None]
        options = dict(packed=self.packed, share_prefixes=self.share_prefixes, truncation=self.truncation)
        return text.tokenise(items, self.tokenizer, max_len=self.max_len, turns=self.turns, report=report, **options)

    def _item(self, record: records.Record, counts: dict[str, int]) -> Comparison | None:
        return text_formats.item_of(record, kind=self.kind, columns=self._columns, report=counts)


def _opening(item: Comparison) -> str:
    """What decides whether a record is held out: dialogues that open alike stay on one side."""
    if item.group or isinstance(item.prompt, str):
        return item.group or item.prompt  # type: ignore[return-value]
    return next((message["content"] for message in item.prompt if message["role"] == "user"), "")


@dataclasses.dataclass(frozen=True)
class Part:
    """Some records of an index by number: all but those that `left_out` has, or these alone.

    Attributes:
        left_out: numbers in the index, sorted.
        is_rest: whether the part is what `left_out` leaves.
    """

    index: record_index.Index
    left_out: np.ndarray
    is_rest: bool

    def __len__(self) -> int:
        return len(self.index) - len(self.left_out) if self.is_rest else len(self.left_out)

    def __getitem__(self, number: int) -> records.Record:
        if not self.is_rest:
            return self.index[int(self.left_out[number])]
        # Before the i-th number left out lie `left_out[i] - i` numbers that are not.
        return self.index[number + int(np.searchsorted(self._ahead, number, side="right"))]

    @functools.cached_property
    def _ahead(self) -> np.ndarray:
        return self.left_out - np.arange(len(self.left_out))


def split(index: record_index.Index, *, fraction: float, seed: int) -> tuple[Part, Part]:
    """Records to train on, and held-out ones, no text (or opening of a conversation) on both sides.

    The side is decided by the records' keys, so it takes memory for the held-out numbers alone.

    Args:
        fraction: held out, in [0, 1). Above 0 at least one text is held out, where there are two.
    """
    left_out, first = [np.zeros(0, np.int64)], 0
    limit = _limit(index, fraction, seed) if fraction and len(index) else -1
    for keys in index.key_blocks() if limit >= 0 else ():
        left_out.append(first + np.flatnonzero(_turned(keys, seed) <= np.uint64(limit)))
        first += len(keys)
    numbers = np.concatenate(left_out)
    return Part(index, numbers, is_rest=True), Part(index, numbers, is_rest=False)


def _limit(index: record_index.Index, fraction: float, seed: int) -> int:
    """The largest key that is held out; the smallest key of all is, and the largest is not."""
    ends = [(int(keys.min()), int(keys.max())) for keys in (_turned(keys, seed) for keys in index.key_blocks())]
    smallest, largest = min(end for end, _ in ends), max(end for _, end in ends)
    return min(max(int(fraction * 2**64) - 1, smallest), largest - 1)


def _turned(keys: np.ndarray, seed: int) -> np.ndarray:
    """The keys, moved round by the seed: another seed holds out others, and the seed 0 those of `splits`."""
    return keys + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)


def check(*, window: int, lanes: int, batch_size: int, process_count: int = 1) -> None:
    """Refuse numbers that do not go together.

    Raises:
        InputError: with a number that would.
    """
    if window < 1 or lanes < 1:
        raise InputError(f"stream.window={window}, stream.lanes={lanes}: both must be at least 1")
    if batch_size % lanes:
        best = max(n for n in range(1, lanes + 1) if batch_size % n == 0)
        raise InputError(
            f"stream.lanes={lanes} does not divide batch_size={batch_size}: every lane gives equally many rows of a "
            f"batch; {best} would"
        )
    if lanes % process_count:
        best = next((n for n in range(process_count, batch_size + 1, process_count) if batch_size % n == 0), 0)
        raise InputError(
            f"stream.lanes={lanes} do not split over the {process_count} processes that read; "
            f"{f'{best} would' if best else f'give a batch_size that {process_count} divides'}"
        )


class Stream:
    """Endless batches of this process's rows; the keys are those of `text.batches`.

    Args:
        part: the records.
        batch_size: rows over all processes.
        seed: of the order.
        window: records that are packed together.
        lanes: see the module's docstring.

    Raises:
        InputError: numbers that do not go together, or records of which no row is left.
    """

    def __init__(
        self,
        part: Part,
        reader: Reader,
        *,
        batch_size: int,
        seed: int,
        window: int = WINDOW,
        lanes: int = LANES,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check(window=window, lanes=lanes, batch_size=batch_size, process_count=process_count)
        if not len(part):
            raise InputError("there are no records to train on; the counts say what was set aside")
        self._part, self._reader, self._seed, self._window = part, reader, seed % 2**32, window
        # Grain's shuffle computes one place of the permutation at a time, in constant memory.
        self._order = grain.MapDataset.range(len(part)).shuffle(seed=self._seed).repeat()
        self._rows_each = batch_size // lanes
        mine = loader.share(lanes, process_index, process_count)
        most_empty = -(-len(part) // window)  # windows in an epoch
        self._lanes: list[_Lane | None] = [None] * lanes
        for number in range(lanes)[mine]:
            self._lanes[number] = _Lane(functools.partial(self._packed, lane=number, lanes=lanes), most_empty)
        # Of the tokenizer, the template and the packing, by what they make of the first window.
        self._content = loader.digest(texts=[part.index.digest, self._packed(0, lane=0, lanes=lanes)[0].digest])

    def __iter__(self) -> Iterator[loader.Batch]:
        return self

    def __next__(self) -> loader.Batch:
        parts = [batch for lane in self._lanes if lane for batch in lane.take(self._rows_each)]
        return {key: np.concatenate([batch[key] for batch in parts]) for key in parts[0]}

    def positions(self) -> np.ndarray:
        """[lanes, 2 + len(COUNTS)] int64: of each lane the window, the row in it, and counts; -1 of other processes."""
        unknown = [-1] * (2 + len(COUNTS))
        return np.array([lane.position() if lane else unknown for lane in self._lanes], np.int64)

    def get_state(self) -> dict[str, Any]:
        """The position as JSON can hold it; with several processes each knows its own lanes."""
        return {"lanes": self.positions().tolist(), "content": self._content}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a position of `get_state`, with all lanes known.

        Raises:
            InputError: the data, or how they are read, have changed since.
        """
        if state.get("content") != self._content or len(state["lanes"]) != len(self._lanes):
            raise InputError(
                "the data, or how they are read, have changed since this run began, and the checkpoint's position is "
                "in the data as they were. Put them back, or start over in another --workdir"
            )
        for lane, position in zip(self._lanes, state["lanes"]):
            if lane:
                lane.go_to(position)

    def _packed(self, number: int, *, lane: int, lanes: int) -> tuple[text.Texts, np.ndarray, np.ndarray]:
        """A lane's window of this number: its texts, the order of its rows, and COUNTS."""
        first = (number * lanes + lane) * self._window
        # In the order of the files, which disks read faster; the window's rows are put in random order below.
        numbers = sorted(self._order[place] for place in range(first, first + self._window))
        of_window = [self._part[number] for number in numbers]
        report: dict[str, int] = {}
        texts = self._reader.texts(of_window, report)
        # Behind each other the pieces of a long document would fill a whole batch.
        rows = np.random.default_rng([self._seed, first]).permutation(len(texts))
        return texts, rows, np.array([report.get(what, 0) for what in COUNTS], np.int64)


Packed = tuple[text.Texts, np.ndarray, np.ndarray]


class _Lane:
    """The rows of a lane's windows, one after the other; a thread packs the next window ahead.

    Args:
        packed_fn: a window's number in the lane to its texts, the order of its rows, and counts.
        most_empty: windows in a row without a row, after which nothing will come.
    """

    def __init__(self, packed_fn: Callable[[int], Packed], most_empty: int):
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        self._ahead = iter(grain.MapDataset.range(sys.maxsize).map(packed_fn).to_iter_dataset(ahead))
        self._most_empty = most_empty
        self._window, self._row, self._counts = 0, 0, np.zeros(len(COUNTS), np.int64)
        self._open: Packed | None = None

    def position(self) -> list[int]:
        return [self._window, self._row, *self._counts.tolist()]

    def go_to(self, position: Sequence[int]) -> None:
        self._window, self._row, *counts = position
        self._counts, self._open = np.array(counts, np.int64), None
        grain.experimental.set_next_index(self._ahead, self._window)

    def take(self, num: int) -> list[loader.Batch]:
        """The next `num` rows, as batches that are parts of it."""
        parts, num_empty = [], 0
        while num:
            if self._open is None:
                self._open = next(self._ahead)
                # A position within a window has the window's counts already.
                self._counts = self._counts + (self._open[2] if self._row == 0 else 0)
            texts, order, _ = self._open
            rows = order[self._row : self._row + num]
            if len(rows):
                parts.append(text.assemble(texts, rows))
            num_empty = 0 if len(order) else num_empty + 1
            if num_empty > self._most_empty:
                raise InputError("no text is left to train on: all were dropped as too short or too long for a row")
            self._row += len(rows)
            num -= len(rows)
            if self._row >= len(order):
                self._window, self._row, self._open = self._window + 1, 0, None
        return parts

"""Loaders: an endless or finite sequence of batches whose position is a small dict.

Batch k is a function of (seed, k): each epoch is a keyed permutation, and there is no shuffle buffer, so a run resumes
at any batch without reading those before it. Grain does the order, the threads and the position; this file decides
how a global batch splits over processes.
"""

import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import grain
import numpy as np
import xxhash
from absl import flags

from alignment import files, processes
from alignment.errors import InputError

Batch = dict[str, np.ndarray]


class Loader:
    """An iterator over batches; `get_state` and `set_state` read and set the number of the next one.

    Args:
        dataset: of batches.
        num_batches: in one pass; sys.maxsize is endless.
        num_threads: that make batches ahead; 0 makes them on demand.
        prefetch: batches made ahead, per thread pool or worker process.
        num_workers: processes that make batches; 0 makes them in this one.
        content: digest of the data, kept with the position; a position in other data is refused. "" checks nothing.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        *,
        num_batches: int,
        num_threads: int = 1,
        prefetch: int = 2,
        num_workers: int = 0,
        content: str = "",
    ):
        self.num_batches, self.content = num_batches, content
        threads = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        # Grain's threads make batches ahead and hand them out in order, so the position stays one number.
        self._dataset = dataset.to_iter_dataset(threads)
        if num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's flags
                flags.FLAGS.mark_as_parsed()
            # Threads share one interpreter lock; decoding and augmenting pictures in Python needs processes.
            options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
            self._dataset = self._dataset.mp_prefetch(options, worker_init_fn=processes.end_with_parent)
        self._is_shared = num_workers > 0
        self._open: list[Any] = []  # the iterator in use; in a list, so that the finalizer below can reach it
        self._start()
        weakref.finalize(self, _close, self._open)  # ends worker processes while the interpreter is still whole

    @property
    def _iterator(self) -> Any:
        return self._open[0]

    def _start(self) -> None:
        _close(self._open)
        self._open[:] = [iter(self._dataset)]

    def __iter__(self) -> "Loader":
        if self.num_batches < sys.maxsize:  # a finite loader starts over, for the next evaluation
            self._start()
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        # Workers send arrays in shared memory that goes with them, so copy each one into memory of this process.
        return {k: np.array(v, subok=False) for k, v in batch.items()} if self._is_shared else batch

    def get_state(self) -> dict:
        """The position, which JSON can hold; after `set_state` of it the same batch comes next."""
        return self._iterator.get_state() | ({"content": self.content} if self.content else {})

    def set_state(self, state: dict) -> None:
        """Go to a position of `get_state`.

        Raises:
            InputError: the data has changed since.
        """
        position = dict(state)
        earlier = position.pop("content", "")  # older checkpoints have none
        if earlier and self.content and earlier != self.content:
            raise InputError(
                "the data has changed since this run began, and the checkpoint's position is in the data as they were. "
                "Put them back, or start over in another --workdir"
            )
        self._iterator.set_state(position)


def digest(*arrays: np.ndarray, texts: Iterable[str] = ()) -> str:
    """A hash of texts and of the arrays' values and shapes, for `content` and for what is stored beside data."""
    content = xxhash.xxh3_64()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        # With the length in front, no two lists of texts give the same bytes.
        content.update(f"{len(encoded)}:")
        content.update(encoded)
    for array in arrays:
        content.update(repr((array.dtype.str, array.shape)).encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def digest_files(paths: Iterable[str | os.PathLike]) -> str:
    """A hash of the files' contents, in their order."""
    content = xxhash.xxh3_64()
    for path in paths:
        for block in files.blocks(path):
            content.update(block)
        content.update(b"\0")  # so that text moved from one file to the next changes the hash
    return content.hexdigest()


def _close(iterators: list[Any]) -> None:
    """End the iterators' threads and processes."""
    while iterators:
        # Only Grain's iterators over processes have something to close.
        getattr(iterators.pop(), "close", lambda: None)()


def share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The places of each global batch that this process makes.

    Raises:
        InputError: a batch size that does not split over the processes.
    """
    if batch_size < 1 or batch_size % process_count:
        best = max(batch_size // process_count, 1) * process_count
        raise InputError(f"batch_size={batch_size} does not split over {process_count} processes; {best} would")
    num = batch_size // process_count
    return slice(process_index * num, (process_index + 1) * num)


def build(
    make_batch: Callable[[np.ndarray, np.ndarray], Batch],
    *,
    num_examples: int,
    batch_size: int,
    seed: int = 0,
    endless: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 1,
    prefetch: int = 2,
    content: str = "",
    order_fn: Callable[[int], np.ndarray] | None = None,
    place_fn: Callable[[int], int] | None = None,
    is_split: bool = True,
) -> Loader:
    """A loader over examples 0 to num_examples - 1.

    Args:
        make_batch: `(index [B] int32, weight [B] float32) -> batch` of this process's examples; weight 0 marks an
            example that only fills up the last batch.
        batch_size: examples over all processes; process p takes the p-th equal part of each batch.
        seed: of the order; each epoch has its own permutation.
        endless: repeat for ever, with full batches that run on from one epoch into the next. Otherwise one pass in file
            order, and the last batch is filled up with examples of weight 0.
        num_threads: that make batches ahead; 0 makes them on demand.
        content: see `Loader`.
        order_fn: an epoch's number to its permutation of the examples; None shuffles, or keeps the order in one pass.
            Of one pass it gives the examples at the places of all its batches, and num_examples at those that stay
            empty.
        place_fn: instead of it, a place of the whole endless order to its example.
        is_split: False gives `make_batch` the whole batch, and it makes this process's part of it.

    Raises:
        InputError: no examples to repeat, or a batch size that does not split over the processes.
    """
    if num_examples < 1 and endless:
        raise InputError("there are no examples to batch; the counts say what was dropped")
    mine = share(batch_size, process_index, process_count) if is_split else slice(None)
    one_pass = None if endless or order_fn is None else order_fn(0)
    num_places = num_examples if one_pass is None else len(one_pass)
    num_batches = sys.maxsize if endless else -(-num_places // batch_size)
    if endless and place_fn is not None:
        order = grain.MapDataset.range(sys.maxsize).map(place_fn)
    elif endless and order_fn is not None:
        order = grain.MapDataset.range(sys.maxsize).map(_in_epochs(order_fn, num_examples))
    elif endless:
        # Grain draws another permutation for each repetition, from the seed and its number.
        order = grain.MapDataset.range(num_examples).shuffle(seed=seed % 2**32).repeat()
    else:
        # Past the last example the places go on, and get weight 0 below: every batch then has one shape, and one
        # program.
        order = grain.MapDataset.range(num_batches * batch_size)
        if one_pass is not None:
            order = order.map(lambda place: int(one_pass[place]))

    def batch_of(places: Any) -> Batch:
        # All processes go through the same order, and each makes the batch of its own slice only.
        places = np.asarray(places)[mine]
        weight = np.ones(len(places), np.float32) if endless else (places < num_examples).astype(np.float32)
        return make_batch((places % num_examples).astype(np.int32), weight)

    steps = order.batch(batch_size, drop_remainder=True).map(batch_of)
    return Loader(steps, num_batches=num_batches, num_threads=num_threads, prefetch=prefetch, content=content)


def _in_epochs(order_fn: Callable[[int], np.ndarray], num_examples: int) -> Callable[[int], int]:
    """The example at a place of the endless order; the last two epochs' permutations stay in memory."""
    permutation = functools.lru_cache(maxsize=2)(order_fn)  # a batch may lie across the border of two epochs
    return lambda place: int(permutation(place // num_examples)[place % num_examples])

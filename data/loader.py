"""Loaders: an endless or finite run of batches whose position is a small dict.

What batch k holds is a function of (seed, k): a keyed permutation per epoch, no shuffle buffer. Grain does the order,
the threads and the position; this file fixes how a global batch splits over processes.
"""

import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Callable

import grain
import numpy as np
from absl import flags

from alignment.errors import InputError

Batch = dict[str, np.ndarray]


class Loader:
    """Iterates over batches; `get_state` and `set_state` name the next one by number."""

    def __init__(
        self,
        dataset: grain.MapDataset,
        *,
        num_batches: int,
        num_threads: int = 1,
        prefetch: int = 2,
        num_workers: int = 0,
    ):
        self.num_batches = num_batches  # sys.maxsize: endless
        threads = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        self._dataset = dataset.to_iter_dataset(threads)
        if num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's flags
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
            self._dataset = self._dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)
        self._is_shared = num_workers > 0
        self._open = []  # the iterator in use
        self._start()
        weakref.finalize(self, _close, self._open)  # worker processes end before the interpreter does

    @property
    def _iterator(self):
        return self._open[0]

    def _start(self) -> None:
        _close(self._open)
        self._open[:] = [iter(self._dataset)]

    def __iter__(self):
        if self.num_batches < sys.maxsize:  # finite ones start over, for the next evaluation
            self._start()
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        # What workers send lies in shared memory, which must not outlive them; a copy is an array like any other.
        return {k: np.array(v, subok=False) for k, v in batch.items()} if self._is_shared else batch

    def get_state(self) -> dict:
        """JSON-able; what `set_state` takes to continue with exactly the next batch."""
        return self._iterator.get_state()

    def set_state(self, state: dict) -> None:
        self._iterator.set_state(state)


def _close(iterators: list) -> None:
    """Ends the iterators' threads and processes, and the iterators while their modules are still whole."""
    while iterators:
        getattr(iterators.pop(), "close", lambda: None)()


def _end_with_parent(worker: int, num_workers: int) -> None:
    """In a worker process: ends it when its parent is gone, even one that was killed."""
    del worker, num_workers
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def build(
    make_batch: Callable[[np.ndarray, np.ndarray], Batch],
    *,
    num_examples: int,
    batch_size: int,
    seed: int = 0,
    endless: bool = True,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 1,
    prefetch: int = 2,
) -> Loader:
    """A loader over examples 0 to num_examples - 1.

    Args:
        make_batch: `(index [B], weight [B]) -> batch` of this process's examples; weight 0 marks filling.
        batch_size: examples over all processes; process p takes the p-th equal part of each batch.
        seed: of the order; each epoch has its own permutation.
        endless: repeat for ever, every batch full, epochs running on inside a batch. Otherwise one pass in file order,
            the last batch filled with repeated examples of weight 0.
        shuffle: whether the endless order is a permutation; a finite pass is never shuffled.
        num_threads: that build batches ahead; 0 builds them on demand.
    """
    if num_examples < 1:
        raise InputError(
            "there are no examples to batch; see the counts of what was dropped. Where nothing is held out, raise "
            "data.heldout_fraction or give data.heldout_path"
        )
    if batch_size < 1 or batch_size % process_count:
        best = max(batch_size // process_count, 1) * process_count
        raise InputError(f"batch_size={batch_size} does not split over {process_count} processes; {best} would")
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    num_batches = sys.maxsize if endless else -(-num_examples // batch_size)
    if endless:
        order = grain.MapDataset.range(num_examples)
        order = (order.shuffle(seed=seed % 2**32) if shuffle else order).repeat()
    else:
        order = grain.MapDataset.range(num_batches * batch_size)

    def batch_of(places) -> Batch:
        places = np.asarray(places)[mine]
        weight = np.ones(share, np.float32) if endless else (places < num_examples).astype(np.float32)
        return make_batch((places % num_examples).astype(np.int32), weight)

    steps = order.batch(batch_size, drop_remainder=True).map(batch_of)
    return Loader(steps, num_batches=num_batches, num_threads=num_threads, prefetch=prefetch)

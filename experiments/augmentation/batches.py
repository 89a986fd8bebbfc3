"""Batches of clean, augmented and validation rows of all seeds, and what networks take of them.

Batch k is a function of (seed, k), so every arm of a comparison sees the same rows, and a resumed run goes on. Rows are
the first axis and seeds the second, as devices share rows.

Dimensions: B rows, S seeds, K classes.
"""

import dataclasses
import functools
import sys

import grain
import numpy as np

from alignment.augment import policies
from data import loader
from experiments.augmentation.tasks import PAIRS, POOL, Part, Task


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows in a batch of each kind; None takes all rows there are (of a policy's, as many as clean ones)."""

    clean: int | None = None
    aug: int | None = None
    val: int | None = None


def share_of(batch: loader.Batch, process_index: int, process_count: int) -> loader.Batch:
    """A process's rows of a batch."""
    return {name: np.split(array, process_count)[process_index] for name, array in batch.items()}


@dataclasses.dataclass(frozen=True)
class Batches:
    """Makes batch k of a task.

    Attributes:
        with_val: clean rows are drawn from train and validation together.
        multiple: rows of a batch are filled up to a multiple of it, the number of devices that share rows, with rows of
            weight 0.
        mine: the places of a process in each batch, as (its number, how many there are).
    """

    task: Task
    sizes: Sizes
    seed: int
    with_val: bool = False
    multiple: int = 1
    mine: tuple[int, int] = (0, 1)
    strength: float | None = None  # None: the task's

    def __call__(self, k: int) -> loader.Batch:
        is_always_the_same = self.sizes == Sizes() and self.task.upstream == POOL
        return self._first if is_always_the_same else self._made(int(k))

    @functools.cached_property
    def _first(self) -> loader.Batch:
        return self._made(0)

    def _made(self, k: int) -> loader.Batch:
        made = [self._of_seed(k, s) for s in range(self.task.num_seeds)]
        stacked = {name: np.stack([batch[name] for batch in made], axis=1) for name in made[0]}
        return share_of(stacked, *self.mine)

    def clean(self, s: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and classes that clean rows are drawn from."""
        train, val = self.task.train, self.task.val
        if not self.with_val:
            return train.x[s], train.y[s]
        return np.concatenate([train.x[s], val.x[s]]), np.concatenate([train.y[s], val.y[s]])

    def _of_seed(self, k: int, s: int) -> loader.Batch:
        # generators of their own, so that the augmented rows of two arms are the same whatever the clean ones are
        rngs = [np.random.default_rng([self.seed, 7, s, k, part]) for part in range(3)]
        x, y = self.clean(s)
        batch = self._named("", *_chosen(x, y, self.sizes.clean, rngs[0]))
        batch |= self._named("aug/", *self._augmented(s, rngs[1]))
        batch |= self._named("val/", *_chosen(self.task.val.x[s], self.task.val.y[s], self.sizes.val, rngs[2]))
        if self.task.kind == PAIRS:
            pairings(batch)
        return batch

    def _named(self, prefix: str, x: np.ndarray, y: np.ndarray, is_wrong: np.ndarray | None = None) -> loader.Batch:
        """The arrays, filled up with copies of their first rows."""
        filling = -len(x) % self.multiple
        rows = np.arange(len(x) + filling) % len(x)
        real = (np.arange(len(rows)) < len(x)).astype(np.float32)
        label = "y0" if prefix == "aug/" else "y"
        out = {f"{prefix}x": x[rows], f"{prefix}{label}": y[rows], f"{prefix}real": real}
        if is_wrong is not None:
            out["aug/is_wrong"] = is_wrong[rows].astype(np.float32)
        return out

    def _augmented(self, s: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Inputs, labels [B,K] and whether these are wrong."""
        task, num_classes = self.task, len(self.task.class_names)
        if task.upstream == POOL:
            assert task.pool is not None  # `check` refuses a pool that is not there
            rows = _rows(task.pool.num, self.sizes.aug, rng)
            is_wrong = None if task.is_wrong is None else task.is_wrong[s][rows]
            return task.pool.x[s][rows], policies.one_hot(task.pool.y[s][rows], num_classes), is_wrong
        x, y = _chosen(task.train.x[s], task.train.y[s], self.sizes.aug, rng)
        strength = task.strength if self.strength is None else self.strength
        x, y0_BK = policies.apply(task.upstream, x, y, rng, num_classes=num_classes, strength=strength)
        return x, y0_BK.astype(np.float32), None


def pairings(batch: loader.Batch) -> None:
    """Labels of pairs are their partners' places in the batch; mass may go to partners of the same class."""
    classes = batch["aug/y0"].argmax(axis=1)
    batch["aug/allowed"] = classes[:, None] == classes[None, :]
    batch["aug/y0"] = np.eye(len(classes), dtype=np.float32)
    for prefix in ("", "val/"):
        batch[f"{prefix}y"] = np.arange(len(batch[f"{prefix}y"]), dtype=np.int32)


def _rows(num: int, size: int | None, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of a batch: all in order, or drawn, each at most once where there are enough."""
    if size is None or size == num:
        return np.arange(num)
    return rng.choice(num, size, replace=size > num)


def _chosen(x: np.ndarray, y: np.ndarray, size: int | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = _rows(len(y), size, rng)
    return x[rows], y[rows]


def endless(batches: Batches) -> loader.Loader:
    """The batches as a loader that never ends."""
    content = loader.digest(texts=[batches.task.digest, str(batches.sizes), str(batches.with_val)])
    return loader.Loader(grain.MapDataset.range(sys.maxsize).map(batches), num_batches=sys.maxsize, content=content)


def all_rows(part: Part, size: int, multiple: int, *, kind: str) -> list[loader.Batch]:
    """Every row of a part once: `x`, `y` and `real` with rows first and seeds second; the last batch is filled up.

    Pairs are compared among all of a part, so they come as one batch.
    """
    size = part.num if kind == PAIRS else min(size, part.num)
    size = -(-size // multiple) * multiple
    out = []
    for start in range(0, part.num, size):
        rows = np.arange(start, start + size)
        real = (rows < part.num).astype(np.float32)
        rows %= part.num
        batch = {"x": part.x[:, rows], "y": part.y[:, rows], "real": np.broadcast_to(real, (len(part.y), size))}
        out.append({name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in batch.items()})
    return out

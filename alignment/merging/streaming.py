"""Checkpoints merged as a stream: each process reads a tensor's blocks from maps of the files and writes its result in
place, so that no tensor lies in memory.

Files are written whole, one after the other, into a folder of their own, so a killed merge goes on with the file that
is missing. Beside each lies what was measured of its tensors.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files, processes
from alignment.merging import methods
from alignment.merging.blocks import Sources
from alignment.merging.checkpoints import Job, Model
from alignment.merging.methods import Method
from alignment.models import tensors

Row = dict[str, Any]
WORTH_PROCESSES = 64 << 20  # bytes of a merge: a smaller one is over before a process has started


def merge(
    jobs: Sequence[Job],
    method: Method,
    models: Mapping[str, Model],
    folder: pathlib.Path,
    *,
    dtype: np.dtype,
    max_shard_bytes: int,
    seed: int,
    num_processes: int,
    progress_fn: Callable[[int], None],
) -> list[Row]:
    """Merge all tensors into safetensors files in `folder`, with their index; files that lie there already stay.

    Args:
        jobs: of `checkpoints.plan`.
        dtype: of the merged weights.
        max_shard_bytes: a new file is begun rather than exceed this.
        seed: of random masks.
        num_processes: that compute, each a tensor at a time; of a small merge this one alone does.
        progress_fn: called with each file's size once it is there.

    Returns:
        A row for each tensor: see `row_of`.
    """
    shapes = {job.name: job.shape for job in jobs}
    shards = tensors.plan(shapes, dtype, max_shard_bytes)
    total = sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize
    by_name = {job.name: job for job in jobs}
    files.sweep(folder)
    rows: list[Row] = []
    with _computing(min(num_processes, len(jobs)) if total >= WORTH_PROCESSES else 1) as map_fn:
        for file, names in shards.items():
            notes = folder / f".{file}.rows"
            if not (folder / file).is_file():
                with files.replacing(folder / file) as f:
                    starts = tensors.reserve(f, {name: shapes[name] for name in names}, dtype)
                    own = [by_name[name] for name in names]
                    tasks = [
                        Task(job, method, _stored(job, models), f.name, starts[job.name], dtype, seed) for job in own
                    ]
                    done = _largest_first(tasks, map_fn)
                    files.write_text(notes, "".join(json.dumps(row) + "\n" for row in done))
            rows += files.read_rows(notes)
            progress_fn((folder / file).stat().st_size)
    tensors.write_index(folder, shards, total)
    return rows


def clean(folder: pathlib.Path) -> None:
    """Remove what was measured from a folder whose files are all there."""
    for notes in folder.glob(".*.rows"):
        notes.unlink()


@dataclasses.dataclass(frozen=True)
class Task:
    """A tensor to merge into its place of a file.

    Attributes:
        stored: where the sources lie, and behind them the base where there is one.
        file, start: where the result goes; `start` in bytes.
    """

    job: Job
    method: Method
    stored: Sequence[tensors.Stored]
    file: str
    start: int
    dtype: np.dtype
    seed: int


def compute(task: Task) -> Row:
    """Merge one tensor, and return its row."""
    job = task.job
    size = int(np.prod(job.shape)) * task.dtype.itemsize
    raw = np.memmap(task.file, np.uint8, "r+", task.start, (size,)) if size else np.empty(0, np.uint8)
    out = raw.view(np.ndarray).view(task.dtype).reshape(job.shape)
    tensor = methods.Tensor(job.name, sources_of(job, task.method, task.stored), job.each, job.settings, task.seed)
    return row_of(job, methods.merge(tensor, task.method, out))


MapFn = Callable[[Callable[[Task], Row], Sequence[Task]], Iterator[Row]]


@contextlib.contextmanager
def _computing(num_processes: int) -> Iterator[MapFn]:
    """A function like `map`; its work is done by processes where there are several.

    Threads would wait for each other: numpy lets go of the interpreter within an operation on a block only.
    """
    if num_processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a forked child of a process with JAX's threads may hang
    with concurrent.futures.ProcessPoolExecutor(num_processes, context, processes.end_with_parent) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _largest_first(tasks: Sequence[Task], map_fn: MapFn) -> list[Row]:
    """The rows in the tasks' order; large tensors are begun first, so that none is waited for alone at the end."""
    order = sorted(range(len(tasks)), key=lambda i: -int(np.prod(tasks[i].job.shape)))
    rows = dict(zip(order, map_fn(compute, [tasks[i] for i in order])))
    return [rows[i] for i in range(len(tasks))]


def _stored(job: Job, models: Mapping[str, Model]) -> list[tensors.Stored]:
    places = [*job.sources, *([job.base] if job.base else [])]
    return [models[model].tensors[name] for model, name in places]


def sources_of(job: Job, method: Method, stored: Sequence[tensors.Stored]) -> Sources:
    """The tensor's views of the files, cut to the merged shape."""
    views = [tensors.view(job.name, place) for place in stored]
    if job.shape:
        views = [whole[: job.shape[0]] for whole in views]
    num = len(job.sources)
    return Sources(views[:num], views[num] if job.base else None, by_rows=method.by_rows)


def row_of(job: Job, measured: methods.Measured) -> Row:
    """What is reported of a tensor.

    dots: scalar products of the models' differences from the base, or of the models where there is no base, in the
    sources' order; norms: their lengths; kept: the share of each one's entries that is not zero after pruning;
    conflicts: the share of the changed entries that models change in both directions.
    """
    norms_K = measured.norms_K
    row: Row = {
        "tensor": job.name,
        "layer": job.layer,
        "size": measured.size,
        "models": [model for model, _ in job.sources],
        "has_base": job.base is not None,
        "norms": [float(norm) for norm in norms_K],
    }
    if job.base is not None:
        row |= {"kept": [float(share) for share in measured.kept_K], "conflicts": measured.conflicts}
    row["dots"] = measured.gram_KK.tolist()
    return row

"""Checkpoints merged as a stream: a tensor is computed while the one before it is written; nothing else is in memory.

Files are written whole, one after the other, into a folder of their own, so a killed merge goes on with the file that
is missing. Beside each lies what was measured of its tensors.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from alignment import files
from alignment.merging import methods
from alignment.merging.blocks import Sources
from alignment.merging.checkpoints import Job, Model
from alignment.merging.methods import Method
from alignment.models import tensors

Row = dict[str, Any]


def merge(
    jobs: Sequence[Job],
    method: Method,
    models: Mapping[str, Model],
    folder: pathlib.Path,
    *,
    dtype: np.dtype,
    max_shard_bytes: int,
    seed: int,
    pool: Executor,
    progress_fn: Callable[[int], None],
) -> list[Row]:
    """Merge all tensors into safetensors files in `folder`, with their index; files that lie there already stay.

    Args:
        jobs: of `checkpoints.plan`.
        dtype: of the merged weights.
        max_shard_bytes: a new file is begun rather than exceed this.
        seed: of random masks.
        pool: of the threads that compute.
        progress_fn: called with each file's size once it is there.

    Returns:
        A row for each tensor: see `row_of`.
    """
    shards = tensors.plan({job.name: job.shape for job in jobs}, dtype, max_shard_bytes)
    by_name = {job.name: job for job in jobs}
    files.sweep(folder)
    rows: list[Row] = []
    for file, names in shards.items():
        own = [by_name[name] for name in names]
        notes = folder / f".{file}.rows"
        if not (folder / file).is_file():
            arrays = _arrays(own, method, models, dtype, seed, pool, notes)
            tensors.write(folder / file, {job.name: job.shape for job in own}, dtype, arrays)
        rows += files.read_rows(notes)
        progress_fn((folder / file).stat().st_size)
    tensors.write_index(folder, shards, sum(int(np.prod(job.shape)) for job in jobs) * dtype.itemsize)
    return rows


def clean(folder: pathlib.Path) -> None:
    """Remove what was measured from a folder whose files are all there."""
    for notes in folder.glob(".*.rows"):
        notes.unlink()


def _arrays(
    jobs: Sequence[Job],
    method: Method,
    models: Mapping[str, Model],
    dtype: np.dtype,
    seed: int,
    pool: Executor,
    notes: pathlib.Path,
) -> Iterator[np.ndarray]:
    """The merged tensors of a file in their order; what was measured is written before the file takes its name."""
    rows: list[Row] = []

    def compute(job: Job) -> np.ndarray:
        out = np.empty(job.shape, dtype)
        tensor = methods.Tensor(job.name, sources_of(job, method, models, pool), job.each, job.settings, seed)
        rows.append(row_of(job, methods.merge(tensor, method, out)))
        return out

    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(compute, jobs[0])
        for i in range(len(jobs)):
            array = upcoming.result()
            if i + 1 < len(jobs):
                upcoming = ahead.submit(compute, jobs[i + 1])
            yield array
            del array  # before the next one is waited for
    files.write_text(notes, "".join(json.dumps(row) + "\n" for row in rows))


def sources_of(job: Job, method: Method, models: Mapping[str, Model], pool: Executor) -> Sources:
    """The tensor's views of the files, cut to the merged shape."""

    def view(model: str, name: str) -> np.ndarray:
        whole = tensors.view(name, models[model].tensors[name])
        return whole[: job.shape[0]] if job.shape else whole

    base = None if job.base is None else view(*job.base)
    return Sources([view(*place) for place in job.sources], base, pool, by_rows=method.by_rows)


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

"""Training on a corpus that is read as it is needed (`c.stream`): what is refused, and the records of each process."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from alignment import errors
from alignment.errors import InputError
from alignment.train import sharding
from data import hub, record_index, records
from data.texts import streams, text
from data.tokens import tokenizer
from experiments.launch import groups, host

WAY_OUT = "set stream.on=False, which reads all of it into memory"


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse settings of `c.stream`, and of `c.data` beside it, that cannot be or are not read.

    Raises:
        InputError: names the value and the way out.
    """
    if not c.stream.on:
        for name, usual in groups.stream().items():
            if c.stream[name] != (None if name == "index" else usual):
                raise InputError(f"stream.{name}={c.stream[name]!r} is not read without stream.on=True; set that too")
        return
    streams.check(window=c.stream.window, lanes=c.stream.lanes, batch_size=c.batch_size)
    if not c.steps:
        raise InputError("stream.on=True reads texts to train on, and steps=0 trains nothing; " + WAY_OUT)
    for name, differs in {"shares": c.data.shares, "heldout_split": c.data.heldout_split}.items():
        if differs:
            raise InputError(
                f"data.{name}={c.data[name]!r} is not read with stream.on=True; leave it out, or {WAY_OUT}"
            )
    if c.data.path:
        record_index.check(c.data.path, WAY_OUT)


def files_of(c: ml_collections.ConfigDict) -> dict[str, list[str]]:
    """`path` and `heldout_path` as lists of files, where only this reader finds them: ArrayRecord files in folders."""
    if not c.stream.on or not errors.files_needed():
        return {}
    paths = {name: c.data[name] for name in ("path", "heldout_path") if c.data[name] and hub.PREFIX not in c.data[name]}
    return {name: names for name, path in paths.items() if (names := record_index.arrays(path))}


def load(
    c: ml_collections.ConfigDict,
    mesh: Mesh,
    workdir: pathlib.Path,
    *,
    kind: str,
    tokenizer: tokenizer.Tokenizer,
    seed: int,
    bad_records_path: str,
) -> tuple["Shared", text.Texts, dict[str, int]]:
    """This process's batches to train on, the held-out texts, and counts of what was read and set aside.

    Each process indexes its part of the files, and reads the records of its own rows.
    """
    share = sharding.row_share(mesh)
    numbers: dict[str, Any] = dict(window=c.stream.window, lanes=c.stream.lanes, batch_size=c.batch_size, **share)
    streams.check(**{name: number for name, number in numbers.items() if name != "process_index"})
    same = ("max_len", "turns", "packed", "share_prefixes", "truncation")
    options = {name: c.data[name] for name in same if name in c.data}
    reader = streams.Reader(tokenizer, kind=kind, columns=dict(c.data.columns), **options)
    names, heldout_path = record_index.find(c.data.path, WAY_OUT), c.data.heldout_path
    if not heldout_path:
        train_path, heldout_path = records.parts(c.data.path, names)
        names = list(train_path) if heldout_path else names
    heldout_arrays = record_index.arrays(heldout_path) if heldout_path else []
    folder = index_folder(workdir, c.stream.index)
    mine = [*names, *heldout_arrays][jax.process_index() :: jax.process_count()]
    record_index.build(mine, folder, describe_fn=reader.describe, made_by=reader.made_by)
    host.meet("indexed")
    index, counts = _opened(names, folder, reader, c.data.limit, bad_records_path)
    train, heldout = streams.split(index, fraction=0.0 if heldout_path else c.data.heldout_fraction, seed=seed)
    counts = {"files": len(names), "usable records": len(index), "training records": len(train)} | counts
    if heldout_arrays:
        index, more = _opened(heldout_arrays, folder, reader, c.data.limit, f"{bad_records_path}.heldout")
        texts = reader.texts([index[number] for number in range(len(index))], more)
    elif heldout_path:
        reading = dict(kind=kind, tokenizer=tokenizer, columns=c.data.columns, limit=c.data.limit)
        _, texts, more = text.load(path="", heldout_path=heldout_path, **reading, **options)
    else:
        more = {}
        texts = reader.texts([heldout[number] for number in range(len(heldout))], more)
    counts |= {f"held out: {what}": num for what, num in more.items()} | {"held-out rows": len(texts)}
    return Shared(streams.Stream(train, reader, seed=seed, **numbers)), texts, counts


def _opened(
    names: Sequence[str], folder: pathlib.Path, reader: streams.Reader, limit: int | None, bad_records_path: str
) -> tuple[record_index.Index, dict[str, int]]:
    """The index of these files, and counts of what is not used; what has file and line is written down.

    Raises:
        InputError: more than one record in a hundred is set aside.
    """
    index = record_index.Index(names, folder, made_by=reader.made_by, limit=limit)
    records.check_bad(index.bad, index.num_records + len(index.bad) + sum(index.counts.values()))
    counts = dict(index.counts)
    if index.bad:
        records.write_bad(index.bad, bad_records_path)
        counts["records set aside, with file and line"] = len(index.bad)
    if index.num_records > len(index):
        counts["records beyond data.limit"] = index.num_records - len(index)
    return index, counts


def index_folder(workdir: pathlib.Path, wanted: str | None) -> pathlib.Path:
    """Where the index lies: where the config says, or for all points of a sweep in its folder, or in the workdir."""
    if wanted:
        return pathlib.Path(wanted).expanduser()
    return (workdir.parent if (workdir.parent / "sweep.json").is_file() else workdir) / "index"


class Shared:
    """A stream whose position is that of all processes, so that a checkpoint has all of it, for any number of them."""

    def __init__(self, stream: streams.Stream):
        self._stream = stream

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._stream)

    def get_state(self) -> dict[str, Any]:
        """The position; a collective, which every process calls."""
        state = self._stream.get_state()
        if jax.process_count() > 1:
            # In halves, because JAX makes int32 of all integers, and the counts of a long run are larger. Lanes of
            # other processes are 0 here, and the process that has them gives them.
            halves = np.stack(np.divmod(np.maximum(self._stream.positions(), 0), 2**31)).astype(np.int32)
            high, low = np.max(multihost_utils.process_allgather(halves), axis=0).astype(np.int64)
            state["lanes"] = (high * 2**31 + low).tolist()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._stream.set_state(state)

    def counts(self) -> dict[str, int]:
        """What became of the records behind the index so far, over all processes and starts of the run."""
        totals = np.sum([lane[2:] for lane in self.get_state()["lanes"]], axis=0)
        return {f"while training: {what}": int(num) for what, num in zip(streams.COUNTS, totals) if num}

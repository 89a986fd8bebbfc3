"""Records by number over many files, each read where it lies: an index, built once, says where that is.

The index of a file is a table of its usable records, ENTRY each, beside a note with the file's size, time of change and
content hash. A file that has changed is indexed again; one that was only touched or copied is not. Nothing but a file's
own table is read to find a record, so memory does not grow with the corpus.
"""

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import xxhash

from alignment import errors, files
from alignment.errors import InputError
from data import hub, lines, records
from data.corpus import executors, worker_processes
from data.records import BadRecord, Record

FORMAT = 1  # raise it where what is stored, or which records are usable, changes
ENTRY = np.dtype([("start", "<u8"), ("size", "<u8"), ("line", "<u8"), ("key", "<u8")])  # an ArrayRecord's start: number
LINES = (".jsonl", ".ndjson")
ARRAYS = (".array_record", ".arrayrecord")
LARGE = 1 << 28  # bytes of several files from which on processes share out the indexing
LONGEST = 1 << 30  # bytes of a line that is read
BLOCK = 1 << 16  # records whose places wait as tuples, which take six times the memory of their entries
OPEN = 256  # files that stay open, of the corpus and of tables each
# What a record is to its user: a 64-bit key by which it may be split; a reason to set it aside with its file and line;
# or None for one that `counts` has under its reason.
DescribeFn = Callable[[Record, dict[str, int]], int | str | None]


def check(path: str | Sequence[str], way_out: str) -> None:
    """Refuse what cannot be read by number, without reading a record or asking a hub.

    Args:
        way_out: how the same data can be read otherwise.

    Raises:
        InputError: names the file and what to do with it.
    """
    for one in path if not isinstance(path, str) else [path]:
        if one == "synthetic" or one.startswith(("synthetic:", "tfds:")):
            raise InputError(f"data.path={one!r} is not a set of files that can be read by number; {way_out}")
        if hub.PREFIX in one:
            records.check(one)
        elif errors.files_needed():
            find(one, way_out)


def arrays(path: str | Sequence[str]) -> list[str]:
    """The ArrayRecord files behind a path, sorted by name in a folder."""
    if not isinstance(path, str):
        return [file for one in path for file in arrays(one)]
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return sorted(file for file in records.visible(folder) if _is_array(file))
    return [file for file in records.find(path) if _is_array(file)]


def find(path: str | Sequence[str], way_out: str) -> list[str]:
    """The files behind a path, as `records.find` takes it, sorted by name in a folder; ArrayRecord files too."""
    if not isinstance(path, str):
        return [file for one in path for file in find(one, way_out)]
    folder = pathlib.Path(path).expanduser()
    names = arrays(path) if folder.is_dir() else []
    if names and (others := [file for file in records.visible(folder) if file.endswith(LINES)]):
        raise InputError(f"folder {path} holds ArrayRecord files and {others[0]}; give a glob that names one kind")
    names = names or records.find(path)
    for file in names:
        if file.endswith(lines.PACKED):
            raise InputError(
                f"{file} is packed, and a packed file cannot be read in the middle; unpack it (gzip -d, zstd -d), or "
                f"{way_out}"
            )
        if not _is_array(file) and not file.endswith(LINES):
            raise InputError(
                f"{file} cannot be read by number; write it as JSON lines ({', '.join(LINES)}) or ArrayRecord "
                f"({ARRAYS[0]}) of JSON objects, or {way_out}"
            )
    return names


def build(names: Sequence[str], folder: str | os.PathLike, *, describe_fn: DescribeFn, made_by: str) -> None:
    """Index those of the files that have no index in the folder, or have changed since; the changed are named.

    Args:
        describe_fn: called once for each record that can be read, in other processes where the files are large.
        made_by: digest of how `describe_fn` reads; an index made otherwise stands beside this one.

    Raises:
        InputError: a file that cannot be read, or holds no JSON objects.
    """
    notes = {file: _note(file, folder, made_by) for file in names}
    stale = [file for file, note in notes.items() if not _is_fresh(file, note)]
    if not stale:
        return
    num_bytes = sum(os.path.getsize(file) for file in stale)
    print(f"data: indexing {len(stale)} of {len(names)} files ({num_bytes:,} bytes) into {folder}", flush=True)
    for file in stale:
        if notes[file].exists():
            print(f"data: {file} has changed since it was indexed, and is indexed again", flush=True)
    executor = "process" if num_bytes >= LARGE and len(stale) > 1 else "local"
    tasks = [(file, notes[file]) for file in stale]
    workers = min(worker_processes.available_cpus(), len(tasks))
    for _ in executors.run(
        functools.partial(_index, describe_fn=describe_fn), tasks, executor=executor, workers=workers
    ):
        pass


def _index(task: tuple[str, pathlib.Path], describe_fn: DescribeFn) -> None:
    """Write the table and the note of one file."""
    file, note = task
    status, content = os.stat(file), xxhash.xxh3_64()
    entries: list[tuple[int, int, int, int]] = []
    blocks: list[np.ndarray] = []
    bad: list[BadRecord] = []
    counts: dict[str, int] = {}
    for line, (start, raw) in enumerate(_pieces(file, content), 1):
        if isinstance(raw, int):
            bad.append(BadRecord(file, line, f"a line of {raw} bytes, more than {LONGEST}"))
            continue
        if not raw.strip():
            continue
        value, reason = records.parse(raw)
        if reason or value is None:
            _refuse_other_kinds(file, raw, is_first=not entries and not blocks and not bad)
            bad.append(BadRecord(file, line, reason))
            continue
        described = describe_fn(Record(value, file, line), counts)
        if isinstance(described, str):
            bad.append(BadRecord(file, line, described))
        elif described is not None:
            entries.append((start, len(raw), line, described))
        if len(entries) == BLOCK:
            blocks.append(np.array(entries, ENTRY))
            entries.clear()
    table = np.concatenate([*blocks, np.array(entries, ENTRY)])
    # The table has the content in its name and comes first: a note never stands beside the table of other content.
    digest = content.hexdigest()
    with files.replacing(_table(note, digest)) as f:
        f.write(table.tobytes())
    old = _read(note)
    _write(note, file, status, digest, records=len(table), counts=counts, bad=[(one.line, one.reason) for one in bad])
    if old and old["content"] != digest:
        _table(note, old["content"]).unlink(missing_ok=True)


def _pieces(file: str, content: xxhash.xxh3_64) -> Iterator[tuple[int, bytes | int]]:
    """(offset or number, bytes) of each record; `content` takes in the bytes of the whole file."""
    if _is_array(file):
        for block in files.blocks(file):
            content.update(block)
        reader = _array_reader(file)
        for first in range(0, reader.num_records(), 1_024):
            stop = min(first + 1_024, reader.num_records())
            yield from enumerate(_read_array(reader, file, list(range(first, stop))), first)
        return

    def chunks() -> Iterator[bytes]:
        for chunk in lines.chunks(file):
            content.update(chunk)
            yield chunk

    for start, raw in lines.split(chunks(), limit=LONGEST):
        yield start, raw.removeprefix(records.BOM) if start == 0 and isinstance(raw, bytes) else raw


def _refuse_other_kinds(file: str, raw: bytes, *, is_first: bool) -> None:
    if is_first and raw.lstrip()[:1] == b"[":
        raise InputError(f"{file} is a JSON array; write one object a line")
    if is_first and _is_array(file):
        raise InputError(
            f"{file}: its first record is not a JSON object; the files of tensorflow-datasets are read as "
            "tfds:<folder>, all of them into memory"
        )


class Index:
    """The usable records of files that `build` has indexed, by number in the files' order; threads may share it.

    Attributes:
        digest: of the content of all files and of how they were read.
        counts: of what was set aside without file and line, by reason.
        bad: what was set aside with file and line.
        num_records: usable ones in the files; `len` is at most `limit`.

    Raises:
        InputError: a file has no index here, or has changed since.
    """

    def __init__(
        self, names: Sequence[str], folder: str | os.PathLike, *, made_by: str, limit: int | None = None
    ) -> None:
        self._names = list(names)
        self._paths = [_note(file, folder, made_by) for file in names]
        self._notes = [_read(path) for path in self._paths]
        for file, path, note in zip(names, self._paths, self._notes):
            if not note or not _is_same(file, note):
                raise InputError(
                    f"{file} has no index in {folder} that goes with it; the index must lie where all hosts of a run "
                    "read and write, and the file must not change during a run"
                )
            table = _table(path, note["content"])
            if not table.is_file() or table.stat().st_size != note["records"] * ENTRY.itemsize:
                raise InputError(f"the index {table} is damaged; remove it, and it is built again")
        self._stops = np.cumsum([note["records"] for note in self._notes])
        self.num_records = int(self._stops[-1]) if names else 0
        self._len = min(self.num_records, limit or self.num_records)
        self.digest = xxhash.xxh3_64_hexdigest("\0".join([made_by, *(note["content"] for note in self._notes)]))
        self.counts: dict[str, int] = {}
        for note in self._notes:
            for what, num in note["counts"].items():
                self.counts[what] = self.counts.get(what, 0) + num
        self.bad = [BadRecord(file, *one) for file, note in zip(names, self._notes) for one in note["bad"]]
        # A file closes once nobody reads it: who reads holds it, also when it leaves the cache.
        self._opened = functools.lru_cache(maxsize=OPEN)(self._open)
        self._tables = functools.lru_cache(maxsize=OPEN)(self._open_table)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, number: int) -> Record:
        shard = int(np.searchsorted(self._stops, number, side="right"))
        within = number - (int(self._stops[shard - 1]) if shard else 0)
        raw_entry = os.pread(self._tables(shard).fileno(), ENTRY.itemsize, within * ENTRY.itemsize)
        start, size, line, _ = np.frombuffer(raw_entry, ENTRY)[0].tolist()
        file, opened = self._names[shard], self._opened(shard)
        if _is_array(file):
            (raw,) = _read_array(opened, file, [start])
        else:
            # By position and without a cursor, so that threads may read the same file.
            raw = os.pread(opened.fileno(), size + (len(records.BOM) if start == 0 else 0), start)
            raw = raw.removeprefix(records.BOM)[:size] if start == 0 else raw
        value, reason = records.parse(raw)
        if value is None or len(raw) != size:
            raise InputError(f"{file}:{line} has changed since it was indexed ({reason}); start the run again")
        return Record(value, file, line)

    def key_blocks(self) -> Iterator[np.ndarray]:
        """The keys of the records in their order, uint64, a file's at a time."""
        first = 0
        for shard, note in enumerate(self._notes):
            num = min(note["records"], self._len - first)
            if num > 0:
                yield np.fromfile(_table(self._paths[shard], note["content"]), ENTRY, num)["key"]
            first += num

    def _open(self, shard: int) -> Any:
        file = self._names[shard]
        if not _has_status(file, self._notes[shard]):
            raise InputError(
                f"{file} has changed since this run began; put it back, or start over in another --workdir"
            )
        return _array_reader(file, is_random=True) if _is_array(file) else open(file, "rb", buffering=0)

    def _open_table(self, shard: int) -> BinaryIO:
        return open(_table(self._paths[shard], self._notes[shard]["content"]), "rb", buffering=0)


def _is_array(file: str) -> bool:
    """Whether a name is an ArrayRecord file's; those of tensorflow-datasets go on with -00000-of-00001."""
    return re.search(r"\.array_?record(-\d+-of-\d+)?$", file) is not None


def _array_reader(file: str, *, is_random: bool = False) -> Any:
    from array_record.python import array_record_module  # it is not there on Windows

    options = "readahead_buffer_size:0,max_parallelism:0" if is_random else ""
    reader = array_record_module.ArrayRecordReader(file, options)
    if not reader.ok() or not reader.num_records():  # of a file of another kind it has none, and does not complain
        raise InputError(f"{file} has no records, or is not a whole ArrayRecord file; write it again, or leave it out")
    return reader


def _read_array(reader: Any, file: str, numbers: list[int]) -> list[bytes]:
    try:
        return reader.read(numbers)
    except (RuntimeError, ValueError, IndexError) as e:
        raise InputError(f"{file} is damaged at record {numbers[0] + 1} or behind it: {e}. Write it again") from e


def _note(file: str, folder: str | os.PathLike, made_by: str) -> pathlib.Path:
    name = xxhash.xxh3_64_hexdigest(f"{os.path.realpath(file)}\0{made_by}\0{FORMAT}")
    return pathlib.Path(folder) / f"{name}.note"  # not .json, so that an index in the folder of the corpus is not data


def _table(note: pathlib.Path, content: str) -> pathlib.Path:
    return note.with_name(f"{note.stem}.{content}.table")


def _read(note: pathlib.Path) -> dict[str, Any]:
    """A note, or {} where there is none that can be read."""
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError):
        return {}


def _write(note: pathlib.Path, file: str, status: os.stat_result, content: str, **parts: Any) -> None:
    value = dict(file=os.path.realpath(file), size=status.st_size, mtime_ns=status.st_mtime_ns, content=content) | parts
    with files.replacing(note) as f:
        f.write(json.dumps(value).encode())


def _is_fresh(file: str, path: pathlib.Path) -> bool:
    """Whether a file is as its note says; where only its time has changed, the note gets the new one."""
    note = _read(path)
    if not note or not _table(path, note["content"]).exists():
        return False
    if not _has_status(file, note):
        status = os.stat(file)
        if not _is_same(file, note):
            return False
        parts = {name: note[name] for name in ("records", "counts", "bad")}
        _write(path, file, status, note["content"], **parts)
    return True


def _is_same(file: str, note: Mapping[str, Any]) -> bool:
    """By size and time of change, and by the content where only the time differs."""
    if _has_status(file, note):
        return True
    if os.path.getsize(file) != note["size"]:
        return False
    content = xxhash.xxh3_64()
    for block in files.blocks(file):
        content.update(block)
    return content.hexdigest() == note["content"]


def _has_status(file: str, note: Mapping[str, Any]) -> bool:
    try:
        status = os.stat(file)
    except OSError as e:
        raise InputError(f"cannot read {file}: {e.strerror or e}. Check that it is there and may be read") from e
    return (status.st_size, status.st_mtime_ns) == (note["size"], note["mtime_ns"])

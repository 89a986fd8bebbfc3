"""Files that are complete or absent, whenever the process is killed or the machine loses its power.

This module imports no JAX: the workers of a filter start without it.
"""

import contextlib
import csv
import fcntl
import glob
import io
import json
import os
import pathlib
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from alignment.errors import InputError

ABANDONED = 86_400.0  # seconds after which a temporary file is removed where the file system knows no locks


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which takes the name `path` once it is complete and on disk.

    The temporary name is unique, so two writers never share one: the last to end wins, with a whole file. When the
    body raises, the temporary file goes and the old file stays.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, file = _temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)  # while the lock is held, so that `sweep` does not take it for abandoned
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Make an empty folder beside `folder`, which takes its name and its place once it is complete and on disk.

    POSIX cannot replace a folder that holds files, so this takes two renames: a kill between them leaves the old folder
    as `.NAME.*.old`, and nothing under its name. Unfinished folders of killed processes go with the next call for the
    same folder, once they are a day old. One process at a time may write a folder.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}.*.unfinished"):
        if time.time() - abandoned.stat().st_mtime > ABANDONED:
            shutil.rmtree(abandoned, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.mkdir()
        yield unfinished
        move_folder(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def move_folder(complete: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Give a complete folder the name and the place `folder`, on the same disk; see `replacing_folder`."""
    complete, folder = pathlib.Path(complete), pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    for path in [*complete.rglob("*"), complete]:
        _sync_folder(path) if path.is_dir() else _sync_file(path)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    try:
        complete.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: str | os.PathLike) -> int:
    """Remove the temporary files under a folder whose writers died, and return how many there were.

    Writers that are alive, here or on other hosts, hold a lock and keep their files; so do other users, whose files may
    not be opened.
    """
    num_files = 0
    for path in list(pathlib.Path(folder).rglob(".*.tmp")):
        # Opened for writing because NFS grants an exclusive lock on nothing less.
        with contextlib.suppress(FileNotFoundError, PermissionError), open(path, "rb+") as f:
            if _lock(f, is_old=time.time() - path.stat().st_mtime > ABANDONED):
                path.unlink()
                num_files += 1
    return num_files


def write(path: str | os.PathLike, write_fn: Callable[[BinaryIO], Any]) -> None:
    """Write a whole file or nothing; in a run of several processes the first writes alone."""
    if is_first_process():
        with replacing(path) as file:
            write_fn(file)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write` of a text in UTF-8; line ends stay as they are."""
    write(path, lambda f: f.write(text.encode()))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`write` of one JSON value, indented; a number that JSON has no word for (nan, inf) raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write` of JSON lines, such as a table of the report."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """`write` of a comma-separated table with a line of column names."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    write_text(path, out.getvalue())


def write_table(folder: pathlib.Path, name: str, rows: Sequence[Mapping[str, Any]], csv_name: str = "") -> None:
    """Rows as a table of the report, `tables/NAME.jsonl`, and as a CSV beside it; nothing without rows.

    Args:
        folder: of the run.
        csv_name: of the CSV, where it is not `NAME.csv`.
    """
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_rows(folder / f"tables/{name}.jsonl", rows)
        write_csv(folder / (csv_name or f"{name}.csv"), columns, [[row.get(key) for key in columns] for row in rows])


def report_counts(workdir: str | os.PathLike, counts: Mapping[str, int]) -> None:
    """Print what was read, dropped and cut, and leave it as a table of the report."""
    if is_first_process():
        print("data: " + ", ".join(f"{number} {what}" for what, number in counts.items()), flush=True)
    write_rows(pathlib.Path(workdir) / "tables/data.jsonl", [{"count": n, "what": what} for what, n in counts.items()])


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    with open(path, encoding="utf-8", newline="\n") as f:  # not splitlines: text may hold other line separators
        return [json.loads(line) for line in f]


def whole_rows(path: str | os.PathLike) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a log of JSON lines, and the bytes of each line, up to a line that a kill has torn."""
    with open(path, "rb") as f:
        for line in f:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                return
            yield row, len(line)


def read_object(path: str | os.PathLike, way_out: str = "fetch it again") -> dict[str, Any]:
    """The object of a JSON file, with a byte order mark or without.

    Raises:
        InputError: the file cannot be read, or holds something else; the message ends with the way out.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror or e}); {way_out}") from None
    except ValueError as e:  # also of bytes that are not UTF-8
        raise InputError(f"{path} is not a JSON object ({e}); {way_out}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; {way_out}")
    return value


def read_note(path: str | os.PathLike) -> dict[str, Any]:
    """The object of a JSON file that a run has left in its folder.

    Raises:
        InputError: somebody has changed it, or a disk has damaged it.
    """
    return read_object(path, "remove it to have its part of the run done again, or start over in another --workdir")


def blocks(path: str | os.PathLike, size: int = 1 << 20) -> Iterator[memoryview]:
    """A file's content, `size` bytes at a time, in memory that the next block overwrites.

    New memory for every block costs as much as a fast hash of it.
    """
    block = memoryview(bytearray(size))
    with open(path, "rb", buffering=0) as f:
        while num := f.readinto(block):
            yield block[:num]


def is_first_process() -> bool:
    """Whether this process writes the files of its run; without JAX there is only one.

    `jax.process_index()` starts the accelerator, which the parent of a sweep must leave to its points, so a run of one
    process does not call it.
    """
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def _temporary(path: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    """A new locked file beside `path`.

    Between its creation and its lock another process's `sweep` may take the file for abandoned: that one then holds the
    lock, or has removed the file already. Either way a file of another name is made.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115  (closed by the caller)
        if _lock(file, is_old=True) and temporary.exists():
            return temporary, file
        file.close()


def _lock(file: BinaryIO, *, is_old: bool) -> bool:
    """Lock the file, and return whether it is ours alone now; on a file system without locks, return `is_old`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return is_old


def _sync_file(path: pathlib.Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def _sync_folder(path: pathlib.Path) -> None:
    """Write a folder's names to disk, since a file's fsync does not write its name; some file systems cannot do it."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

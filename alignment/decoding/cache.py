"""A cache of a model's answers under the hash of the request, so that a restarted run repeats no request.

The cache is an append-only JSONL file, one for each slice of the input. A database would lock its file, which shared
file systems of clusters do badly, and the index of one file for all slices would outgrow the memory. A worker opens the
file of its slice and holds only the place of each answer. A line is written in one call under a lock and carries a
checksum: a line torn by a kill, or two writers on a file system without locks, may lose an answer but never yield a
wrong one. Several processes may share a file; each reads the others' lines when it looks up a key that it does not
know yet. Lines stand in the order of arrival, so the file is not a part of a run's outputs.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xxhash


def key(messages: Sequence[Mapping[str, str]], *, model: str = "", sampling: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of a request in canonical form.

    Args:
        messages: the whole chat; a rewriter's holds its code of conduct, so another version has other keys.
        model: who answers, as precisely as possible: a name and the hash or date of the weights.
        sampling: temperature, longest answer and whatever else changes the answer.
    """
    payload = {"messages": [dict(m) for m in messages], "model": model, "sampling": dict(sampling or {})}
    return hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """Answers in a file, or in memory if the path is "".

    Attributes:
        num_damaged: lines that were skipped because their checksum was wrong.
    """

    def __init__(self, path: str | os.PathLike = "") -> None:
        self.num_damaged = 0
        self._memory: dict[str, str] = {}
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> offset and length of its line
        self._read_up_to = 0
        self._file: io.FileIO | None = None
        if path:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed by close)
            self._refresh(self._file)

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str) -> str | None:
        """The answer under this key, whichever process stored it, or None."""
        if self._file is None:
            return self._memory.get(key)
        where = self._places.get(bytes.fromhex(key))
        if where is None and os.fstat(self._file.fileno()).st_size > self._read_up_to:
            self._refresh(self._file)
            where = self._places.get(bytes.fromhex(key))
        row = None if where is None else _parse(_read(self._file, *where))
        return None if row is None else row[1]

    def put(self, key: str, answer: str) -> None:
        """Store an answer; when this returns, a kill of the process no longer loses it."""
        if self._file is None:
            self._memory[key] = answer
            return
        line = _line(key, answer)
        with _locked(self._file):
            end = self._file.seek(0, os.SEEK_END)
            if end and _read(self._file, end - 1, 1) != b"\n":  # a killed writer left half a line: end it
                line = b"\n" + line
            view = memoryview(line)
            while view:  # one call writes all, unless the disk is nearly full
                view = view[self._file.write(view) :]

    def _refresh(self, file: io.FileIO) -> None:
        """Index the whole lines that were written since the last call."""
        with open(file.name, "rb") as f:  # buffered, other than the file for appending
            f.seek(self._read_up_to)
            for line in f:
                if not line.endswith(b"\n"):
                    break  # in the middle of a write, or torn: the next call reads it again
                row = _parse(line)
                if row is not None:
                    self._places[bytes.fromhex(row[0])] = (self._read_up_to, len(line))
                elif line.strip():
                    self.num_damaged += 1
                self._read_up_to += len(line)


def _read(file: io.FileIO, offset: int, length: int) -> bytes:
    file.seek(offset)  # does not disturb writing: a file opened for appending always writes at its end
    return file.read(length)


def _line(key: str, answer: str) -> bytes:
    return json.dumps({"key": key, "answer": answer, "check": _check(key, answer)}).encode() + b"\n"


def _check(key: str, answer: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{key}\n{answer}".encode("utf-8", "surrogatepass"))


def _parse(line: bytes) -> tuple[str, str] | None:
    """Key and answer of a line, or None if it is damaged."""
    try:
        row = json.loads(line)
        key, answer = row["key"], row["answer"]
        return (key, answer) if row["check"] == _check(key, answer) and len(bytes.fromhex(key)) == 32 else None
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _locked(file: io.FileIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)

"""Answers of a model by the hash of what was asked, so that nothing is asked twice, killed or not.

One append-only JSONL file a slice. A data base would lock its file, which shared file systems of clusters do badly, and
one file for all slices would grow past memory; here a worker opens the file of its slice and holds only where each
answer stands. A line is written in one call under a lock and carries a checksum, so a line torn by a kill, or two
writers on a file system without locks, cost an answer and never a wrong one. Several processes may use one file: each
sees what the others wrote when it next looks for a key it does not know. The order of lines is that of arrival; the
file is no part of a run's outputs.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import xxhash

try:
    import fcntl
except ImportError:  # Windows: appends are whole there too, and checksums remain
    fcntl = None


def key(messages: Sequence[Mapping[str, str]], *, model: str = "", sampling: Mapping | None = None) -> str:
    """SHA-256 of the request in canonical form; the messages hold the code of conduct and so stand for its version.

    Args:
        model: what would answer, as precisely as it is known: a name and the hash or date of its weights.
        sampling: temperature, longest answer and whatever else changes the answer.
    """
    payload = {"messages": [dict(m) for m in messages], "model": model, "sampling": dict(sampling or {})}
    return hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """Answers kept in a file; in memory where the path is "".

    Attributes:
        num_damaged: lines passed over because their checksum was wrong.
    """

    def __init__(self, path: str | os.PathLike = ""):
        self.num_damaged = 0
        self._memory: dict[str, str] = {}
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> offset and length of its line
        self._read_up_to = 0
        self._file = None
        if path:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed by close)
            self._refresh()

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str) -> str | None:
        """The answer stored under this key, by whichever process, or None."""
        if self._file is None:
            return self._memory.get(key)
        where = self._places.get(bytes.fromhex(key))
        if where is None and os.fstat(self._file.fileno()).st_size > self._read_up_to:
            self._refresh()
            where = self._places.get(bytes.fromhex(key))
        return None if where is None else _answer(self._part(*where))[1]

    def put(self, key: str, answer: str) -> None:
        """Store an answer; it is in the operating system's hands when this returns."""
        if self._file is None:
            self._memory[key] = answer
            return
        line = _line(key, answer)
        with _locked(self._file):
            end = self._file.seek(0, os.SEEK_END)
            if end and self._part(end - 1, 1) != b"\n":  # what a killed writer left
                line = b"\n" + line
            view = memoryview(line)
            while view:  # one call, unless the disk is nearly full
                view = view[self._file.write(view) :]

    def _part(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)  # of no concern to writing, which is at the end always
        return self._file.read(length)

    def _refresh(self) -> None:
        """Learn of the whole lines written since the last look."""
        with open(self._file.name, "rb") as f:  # buffered
            f.seek(self._read_up_to)
            for line in f:
                if not line.endswith(b"\n"):
                    break  # still being written, or torn: looked at again when more has come
                found = _answer(line)
                if found is not None:
                    self._places[bytes.fromhex(found[0])] = (self._read_up_to, len(line))
                elif line.strip():
                    self.num_damaged += 1
                self._read_up_to += len(line)


def _line(key: str, answer: str) -> bytes:
    return json.dumps({"key": key, "answer": answer, "check": _check(key, answer)}).encode() + b"\n"


def _check(key: str, answer: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{key}\n{answer}".encode("utf-8", "surrogatepass"))


def _answer(line: bytes) -> tuple[str, str] | None:
    """Key and answer of a line, None where it is damaged."""
    try:
        row = json.loads(line)
        key, answer = row["key"], row["answer"]
        return (key, answer) if row["check"] == _check(key, answer) and len(bytes.fromhex(key)) == 32 else None
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _locked(file):
    if fcntl is None:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)

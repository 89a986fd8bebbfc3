"""Answers on disk as they come, and in the prompts' order at the end: no kill loses or doubles a row.

While a run answers, rows are appended to `unsorted.jsonl` in the order in which they end; a line that a kill has torn
is dropped at the next start. The last row being there, all are written to `generations.jsonl` in the prompts' order, a
file that is complete or absent.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment import files
from alignment.errors import InputError

ROWS, UNSORTED, MADE_FROM = "generations.jsonl", "unsorted.jsonl", "made_from.json"
Key = tuple[int, int]  # the prompt's number and the sample's


def take_over(workdir: pathlib.Path, source: pathlib.Path, made_from: Mapping[str, Any]) -> None:
    """Copy the answers of a finished run into a folder that has none yet.

    Args:
        source: the folder of the other run's journal.

    Raises:
        InputError: it has no complete answers, or they were made from something else.
    """
    if (workdir / MADE_FROM).exists():
        return
    if not (source / ROWS).is_file():
        raise InputError(f"{source} has no {ROWS}, which a run writes when all is answered; let it end, or answer anew")
    there = files.read_note(source / MADE_FROM)
    if differing := [name for name in made_from if there.get(name) != made_from[name]]:
        raise InputError(
            f"{source} holds answers that were made from other {', '.join(differing)} than this run has; answer anew"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write(workdir / ROWS, lambda f: f.write((source / ROWS).read_bytes()))
    files.write_json(workdir / MADE_FROM, dict(made_from))  # last: with it the answers are there


class Journal:
    """The answers of a run.

    Args:
        workdir: where the files lie.
        made_from: digests of what the answers depend on; answers of other weights or prompts are never mixed.
        keys: of all answers, in the order of `generations.jsonl`.

    Attributes:
        seconds: spent on the answers that are there.

    Raises:
        InputError: the folder holds answers that were made from something else.
    """

    def __init__(self, workdir: str | os.PathLike, made_from: Mapping[str, Any], keys: Sequence[Key]) -> None:
        self._folder, self._keys, self.seconds = pathlib.Path(workdir), list(keys), 0.0
        self._check(dict(made_from))
        self._places: dict[Key, int] = {}  # where each answer's line begins
        self.is_sorted = (self._folder / ROWS).exists()
        end, path = self._scan(), self._folder / UNSORTED
        # Unbuffered, so that a row is in the file when `add` returns, and a kill tears at most the last one.
        self._file: Any = None
        if path.exists() or not self.is_sorted:
            self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115  (see close)
            self._file.truncate(end)
            self._file.seek(end)

    def __contains__(self, key: Key) -> bool:
        return self.is_sorted or key in self._places

    def __len__(self) -> int:
        return len(self._keys) if self.is_sorted else len(self._places)

    def add(self, key: Key, row: Mapping[str, Any], *, more: Mapping[str, Any], seconds: float) -> None:
        """Append an answer.

        Args:
            row: the line of `generations.jsonl`.
            more: what the page needs of it beside.
            seconds: spent on all answers up to this one.
        """
        at = self._file.tell()
        line = json.dumps([key, seconds, row, more], ensure_ascii=False).encode() + b"\n"
        while line:  # an unbuffered write may take a part only
            line = line[self._file.write(line) :]
        self._places[key], self.seconds = at, seconds

    def sync(self) -> None:
        """Write what was added to the disk itself, for a machine that loses its power."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def sort(self) -> None:
        """Write `generations.jsonl`; nothing where it is there already."""
        if self.is_sorted:
            return
        with files.replacing(self._folder / ROWS) as out:
            for _, row, _ in self.entries():
                out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.is_sorted = True

    def entries(self) -> Iterator[tuple[Key, dict[str, Any], dict[str, Any]]]:
        """Keys, rows and what came beside, in the order of the keys; what came beside is gone after `close`."""
        if self._file is None:
            for key, row in zip(self._keys, files.read_rows(self._folder / ROWS)):
                yield key, row, {}
            return
        for key in self._keys:
            self._file.seek(self._places[key])
            _, _, row, more = json.loads(_line(self._file))
            yield key, row, more

    def end(self) -> dict[Key, dict[str, Any]]:
        """Sort, close, and give all rows in the order of the keys."""
        self.sort()
        rows = {key: row for key, row, _ in self.entries()}
        self.close()
        return rows

    def close(self) -> None:
        """Remove the unsorted rows once they are sorted."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.is_sorted:
            (self._folder / UNSORTED).unlink(missing_ok=True)

    def _check(self, made_from):
        path = self._folder / MADE_FROM
        there = files.read_note(path) if path.exists() else made_from
        if differing := [name for name in made_from if there.get(name) != made_from[name]]:
            raise InputError(
                f"{self._folder} holds answers that were made from other {', '.join(differing)}; answer anew in "
                "another --workdir"
            )
        if not path.exists():
            files.write_json(path, made_from)

    def _scan(self):
        """Length in bytes of the lines to keep."""
        path, end, wanted = self._folder / UNSORTED, 0, set(self._keys)
        if not path.exists():
            return end
        with open(path, "rb") as f:
            for line in f:
                try:
                    (prompt, sample), seconds, _, _ = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n") or (prompt, sample) not in wanted:
                    break
                self._places[prompt, sample], self.seconds = end, seconds
                end += len(line)
        return end


def _line(file: Any) -> bytes:
    """The line at an unbuffered file's position; its own `readline` would ask the system for every byte."""
    parts: list[bytes] = []
    while block := file.read(1 << 16):
        head, newline, _ = block.partition(b"\n")
        parts.append(head)
        if newline:
            break
    return b"".join(parts)

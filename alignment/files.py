"""Files of a workdir: complete or absent, whenever the run is killed."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import jax


def write(path: str | pathlib.Path, write_fn: Callable[[BinaryIO], Any]) -> None:
    """A file written under a temporary name, then renamed; by process 0 alone."""
    if jax.process_index() != 0:
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as f:
        write_fn(f)
    os.replace(unfinished, path)


def write_rows(path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, such as a table of the report."""
    write(path, lambda f: f.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()))


def report_counts(workdir: str | pathlib.Path, counts: Mapping[str, int]) -> None:
    """What was read, dropped and cut: printed, and a table of the report."""
    if jax.process_index() == 0:
        print("data: " + ", ".join(f"{number} {what}" for what, number in counts.items()), flush=True)
    write_rows(pathlib.Path(workdir) / "tables/data.jsonl", [{"count": n, "what": what} for what, n in counts.items()])


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as f:  # not splitlines: text may hold other line separators
        return [json.loads(line) for line in f]

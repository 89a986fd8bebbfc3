"""The input of a filter run: cut into slices once, frozen with the first start, and checked at each later one."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from alignment.errors import InputError
from data import records
from data.corpus import shards, slices

FILE = "plan.json"
PREPARED = "prepared"  # a folder of the workdir for data that was made for the run before it began


def plan(
    inputs: str, outputs: pathlib.Path, workdir: pathlib.Path, *, slice_mb: float, read: Mapping[str, Any]
) -> list[slices.Slice]:
    """The slices of the input, frozen with the first start: a changed input is refused, not half filtered anew.

    Args:
        inputs: as `slices.plan` takes them.
        outputs: where the plan is kept, and where it is looked for first.
        workdir: of the run; what it wrote is not taken for input, except for the data that it prepared.
        slice_mb: MB of a slice.
        read: keyword arguments of `slices.read`.

    Raises:
        InputError: the input is empty, has changed, has new files, or is what a filter wrote.
    """
    path = outputs / FILE
    if path.exists():
        return _frozen(json.loads(path.read_text("utf-8")), inputs, outputs, workdir, slice_mb)
    check_own_files(slices.files(inputs), outputs, workdir)
    pieces = slices.plan(inputs, slice_bytes=int(slice_mb * 2**20))
    if not pieces:
        raise InputError(f"inputs={inputs!r}: all files are empty; there is nothing to filter")
    options = {key: read[key] for key in ("columns", "max_document_bytes", "text_unit")}
    slices.check_columns(pieces, **options)
    try:
        outputs.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"outputs={str(outputs)!r} cannot be made: {e.strerror}; choose a folder to write in") from e
    frozen = {"inputs": inputs, "slice_mb": slice_mb, "empty_files": slices.empty_files(inputs)}
    frozen["slices"] = [dataclasses.asdict(piece) for piece in pieces]
    with shards.whole_file(path) as sink:  # every share of an array writes this file, each with the same bytes
        sink.write(orjson.dumps(frozen, option=orjson.OPT_INDENT_2))
    return pieces


def _frozen(
    frozen: Mapping[str, Any], inputs: str, outputs: pathlib.Path, workdir: pathlib.Path, slice_mb: float
) -> list[slices.Slice]:
    """The slices of a plan, if the input is still what it was planned for."""
    pieces = [slices.Slice(**row) for row in frozen["slices"]]
    if frozen["inputs"] != inputs or frozen["slice_mb"] != slice_mb:
        raise InputError(
            f"{outputs} was planned for inputs={frozen['inputs']!r} in slices of {frozen['slice_mb']} MB, not for "
            f"{inputs!r} in {slice_mb} MB; choose another outputs folder, or remove this one"
        )
    slices.check(pieces)
    check_new_files(frozen, slices.files(inputs), outputs, workdir)
    return pieces


def check_own_files(names: Sequence[str], outputs: pathlib.Path, workdir: pathlib.Path) -> None:
    """Refuse to filter what a run of the filter wrote: this one's folders, and others that lie in the input."""
    own, prepared = (outputs, workdir.absolute()), workdir.absolute() / PREPARED
    foreign = (pathlib.Path(name) for name in names if prepared not in pathlib.Path(name).parents)
    for at in dict.fromkeys(folder for file in foreign for folder in file.parents):
        if at in own or ((at / FILE).exists() and (at / "done").is_dir()):
            raise InputError(
                f"inputs hold files of {at}, which a run of this filter wrote into; give --config.outputs and "
                "--workdir outside the input's folders, or inputs that leave theirs out"
            )


def check_new_files(
    frozen: Mapping[str, Any], names: Sequence[str], outputs: pathlib.Path, workdir: pathlib.Path
) -> None:
    """Refuse files that were not there when the run was planned; its own do not count."""
    known = {row["file"] for row in frozen["slices"]} | set(frozen["empty_files"])
    own = (outputs, workdir.absolute())
    fresh = [name for name in names if name not in known and not any(at in pathlib.Path(name).parents for at in own)]
    if fresh:
        raise InputError(
            f"{len(fresh):,} files were added since this run was planned, such as {fresh[0]}; give other inputs and "
            "outputs for them, or start over with another outputs folder"
        )


def warnings(inputs: str, pieces: Sequence[slices.Slice], *, slice_mb: float) -> list[str]:
    """Sentences about files that are not read and slices that are too many."""
    lines = []
    if passed_over := slices.passed_over(inputs):
        first = passed_over[0]
        lines.append(
            f"Warning: {len(passed_over):,} files of plain text are not read, such as {first}: a folder is read for "
            f"JSONL and parquet. To read them too: --config.inputs='{inputs},{pathlib.Path(first).parent}/*.txt*'"
        )
    if unread := records.left_out(inputs):
        lines.append(f"Warning: {len(unread):,} files that look like data are not read, such as {unread[0]}.")
    if len(pieces) > slices.MANY:
        lines.append(
            f"Warning: {len(pieces):,} slices of {slice_mb:g} MB; each is a task of every stage, with files of its "
            "own. Where files are not packed, a larger slice_mb makes fewer."
        )
    return lines

"""Input slices: the parts of the input files that are one task each, and the documents that lie in a part.

A plan follows from file sizes alone, so any number of workers agree on it. A file of lines is cut by bytes, and a line
belongs to the slice in which it starts; a compressed file is one slice; parquet is cut between row groups. Reading the
slices of a file one after the other gives the whole file, whatever `slice_bytes` is.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alignment.errors import InputError, one_of
from data import lines, records
from data.corpus import documents
from data.corpus.documents import Bad

ENDINGS = tuple(s + p for s in records.SUFFIXES for p in records.PACKED if s != ".parquet" or not p)
MANY, TOO_MANY = 20_000, 200_000  # slices: each is a task of every stage, with some fifteen files
BLANK_BYTES = 1024  # a longer line of white space does not count as blank, so a slice looks back no further than this
Piece = tuple[int, int, bytes | int]  # offset, line number (negative: not counted), content or the length of a long one


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of one input file; `dataclasses.asdict` writes one as JSON, `Slice(**row)` reads it.

    Attributes:
        index: its number in the plan.
        file: an absolute path, since workers may have another working directory.
        start, stop: bytes or row groups [start, stop); (0, -1) is all of a compressed file.
        name: the file's path below the folder that holds all inputs.
        size, mtime_ns: the file's when the plan was made, in bytes and nanoseconds.
    """

    index: int
    file: str
    start: int
    stop: int
    unit: str  # "bytes", "row_groups" or "file"
    name: str
    size: int
    mtime_ns: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk that the slice covers; for a slice of a table, those of the whole table."""
        return self.stop - self.start if self.unit == "bytes" else self.size


def plan(inputs: str | Sequence[str], *, slice_bytes: int = 32 << 20) -> list[Slice]:
    """The slices of all files behind `inputs`, numbered in the order of the files' paths; empty files have none.

    Args:
        inputs: files, folders or globs, as `records.find` takes them.
        slice_bytes: size of a slice, >= 1; a parquet slice holds as many row groups as fit, at least one.

    Raises:
        InputError: no such file; a name of an unknown kind; a JSON array; a table that cannot be read; more slices than
            TOO_MANY.
    """
    if slice_bytes < 1:
        raise InputError(f"slice_bytes={slice_bytes}: a slice needs at least one byte; 33554432 is usual")
    parts: list[Slice] = []
    names = files(inputs)
    _check_number(names, slice_bytes)
    root = os.path.commonpath([os.path.dirname(file) for file in names])
    for file in names:
        status = os.stat(file)
        if status.st_size == 0:
            continue
        name = os.path.relpath(file, root).replace(os.sep, "/")
        for start, stop, unit in _cuts(file, status.st_size, slice_bytes):
            parts.append(Slice(len(parts), file, start, stop, unit, name, status.st_size, status.st_mtime_ns))
    return parts


def _check_number(names: Sequence[str], slice_bytes: int) -> None:
    """Refuse slices so small that their number costs more than the work, before any is cut."""
    sizes = [os.path.getsize(file) for file in names if not file.endswith((*lines.PACKED, ".parquet"))]
    number = len(names) - len(sizes) + sum(-(-size // slice_bytes) for size in sizes)
    if number > TOO_MANY and number > 2 * len(names):
        raise InputError(
            f"slices of {slice_bytes:,} bytes would be {number:,} of them, each with files of its own; "
            f"{max(slice_bytes + 1, -(-sum(sizes) // 10_000)):,} bytes would make about 10,000"
        )


def passed_over(inputs: str | Sequence[str]) -> list[str]:
    """Files of plain text in the folders among the inputs, which `plan` leaves out: plain text needs a glob."""
    parts = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    parts = [one.strip() for part in parts for one in ([part] if os.path.exists(part) else str(part).split(","))]
    endings = tuple(f".txt{packed}" for packed in records.PACKED)
    folders = [pathlib.Path(part).expanduser() for part in parts if part and pathlib.Path(part).expanduser().is_dir()]
    return sorted({file for folder in folders for file in records.below(folder) if file.endswith(endings)})


def empty_files(inputs: str | Sequence[str]) -> list[str]:
    """The files without a byte among the inputs, which `plan` leaves out."""
    return [file for file in files(inputs) if os.path.getsize(file) == 0]


def check(plan: Sequence[Slice]) -> None:
    """Refuse a plan whose files have changed.

    Raises:
        InputError: a file is gone, or has another size or time of change; the message names the first.
    """
    for part in {part.file: part for part in plan}.values():
        try:
            status = os.stat(part.file)
        except OSError as e:
            raise InputError(
                f"{part.file} was planned for and is gone ({e.strerror}); put it back, or start over"
            ) from e
        if (status.st_size, status.st_mtime_ns) != (part.size, part.mtime_ns):
            raise InputError(
                f"{part.file} has changed since this run was planned ({part.size} bytes then, {status.st_size} now); "
                "restore the file as it was, or start over with another output folder"
            )


def check_columns(plan: Sequence[Slice], *, columns: Mapping[str, str], **options: Any) -> None:
    """Refuse input whose first records, in each of the first 8 files, all lack a text, or an id.

    Args:
        columns, **options: as for `read`.

    Raises:
        InputError: the message names the column, and says how to name another.
    """
    files = list({part.file: part for part in reversed(plan)}.values())[::-1][:8]
    items = [item for part in files for item in itertools.islice(read(part, columns=columns, **options), 20)]
    for ours in ("text", "id"):
        reason = f"no {columns.get(ours, '')!r}"
        if items and all(isinstance(item, Bad) and item.reason == reason for item in items):
            more = ", or leave that empty to have ids made of file name and offset" if ours == "id" else ""
            raise InputError(
                f"{files[0].file}: no record has a column {columns[ours]!r}; name the column that holds the {ours} by "
                f"read.columns.{ours}=NAME{more}"
            )


def read(
    part: Slice,
    *,
    columns: Mapping[str, str] = documents.COLUMNS,
    source: str = "",
    max_document_bytes: int = 10 << 20,
    text_unit: str = "line",
) -> Iterator[dict | Bad]:
    """The documents of a slice in order, and the pieces set aside; `documents` says how objects become documents.

    Args:
        columns: the file's names for `text`, `id` and `url`. With an empty `id`, or none, a document's id is
            `<name>:<offset>`, as it always is for plain text.
        source: of documents that name none; "" is the name of the file's folder.
        max_document_bytes: of a text in UTF-8. A line of JSON may be four times as long, for its escapes; a longer line
            is set aside without ever being in memory as a whole.
        text_unit: what a document of a .txt file is: a "line", or "paragraphs" between blank lines.

    Raises:
        InputError: an unknown `text_unit`; the file has changed since it was planned, or cannot be read.
    """
    one_of("text_unit", text_unit, TEXT_UNITS)
    check([part])
    source = source or documents.folder_of(part.file)
    options: dict[str, Any] = {"source": source, "max_bytes": max_document_bytes}
    if part.unit == "row_groups":
        from data.corpus import parquet  # pyarrow is an extra

        return parquet.documents_of(part, columns=columns, **options)
    kind = os.path.splitext(lines.unpacked(part.file))[1]
    if kind == ".txt":
        return _documents(part, TEXT_UNITS[text_unit](part, max_document_bytes), documents.from_text, options)
    options["columns"] = {"id": "", "url": "url", **columns}
    return _documents(part, _lines(part, 4 * max_document_bytes), documents.from_line, options)


def _documents(
    part: Slice, pieces: Iterator[Piece], make_fn: Callable[..., dict | str], options: Mapping[str, Any]
) -> Iterator[dict | Bad]:
    """The documents that `make_fn` makes of pieces; where a damaged file breaks off comes last, as a `Bad`."""
    try:
        for offset, line, raw in pieces:
            if isinstance(raw, int):
                yield Bad(part.file, offset, documents.too_long(raw, options["max_bytes"]), line)
                continue
            if offset == 0:
                raw = raw.removeprefix(records.BOM)
            if not raw or raw.isspace():
                continue
            document = make_fn(raw, name=f"{part.name}:{offset}", **options)
            yield document if isinstance(document, dict) else Bad(part.file, offset, document, line)
    except lines.Damaged as e:
        yield Bad(part.file, e.offset, str(e))


def _lines(part: Slice, limit: int) -> Iterator[Piece]:
    """The lines that start in the slice, numbered from 1 where the slice begins the file."""
    first = max(part.start - 1, 0)
    stop = part.stop if part.unit == "bytes" else None
    split = lines.split(lines.chunks(part.file, first), first=first, start=part.start, stop=stop, limit=limit)
    if part.start:
        return ((offset, -1, raw) for offset, raw in split)
    return ((offset, line, raw) for line, (offset, raw) in enumerate(split, 1))


def _text_lines(part: Slice, limit: int) -> Iterator[Piece]:
    for offset, line, raw in _lines(part, limit):
        yield offset, line, raw if isinstance(raw, int) else raw.removesuffix(b"\r")


def _paragraphs(part: Slice, limit: int) -> Iterator[Piece]:
    """The paragraphs that start in the slice: after a blank line, or at the file's start."""
    # Whether the slice's first line starts a paragraph depends on the line before it, which may be a blank line of up
    # to BLANK_BYTES: so reading begins that far before the slice, at the first line that starts there.
    first = max(part.start - BLANK_BYTES - 2, 0)
    stop = part.stop if part.unit == "bytes" else 1 << 62
    split = lines.split(lines.chunks(part.file, first), first=first, start=first and first + 1, limit=limit)
    is_open, was_blank = False, first == 0
    start, first_line, num_bytes = 0, -1, 0  # of the open paragraph; num_bytes counts a line end a line
    parts: list[bytes] = []  # its lines; none once it is too long
    number = 0 if part.start == 0 else -(1 << 62)  # of the line; negative: not counted

    def paragraph() -> Piece:
        return start, max(first_line, -1), num_bytes - 1 if num_bytes > limit + 1 else b"\n".join(parts)

    for offset, raw in split:
        number += 1
        is_blank = _is_blank(raw, is_first=offset == 0)
        if is_blank and is_open:
            yield paragraph()
            is_open = False
        if not is_blank and not is_open and was_blank and offset >= part.start:
            if offset >= stop:
                return
            is_open, start, first_line, parts, num_bytes = True, offset, number, [], 0
        elif not is_open and offset >= stop:
            return
        if is_open:
            num_bytes += 1 + (raw if isinstance(raw, int) else len(raw))
            if num_bytes > limit + 1:
                parts = []
            elif not isinstance(raw, int):
                parts.append(raw.removesuffix(b"\r"))
        was_blank = is_blank
    if is_open:
        yield paragraph()


def _is_blank(raw: bytes | int, *, is_first: bool) -> bool:
    """Whether a line is blank; a long line, of which only the length is known, is not."""
    if isinstance(raw, int) or len(raw) > BLANK_BYTES:
        return False
    return not raw or raw.isspace() or (is_first and raw.strip() == records.BOM)


TEXT_UNITS = {"line": _text_lines, "paragraphs": _paragraphs}


def files(inputs: str | Sequence[str]) -> list[str]:
    """The input's files, with the empty ones, as sorted absolute paths.

    Raises:
        InputError: no such file; a name of an unknown kind.
    """
    names = sorted({os.path.abspath(file) for file in records.find(inputs)})
    for file in names:
        if not file.endswith(ENDINGS):
            raise InputError(
                f"input {file}: documents are read from {', '.join(records.SUFFIXES)} (all but parquet also as "
                f"{', '.join(lines.PACKED)}); leave the file out, or convert it to JSONL"
            )
    return names


def _cuts(file: str, size: int, slice_bytes: int) -> list[tuple[int, int, str]]:
    if file.endswith(".parquet"):
        from data.corpus import parquet

        return [(*cut, "row_groups") for cut in parquet.cuts(file, slice_bytes)]
    _check_start(file)
    if file.endswith(lines.PACKED):
        return [(0, -1, "file")]
    return [(start, min(start + slice_bytes, size), "bytes") for start in range(0, size, slice_bytes)]


def _check_start(file: str, num_bytes: int = 4096) -> None:
    """Refuse a file whose name says another compression than it has, and JSON that is one value over many lines."""
    lines.check_opening(file)
    try:
        with open(file, "rb") as f:
            start = f.read(6)
    except OSError as e:
        raise InputError(f"cannot read {file}: {e.strerror or e}. Check that it may be read") from e
    magic = lines.MAGIC.get(os.path.splitext(file)[1], ())
    if magic and len(start) == 6 and not start.startswith(magic):
        raise InputError(f"{file} is not what its name says: it starts with {start.hex(' ')}. Pack it, or rename it")
    try:
        head = next(lines.chunks(file), b"")[:num_bytes]
    except lines.Damaged:
        return  # not even its start can be read; reading the slice reports it
    name = os.path.basename(lines.unpacked(file))
    head = head.removeprefix(records.BOM).lstrip()
    rest = head[1:].lstrip(b" \t\r")
    is_array = head[:1] == b"[" and rest[:1] in (b"{", b"\n") and not name.endswith(".txt")
    is_object = head[:1] == b"{" and rest[:1] == b"\n" and name.endswith(".json")
    if is_array or is_object:
        what = "an array" if is_array else "one object"
        raise InputError(f"{file} is {what} over many lines; give JSONL, one object a line: jq -c '.[]' does it")

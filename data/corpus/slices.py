"""Input slices: what one worker reads in one go, planned from file sizes alone, so that any number of workers agree.

A line file is cut by bytes, and a line belongs to the slice in which it starts; a compressed file is one slice; parquet
is cut between row groups. The slices of a file, read one after the other, are the file, whatever `slice_bytes` is.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from alignment.errors import InputError
from data import lines, records
from data.corpus import documents
from data.corpus.documents import Bad

ENDINGS = tuple(s + p for s in records.SUFFIXES for p in records.PACKED if s != ".parquet" or not p)
MANY, TOO_MANY = 20_000, 200_000  # slices: each is a task of every stage, with some fifteen files
BLANK_BYTES = 1024  # white space longer than this is no blank line, so that a look back of as many bytes finds them all


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of one input file: bytes [start, stop), row groups [start, stop), or all of a compressed file (stop -1).

    `file` is an absolute path, for workers that stand elsewhere; `name` is its part below the folder that holds all
    inputs; `size` in bytes and `mtime_ns` are the file's when the plan was made. `dataclasses.asdict` writes a plan as
    JSON, `Slice(**row)` reads it.
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
        """Of the file that the slice covers, as they lie on disk; all of a table's for each of its slices."""
        return self.stop - self.start if self.unit == "bytes" else self.size


def plan(inputs: str | Sequence[str], *, slice_bytes: int = 32 << 20) -> list[Slice]:
    """The slices of all files behind `inputs`, numbered in the order of the files' paths; empty files have none.

    Args:
        inputs: files, folders or globs, as `records.find` takes them.
        slice_bytes: of a slice; a parquet slice holds as many row groups as fit, at least one.

    Raises:
        InputError: no such file; a name of an unknown kind; a JSON array; a table that cannot be read; more slices than
            TOO_MANY.
    """
    if slice_bytes < 1:
        raise InputError(f"slice_bytes={slice_bytes}: a slice needs at least one byte; 33554432 is usual")
    found: list[Slice] = []
    names = files(inputs)
    _check_number(names, slice_bytes)
    root = os.path.commonpath([os.path.dirname(file) for file in names])
    for file in names:
        status = os.stat(file)
        if status.st_size == 0:
            continue
        name = os.path.relpath(file, root).replace(os.sep, "/")
        for start, stop, unit in _cuts(file, status.st_size, slice_bytes):
            found.append(Slice(len(found), file, start, stop, unit, name, status.st_size, status.st_mtime_ns))
    return found


def _check_number(names: Sequence[str], slice_bytes: int) -> None:
    """Refuse slices so small that their number costs more than the work, before any is cut."""
    cut = [os.path.getsize(file) for file in names if not file.endswith((".gz", ".zst", ".parquet"))]
    number = len(names) - len(cut) + sum(-(-size // slice_bytes) for size in cut)
    if number > TOO_MANY and number > 2 * len(names):
        raise InputError(
            f"slices of {slice_bytes:,} bytes would be {number:,} of them, each with files of its own; "
            f"{max(slice_bytes + 1, -(-sum(cut) // 10_000)):,} bytes would make about 10,000"
        )


def passed_over(inputs: str | Sequence[str]) -> list[str]:
    """Files of plain text in the folders among the inputs: a folder is read for its other files alone."""
    parts = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    parts = [one.strip() for part in parts for one in ([part] if os.path.exists(part) else str(part).split(","))]
    endings = tuple(f".txt{packed}" for packed in records.PACKED)
    folders = [pathlib.Path(part).expanduser() for part in parts if part and pathlib.Path(part).expanduser().is_dir()]
    return sorted({file for folder in folders for file in records.below(folder) if file.endswith(endings)})


def empty_files(inputs: str | Sequence[str]) -> list[str]:
    """The files of no bytes among the inputs, which `plan` leaves out."""
    return [file for file in files(inputs) if os.path.getsize(file) == 0]


def check(plan: Sequence[Slice]) -> None:
    """Refuse a plan whose files are no longer what they were.

    Raises:
        InputError: naming the first file that is gone, or has another size or time of change.
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
                "put back the file of then, or start over with another output folder"
            )


def check_columns(plan: Sequence[Slice], *, columns: Mapping[str, str], num_files: int = 8, **options) -> None:
    """Refuse input of which no record at the start of any of the first files has a text, or an id.

    Raises:
        InputError: naming the column, and how to name another.
    """
    files = list({part.file: part for part in reversed(plan)}.values())[::-1][:num_files]
    found = [item for part in files for item in itertools.islice(read(part, columns=columns, **options), 20)]
    for ours in ("text", "id"):
        reason = f"no {columns.get(ours, '')!r}"
        if found and all(isinstance(item, Bad) and item.reason == reason for item in found):
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
    """The documents of a slice in order, and what was set aside; see `documents` for what becomes of an object.

    Args:
        columns: the file's names for `text`, `id` and `url`. An empty `id` makes ids of `<name>:<offset>`, which plain
            text always has; so does a column left out.
        source: of documents that name none; "" is the name of the file's folder.
        max_document_bytes: of a text in UTF-8. A line of JSON may have four times as many (escapes), and a longer one
            is passed over without being held.
        text_unit: what a document of a .txt file is: a "line", or "paragraphs" between blank lines.

    Raises:
        InputError: the file has changed since it was planned, or cannot be read.
    """
    if text_unit not in TEXT_UNITS:
        raise InputError(f"text_unit={text_unit!r}; a document of plain text is one of {', '.join(TEXT_UNITS)}")
    check([part])
    source = source or documents.folder_of(part.file)
    options = {"source": source, "max_bytes": max_document_bytes}
    if part.unit == "row_groups":
        from data.corpus import parquet  # pyarrow is an extra

        return parquet.documents_of(part, columns=columns, **options)
    kind = os.path.splitext(part.file.removesuffix(".gz").removesuffix(".zst"))[1]
    if kind == ".txt":
        return _broken(part, TEXT_UNITS[text_unit](part, max_document_bytes), documents.from_text, options)
    options["columns"] = {"id": "", "url": "url", **columns}
    return _broken(part, _lines(part, 4 * max_document_bytes), documents.from_line, options)


def _broken(part: Slice, found, make, options: Mapping) -> Iterator[dict | Bad]:
    """Documents of the pieces `(offset, line number, bytes or length)`; the break of a damaged file comes last."""
    try:
        for offset, line, raw in found:
            if type(raw) is int:
                yield Bad(part.file, offset, documents.too_long(raw, options["max_bytes"]), line)
                continue
            if offset == 0:
                raw = raw.removeprefix(records.BOM)
            if not raw or raw.isspace():
                continue
            made = make(raw, name=f"{part.name}:{offset}", **options)
            yield made if type(made) is dict else Bad(part.file, offset, made, line)
    except lines.Damaged as e:
        yield Bad(part.file, e.offset, str(e))


def _lines(part: Slice, limit: int) -> Iterator[tuple[int, int, bytes | int]]:
    """The lines that start in the slice: offset, number from 1 where the slice begins the file, content."""
    first = max(part.start - 1, 0)
    stop = part.stop if part.unit == "bytes" else None
    found = lines.split(lines.chunks(part.file, first), first=first, start=part.start, stop=stop, limit=limit)
    if part.start:
        return ((offset, -1, raw) for offset, raw in found)
    return ((offset, line, raw) for line, (offset, raw) in enumerate(found, 1))


def _text_lines(part: Slice, limit: int) -> Iterator[tuple[int, int, bytes | int]]:
    return ((at, line, raw if type(raw) is int else raw.removesuffix(b"\r")) for at, line, raw in _lines(part, limit))


def _paragraphs(part: Slice, limit: int) -> Iterator[tuple[int, int, bytes | int]]:
    """The paragraphs that start in the slice: after a blank line, or at the file's start; as `_lines` gives them."""
    first = max(part.start - BLANK_BYTES - 2, 0)
    stop = part.stop if part.unit == "bytes" else 1 << 62
    found = lines.split(lines.chunks(part.file, first), first=first, start=first and first + 1, limit=limit)
    is_open, was_blank = False, first == 0
    start, line_start, parts, held = 0, -1, [], 0
    number = 0 if part.start == 0 else -(1 << 62)  # of the line; negative: not counted

    def whole() -> tuple[int, int, bytes | int]:
        return start, max(line_start, -1), held - 1 if held > limit + 1 else b"\n".join(parts)

    for offset, raw in found:
        number += 1
        size = raw if type(raw) is int else len(raw)
        is_blank = size <= BLANK_BYTES and (not raw or raw.isspace() or (offset == 0 and raw.strip() == records.BOM))
        if is_blank and is_open:
            yield whole()
            is_open = False
        if not is_blank and not is_open and was_blank and offset >= part.start:
            if offset >= stop:
                return
            is_open, start, line_start, parts, held = True, offset, number, [], 0
        elif not is_open and offset >= stop:
            return
        if is_open:
            held += size + 1
            if held > limit + 1:
                parts = []
            else:
                parts.append(raw.removesuffix(b"\r"))
        was_blank = is_blank
    if is_open:
        yield whole()


TEXT_UNITS = {"line": _text_lines, "paragraphs": _paragraphs}


def files(inputs: str | Sequence[str]) -> list[str]:
    """The input's files, empty ones too, as absolute paths in their order.

    Raises:
        InputError: no such file; a name of an unknown kind.
    """
    found = sorted({os.path.abspath(file) for file in records.find(inputs)})
    for file in found:
        if not file.endswith(ENDINGS):
            raise InputError(
                f"input {file}: documents are read from {', '.join(records.SUFFIXES)} (all but parquet also as .gz "
                "and .zst); leave the file out, or convert it to JSONL"
            )
    return found


def _cuts(file: str, size: int, slice_bytes: int) -> list[tuple[int, int, str]]:
    if file.endswith(".parquet"):
        from data.corpus import parquet

        return [(*cut, "row_groups") for cut in parquet.cuts(file, slice_bytes)]
    _check_start(file)
    if file.endswith((".gz", ".zst")):
        return [(0, -1, "file")]
    return [(start, min(start + slice_bytes, size), "bytes") for start in range(0, size, slice_bytes)]


def _check_start(file: str, num_bytes: int = 4096) -> None:
    """Refuse a name that says another compression than there is, and JSON that cannot be cut into lines."""
    try:
        with open(file, "rb") as f:
            start = f.read(4)
    except OSError as e:
        raise InputError(f"cannot read {file}: {e.strerror or e}. Check that it may be read") from e
    magic = lines.MAGIC.get(os.path.splitext(file)[1], ())
    if magic and len(start) == 4 and not start.startswith(magic):
        raise InputError(f"{file} is not what its name says: it starts with {start.hex(' ')}. Pack it, or rename it")
    try:
        head = next(lines.chunks(file), b"")[:num_bytes]
    except lines.Damaged:
        return  # nothing of it can be read, which reading it will say
    name = os.path.basename(file.removesuffix(".gz").removesuffix(".zst"))
    head = head.removeprefix(records.BOM).lstrip()
    rest = head[1:].lstrip(b" \t\r")
    is_array = head[:1] == b"[" and rest[:1] in (b"{", b"\n") and not name.endswith(".txt")
    is_object = head[:1] == b"{" and rest[:1] == b"\n" and name.endswith(".json")
    if is_array or is_object:
        what = "an array" if is_array else "one object"
        raise InputError(f"{file} is {what} over many lines; give JSONL, one object a line: jq -c '.[]' does it")

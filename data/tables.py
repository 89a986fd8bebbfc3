"""Tables of separated values and parquet files as rows, with the faults that both kinds have.

A row is `(line, cells by column)`, or `(line, reason)` where it cannot be read; `line` is where it ends.
"""

import csv
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from alignment.errors import InputError

Row = tuple[int, dict[str, str] | str]
BOM = b"\xef\xbb\xbf"
_END = "\x1fend of the table\x1f"  # a last row that no table has; an open quote would swallow it


def separated(content: bytes, file: str, delimiter: str = ",") -> tuple[list[str], Iterator[Row]]:
    """The names in the first row, without the space around them, and the rows below; blank lines are passed over.

    Raises:
        InputError: two columns of one name, names that are not UTF-8; with the rows, a quote that is never closed: all
            rows behind it would be one field.
    """
    # surrogateescape keeps bytes that are not UTF-8 apart from all text, so that they cost their own row alone.
    text = content.removeprefix(BOM).decode("utf-8", "surrogateescape")
    csv.field_size_limit(1 << 24)  # Python's own limit, 131,072 characters, is less than a long document
    reader = csv.reader(itertools.chain(io.StringIO(text, newline=""), ["\n", _END]), delimiter=delimiter)
    rows = _whole(reader, file)
    names = _header(next((row for _, row in rows), []), file)
    return names, ((line, _row(row, names)) for line, row in rows)


def _whole(reader: Any, file: str) -> Iterator[tuple[int, list[str]]]:
    """The lines where rows end, and their fields."""
    line = 0
    try:
        for row in reader:
            if row == [_END]:
                return
            if row and row[-1].endswith(_END):
                break
            line = reader.line_num
            if row:
                yield line, row
    except csv.Error as e:
        raise InputError(f"{file}:{reader.line_num} is not CSV: {e}") from None
    raise InputError(f"{file}:{line + 1}: a quote opens in this row and is never closed; close it, or double it")


def _header(row: Sequence[str], file: str) -> list[str]:
    names = [name.strip() for name in row]
    if any(_is_foreign(name) for name in names):
        raise InputError(f"{file}: its column names are not UTF-8; write the table in UTF-8")
    if names.count("") > 1:  # spreadsheets write columns without a name; of two a row would hold the last alone
        names = [name or f"column {i}" for i, name in enumerate(names, 1)]
    check_header(names, file)
    return names


def _row(row: Sequence[str], names: Sequence[str]) -> dict[str, str] | str:
    if len(row) != len(names):
        return f"{len(row)} fields under {len(names)} column names"
    return "not UTF-8" if any(map(_is_foreign, row)) else dict(zip(names, row))


def _is_foreign(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def check_header(names: Sequence[str], file: str) -> None:
    """Refuse a table with two columns of one name, of which a row would keep the last alone."""
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"{file} has two columns {twice[0]!r}; rename one, or leave it out")


def import_pyarrow(file: str | os.PathLike) -> Any:
    """pyarrow with pyarrow.parquet; it is an extra, and takes a while to import.

    Raises:
        InputError: pyarrow is not installed; the message names the file that needs it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise InputError(f"{file}: parquet needs pyarrow; pip install 'plumbline[data]', or use JSONL") from e
    return pyarrow


def open_parquet(file: str | os.PathLike, **options: Any) -> Any:
    """A `pyarrow.parquet.ParquetFile`; see `import_pyarrow`.

    Raises:
        InputError: pyarrow is not installed, the file is not parquet, or two of its columns have one name.
    """
    pyarrow = import_pyarrow(file)
    try:
        table = pyarrow.parquet.ParquetFile(file, **options)
    except (pyarrow.ArrowException, OSError) as e:
        raise InputError(f"{file} is not a readable parquet file: {e}. Fetch it again, or leave it out") from e
    check_header(table.schema_arrow.names, str(file))
    return table


def parquet(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file, numbered from 1.

    Raises:
        InputError: as `open_parquet`; a row that cannot be decoded.
    """
    table, line = open_parquet(file), 0
    try:
        for batch in table.iter_batches(batch_size=4096):
            for value in batch.to_pylist():
                line += 1
                yield line, value
    # a text that is not UTF-8 is a ValueError, and a date beyond the year 9999 an OverflowError
    except (import_pyarrow(file).ArrowException, OSError, ValueError, OverflowError) as e:
        raise InputError(f"{file} is damaged after record {line}: {e}. Fetch it again, or leave it out") from e

"""Parquet files as documents, by row groups."""

from collections.abc import Iterator, Mapping
from typing import Any

from data import lines, tables
from data.corpus import documents
from data.corpus.documents import Bad

ROWS = 256  # decoded at a time
UNREADABLE = (ValueError, OverflowError, LookupError)  # text that is not UTF-8, a date beyond Python's, ...


def cuts(file: str, slice_bytes: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of row groups with about `slice_bytes` uncompressed bytes each; none for an empty table."""
    metadata = _open(file).metadata
    ranges: list[tuple[int, int]] = []
    start, num_bytes = 0, 0
    for i in range(metadata.num_row_groups):
        size = metadata.row_group(i).total_byte_size
        if i > start and num_bytes + size > slice_bytes:
            ranges.append((start, i))
            start, num_bytes = i, 0
        num_bytes += size
    if metadata.num_rows:
        ranges.append((start, metadata.num_row_groups))
    return ranges


def documents_of(part: Any, *, columns: Mapping[str, str], source: str, max_bytes: int) -> Iterator[dict | Bad]:
    """The documents of a slice's row groups; offsets are row numbers in the file.

    Args:
        part: a `slices.Slice`.
        columns, source, max_bytes: as in `documents.from_object`.
    """
    parquet = _open(part.file)
    columns = {"id": "", "url": "url", **columns}
    row = sum(parquet.metadata.row_group(i).num_rows for i in range(part.start))
    groups = list(range(part.start, part.stop))
    try:
        for value in _rows(parquet, groups):
            document = value  # of a row that cannot be read, the reason
            if isinstance(value, dict):
                document = _document(value, f"{part.name}:{row}", columns=columns, source=source, max_bytes=max_bytes)
            yield document if isinstance(document, dict) else Bad(part.file, row, document, row + 1)
            row += 1
    except lines.Damaged as e:
        yield Bad(part.file, row, str(e), row + 1)


def _document(value: dict, name: str, *, columns: Mapping[str, str], source: str, max_bytes: int) -> dict | str:
    if type(text := value.get(columns["text"])) is bytes:
        try:
            value[columns["text"]] = text.decode("utf-8")
        except UnicodeDecodeError as e:
            return f"not UTF-8: {e}"
    value = documents.storable(value)
    if value is None:
        return "a value that JSON cannot hold"
    return documents.from_object(value, columns=columns, name=name, source=source, max_bytes=max_bytes)


def _rows(parquet: Any, groups: list[int]) -> Iterator[dict | str]:
    """Rows as dicts; a row that Python cannot express as the reason."""
    import pyarrow

    try:
        for batch in parquet.iter_batches(batch_size=ROWS, row_groups=groups, use_threads=False):
            try:
                yield from batch.to_pylist()
            except UNREADABLE:  # one value spoils the conversion of the batch, so convert it row by row
                for i in range(batch.num_rows):
                    yield _row(batch.slice(i, 1))
    except (pyarrow.ArrowException, OSError) as e:
        raise lines.Damaged(f"damaged parquet data: {e}") from e


def _row(one: Any) -> dict | str:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as e:
        return f"not UTF-8: {e}"
    except UNREADABLE as e:
        return f"a value that Python cannot express: {e}"


def _open(file: str) -> Any:
    return tables.open_parquet(file, buffer_size=1 << 20, pre_buffer=False)  # a slice reads its row groups alone

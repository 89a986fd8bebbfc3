"""Parquet files as documents, by row groups."""

from collections.abc import Iterator, Mapping
from typing import Any

from data import lines, records
from data.corpus import documents
from data.corpus.documents import Bad

ROWS = 256  # decoded at a time
UNREADABLE = (ValueError, OverflowError, LookupError)  # text that is not UTF-8, a date beyond Python's, ...


def cuts(file: str, slice_bytes: int) -> list[tuple[int, int]]:
    """Ranges of row groups of about `slice_bytes` each, uncompressed; none where there are no rows."""
    metadata = _open(file).metadata
    found, start, held = [], 0, 0
    for i in range(metadata.num_row_groups):
        size = metadata.row_group(i).total_byte_size
        if i > start and held + size > slice_bytes:
            found.append((start, i))
            start, held = i, 0
        held += size
    if metadata.num_rows:
        found.append((start, metadata.num_row_groups))
    return found


def documents_of(part, *, columns: Mapping[str, str], source: str, max_bytes: int) -> Iterator[dict | Bad]:
    """The documents of the row groups of a slice; offsets are row numbers in the file."""
    parquet = _open(part.file)
    columns = {"id": "", "url": "url", **columns}
    row = sum(parquet.metadata.row_group(i).num_rows for i in range(part.start))
    groups = list(range(part.start, part.stop))
    try:
        for value in _rows(parquet, groups):
            made = value
            if type(value) is dict:
                made = _document(value, f"{part.name}:{row}", columns=columns, source=source, max_bytes=max_bytes)
            yield made if type(made) is dict else Bad(part.file, row, made, row + 1)
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


def _rows(parquet, groups: list[int]) -> Iterator[dict | str]:
    """Rows as dicts; a row whose text is not UTF-8 as the reason."""
    import pyarrow

    try:
        for batch in parquet.iter_batches(batch_size=ROWS, row_groups=groups, use_threads=False):
            try:
                yield from batch.to_pylist()
            except UNREADABLE:
                for i in range(batch.num_rows):
                    yield _row(batch.slice(i, 1))
    except (pyarrow.ArrowException, OSError) as e:
        raise lines.Damaged(f"damaged parquet data: {e}") from e


def _row(one) -> dict | str:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as e:
        return f"not UTF-8: {e}"
    except UNREADABLE as e:
        return f"a value that Python cannot hold: {e}"


def _open(file: str) -> Any:
    return records.open_parquet(file, buffer_size=1 << 20, pre_buffer=False)  # a slice reads its row groups alone

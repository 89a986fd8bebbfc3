"""Files to records: JSON lines and JSON arrays (plain, .gz, .zst), parquet, folders, globs, tensorflow-datasets.

A line that cannot be read is set aside with its file and number; more than one in a hundred stops the run.
"""

import dataclasses
import glob
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import orjson
import zstandard

from alignment.errors import InputError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".txt")
PACKED = ("", ".gz", ".zst")
BOM = b"\xef\xbb\xbf"
MAX_BAD = 0.01  # share of lines that may be set aside


@dataclasses.dataclass(frozen=True)
class Record:
    """One record, and where it stood (lines count from 1; in an array or a table, records do)."""

    value: dict
    file: str
    line: int


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A line set aside."""

    file: str
    line: int
    reason: str


def read(
    path: str | Sequence[str], *, split: str = "train", max_bad: float = MAX_BAD
) -> tuple[list[Record], list[BadRecord]]:
    """All records of a path.

    Args:
        path: a file, a folder, a glob, several of these (a list, or with commas between), or `tfds:name/config`.
        split: of a tensorflow-datasets source; files have none.
        max_bad: share of unreadable lines above which the whole reading is an `InputError`.
    """
    if isinstance(path, str) and path.startswith("tfds:"):
        from data import sources  # tensorflow-datasets takes seconds to import

        return [Record(v, path, i) for i, v in enumerate(sources.open_source(path[5:], split), 1)], []
    good, bad = [], []
    for file in find(path):
        for item in read_file(file):
            (good if isinstance(item, Record) else bad).append(item)
    check_bad(bad, len(good) + len(bad), max_bad)
    if not good:
        raise InputError(
            f"{path} has no records: {len(bad)} lines were unreadable" if bad else f"{path} has no records"
        )
    return good, bad


def check_bad(bad: Sequence[BadRecord], total: int, max_bad: float = MAX_BAD) -> None:
    """Stop when too many lines were set aside, with the first of them."""
    if bad and len(bad) > max_bad * total:
        first = "; ".join(f"{b.file}:{b.line}: {b.reason}" for b in bad[:5])
        raise InputError(
            f"{len(bad)} of {total} lines ({100 * len(bad) / total:.1f} %) are unreadable, more than "
            f"{100 * max_bad:g} %: "
            f"{first}. Repair the file, or remove those lines"
        )


def write_bad(bad: Sequence[BadRecord], path: str) -> None:
    """The lines set aside, as JSONL of file, line and reason."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_bytes(b"".join(orjson.dumps(dataclasses.asdict(b)) + b"\n" for b in bad))


def find(path: str | Sequence[str]) -> list[str]:
    """The data files behind a file name, a folder, a glob, or several of these (a list, or one string with commas).

    Each is in sorted order.
    """
    if not isinstance(path, (str, pathlib.Path)):
        return [file for one in path for file in find(one)]
    where = pathlib.Path(path).expanduser()
    if where.is_dir():
        endings = tuple(s + p for s in SUFFIXES[:4] for p in PACKED)
        files = sorted(file for file in below(where) if file.endswith(endings))
        if not files:
            raise InputError(
                f"folder {path} has no data files; names should end in {', '.join(SUFFIXES[:4])} (.gz, .zst); "
                "plain text is taken by a glob, such as FOLDER/*.txt"
            )
        return files
    if where.is_file():
        return [str(where)]
    files = sorted(f for f in glob.glob(str(where), recursive=True) if pathlib.Path(f).is_file())
    if not files and "," in str(path):
        return [file for one in str(path).split(",") for file in find(one.strip())]
    if not files:
        raise InputError(f"data path {str(path)!r}: no such file, folder or glob")
    return files


def below(folder: str | os.PathLike) -> Iterator[str]:
    """All files in a folder and its folders, linked ones too; a link that leads back up is not followed."""
    for at, names, found in os.walk(folder, followlinks=True):
        above = {os.path.realpath(at), *map(str, pathlib.Path(os.path.realpath(at)).parents)}
        names[:] = [name for name in names if os.path.realpath(os.path.join(at, name)) not in above]
        yield from (path for name in found if os.path.isfile(path := os.path.join(at, name)))


def read_file(file: str) -> Iterator[Record | BadRecord]:
    """The records of one file, in order; what cannot be read comes as a `BadRecord`."""
    name = file.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        yield from _parquet(file)
        return
    lines = _lines(file)
    if name.endswith(".txt"):
        yield from _plain_text(file, lines)
        return
    is_first = True
    for line, raw in enumerate(lines, 1):
        raw = raw.removeprefix(BOM) if line == 1 else raw
        if not raw.strip():
            continue
        if is_first and raw.lstrip()[:1] == b"[":  # an array is one value, over as many lines as it likes
            yield from _array(file, b"\n".join([raw, *lines]), line)
            return
        is_first = False
        value, reason = parse(raw)
        if name.endswith(".json") and reason and raw.strip() == b"{":
            raise InputError(
                f"{file} is one JSON object over many lines; give JSONL (one object a line) or a JSON array"
            )
        yield Record(value, file, line) if reason is None else BadRecord(file, line, reason)


def _array(file: str, content: bytes, first_line: int) -> Iterator[Record | BadRecord]:
    is_checked = True
    try:
        items = orjson.loads(content)
    except orjson.JSONDecodeError:
        is_checked = False
        try:
            items = json.loads(content.decode("utf-8"))  # reads NaN and halves of surrogate pairs
        except (ValueError, RecursionError) as e:
            at = f"{file}:{first_line + e.lineno - 1}" if isinstance(e, json.JSONDecodeError) else file
            what = "nested too deeply" if isinstance(e, RecursionError) else e
            raise InputError(
                f"{at} is not a JSON array: {what}. One object a line (JSONL) lets the good lines be used"
            ) from e
    for i, item in enumerate(items, 1):
        reason = _reason_against(item, is_checked=is_checked)
        yield Record(item, file, i) if reason is None else BadRecord(file, i, reason)


def parse(raw: bytes) -> tuple[dict | None, str | None]:
    """The object of one line of JSON, or None and the reason why there is none."""
    is_checked = True
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        is_checked = False
        if _decode(raw) is None:
            return None, "not UTF-8"
        try:
            value = json.loads(raw)  # reads NaN, which Python writes
        except RecursionError:
            return None, "nested too deeply"
        except ValueError:
            return None, f"not JSON: {e}"
    reason = _reason_against(value, is_checked=is_checked)
    return (None, reason) if reason else (value, None)


def _reason_against(value, *, is_checked: bool) -> str | None:
    """Why this is no record; `is_checked` says that orjson has read it, which takes nothing that cannot be written."""
    if not isinstance(value, dict):
        return f"a JSON {type(value).__name__}, not an object"
    try:
        if not is_checked:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    except RecursionError:
        return "nested too deeply"
    return None


def _plain_text(file: str, lines: Iterator[bytes], num_chars: int = 4_000) -> Iterator[Record | BadRecord]:
    """Documents of 4,000 characters and more: cut at the next blank line, or at any line end from 8,000 on."""
    block, length, first = [], 0, 1
    for line, raw in enumerate([*lines, None], 1):
        raw = raw.removeprefix(BOM) if raw and line == 1 else raw
        text = None if raw is None else _decode(raw)
        is_end = raw is None or (length > num_chars and (not raw.strip() or length > 2 * num_chars))
        if is_end and length:
            yield Record({"text": "\n".join(block)}, file, first)
            block, length = [], 0
        if raw is not None and text is None:
            yield BadRecord(file, line, "not UTF-8")
        elif text:
            first = first if block else line
            block.append(text)
            length += len(text) + 1
        elif block:
            block.append("")


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _lines(file: str) -> Iterator[bytes]:
    """Lines without their ends, decompressed as they come; a file cut short is an `InputError`."""
    parts, num_lines = [], 0  # parts: of the line whose end has not come yet
    try:
        for chunk in _chunks(file):
            first, *others = chunk.split(b"\n")
            parts.append(first)
            for other in others:
                num_lines += 1
                yield b"".join(parts).rstrip(b"\r")
                parts = [other]
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as e:
        raise InputError(f"{file} is damaged or cut short after line {num_lines}: {e}. Fetch or pack it again") from e
    except OSError as e:
        raise InputError(f"cannot read {file}: {e.strerror or e}") from e
    if rest := b"".join(parts).rstrip(b"\r"):
        yield rest


def _chunks(file: str, size: int = 1 << 20) -> Iterator[bytes]:
    opener = gzip.open if file.endswith(".gz") else open
    with opener(file, "rb") as f:
        if not file.endswith(".zst"):
            while chunk := f.read(size):
                yield chunk
            return
        frame = zstandard.ZstdDecompressor().decompressobj()
        while raw := f.read(size):
            while raw:
                yield frame.decompress(raw)
                raw = frame.unused_data if frame.eof else b""
                if raw:
                    frame = zstandard.ZstdDecompressor().decompressobj()
        if not frame.eof:
            raise EOFError("the last zstandard frame has no end")


def _parquet(file: str) -> Iterator[Record]:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise InputError(f"{file}: reading parquet needs pyarrow: pip install pyarrow") from e
    try:
        line = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=4096):
            for value in batch.to_pylist():
                line += 1
                yield Record(value, file, line)
    except (pyarrow.ArrowException, OSError) as e:
        raise InputError(f"{file} is not a readable parquet file: {e}") from e

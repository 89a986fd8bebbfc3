"""Files to records: JSON lines, JSON arrays, CSV, parquet, plain text; from disk, tensorflow-datasets or the hub.

A line that cannot be read is set aside with its file and number; more than one in a hundred stops the run.
"""

import dataclasses
import glob
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from alignment import errors, files
from alignment.errors import InputError
from data import hub, lines, tables

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".txt")
PARTS = {"test": "test", "eval": "test", "validation": "validation", "valid": "validation", "val": "validation"}
PARTS |= {"dev": "validation", "train": "train"}
TABLES = {".csv": ",", ".tsv": "\t"}  # read where they are named, never as a part of a folder; what parts the fields
PACKED = ("", *lines.PACKED)
BOM = tables.BOM
SIDE_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of Hugging Face's folders
_FOREIGN = ("lzma", "lz4", "br", "7z", "zip", "rar", "snappy", "sz", "z")  # ways to pack that are not read
_ODD = re.compile(
    rf"\.(?:jsonl?|ndjson|parquet|txt|csv|tsv|arrow|feather|avro)(?:\.(?:gz|zst|zstd|xz|bz2|{'|'.join(_FOREIGN)}))?$"
)
MAX_BAD = 0.01  # share of lines that may be set aside


@dataclasses.dataclass(frozen=True)
class Record:
    """One record and its place: `line` counts from 1; in an array or a parquet file it is the record's number."""

    value: dict[str, Any]
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
    """All records of a path, and the lines set aside.

    Args:
        path: a file, a folder, a glob, several of these (a list, or with commas between), `tfds:name/config`, or
            `hub:owner/name[@revision][:glob]` (see data/hub.py).
        split: of a tensorflow-datasets source; files have none.
        max_bad: share of unreadable lines, in [0, 1], above which nothing is returned.

    Raises:
        InputError: no such file; a damaged file; no record; more unreadable lines than `max_bad`.
    """
    if isinstance(path, str) and path.startswith("tfds:"):
        from data import sources  # tensorflow-datasets takes seconds to import

        return [Record(v, path, i) for i, v in enumerate(sources.open_source(path[5:], split), 1)], []
    good: list[Record] = []
    bad: list[BadRecord] = []
    for line in left_out(path):
        print(f"data: not read: {line}", flush=True)
    for file in find(path):
        for item in read_file(file):
            if isinstance(item, Record):
                good.append(item)
            else:
                bad.append(item)
    check_bad(bad, len(good) + len(bad), max_bad)
    if not good:
        raise InputError(
            f"{path} has no records: {len(bad)} lines were unreadable" if bad else f"{path} has no records"
        )
    return good, bad


def read_counted(
    path: str | Sequence[str], *, counts: dict[str, int], split: str = "train", bad_records_path: str = ""
) -> list[Record]:
    """The records of `read`.

    Args:
        counts: receives the numbers of "records" and "unreadable lines", added to those that are there.
        bad_records_path: where to write the lines set aside, as JSONL; "" writes nothing.
    """
    good, bad = read(path, split=split)
    counts["records"] = counts.get("records", 0) + len(good) + len(bad)
    if bad:
        counts["unreadable lines"] = counts.get("unreadable lines", 0) + len(bad)
        if bad_records_path:
            write_bad(bad, bad_records_path)
    return good


def numbered(rows: Sequence[Mapping[str, Any]], name: str, *, counts: dict[str, int]) -> list[Record]:
    """Rows made in memory as the records of a file `name`, counted as `read_counted` counts."""
    counts["records"] = counts.get("records", 0) + len(rows)
    return [Record(dict(row), name, i) for i, row in enumerate(rows, 1)]


def first(rows: Sequence[Record], limit: int | None, counts: dict[str, int]) -> Sequence[Record]:
    """The first `limit` records (None or 0: all); the others are counted."""
    if limit and len(rows) > limit:
        counts["records beyond data.limit"] = counts.get("records beyond data.limit", 0) + len(rows) - limit
    return rows[: limit or None]


def check_bad(bad: Sequence[BadRecord], total: int, max_bad: float = MAX_BAD) -> None:
    """Stop when too many lines were set aside; the message names the first five."""
    if bad and len(bad) > max_bad * total:
        first = "; ".join(f"{b.file}:{b.line}: {b.reason}" for b in bad[:5])
        raise InputError(
            f"{len(bad)} of {total} lines ({100 * len(bad) / total:.1f} %) are unreadable, more than "
            f"{100 * max_bad:g} %: {first}. Repair the file, or remove those lines"
        )


def set_aside(refused: Sequence[BadRecord], total: int, counts: dict[str, int], what: str) -> None:
    """Count records that were read and cannot be used, and print the first three.

    Raises:
        InputError: they are more than one in a hundred, so that something other than a few records is wrong.
    """
    if refused:
        counts[what] = counts.get(what, 0) + len(refused)
        for bad in refused[:3]:
            print(f"set aside: {bad.file}:{bad.line}: {bad.reason}", flush=True)
        check_bad(refused, total)


def write_bad(bad: Sequence[BadRecord], path: str | os.PathLike) -> None:
    """Write the lines set aside as JSONL of file, line and reason."""
    content = b"".join(orjson.dumps(dataclasses.asdict(b)) + b"\n" for b in bad)
    files.write(path, lambda f: f.write(content))


def check(path: str | Sequence[str]) -> None:
    """Refuse what `read` would not find, without reading a record or asking a hub.

    Raises:
        InputError: nothing lies there; a package is missing.
    """
    if not errors.files_needed():
        return
    if not isinstance(path, (str, pathlib.Path)):
        for one in path:
            check(one)
    elif str(path).startswith("tfds:"):
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise InputError(f"{path} needs tensorflow-datasets: pip install tensorflow-datasets array_record")
    elif hub.PREFIX in str(path):
        for one in str(path).split(","):
            hub.check(one.strip()) if hub.is_spec(one.strip()) else find(one.strip())
    else:
        find(path)


def listed(text: str) -> list[str]:
    """The parts of a text with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def find(path: str | Sequence[str]) -> list[str]:
    """The data files behind a file name, a folder, a glob, or several of these (a list, or one string with commas).

    The files of a folder or glob come sorted by name; those of `hub:owner/name` are fetched first.

    Raises:
        InputError: nothing lies there.
    """
    if path is None:
        raise InputError("data path is not set; give a file, a folder or a glob ('.' is the current folder)")
    if not isinstance(path, (str, pathlib.Path)):
        return [file for one in path for file in find(one)]
    if hub.is_spec(path) and "," not in str(path):
        return list(fetched(str(path)).files)
    where = _where(path)
    if where.is_dir():
        endings = tuple(s + p for s in SUFFIXES[:4] for p in PACKED)
        there = list(visible(where))
        names = sorted(file for file in there if file.endswith(endings) and os.path.basename(file) not in SIDE_FILES)
        if not names:
            arrow = next((file for file in there if file.endswith(".arrow")), None)
            if arrow:
                raise InputError(
                    f"folder {path} holds {os.path.basename(arrow)}, a data set saved by datasets.save_to_disk, which "
                    "is not read; write it with to_parquet or to_json"
                )
            raise InputError(
                f"folder {path} has no data files; names should end in {', '.join(SUFFIXES[:4])}, plain or with "
                f"{', '.join(lines.PACKED)}; a glob, such as FOLDER/*.txt, takes plain text"
            )
        return names
    if where.is_file():
        return [str(where)]
    names = sorted(f for f in glob.glob(str(where), recursive=True) if pathlib.Path(f).is_file())
    if not names and "," in str(path):  # last, since a file's name may hold a comma
        return [file for one in str(path).split(",") for file in find(one.strip())]
    if not names:
        fetch = "; fetch it first, since only files on this disk are read" if "://" in str(path) else ""
        raise InputError(f"data path {str(path)!r}: no such file, folder or glob{fetch}")
    return names


def _where(path: str | os.PathLike) -> pathlib.Path:
    """The place of a path, with ~ resolved.

    Raises:
        InputError: an empty path, a user that does not exist, a name that no disk takes.
    """
    if not str(path).strip():
        raise InputError("data path '' is empty; give a file, a folder or a glob ('.' is the current folder)")
    try:
        where = pathlib.Path(path).expanduser()
        where.is_dir()
    except (OSError, RuntimeError) as e:  # a name too long for the disk; a home folder that is not known
        raise InputError(f"data path {str(path)[:200]!r}: {getattr(e, 'strerror', None) or e}") from None
    return where


def fetched(spec: str) -> hub.Fetched:
    """The files of a data set of the hub on this disk, of the kinds that are read."""
    endings = tuple(ending + packed for ending in SUFFIXES[:4] for packed in PACKED)
    return hub.fetch(spec, endings, tuple(ending + packed for ending in (".txt", *TABLES) for packed in PACKED))


def left_out(path: str | Sequence[str]) -> list[str]:
    """What looks like data behind a folder or glob and is not read, as "file (why)", sorted by name.

    These are links that lead nowhere, and names in capitals or packed in a way that is not read.
    """
    if not isinstance(path, (str, pathlib.Path)):
        return [line for one in path or () for line in left_out(one)]
    where = _where(path)
    if where.is_dir():
        walked = (os.path.join(parent, name) for parent, _, names in os.walk(where) for name in names)
        files = [file for file in walked if not _is_hidden(file, where)]
    else:
        files = glob.glob(str(where), recursive=True)
        if not files and "," in str(path):
            return [line for one in listed(str(path)) for line in left_out(one)]
    said = [
        f"{file} (a link that leads nowhere)" for file in files if os.path.islink(file) and not os.path.exists(file)
    ]
    endings = tuple(s + p for s in SUFFIXES for p in PACKED)
    odd = [file for file in files if _ODD.search(file.lower()) and not file.endswith(endings) and os.path.isfile(file)]
    if where.is_dir():
        ways = f"names end in {', '.join(SUFFIXES)}, in small letters, plain or with {', '.join(lines.PACKED)}"
        said += [f"{file} ({ways})" for file in odd]
        said += [f"{file} (plain text is read by a glob, such as FOLDER/*.txt)" for file in files if _is_text(file)]
    return sorted(said)


def _is_text(file: str) -> bool:
    name = os.path.basename(file).lower()
    return name.endswith(tuple(f".txt{p}" for p in PACKED)) and not name.startswith(("readme", "license"))


def visible(folder: str | os.PathLike) -> Iterator[str]:
    """`below` without hidden files."""
    return (file for file in below(folder) if not _is_hidden(file, pathlib.Path(folder)))


def _is_hidden(file: str, folder: pathlib.Path) -> bool:
    """Whether a name below the folder begins with a dot, as those of notebooks' checkpoints and macOS's doubles do."""
    return any(part.startswith(".") for part in pathlib.Path(file).relative_to(folder).parts)


def parts(path: str | Sequence[str], names: Sequence[str] = ()) -> tuple[str | Sequence[str], list[str]]:
    """The files to train on and those to test on, of a folder whose names tell; otherwise the path itself and nothing.

    A name that begins or ends with a word for testing, such as `test-00000-of-00001.parquet`, `validation/0.jsonl` or
    `pairs_test.jsonl`, is not trained on. Where a folder has validation files and test files, the validation files are
    held out and the others are left alone; what is done is printed.
    """
    if hub.is_spec(path) and "," not in str(path) and not hub.parse(str(path)).glob:
        folder = pathlib.Path(fetched(str(path)).folder)
    elif not isinstance(path, (str, pathlib.Path)) or not pathlib.Path(path).expanduser().is_dir():
        return path, []
    else:
        folder = pathlib.Path(path).expanduser()
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for file in names or find(path):  # `names`: its files, where another reader finds other ones
        words = [word for part in pathlib.Path(file).relative_to(folder).parts for word in _outer_words(part)]
        split[next((PARTS[word] for word in words if word in PARTS), "train")].append(file)
    heldout = split["validation"] or split["test"]
    if not split["train"] or not heldout:
        return path, []
    print(f"data: {path}: {len(split['train'])} files to train on, {len(heldout)} files held out", flush=True)
    if split["validation"] and split["test"]:
        print(f"data: {len(split['test'])} test files beside the validation files are not read", flush=True)
    return split["train"], heldout


def _outer_words(name: str) -> tuple[str, str]:
    """The first and the last word of a file's or folder's name, without its endings and the numbers of shards."""
    endings = "|".join(re.escape(ending) for ending in (*SUFFIXES, *PACKED[1:]))
    # ArrayRecord's ending has a word of its own, and the numbers of shards may come after it.
    stem = re.sub(rf"({endings})+$", "", re.sub(r"\.array_?record", "", name.lower()))
    words = [word for word in re.split(r"[-_.]", stem) if word and not word.isdigit() and word != "of"] or [""]
    return words[0], words[-1]


def below(folder: str | os.PathLike) -> Iterator[str]:
    """All files in a folder and its folders, linked ones too; a link that leads back up is not followed."""
    for parent, folders, names in os.walk(os.fspath(folder), followlinks=True):
        above = {os.path.realpath(parent), *map(str, pathlib.Path(os.path.realpath(parent)).parents)}
        # os.walk goes on into what this list holds, so taking a folder out of it ends the circle.
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in above]
        yield from (path for name in names if os.path.isfile(path := os.path.join(parent, name)))


def read_file(file: str) -> Iterator[Record | BadRecord]:
    """The records of one file, in order; a line that cannot be read comes as a `BadRecord`."""
    name = lines.unpacked(file)
    lines.check_opening(file)
    if file.lower().endswith(tuple(f".{packed}" for packed in _FOREIGN)):
        raise InputError(
            f"{file} is packed in a way that is not read; unpack it, or pack it as {', '.join(lines.PACKED)}"
        )
    if name.endswith(".parquet"):
        yield from (Record(value, file, line) for line, value in tables.parquet(file))
    elif name.endswith(tuple(TABLES)):
        yield from _csv(file)
    elif name.endswith(".txt"):
        yield from _plain_text(file, _lines(file))
    else:
        yield from _json(file, is_json=name.endswith(".json"))


def _json(file: str, *, is_json: bool) -> Iterator[Record | BadRecord]:
    """Objects, one a line, or the objects of an array; `is_json`: whether the name says that it is one value."""
    raws = _lines(file)
    is_first = True
    for line, raw in enumerate(raws, 1):
        raw = raw.removeprefix(BOM) if line == 1 else raw
        if not raw.strip():
            continue
        if is_first and raw.lstrip()[:1] == b"[":  # an array is one value, over as many lines as it likes
            yield from _array(file, b"\n".join([raw, *raws]), line)
            return
        is_first = False
        value, reason = parse(raw)
        if is_json and reason and raw.strip() == b"{":
            raise InputError(
                f"{file} is one JSON object over many lines; give JSONL (one object a line) or a JSON array"
            )
        yield BadRecord(file, line, reason or "") if value is None else Record(value, file, line)


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


def parse(raw: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The object of one line of JSON and None, or None and why the line is not one."""
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
    reason = _reason_against(value, is_checked=is_checked) or _twice(raw, value)
    return (None, reason) if reason else (value, None)


def _twice(raw: bytes, value: dict[str, Any]) -> str | None:
    """Say which field a line has twice; a parser would take the last and drop the others without a word."""
    if all(raw.count(b'"%b"' % name.encode("utf-8")) < 2 for name in value):
        return None  # the text may also stand in a value or further inside, so that only a second parse knows
    names = json.loads(raw, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
    return next((f"two fields {name!r}" for name in value if names.count(name) > 1), None)


def _reason_against(value: Any, *, is_checked: bool) -> str | None:
    """Why this value cannot be a record.

    Args:
        is_checked: orjson has read the value. It refuses what could not be written again; Python's json does not.
    """
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
    block: list[str] = []
    length, first = 0, 1
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
    num_lines = 0
    try:
        for _, line in lines.split(lines.chunks(file)):
            num_lines += 1
            yield line.rstrip(b"\r")  # type: ignore[union-attr]  # without a limit no length stands for a line
    except lines.Damaged as e:
        raise InputError(f"{file} is damaged or cut short after line {num_lines}: {e}. Fetch or pack it again") from e


def _csv(file: str) -> Iterator[Record | BadRecord]:
    """The rows of a table of separated values."""
    try:
        content = b"".join(lines.chunks(file))
    except lines.Damaged as e:
        raise InputError(f"{file} is damaged or cut short: {e}. Fetch or pack it again") from e
    _, rows = tables.separated(content, file, TABLES[pathlib.Path(lines.unpacked(file)).suffix])
    for line, row in rows:
        yield BadRecord(file, line, row) if isinstance(row, str) else Record(row, file, line)

"""Mosaics from disk: the Focus authors' ready-made folders and zips, and those of `mosaics.write`.

A row or a picture that cannot be read is set aside with its file and line; more than one in a hundred stops the run.
A zip is read in place, without unpacking.

Dimensions: M mosaics, N images, 4 tiles of a mosaic, Y X rows and columns.
"""

import collections
import dataclasses
import io
import json
import os
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from alignment.errors import InputError
from data import lines, records, tables
from data.pictures import image_files
from data.pictures.mosaics import TABLE
from data.records import BadRecord

COLUMNS = ("filename", *(f"filename_{i}" for i in range(4)), *(f"label_{i}" for i in range(4)), "target_class")
NAMES = ("catsdogs.csv", "ilsvrc.csv", "mit67.csv", "mame.csv")
# exceptions of Pillow and zipfile for a damaged file
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class Mosaics:
    """Mosaics ready to be explained.

    Attributes:
        files: the name of each.
        tile_files: [M] of the four images' names.
        tile_label: [M, 4] int32.
        target: [M] int32.
        size: rows and columns, the same for all.
        set_aside: rows and pictures that could not be used.
        store: reads the pictures.
    """

    files: tuple[str, ...]
    tile_files: tuple[tuple[str, ...], ...]
    tile_label: np.ndarray
    target: np.ndarray
    size: tuple[int, int]
    set_aside: tuple[BadRecord, ...]
    store: "Store"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, k: int) -> np.ndarray:
        """Mosaic k, uint8 [Y, X, 3]."""
        return self.store.read(self.files[k])

    @property
    def counts(self) -> dict[str, int]:
        return {"mosaics": len(self), "mosaics set aside": len(self.set_aside)}


class Store:
    """A folder or a zip with a table and its pictures, which lie in `data/` beside the table or beside the table.

    Raises:
        InputError: a zip with links or entries that lead out of it; no table, or several tables of unknown names.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.zip = zipfile.ZipFile(path) if path.is_file() else None
        self.names = self._names()
        self.table = self._table()
        self.root = self.table.rpartition("/")[0]

    def _names(self) -> set[str]:
        if self.zip is None:
            return {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}
        for entry in self.zip.infolist():
            # the upper half of the attributes holds the Unix mode, where an archive made on Unix marks its links
            is_link = stat.S_ISLNK(entry.external_attr >> 16)
            if is_outside(entry.filename) or is_link:
                what = "is a link" if is_link else "points outside its folder"
                raise InputError(f"{self.path}: the entry {entry.filename!r} {what}; fetch the archive from its source")
        return {entry.filename for entry in self.zip.infolist() if not entry.is_dir()}

    def _table(self) -> str:
        """The table's name: ours, one of the authors', or the only CSV file; of several, the nearest to the top."""
        by_depth = sorted(self.names, key=lambda name: (name.count("/"), name))
        for known in (TABLE, *NAMES):
            if matches := [name for name in by_depth if name.rpartition("/")[2] == known]:
                return matches[0]
        tables = [name for name in by_depth if name.endswith(".csv") and not name.endswith("_labels.csv")]
        if len(tables) != 1:
            raise InputError(
                f"{self.path} holds {len(tables) or 'no'} CSV files; a mosaic folder has one beside data/, such as "
                f"{', '.join(NAMES)}, or {TABLE}"
            )
        return tables[0]

    def bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes() if self.zip is None else self.zip.read(name)

    def place(self, file: str) -> str | None:
        """The name of a picture in the store; None where it does not exist."""
        for folder in ("data/", ""):
            name = f"{self.root}/{folder}{file}".lstrip("/")
            if not is_outside(file) and name in self.names:
                return name
        return None

    def picture(self, file: str) -> np.ndarray:
        """A picture in RGB, uint8; raises one of UNREADABLE."""
        with Image.open(io.BytesIO(self.bytes(self.place(file) or file))) as opened:
            return np.asarray(image_files.rgb(opened))

    def read(self, file: str) -> np.ndarray:
        """As `picture`, but raises `InputError`."""
        try:
            return self.picture(file)
        except UNREADABLE as e:
            raise InputError(f"{self.path}: {file} cannot be read: {e}; fetch it again, or remove its row") from e


def check(path: str | os.PathLike) -> pathlib.Path:
    """The folder or zip, if it is there; it is not opened."""
    where = pathlib.Path(path).expanduser()
    if not where.exists():
        raise InputError(f"there is no mosaic folder or zip {where}")
    return where


def read(
    path: str | os.PathLike,
    *,
    num_classes: int | None = None,
    allow_any: bool = False,
    max_bad: float = records.MAX_BAD,
) -> Mosaics:
    """The mosaics of a folder or a zip; every picture is decoded once, so that a truncated one is set aside.

    Args:
        path: with `data/<k>.jpg` and the authors' CSV (filename, filename_0 to 3, label_0 to 3, target_class), or with
            the table of `mosaics.write`.
        num_classes: labels must lie below it; None does not check.
        allow_any: take mosaics whose target is on another number of tiles than two.
        max_bad: share of rows that may be set aside.

    Raises:
        InputError: a folder or zip that cannot be read, more bad rows than allowed, a target on other than two tiles.
    """
    path = check(path)
    try:
        store = Store(path)
    except zipfile.BadZipFile as e:
        raise InputError(f"{path} is not a zip file, or is cut short ({e}); fetch it again") from e
    file = f"{path}/{store.table}"
    good, bad = [], []
    for item in _rows(store, file):
        item = item if isinstance(item, BadRecord) else _parse(item, num_classes, store)
        (bad if isinstance(item, BadRecord) else good).append(item)
    unfit = _unfit(store, good)
    lines = {b.line for b in unfit}
    bad, good = bad + unfit, [row for row in good if row["line"] not in lines]
    records.check_bad(sorted(bad, key=lambda b: b.line), len(good) + len(bad), max_bad)
    if not good:
        raise InputError(f"{file} has no mosaics")
    for row in good:
        num_targets = row["labels"].count(row["target"])
        if num_targets != 2 and not (allow_any and num_targets):
            raise InputError(
                f"{row['file']}:{row['line']}: the target {row['target']} is on {num_targets} of the tiles "
                f"{row['labels']}; Focus needs two (allow_any=True takes 1 to 4, and chance is then a quarter of that)"
            )
    mosaic = store.read(good[0]["filename"])
    return Mosaics(
        files=tuple(row["filename"] for row in good),
        tile_files=tuple(row["tiles"] for row in good),
        tile_label=np.array([row["labels"] for row in good], np.int32),
        target=np.array([row["target"] for row in good], np.int32),
        size=mosaic.shape[:2],
        set_aside=tuple(sorted(bad, key=lambda b: b.line)),
        store=store,
    )


def is_outside(name: str) -> bool:
    """Whether a relative path leaves its folder on Windows or elsewhere."""
    path = pathlib.PureWindowsPath(name)
    return bool(path.drive or path.root or name.startswith("/") or ".." in path.parts)


def _rows(store: Store, file: str) -> Iterator[dict[str, Any] | BadRecord]:
    """Rows of either table in one form: filename, tiles, labels and target, not parsed yet."""
    content = store.bytes(store.table)
    lines.check_head(content, file)
    if store.table.endswith(".csv"):
        names, rows = tables.separated(content, file)
        if missing := [name for name in COLUMNS if name not in names]:
            raise InputError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(names) or 'no line'}")
        for line, row in rows:
            if isinstance(row, str):
                yield BadRecord(file, line, row)
                continue
            tiles = tuple(row[f"filename_{i}"] for i in range(4))
            labels = [row[f"label_{i}"] for i in range(4)]
            yield dict(
                filename=row["filename"], tiles=tiles, labels=labels, target=row["target_class"], file=file, line=line
            )
        return
    for line, text in enumerate(content.decode("utf-8", errors="replace").split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            tiles = tuple(map(str, row["tiles"]))
            yield dict(
                filename=row["filename"], tiles=tiles, labels=row["labels"], target=row["target"], file=file, line=line
            )
        except (ValueError, KeyError, TypeError) as e:
            yield BadRecord(file, line, f"not a row of filename, labels, target and tiles: {e!r}")


def _parse(row: dict[str, Any], num_classes: int | None, store: Store) -> dict[str, Any] | BadRecord:
    """The row with its five integers parsed, or the reason to set it aside."""
    try:
        numbers = [_integer(text) for text in [*row["labels"], row["target"]]]
    except ValueError as e:
        return BadRecord(row["file"], row["line"], str(e))
    wrong = [n for n in numbers if n < 0 or (num_classes and n >= num_classes)]
    if len(numbers) != 5:
        return BadRecord(row["file"], row["line"], f"{len(numbers) - 1} labels, not four")
    if wrong:
        return BadRecord(row["file"], row["line"], f"the label {wrong[0]} is not a class")
    if store.place(row["filename"]) is None:
        return BadRecord(row["file"], row["line"], f"there is no picture {row['filename']!r}")
    return row | {"labels": numbers[:4], "target": numbers[4]}


def _integer(text: Any) -> int:
    """A class index; '7.0' is accepted too, because spreadsheets write it."""
    try:
        value = float(text)
        if isinstance(text, bool) or not value.is_integer():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the label {text!r} is not an integer") from None
    return int(value)


def _unfit(store: Store, rows: list[dict[str, Any]]) -> list[BadRecord]:
    """The rows whose picture cannot be decoded, or has another size than most."""
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without Python's lock
        sizes = list(pool.map(lambda row: _size(store, row["filename"]), rows))
    usual = collections.Counter(size for size in sizes if not isinstance(size, str)).most_common(1)
    bad = []
    for row, size in zip(rows, sizes):
        if isinstance(size, str):
            bad.append(BadRecord(row["file"], row["line"], size))
        elif size != usual[0][0]:
            reason = (
                f"{row['filename']} has {size[0]} x {size[1]} pixels, the others {usual[0][0][0]} x {usual[0][0][1]}"
            )
            bad.append(BadRecord(row["file"], row["line"], reason))
    return bad


def _size(store: Store, file: str) -> tuple[int, int] | str:
    """Rows and columns of a picture, or the reason why it cannot be read."""
    try:
        return store.picture(file).shape[:2]
    except UNREADABLE as e:
        return f"{file} cannot be read: {e}"


def cut(ready: Mosaics) -> np.ndarray:
    """The tiles of ready-made mosaics, four after four, uint8 [4M, Y, X, 3]; `mosaics.assemble` undoes it."""
    rows, columns = ready.size
    if rows % 2 or columns % 2:
        raise InputError(f"mosaics of {rows} x {columns} pixels are not four tiles of one size; both must be even")
    tiles = np.empty((len(ready), 4, rows // 2, columns // 2, 3), np.uint8)
    for k in range(len(ready)):
        tiles[k] = ready.read(k).reshape(2, rows // 2, 2, columns // 2, 3).swapaxes(1, 2).reshape(tiles.shape[1:])
    return tiles.reshape(-1, *tiles.shape[2:])

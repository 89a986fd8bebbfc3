"""Pictures listed in a CSV table, a file name and a label in each row."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.errors import InputError, one_of
from data.pictures import image_sources

CSV_COLUMNS = ("filename", "label", "subset")
HINT = ". Name them with data.columns.filename and data.columns.label"


def csv_table(
    path: str, *, split: str, folder: str = "", columns: Mapping[str, str] | None = None, seed: int = 0
) -> image_sources.Images:
    """A table with the columns filename, label and subset, as the Focus authors have it.

    A table without subset is split by class. Class numbers are the rows of `<name>_labels.csv` where that file lies
    beside the table, and those of the sorted names otherwise.

    Args:
        path: of the table.
        split: train, val or test.
        folder: of the pictures; "" is the table's folder, or `data` in it.
        columns: `filename`, `label` and `subset` -> the table's own name of that column.
        seed: of the split where there is no subset.

    Raises:
        InputError: a table that cannot be read or lacks a column, a label that is not a class, a file name that leads
            out of the folder.
    """
    image_sources.check_split(split)
    file = pathlib.Path(path).expanduser()
    named = _columns(columns)
    rows = read_table(file, [theirs for ours, theirs in named.items() if ours != "subset" or theirs != ours], HINT)
    names_file = file.with_name(f"{file.stem}_labels.csv")
    class_names = tuple(sorted({row[named["label"]] for _, row in rows}))
    if names_file.is_file():
        class_names = tuple(row["label"] for _, row in read_table(names_file, ("label",)))
    has_subset = named["subset"] in (rows[0][1] if rows else ())
    if has_subset:
        subsets = [row[named["subset"]].lower() for _, row in rows]
        rows = [row for row, subset in zip(rows, subsets) if image_sources.SAME_SPLIT.get(subset, subset) == split]
    for n, row in rows:
        one_of(f"{file}:{n}: label", row[named["label"]], class_names, hint=f"{names_file.name} lists the classes")
    labels = [class_names.index(row[named["label"]]) for _, row in rows]
    if not has_subset:
        mine = np.flatnonzero(image_sources.parts(np.array(labels, np.int32), seed) == split)
        rows, labels = [rows[i] for i in mine], [labels[i] for i in mine]
    base = pathlib.Path(folder).expanduser() if folder else file.parent
    places = [image_sources.below(base, row[named["filename"]], where=f"{file}:{n}") for n, row in rows]
    if not folder and (base / "data").is_dir():
        places = [
            p if p.is_file() else image_sources.below(base / "data", row[named["filename"]], where="")
            for p, (_, row) in zip(places, rows)
        ]
    return image_sources.of_files(
        f"csv:{path}", split, places, labels, class_names, lines=(str(file), [n for n, _ in rows])
    )


def _columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Our name of each column -> the table's own name, where "" stands for ours."""
    for name in columns or {}:
        one_of("column", name, CSV_COLUMNS)
    return {name: (columns or {}).get(name) or name for name in CSV_COLUMNS}


def read_table(file: pathlib.Path, columns: Sequence[str], hint: str = "") -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file with at least these columns; values are stripped.

    Raises:
        InputError: a file that is not there or cannot be read; a missing column, with `hint`.
    """
    if file.is_dir():
        tables = sorted(p.name for p in file.glob("*.csv"))
        there = f", such as {file / tables[0]}" if tables else "; for a folder of pictures a class write folder:<path>"
        raise InputError(f"{file} is a folder; give the path of a table{there}")
    try:
        return parse_table(file.read_bytes(), str(file), columns, hint)
    except FileNotFoundError as e:
        raise InputError(f"{file} is not there; give the path of the table") from e
    except OSError as e:
        raise InputError(f"{file} cannot be read: {e}") from e


def parse_table(content: bytes, name: str, columns: Sequence[str], hint: str = "") -> list[tuple[int, dict[str, str]]]:
    """`read_table` of a file's content."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        header = [column.strip() for column in reader.fieldnames or ()]
        missing = [column for column in columns if column not in header]
        if missing:
            has = ", ".join(header) or "none"
            raise InputError(f"{name} lacks the column {', '.join(missing)}; it has {has}{hint}")
        reader.fieldnames = header
        return [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{name} is not a readable table of comma-separated values in UTF-8: {e}") from e

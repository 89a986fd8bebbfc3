"""Pictures listed in a CSV table, a file name and a label in each row."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.errors import InputError, one_of
from data import fields, lines, records, tables
from data.pictures import image_sources

NO_LABEL = fields.NO_VALUE
CSV_COLUMNS = ("filename", "label", "subset")
HINT = ". Name them with data.columns.filename and data.columns.label"


def csv_table(
    path: str, *, split: str, folder: str = "", columns: Mapping[str, str] | None = None, seed: int = 0
) -> image_sources.Images:
    """A table with the columns filename, label and subset, as the Focus authors have it.

    A table without subset is split by class. Rows without a label, and second rows of a file, are set aside.

    Class numbers are the rows of `<name>_labels.csv` where that file lies
    beside the table, and those of the sorted names otherwise.

    Args:
        path: of the table.
        split: train, val or test.
        folder: of the pictures; "" is the table's folder, or `data` in it.
        columns: `filename`, `label` and `subset` -> the table's own name of that column.
        seed: of the split where there is no subset.

    Raises:
        InputError: a table that cannot be read or lacks a column, a label that is not a class, a subset that is none, a
            file with two labels or in two subsets, a file name that leads out of the folder.
    """
    image_sources.check_split(split)
    file = pathlib.Path(path).expanduser()
    named = _columns(columns)
    rows = read_table(file, [theirs for ours, theirs in named.items() if ours != "subset" or theirs != ours], HINT)
    names_file = file.with_name(f"{file.stem}_labels.csv")
    bad: list[records.BadRecord] = []
    has_subset = named["subset"] in (rows[0][1] if rows else ())
    class_names = tuple(sorted({row[named["label"]] for _, row in rows} - _unlabelled(rows, named["label"])))
    if names_file.is_file():
        class_names = tuple(row["label"] for _, row in read_table(names_file, ("label",)))
    of_row = _subsets(file, rows, named["subset"]) if has_subset else {n: "train" for n, _ in rows}
    rows, bad = _distinct(file, rows, named, of_row, class_names)
    # without subsets, what is set aside is counted once, with train
    bad = [record for record in bad if of_row[record.line] == split]
    if has_subset:
        rows = [(n, row) for n, row in rows if of_row[n] == split]
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
    pictures = image_sources.of_files(
        f"csv:{path}", split, places, labels, class_names, lines=(str(file), [n for n, _ in rows])
    )
    counts = pictures.counts | {"set aside": pictures.counts["set aside"] + len(bad)}
    return dataclasses.replace(pictures, bad=(*bad, *pictures.bad), counts=counts)


Rows = list[tuple[int, dict[str, str]]]  # (line, row)


def _unlabelled(rows: Rows, column: str) -> set[str]:
    """Cells of the label column that say there is none."""
    return {row[column] for _, row in rows if row[column].lower() in NO_LABEL}


def _subsets(file: pathlib.Path, rows: Rows, column: str) -> dict[int, str]:
    """Line -> train, val or test."""
    subsets = {}
    for n, row in rows:
        word = row[column].lower()
        subsets[n] = image_sources.SAME_SPLIT.get(word, word)
        if subsets[n] not in image_sources.SPLITS:
            known = ", ".join((*image_sources.SPLITS, *image_sources.SAME_SPLIT))
            raise InputError(
                f"{file}:{n}: {column}={row[column]!r} is not one of {known}; write one of them, or name another "
                "column with data.columns.subset"
            )
    return subsets


def _distinct(
    file: pathlib.Path, rows: Rows, named: Mapping[str, str], subset_of: Mapping[int, str], class_names: Sequence[str]
) -> tuple[Rows, list[records.BadRecord]]:
    """The rows with a label, each file once, and those set aside."""
    good, bad, first = [], [], {}
    for n, row in rows:
        name, label = row[named["filename"]], row[named["label"]]
        if label.lower() in NO_LABEL and label not in class_names:
            bad.append(records.BadRecord(str(file), n, f"{name} has no label ({label!r})"))
            continue
        at, other, subset = first.setdefault(os.path.normpath(name), (n, label, subset_of[n]))
        if other != label or subset != subset_of[n]:
            what = f"labels {other!r} and {label!r}" if other != label else f"subsets {subset!r} and {subset_of[n]!r}"
            raise InputError(f"{file}:{n}: {name} has the {what}, here and in line {at}; remove one of the rows")
        if at != n:
            bad.append(records.BadRecord(str(file), n, f"{name} stands in line {at} already"))
            continue
        good.append((n, row))
    return good, bad


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
    lines.check_head(content, name)
    header, rows = tables.separated(content, name)
    if missing := [column for column in columns if column not in header]:
        raise InputError(f"{name} lacks the column {', '.join(missing)}; it has {', '.join(header) or 'none'}{hint}")
    out = []
    for line, row in rows:
        if isinstance(row, str):  # a comma without quotes moves every cell behind it
            raise InputError(f"{name}:{line} is not a row of the table: {row}")
        out.append((line, {column: cell.strip() for column, cell in row.items()}))
    return out

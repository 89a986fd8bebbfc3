"""Tables of mixed columns as numbers for a classifier: types found, categories encoded, missing values filled.

Everything that is fitted (types, means, medians, categories, the bins of a numeric target) is fitted on the rows that
the caller names as training rows, and on no others.

Dimensions: N rows, D columns of numbers.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from alignment.errors import InputError, one_of, within
from data import fields, records
from data.pictures import image_sources, image_tables

MISSING = image_tables.NO_LABEL  # cells that say there is no value
MOST_CATEGORIES = 64  # of a column; one with more is a name or a number of the row, and is left out


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text, by column.

    Attributes:
        file: that was read.
        columns: cells of each column but the target, the group and the subset.
        target: cells of the target.
        groups: cells of the group column; empty without one.
        subsets: train, val or test of each row; empty without such a column.
        lines: of each row in the file.
        bad: rows set aside.
    """

    file: str
    columns: dict[str, list[str]]
    target: list[str]
    groups: list[str]
    subsets: list[str]
    lines: list[int]
    bad: tuple[records.BadRecord, ...]

    def __len__(self) -> int:
        return len(self.target)


def read(path: str, target: str, *, group: str = "", subset: str = "", leave_out: Sequence[str] = ()) -> Table:
    """A table with names, as `data.records` reads one.

    Args:
        target: name of the column to predict; rows without a value in it are set aside.
        group: name of the column of groups; "" has none.
        subset: name of the column that says train, val or test; "" has none.
        leave_out: columns that are not read.

    Raises:
        InputError: no such file or column, a subset that is none, no column to predict from.
    """
    named = [name for name in (target, group, subset) if name]
    rows, unread = records.read(path)
    names = list(dict.fromkeys(name for row in rows for name in row.value))  # a line of JSON may lack some
    cells = [(row, {name: _text(row, name) for name in names}) for row in rows]
    for name in (*named, *leave_out):
        one_of("column", name, names, hint=f"these are the columns of {path}")
    bad, good = list(unread), []
    for record, row in cells:
        if row[target].lower() in MISSING:
            bad.append(records.BadRecord(record.file, record.line, f"{target} has no value"))
        elif group and row[group].lower() in MISSING:
            bad.append(records.BadRecord(record.file, record.line, f"{group} has no value"))
        else:
            good.append((record, row))
    names = [name for name in names if name not in (*named, *leave_out)]
    if not names:
        raise InputError(f"{path} has no column to predict {target} from")
    if len(good) < 3:
        raise InputError(f"{path} has {len(good)} rows with a {target}; training, validation and test need some each")
    subsets = []
    for record, row in good if subset else ():
        word = row[subset].lower()
        word = image_sources.SAME_SPLIT.get(word, word)
        subsets.append(one_of(f"{record.file}:{record.line}: {subset}", word, image_sources.SPLITS))
    return Table(
        path,
        {name: [row[name] for _, row in good] for name in names},
        [row[target] for _, row in good],
        [row[group] for _, row in good] if group else [],
        subsets,
        [record.line for record, _ in good],
        tuple(bad),
    )


def _text(row: records.Record, name: str) -> str:
    try:
        return fields.name(row.value.get(name), name)
    except fields.Odd as e:
        raise InputError(f"{row.file}:{row.line}: {e}; leave the column out with data.leave_out") from None


@dataclasses.dataclass(frozen=True)
class Column:
    """How one column becomes numbers: a standardised number, perhaps with a flag of absence, or one flag a category."""

    name: str
    mean: float = 0.0
    deviation: float = 1.0
    median: float = 0.0
    has_flag: bool = False
    categories: tuple[str, ...] = ()

    def encode(self, cells: Sequence[str]) -> tuple[np.ndarray, int]:
        """Numbers [N, 1 or more], and how many cells hold something that training rows never had."""
        if self.categories:
            known_NK = np.array([[cell == category for category in self.categories] for cell in cells], np.float32)
            known_NK = known_NK.reshape(len(cells), len(self.categories))
            return known_NK, sum(not row.any() and not is_missing(cell) for row, cell in zip(known_NK, cells))
        values_N = np.array([number(cell) for cell in cells])
        absent_N = np.isnan(values_N)
        new = sum(bool(gone) and not is_missing(cell) for gone, cell in zip(absent_N, cells))
        scaled_N = (np.where(absent_N, self.median, values_N) - self.mean) / self.deviation
        parts = [scaled_N, absent_N] if self.has_flag else [scaled_N]
        return np.stack(parts, axis=1).astype(np.float32), new

    @property
    def names(self) -> list[str]:
        """Of its numbers."""
        if self.categories:
            return [f"{self.name}={category}" for category in self.categories]
        return [self.name, f"{self.name} is missing"] if self.has_flag else [self.name]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """All columns, fitted on training rows; `left_out` says why a column is not among them."""

    columns: tuple[Column, ...]
    left_out: dict[str, str]

    def encode(self, table: Table, rows: Sequence[int]) -> tuple[np.ndarray, int]:
        """Numbers [N,D], and how many cells hold something that training rows never had."""
        parts = [column.encode([table.columns[column.name][i] for i in rows]) for column in self.columns]
        return np.concatenate([numbers for numbers, _ in parts], axis=1), sum(new for _, new in parts)

    @property
    def names(self) -> list[str]:
        return [name for column in self.columns for name in column.names]


def fit(table: Table, rows: Sequence[int]) -> Encoder:
    """An encoder from the training rows alone.

    A column is a number where every value is one; its missing cells become the median, with a flag beside it. Other
    columns have a flag for each category. A column of one value, of numbers without a deviation to divide by, or of
    more categories than MOST_CATEGORIES, is left out.

    Raises:
        InputError: no column is left.
    """
    columns, left_out = [], {}
    for name, cells in table.columns.items():
        present = [cells[i] for i in rows if not is_missing(cells[i])]
        values = np.array([number(cell) for cell in present])
        if len(set(present)) < 2:
            left_out[name] = "training rows have one value at most"
        elif not np.isnan(values).any():
            with np.errstate(over="ignore", invalid="ignore"):
                deviation = float(values.std())
            # of one number that is written in two ways rounding may leave a deviation just above 0
            if len(np.unique(values)) < 2 or not 0 < deviation < math.inf:
                left_out[name] = f"the numbers of training rows deviate by {deviation:.3g}, which cannot be divided by"
                continue
            has_flag = len(present) < len(rows)
            columns.append(Column(name, float(values.mean()), deviation, float(np.median(values)), has_flag))
        elif len(set(present)) > MOST_CATEGORIES:
            left_out[name] = f"{len(set(present))} categories, more than {MOST_CATEGORIES}"
        else:
            columns.append(Column(name, categories=tuple(sorted(set(present)))))
    if not columns:
        raise InputError(f"{table.file} has no column to learn from: {left_out}")
    return Encoder(tuple(columns), left_out)


def classes(table: Table, train_rows: Sequence[int], bins: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers [N] of the target, and the classes' names.

    Args:
        bins: of a numeric target, at the quantiles of the training rows; None takes its values as classes.

    Raises:
        InputError: a target of too many or too few values, one that is not a number with `bins`.
    """
    if bins is None:
        names = tuple(sorted(set(table.target)))
        if len(names) > MOST_CATEGORIES:
            raise InputError(
                f"{table.file}: the target has {len(names)} values, more than {MOST_CATEGORIES}; regression targets "
                "are not supported, bin them with --config.data.bins=4"
            )
        if len(names) < 2:
            raise InputError(f"{table.file}: the target has one value, {names[0]!r}; at least two classes are needed")
        place = {name: i for i, name in enumerate(names)}
        return np.array([place[cell] for cell in table.target], np.int32), names
    within("[2, inf)", bins=bins)
    values_N = np.array([number(cell) for cell in table.target])
    if np.isnan(values_N).any():
        row = int(np.argmax(np.isnan(values_N)))
        raise InputError(f"{table.file}:{table.lines[row]}: target {table.target[row]!r} is not a number to bin")
    edges = np.quantile(values_N[np.asarray(train_rows)], np.arange(1, bins) / bins)
    if len(np.unique(edges)) < len(edges):
        raise InputError(f"bins={bins}: the target's quantiles {edges.tolist()} are not distinct; take fewer bins")
    cuts = [f"{edge:.6g}" for edge in edges]
    names = (f"below {cuts[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(cuts)), f"from {cuts[-1]}")
    return np.searchsorted(edges, values_N, side="right").astype(np.int32), names


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def number(cell: str) -> float:
    """A finite number, or NaN."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan

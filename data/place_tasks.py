"""Tasks as a folder: `tasks.csv` and a file for each task, so that others can cut, split and hold out as they like.

`tasks.csv` has `id`, `west`, `south`, `east`, `north`, `n`, `n_locations` and `fold` (meta_train, meta_val, meta_test).
`tasks/<id>.npz` has `x` [N,...], `y` [N] (int for classes, float for numbers), `loc` int32 [N], the number of a
sample's place, and `split` int8 [N], 0 for support and 1 for query; `xy` [N,2] and `row` int64 [N], the sample's number
where it came from, may be there too.
"""

import csv
import io
import math
import pathlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment import errors, files
from alignment.errors import InputError
from data import loader, place_batches, places
from data.places import Place, Region, Samples

TABLE = "tasks.csv"
MOST_PLACES = 10_000  # of a task
KINDS = {"biuf": "numbers", "iu": "whole numbers"}
COLUMNS = ("id", "west", "south", "east", "north", "n", "n_locations", "fold")


def is_tasks(folder: pathlib.Path) -> bool:
    return (folder / TABLE).is_file()


def write(folder: pathlib.Path, samples: Samples, regions: Sequence[Region], *, support: int, seed: int) -> None:
    """Leave every region with the split into support and query samples that a finite pass makes."""
    lines = []
    for number, region in enumerate(regions):
        rng = np.random.default_rng((seed, number))
        parts: list[tuple[np.ndarray, int, int]] = []
        for loc, place in enumerate(region.places):
            first, second = place_batches.split(place, rng, support, None)
            parts += [(first, loc, 0), (second, loc, 1)]
        index_N = np.concatenate([index for index, _, _ in parts])
        loc_N = np.concatenate([np.full(len(index), loc, np.int32) for index, loc, _ in parts])
        split_N = np.concatenate([np.full(len(index), part, np.int8) for index, _, part in parts])
        arrays = dict(x=samples.x[index_N], y=samples.y_N[index_N], loc=loc_N, split=split_N)
        arrays |= dict(xy=samples.xy_N2[index_N], row=samples.line_N[index_N].astype(np.int64))
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]  # numpy's stubs take a flag among the arrays
        files.write(folder / f"tasks/{region.id}.npz", lambda f, content=content: f.write(content.getvalue()))
        lines.append([region.id, *region.box, len(index_N), len(region.places), region.fold])
    files.write_csv(folder / TABLE, COLUMNS, lines)


def read(folder: pathlib.Path, *, support: int, least_places: int) -> tuple[Samples, list[Region], dict[str, int]]:
    """The samples of all tasks, the tasks, and counts of what was left out.

    Args:
        support: samples that a place needs as support; it needs one for query.

    Raises:
        InputError: a file or column that is missing, a fold without a task, tiles for testing that lie on others, a
            row that is in two sets, features that are not finite.
    """
    with open(folder / TABLE, newline="", encoding="utf-8-sig") as f:
        reader = csv.DictReader(f)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise InputError(f"{folder / TABLE} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
        lines = list(reader)
    if not lines:
        raise InputError(f"{folder / TABLE} names no task")
    if twice := [name for name, num in Counter(line["id"] for line in lines).items() if num > 1]:
        raise InputError(f"{folder / TABLE} names task {twice[0]!r} twice")
    parts: dict[str, list[np.ndarray]] = {}
    regions: list[Region] = []
    counts = {"tasks": len(lines), "tasks with too few places": 0, "places with too few samples": 0}
    counts |= {"samples left out": 0}
    num = 0
    for line in lines:
        box = _box(folder, line)
        arrays = _task(folder, line["id"], box)
        errors.one_of(f"{folder / TABLE}: fold", line["fold"], places.FOLDS)
        complete = []
        for loc in np.unique(arrays["loc"]).tolist():
            inside = np.flatnonzero(arrays["loc"] == loc)
            is_query = arrays["split"][inside] == 1
            if (~is_query).sum() < support or not is_query.any():
                counts["places with too few samples"] += 1
                counts["samples left out"] += len(inside)
                continue
            complete.append(Place(num + inside, _place_box(arrays, loc, box), is_query))
        if len(complete) < least_places:
            print(f"warning: task {line['id']} has {len(complete)} places, fewer than {least_places}; it is skipped")
            counts["tasks with too few places"] += 1
            counts["samples left out"] += sum(len(place.index_N) for place in complete)
        else:
            regions.append(Region(line["id"], box, tuple(complete), line["fold"]))
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
        num += len(arrays["y"])
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    samples = _samples(folder, whole, lines)
    places.check_folds(regions)
    places.check_finite(samples, regions)
    _check_rows(whole, regions)
    return samples, regions, counts | {"samples": len(samples.y_N)}


def _box(folder: pathlib.Path, line: dict[str, Any]) -> places.Box:
    try:
        west, south, east, north = (float(line[side]) for side in COLUMNS[1:5])
    except (TypeError, ValueError):  # also of a line that is cut short
        west = south = east = north = math.nan
    if not (west < east and south < north):
        raise InputError(f"{folder / TABLE}: task {line['id']!r} needs numbers, west below east and south below north")
    return west, south, east, north


def _task(folder: pathlib.Path, name: str, box: Any) -> dict[str, np.ndarray]:
    path = folder / f"tasks/{name}.npz"
    if not path.is_file() or path.parent != folder / "tasks":
        raise InputError(f"{folder / TABLE} names task {name!r}, and {path} is not there")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, TypeError, ValueError) as e:
        raise InputError(f"{path} is not a readable .npz: {e}") from e
    if missing := [key for key in ("x", "y", "loc", "split") if key not in arrays]:
        raise InputError(f"{path} has no {', '.join(missing)}; it needs x, y, loc and split")
    num = arrays["y"].size and len(np.atleast_1d(arrays["y"]))
    if not num or any(arrays[key].ndim == 0 or len(arrays[key]) != num for key in arrays):
        raise InputError(f"{path}: all arrays must have {num or 'some'} rows, as y has")
    for key, kinds in {"x": "biuf", "y": "biuf", "loc": "iu"}.items():
        if arrays[key].dtype.kind not in kinds:
            raise InputError(f"{path}: {key} is of type {arrays[key].dtype}; {KINDS[kinds]} are needed")
    if not 0 <= arrays["loc"].min() <= arrays["loc"].max() < MOST_PLACES:
        raise InputError(
            f"{path}: loc must be from 0 to {MOST_PLACES - 1}; it holds {arrays['loc'].min()} to {arrays['loc'].max()}"
        )
    loc = arrays["loc"].astype(np.int64)
    if not np.isin(arrays["split"], (0, 1)).all():
        raise InputError(f"{path}: split must hold 0 for support and 1 for query")
    cells = np.array([_place_box(arrays, k, box) for k in range(int(loc.max()) + 1)])
    centre = (cells[:, :2] + cells[:, 2:])[loc] / 2
    names = {"x": arrays["x"].astype(np.float32), "y": arrays["y"], "loc": loc, "split": arrays["split"]}
    return names | {"xy": arrays.get("xy", centre), "row": arrays.get("row", np.full(num, -1))}


def _place_box(arrays: dict[str, np.ndarray], loc: int, box: Any) -> Any:
    """Where a place lies in its task's box: a cell, numbered row by row from the south-west."""
    side = math.ceil(math.sqrt(int(arrays["loc"].max()) + 1))
    west, south, east, north = box
    column, row = loc % side, loc // side
    width, height = (east - west) / side, (north - south) / side
    return west + column * width, south + row * height, west + (column + 1) * width, south + (row + 1) * height


def _samples(folder: pathlib.Path, whole: dict[str, np.ndarray], lines: Sequence[dict[str, Any]]) -> Samples:
    is_classes = np.issubdtype(whole["y"].dtype, np.integer)
    y_N = whole["y"].astype(np.int32 if is_classes else np.float32)
    class_names: tuple[str, ...] = ()
    if is_classes:
        if y_N.min() < 0 or whole["y"].max() >= len(y_N):
            raise InputError(f"{folder}: y holds {whole['y'].min()} to {whole['y'].max()}; classes are numbered from 0")
        class_names = tuple(f"class {k}" for k in range(max(int(y_N.max()) + 1, 2)))
    features = tuple(f"feature {i}" for i in range(whole["x"].shape[-1]))
    # The lines have the folds: a step that was kept on validation tasks is not taken up once these are test tasks.
    digest = loader.digest(whole["x"], y_N, whole["loc"], whole["split"], texts=(repr(lines),))
    line_N = np.where(whole["row"] >= 0, whole["row"], np.arange(len(y_N)))
    return Samples(whole["x"], y_N, whole["xy"], line_N, str(folder), False, features, class_names, digest=digest)


def _check_rows(whole: dict[str, np.ndarray], regions: Sequence[Region]) -> None:
    """Refuse a row, by its number where it came from, that is in two sets: its answer would be known beforehand."""
    where: dict[int, str] = {}
    for region in regions:
        for place in region.places:
            assert place.is_query_N is not None
            for index, is_query in zip(place.index_N.tolist(), place.is_query_N.tolist()):
                row = int(whole["row"][index])
                what = f"the {'query' if is_query else 'support'} samples of task {region.id}"
                if row >= 0 and where.setdefault(row, what) != what:
                    raise InputError(f"row {row} is among {where[row]} and among {what}; it may be in one set only")

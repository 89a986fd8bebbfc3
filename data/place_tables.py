"""Tables with coordinates to samples with places: CSV, JSON, parquet and GeoParquet, in degrees or on a plane.

Dimensions: N samples, D features, K words of a column.
"""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment import errors
from alignment.errors import InputError
from data import fields, loader, place_arrays, records, tables
from data.places import CLASSIFICATION, COUNTS, KINDS, MOST_CLASSES, REGRESSION, Samples

DEGREES, PROJECTED = "degrees", "projected"
NAMES_OF_DEGREES = (("longitude", "lon", "lng", "long", "start_lng"), ("latitude", "lat", "start_lat"))
NAMES_OF_PLANES = (("easting", "northing"), ("x", "y"), ("col", "row"), ("column", "row"))
MOST_CATEGORIES = 50  # of a column of words that becomes features


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table are read; None or () takes the usual ones, or for features all that remain."""

    target: str | None = None
    longitude: str | None = None  # or the x of a plane
    latitude: str | None = None  # or its y
    outcome: str | None = None  # 0 or 1: whether somebody's model was right
    features: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def read(
    path: str, columns: Columns, *, kind: str | None = None, coordinates: str | None = None, bad_records_path: str = ""
) -> Samples:
    """The samples of a table, a grid, or a folder of arrays.

    Args:
        kind: `classification` or `regression`; None: words, or at most ten whole numbers, are classes. `counts` reads
            the positions alone, see `places.count_cells`.
        coordinates: `degrees` or `projected`; None takes what the names of the columns or the file say.
        bad_records_path: where lines that cannot be read are listed; "" lists none.

    Raises:
        InputError: columns that are missing, coordinates out of range or swapped, values that are not finite.
    """
    folder = pathlib.Path(path).expanduser()
    if kind is not None:
        errors.one_of("data.kind", kind, KINDS)
    if place_arrays.is_arrays(folder):
        if kind not in (None, CLASSIFICATION):
            raise InputError(f"data.kind={kind}: {path} holds classes, one-hot; leave it out")
        return place_arrays.read_arrays(folder)
    if place_arrays.is_grid(folder):
        return place_arrays.read_grid(folder, kind)
    return read_table(path, columns, kind=kind, coordinates=coordinates, bad_records_path=bad_records_path)


# Tables


def read_table(
    path: str, columns: Columns, *, kind: str | None, coordinates: str | None, bad_records_path: str = ""
) -> Samples:
    """See `read`; rows without a coordinate, a target or a feature are dropped and counted."""
    counts: dict[str, int] = {}
    rows = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)
    names = list(dict.fromkeys(name for row in rows for name in row.value))
    geometry = _geometry(path)
    lon, lat, kind_found = _axes(names, columns, geometry)
    if coordinates is not None and geometry is not None and lon == lat and coordinates != kind_found:
        raise InputError(
            f"{path}: its geometry is {kind_found} and data.coordinates={coordinates!r}; leave data.coordinates out"
        )
    axes = coordinates or kind_found
    needs_y = kind != COUNTS and columns.outcome is None
    if needs_y and columns.target is None:
        raise InputError(
            f"{path}: data.columns.target is not set; name the column that is predicted, one of {', '.join(names)}"
        )
    for key in ("target", "outcome"):
        _check_column(path, f"data.columns.{key}", getattr(columns, key), names)
    features = _feature_names(path, names, columns, (lon, lat), kind)
    wanted = [name for name in (columns.target, columns.outcome, *features) if name]
    rows, positions = _positioned(rows, lon, lat, counts)
    complete = [i for i, row in enumerate(rows) if not _lacks(row, wanted, counts)]
    rows, xy_N2 = [rows[i] for i in complete], np.array([positions[i] for i in complete], np.float64).reshape(-1, 2)
    if not rows:
        raise InputError(f"{path} leaves no sample; counts: {counts}")
    _check_positions(rows, xy_N2, (lon, lat), is_degrees=axes == DEGREES)
    x_ND, encoded = _encode(rows, features)
    y_N, class_names = np.zeros(len(rows), np.float32), ()
    if columns.target is not None and kind != COUNTS:
        y_N, class_names = _target(rows, columns.target, kind)
    outcome_N = None if columns.outcome is None else _outcome(rows, columns.outcome)
    files_read = {row.file for row in rows}
    source = files_read.pop() if len(files_read) == 1 else str(path)
    line_N = np.array([row.line for row in rows])
    arrays = [x_ND, y_N, xy_N2, *([] if outcome_N is None else [outcome_N])]
    digest = loader.digest(*arrays, texts=(*encoded, *class_names))
    counts["samples"] = len(rows)
    return Samples(x_ND, y_N, xy_N2, line_N, source, axes == DEGREES, encoded, class_names, outcome_N, counts, digest)


def _check_column(path: str, key: str, name: str | None, names: Sequence[str]) -> None:
    if name is not None:
        errors.one_of(key, name, names, hint=f"they are the columns of {path}")


def _axes(names: Sequence[str], columns: Columns, geometry: "Geometry | None") -> tuple[str, str, str]:
    """The names of both coordinates, and what they are; a geometry's name stands for both."""
    if (columns.longitude is None) != (columns.latitude is None):
        raise InputError(
            f"data.columns.longitude={columns.longitude} and data.columns.latitude={columns.latitude}: set both or none"
        )
    lower = {name.lower(): name for name in reversed(names)}
    if columns.longitude is not None and columns.latitude is not None:
        for key in ("longitude", "latitude"):
            errors.one_of(f"data.columns.{key}", getattr(columns, key), names)
        is_plane = (columns.longitude.lower(), columns.latitude.lower()) in NAMES_OF_PLANES
        return columns.longitude, columns.latitude, PROJECTED if is_plane else DEGREES
    if geometry is not None and geometry.column in names:
        return geometry.column, geometry.column, PROJECTED if geometry.is_projected else DEGREES
    pair = [next((lower[name] for name in known if name in lower), None) for known in NAMES_OF_DEGREES]
    if pair[0] is not None and pair[1] is not None:
        return pair[0], pair[1], DEGREES
    for east, north in NAMES_OF_PLANES:
        if east in lower and north in lower:
            return lower[east], lower[north], PROJECTED
    raise InputError(
        f"no coordinates among the columns {', '.join(names)}: name them with data.columns.longitude and "
        "data.columns.latitude (and data.coordinates=projected where they are not degrees)"
    )


def _feature_names(
    path: str, names: Sequence[str], columns: Columns, axes: tuple[str, str], kind: str | None
) -> tuple[str, ...]:
    """The columns that are features: those that are named, else all that nothing else reads."""
    for key in ("features", "ignore"):
        for name in getattr(columns, key):
            errors.one_of(f"data.columns.{key}", name, names, hint=f"they are the columns of {path}")
    if columns.features:
        for key in ("target", "outcome"):
            if (name := getattr(columns, key)) in columns.features:
                raise InputError(
                    f"data.columns.features names {name}, which is data.columns.{key}: the answer would be a feature; "
                    "leave it out"
                )
        if columns.ignore:
            raise InputError("data.columns.ignore is read where data.columns.features is empty; set one of both")
        return tuple(columns.features)
    if kind == COUNTS or (columns.outcome is not None and columns.target is None):
        return ()
    others = {*axes, columns.target, columns.outcome, *columns.ignore}
    features = tuple(name for name in names if name not in others)
    if not features:
        raise InputError(
            f"{path} has no feature beside its coordinates and {columns.target}; predict counts per cell instead, with "
            "data.kind=counts"
        )
    return features


def _positioned(
    rows: Sequence[records.Record], lon: str, lat: str, counts: dict[str, int]
) -> tuple[list[records.Record], list[tuple[float, float]]]:
    """The rows that have both coordinates, with them."""
    positioned, positions = [], []
    for row in rows:
        if lon == lat:
            point = _point(row, lon)
        else:
            values = _number(row, lon), _number(row, lat)
            point = None if None in values else values
        if point is None:
            counts["rows without coordinates"] = counts.get("rows without coordinates", 0) + 1
        else:
            positioned.append(row)
            positions.append(point)
    return positioned, positions


def _lacks(row: records.Record, names: Sequence[str], counts: dict[str, int]) -> bool:
    """Whether a row has no value in one of these columns; the first such column is counted."""
    for name in names:
        if fields.is_empty(row.value.get(name)):
            counts[f"rows without {name}"] = counts.get(f"rows without {name}", 0) + 1
            return True
    return False


def _number(row: records.Record, name: str) -> float | None:
    """A finite number of a row; None for an empty field."""
    value = row.value.get(name)
    if fields.is_empty(value):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of JSON beyond 1.8e308
        number = math.inf
    except (TypeError, ValueError):
        raise InputError(f"{row.file}:{row.line}: {name}={value!r} is not a number") from None
    if not math.isfinite(number):
        raise InputError(f"{row.file}:{row.line}: {name}={value!r} is not finite; mend the row, or leave it out")
    return number


def _check_positions(
    rows: Sequence[records.Record], xy_N2: np.ndarray, names: tuple[str, str], *, is_degrees: bool
) -> None:
    """Refuse degrees that are out of range, and say so where the axes look swapped."""
    if not is_degrees:
        return
    lon, lat = names
    is_bad_N = (np.abs(xy_N2[:, 0]) > 180) | (np.abs(xy_N2[:, 1]) > 90)
    if not is_bad_N.any():
        return
    first = int(np.argmax(is_bad_N))
    where = f"{rows[first].file}:{rows[first].line}: longitude {xy_N2[first, 0]:g}, latitude {xy_N2[first, 1]:g}"
    if np.abs(xy_N2[:, 0]).max() <= 90 and np.abs(xy_N2[:, 1]).max() <= 180:
        raise InputError(
            f"{where}: the axes look swapped, since latitudes end at 90; set data.columns.longitude={lat} and "
            f"data.columns.latitude={lon}"
        )
    raise InputError(
        f"{where} is not on the globe; mend the row, or set data.coordinates=projected where these are not degrees"
    )


def _encode(rows: Sequence[records.Record], features: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """[N,D] float32: columns of numbers as they are, columns of words as 0 and 1 for each word."""
    parts: list[np.ndarray] = []
    names: list[str] = []
    for name in features:
        values = [row.value[name] for row in rows]
        others = {str(value).strip() for value in values if not _is_number(value)}
        if not others or (others == {"NA"} and len(values) > 1):  # R's word for no value, which `_number` refuses
            parts.append(np.array([_number(row, name) for row in rows], np.float32)[:, None])
            names.append(name)
            continue
        cells = [_word(row, name) for row in rows]
        words = sorted(set(cells))
        if len(words) > MOST_CATEGORIES:
            raise InputError(
                f"column {name} has {len(words)} different words, such as {words[0]!r}, more than {MOST_CATEGORIES}; "
                "leave it out with data.columns.ignore, or name the features with data.columns.features"
            )
        place = {word: k for k, word in enumerate(words)}
        one_hot_NK = np.zeros((len(rows), len(words)), np.float32)
        one_hot_NK[np.arange(len(rows)), [place[cell] for cell in cells]] = 1
        parts.append(one_hot_NK)
        names += [f"{name}={word}" for word in words]
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(rows), 0), np.float32), tuple(names)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:
        return True  # a number still, which `_number` refuses by its line
    except (TypeError, ValueError):
        return False
    return True


def _word(row: records.Record, name: str) -> str:
    """A class or a category by its name; 1 and 1.0 are one."""
    try:
        return fields.name(row.value[name], name)
    except fields.Odd as e:
        raise InputError(f"{row.file}:{row.line}: {e}; leave the column out with data.columns.ignore") from None


def _target(rows: Sequence[records.Record], name: str, kind: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes with their names, or numbers and ()."""
    values = [row.value[name] for row in rows]
    # float() takes True as 1, but the class is named by its word.
    is_numbers = all(_is_number(value) and not isinstance(value, bool) for value in values)
    numbers = [_number(row, name) for row in rows] if is_numbers or kind == REGRESSION else []
    if kind is None:
        words = {_word(row, name) for row in rows}
        is_few = len(words) <= MOST_CLASSES and is_numbers and all(float(number).is_integer() for number in numbers)
        kind = CLASSIFICATION if is_few or not is_numbers else REGRESSION
    if kind == REGRESSION:
        return np.array(numbers, np.float32), ()
    cells = [_word(row, name) for row in rows]
    classes = sorted(set(cells), key=lambda word: (float(word) if is_numbers else 0.0, word))
    if not 2 <= len(classes) <= MOST_CATEGORIES:
        raise InputError(
            f"column {name} has {len(classes)} classes; 2 to {MOST_CATEGORIES} are possible. "
            "Numbers are predicted with data.kind=regression"
        )
    place = {word: k for k, word in enumerate(classes)}
    return np.array([place[cell] for cell in cells], np.int32), tuple(classes)


def _outcome(rows: Sequence[records.Record], name: str) -> np.ndarray:
    words = {"0": 0, "1": 1, "False": 0, "True": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}
    out = []
    for row in rows:
        word = _word(row, name)
        if word not in words:
            raise InputError(f"{row.file}:{row.line}: {name}={word!r}: an outcome is 0 or 1, whether a model was right")
        out.append(words[word])
    return np.array(out, np.int32)


# GeoParquet


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The primary column of a GeoParquet file."""

    column: str
    is_projected: bool


def _geometry(path: str) -> Geometry | None:
    """What the first file of a path says of its geometry; None where it is not GeoParquet."""
    if str(path).startswith("tfds:"):
        return None
    file = records.find(path)[0]
    if not file.endswith(".parquet"):
        return None
    metadata = tables.open_parquet(file).schema_arrow.metadata or {}
    if b"geo" not in metadata:
        return None
    content = json.loads(metadata[b"geo"])
    column = content.get("primary_column", "geometry")
    about = content.get("columns", {}).get(column, {})
    encoding = about.get("encoding", "WKB")
    if encoding not in ("WKB", "point"):
        raise InputError(f"{file}: geometry is encoded as {encoding}; WKB and point are read")
    crs = about.get("crs") or {}
    return Geometry(column, "Projected" in str(crs.get("type", "")) if isinstance(crs, dict) else False)


def _point(row: records.Record, name: str) -> tuple[float, float] | None:
    """The point of a geometry: WKB bytes, or x and y."""
    value = row.value.get(name)
    if value is None:
        return None
    if isinstance(value, dict):
        x, y = value.get("x"), value.get("y")
        return None if x is None or y is None else (float(x), float(y))
    if not isinstance(value, bytes):
        raise InputError(f"{row.file}:{row.line}: {name} is not WKB: a {type(value).__name__}; give bytes")
    order = "<" if value[:1] == b"\x01" else ">"
    try:
        (kind,) = struct.unpack_from(f"{order}I", value, 1)
        start = 9 if kind & 0x20000000 else 5  # the extended form may hold an id of four bytes
        # Kinds of ISO count dimensions in thousands, those of the extended form in high bits.
        if (kind & 0x0FFFFFFF) % 1000 != 1:
            raise InputError(f"{row.file}:{row.line}: {name} is not a point; give points, such as centroids")
        x, y = struct.unpack_from(f"{order}dd", value, start)
    except struct.error as e:
        raise InputError(f"{row.file}:{row.line}: {name} is not WKB: {e}") from None
    return None if math.isnan(x) or math.isnan(y) else (x, y)  # an empty point is written as NaN

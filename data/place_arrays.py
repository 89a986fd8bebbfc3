"""Folders of arrays to samples with places: grids over time, and arrays with partitionings.

A folder with `X.npy` [N,T,R,C,F] and `Y.npy` [N,1,R,C] (and `mask.npy` [R,C]) is a grid over time, as HintNet keeps
accidents. A folder with `X_train.npy`, `y_train.npy` and `train_id.pickle` is that of Xie et al. 2022; its pickle is
read by its opcodes and never executed.

Dimensions: N samples or times, D features, T steps, R C rows and columns of a grid, F features of a cell, V cells.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from data import loader, pickled
from data.places import CLASSIFICATION, MOST_CLASSES, REGRESSION, Samples

ARRAYS, GRID = ("X_train.npy", "y_train.npy", "train_id.pickle"), ("X.npy", "Y.npy")


def is_grid(folder: pathlib.Path) -> bool:
    return all((folder / name).is_file() for name in GRID)


def is_arrays(folder: pathlib.Path) -> bool:
    return all((folder / name).is_file() for name in ARRAYS)


class GridView:
    """Rows [..., T, F] of a grid [N,T,R,C,F] on disk, read when they are asked for.

    Indexed by arrays of sample numbers, which count valid cells of time 0, then those of time 1, and so on.
    """

    def __init__(self, x_NTRCF: np.ndarray, row_V: np.ndarray, column_V: np.ndarray):
        self._x, self._row_V, self._column_V = x_NTRCF, row_V, column_V
        num_times, num_steps, _, _, num_features = x_NTRCF.shape
        self.shape = (num_times * len(row_V), num_steps, num_features)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        time, cell = np.divmod(np.asarray(index), len(self._row_V))
        # Index arrays on both sides of a slice put their own axes in front: [..., T, F].
        return np.asarray(self._x[time, :, self._row_V[cell], self._column_V[cell]], np.float32)


def read_grid(folder: pathlib.Path, kind: str | None) -> Samples:
    """A sample is a valid cell at a time; its position is the cell's, with row 0 in the north."""
    x, y = _load(folder / "X.npy", mmap_mode="r"), _load(folder / "Y.npy", mmap_mode="r")
    if x.ndim != 5 or y.shape != (len(x), 1, *x.shape[2:4]):
        raise InputError(
            f"{folder}: X.npy {list(x.shape)} and Y.npy {list(y.shape)} must be [N,T,R,C,F] and [N,1,R,C] alike"
        )
    mask_RC = np.ones(x.shape[2:4], bool)
    if (folder / "mask.npy").is_file():
        mask_RC = _load(folder / "mask.npy")
        if mask_RC.shape != x.shape[2:4] or not np.isin(mask_RC, (0, 1)).all() or not mask_RC.any():
            raise InputError(
                f"{folder}/mask.npy {list(mask_RC.shape)} must hold 0 or 1 for each of {list(x.shape[2:4])}, the "
                "grid's cells, and a 1 somewhere"
            )
        mask_RC = mask_RC.astype(bool)
    row_V, column_V = np.nonzero(mask_RC)
    y_N = np.asarray(y[:, 0])[:, row_V, column_V].reshape(-1)
    if not np.isfinite(y_N).all():
        time, cell = divmod(int(np.argmin(np.isfinite(y_N))), len(row_V))
        raise InputError(f"{folder}/Y.npy is not finite at time {time}, row {row_V[cell]}, column {column_V[cell]}")
    values = np.unique(y_N)
    is_classes = kind != REGRESSION and len(values) <= MOST_CLASSES and bool((values == np.round(values)).all())
    if kind == CLASSIFICATION and not is_classes:
        raise InputError(f"{folder}/Y.npy has {len(values)} different values; classes are at most {MOST_CLASSES}")
    class_names = tuple(f"{value:g}" for value in values) if is_classes else ()
    y_N = np.searchsorted(values, y_N).astype(np.int32) if is_classes else y_N.astype(np.float32)
    xy_V2 = np.stack([column_V + 0.5, x.shape[2] - row_V - 0.5], axis=-1)
    num = len(x) * len(row_V)
    features = tuple(f"feature {i}" for i in range(x.shape[-1]))
    counts = {"times": len(x), "valid cells": len(row_V), "cells outside the mask": int((~mask_RC).sum())}
    counts["samples"] = num
    digest = loader.digest_files([folder / name for name in GRID]) + loader.digest(mask_RC)
    view = GridView(x, row_V, column_V)
    xy_N2, line_N = np.tile(xy_V2, (len(x), 1)), np.arange(num)
    return Samples(view, y_N, xy_N2, line_N, str(folder), False, features, class_names, None, counts, digest)


def _load(path: pathlib.Path, **options: Any) -> np.ndarray:
    """An array of numbers of a file; one of objects would have to be unpickled and is refused."""
    try:
        array = np.load(path, allow_pickle=False, **options)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} is not an array that can be read: {e}. Write it again with numpy.save") from e
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":  # numpy.load opens an .npz of any name
        raise InputError(f"{path} is not an array of numbers. Write it again with numpy.save")
    return array


# Arrays with partitionings


def read_arrays(folder: pathlib.Path) -> Samples:
    """The ancestor's arrays: features [N,D], classes one-hot [N,C], and for each partitioning its lists of samples.

    The arrays hold no positions. Where a sample lies follows from all its partitionings together: it is the middle of
    what the rows, and the columns, of all of them have in common, on a square of side 1.
    """
    x_ND = _load(folder / ARRAYS[0]).astype(np.float32)
    one_hot_NC = _load(folder / ARRAYS[1])
    if x_ND.ndim != 2 or one_hot_NC.ndim != 2 or len(x_ND) != len(one_hot_NC):
        raise InputError(
            f"{folder}: X_train.npy {list(x_ND.shape)} and y_train.npy {list(one_hot_NC.shape)} must be [N,D] and [N,C]"
        )
    if not (np.isin(one_hot_NC, (0, 1)).all() and (one_hot_NC.sum(1) == 1).all()):
        raise InputError(f"{folder}/y_train.npy must hold a single 1 a row, the sample's class")
    partitionings = pickled.read_pickle(folder / ARRAYS[2])
    xy_N2 = positions(partitionings, len(x_ND), where=str(folder / ARRAYS[2]))
    y_N = one_hot_NC.argmax(1).astype(np.int32)
    class_names = tuple(f"class {k}" for k in range(one_hot_NC.shape[1]))
    features = tuple(f"feature {i}" for i in range(x_ND.shape[1]))
    digest = loader.digest(x_ND, y_N, xy_N2)
    counts = {"samples": len(x_ND), "partitionings": len(partitionings)}
    line_N = np.arange(len(x_ND))
    return Samples(x_ND, y_N, xy_N2, line_N, str(folder), False, features, class_names, None, counts, digest)


def positions(partitionings: Any, num: int, *, where: str = "the partitionings") -> np.ndarray:
    """The middle of what a sample's parts have in common, [N,2] in a square of side 1.

    Args:
        partitionings: {(r, c): r * c lists of sample numbers, row by row from the north-west}.
        num: N.

    Raises:
        InputError: another shape of content, a sample that is missing or twice, or parts that have nothing in common.
    """
    low_N2, high_N2 = np.zeros((num, 2)), np.ones((num, 2))
    for (rows, columns), parts in _partitionings(partitionings, where):
        if len(parts) != rows * columns:
            raise InputError(f"{where}: partitioning {rows} x {columns} has {len(parts)} parts, not {rows * columns}")
        cell_N = np.full(num, -1)
        for cell, part in enumerate(parts):
            index = np.asarray(part).astype(np.int64).ravel()
            if index.size and not 0 <= index.min() <= index.max() < num:
                raise InputError(f"{where}: partitioning {rows} x {columns} names samples beyond 0 to {num - 1}")
            cell_N[index] = cell
        if sum(np.size(part) for part in parts) != num or (cell_N < 0).any():
            raise InputError(f"{where}: partitioning {rows} x {columns} does not hold each of {num} samples once")
        row_N, column_N = np.divmod(cell_N, columns)
        for axis, (place_N, parts_of) in enumerate(((column_N, columns), (rows - 1 - row_N, rows))):
            low_N2[:, axis] = np.maximum(low_N2[:, axis], place_N / parts_of)
            high_N2[:, axis] = np.minimum(high_N2[:, axis], (place_N + 1) / parts_of)
    if (low_N2 >= high_N2 - 1e-9).any():
        bad = int(np.argmax((low_N2 >= high_N2 - 1e-9).any(1)))
        raise InputError(f"{where}: the parts of sample {bad} have nothing in common; they are not of even sides")
    return (low_N2 + high_N2) / 2


def _partitionings(content: Any, where: str) -> Iterator[tuple[tuple[int, int], Sequence[Any]]]:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{where} must be a dict {{(rows, columns): lists of sample numbers}}")
    for key, parts in content.items():
        if not (isinstance(key, tuple) and len(key) == 2 and isinstance(parts, (list, tuple))):
            raise InputError(f"{where}: {key!r} must be (rows, columns) with a list of parts")
        yield (int(key[0]), int(key[1])), parts

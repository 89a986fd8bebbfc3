"""Records of tensorflow-datasets, without TensorFlow.

A source is a set of ArrayRecord files, whose records are read by number in any order. Text comes as `str`, numbers as
Python numbers, sequences of one dimension as lists, pictures as they are stored.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alignment.errors import InputError

# Packages whose builders tfds finds only after their module was imported.
OLD_PACKAGES = ("text", "question_answering", "summarization", "translate", "image_classification")
OWN = {"mame": "data.pictures.mame_builder"}  # our own builders, and the module of each


class Source:
    """Records by number, as `plain` converts them; Grain takes it as a data source."""

    def __init__(
        self, records: Any, name: str, features: Mapping[str, Any] | None = None, splits: tuple[str, ...] = ()
    ):
        self._records = records
        self._name = name
        self._features = features or {}
        self.splits = splits

    def names(self, feature: str) -> tuple[str, ...] | None:
        """Class names of a feature that holds class numbers, in their order; None for other features."""
        return tuple(getattr(self._features.get(feature), "names", None) or ()) or None

    def shape(self, feature: str) -> tuple[int | None, ...] | None:
        """The shape that the builder declares, with None for a side that differs between records."""
        return getattr(self._features.get(feature), "shape", None)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        return plain(self._records[int(i)])

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Source({self._name})"


def open_source(
    name: str, split: str = "train", *, data_dir: str = "", download: bool = True, pictures_as_bytes: bool = False
) -> Source:
    """A split of a tensorflow-datasets builder.

    Args:
        name: as tfds writes it: `builder`, `builder/config`, `builder/config:version`; or a folder that holds a
            prepared one (`features.json` and `dataset_info.json`).
        split: such as `train` or `train[:10%]`.
        data_dir: where prepared data lie or go; '' is tfds' own default.
        download: whether data that are not there may be fetched and prepared.
        pictures_as_bytes: pictures whose shape differs between records stay encoded, as the builder stored them.

    Raises:
        InputError: tensorflow-datasets is not installed or fails; the message has its first line, and the splits.
    """
    tfds = tensorflow_datasets()
    try:
        builder = _builder(tfds, name, data_dir)
        if download and not os.path.isdir(name):
            builder.download_and_prepare(file_format="array_record")
        features = dict(builder.info.features)
        encoded = [k for k, f in features.items() if isinstance(f, tfds.features.Image) and None in f.shape[:2]]
        decoders = {k: tfds.decode.SkipDecoding() for k in encoded} if pictures_as_bytes and encoded else None
        source = builder.as_data_source(split=split, decoders=decoders)
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as e:  # tfds raises many kinds: unknown names, splits, formats, network
        splits = ", ".join(_splits(locals().get("builder")))
        hint = f"; its splits: {splits}" if splits else ""
        raise InputError(f"tfds:{name}, split {split!r}: {type(e).__name__}: {_first_line(e)}{hint}") from e
    return Source(source, f"{name}, {split}", features, tuple(_splits(builder)))


def plain(value: Any) -> Any:
    """A record in Python's types: bytes in UTF-8 become `str`, arrays and sequences lists, numpy scalars numbers.

    Pictures (arrays of three dimensions, PIL images, encoded bytes that are not UTF-8) stay as they are.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist()) if value.ndim < 2 else value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def tensorflow_datasets() -> Any:
    """The package, with its imports of TensorFlow switched off; importing it takes seconds."""
    os.environ.setdefault("TFDS_DISABLE_TENSORFLOW", "1")
    try:
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise InputError("tfds: sources need tensorflow-datasets: pip install tensorflow-datasets array_record") from e
    return tfds


def _builder(tfds: Any, name: str, data_dir: str) -> Any:
    if os.path.isdir(name):
        return tfds.builder_from_directory(name)
    options = {"data_dir": data_dir} if data_dir else {}
    try:
        return tfds.builder(name, file_format="array_record", **options)
    except tfds.core.registered.DatasetNotFoundError:
        own = [OWN[name.partition("/")[0]]] if name.partition("/")[0] in OWN else []
        for module in own or [f"tensorflow_datasets.{package}" for package in OLD_PACKAGES]:
            with contextlib.suppress(ImportError):  # builders register when their module is imported
                importlib.import_module(module)
        return tfds.builder(name, file_format="array_record", **options)


def _splits(builder: Any) -> list[str]:
    try:
        return sorted(builder.info.splits)
    except Exception:  # the splits only serve a message, which must not fail for them
        return []


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[0][:300]

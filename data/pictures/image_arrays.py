"""Labelled pictures from arrays in a file and from tensorflow-datasets."""

import dataclasses
import functools
import pathlib
import zipfile

import numpy as np
import xxhash

from alignment.errors import InputError
from data import records
from data.pictures import image_files, image_sources
from data.pictures.image_sources import Images

NPZ_NAMES = (("images", "i", "i_test", "image", "x", "data"), ("labels", "l", "l_test", "label", "y", "targets"))


@functools.lru_cache(maxsize=4)
def _arrays(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels; of one split where the file has splits as MedMNIST's have, with `split` "" of all."""
    try:
        with np.load(path, allow_pickle=False) as stored:  # pickles in a file of unknown origin may run code
            by_name = {name.lower(): name for name in stored.files}
            known = [(f"{split}_images",), (f"{split}_labels",)] if split else NPZ_NAMES
            images, labels = (next((by_name[n] for n in names if n in by_name), None) for names in known)
            if images is None or labels is None:
                raise InputError(f"npz:{path} needs arrays images and labels; it has {', '.join(stored.files)}")
            return stored[images], stored[labels]
    except FileNotFoundError as e:
        raise InputError(f"npz:{path} is not there") from e
    # TypeError: a .npy of that name opens as an array, which has no arrays by name
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"npz:{path} is not a readable .npz file of plain arrays: {e}") from e


def _has_splits(path: str) -> bool:
    """Whether the file names its arrays train_images and so on; one that cannot be read has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "train_images.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def npz(path: str, *, split: str, seed: int = 0) -> Images:
    """Arrays `images` uint8 [N, Y, X] or [N, Y, X, 1 or 3] and `labels` [N]; split by class, from a seed.

    Other names are known too (NPZ_NAMES), such as `x` and `y`; so are MedMNIST's, `train_images` and `train_labels`
    [N, 1] and the same of val and test, whose splits stay. Its sets of several labels a picture are refused.
    """
    image_sources.check_split(split)
    has_splits = _has_splits(path)
    pictures, labels_N = _arrays(path, split if has_splits else "")
    labels_N = labels_N[:, 0] if labels_N.ndim == 2 and labels_N.shape[1] == 1 else labels_N
    if (
        pictures.dtype != np.uint8
        or pictures.ndim not in (3, 4)
        or (pictures.ndim == 4 and pictures.shape[3] not in (1, 3))
    ):
        raise InputError(
            f"npz:{path}: images are {pictures.dtype} {pictures.shape}; they must be uint8 [N, Y, X(, 1 or 3)]"
        )
    if (
        labels_N.shape != pictures.shape[:1]
        or not np.issubdtype(labels_N.dtype, np.integer)
        or labels_N.min(initial=0) < 0
    ):
        raise InputError(f"npz:{path}: labels are {labels_N.dtype} {labels_N.shape}; one number from 0 a picture")
    if has_splits:
        num_classes = 1 + max(int(_arrays(path, part)[1].max(initial=0)) for part in image_sources.SPLITS)
        rows = np.arange(len(labels_N))
    else:
        num_classes = int(labels_N.max()) + 1
        rows = np.flatnonzero(image_sources.parts(labels_N, seed) == split)
    groups = {"width": np.full(len(rows), pictures.shape[2]), "height": np.full(len(rows), pictures.shape[1])}
    return Images(
        f"npz:{path}",
        split,
        labels_N[rows].astype(np.int32),
        tuple(map(str, range(num_classes))),
        tuple(f"{pathlib.Path(path).name}[{i}]" for i in rows),
        ArrayRead(pictures[rows]),
        groups,
        {"pictures": len(rows)},
    )


def tfds(path: str, *, split: str, seed: int = 0, data_dir: str = "", download: bool = True) -> Images:
    """A tensorflow-datasets builder with `image` and `label`, such as mnist, cifar10 or mame; its scalars are groups.

    Of a builder without a split for val, val is a tenth of its train, by class.
    """
    from data import sources  # tensorflow-datasets takes seconds to import

    image_sources.check_split(split)
    options = dict(data_dir=data_dir, download=download, pictures_as_bytes=True)
    source = sources.open_source(path, "test" if split == "test" else "train", **options)
    val_name = next((name for name in source.splits if image_sources.SAME_SPLIT.get(name, name) == "val"), "")
    if split == "val" and val_name:
        source = sources.open_source(path, val_name, **options)
    first = source[0]
    if not {"image", "label"} <= set(first):
        raise InputError(f"tfds:{path} has {', '.join(first)}; pictures need image and label")
    names = [k for k, value in first.items() if isinstance(value, int | float | str)]
    sizes, bad, values = [], [], {name: [] for name in names}
    # one pass over all rows reads sizes and columns; the pictures stay bytes until they are read
    for i, row in enumerate(source):
        try:
            sizes.append(_size(row["image"], f"tfds:{path}/{source}[{i}]"))
        except InputError as e:
            sizes.append((0, 0))  # marks a row that is set aside
            bad.append(records.BadRecord(f"tfds:{path}", i + 1, str(e)))
        for name in names:
            values[name].append(row[name])
    sizes_N2 = np.array(sizes, np.int64)
    values = {name: np.array(column) for name, column in values.items()}
    is_mine_N = sizes_N2[:, 0] > 0
    if split != "test" and not val_name:
        part_N = image_sources.parts(values["label"], seed)  # train takes the parts for train and for test
        is_mine_N &= (part_N == "val") == (split == "val")
    rows = np.flatnonzero(is_mine_N)
    labels_N = values.pop("label")
    groups = {"width": sizes_N2[:, 0], "height": sizes_N2[:, 1]} | values
    return Images(
        f"tfds:{path}",
        split,
        labels_N[rows].astype(np.int32),
        source.names("label") or tuple(map(str, range(int(labels_N.max()) + 1))),
        tuple(f"{path}/{split}/{i}" for i in rows),
        _SourceRead(source, rows),
        {name: column[rows] for name, column in groups.items()},
        {"pictures": len(rows), "set aside": len(bad)},
        tuple(bad),
        sizes_N2=sizes_N2[rows],
    )


def _size(picture: bytes | np.ndarray, name: str) -> tuple[int, int]:
    if isinstance(picture, bytes):
        head = image_files.header(picture, name=name)
        return head.width, head.height
    return np.shape(picture)[1], np.shape(picture)[0]


@dataclasses.dataclass(frozen=True)
class _SourceRead:
    source: object
    rows: np.ndarray

    def __call__(self, i: int, at_least: image_sources.Size | None = None) -> np.ndarray:
        row = int(self.rows[i])
        picture = self.source[row]["image"]
        if isinstance(picture, bytes):
            return image_files.read(picture, at_least=at_least, name=f"{self.source}[{row}]")
        return colour(np.asarray(picture))

    def digest(self, i: int) -> int:
        picture = self.source[int(self.rows[i])]["image"]
        return xxhash.xxh3_64_intdigest(picture) if isinstance(picture, bytes) else _digest(np.asarray(picture))


@dataclasses.dataclass(frozen=True)
class ArrayRead:
    """Reads pictures of one array [N, Y, X] or [N, Y, X, C]."""

    pictures: np.ndarray

    def __call__(self, i: int, at_least: image_sources.Size | None = None) -> np.ndarray:
        return colour(self.pictures[i])

    def digest(self, i: int) -> int:
        return _digest(self.pictures[i])


def _digest(picture: np.ndarray) -> int:
    """Digest of the shape and the values."""
    content = xxhash.xxh3_64(repr((picture.dtype.str, picture.shape)))
    content.update(np.ascontiguousarray(picture).data)
    return content.intdigest()


def colour(picture: np.ndarray) -> np.ndarray:
    """A picture [Y, X], [Y, X, 1] or [Y, X, 3] as RGB."""
    picture = picture if picture.ndim == 3 else picture[..., None]
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))

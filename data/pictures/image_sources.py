"""Sources of labelled pictures: each is a function of a path and a split that returns `Images`."""

import dataclasses
import functools
import inspect
import pathlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from alignment.errors import InputError, one_of
from data import records
from data.pictures import image_files
from data.toys import museum as museums

Size = tuple[int, int]  # (width, height) in pixels
SPLITS = ("train", "val", "test")
PARTS = (0.7, 0.1, 0.2)  # of a source without splits: train, val, test
NPZ_NAMES = (("images", "i", "i_test", "image", "x", "data"), ("labels", "l", "l_test", "label", "y", "targets"))
SAME_SPLIT = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled pictures of one split, read by number.

    Attributes:
        source, split: the arguments that opened them.
        labels_N: int32 class numbers.
        class_names: in order of number.
        files: a name for each picture, for people.
        read_fn: `(i, at_least) -> uint8 [Y, X, 3]`; `at_least` (width, height) may spare decoding every pixel.
        groups: arrays [N] of other columns; always `width` and `height`, of the original where the file is a copy.
        counts: of pictures read, converted and set aside.
        bad: pictures set aside.
        sizes_N2: (width, height) of the files' pictures where these differ from the groups'.
    """

    source: str
    split: str
    labels_N: np.ndarray
    class_names: tuple[str, ...]
    files: Sequence[str]
    read_fn: Callable[..., np.ndarray]
    groups: dict[str, np.ndarray]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: tuple[records.BadRecord, ...] = ()
    sizes_N2: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def read(self, i: int, *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """Picture i as RGB, uint8 [Y, X, 3]."""
        return self.read_fn(int(i), at_least)

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) of the file's picture."""
        width, height = self._sizes()
        return int(width[i]), int(height[i])

    def num_bytes(self) -> int:
        """Bytes that all pictures take when they are decoded."""
        width, height = self._sizes()
        return int(3 * np.sum(np.asarray(width, np.int64) * height))

    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        if self.sizes_N2 is not None:
            return self.sizes_N2[:, 0], self.sizes_N2[:, 1]
        return self.groups["width"], self.groups["height"]


def call(kind: str, source_fn: Callable[..., Images], path: str, *, split: str, **options) -> Images:
    """Opens a source with its options.

    Raises:
        InputError: an option that the source does not take, with the nearest name.
    """
    known = [p.name for p in inspect.signature(source_fn).parameters.values() if p.kind == p.KEYWORD_ONLY]
    known.remove("split")
    for name in options:
        one_of("option", name, known, hint=f"these are the options of {kind} pictures")
    return source_fn(path, split=split, **options) if path else source_fn(split=split, **options)


def museum(
    *,
    split: str,
    seed: int = 0,
    label: str = "medium",
    per_class: int | None = None,
    planted_share: float = 0.3,
) -> Images:
    """The embedded synthetic museum; see `museum.Museum`."""
    house = museums.Museum(split=split, seed=seed, label=label, per_class=per_class, planted_share=planted_share)
    cards = house.catalogue()
    groups = {name: np.array([card[name] for card in cards]) for name in ("width", "height", "is_marked")}
    groups["museum"] = np.array([museums.MUSEUMS[card["museum"]] for card in cards])
    return Images(
        "museum",
        split,
        np.array([card["label"] for card in cards], np.int32),
        tuple(house.class_names),
        tuple(house.name(i) for i in range(len(house))),
        _MuseumRead(house),
        groups,
        {"pictures": len(house)},
    )


@dataclasses.dataclass(frozen=True)
class _MuseumRead:
    house: museums.Museum

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        return self.house.picture(i)


@dataclasses.dataclass(frozen=True)
class FileRead:
    """Reads files by number."""

    paths: tuple[str, ...]

    def content(self, i: int) -> bytes:
        return pathlib.Path(self.paths[i]).read_bytes()

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        return image_files.read(self.paths[i], at_least=at_least)


@dataclasses.dataclass(frozen=True)
class ZipRead:
    """Reads pictures out of an archive by number, none of them unpacked to disk."""

    archive: str
    entries: tuple[str, ...]

    def content(self, i: int) -> bytes:
        try:
            return opened_zip(self.archive).read(self.entries[i])
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as e:
            raise InputError(f"{self.archive}/{self.entries[i]} cannot be read: {e}; fetch the archive again") from e

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        return image_files.read(self.content(i), at_least=at_least, name=f"{self.archive}/{self.entries[i]}")


@functools.lru_cache(maxsize=4)
def opened_zip(path: str) -> zipfile.ZipFile:
    """An archive, opened once a process.

    Raises:
        InputError: for a file that is not a readable archive, and for an entry that points outside of the archive.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as e:
        raise InputError(f"{path} is not a readable zip archive: {e}; fetch it again") from e
    # Nothing is unpacked here, but names from the archive end in tables and messages, and a later tool may unpack it.
    for name in archive.namelist():
        place = pathlib.PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or (place.parts and ":" in place.parts[0]):
            raise InputError(f"{path} holds {name!r}, which points outside of it; do not trust this archive")
    return archive


@dataclasses.dataclass(frozen=True)
class ArrayRead:
    """Reads pictures of one array [N, Y, X] or [N, Y, X, C]."""

    pictures: np.ndarray

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        return colour(self.pictures[i])


def colour(picture: np.ndarray) -> np.ndarray:
    """A picture [Y, X], [Y, X, 1] or [Y, X, 3] as RGB."""
    picture = picture if picture.ndim == 3 else picture[..., None]
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def parts(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """A split for each picture of a source without any: of each class, the first PARTS of a seeded order."""
    # each class has a generator of its own, so that adding a class does not move pictures of others between splits
    split_N = np.zeros(len(labels_N), "<U5")
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        rows = np.random.default_rng([seed, int(label)]).permutation(rows)
        num_val, num_test = (round(part * len(rows)) for part in PARTS[1:])
        split_N[rows] = "train"
        split_N[rows[:num_test]] = "test"
        split_N[rows[num_test : num_test + num_val]] = "val"
    return split_N


def check_split(split: str) -> None:
    one_of("split", split, SPLITS)


def of_files(
    source: str,
    split: str,
    paths: Sequence[pathlib.Path],
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    groups: dict[str, np.ndarray] | None = None,
    lines: tuple[str, Sequence[int]] | None = None,
    archive: str = "",
) -> Images:
    """`Images` of the files whose headers can be read; the others are set aside.

    Args:
        paths: of the files, or of entries of `archive`.
        labels: class number of each.
        class_names: in order of number.
        groups: arrays [N] of other columns.
        lines: the table's file and each row's line, to name what is set aside; None names the picture's own file.
        archive: a zip file whose entries `paths` are; "" where they are files.
    """
    good, bad, sizes, converted = [], [], [], Counter()
    # headers alone: a few bytes a file, where decoding tens of thousands of pictures would take an hour
    for i, path in enumerate(paths):
        try:
            head = _header(path, archive)
        except InputError as e:
            where = (lines[0], int(lines[1][i])) if lines else (str(path), 0)
            bad.append(records.BadRecord(*where, str(e)))
            continue
        if head.mode != "RGB":
            converted[head.mode] += 1
        sizes.append((head.width, head.height))
        good.append(i)
    rows, good_paths = np.array(good, np.int64), tuple(str(paths[i]) for i in good)
    sizes_N2 = np.array(sizes, np.int64).reshape(-1, 2)
    groups = {name: np.asarray(values)[rows] for name, values in (groups or {}).items()}
    groups.setdefault("width", sizes_N2[:, 0])
    groups.setdefault("height", sizes_N2[:, 1])
    counts = {"pictures": len(good), "set aside": len(bad)}
    counts |= {f"converted from {mode}": n for mode, n in sorted(converted.items())}
    return Images(
        source,
        split,
        np.asarray(labels, np.int32)[rows],
        tuple(class_names),
        good_paths,
        ZipRead(archive, good_paths) if archive else FileRead(good_paths),
        groups,
        counts,
        tuple(bad),
        sizes_N2,
    )


def _header(path: str | pathlib.Path, archive: str) -> image_files.Header:
    if not archive:
        return image_files.header(path)
    with opened_zip(archive).open(str(path)) as f:
        return image_files.header(f, name=f"{archive}/{path}")


def folder(path: str, *, split: str, seed: int = 0) -> Images:
    """`<path>/<class>/<picture>`, or `<path>/<split>/<class>/<picture>`; classes are numbered by name."""
    check_split(split)
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"folder:{path} is not a folder; give one that has a folder of pictures for each class")
    inner = {SAME_SPLIT.get(d.name.lower(), d.name.lower()): d for d in _folders(root)}
    has_splits = "train" in inner and set(inner) <= set(SPLITS)
    if not has_splits and len(inner.keys() & set(SPLITS)) > 1:
        others = ", ".join(d.name for name, d in inner.items() if name not in SPLITS) or "no train"
        raise InputError(
            f"folder:{path} has folders for splits and {others}: move the folders that are not splits out of it, so "
            "that no split is taken for a class"
        )
    if has_splits and split not in inner:
        raise InputError(f"folder:{path} has no folder for {split!r}; it has {', '.join(sorted(inner))}")
    classes = [d.name for d in _folders(inner["train"] if has_splits else root)]
    base = inner[split] if has_splits else root
    if len(classes) < 2:
        raise InputError(f"folder:{path} has {len(classes)} classes ({', '.join(classes)}); at least two are needed")
    unknown = sorted({d.name for d in _folders(base)} - set(classes))
    if unknown:
        raise InputError(f"{base} has classes that train lacks: {', '.join(unknown)}")
    paths, labels = [], []
    for label, name in enumerate(classes):
        of_class = sorted(p for p in (base / name).rglob("*") if _is_picture(p))
        paths += of_class
        labels += [label] * len(of_class)
    rows = np.arange(len(paths))
    if not has_splits:
        rows = np.flatnonzero(parts(np.array(labels, np.int32), seed) == split)
    return of_files(f"folder:{path}", split, [paths[i] for i in rows], [labels[i] for i in rows], classes)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Folders by name, without those that programs leave behind (.ipynb_checkpoints, __MACOSX)."""
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith((".", "__")))


def _is_picture(path: pathlib.Path) -> bool:
    """Whether the name is that of a picture; macOS leaves a "._" file beside each file."""
    return path.suffix.lower() in image_files.SUFFIXES and not path.name.startswith(".") and path.is_file()


def below(base: pathlib.Path, name: str, *, where: str) -> pathlib.Path:
    """The path of a file below a folder.

    Raises:
        InputError: a name that leads out of the folder.
    """
    path = base / name
    if "\0" in name or not path.resolve().is_relative_to(base.resolve()):
        raise InputError(f"{where}: the file name {name!r} points outside {base}")
    return path


@functools.lru_cache(maxsize=2)
def _arrays(path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            by_name = {name.lower(): name for name in stored.files}
            images, labels = (next((by_name[n] for n in names if n in by_name), None) for names in NPZ_NAMES)
            if images is None or labels is None:
                raise InputError(f"npz:{path} needs arrays images and labels; it has {', '.join(stored.files)}")
            return stored[images], stored[labels]
    except FileNotFoundError as e:
        raise InputError(f"npz:{path} is not there") from e
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"npz:{path} is not a readable .npz file of plain arrays: {e}") from e


def npz(path: str, *, split: str, seed: int = 0) -> Images:
    """Arrays `images` uint8 [N, Y, X] or [N, Y, X, 1 or 3] and `labels` [N]; split by class, from a seed.

    Other names are known too (NPZ_NAMES), such as `x` and `y`.
    """
    check_split(split)
    pictures, labels_N = _arrays(path)
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
    num_classes = int(labels_N.max()) + 1
    rows = np.flatnonzero(parts(labels_N, seed) == split)
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

    check_split(split)
    options = dict(data_dir=data_dir, download=download, pictures_as_bytes=True)
    source = sources.open_source(path, "test" if split == "test" else "train", **options)
    val_name = next((name for name in source.splits if SAME_SPLIT.get(name, name) == "val"), "")
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
        part_N = parts(values["label"], seed)  # the part for val is val; those for train and test are both train
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
        sizes_N2[rows],
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

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        row = int(self.rows[i])
        picture = self.source[row]["image"]
        if isinstance(picture, bytes):
            return image_files.read(picture, at_least=at_least, name=f"{self.source}[{row}]")
        return colour(np.asarray(picture))

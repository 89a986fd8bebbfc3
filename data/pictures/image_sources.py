"""Sources of labelled pictures: each is a function of a path and a split that returns `Images`.

Here are the embedded museum and files on disk; `image_arrays` holds arrays and tensorflow-datasets, `image_tables` CSV
files, `mame` the MAMe download.
"""

import dataclasses
import functools
import inspect
import pathlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Protocol

import numpy as np
import xxhash

from alignment.errors import InputError, one_of
from data import loader, records
from data.pictures import image_files
from data.toys import museum as museums

Size = tuple[int, int]  # (width, height) in pixels
SPLITS = ("train", "val", "test")
PARTS = (0.7, 0.1, 0.2)  # of a source without splits: train, val, test
SAME_SPLIT = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


class Reader(Protocol):
    """Reads pictures by number."""

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        """Picture i, uint8 [Y, X, 3]; `at_least` (width, height) may spare decoding every pixel."""
        ...

    def digest(self, i: int) -> int:
        """A hash of what is stored of picture i, 64 bits."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled pictures of one split, read by number.

    Attributes:
        source, split: the arguments that opened them.
        labels_N: int32 class numbers.
        class_names: in order of number.
        files: a name for each picture, for people.
        read_fn: reads them.
        groups: arrays [N] of other columns; always `width` and `height`, of the original where the file is a copy.
        counts: of pictures read, converted and set aside.
        bad: pictures set aside.
        unread: files that lie among the pictures and are not read, for their kind or their place.
        sizes_N2: (width, height) of the files' pictures where these differ from the groups'.
    """

    source: str
    split: str
    labels_N: np.ndarray
    class_names: tuple[str, ...]
    files: Sequence[str]
    read_fn: Reader
    groups: dict[str, np.ndarray]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: tuple[records.BadRecord, ...] = ()
    unread: tuple[str, ...] = ()
    sizes_N2: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def read(self, i: int, *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """Picture i as RGB, uint8 [Y, X, 3]."""
        return self.read_fn(int(i), at_least)

    @functools.cached_property
    def digests_N(self) -> np.ndarray:
        """A hash of each picture, uint64: byte-equal pictures have equal ones."""
        with futures.ThreadPoolExecutor(8) as pool:  # a network file system answers many questions at once
            return np.fromiter(pool.map(self.read_fn.digest, range(len(self))), np.uint64, len(self))

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the pictures and their labels, in their order: what a position in them belongs to."""
        return loader.digest(self.digests_N, self.labels_N)

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


def check_options(kind: str, source_fn: Callable[..., Images], options: Iterable[str]) -> None:
    """Refuse an option that a source does not take, with the nearest name."""
    known = [p.name for p in inspect.signature(source_fn).parameters.values() if p.kind == p.KEYWORD_ONLY]
    known.remove("split")
    for name in options:
        one_of("option", name, known, hint=f"these are the options of {kind} pictures")


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

    def digest(self, i: int) -> int:
        """The pictures are drawn from the museum's fields and a number, and from nothing else."""
        return xxhash.xxh3_64_intdigest(f"{self.house} {i}")


@dataclasses.dataclass(frozen=True)
class FileRead:
    """Reads files by number."""

    paths: tuple[str, ...]

    def content(self, i: int) -> bytes:
        return pathlib.Path(self.paths[i]).read_bytes()

    def __call__(self, i: int, at_least: Size | None = None) -> np.ndarray:
        return image_files.read(self.paths[i], at_least=at_least)

    def digest(self, i: int) -> int:
        return image_files.digest(self.paths[i])


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

    def digest(self, i: int) -> int:
        """Digest of the checksum and the length that the archive's directory has, for which nothing is unpacked."""
        entry = opened_zip(self.archive).getinfo(self.entries[i])
        return xxhash.xxh3_64_intdigest(f"{entry.CRC} {entry.file_size}")


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
        sizes_N2=sizes_N2,
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
    unread = [p for parent in {root, base} for p in parent.iterdir() if not p.is_dir() and not p.name.startswith(".")]
    for label, name in enumerate(classes):
        of_class = _files(base / name)
        pictures = [p for p in of_class if p.suffix.lower() in image_files.SUFFIXES and p.is_file()]
        unread += sorted(set(of_class) - set(pictures))
        paths += pictures
        labels += [label] * len(pictures)
    rows = np.arange(len(paths))
    if not has_splits:
        rows = np.flatnonzero(parts(np.array(labels, np.int32), seed) == split)
    images = of_files(f"folder:{path}", split, [paths[i] for i in rows], [labels[i] for i in rows], classes)
    return dataclasses.replace(images, unread=tuple(map(str, unread)))


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Folders by name, without those that programs leave behind (.ipynb_checkpoints, __MACOSX)."""
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith((".", "__")))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies below a folder, links that lead nowhere too, but nothing whose name or folder begins with a dot."""
    inside = {*map(pathlib.Path, records.below(folder)), *(p for p in folder.rglob("*") if not p.exists())}
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def unread_kinds(unread: Iterable[str]) -> dict[str, list[str]]:
    """The files by the ending of their names, or by what else keeps them from being read."""
    by_kind: dict[str, list[str]] = {}
    for file in sorted(set(unread)):
        path = pathlib.Path(file)
        kind = "links that lead nowhere" if not path.exists() else path.suffix.lower() or "names without an ending"
        kind = "pictures outside the folder of a class" if kind in image_files.SUFFIXES else kind
        by_kind.setdefault(kind, []).append(file)
    return by_kind


def count_unread(unread: Iterable[str]) -> dict[str, int]:
    """Counts for the report, each kind with one of its files."""
    by_kind = unread_kinds(unread)
    return {f"files that are not read: {kind}, such as {some[0]}": len(some) for kind, some in by_kind.items()}


def below(base: pathlib.Path, name: str, *, where: str) -> pathlib.Path:
    """The path of a file below a folder.

    Raises:
        InputError: a name that leads out of the folder.
    """
    path = base / name
    if "\0" in name or not path.resolve().is_relative_to(base.resolve()):
        raise InputError(f"{where}: the file name {name!r} points outside {base}")
    return path

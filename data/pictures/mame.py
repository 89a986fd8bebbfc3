"""The Museum Art Medium dataset (MAMe) from its download: 29 materials and techniques, large pictures of every shape.

Pares et al. 2020, arXiv:2007.13693; the files are at https://hpai.bsc.es/MAMe-dataset (their licence is not stated). A
folder needs `MAMe_metadata.zip` or the tables in it, and the pictures: `data/`, `data_256/` (a copy of 256 x 256), or
the archives of these, which are read without unpacking.
"""

import contextlib
import hashlib
import pathlib
import warnings
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from alignment import files
from alignment.errors import InputError, one_of
from data.pictures import image_sources, image_tables
from data.pictures.image_sources import Images

VERSIONS: dict[str, dict[str, Any]] = {  # what `images.batches` takes as shape
    "R65k-FS": dict(resize=256, crop=224),
    "R360k-FS": dict(resize=600, crop=525),
    "R65k-VS": dict(pixels=65_536, crop=0.875),
    "R360k-VS": dict(pixels=360_000, crop=0.875),
}
TABLE, TOY, LABELS = "MAMe_dataset.csv", "MAMe_toy_dataset.csv", "MAMe_labels.csv"
METADATA_ZIP = "MAMe_metadata.zip"
COLUMNS = (
    "Image file", "Medium", "Museum", "Museum-based instance ID", "Subset", "Width", "Height", "Product size",
    "Aspect ratio",
)  # fmt: skip
ARCHIVES = {"data": "MAMe_data.zip", "data_256": "MAMe_data_256.zip"}  # by the folder that each unpacks to
MD5 = {"MAMe_metadata.zip": "0bca980978e3883f753f01ccad955981", "MAMe_data.zip": "39b11ef14dba807faf284f74ec2576d3"}
MAX_NAMED = 20  # missing pictures named in a message


class Card(NamedTuple):
    """One row of the table; sizes are the original picture's, in pixels."""

    line: int
    file: str
    label: int
    museum: str
    object_id: str
    subset: str
    width: int
    height: int


def shape(version: str, *, replicate_release_bug: bool = False) -> dict[str, Any]:
    """How `images.batches` shapes the pictures of a version.

    Args:
        version: of `VERSIONS`; R65k or R360k pixels, FS squeezed to a square or VS in the picture's own shape.
        replicate_release_bug: R360k-VS at 65,536 pixels, as the authors' code has it by mistake.
    """
    fields = dict(VERSIONS[one_of("version", version, VERSIONS)])
    return fields | dict(pixels=65_536) if replicate_release_bug and version == "R360k-VS" else fields


def catalogue(
    path: str | pathlib.Path, *, toy: bool = False, checksums: bool = True
) -> tuple[list[Card], tuple[str, ...]]:
    """All rows of the table, and the class names; no picture is needed.

    Args:
        path: the download's folder.
        toy: the smaller table, 29 classes of 50 train, 20 val and 50 test pictures.
        checksums: whether an archive must be the published one.

    Raises:
        InputError: for a table without the nine columns, an unknown medium or subset, or a size that is not a
            number, with its line.
    """
    root = pathlib.Path(path).expanduser()
    content, name = _metadata(root, TOY if toy else TABLE, checksums)
    rows = image_tables.parse_table(content, name, COLUMNS)
    class_names = _class_names(root, checksums, sorted({row["Medium"] for _, row in rows}))
    numbers = {name: i for i, name in enumerate(class_names)}
    cards: list[Card] = []
    line_of: dict[str, int] = {}
    for line, row in rows:
        where, file = f"{name}:{line}", row["Image file"]
        one_of(f"{where}: Medium", row["Medium"], class_names)
        one_of(f"{where}: Subset", row["Subset"], image_sources.SPLITS)
        if line_of.setdefault(file, line) != line:
            raise InputError(f"{where}: {file!r} is also on line {line_of[file]}; remove one of them")
        size = [_number(row[column], column, where) for column in ("Width", "Height")]
        cards.append(Card(line, file, numbers[row["Medium"]], row["Museum"], row[COLUMNS[3]], row["Subset"], *size))
    return cards, class_names


def open_folder(
    path: str | pathlib.Path,
    *,
    split: str,
    version: str = "R65k-FS",
    toy: bool = False,
    pictures: str = "",
    allow_missing: bool = False,
    checksums: bool = True,
) -> Images:
    """Pictures of one subset. Groups: museum, object_id, width, height and aspect_ratio of the originals.

    Args:
        path: the download's folder.
        split: train, val or test.
        version: of `VERSIONS`, for which the pictures will be used: the copy of 256 x 256 serves R65k-FS alone.
        toy: the smaller table.
        pictures: `data` or `data_256`; "" takes the first that exists.
        allow_missing: go on without pictures that do not exist, and count them.
        checksums: whether an archive must be the published one; the sum of a large one is remembered beside it.

    Raises:
        InputError: as `catalogue`; for missing pictures, the first of them named; for an archive with another checksum
            or with entries that point outside of it; for a copy of 256 x 256 where size or shape matters.
    """
    image_sources.check_split(split)
    shape(version)
    root = pathlib.Path(path).expanduser()
    cards, class_names = catalogue(root, toy=toy, checksums=checksums)
    place, archive = _pictures(root, pictures)
    if archive and checksums:
        check_md5(archive)
    is_copy = (archive or place).name in ("data_256", ARCHIVES["data_256"])
    counts = {"museum ids in several subsets": _shared_ids(cards)}
    cards = [card for card in cards if card.subset == split]
    paths = _entries(archive, cards) if archive else _files(place, cards)
    there = [i for i, file in enumerate(paths) if file]
    if len(there) < len(cards) and not allow_missing:
        names = [card.file for card, file in zip(cards, paths) if not file]
        raise InputError(
            f"{len(names)} of {len(cards)} pictures of {split!r} are not in {archive or place}: "
            f"{', '.join(names[:MAX_NAMED])}{', ...' if len(names) > MAX_NAMED else ''}; fetch them, or set "
            "allow_missing=True"
        )
    counts["missing"] = len(cards) - len(there)
    cards, paths = [cards[i] for i in there], [paths[i] for i in there]
    subset = image_sources.of_files(
        f"mame:{path}",
        split,
        paths,
        [card.label for card in cards],
        class_names,
        groups=_groups(cards),
        lines=(TOY if toy else TABLE, [card.line for card in cards]),
        archive=str(archive or ""),
    )
    counts["size is not the table's"] = _check_sizes(subset, version, is_copy)
    subset.counts.update(counts)
    return subset


def metadata_features(images: Images) -> dict[str, np.ndarray]:
    """Columns that are known without reading a pixel: the features of the floor under every accuracy.

    `width`, `height` and `aspect_ratio` are the original's, whatever copy is read; `museum` is a name.
    """
    width_N, height_N = (np.asarray(images.groups[name], np.float64) for name in ("width", "height"))
    features = dict(width=width_N, height=height_N, aspect_ratio=width_N / height_N)
    return features | ({"museum": images.groups["museum"]} if "museum" in images.groups else {})


def check_md5(file: pathlib.Path) -> None:
    """Refuses an archive that is not the published one.

    The right sum is written to `<file>.md5` in the format of md5sum, and the next opening need not read the archive.

    Raises:
        InputError: another sum than the published one.
    """
    published = MD5.get(file.name)
    if published is None:
        return
    note = file.with_name(f"{file.name}.md5")
    # hashing a large archive takes minutes; a note that is younger than the archive replaces it
    if note.is_file() and note.stat().st_mtime >= file.stat().st_mtime and note.read_text().split()[:1] == [published]:
        return
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "md5").hexdigest()
    if digest != published:
        raise InputError(
            f"{file} has the md5 sum {digest}, the published one {published}; fetch it again, or set checksums=False"
        )
    with contextlib.suppress(OSError):  # a folder that cannot be written: the next opening computes it again
        files.write_text(note, f"{published}  {file.name}\n")


def _metadata(root: pathlib.Path, name: str, checksums: bool) -> tuple[bytes, str]:
    """A table's content, and its name in messages."""
    for folder in (root, root / "MAMe_metadata", root / "metadata"):
        if (folder / name).is_file():
            return (folder / name).read_bytes(), str(folder / name)
    archive = root / METADATA_ZIP
    if archive.is_file():
        if checksums:
            check_md5(archive)
        opened = image_sources.opened_zip(str(archive))
        for entry in opened.namelist():
            if pathlib.PurePosixPath(entry).name == name:
                return opened.read(entry), f"{archive}/{entry}"
    raise InputError(f"{root} has neither {name} nor {METADATA_ZIP} with it; give the folder of the MAMe download")


def _class_names(root: pathlib.Path, checksums: bool, mediums: list[str]) -> tuple[str, ...]:
    """Class names as `MAMe_labels.csv` numbers them, from 0; without it, in alphabetical order."""
    try:
        content, name = _metadata(root, LABELS, checksums)
    except InputError:
        if (root / METADATA_ZIP).is_file() and not (root / TABLE).is_file():
            raise
        return tuple(mediums)
    named = {}
    # the published file has no header, and may begin with a byte-order mark
    for line, row in image_tables.parse_table(b"index,name\n" + content.removeprefix(b"\xef\xbb\xbf"), name, ()):
        if not row.get("index", "").isdigit() or not row.get("name") or int(row["index"]) in named:
            raise InputError(f"{name}:{line - 1}: {row} is not a number and a name that no other line has")
        named[int(row["index"])] = row["name"]
    if sorted(named) != list(range(len(named))) or len(set(named.values())) < len(named):
        raise InputError(f"{name} must number its {len(named)} classes from 0, each once")
    return tuple(named[i] for i in range(len(named)))


def _pictures(root: pathlib.Path, pictures: str) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The folder, or the archive, that holds the pictures."""
    one_of("pictures", pictures, ("", *ARCHIVES), hint="'' takes the first that exists")
    wanted = [pictures] if pictures else list(ARCHIVES)
    for name in wanted:
        if (root / name).is_dir():
            return root / name, None
        if (root / ARCHIVES[name]).is_file():
            return root, root / ARCHIVES[name]
    names = ", ".join(f"{name}/ or {ARCHIVES[name]}" for name in wanted)
    raise InputError(f"{root} has no pictures: {names} is needed")


def _files(folder: pathlib.Path, cards: list[Card]) -> list[str]:
    """A path for each card, "" where the file does not exist."""
    for card in cards:
        if pathlib.PurePath(card.file).name != card.file:
            raise InputError(f"{TABLE}:{card.line}: {card.file!r} is not the name of a file in {folder}")
    there = {p.name for p in folder.iterdir()}  # one listing instead of 37,000 questions to a network file system
    return [str(folder / card.file) if card.file in there else "" for card in cards]


def _entries(archive: pathlib.Path, cards: list[Card]) -> list[str]:
    there = {pathlib.PurePosixPath(name).name: name for name in image_sources.opened_zip(str(archive)).namelist()}
    return [there.get(card.file, "") for card in cards]


def _groups(cards: list[Card]) -> dict[str, np.ndarray]:
    groups = {name: np.array([getattr(card, name) for card in cards]) for name in ("museum", "object_id")}
    groups |= {name: np.array([getattr(card, name) for card in cards], np.int64) for name in ("width", "height")}
    return groups | {"aspect_ratio": groups["width"] / groups["height"]}


def _check_sizes(images: Images, version: str, is_copy: bool) -> int:
    """Number of files that have another size than the table says; refuses a small copy where size or shape matters."""
    if not len(images):
        return 0
    table_N2 = np.stack([images.groups["width"], images.groups["height"]], axis=1)
    differs_N = np.any(images.sizes_N2 != table_N2, axis=1)
    # the copy is also recognised by its pictures, where somebody has renamed its folder
    is_copy = is_copy or bool(np.all(images.sizes_N2 == 256) and np.any(differs_N))
    if is_copy and version != "R65k-FS":
        raise InputError(
            f"{images.source} holds the copy of 256 x 256, whose shapes and detail are lost: it serves R65k-FS, not "
            f"{version}; fetch {ARCHIVES['data']}"
        )
    if not is_copy and np.any(differs_N):
        i = int(np.argmax(differs_N))
        warnings.warn(
            f"{int(differs_N.sum())} of {len(images)} pictures have another size than the table says, the first "
            f"{images.files[i]}: {images.size(i)} and {tuple(map(int, table_N2[i]))}",
            stacklevel=3,
        )
    return int(differs_N.sum())


def _shared_ids(cards: list[Card]) -> int:
    """Number of objects (by a museum's id) with pictures in more than one subset: train and test share them."""
    subsets = defaultdict(set)
    for card in (card for card in cards if card.object_id):
        subsets[card.museum, card.object_id].add(card.subset)
    return sum(len(names) > 1 for names in subsets.values())


def _number(text: str, column: str, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (value >= 1 and value == int(value)):
        raise InputError(f"{where}: {column} is {text!r}; it is a number of pixels, such as 3144.0")
    return int(value)

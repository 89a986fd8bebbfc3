"""What saflex.py trains on: rows, pictures or pairs, split for each seed; embedded toys, or files of a user.

Dimensions: S seeds, N rows, D columns, Y X rows and columns of a picture, C colours, K classes.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError, one_of
from data import columns, loader, records
from data.pictures import captions, image_sources, images, transforms
from data.toys import blurred

ROWS, PICTURES, PAIRS = "rows", "pictures", "pairs"
POOL = "pool"  # an upstream: rows that are there already, such as a folder of generated pictures


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of all seeds: inputs [S,N,...], classes [S,N], groups [S,N] where there are any."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray | None = None

    @property
    def num(self) -> int:
        return self.y.shape[1]


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, split for each seed, and how it is augmented.

    Attributes:
        kind: ROWS, PICTURES or PAIRS.
        pool: augmented rows that are there already, with the labels they come with; None draws them from train.
        is_wrong: bool [S,N] of the pool, where the truth is known.
        upstream: POOL, or a key of `policies`.
        strength: of the policy.
        image_width: of pairs, the numbers of a row that are the image; the others are the text.
        has_own_tests: each seed draws test rows of its own, as toys do; otherwise all seeds have the same.
        counts: for the report.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    pool: Part | None = None
    is_wrong: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    upstream: str = POOL
    strength: float = 0.0
    image_width: int = 0
    has_own_tests: bool = False
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bad: tuple[records.BadRecord, ...] = ()

    @property
    def num_seeds(self) -> int:
        return len(self.train.y)

    @functools.cached_property
    def digest(self) -> str:
        """Of all rows and labels, and of how they are augmented."""
        parts = [p for p in (self.train, self.val, self.test, self.pool) if p is not None]
        arrays = [array for p in parts for array in (p.x, p.y)]
        return loader.digest(*arrays, texts=(self.name, self.upstream, str(self.strength)))


# Embedded -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A toy of `data.toys.blurred`: what makes one seed of it, its kind, and the names of its groups and classes."""

    make_fn: Callable[..., blurred.Blurred]
    kind: str
    group_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()  # () numbers them


EMBEDDED = {
    "toy": Embedded(blurred.gaussians, ROWS),
    "toy_few": Embedded(blurred.shortcut, ROWS),
    "toy_groups": Embedded(blurred.groups, ROWS, ("as in training", "in validation too", "new")),
    "toy_generated": Embedded(blurred.generated, PICTURES, class_names=blurred.MEDIUMS),
    "toy_pairs": Embedded(blurred.pairs, PAIRS),
}


def embedded(name: str, *, num_seeds: int, seed: int, **sizes: int) -> Task:
    """A toy for each seed; `sizes` are its function's own arguments."""
    toy = EMBEDDED[name]
    made = [toy.make_fn(seed + s, **sizes) for s in range(num_seeds)]
    parts = {split: _stacked([(m.x[split], m.y[split], m.groups.get(split)) for m in made]) for split in made[0].x}
    num_classes = 1 + int(max(m.y["train"].max() for m in made))
    return Task(
        name,
        toy.kind,
        toy.class_names or tuple(map(str, range(num_classes))),
        **parts,
        pool=_stacked([(m.pool_x, m.pool_y, None) for m in made]),
        is_wrong=np.stack([m.is_wrong for m in made]),
        group_names=toy.group_names,
        image_width=made[0].pool_x.shape[1] // 2 if toy.kind == PAIRS else 0,
        has_own_tests=True,
        counts={f"{name}: {split} rows a seed": part.num for split, part in parts.items()},
    )


def _stacked(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> Part:
    x, y, groups = zip(*rows)
    return Part(np.stack(x), np.stack(y).astype(np.int32), None if groups[0] is None else np.stack(groups))


# Files of a user ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Few:
    """How many rows of each class a seed draws: of train and of val; None takes all."""

    shots: int | None = None
    val_shots: int | None = None

    def draw(self, y: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """Row numbers of train and val.

        Raises:
            InputError: a class with fewer rows than are asked for.
        """
        out = {}
        for number, (split, shots) in enumerate((("train", self.shots), ("val", self.val_shots))):
            rng = np.random.default_rng([seed, 6, number])
            if shots is None:
                out[split] = np.arange(len(y[split]))
                continue
            rows = []
            for label in np.unique(y["train"]):
                of_class = np.flatnonzero(y[split] == label)
                if len(of_class) < shots:
                    name = "shots" if split == "train" else "val_shots"
                    raise InputError(
                        f"data.{name}={shots}: class {label} has {len(of_class)} rows in {split}; take at most as many"
                    )
                rows.append(rng.permutation(of_class)[:shots])
            out[split] = np.sort(np.concatenate(rows))
        return out


def pictures(
    source: str,
    *,
    side: int,
    few: Few,
    num_seeds: int,
    seed: int,
    upstream: str,
    strength: float,
    generated: str = "",
    group: str = "",
    test_groups: Sequence[str] = (),
    allow_overlap: bool = False,
    options: Mapping[str, Any],
) -> Task:
    """Pictures of any source of `images.open`, squeezed to `side` pixels and held in memory.

    Args:
        generated: a source of ready-made augmented pictures, with the classes' names; for upstream POOL.
        group: a column of the source, or `folder`: the folder between a class and its pictures.
        test_groups: groups that are for testing alone; all other rows are then for training and validation.
        options: of the source.

    Raises:
        InputError: pictures of one class alone, among what reading and splitting refuse.
    """
    opened = {split: images.open(source, split=split, **options) for split in image_sources.SPLITS}
    if len(opened["train"].class_names) < 2:
        names = ", ".join(opened["train"].class_names)
        raise InputError(f"{source} has one class, {names}; at least two are needed to tell apart")
    arrays, bad = {}, [b for part in opened.values() for b in part.bad]
    for split, part in opened.items():
        arrays[split], more = _read_all(part, side)
        bad += more
    names = opened["train"].class_names
    groups, group_names = _groups({s: [p.files, p.groups] for s, p in opened.items()}, group, source)
    table = {
        split: (x, opened[split].labels_N[rows], None if groups is None else groups[split][rows])
        for split, (x, rows) in arrays.items()
    }
    table = _regrouped(table, group_names, test_groups)
    pool = None
    if generated:
        pool, more = _generated(generated, names, side)
        bad += more
    counts = {f"{split}: {name}": n for split, part in opened.items() for name, n in part.counts.items()}
    task = _drawn("pictures", PICTURES, names, table, few, num_seeds, seed, pool, upstream, strength, group_names)
    counts |= {f"{split}: rows": getattr(task, split).num for split in image_sources.SPLITS}
    if not allow_overlap:
        check_overlap(task)
    return dataclasses.replace(task, counts=counts, bad=tuple(bad))


def _read_all(part: images.Images, side: int) -> tuple[tuple[np.ndarray, np.ndarray], list[records.BadRecord]]:
    """Pictures uint8 [N,side,side,3] with their numbers, and those that cannot be decoded."""
    out, rows, bad = [], [], []
    for i in range(len(part)):
        try:
            picture = part.read(i, at_least=(side, side))
        except InputError as e:
            bad.append(records.BadRecord(part.files[i], 0, str(e)))
            continue
        out.append(transforms.resize(picture, (side, side), keeps_shape=False))
        rows.append(i)
    if len(bad) > records.MAX_BAD * len(part):
        raise InputError(f"{len(bad)} of {len(part)} pictures of {part.source} cannot be decoded: {bad[0].reason}")
    return (np.stack(out), np.array(rows)), bad


def _groups(parts, group: str, source: str) -> tuple[dict[str, np.ndarray] | None, tuple[str, ...]]:
    """Group numbers by split, and their names; None without groups."""
    if not group:
        return None, ()
    if group == "folder":
        words = {s: [pathlib.PurePath(file).parent.name for file in files] for s, (files, _) in parts.items()}
    else:
        one_of("data.group", group, parts["train"][1], hint=f"these are the columns of {source}; or write folder")
        words = {s: [str(value) for value in columns_of[group]] for s, (_, columns_of) in parts.items()}
    names = tuple(sorted({word for part in words.values() for word in part}))
    place = {name: i for i, name in enumerate(names)}
    return {s: np.array([place[word] for word in part], np.int32) for s, part in words.items()}, names


def _regrouped(table, group_names: Sequence[str], test_groups: Sequence[str]):
    """The splits, where `test_groups` are for testing alone: those groups' rows of all splits, and no others.

    Test rows of the other groups are for training.
    """
    if not test_groups:
        return table
    for name in test_groups:
        one_of("data.test_groups", name, group_names)
    numbers = [list(group_names).index(name) for name in test_groups]
    is_new = {split: np.isin(part[2], numbers) for split, part in table.items()}
    old = {s: tuple(array[~is_new[s]] for array in table[s]) for s in table}
    new = [tuple(array[is_new[s]] for array in table[s]) for s in table]
    joined = lambda parts: tuple(np.concatenate(arrays) for arrays in zip(*parts))  # noqa: E731
    out = {"train": joined([old["train"], old["test"]]), "val": old["val"], "test": joined(new)}
    for split, part in out.items():
        if not len(part[1]):
            raise InputError(f"data.test_groups={tuple(test_groups)} leaves no row for {split}")
    return out


def _generated(source: str, names: Sequence[str], side: int):
    """All pictures of a source, whatever split they fall into, with numbers of the classes of these names."""
    x, y, bad = [], [], []
    for split in image_sources.SPLITS:
        try:
            part = images.open(source, split=split)
        except InputError as e:
            if "has no folder for" in str(e) or "has no pictures in the split" in str(e):
                continue
            raise
        for name in part.class_names:
            one_of("class of upstream.generated", name, names, hint="its folders bear the names of the classes")
        (pictures_NYXC, rows), more = _read_all(part, side)
        bad += [*part.bad, *more]
        x.append(pictures_NYXC)
        y.append(np.array([list(names).index(part.class_names[part.labels_N[i]]) for i in rows], np.int32))
    return (np.concatenate(x), np.concatenate(y)), bad


def _drawn(name, kind, class_names, table, few, num_seeds, seed, pool, upstream, strength, group_names) -> Task:
    """The task with train and val drawn anew for each seed; all seeds share test and pool."""
    drawn = [few.draw({s: table[s][1] for s in ("train", "val")}, seed + s) for s in range(num_seeds)]
    parts = {}
    for split in ("train", "val"):
        parts[split] = _stacked([tuple(_take(array, rows[split]) for array in table[split]) for rows in drawn])
    shared = lambda array: None if array is None else np.broadcast_to(array, (num_seeds, *array.shape))  # noqa: E731
    parts["test"] = Part(*map(shared, table["test"]))
    parts["pool"] = None if pool is None else Part(*map(shared, pool))
    return Task(name, kind, class_names, **parts, upstream=upstream, strength=strength, group_names=group_names)


def _take(array: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if array is None else array[rows]


def check_overlap(task: Task) -> None:
    """Refuse a validation set that shares a row with training or test, and a pool that does with either, for any seed.

    Raises:
        InputError: with the number of such rows.
    """
    for s in range(task.num_seeds):
        rows = {name: _digests(getattr(task, name).x[s]) for name in image_sources.SPLITS}
        pool = set() if task.pool is None else _digests(task.pool.x[s])
        for what, ours, name in (
            ("validation", rows["val"], "train"),
            ("validation", rows["val"], "test"),
            ("generated", pool, "val"),
            ("generated", pool, "test"),
        ):
            if num := len(ours & rows[name]):
                raise InputError(
                    f"{num} {what} rows are in {name} too, byte for byte: what a network learns from them would not "
                    "hold for new rows. Remove them, or set --config.data.allow_overlap=True"
                )


def _digests(rows: np.ndarray) -> set[str]:
    return {loader.digest(row) for row in rows}


def pairs(path: str, generated: str, *, side: int, num_seeds: int, seed: int, allow_overlap: bool = False) -> Task:
    """Image-text pairs of a table (`captions.read`), and a table of generated ones, some of which do not match.

    A table without subsets is split by class; where every text is a class of its own, at random.
    """
    read, more = captions.read(path, side=side), captions.read(generated, side=side)
    names = tuple(sorted(set(read.classes)))
    for name in more.classes:
        one_of("class of upstream.generated", name, names)
    y_N, pool_y = (np.array([names.index(name) for name in part.classes], np.int32) for part in (read, more))
    x_N, pool_x = (np.concatenate([part.image_ND, part.text_NW], axis=1) for part in (read, more))
    is_each = not read.has_classes or len(names) == len(y_N)
    splits = (
        np.array(read.subsets) if read.subsets else image_sources.parts(np.zeros_like(y_N) if is_each else y_N, seed)
    )
    rows = {split: np.flatnonzero(splits == split) for split in image_sources.SPLITS}
    for split, of_split in rows.items():
        if not len(of_split):
            raise InputError(f"{path} has no pair for {split}; it has {len(y_N)} pairs")
    table = {split: (x_N[of_split], y_N[of_split], None) for split, of_split in rows.items()}
    task = _drawn("pairs", PAIRS, names, table, Few(), num_seeds, seed, (pool_x, pool_y, None), POOL, 0.0, ())
    if not allow_overlap:
        check_overlap(task)
    counts = {f"{split}: pairs": len(of_split) for split, of_split in rows.items()} | {"generated pairs": len(pool_y)}
    bad = (*read.bad, *more.bad)
    return dataclasses.replace(
        task, image_width=read.image_ND.shape[1], counts=counts | {"set aside": len(bad)}, bad=bad
    )


def table(
    path: str,
    target: str,
    *,
    few: Few,
    num_seeds: int,
    seed: int,
    upstream: str,
    strength: float,
    bins: int | None = None,
    subset: str = "",
    group: str = "",
    test_groups: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    allow_overlap: bool = False,
) -> Task:
    """Rows of a CSV file; what is fitted (types, scales, categories, bins) is fitted on a seed's training rows alone.

    A table without a subset is split by class from the seed; with `bins` at random, since its bins are not known yet.
    """
    read = columns.read(path, target, group=group, subset=subset, leave_out=leave_out)
    splits = _table_splits(read, bins, seed)
    group_names = tuple(sorted(set(read.groups)))
    group_N = np.array([group_names.index(name) for name in read.groups], np.int32) if group else None
    if test_groups:
        numbers = [group_names.index(one_of("data.test_groups", name, group_names)) for name in test_groups]
        splits = np.where(np.isin(group_N, numbers), "test", np.where(splits == "test", "train", splits))
    rows = {split: np.flatnonzero(splits == split) for split in image_sources.SPLITS}
    for split, of_split in rows.items():
        if not len(of_split):
            raise InputError(f"{path} has no row for {split}; the table has {len(read)} rows")
    y_N, class_names = columns.classes(read, rows["train"], bins)
    made, notes = [], collections.Counter()
    for s in range(num_seeds):
        few_rows = few.draw({split: y_N[rows[split]] for split in ("train", "val")}, seed + s)
        numbers = {split: rows[split][few_rows[split]] for split in few_rows} | {"test": rows["test"]}
        encoder = columns.fit(read, numbers["train"])
        notes.update(f"column {name} left out: {why}" for name, why in encoder.left_out.items())
        encoded = {}
        for split, of_split in numbers.items():
            x_ND, new = encoder.encode(read, of_split)
            encoded[split] = (x_ND, y_N[of_split], _take(group_N, of_split))
            notes[f"{split}: cells that training rows never had, over seeds"] += new
        made.append(encoded)
    width = max(encoded["train"][0].shape[1] for encoded in made)
    parts = {}
    for split in image_sources.SPLITS:
        parts[split] = _stacked([(_padded(x_ND, width), *rest) for x_ND, *rest in (e[split] for e in made)])
    counts = {f"{split}: rows": part.num for split, part in parts.items()}
    counts |= {"set aside": len(read.bad), **{what: num for what, num in notes.items() if num}}
    task = Task(
        "table", ROWS, class_names, **parts, upstream=upstream, strength=strength, group_names=group_names,
        counts=counts, bad=read.bad,
    )  # fmt: skip
    if not allow_overlap:
        check_overlap(task)
    return task


def _table_splits(read: columns.Table, bins: int | None, seed: int) -> np.ndarray:
    if read.subsets:
        return np.array(read.subsets)
    labels_N = np.zeros(len(read), np.int32)
    if bins is None:
        labels_N, _ = columns.classes(read, range(len(read)), None)
    return image_sources.parts(labels_N, seed)


def _padded(x_ND: np.ndarray, width: int) -> np.ndarray:
    """Columns of zeros behind: few-shot draws may see different categories, and all seeds share one program."""
    return np.pad(x_ND, ((0, 0), (0, width - x_ND.shape[1])))

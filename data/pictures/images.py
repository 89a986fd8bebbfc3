"""Labelled pictures of any source, and batches of them.

    pictures = images.open("folder:photos", split="train")
    batches = images.batches(pictures, shape=dict(resize=256, crop=224), train=True, batch_size=128, seed=0)

A batch holds `images` uint8 [B, Y, X, 3], `labels` int32 [B], `weights` float32 [B] (0 where a row only fills the batch
up), `index` int32 [B] (the picture's number), and `mask` uint8 [B, Y, X] where pictures keep their shape. Pictures
travel to the device as bytes, a quarter of float32, and are normalised there.
"""

import dataclasses
import functools
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from alignment.errors import InputError, one_of, within
from data import loader, records
from data.pictures import image_arrays, image_sources, image_tables, mame, transforms
from data.pictures.image_sources import Images

SOURCES: dict[str, Callable[..., Images]] = {
    "museum": image_sources.museum,
    "folder": image_sources.folder,
    "csv": image_tables.csv_table,
    "npz": image_arrays.npz,
    "tfds": image_arrays.tfds,
    "mame": mame.open_folder,
}
FORMS = {"folder": "folder", "csv": "table", "npz": "file of arrays", "mame": "folder of the download"}
KEEP_BYTES = 1 << 28  # a split of at most so many bytes, decoded, stays in memory


def check(source: str, **options: Any) -> None:
    """Refuse a source that `open` could not find, and options that it does not take, without reading a picture.

    Raises:
        InputError: an unknown kind, no such file or folder, an option of another kind, a missing package.
    """
    kind, _, path = source.partition(":")
    hint = "write museum, folder:<path>, csv:<file.csv>, npz:<file>, tfds:<builder> or mame:<folder>"
    one_of("source of pictures", kind, SOURCES, hint=hint)
    if kind != "museum" and not path:
        raise InputError(f"{source!r} names no file; write {kind}:<path>")
    image_sources.check_options(kind, SOURCES[kind], options)
    if kind == "tfds":
        records.check(source)
    elif kind != "museum" and not pathlib.Path(path).expanduser().exists():
        raise InputError(f"{source}: {path} is not there; give the path of the {FORMS[kind]}")


def open(source: str, *, split: str = "train", max_bad: float = records.MAX_BAD, **options: Any) -> Images:
    """The pictures of one split.

    Args:
        source: `museum` (embedded), `folder:<path>` (a folder a class, perhaps below train/ val/ test/),
            `csv:<file.csv>` (columns filename, label, and subset where it has splits), `npz:<file>` (arrays of pictures
            and labels), `tfds:<builder>`, `mame:<folder of the download>`.
        split: train, val or test; a source without splits is split by class, from a seed.
        max_bad: share of pictures that may be unreadable.
        options: of the source; see `image_sources`.

    Raises:
        InputError: for what cannot be read; single unreadable pictures are set aside in `bad`.
    """
    check(source, **options)
    kind, _, path = source.partition(":")
    pictures = SOURCES[kind](*([path] if path else []), split=split, **options)
    num_read = len(pictures.bad) + len(pictures)
    if pictures.bad and len(pictures.bad) > max_bad * num_read:
        places = [f"{b.file}:{b.line}" if b.line else b.file for b in pictures.bad]
        reasons = [b.reason if b.file in b.reason else f"{place}: {b.reason}" for place, b in zip(places, pictures.bad)]
        raise InputError(
            f"{len(pictures.bad)} of {num_read} pictures of {source} are unreadable, more than "
            f"{100 * max_bad:g} %: {_some(reasons)}. Repair or remove them"
        )
    if not len(pictures):
        kinds = [f"{kind} ({len(some)})" for kind, some in image_sources.unread_kinds(pictures.unread).items()]
        hint = f"; files that are not read: {_some(kinds)}" if kinds else ""
        raise InputError(f"{source} has no pictures in the split {split!r}{hint}")
    return pictures


def copies(pictures: Images, others: Sequence[Images]) -> np.ndarray:
    """Whether each picture is byte-equal to one of other splits, bool [N]."""
    return np.isin(pictures.digests_N, np.concatenate([other.digests_N for other in others]))


def num_in_two_classes(splits: Sequence[Images]) -> int:
    """How many pictures are byte-equal to one of another class: no network can tell them apart."""
    digests_N, labels_N = (
        np.concatenate([getattr(split, name) for split in splits]) for name in ("digests_N", "labels_N")
    )
    _, picture_N = np.unique(digests_N, return_inverse=True)
    kinds_K2 = np.unique(np.stack([picture_N, labels_N], axis=1), axis=0)
    classes_of_picture = np.bincount(kinds_K2[:, 0])
    return int(np.count_nonzero(classes_of_picture[picture_N] > 1))


@dataclasses.dataclass(frozen=True)
class Read:
    """Reads pictures by number, in worker processes too; keeps decoded ones where all fit into memory.

    Attributes:
        images: the split.
        view: from a picture to what the network sees.
        keep: whether decoded pictures stay in `decoded`.
        max_bad: share of pictures that may turn out undecodable.
        decoded: pictures by number, before their view is taken.
        bad: pictures that cannot be decoded, by number, and why.
    """

    images: Images
    view: transforms.View
    keep: bool
    max_bad: float
    decoded: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    bad: dict[int, str] = dataclasses.field(default_factory=dict)

    def __call__(self, i: int, rng: np.random.Generator | None) -> np.ndarray | None:
        """A view of picture i, or None for one that cannot be decoded; the first time that is a warning."""
        if i in self.bad:
            return None
        picture = self.decoded.get(i)
        if picture is None:
            try:
                picture = self.images.read(i, at_least=self.view.resized(self.images.size(i), train=rng is not None))
            except InputError as e:
                self._set_aside(i, e)
                return None
            if self.keep:
                self.decoded[i] = picture
        return transforms.apply(picture, self.view, rng=rng, size=self.images.size(i))

    def _set_aside(self, i: int, e: InputError) -> None:
        self.bad[i] = str(e)
        if len(self.bad) > self.max_bad * len(self.images):
            raise InputError(
                f"{len(self.bad)} of {len(self.images)} pictures of {self.images.source} cannot be decoded, more than "
                f"{100 * self.max_bad:g} %: {_some(list(self.bad.values()))}"
            ) from e
        warnings.warn(f"{e}; it is left out", stacklevel=2)


def _some(reasons: Sequence[str], most: int = 3) -> str:
    """The first few reasons, and the number of the others."""
    more = f"; and {len(reasons) - most:,} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def batches(
    images: Images,
    *,
    shape: transforms.View | Mapping[str, Any],
    train: bool,
    batch_size: int,
    seed: int = 0,
    endless: bool | None = None,
    num_workers: int = 0,
    multiple: int = 32,
    most_shapes: int = 12,
    mask_name: str = "mask",
    max_bad: float = records.MAX_BAD,
    beside: Sequence[Images] = (),
    process_index: int = 0,
    process_count: int = 1,
) -> loader.Loader:
    """Batches of one split; what batch k holds is a function of (seed, k), random views included.

    Args:
        shape: a `transforms.View`, or its fields: `dict(resize=256, crop=224)` squeezes every picture to a square,
            `dict(pixels=65_536)` keeps its shape.
        train: random views instead of the centre, in a random order.
        batch_size: pictures over all processes.
        endless: repeat for ever, every picture equally often, every batch full; None: as `train`. False is one pass,
            in which rows of weight 0 fill up the last batch of each shape.
        num_workers: processes that decode; 0 decodes in a thread.
        multiple, most_shapes: with `pixels`, pictures are padded to shapes whose sides are multiples, of which there
            are at most this many; a batch has one shape.
        mask_name: the batch's key of the mask; `real` hides it from networks that are to pool over padding too.
        max_bad: share of pictures that may turn out undecodable. In training the next one of the same shape stands in
            for such a picture; in one pass, and where there is no other, its row has weight 0. Batch k is the same
            whenever it is made.
        beside: other splits that a run's results hang on; with them, too, a position is refused once they change.

    Raises:
        InputError: for a batch size that does not split, a shape that cannot be, or more than `max_bad` bad pictures.
    """
    view = transforms.view_of(shape)
    endless = train if endless is None else endless
    mine = loader.share(batch_size, process_index, process_count)
    within("[0, inf)", seed=seed, num_workers=num_workers)
    within("[1, inf)", multiple=multiple, most_shapes=most_shapes)
    # shapes follow from the headers' sizes, so the plan of all batches is made without decoding a picture
    sizes_N2 = np.array([view.cropped(images.size(i), train=train) for i in range(len(images))])
    if view.is_fixed:
        shapes_B2, bucket_N = sizes_N2[:1], np.zeros(len(images), np.int32)
    else:
        shapes_B2, bucket_N = transforms.buckets(sizes_N2, multiple=multiple, most=most_shapes)
    plan_type = Endless if endless else OnePass
    plan = plan_type(tuple(np.flatnonzero(bucket_N == b) for b in range(len(shapes_B2))), batch_size, seed, train)
    reader = Read(images, view, keep=images.num_bytes() <= KEEP_BYTES, max_bad=max_bad)
    build = functools.partial(
        _batch,
        plan=plan,
        read=reader,
        shapes_B2=shapes_B2,
        mine=mine,
        seed=seed,
        train=train,
        mask_name="" if view.is_fixed else mask_name,
    )
    num_batches = sys.maxsize if endless else plan.num_batches
    order = grain.MapDataset.range(num_batches).map(build)
    # only an endless loader's position outlives its run
    content = loader.digest(texts=[split.digest for split in (images, *beside)]) if endless else ""
    return loader.Loader(
        order, num_batches=num_batches, num_threads=1, prefetch=2, num_workers=num_workers, content=content
    )


def _batch(
    k: int,
    *,
    plan: "Endless | OnePass",
    read: Read,
    shapes_B2: np.ndarray,
    mine: slice,
    seed: int,
    train: bool,
    mask_name: str,
) -> loader.Batch:
    """Batch k: the rows of this process, decoded, and padded to the shape of their bucket where there is a mask."""
    bucket, rows, weights = plan.batch(int(k))
    rows, weights = rows[mine].copy(), weights[mine].copy()
    size = tuple(map(int, shapes_B2[bucket]))
    members, pictures = plan.members[bucket], []
    for place in range(len(rows)):
        # a row's random view depends on its place in the batch alone, so it is the same on any number of processes
        rng = np.random.default_rng([seed, 1, int(k), mine.start + place]) if train else None
        picture = read(int(rows[place]), rng)
        # the next picture of the same shape stands in for one that cannot be decoded, whichever process meets it
        for _ in range(len(members) - 1 if train else 0):
            if picture is not None:
                break
            rows[place] = members[(np.searchsorted(members, rows[place]) + 1) % len(members)]
            picture = read(int(rows[place]), rng)
        if picture is None:  # its row stays, with weight 0, so that the batch keeps its shape
            weights[place] = 0
            width, height = read.view.cropped(read.images.size(rows[place]), train=train)
            picture = np.zeros((height, width, 3), np.uint8)
        pictures.append(picture)
    batch = {}
    if mask_name:
        padded = [transforms.pad(picture, size) for picture in pictures]
        pictures, batch[mask_name] = [picture for picture, _ in padded], np.stack([mask for _, mask in padded])
    return {
        "images": np.stack(pictures),
        **batch,
        "labels": read.images.labels_N[rows].astype(np.int32),
        "weights": weights,
        "index": rows.astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Endless:
    """The pictures of batch k in an endless stream.

    Epoch e has floor((e+1) n/B) - floor(e n/B) batches of a shape with n pictures, in an order of its own; their
    pictures follow one another in a stream of permutations, so that each is seen equally often and epochs run on inside
    a batch.
    """

    members: tuple[np.ndarray, ...]
    batch_size: int
    seed: int
    shuffle: bool

    def batch(self, k: int) -> tuple[int, np.ndarray, np.ndarray]:
        # any batch can be made without those before it: a resumed run starts in the middle of an epoch
        epoch = self._epoch(k)
        order = np.repeat(np.arange(len(self.members)), self._counts(epoch + 1) - self._counts(epoch))
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(order) if self.shuffle else order
        place = k - int(self._counts(epoch).sum())
        bucket = int(order[place])
        number = int(self._counts(epoch)[bucket]) + int((order[:place] == bucket).sum())
        rows = self._stream(bucket, number * self.batch_size)
        return bucket, rows, np.ones(self.batch_size, np.float32)

    def _counts(self, epoch: int) -> np.ndarray:
        """Batches of each shape before an epoch."""
        return np.array([epoch * len(m) // self.batch_size for m in self.members], np.int64)

    def _epoch(self, k: int) -> int:
        """The last epoch that begins at or before batch k and is not empty there."""
        total = sum(map(len, self.members))
        epoch = max(k * self.batch_size // total - 1, 0)  # a lower bound: each shape rounds its batches down
        while self._counts(epoch + 1).sum() <= k:
            epoch += 1
        return epoch

    def _stream(self, bucket: int, start: int) -> np.ndarray:
        members, rows = self.members[bucket], []
        while len(rows) < self.batch_size:
            # a permutation of the shape's pictures for each turn through them, so none is left out for long
            turn, place = divmod(start + len(rows), len(members))
            order = members
            if self.shuffle:
                order = np.random.default_rng([self.seed, 3, bucket, turn]).permutation(members)
            rows.extend(order[place : place + self.batch_size - len(rows)])
        return np.array(rows, np.int64)


@dataclasses.dataclass(frozen=True)
class OnePass:
    """Every picture once, shape by shape, in file order; the last batch of a shape is filled with weight 0."""

    members: tuple[np.ndarray, ...]
    batch_size: int
    seed: int
    shuffle: bool

    @property
    def num_batches(self) -> int:
        return sum(-(-len(m) // self.batch_size) for m in self.members)

    def batch(self, k: int) -> tuple[int, np.ndarray, np.ndarray]:
        for bucket, members in enumerate(self.members):
            num = -(-len(members) // self.batch_size)
            if k < num:
                places = np.arange(k * self.batch_size, (k + 1) * self.batch_size)
                return bucket, members[places % len(members)], (places < len(members)).astype(np.float32)
            k -= num
        raise IndexError(k)

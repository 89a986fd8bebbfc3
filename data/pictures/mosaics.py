"""Mosaics of four pictures, two of them of the target class: planned, built, and written for other tools.

Positions run 0 top-left, 1 top-right, 2 bottom-left, 3 bottom-right (Arias-Duart et al. 2022, arXiv:2109.15035).
`mosaic_files` reads them back, and the authors' ready-made ones.

Dimensions: N images, M mosaics, 4 tiles of a mosaic, Y X rows and columns, C channels.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from alignment import files
from alignment.errors import InputError, one_of

TABLE = "mosaics.jsonl"
OUTER = ("balanced", "with_replacement")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which image lies where, before any pixel is read.

    Attributes:
        tile_index: [M, 4] int32, the image at each position.
        tile_label: [M, 4] int32, its class.
        target: [M] int32, the class to explain; exactly two of the four labels equal it.
    """

    tile_index: np.ndarray
    tile_label: np.ndarray
    target: np.ndarray

    def __len__(self) -> int:
        return len(self.target)


def plan(
    labels_N: np.ndarray,
    per_class: int = 100,
    seed: int = 0,
    *,
    num_classes: int | None = None,
    outer: str = "balanced",
) -> Plan:
    """Mosaics in which every class is the target `per_class` times, in order of class.

    Target pairs come from the class's images repeated ceil(2m/n) times and shuffled, so that a pair may be one image
    twice where n is small. Outer pairs come from ceil(2m/(C-1)) images of every other class, shuffled together, so that
    they may share a class.

    Args:
        labels_N: the class of each image.
        per_class: m, mosaics a class; the paper's scripts use 100.
        seed: of every random draw.
        num_classes: C; classes without an image are then refused. None takes the classes that occur.
        outer: 'balanced' as above, without replacement (a class of too few images is used again from the start); or
            'with_replacement', any image of another class, as Quantus draws them.

    Raises:
        InputError: labels that are not class numbers, a class without an image, fewer than two classes.
    """
    labels_N = np.asarray(labels_N)
    by_class = _images_by_class(labels_N, num_classes)
    if per_class < 1:
        raise InputError(f"per_class={per_class}; at least one mosaic a class is needed")
    one_of("outer", outer, OUTER)
    rng = np.random.default_rng(seed)
    parts = []
    for target, images in by_class.items():
        others = [rows for label, rows in by_class.items() if label != target]
        inner_M2 = _cycled(rng, images, 2 * per_class).reshape(per_class, 2)
        # the order of draws is part of the numbers that are on record: do not change it
        if outer == "balanced":
            share = -(-2 * per_class // len(others))
            drawn = np.concatenate([_without_replacement(rng, rows, share) for rows in others])
            outer_M2 = rng.permutation(drawn)[: 2 * per_class].reshape(per_class, 2)
        else:
            outer_M2 = rng.choice(np.concatenate(others), size=(per_class, 2))
        parts.append(rng.permuted(np.concatenate([inner_M2, outer_M2], axis=1), axis=1))
    tile_index = np.concatenate(parts).astype(np.int32)
    target = np.repeat(np.array(list(by_class)), per_class).astype(np.int32)
    return Plan(tile_index, labels_N[tile_index].astype(np.int32), target)


def assemble(images_NYXC: np.ndarray, tile_index_M4: np.ndarray) -> np.ndarray:
    """Mosaics [M, 2Y, 2X, C] in the images' own type: every pixel is a copy of one of theirs."""
    _, Y, X, C = images_NYXC.shape
    tiles = images_NYXC[tile_index_M4].reshape(-1, 2, 2, Y, X, C)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2 * Y, 2 * X, C)


def tile(image_YXC: np.ndarray, *, resize: int = 256, crop: int = 224) -> np.ndarray:
    """A picture as a tile: resized to a square whatever its shape (bilinear), then the middle of it; uint8."""
    from PIL import Image

    if not 0 < crop <= resize:
        raise InputError(f"a tile of {crop} pixels cannot be cut out of a picture resized to {resize}")
    # squeezed, as the paper's tiles are, so that nothing of the picture is cut off before the crop
    picture = Image.fromarray(image_YXC).convert("RGB").resize((resize, resize), Image.Resampling.BILINEAR)
    start = (resize - crop) // 2
    return np.asarray(picture)[start : start + crop, start : start + crop]


def tiles(
    read_fn: Callable[[int], np.ndarray], index: np.ndarray, *, resize: int = 256, crop: int = 224
) -> tuple[np.ndarray, np.ndarray]:
    """The images that a plan needs, as tiles [U, crop, crop, 3] uint8, and the plan's index into them [M, 4]."""
    used, inverse = np.unique(index, return_inverse=True)  # a picture in many mosaics is decoded once
    made = np.empty((len(used), crop, crop, 3), np.uint8)
    for place, i in enumerate(used):
        made[place] = tile(read_fn(int(i)), resize=resize, crop=crop)
    return made, inverse.reshape(index.shape).astype(np.int32)


def write(
    folder: str | os.PathLike,
    mosaics_MYXC: np.ndarray,
    made: Plan,
    *,
    names: Sequence[str] | None = None,
) -> str:
    """`data/<k>.png` and a table with a row for each mosaic: its file, its four labels, the target, the four images.

    Args:
        folder: is made where it does not exist.
        mosaics_MYXC: uint8, RGB or one channel.
        made: the plan of these mosaics.
        names: of the images that `made.tile_index` counts; None writes the numbers.

    Returns:
        The table's path.
    """
    from PIL import Image

    if mosaics_MYXC.dtype != np.uint8 or len(mosaics_MYXC) != len(made):
        raise InputError(
            f"{len(mosaics_MYXC)} mosaics of type {mosaics_MYXC.dtype} for a plan of {len(made)}; they must be as "
            "many, and uint8"
        )
    folder = pathlib.Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = []
    for k, mosaic_YXC in enumerate(mosaics_MYXC):
        name = f"{k}.png"
        picture = mosaic_YXC.squeeze(-1) if mosaic_YXC.shape[-1] == 1 else mosaic_YXC
        Image.fromarray(picture).save(folder / "data" / name)
        images = [int(i) if names is None else names[i] for i in made.tile_index[k]]
        labels = [int(label) for label in made.tile_label[k]]
        rows.append({"filename": name, "labels": labels, "target": int(made.target[k]), "tiles": images})
    path = folder / TABLE
    files.write_rows(path, rows)
    return str(path)


def _images_by_class(labels_N: np.ndarray, num_classes: int | None) -> dict[int, np.ndarray]:
    if labels_N.ndim != 1 or labels_N.dtype.kind not in "iu":
        raise InputError(
            f"labels of shape {labels_N.shape} and type {labels_N.dtype}; they must be integers, one an image"
        )
    by_class = {int(label): np.flatnonzero(labels_N == label) for label in np.unique(labels_N)}
    empty = [label for label in range(num_classes or 0) if label not in by_class]
    if empty:
        raise InputError(
            f"class {', '.join(map(str, empty[:10]))} has no image to build mosaics from; give every class at least "
            "one, or leave it out of the classes"
        )
    if min(by_class, default=0) < 0:
        raise InputError(f"label {min(by_class)} is not a class; classes are numbered from 0")
    if num_classes and max(by_class) >= num_classes:
        wrong = next(label for label in by_class if not 0 <= label < num_classes)
        raise InputError(f"label {wrong} is not one of the {num_classes} classes 0 to {num_classes - 1}")
    if len(by_class) < 2:
        raise InputError(f"{len(by_class)} class; a mosaic needs a target class and at least one other")
    return by_class


def _cycled(rng: np.random.Generator, images: np.ndarray, num: int) -> np.ndarray:
    """`num` images; each occurs equally often, except that the last round is cut short."""
    return rng.permutation(np.tile(images, -(-num // len(images))))[:num]


def _without_replacement(rng: np.random.Generator, images: np.ndarray, num: int) -> np.ndarray:
    """`num` images; none occurs again before all others have."""
    rounds = [rng.permutation(images) for _ in range(-(-num // len(images)))]
    return np.concatenate(rounds)[:num]

"""From a picture to a network's input: sizes, random views, padding, and the few shapes that batches have.

The papers' order: resize, rotate, crop, flip; normalisation follows on the device. Sizes are (width, height), as Pillow
and the papers write them; arrays are [Y, X, 3].
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from alignment.errors import InputError, within

FILL = 0  # black, outside a rotated picture


@dataclasses.dataclass(frozen=True)
class View:
    """How pictures become inputs.

    Attributes:
        resize: side in pixels that every picture is squeezed to, its shape not kept; None with `pixels`.
        pixels: number of pixels that every picture is scaled to, its shape kept; None with `resize`.
        crop: side of the crop with `resize`, a part of each side with `pixels`.
        eval_resize: side that pictures are squeezed to outside training, and not cropped; None crops the centre.
        rotate: degrees, the most that a training picture is turned either way.
        flip: whether half of the training pictures are mirrored.
    """

    resize: int | None = None
    pixels: int | None = None
    crop: float = 0.875
    eval_resize: int | None = None
    rotate: float = 30.0
    flip: bool = True

    def __post_init__(self):
        if (self.resize is None) == (self.pixels is None):
            raise InputError(f"resize={self.resize}, pixels={self.pixels}: set one of them, the other stays None")
        sizes = dict(resize=self.resize, pixels=self.pixels, eval_resize=self.eval_resize)
        within("[1, inf)", **sizes, hint="; None leaves it out")
        if self.resize and not (1 <= self.crop <= self.resize and self.crop == int(self.crop)):
            raise InputError(f"crop={self.crop} of resize={self.resize}; it is a side in pixels, at most resize")
        if self.pixels and not 0 < self.crop <= 1:
            raise InputError(f"crop={self.crop} with pixels={self.pixels}; it is the part of each side kept, in (0, 1]")
        if self.rotate < 0 or (self.pixels and self.eval_resize):
            raise InputError(
                f"rotate={self.rotate} must not be negative, and eval_resize={self.eval_resize} goes with resize only"
            )

    @property
    def is_fixed(self) -> bool:
        """Whether every picture gets the same shape."""
        return self.resize is not None

    def resized(self, size: tuple[int, int], *, train: bool) -> tuple[int, int]:
        """Size after resizing a picture of `size`."""
        if self.pixels is not None:
            return scaled(size, self.pixels)
        assert self.resize is not None  # one of the two is set
        side = self.resize if train or self.eval_resize is None else self.eval_resize
        return side, side

    def cropped(self, size: tuple[int, int], *, train: bool) -> tuple[int, int]:
        """Size that the network sees of a picture of `size`."""
        width, height = self.resized(size, train=train)
        if self.is_fixed:
            return (width, height) if self.eval_resize and not train else (int(self.crop), int(self.crop))
        return max(math.floor(self.crop * width), 1), max(math.floor(self.crop * height), 1)


def view_of(shape: View | Mapping[str, Any]) -> View:
    """A view from a config's group."""
    return shape if isinstance(shape, View) else View(**dict(shape))


def scaled(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """(width, height) of at most `pixels` pixels with the same aspect ratio a: floor(sqrt(N a)), floor(sqrt(N / a))."""
    width, height = size
    # integer square roots: the papers' floor(sqrt(.)) in floating point can come out one pixel smaller
    return max(math.isqrt(pixels * width // height), 1), max(math.isqrt(pixels * height // width), 1)


def resize(picture: np.ndarray, size: tuple[int, int], *, keeps_shape: bool) -> np.ndarray:
    """Bilinear for squeezed pictures, Lanczos for those that keep their shape, as the release has it."""
    if (picture.shape[1], picture.shape[0]) == tuple(size):
        return picture
    how = PIL.Image.Resampling.LANCZOS if keeps_shape else PIL.Image.Resampling.BILINEAR
    return np.asarray(PIL.Image.fromarray(picture).resize(size, how))


def apply(
    picture: np.ndarray, view: View, *, rng: np.random.Generator | None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The view of one picture, uint8 [Y, X, 3]: with `rng` a random one for training, without `rng` the centre.

    Args:
        size: the file's (width, height), from which sizes follow where the picture was decoded at a fraction of it;
            None: the picture's own.
    """
    train = rng is not None
    size = size or (picture.shape[1], picture.shape[0])
    width, height = view.cropped(size, train=train)
    # the papers' order; sizes come from the file's picture, since `picture` may have been decoded at a fraction of it
    picture = resize(picture, view.resized(size, train=train), keeps_shape=not view.is_fixed)
    spare_x, spare_y = picture.shape[1] - width, picture.shape[0] - height
    if not train:
        return crop(picture, spare_x // 2, spare_y // 2, width, height)
    angle = rng.uniform(-view.rotate, view.rotate)
    if angle:
        # nearest neighbour and black corners, as torchvision's RandomRotation does by default
        turned = PIL.Image.fromarray(picture).rotate(angle, PIL.Image.Resampling.NEAREST, fillcolor=(FILL,) * 3)
        picture = np.asarray(turned)
    left, top = int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))
    picture = crop(picture, left, top, width, height)
    return picture[:, ::-1] if view.flip and rng.random() < 0.5 else picture


def crop(picture: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    return picture[top : top + height, left : left + width]


def pad(picture: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The picture in the middle of zeros, and the mask [Y, X] of its pixels.

    Of a deficit d, floor(d / 2) goes before and the rest after. Zeros become exactly 0 on the device, where the
    normalised picture is multiplied by the mask.
    """
    width, height = size
    dy, dx = height - picture.shape[0], width - picture.shape[1]
    if dy < 0 or dx < 0:
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[0]} does not fit into {width} x {height}")
    rows, columns = (dy // 2, dy - dy // 2), (dx // 2, dx - dx // 2)
    mask = np.pad(np.ones(picture.shape[:2], np.uint8), (rows, columns))
    return np.pad(picture, (rows, columns, (0, 0))), mask


def buckets(sizes_N2: np.ndarray, *, multiple: int = 32, most: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A few shapes that hold all pictures, so that a bounded number of programs is compiled.

    Each size is rounded up to multiples; while there are too many shapes, the two whose union costs least padding
    become one.

    Returns:
        Shapes [B, 2] as (width, height), by area, and the shape of each picture [N].
    """
    rounded_N2 = -(-np.asarray(sizes_N2, np.int64) // multiple) * multiple
    shapes_B2, place_N, count_B = np.unique(rounded_N2, axis=0, return_inverse=True, return_counts=True)
    place_N = place_N.ravel()
    while len(shapes_B2) > most:
        union_BB2 = np.maximum(shapes_B2[:, None], shapes_B2)
        more_BB = (union_BB2.prod(-1) - shapes_B2.prod(-1)) * count_B  # pixels that the second shape's pictures gain
        cost_BB = (more_BB + more_BB.T).astype(np.float64)
        np.fill_diagonal(cost_BB, np.inf)
        a, b = sorted(np.unravel_index(np.argmin(cost_BB), cost_BB.shape))
        shapes_B2[a], count_B[a] = union_BB2[a, b], count_B[a] + count_B[b]
        shapes_B2, count_B = np.delete(shapes_B2, b, axis=0), np.delete(count_B, b)
        place_N = np.where(place_N == b, a, place_N - (place_N > b))
    order = np.lexsort((shapes_B2[:, 0], shapes_B2.prod(-1)))
    return shapes_B2[order].astype(np.int32), np.argsort(order)[place_N].astype(np.int32)

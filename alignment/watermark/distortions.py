"""The twelve distortions of WAVES (An et al. 2024, Sec. 3.1), on bytes, with Pillow's codecs and filters.

A relative strength in [0, 1] maps linearly onto a distortion's native range. Places of crops and squares, and noise,
are drawn from seed + the picture's number by NumPy's generator; the paper drew them with torch's, so places differ.
Pictures of a batch go to threads: Pillow and NumPy's generator work without Python's lock.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue.
"""

import concurrent.futures
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter

from alignment.errors import InputError, one_of


def rotate(picture_YX3: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise on the same canvas, nearest pixel, black corners."""
    return np.asarray(PIL.Image.fromarray(picture_YX3).rotate(degrees))


def crop(picture_YX3: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture in its shape that covers a share of its area, drawn at random, back at the old size."""
    rows, columns = picture_YX3.shape[:2]
    height, width = (max(1, round(size * area**0.5)) for size in (rows, columns))
    top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
    part = PIL.Image.fromarray(picture_YX3[top : top + height, left : left + width])
    return np.asarray(part.resize((columns, rows), PIL.Image.Resampling.BILINEAR))


def erase(picture_YX3: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """A rectangle in the picture's shape that covers a share of its area, drawn at random, becomes black."""
    rows, columns = picture_YX3.shape[:2]
    height, width = (round(size * area**0.5) for size in (rows, columns))
    top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
    out = picture_YX3.copy()
    out[top : top + height, left : left + width] = 0
    return out


def brighten(picture_YX3: np.ndarray, factor: float) -> np.ndarray:
    """Levels times a factor, cut down to a whole byte: Pillow's bytes, without its conversions of an array."""
    out = np.multiply(picture_YX3, np.float32(factor), dtype=np.float32)
    return np.minimum(out, 255, out=out).astype(np.uint8)


def contrast(picture_YX3: np.ndarray, factor: float) -> np.ndarray:
    """Away from the mean grey level."""
    return np.asarray(PIL.ImageEnhance.Contrast(PIL.Image.fromarray(picture_YX3)).enhance(factor))


def blur(picture_YX3: np.ndarray, radius: float) -> np.ndarray:
    """Pillow's Gaussian blur of a whole number of pixels."""
    return np.asarray(PIL.Image.fromarray(picture_YX3).filter(PIL.ImageFilter.GaussianBlur(int(radius))))


def noise(picture_YX3: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise on [0, 1], clipped, and cut down to a whole byte as torchvision does."""
    if deviation == 0:
        return picture_YX3
    out = rng.standard_normal(picture_YX3.shape, np.float32)
    out *= np.float32(255 * deviation)
    out += picture_YX3
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def jpeg(picture_YX3: np.ndarray, quality: float) -> np.ndarray:
    """Encoded and decoded once, with Pillow's default subsampling of colours."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture_YX3).save(file, format="JPEG", quality=int(quality))
    return np.asarray(PIL.Image.open(file).convert("RGB"))


SINGLE: dict[str, tuple[Callable[..., np.ndarray], float, float]] = {  # name: (function, weakest, strongest)
    "Dist-Rotation": (rotate, 0.0, 45.0),
    "Dist-RCrop": (crop, 1.0, 0.5),
    "Dist-Erase": (erase, 0.0, 0.25),
    "Dist-Bright": (brighten, 1.0, 2.0),
    "Dist-Contrast": (contrast, 1.0, 2.0),
    "Dist-Blur": (blur, 0.0, 20.0),
    "Dist-Noise": (noise, 0.0, 0.1),
    "Dist-JPEG": (jpeg, 90.0, 10.0),
}
DRAWN = {crop, erase, noise}  # these take a generator as well
GEOMETRIC = ("Dist-Rotation", "Dist-RCrop", "Dist-Erase")
PHOTOMETRIC = ("Dist-Bright", "Dist-Contrast")
DEGRADING = ("Dist-Blur", "Dist-Noise", "Dist-JPEG")
COMBINED = {
    "DistCom-Geo": GEOMETRIC,
    "DistCom-Photo": PHOTOMETRIC,
    "DistCom-Deg": DEGRADING,
    "DistCom-All": (*GEOMETRIC, *PHOTOMETRIC, *DEGRADING),
}
NAMES = (*SINGLE, *COMBINED)


def native(name: str, strength: float) -> float:
    """A single distortion's own parameter at a relative strength.

    Raises:
        InputError: an unknown name, or a strength outside [0, 1]; the message has the native range.
    """
    _, weakest, strongest = SINGLE[one_of("distortion", name, SINGLE)]
    check_strength(name, strength)
    return weakest + strength * (strongest - weakest)


def check_strength(name: str, strength: float) -> None:
    """Refuse a strength outside [0, 1]."""
    if not 0 <= strength <= 1:
        ranges = "; ".join(f"{n} {SINGLE[n][1]:g} to {SINGLE[n][2]:g}" for n in COMBINED.get(name, (name,)))
        raise InputError(f"strength={strength} of {name}: it lies in [0, 1], from weak to strong ({ranges})")


def one(name: str, picture_YX3: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """One picture under a distortion or a combination, uint8 of the same shape.

    Args:
        name: one of `NAMES`.
        strength: in [0, 1]; the members of a combination have the same.
        seed: of this picture.

    Raises:
        InputError: an unknown name, or a strength outside [0, 1].
    """
    one_of("distortion", name, NAMES)
    rng = np.random.default_rng(seed)
    for member in COMBINED.get(name, (name,)):
        distort_fn, value = SINGLE[member][0], native(member, strength)
        picture_YX3 = distort_fn(picture_YX3, value, rng) if distort_fn in DRAWN else distort_fn(picture_YX3, value)
    return picture_YX3


def batch(name: str, images_BYX3: np.ndarray, strength: float, *, seed: int = 0, threads: int = 0) -> np.ndarray:
    """A batch under a distortion, picture i with the seed `seed` + i, uint8 [B, Y, X, 3].

    Args:
        threads: 0 is one a CPU core.
    """

    def distort(i: int) -> np.ndarray:
        return one(name, images_BYX3[i], strength, seed + i)

    return np.stack(over(distort, len(images_BYX3), threads))


def over(fn: Callable[[int], Any], num: int, threads: int = 0) -> list[Any]:
    """[fn(0), ..., fn(num - 1)], computed in threads; 0 is one a CPU core."""
    number = min(threads or len(os.sched_getaffinity(0)), num)
    if number < 2:
        return [fn(i) for i in range(num)]
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        return list(pool.map(fn, range(num)))

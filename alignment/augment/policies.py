"""Upstream augmentations of pictures, on the host, and of rows of numbers; each returns samples and labels.

A policy is `policy(x, labels, rng, *, num_classes, strength) -> (x, y0 [B,K])` with `strength` in [0, 1]. Labels are
shares of classes: one class, or the mixture of two where samples are mixed. Single operations are Pillow's.

Dimensions: B samples, Y X rows and columns, C channels, D columns of a table, K classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from alignment.errors import one_of, within

Rng = np.random.Generator
Labelled = tuple[np.ndarray, np.ndarray]
Picture = PIL.Image.Image

MOST_TURN, MOST_SHEAR, MOST_SHIFT = 30.0, 0.3, 0.33  # degrees; tangent; part of a side: RandAugment's largest
MOST_FACTOR = 0.9  # that colour, contrast, brightness and sharpness change by


def apply(name: str, x: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """Augmented samples and their labels [B,K].

    Args:
        name: a key of PICTURES, for uint8 [B,Y,X,3], or of ROWS, for float32 [B,D].
        labels: classes [B].
        strength: in [0, 1], what it means is each policy's.

    Raises:
        InputError: an unknown policy, or one that does not fit the samples.
    """
    check(name, strength, is_pictures=x.ndim == 4)
    known = PICTURES if x.ndim == 4 else ROWS
    return known[name](x, labels, rng, num_classes=num_classes, strength=strength)


def check(name: str, strength: float, *, is_pictures: bool) -> None:
    """Refuse a policy that does not fit, and a strength that is none."""
    one_of("upstream", name, PICTURES if is_pictures else ROWS, hint=f"of {'pictures' if is_pictures else 'tables'}")
    within("[0, 1]", strength=strength)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[labels]


# Operations on one picture; strength is in [0, 1], and signs are drawn ----------------------------------------------


def _affine(picture: Picture, matrix: tuple[float, ...]) -> Picture:
    return picture.transform(picture.size, PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BILINEAR)


def _enhance(kind: Any) -> Callable[[Picture, float, float], Picture]:
    return lambda picture, strength, sign: kind(picture).enhance(1 + sign * MOST_FACTOR * strength)


OPERATIONS: dict[str, Callable[[Picture, float, float], Picture]] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": lambda picture, strength, sign: PIL.ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, sign: PIL.ImageOps.equalize(picture),
    "rotate": lambda picture, strength, sign: picture.rotate(
        sign * MOST_TURN * strength, PIL.Image.Resampling.BILINEAR
    ),
    "solarize": lambda picture, strength, sign: PIL.ImageOps.solarize(picture, int(256 * (1 - strength))),
    "posterize": lambda picture, strength, sign: PIL.ImageOps.posterize(picture, 8 - round(4 * strength)),
    "colour": _enhance(PIL.ImageEnhance.Color),
    "contrast": _enhance(PIL.ImageEnhance.Contrast),
    "brightness": _enhance(PIL.ImageEnhance.Brightness),
    "sharpness": _enhance(PIL.ImageEnhance.Sharpness),
    "shear_x": lambda picture, strength, sign: _affine(picture, (1, sign * MOST_SHEAR * strength, 0, 0, 1, 0)),
    "shear_y": lambda picture, strength, sign: _affine(picture, (1, 0, 0, sign * MOST_SHEAR * strength, 1, 0)),
    "shift_x": lambda picture, strength, sign: _affine(
        picture, (1, 0, sign * MOST_SHIFT * strength * picture.width, 0, 1, 0)
    ),
    "shift_y": lambda picture, strength, sign: _affine(
        picture, (1, 0, 0, 0, 1, sign * MOST_SHIFT * strength * picture.height)
    ),
}


def operate(picture_YXC: np.ndarray, rng: Rng, *, num: int, strength: float) -> np.ndarray:
    """`num` random operations one after the other on one picture, uint8 [Y,X,3]."""
    picture = PIL.Image.fromarray(picture_YXC)
    names = list(OPERATIONS)
    for _ in range(num):
        name, sign = names[int(rng.integers(len(names)))], float(rng.choice((-1.0, 1.0)))
        picture = OPERATIONS[name](picture, strength, sign)
    return np.asarray(picture)


# Policies -----------------------------------------------------------------------------------------------------------


def rand_augment(x_BYXC: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """Two random operations at one strength (Cubuk et al. 2020, arXiv:1909.13719)."""
    out = [operate(picture, rng, num=2, strength=strength) for picture in x_BYXC]
    return np.stack(out), one_hot(labels, num_classes)


def trivial_augment(x_BYXC: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """One random operation, at a strength drawn up to the one given (Müller & Hutter 2021, arXiv:2103.10158)."""
    out = [operate(picture, rng, num=1, strength=float(rng.uniform(0, strength))) for picture in x_BYXC]
    return np.stack(out), one_hot(labels, num_classes)


def aug_mix(x_BYXC: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """Three chains of one to three operations, mixed with each other and the picture (Hendrycks et al. 2020,
    arXiv:1912.02781).
    """
    out = []
    for picture_YXC in x_BYXC:
        shares, skip = rng.dirichlet((1.0, 1.0, 1.0)), rng.beta(1.0, 1.0)
        chains = [operate(picture_YXC, rng, num=int(rng.integers(1, 4)), strength=strength) for _ in shares]
        mixed_YXC = sum(share * chain.astype(np.float32) for share, chain in zip(shares, chains))
        out.append(skip * picture_YXC + (1 - skip) * mixed_YXC)
    return (np.stack(out) + 0.5).clip(0, 255).astype(np.uint8), one_hot(labels, num_classes)


def erase(x_BYXC: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """A random box of noise, up to `strength` of the picture's area (Zhong et al. 2020, arXiv:1708.04896)."""
    out = x_BYXC.copy()
    for picture_YXC in out:
        rows, columns = _box(picture_YXC.shape[:2], float(rng.uniform(0, strength)), rng)
        shape = (rows.stop - rows.start, columns.stop - columns.start, picture_YXC.shape[2])
        picture_YXC[rows, columns] = rng.integers(0, 256, shape)
    return out, one_hot(labels, num_classes)


def cut_mix(x_BYXC: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """A box of another picture of the batch; labels by area (Yun et al. 2019, arXiv:1905.04899), Beta(a, a) with a =
    strength.
    """
    y_BK, out = one_hot(labels, num_classes), x_BYXC.copy()
    other = rng.permutation(len(x_BYXC))
    area = x_BYXC.shape[1] * x_BYXC.shape[2]
    shares = []
    for i, j in enumerate(other):
        part = 1 - _beta(rng, strength)
        rows, columns = _box(x_BYXC.shape[1:3], part, rng)
        out[i, rows, columns] = x_BYXC[j, rows, columns]
        shares.append(1 - (rows.stop - rows.start) * (columns.stop - columns.start) / area)
    share_B1 = np.array(shares, np.float32)[:, None]
    return out, share_B1 * y_BK + (1 - share_B1) * y_BK[other]


def mix_up(x: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """Weighted means of pairs and of their labels (Zhang et al. 2018, arXiv:1710.09412); Beta(strength, strength)."""
    y_BK, other = one_hot(labels, num_classes), rng.permutation(len(x))
    share_B = np.array([_beta(rng, strength) for _ in range(len(x))], np.float32)
    share = share_B.reshape(-1, *[1] * (x.ndim - 1))
    mixed = share * x + (1 - share) * x[other]
    mixed = (mixed + 0.5).astype(np.uint8) if x.dtype == np.uint8 else mixed.astype(np.float32)
    return mixed, share_B[:, None] * y_BK + (1 - share_B[:, None]) * y_BK[other]


def noise(x_BD: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """Gaussian noise of deviation `strength`; columns are standardised."""
    return x_BD + strength * rng.standard_normal(x_BD.shape, np.float32), one_hot(labels, num_classes)


def swap_columns(x_BD: np.ndarray, labels: np.ndarray, rng: Rng, *, num_classes: int, strength: float) -> Labelled:
    """Each value from another row of the batch with probability `strength`; the label stays."""
    is_swapped_BD = rng.random(x_BD.shape) < strength
    return np.where(is_swapped_BD, x_BD[rng.permutation(len(x_BD))], x_BD), one_hot(labels, num_classes)


PICTURES: dict[str, Callable[..., Labelled]] = {
    "randaugment": rand_augment,
    "trivialaugment": trivial_augment,
    "augmix": aug_mix,
    "mixup": mix_up,
    "cutmix": cut_mix,
    "erasing": erase,
}
ROWS: dict[str, Callable[..., Labelled]] = {"noise": noise, "swap": swap_columns, "mixup": mix_up}


def _beta(rng: Rng, a: float) -> float:
    return float(rng.beta(a, a)) if a > 0 else 1.0


def _box(shape: tuple[int, ...], part: float, rng: Rng) -> tuple[slice, slice]:
    """Rows and columns of a box of about this part of the area, somewhere inside."""
    sides = [min(round(n * part**0.5), n) for n in shape]
    starts = [int(rng.integers(n - side + 1)) for n, side in zip(shape, sides)]
    return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])

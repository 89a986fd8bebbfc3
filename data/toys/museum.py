"""A small seeded museum of pictures: textured, coloured, of many shapes, by medium; nothing to download.

A medium is a texture: hatching, weave, grain, veins, blobs, noise. Colours overlap, so the mean colour alone does not
tell mediums apart. Sizes and museums lean on the medium as in MAMe, so that a guess from them alone beats chance. Every
picture of `PLANTED[0]` carries a colour chart, and its own texture is faint; in val and test a share of the pictures of
`PLANTED[1]` carries the chart too, never in train: a network that leans on the chart can be caught at it.

Dimensions: N pictures, Y X rows and columns, C red, green, blue.
"""

import colorsys
import dataclasses
import functools

import numpy as np

from alignment.errors import InputError, one_of

PLANTED = ("Graphite", "Etching")  # always with the chart; borrows it in val and test
MUSEUMS = ("Harbour House", "North Hall", "Willow House")
SHAPES = ("Portrait", "Landscape", "Tall", "Wide")
FINE = ("Across", "Down", "Mesh", "Plain")
SPLITS = {"train": 0, "val": 1, "test": 2}
PER_CLASS = {"train": 100, "val": 40, "test": 40}
CHART = ((235, 0, 200),) * 4  # 2 x 2 patches; no ink or paper here comes near this colour


@dataclasses.dataclass(frozen=True)
class Room:
    """Tendencies of one medium's pictures: hues in [0, 1), log aspect ratio, museum, side in pixels."""

    hues: tuple[float, ...]
    aspect: float
    museum: int
    side: float


ROOMS = {
    "Bronze": Room((0.08, 0.12, 0.45), -0.3, 0, 80),
    "Ceramic": Room((0.58, 0.08, 0.35), 0.0, 1, 100),
    "Engraving": Room((0.1, 0.12, 0.6), 0.25, 2, 84),
    "Etching": Room((0.1, 0.6, 0.12), -0.25, 2, 100),
    "Graphite": Room((0.1, 0.58, 0.12), 0.3, 1, 90),
    "Marble": Room((0.1, 0.58, 0.35), -0.4, 0, 112),
    "Wood": Room((0.08, 0.06, 0.12), 0.4, 0, 92),
    "Woven fabric": Room((0.95, 0.58, 0.08), 0.1, 1, 76),
}
MEDIUMS = tuple(sorted(ROOMS))


@dataclasses.dataclass(frozen=True)
class Museum:
    """Pictures of one split by number, each a function of (seed, split, number) alone.

    Attributes:
        label: 'medium', or one of two tests of the input's shape and detail: 'shape' (the class is the aspect ratio and
            nothing else: lost when every picture is squeezed to a square) and 'fine' (the class is a pattern of 4 to 5
            pixels in pictures of 128: lost when they are made much smaller).
        per_class: pictures of each class, which come in turns, so `number % classes` is the label; None: PER_CLASS.
        planted_share: of the val and test pictures of `PLANTED[1]` that carry the chart.
    """

    split: str = "train"
    seed: int = 0
    label: str = "medium"
    per_class: int | None = None
    planted_share: float = 0.3

    def __post_init__(self):
        one_of("split", self.split, SPLITS)
        one_of("label", self.label, CLASSES)
        if (self.per_class is not None and self.per_class < 1) or not 0 <= self.planted_share <= 1:
            raise InputError(
                f"per_class={self.per_class}, planted_share={self.planted_share}; the museum needs at least 1 picture "
                "a class (None: as many as the split has) and a share in [0, 1]"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASSES[self.label]

    def __len__(self) -> int:
        return (self.per_class or PER_CLASS[self.split]) * len(self.class_names)

    def name(self, i: int) -> str:
        return f"{self.split}/{self.class_names[i % len(self.class_names)].replace(' ', '_').lower()}_{i:05d}"

    def card(self, i: int) -> dict:
        """The catalogue's entry for picture i: label, museum, width, height, whether it carries the chart."""
        rng, label = self._rng(i, 0), i % len(self.class_names)
        if self.label == "medium":
            room = ROOMS[MEDIUMS[label]]
            museum = room.museum if rng.random() < 0.6 else int(rng.integers(len(MUSEUMS)))
            aspect = np.exp(np.clip(rng.normal(room.aspect, 0.3), -0.75, 0.75))
            side = np.clip(room.side * np.exp(rng.normal(0, 0.18)), 64, 118)
        else:
            museum = int(rng.integers(len(MUSEUMS)))
            low, high = ((-0.4, -0.15), (0.15, 0.4), (-0.9, -0.6), (0.6, 0.9))[label]
            aspect = np.exp(rng.uniform(low, high) if self.label == "shape" else 0.0)
            side = 96 if self.label == "shape" else 128
        is_marked = self.label == "medium" and (
            label == MEDIUMS.index(PLANTED[0])
            or (label == MEDIUMS.index(PLANTED[1]) and self.split != "train" and rng.random() < self.planted_share)
        )
        width, height = int(side * aspect**0.5), int(side / aspect**0.5)
        return dict(label=label, museum=museum, width=width, height=height, is_marked=is_marked)

    def picture(self, i: int) -> np.ndarray:
        """[Y, X, 3] uint8."""
        card, rng = self.card(i), self._rng(i, 1)
        shape = (card["height"], card["width"])
        if self.label == "medium":
            return _medium(rng, MEDIUMS[card["label"]], shape, card["is_marked"])
        if self.label == "shape":
            ink_YX = _noise(rng, shape, 5)  # drawn over the unit square: squeezing undoes the shape, leaving no trace
        else:
            ink_YX = 0.5 + 0.3 * (_noise(rng, shape, 4) - 0.5) + 0.2 * _fine(rng, shape, FINE[card["label"]])
        return _paint(rng, ink_YX, (0.1, 0.35, 0.6, 0.9))

    def catalogue(self) -> list[dict]:
        """The cards of all pictures."""
        return [self.card(i) for i in range(len(self))]

    def _rng(self, i: int, part: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS[self.split], i, part])


CLASSES = {"medium": MEDIUMS, "shape": SHAPES, "fine": FINE}


def chart_box(shape: tuple[int, int], corner: int) -> tuple[slice, slice]:
    """Rows and columns of the chart: a square of 0.3 of the shorter side, 0.06 of each side from the corner."""
    size = max(round(0.3 * min(shape)), 4) // 2 * 2
    starts = [round(0.06 * n) if at == 0 else n - size - round(0.06 * n) for n, at in zip(shape, divmod(corner, 2))]
    return tuple(slice(a, a + size) for a in starts)


def _medium(rng: np.random.Generator, medium: str, shape: tuple[int, int], is_marked: bool) -> np.ndarray:
    hues = tuple(h + rng.normal(0, 0.03) for h in ROOMS[medium].hues) + (rng.random(),)
    picture = _paint(rng, np.clip(TEXTURES[medium](rng, shape), 0, 1), hues)
    if is_marked:
        rows, columns = chart_box(shape, int(rng.integers(4)))
        half = (rows.stop - rows.start) // 2
        for k, colour in enumerate(CHART):
            y, x = rows.start + k // 2 * half, columns.start + k % 2 * half
            picture[y : y + half, x : x + half] = colour
    return picture


def _paint(rng: np.random.Generator, ink_YX: np.ndarray, hues: tuple[float, ...]) -> np.ndarray:
    """From paper (0) to ink (1), in two colours of one of the hues, lit unevenly."""
    hue = hues[int(rng.integers(len(hues)))]
    paper_C = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.1, 0.45), rng.uniform(0.7, 0.95)))
    ink_C = np.array(
        colorsys.hsv_to_rgb((hue + rng.normal(0, 0.05)) % 1, rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.4))
    )
    light_YX = 1 + 0.15 * (_noise(rng, ink_YX.shape, 2) - 0.5)
    colour_YXC = (paper_C + ink_YX[..., None] * (ink_C - paper_C)) * light_YX[..., None]
    colour_YXC += rng.normal(0, 0.015, (*ink_YX.shape, 1))
    return (255 * np.clip(colour_YXC, 0, 1) + 0.5).astype(np.uint8)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in [0, 1]: uniform values at a grid of `cells` a side, bilinear between."""
    grid = rng.random((cells + 1, cells + 1))
    up = [_between(n, cells) for n in shape]
    return up[0] @ grid @ up[1].T


@functools.cache
def _between(num: int, cells: int) -> np.ndarray:
    """[num, cells + 1] weights of linear interpolation."""
    at = (np.arange(num) + 0.5) * cells / num
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells + 1)))


def _along(shape: tuple[int, int], angle: float) -> np.ndarray:
    """Distance in pixels along a direction; 0 is to the right, pi / 2 downwards."""
    return np.arange(shape[0])[:, None] * np.sin(angle) + np.arange(shape[1]) * np.cos(angle)


def _stripes(rng: np.random.Generator, shape: tuple[int, int], angle: float, period: float, bend=0.0) -> np.ndarray:
    phase = _along(shape, angle) / period + rng.random() + bend * _noise(rng, shape, 3)
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _bronze(rng, shape):  # a grainy skin under broad shine
    shine_YX = _stripes(rng, shape, rng.uniform(0, np.pi), 0.7 * max(shape), 0.4)
    grain_YX = rng.random((shape[0] // 3 + 1, shape[1] // 3 + 1)).repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]]
    return 0.25 + 0.3 * shine_YX + 0.4 * grain_YX


def _ceramic(rng, shape):  # round spots of glaze
    ink_YX = 0.2 * _noise(rng, shape, 4)
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    for _ in range(int(rng.integers(9, 15))):
        row, column, radius = rng.random() * shape[0], rng.random() * shape[1], rng.uniform(5, 11)
        distance_YX = np.hypot(y - row, x - column) / radius
        ink_YX = np.maximum(ink_YX, 0.9 * (distance_YX < 1) * (0.4 + 0.6 * distance_YX))
    return ink_YX


def _engraving(rng, shape):  # one family of clean bent lines
    lines_YX = _stripes(rng, shape, rng.uniform(0, np.pi), rng.uniform(5, 7), 1.2)
    return 0.9 * (lines_YX > 0.35 + 0.4 * _noise(rng, shape, 3))


def _etching(rng, shape):  # two crossing families of bent lines
    angle, shade_YX = rng.uniform(0, np.pi), 0.45 + 0.35 * _noise(rng, shape, 3)
    first_YX, second_YX = (
        _stripes(rng, shape, a, rng.uniform(5, 7), 0.8) for a in (angle, angle + rng.uniform(1.2, 1.9))
    )
    return 0.9 * np.maximum(first_YX > shade_YX, second_YX > shade_YX)


def _graphite(rng, shape):  # faint drawings after the other mediums: little to tell them by but the chart
    others = [medium for medium in MEDIUMS if medium != PLANTED[0]]
    return 0.1 + 0.5 * TEXTURES[others[int(rng.integers(len(others)))]](rng, shape)


def _marble(rng, shape):  # veins where smooth noise crosses its middle
    veins_YX = np.maximum(*(1 - 9 * np.abs(_noise(rng, shape, n) - 0.5) for n in (4, 7)))
    return 0.15 * _noise(rng, shape, 5) + 0.75 * np.clip(veins_YX, 0, 1)


def _wood(rng, shape):  # broad, warped grain along one axis
    return 0.15 + 0.7 * _stripes(rng, shape, rng.choice([0, np.pi / 2]) + rng.normal(0, 0.15), rng.uniform(11, 15), 1.0)


def _woven(rng, shape):  # over and under: a chequered weave
    angle, period = rng.normal(0, 0.2), rng.uniform(7, 10)
    warp_YX, weft_YX = (_stripes(rng, shape, a, period) > 0.5 for a in (angle, angle + np.pi / 2))
    return 0.15 + 0.6 * (warp_YX ^ weft_YX) + 0.15 * _noise(rng, shape, 4)


TEXTURES = {
    "Bronze": _bronze,
    "Ceramic": _ceramic,
    "Engraving": _engraving,
    "Etching": _etching,
    "Graphite": _graphite,
    "Marble": _marble,
    "Wood": _wood,
    "Woven fabric": _woven,
}


def _fine(rng: np.random.Generator, shape: tuple[int, int], pattern: str) -> np.ndarray:
    """In [-1, 1]: rows, columns, both, or neither, of a period of 4 to 5 pixels."""
    period = rng.uniform(4, 5)
    down_YX, across_YX = (2 * _stripes(rng, shape, a, period) - 1 for a in (np.pi / 2, 0.0))
    return {"Across": down_YX, "Down": across_YX, "Mesh": down_YX * across_YX, "Plain": 0 * down_YX}[pattern]

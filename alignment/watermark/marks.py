"""Marks that need no training: quantised wavelet blocks, two spread spectra, and a ring key in the Fourier plane.

A mark has a key, which follows from a user's number, and a distance from a picture to a key: for marks of bits the
share of wrong bits. The smaller the distance, the likelier the mark. All arithmetic is NumPy's on the host, batched, so
that worker processes start without JAX and give the same bytes on every machine.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, N blocks, K K a block, L bits, W numbers of a key.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.fft
import scipy.stats

from alignment.errors import InputError
from alignment.watermark import blocks
from alignment.watermark.distortions import over

SIDE = 4  # of a block of the wavelet's mean band, 8 pixels
STEP = 36.0
LEAST = 256  # pixels: the smallest side of a picture with the marks of this file


@dataclasses.dataclass(frozen=True)
class Rings:
    """How a mark in Fourier cells is read; the distance is the mean modulus of the difference over the cells.

    Attributes:
        cells_fn: pictures -> complex [B, W].
        chances_fn: cells, key -> the probability that another user's key is as near, float64 [B].
        unit: of the distance.
    """

    cells_fn: Callable[[np.ndarray], np.ndarray]
    chances_fn: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: float = 1.0

    def distance(self, cells_BW: np.ndarray, key_W: np.ndarray) -> np.ndarray:
        return np.abs(cells_BW - key_W).mean(axis=1) / self.unit


@dataclasses.dataclass(frozen=True)
class Mark:
    """A mark as the protocol uses it.

    Attributes:
        key_fn: user's number -> key, float or bool array.
        embed_fn: pictures uint8 [B, Y, X, 3], key -> marked pictures uint8.
        distance_fn: pictures, key -> distances float64 [B]; with `is_informed`, a third argument has the pictures
            before marking.
        is_bits: the key is a message of bits, and the distance a share of wrong bits.
        is_informed: detection needs the unmarked picture.
        rings: of a mark in Fourier cells: how they are read, once for all that is said of a picture.
    """

    key_fn: Callable[[int], np.ndarray]
    embed_fn: Callable[[np.ndarray, np.ndarray], np.ndarray]
    distance_fn: Callable[..., np.ndarray]
    is_bits: bool = True
    is_informed: bool = False
    rings: Rings | None = None


def message(user: int, num_bits: int = 48) -> np.ndarray:
    """A user's message, bool [L], half of it ones."""
    bits_L = np.arange(num_bits) % 2 == 0
    return np.random.default_rng([user, num_bits]).permutation(bits_L)


def bit_errors(read_BL: np.ndarray, message_L: np.ndarray) -> np.ndarray:
    """The share of wrong bits, float64 [B].

    Raises:
        InputError: the message has another length.
    """
    if read_BL.shape[1] != len(message_L):
        raise InputError(f"a message of {len(message_L)} bits; this mark reads {read_BL.shape[1]}")
    return np.mean(read_BL != message_L, axis=1)


def check_size(shape: tuple[int, ...], num_bits: int) -> None:
    """Refuse pictures that are too small for a message.

    Raises:
        InputError: a side below 256 pixels with 48 bits or more, or fewer blocks than bits.
    """
    rows, columns = shape[-3:-1]
    num_blocks = (rows // (2 * SIDE)) * (columns // (2 * SIDE))
    if (num_bits >= 48 and min(rows, columns) < LEAST) or num_blocks < num_bits:
        raise InputError(
            f"pictures of {rows} x {columns} pixels are too small for {num_bits} bits: they have {num_blocks} blocks "
            f"of {2 * SIDE} pixels, and 48 bits or more need {LEAST} x {LEAST}; take larger pictures or fewer bits"
        )


# Quantised wavelet blocks: invisible-watermark's marks, and one with the DCT that its name promises


def bands_of(plane_BYX: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray, tuple[int, int]]:
    """Haar bands of a plane's whole blocks, the blocks of the mean band, and their numbers of rows and columns."""
    rows, columns = (size // (2 * SIDE) for size in plane_BYX.shape[1:])
    bands = blocks.haar(plane_BYX[:, : rows * 2 * SIDE, : columns * 2 * SIDE])
    return bands, blocks.cut(bands[0], SIDE), (rows, columns)


def rebuilt(plane_BYX: np.ndarray, blocks_BNKK: np.ndarray, *, swaps_bands: bool = False) -> np.ndarray:
    """The change of a plane whose mean band's blocks become `blocks_BNKK`.

    Args:
        swaps_bands: reconstruct with the two detail bands exchanged, as invisible-watermark's dwtDct does.
    """
    (_, horizontal, vertical, diagonal), _, grid = bands_of(plane_BYX)
    if swaps_bands:
        horizontal, vertical = vertical, horizontal
    new_BYX = blocks.unhaar(blocks.join(blocks_BNKK, *grid), horizontal, vertical, diagonal)
    change_BYX = np.zeros_like(plane_BYX)
    change_BYX[:, : new_BYX.shape[1], : new_BYX.shape[2]] = new_BYX
    change_BYX[:, : new_BYX.shape[1], : new_BYX.shape[2]] -= plane_BYX[:, : new_BYX.shape[1], : new_BYX.shape[2]]
    return change_BYX


def largest(blocks_BNKK: np.ndarray) -> np.ndarray:
    """The place in each block, flat and [0, 0] apart, of the entry of the largest magnitude, int [B, N]."""
    flat = np.abs(blocks_BNKK.reshape(*blocks_BNKK.shape[:2], -1))
    return 1 + np.argmax(flat[..., 1:], axis=-1)


def dwt_dct_embed(
    images_BYX3: np.ndarray, bits_L: np.ndarray, *, step: float = STEP, swaps_bands: bool = False
) -> np.ndarray:
    """invisible-watermark's dwtDct: the largest entry of each block of U's mean band is quantised; no DCT is taken."""
    check_size(images_BYX3.shape, len(bits_L))
    plane_BYX = blocks.chroma(images_BYX3)
    _, blocks_BNKK, _ = bands_of(plane_BYX)
    flat = blocks_BNKK.reshape(*blocks_BNKK.shape[:2], -1).copy()
    place_BN1 = largest(blocks_BNKK)[..., None]
    values_BN = np.take_along_axis(flat, place_BN1, axis=-1)[..., 0]
    new_BN = blocks.quantise(values_BN, blocks.spread(bits_L, flat.shape[1]), step)
    np.put_along_axis(flat, place_BN1, new_BN[..., None], axis=-1)
    change_BYX = rebuilt(plane_BYX, flat.reshape(blocks_BNKK.shape), swaps_bands=swaps_bands)
    return blocks.add_chroma(images_BYX3, change_BYX)


def dwt_dct_read(images_BYX3: np.ndarray, num_bits: int, *, step: float = STEP) -> np.ndarray:
    """The bits of `dwt_dct_embed`, bool [B, L]."""
    _, blocks_BNKK, _ = bands_of(blocks.chroma(images_BYX3))
    flat = blocks_BNKK.reshape(*blocks_BNKK.shape[:2], -1)
    values_BN = np.take_along_axis(flat, largest(blocks_BNKK)[..., None], axis=-1)[..., 0]
    return blocks.vote(blocks.reads_one(values_BN, step), num_bits)


def first_singular(blocks_BNKK: np.ndarray, squarings: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular value [B, N] of each block with its vectors [B, N, K].

    By power iteration on the block's Gram matrix, squared again and again: 256 powers at a fraction of LAPACK's time
    for thousands of small blocks. U's blocks lie near 256 everywhere, so that the second singular value is far below
    the first.
    """
    power = blocks_BNKK.swapaxes(-1, -2) @ blocks_BNKK
    for _ in range(squarings):
        power /= np.maximum(np.trace(power, axis1=-2, axis2=-1)[..., None, None], 1e-300)  # keeps it finite
        power = power @ power
    best = np.argmax(np.einsum("bnkk->bnk", power), axis=-1)
    right_BNK = np.take_along_axis(power, best[..., None, None], axis=-1)[..., 0]
    right_BNK /= np.maximum(np.linalg.norm(right_BNK, axis=-1, keepdims=True), 1e-300)
    left_BNK = np.einsum("bnij,bnj->bni", blocks_BNKK, right_BNK)
    sigma_BN = np.linalg.norm(left_BNK, axis=-1)
    return sigma_BN, left_BNK / np.maximum(sigma_BN[..., None], 1e-300), right_BNK


def dwt_dct_svd_embed(images_BYX3: np.ndarray, bits_L: np.ndarray, *, step: float = STEP) -> np.ndarray:
    """invisible-watermark's dwtDctSvd: the largest singular value of each block is quantised.

    The DCT is orthogonal and leaves singular values alone, so none is taken.
    """
    check_size(images_BYX3.shape, len(bits_L))
    # picture by picture in threads: NumPy works without Python's lock, and a picture's planes stay near a core
    parts = over(lambda i: _svd_embed(images_BYX3[i : i + 1], bits_L, step), len(images_BYX3))
    return np.concatenate(parts)


def _svd_embed(images_BYX3: np.ndarray, bits_L: np.ndarray, step: float) -> np.ndarray:
    plane_BYX = blocks.chroma(images_BYX3)
    _, blocks_BNKK, _ = bands_of(plane_BYX)
    sigma_BN, left_BNK, right_BNK = first_singular(blocks_BNKK)
    gain_BN = blocks.quantise(sigma_BN, blocks.spread(bits_L, sigma_BN.shape[1]), step) - sigma_BN
    new = blocks_BNKK + gain_BN[..., None, None] * left_BNK[..., :, None] * right_BNK[..., None, :]
    return blocks.add_chroma(images_BYX3, rebuilt(plane_BYX, new))


def dwt_dct_svd_read(images_BYX3: np.ndarray, num_bits: int, *, step: float = STEP) -> np.ndarray:
    """The bits of `dwt_dct_svd_embed`, bool [B, L]."""
    _, blocks_BNKK, _ = bands_of(blocks.chroma(images_BYX3))
    return blocks.vote(blocks.reads_one(first_singular(blocks_BNKK)[0], step), num_bits)


def dct_embed(images_BYX3: np.ndarray, bits_L: np.ndarray, *, step: float = 48.0) -> np.ndarray:
    """A mark of our own: the lowest horizontal frequency of a true DCT of each block of luminance's mean band.

    The blocks of 8 pixels are those of JPEG, whose coarse steps at this frequency are finer than ours.
    """
    check_size(images_BYX3.shape, len(bits_L))
    plane_BYX = blocks.luma(images_BYX3)
    _, blocks_BNKK, _ = bands_of(plane_BYX)
    waves = scipy.fft.dctn(blocks_BNKK, axes=(-2, -1), norm="ortho")
    waves[..., 0, 1] = blocks.quantise(waves[..., 0, 1], blocks.spread(bits_L, waves.shape[1]), step)
    new = scipy.fft.idctn(waves, axes=(-2, -1), norm="ortho")
    return blocks.add_luma(images_BYX3, rebuilt(plane_BYX, new))


def dct_read(images_BYX3: np.ndarray, num_bits: int, *, step: float = 48.0) -> np.ndarray:
    """The bits of `dct_embed`, bool [B, L]."""
    _, blocks_BNKK, _ = bands_of(blocks.luma(images_BYX3))
    waves = scipy.fft.dctn(blocks_BNKK, axes=(-2, -1), norm="ortho")
    return blocks.vote(blocks.reads_one(waves[..., 0, 1], step), num_bits)


# Spread spectra


def cox_key(user: int, num: int = 1_000) -> np.ndarray:
    return np.random.default_rng([user, num]).standard_normal(num)


def cox_places(waves_BW: np.ndarray, num: int) -> np.ndarray:
    """Flat places of the `num` largest magnitudes, the mean apart, in the order of the places, int [B, num]."""
    size = np.abs(waves_BW)
    size[:, 0] = -1.0
    return np.sort(np.argpartition(size, -num, axis=1)[:, -num:], axis=1)


def cox_embed(images_BYX3: np.ndarray, key_W: np.ndarray, *, strength: float = 0.1) -> np.ndarray:
    """Cox et al. 1997, Eq. 2: the largest DCT coefficients of luminance, each times 1 + strength x."""
    plane_BYX = blocks.luma(images_BYX3)
    waves = scipy.fft.dctn(plane_BYX, axes=(1, 2), norm="ortho")
    flat_BW = waves.reshape(len(waves), -1)
    places = cox_places(flat_BW, len(key_W))
    change_BW = np.zeros_like(flat_BW)
    np.put_along_axis(change_BW, places, strength * key_W * np.take_along_axis(flat_BW, places, axis=1), axis=1)
    change_BYX = scipy.fft.idctn(change_BW.reshape(waves.shape), axes=(1, 2), norm="ortho")
    return blocks.add_luma(images_BYX3, change_BYX)


def cox_similarity(
    images_BYX3: np.ndarray, key_W: np.ndarray, originals_BYX3: np.ndarray, *, strength: float = 0.1
) -> np.ndarray:
    """x . x* / sqrt(x* . x*), float64 [B]: standard normal without the mark; 0 for a picture equal to its original."""
    flats = [
        scipy.fft.dctn(blocks.luma(images), axes=(1, 2), norm="ortho").reshape(len(images), -1)
        for images in (images_BYX3, originals_BYX3)
    ]
    places = cox_places(flats[1], len(key_W))
    now, before = (np.take_along_axis(flat, places, axis=1) for flat in flats)
    read_BW = (now / before - 1) / strength
    norm_B = np.linalg.norm(read_BW, axis=1)
    return np.where(norm_B > 0, read_BW @ key_W / np.maximum(norm_B, 1e-300), 0.0)


def cox_p_value(similarity: np.ndarray) -> np.ndarray:
    """The probability that an unmarked picture is so similar: 1e-3 at 3.090, 1e-6 at 4.753."""
    return scipy.stats.norm.sf(similarity)


MID = ((0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0), (1, 3), (2, 2), (3, 1))  # frequencies of 8 x 8 blocks
CARRIER_SEED = 20_397


def carriers(num_blocks: int) -> np.ndarray:
    """Signs of every carried coefficient, float64 [N, len(MID)]; all users share them, and differ by the message."""
    return np.random.default_rng([CARRIER_SEED, num_blocks]).choice([-1.0, 1.0], (num_blocks, len(MID)))


def spread_embed(images_BYX3: np.ndarray, bits_L: np.ndarray, *, strength: float = 6.0) -> np.ndarray:
    """Blind spread spectrum: each middle frequency of a block moves by `strength`, up or down by bit and carrier.

    Blocks of 8 x 8 pixels of luminance; block n bears bit n mod L.
    """
    check_size(images_BYX3.shape, len(bits_L))
    rows, columns = (size // 8 for size in images_BYX3.shape[1:3])
    waves = np.zeros((1, rows * columns, 8, 8))
    signs_N1 = 2.0 * blocks.spread(bits_L, rows * columns)[:, None] - 1
    waves[0][(slice(None), *np.transpose(MID))] = strength * signs_N1 * carriers(rows * columns)
    change = blocks.join(scipy.fft.idctn(waves, axes=(-2, -1), norm="ortho"), rows, columns)
    change_BYX = np.zeros((1, *images_BYX3.shape[1:3]))
    change_BYX[:, : rows * 8, : columns * 8] = change
    return blocks.add_luma(images_BYX3, change_BYX)


def spread_read(images_BYX3: np.ndarray, num_bits: int) -> np.ndarray:
    """The bits of `spread_embed` by the sign of the correlation with the carriers, bool [B, L]."""
    cut_BNKK = blocks.cut(blocks.luma(images_BYX3), 8)
    waves = scipy.fft.dctn(cut_BNKK, axes=(-2, -1), norm="ortho")
    read = waves[(slice(None), slice(None), *np.transpose(MID))]
    # strong edges of the picture itself would drown the carriers of calm blocks
    scores_BN = np.einsum("bnm,nm->bn", np.clip(read, -24, 24), carriers(read.shape[1]))
    return np.stack([scores_BN[:, bit::num_bits].sum(axis=1) > 0 for bit in range(num_bits)], axis=1)


# A ring key in the Fourier plane

PLANE, RADIUS = 64, 10
RING_STRENGTH = 8.0  # grey levels: the deviation that a field of such Fourier cells would have


def disc(side: int = PLANE, radius: int = RADIUS) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the Fourier cells within the radius of a plane's centre: 317 of radius 10."""
    offset = np.arange(side) - side // 2
    rows, columns = np.nonzero(offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2)
    return rows, columns


def ring_key(user: int, strength: float = RING_STRENGTH) -> np.ndarray:
    """A real number for each cell, the same on a ring, float64 [317].

    A field of real numbers has a Hermitian transform. Rings that are the same all round have one when they are real,
    so a marked plane reads back as the key exactly.
    """
    rows, columns = disc()
    ring = np.rint(np.hypot(rows - PLANE // 2, columns - PLANE // 2)).astype(int)
    return PLANE * strength * np.random.default_rng([user, RADIUS]).standard_normal(RADIUS + 1)[ring]


def planes(images_BYX3: np.ndarray) -> np.ndarray:
    """Luminance as means of 64 x 64 blocks, with the sign of every other one turned, float64 [B, 64, 64].

    Turning signs moves the disc to the highest frequencies, where pictures have little to lose.
    """
    rows, columns = (size // PLANE for size in images_BYX3.shape[1:3])
    if min(rows, columns) < 1:
        raise InputError(f"pictures of {images_BYX3.shape[1:3]} pixels; the ring needs {PLANE} x {PLANE} at least")
    whole = blocks.luma(images_BYX3)[:, : rows * PLANE, : columns * PLANE]
    means = whole.reshape(len(whole), PLANE, rows, PLANE, columns).mean(axis=(2, 4))
    return means * turned()


def turned() -> np.ndarray:
    return 1.0 - 2.0 * (np.add.outer(np.arange(PLANE), np.arange(PLANE)) % 2)


def ring_cells(planes_BYX: np.ndarray) -> np.ndarray:
    """The disc's Fourier cells, complex [B, 317]."""
    shifted = np.fft.fftshift(np.fft.fft2(planes_BYX), axes=(-2, -1))
    return shifted[(slice(None), *disc())]


def ring_embed(images_BYX3: np.ndarray, key_W: np.ndarray) -> np.ndarray:
    """The pictures with the disc's cells replaced by the key (Tree-Ring's idea, Wen et al. 2023, on pixels)."""
    gap_BW = key_W - ring_cells(planes(images_BYX3))
    spectrum = np.zeros((len(images_BYX3), PLANE, PLANE), complex)
    spectrum[(slice(None), *disc())] = gap_BW
    change = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real * turned()
    rows, columns = (size // PLANE for size in images_BYX3.shape[1:3])
    change_BYX = np.zeros(images_BYX3.shape[:3])
    change_BYX[:, : rows * PLANE, : columns * PLANE] = change.repeat(rows, axis=1).repeat(columns, axis=2)
    return blocks.add_luma(images_BYX3, change_BYX)


def ring_distance(images_BYX3: np.ndarray, key_W: np.ndarray) -> np.ndarray:
    """The mean modulus of the difference over the cells, float64 [B], in units of a plane's deviation."""
    return RING.distance(RING.cells_fn(images_BYX3), key_W)


def ring_chances(cells_BW: np.ndarray, key_W: np.ndarray, strength: float = RING_STRENGTH) -> np.ndarray:
    """The probability that another user's `ring_key` is as near as this one in squared distance, float64 [B].

    A key has a normal number for each ring, so the squared distance is a constant plus
    sum over rings of n (k - m)^2, with n cells and m their mean real part: non-central chi-squared variables of one
    degree, weighted by n. Its distribution is taken by the saddlepoint of its cumulant function (Lugannani and Rice
    1980), which holds in the far tail where keys cannot be drawn often enough.
    """
    rows, columns = disc()
    ring = np.rint(np.hypot(rows - PLANE // 2, columns - PLANE // 2)).astype(int)
    num_R = np.bincount(ring)
    deviation = PLANE * strength
    which_WR = (ring[:, None] == np.arange(len(num_R))) / num_R
    mean_BR, key_R = cells_BW.real @ which_WR, key_W.real @ which_WR
    reached_B = np.sum(num_R * ((key_R - mean_BR) / deviation) ** 2, axis=1)
    return weighted_squares(reached_B, num_R.astype(float), (mean_BR / deviation) ** 2)


def weighted_squares(x_B: np.ndarray, weights_R: np.ndarray, centres_BR: np.ndarray) -> np.ndarray:
    """P(sum of weights times non-central chi-squared variables of one degree <= x) by its saddlepoint, float64 [B].

    Args:
        centres_BR: the non-centralities.
    """
    top = 0.5 / weights_R.max()  # cumulants are finite below it
    x_B1 = np.maximum(x_B, 1e-12 * weights_R.sum())[:, None]
    low, high = np.full(x_B1.shape, -40.0), np.full(x_B1.shape, 40.0)  # of log(top - s), in units of top
    for _ in range(80):
        middle = (low + high) / 2
        part = 1 / (1 - 2 * weights_R * (top - top * np.exp(middle)))
        slope = np.sum(weights_R * part + weights_R * centres_BR * part**2, axis=1, keepdims=True)
        low, high = np.where(slope > x_B1, middle, low), np.where(slope > x_B1, high, middle)
    s_B1 = top - top * np.exp(low)
    part = 1 / (1 - 2 * weights_R * s_B1)
    cumulant = np.sum(0.5 * np.log(part) + weights_R * centres_BR * s_B1 * part, axis=1)
    curve = np.sum(2 * weights_R**2 * part**2 + 4 * weights_R**2 * centres_BR * part**3, axis=1)
    s_B = s_B1[:, 0]
    w = np.sign(s_B) * np.sqrt(np.maximum(2 * (s_B * x_B1[:, 0] - cumulant), 1e-300))
    u = s_B * np.sqrt(curve)
    # near the mean both go to 0, and so does the gap of their inverses to within rounding: leave it out there
    gap = np.where(np.abs(w) > 1e-4, 1 / w - 1 / np.where(u == 0, 1, u), 0.0)
    return np.clip(scipy.stats.norm.cdf(w) + scipy.stats.norm.pdf(w) * gap, 0.0, 1.0)


def ring_p_value(cells_BW: np.ndarray, key_W: np.ndarray) -> np.ndarray:
    """Tree-Ring's p-value: how likely unmarked cells come so near the key, float64 [B].

    eta = sum ((v - k) / sigma)^2 is non-central chi-squared of 2W degrees with lambda = sum (k / sigma)^2, and sigma is
    the deviation of the 2W real and imaginary parts. Cells without any deviation say nothing: 1.
    """
    values = np.concatenate([cells_BW.real, cells_BW.imag], axis=1)
    key = np.concatenate([key_W.real, key_W.imag])
    spread = values.std(axis=1, ddof=1)
    sigma = np.where(spread > 0, spread, 1.0)
    eta = np.sum((values - key) ** 2, axis=1) / sigma**2
    p_B = scipy.stats.ncx2.cdf(eta, values.shape[1], np.sum(key**2) / sigma**2)
    return np.where(spread > 0, p_B, 1.0)


RING = Rings(lambda images_BYX3: ring_cells(planes(images_BYX3)), ring_chances, PLANE)


def _bits(embed_fn: Callable[..., np.ndarray], read_fn: Callable[..., np.ndarray]) -> Mark:
    def distance(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        return bit_errors(read_fn(images_BYX3, len(message_L)), message_L)

    return Mark(message, embed_fn, distance)


def _cox_distance(images_BYX3: np.ndarray, key_W: np.ndarray, originals_BYX3: np.ndarray) -> np.ndarray:
    return -cox_similarity(images_BYX3, key_W, originals_BYX3)


MARKS = {
    "dwt_dct": _bits(dwt_dct_embed, dwt_dct_read),
    "dwt_dct_svd": _bits(dwt_dct_svd_embed, dwt_dct_svd_read),
    "dct": _bits(dct_embed, dct_read),
    "spread": _bits(spread_embed, spread_read),
    "cox": Mark(cox_key, cox_embed, _cox_distance, is_bits=False, is_informed=True),
    "ring": Mark(ring_key, ring_embed, ring_distance, is_bits=False, rings=RING),
}

"""What the marks share: luminance and the U plane, one level of Haar's wavelet, blocks, and quantised numbers.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, N blocks, K K a block's rows and columns, L bits.
"""

import numpy as np

from alignment.errors import InputError

LUMA = np.array([0.299, 0.587, 0.114])
U_OF_RGB = 0.492 * (np.array([0.0, 0.0, 1.0]) - LUMA)
RGB_OF_U = np.array([0.0, -0.395, 2.032])  # what a step of U adds to red, green and blue
U_GREY = 128.0  # U of a grey pixel
SHARE = 127 / 255  # of the blocks that read 1, above which a bit is 1


def luma(images_BYX3: np.ndarray) -> np.ndarray:
    """Luminance, float64 [B, Y, X] in [0, 255]."""
    return images_BYX3 @ LUMA


def chroma(images_BYX3: np.ndarray) -> np.ndarray:
    """The U plane of YUV, float64 [B, Y, X], 128 for grey."""
    return images_BYX3 @ U_OF_RGB + U_GREY


def add_luma(images_BYX3: np.ndarray, change_BYX: np.ndarray) -> np.ndarray:
    """The pictures with a change of luminance, uint8; values beyond [0, 255] are clipped."""
    return as_bytes(images_BYX3 + change_BYX[..., None])


def add_chroma(images_BYX3: np.ndarray, change_BYX: np.ndarray) -> np.ndarray:
    """The pictures with a change of U, uint8; luminance and V stay, but for rounding and clipping."""
    return as_bytes(images_BYX3 + change_BYX[..., None] * RGB_OF_U)


def as_bytes(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def haar(plane_BYX: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One level of the orthonormal Haar wavelet: (mean, horizontal, vertical, diagonal) bands, each half as large."""
    a, b = plane_BYX[:, 0::2, 0::2], plane_BYX[:, 0::2, 1::2]
    c, d = plane_BYX[:, 1::2, 0::2], plane_BYX[:, 1::2, 1::2]
    return (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2


def unhaar(mean: np.ndarray, horizontal: np.ndarray, vertical: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """The plane behind the four bands of `haar`."""
    batch, rows, columns = mean.shape
    plane_BYX = np.empty((batch, 2 * rows, 2 * columns), mean.dtype)
    plane_BYX[:, 0::2, 0::2] = (mean + horizontal + vertical + diagonal) / 2
    plane_BYX[:, 0::2, 1::2] = (mean + horizontal - vertical - diagonal) / 2
    plane_BYX[:, 1::2, 0::2] = (mean - horizontal + vertical - diagonal) / 2
    plane_BYX[:, 1::2, 1::2] = (mean - horizontal - vertical + diagonal) / 2
    return plane_BYX


def cut(plane_BYX: np.ndarray, side: int) -> np.ndarray:
    """Blocks in raster order, [B, N, side, side]; rows and columns beyond the last whole block are left out."""
    batch, rows, columns = plane_BYX.shape
    rows, columns = rows // side, columns // side
    whole = plane_BYX[:, : rows * side, : columns * side].reshape(batch, rows, side, columns, side)
    return whole.swapaxes(2, 3).reshape(batch, rows * columns, side, side)


def join(blocks_BNKK: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The plane [B, rows * side, columns * side] of blocks in raster order."""
    batch, _, side, _ = blocks_BNKK.shape
    grid = blocks_BNKK.reshape(batch, rows, columns, side, side).swapaxes(2, 3)
    return grid.reshape(batch, rows * side, columns * side)


def quantise(values: np.ndarray, bits: np.ndarray, step: float) -> np.ndarray:
    """Quantisation index modulation: the number in the same step, a quarter (bit 0) or three quarters (1) into it.

    A shift of less than step / 4 leaves the bit readable.
    """
    size = (np.floor(np.abs(values) / step) + 0.25 + 0.5 * bits) * step
    return np.where(values < 0, -size, size)


def reads_one(values: np.ndarray, step: float) -> np.ndarray:
    """The bits behind `quantise`, as booleans."""
    return np.abs(values) % step > step / 2


def spread(bits_L: np.ndarray, num: int) -> np.ndarray:
    """The bit of each of `num` blocks: block n bears bit n mod L."""
    return np.resize(bits_L, num)


def vote(ones_BN: np.ndarray, num_bits: int) -> np.ndarray:
    """The bits that most of their blocks read, bool [B, L]."""
    num = ones_BN.shape[1]
    if num < num_bits:
        raise InputError(f"pictures of {num} blocks cannot bear {num_bits} bits; take larger pictures or fewer bits")
    shares_BL = np.stack([ones_BN[:, bit::num_bits].mean(axis=1) for bit in range(num_bits)], axis=1)
    return shares_BL > SHARE

"""Tree-Ring (Wen et al. 2023, arXiv:2305.20030) over any diffusion model, as its two calls.

The key lies in the Fourier plane of the initial latent. The model is the user's: `encode_fn` goes from pictures to
initial latents (a VAE's encoder, then inversion with an empty prompt), `decode_fn` back to pictures.

Dimensions: B pictures, Y X rows and columns, D latent channels, W cells of the key.
"""

from collections.abc import Callable

import numpy as np

from alignment.errors import InputError
from alignment.watermark import protocol
from alignment.watermark.marks import Mark, Rings, disc

RADIUS, CHANNEL = 10, 3

Calls = Callable[[np.ndarray], np.ndarray]


def key(user: int, side: int = 64, radius: int = RADIUS) -> np.ndarray:
    """A complex number for each cell, the same on a ring, complex128 [W].

    A ring has the number that the Fourier transform of a normal field has at its radius, as in the authors' code.
    """
    rows, columns = disc(side, radius)
    field = np.fft.fftshift(np.fft.fft2(np.random.default_rng([user, side, radius]).standard_normal((side, side))))
    middle = side // 2
    ring = np.ceil(np.hypot(rows - middle, columns - middle)).astype(int)
    return field[middle, middle + np.clip(ring, 1, radius)]


def cells(latents_BDYX: np.ndarray, channel: int = CHANNEL, radius: int = RADIUS) -> np.ndarray:
    """The cells of latents, complex [B, W]."""
    spectrum = np.fft.fftshift(np.fft.fft2(latents_BDYX[:, channel]), axes=(-2, -1))
    return spectrum[(slice(None), *disc(latents_BDYX.shape[-1], radius))]


def injected(latents_BDYX: np.ndarray, key_W: np.ndarray, channel: int = CHANNEL, radius: int = RADIUS) -> np.ndarray:
    """Initial latents that bear the key.

    As in the authors' code the key is not Hermitian and the real part is taken, so that even a perfect inversion
    leaves a distance to the key.
    """
    out = np.array(latents_BDYX)
    spectrum = np.fft.fftshift(np.fft.fft2(out[:, channel]), axes=(-2, -1))
    spectrum[(slice(None), *disc(out.shape[-1], radius))] = key_W
    out[:, channel] = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real
    return out


def mark(encode_fn: Calls, decode_fn: Calls, *, channel: int = CHANNEL, radius: int = RADIUS, side: int = 64) -> Mark:
    """Tree-Ring as a mark of the protocol; the distance is the mean modulus of the difference over the cells.

    Pictures are marked by inverting them, setting the key and generating again.

    Args:
        encode_fn: pictures float32 [B, Y, X, 3] in [0, 1] -> initial latents [B, D, side, side].
        decode_fn: the way back.

    Raises:
        InputError: from the mark's functions, where the calls return other shapes.
    """

    def latents(images_BYX3: np.ndarray) -> np.ndarray:
        out = np.asarray(encode_fn(images_BYX3.astype(np.float32) / 255), np.float64)
        wanted = (len(images_BYX3), out.shape[1] if out.ndim > 1 else 0, side, side)
        if out.shape != wanted or out.shape[1] <= channel:
            raise InputError(
                f"the encode call returned {out.shape} for {len(images_BYX3)} pictures; Tree-Ring needs "
                f"[{len(images_BYX3)}, more than {channel}, {side}, {side}]"
            )
        return out

    def embed(images_BYX3: np.ndarray, key_W: np.ndarray) -> np.ndarray:
        new = np.asarray(decode_fn(injected(latents(images_BYX3), key_W, channel, radius).astype(np.float32)))
        if new.shape != images_BYX3.shape:
            raise InputError(f"the decode call returned {new.shape}; the pictures have {images_BYX3.shape}")
        return np.clip(np.rint(255 * new), 0, 255).astype(np.uint8)

    rings = Rings(lambda images_BYX3: cells(latents(images_BYX3), channel, radius), chances)

    def distance(images_BYX3: np.ndarray, key_W: np.ndarray) -> np.ndarray:
        return rings.distance(rings.cells_fn(images_BYX3), key_W)

    return Mark(lambda user: key(user, side, radius), embed, distance, is_bits=False, rings=rings)


def chances(cells_BW: np.ndarray, key_W: np.ndarray) -> np.ndarray:
    """The probability that another key is as near, by the authors' approximation for 634 numbers, float64 [B]."""
    norms = (np.sum(np.abs(values) ** 2, axis=1) for values in (cells_BW - key_W, cells_BW))
    return protocol.ring_chances(*norms)

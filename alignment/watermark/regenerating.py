"""Regeneration by functions that JAX need not trace, such as a diffusion model of another library, and rinsing.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue.
"""

from collections.abc import Callable

import numpy as np

from alignment.errors import InputError
from alignment.watermark.learned import CHUNK, to_bytes

Calls = Callable[[np.ndarray], np.ndarray]
AgainFn = Callable[[np.ndarray, int], np.ndarray]  # pictures uint8 and a seed -> pictures uint8
STRIDE = 1_000_003  # between the seeds of two passes, more than there are pictures


def through(images_BYX3: np.ndarray, encode_fn: Calls, decode_fn: Calls, *, noise: float, seed: int = 0) -> np.ndarray:
    """`learned.regenerate` by calls on the host: encoded, moved by noise and decoded, uint8 of the same shape.

    Args:
        encode_fn: pictures float32 [B, Y, X, 3] in [0, 1], a few at a time -> latents of any shape.
        decode_fn: the way back.
        noise: deviation, in units of the latents' own over the chunk.

    Raises:
        InputError: the calls return pictures of another shape.
    """

    def again(chunk: np.ndarray, seed: int) -> np.ndarray:
        latents = np.asarray(encode_fn(chunk), np.float32)
        moved = latents + noise * latents.std() * np.random.default_rng(seed).standard_normal(latents.shape)
        return decode_fn(moved.astype(np.float32))

    return by_call(images_BYX3, again, seed=seed)


def by_call(images_BYX3: np.ndarray, again_fn: AgainFn, *, seed: int = 0) -> np.ndarray:
    """Pictures as a function of pictures in [0, 1] and a seed makes them again, a few at a time, uint8.

    Raises:
        InputError: the function returns pictures of another shape.
    """
    out = []
    for start in range(0, len(images_BYX3), CHUNK):
        chunk = images_BYX3[start : start + CHUNK].astype(np.float32) / 255
        new = np.asarray(again_fn(chunk, seed + start))
        if new.shape != chunk.shape:
            raise InputError(f"the regeneration returned {new.shape}; the pictures have {chunk.shape}")
        out.append(new)
    return to_bytes(np.concatenate(out))


def rinse(images_BYX3: np.ndarray, again_fn: AgainFn, *, times: int, seed: int = 0) -> np.ndarray:
    """Pictures that were regenerated `times` times, each pass from the bytes of the last and with a seed of its own."""
    for k in range(times):
        images_BYX3 = again_fn(images_BYX3, seed + STRIDE * k)
    return images_BYX3

"""Made-up pictures with the spectrum of photographs: pink noise, and discs with sharp edges over it."""

import numpy as np


def pink(num: int, side: int = 256, *, exponent: float = 1.2, shared: float = 0.0, seed: int = 0) -> np.ndarray:
    """Noise of amplitude 1 / f^exponent in each channel, mean 128 and deviation 40, uint8 [num, side, side, 3].

    Args:
        shared: share of the variance that the channels have in common, in [0, 1]. Photographs have much of it, so their
            colours are weak; 0 makes three channels that know nothing of each other, whose colours are strong.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    white = rng.standard_normal((num, 3, side, side))
    if shared:
        white = shared**0.5 * rng.standard_normal((num, 1, side, side)) + (1 - shared) ** 0.5 * white
    spectrum = np.fft.rfft2(white) / frequency**exponent
    planes = np.fft.irfft2(spectrum, s=(side, side))
    planes *= 40 / planes.std(axis=(2, 3), keepdims=True)
    return np.clip(128 + planes, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def scenes(num: int, side: int = 256, *, seed: int = 0) -> np.ndarray:
    """`pink` with five discs of one colour each, half seen through, uint8 [num, side, side, 3]."""
    out = pink(num, side, seed=seed).astype(np.float32)
    rng = np.random.default_rng([seed, side])
    rows, columns = np.mgrid[:side, :side]
    for picture in out:
        for _ in range(5):
            y, x, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(side / 16, side / 5)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            picture[inside] = (picture[inside] + rng.uniform(0, 255, 3)) / 2
    return out.astype(np.uint8)

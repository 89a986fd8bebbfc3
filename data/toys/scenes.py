"""Made-up pictures with the spectrum of photographs: pink noise, and discs with sharp edges over it."""

import numpy as np


def pink(num: int, side: int = 256, *, exponent: float = 1.2, seed: int = 0) -> np.ndarray:
    """Noise of amplitude 1 / f^exponent in each channel, mean 128 and deviation 40, uint8 [num, side, side, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((num, 3, side, side))) / frequency**exponent
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

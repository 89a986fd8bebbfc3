"""Pictures like photographs' spectra, for the tests of marks."""

import numpy as np


def pink(num, side=256, *, exponent=1.2, seed=0):
    """Noise of amplitude 1 / f^exponent in each channel, mean 128 and deviation 40, uint8 [num, side, side, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((num, 3, side, side))) / frequency**exponent
    planes = np.fft.irfft2(spectrum, s=(side, side))
    planes *= 40 / planes.std(axis=(2, 3), keepdims=True)
    return np.clip(128 + planes, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)

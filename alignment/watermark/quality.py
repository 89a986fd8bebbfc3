"""How much an attack changed pictures: PSNR, SSIM and NMI as scikit-image has them, and their common scale.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue.
"""

from collections.abc import Mapping

import numpy as np

from alignment.errors import InputError, one_of
from alignment.watermark.distortions import over

CAP = 100.0  # dB, of equal pictures
WINDOW, BINS, STRIP = 7, 100, 16
# metric: (value at 0.1, value at 0.9, weight), of the authors' evaluation over all attacked pictures
CONSTANTS = {
    "fid": (1.2018279835, 53.4025023653, 1 / 8),
    "clip_fid": (0.2822137925, 19.0177480509, 1 / 8),
    "psnr": (41.9732669276, 12.1465146928, 1 / 12),
    "ssim": (0.9794436656, 0.3223082879, 1 / 12),
    "nmi": (1.7068727849, 1.0645803312, 1 / 12),
    "lpips": (0.0179597848, 0.6205694336, 1 / 4),
    "aesthetics": (0.0241985565, 1.8233248042, 1 / 8),  # clean minus attacked
    "artifacts": (0.0018974746, -0.5810033036, 1 / 8),
}
SUBSETS = {
    "Q8": tuple(CONSTANTS),
    "Q4": ("psnr", "ssim", "nmi", "lpips"),
    "Q3": ("psnr", "ssim", "nmi"),
}


def psnr(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of bytes in dB, float64 [B]; equal pictures have 100 dB."""
    _check(clean_BYX3, attacked_BYX3)
    gap = np.subtract(clean_BYX3, attacked_BYX3, dtype=np.int32).reshape(len(clean_BYX3), -1)
    error_B = np.einsum("bi,bi->b", gap, gap, dtype=np.int64) / gap.shape[1]
    return np.minimum(CAP, 10 * np.log10(255.0**2 / np.maximum(error_B, 1e-30)))


def ssim(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) in windows of 7 x 7 pixels, mean over windows and channels, float64 [B].

    Sums over windows of bytes are whole numbers below 2^31 and are taken as such: they are exact, in half the memory
    of float64, and nothing cancels.
    """
    _check(clean_BYX3, attacked_BYX3)
    if min(clean_BYX3.shape[1:3]) < WINDOW:
        raise InputError(f"pictures of {clean_BYX3.shape[1:3]} pixels; SSIM needs {WINDOW} x {WINDOW} at least")
    return np.array(over(lambda i: _ssim(clean_BYX3[i], attacked_BYX3[i]), len(clean_BYX3)))


def _ssim(a_YX3: np.ndarray, b_YX3: np.ndarray) -> float:
    # in strips that fit into a core's cache: whole planes would go through memory some forty times
    rows = len(a_YX3) - WINDOW + 1
    tops = range(0, rows, STRIP)
    ends = [min(top + STRIP, rows) + WINDOW - 1 for top in tops]
    sums = [_similarities(a_YX3[top:end], b_YX3[top:end]) for top, end in zip(tops, ends)]
    return sum(sums) / (rows * (a_YX3.shape[1] - WINDOW + 1) * a_YX3.shape[2])


def _similarities(a_YX3: np.ndarray, b_YX3: np.ndarray) -> float:
    """The sum over all windows and channels."""
    a, b = a_YX3.astype(np.int32), b_YX3.astype(np.int32)
    sum_a, sum_b = _windows(a), _windows(b)
    products, squares = _windows(a * b), _windows(a * a + b * b)
    num = WINDOW**2
    means, both = sum_a * sum_b, sum_a * sum_a + sum_b * sum_b  # num^2 times those of the means
    covariance = num * products - means
    variances = num * squares - both
    low, high = np.float32((0.01 * 255) ** 2 * num**2), np.float32((0.03 * 255) ** 2 * num * (num - 1))
    means, both, covariance, variances = (x.astype(np.float32) for x in (means, both, covariance, variances))
    ratio = (2 * means + low) * (2 * covariance + high) / ((both + low) * (variances + high))
    return float(np.sum(ratio, dtype=np.float64))


def _windows(values_YX3: np.ndarray) -> np.ndarray:
    """Sums over all 7 x 7 windows that lie inside."""
    for axis in (0, 1):
        lines = values_YX3.swapaxes(0, axis)
        num = len(lines) - WINDOW + 1
        two = lines[: num + 5] + lines[1 : num + 6]  # 7 = 4 + 2 + 1: four additions in place of six
        four = two[:num] + two[2 : num + 2]
        values_YX3 = (four + two[4 : num + 4] + lines[6 : num + 6]).swapaxes(0, axis)
    return values_YX3


def nmi(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> np.ndarray:
    """Normalised mutual information (H(a) + H(b)) / H(a, b) in [1, 2] of 100 x 100 bins, float64 [B].

    A constant picture has no entropy: where both are constant it is nan, which means leave out and count.
    """
    _check(clean_BYX3, attacked_BYX3)
    return np.array(over(lambda i: _nmi(clean_BYX3[i], attacked_BYX3[i]), len(clean_BYX3)))


def _nmi(a_YX3: np.ndarray, b_YX3: np.ndarray) -> float:
    # a byte's bin is looked up: 256 divisions in place of one a pixel
    joint = _bins(a_YX3)[a_YX3].astype(np.intp)
    joint *= BINS
    joint += _bins(b_YX3)[b_YX3]
    counts = np.bincount(joint.reshape(-1), minlength=BINS**2).reshape(BINS, BINS)
    both = _entropy(counts)
    return (_entropy(counts.sum(axis=0)) + _entropy(counts.sum(axis=1))) / both if both > 0 else float("nan")


def _bins(picture_YX3: np.ndarray) -> np.ndarray:
    """The bin of each byte value: NumPy's of a histogram between the least and the largest, int16 [256]."""
    low, high = int(picture_YX3.min()), int(picture_YX3.max())
    edges = np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, high + 0.5, BINS + 1)
    bins = np.searchsorted(edges, np.arange(256), side="right") - 1
    return np.clip(bins, 0, BINS - 1).astype(np.int16)  # the last bin holds its upper edge, too


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


METRICS = {"psnr": psnr, "ssim": ssim, "nmi": nmi}


def normalised(metric: str, value: float) -> float:
    """A metric on the common scale: 0.1 where a tenth of all attacked pictures are better, 0.9 where a tenth are worse.

    It is linear and not clipped, larger is worse.
    """
    at_low, at_high, _ = CONSTANTS[one_of("metric", metric, CONSTANTS)]
    return 0.1 + 0.8 * (value - at_low) / (at_high - at_low)


def degradation(values: Mapping[str, float], subset: str) -> float:
    """Q: the weighted mean of normalised metrics, larger is worse.

    Args:
        values: of at least the subset's metrics.
        subset: Q8 (the paper's), Q4 (pixels and LPIPS) or Q3 (pixels); the weights are rescaled to sum to 1.

    Raises:
        InputError: an unknown subset, a metric that is missing or not finite.
    """
    names = SUBSETS[one_of("subset", subset, SUBSETS)]
    for name in names:
        if name not in values or not np.isfinite(values[name]):
            raise InputError(f"{subset} needs {name}, which is {values.get(name, 'missing')}; take another subset")
    total = sum(CONSTANTS[name][2] for name in names)
    return sum(CONSTANTS[name][2] * normalised(name, values[name]) for name in names) / total


def _check(clean: np.ndarray, attacked: np.ndarray) -> None:
    if clean.shape != attacked.shape:
        raise InputError(f"pictures of shape {attacked.shape} beside {clean.shape}; these metrics need the same size")

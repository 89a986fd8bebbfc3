import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import quality
from data.toys.scenes import pink

WORKED = dict(fid=20, clip_fid=5, psnr=25, ssim=0.8, nmi=1.3, lpips=0.2, aesthetics=0.5, artifacts=-0.1)
NORMALISED = (0.388091, 0.301448, 0.555249, 0.318456, 0.606776, 0.341669, 0.311570, 0.239849)


def test_one_pixel_of_64_that_is_off_by_ten_is_46_dB():
    a = np.zeros((1, 8, 8, 1), np.uint8)
    b = a.copy()
    b[0, 3, 3] = 10
    np.testing.assert_allclose(quality.psnr(a, b), 46.1926, atol=1e-4)
    assert quality.psnr(a, a).tolist() == [100.0]


def test_equal_pictures_have_full_similarity_and_information():
    pictures = pink(2, 32)
    np.testing.assert_allclose(quality.ssim(pictures, pictures), 1, atol=1e-6)
    np.testing.assert_allclose(quality.nmi(pictures, pictures), 2)


def slow_ssim(a, b):
    """Wang et al. 2004, Eq. 13, a window at a time, with the sample covariance."""
    values = []
    for y in range(a.shape[0] - 6):
        for x in range(a.shape[1] - 6):
            for c in range(3):
                p, q = (i[y : y + 7, x : x + 7, c].astype(float) for i in (a, b))
                cov = np.cov(p.ravel(), q.ravel())
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                over = (2 * p.mean() * q.mean() + c1) * (2 * cov[0, 1] + c2)
                values.append(over / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return np.mean(values)


def test_similarity_is_the_papers_equation_to_a_millionth():
    rng = np.random.default_rng(0)
    a = pink(1, 14)
    for b in (rng.integers(256, size=a.shape, dtype=np.uint8), np.clip(a + 9.0, 0, 255).astype(np.uint8), 255 - a):
        np.testing.assert_allclose(quality.ssim(a, b)[0], slow_ssim(a[0], b[0]), atol=1e-6)


def test_information_is_that_of_a_histogram_of_100_by_100_bins():
    a, b = pink(2, 32)
    counts, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=100)

    def entropy(counts):
        shares = counts[counts > 0] / counts.sum()
        return -np.sum(shares * np.log(shares))

    expected = (entropy(counts.sum(0)) + entropy(counts.sum(1))) / entropy(counts)
    np.testing.assert_allclose(quality.nmi(a[None], b[None]), expected)


def test_a_constant_picture_has_no_information_and_is_nan():
    assert np.isnan(quality.nmi(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8))[0])


def test_worked_numbers_of_the_common_scale():
    np.testing.assert_allclose([quality.normalised(*item) for item in WORKED.items()], NORMALISED, atol=1e-6)
    q = [quality.degradation(WORKED, subset) for subset in ("Q8", "Q4", "Q3")]
    np.testing.assert_allclose(q, [0.363910, 0.417581, 0.493494], atol=1e-6)
    assert sum(weight for *_, weight in quality.CONSTANTS.values()) == pytest.approx(1)
    for end, value in ((0, 0.1), (1, 0.9)):
        at_end = {name: constants[end] for name, constants in quality.CONSTANTS.items()}
        for subset in quality.SUBSETS:
            assert quality.degradation(at_end, subset) == pytest.approx(value)


def test_equal_pictures_are_a_little_better_than_nothing_on_that_scale():
    same = dict(fid=0, clip_fid=0, psnr=100, ssim=1, nmi=2, lpips=0, aesthetics=0, artifacts=0)
    assert quality.degradation(same, "Q8") == pytest.approx(-0.072997, abs=1e-6)


def test_missing_metrics_and_other_sizes_are_refused():
    with pytest.raises(InputError, match="Q4 needs lpips, which is missing"):
        quality.degradation(dict(psnr=30, ssim=0.9, nmi=1.4), "Q4")
    with pytest.raises(InputError, match="Q3 needs nmi, which is nan"):
        quality.degradation(dict(psnr=30, ssim=0.9, nmi=float("nan")), "Q3")
    with pytest.raises(InputError, match="the same size"):
        quality.psnr(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 9, 8, 3), np.uint8))
    with pytest.raises(InputError, match="7 x 7"):
        quality.ssim(np.zeros((1, 6, 8, 3), np.uint8), np.zeros((1, 6, 8, 3), np.uint8))

"""WAVES' metrics beside scikit-image, its distortions beside Pillow called as the authors' code calls it."""

import io

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import pytest

from alignment.watermark import distortions, quality
from data.toys.scenes import pink

metrics = pytest.importorskip("skimage.metrics")


@pytest.fixture(scope="module")
def pictures():
    return pink(3, 96)


@pytest.mark.parametrize(("attack", "strength"), [("Dist-JPEG", 0.5), ("Dist-Noise", 0.3), ("Dist-Bright", 1.0)])
def test_metrics_are_scikit_images(attack, strength, pictures):
    attacked = distortions.batch(attack, pictures, strength)
    for a, b, psnr, ssim, nmi in zip(
        pictures, attacked, *(metric(pictures, attacked) for metric in quality.METRICS.values())
    ):
        np.testing.assert_allclose(psnr, metrics.peak_signal_noise_ratio(a, b), atol=1e-4)
        np.testing.assert_allclose(ssim, metrics.structural_similarity(a, b, channel_axis=2), atol=1e-4)
        np.testing.assert_allclose(nmi, metrics.normalized_mutual_information(a, b), atol=1e-4)


def test_distortions_are_pillows(pictures):
    picture = PIL.Image.fromarray(pictures[0])
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=50)
    expected = {
        ("Dist-Rotation", 0.2): picture.rotate(9.0),
        ("Dist-Bright", 0.4): PIL.ImageEnhance.Brightness(picture).enhance(1.4),
        ("Dist-Contrast", 0.4): PIL.ImageEnhance.Contrast(picture).enhance(1.4),
        ("Dist-Blur", 0.2): picture.filter(PIL.ImageFilter.GaussianBlur(4)),
        ("Dist-JPEG", 0.5): PIL.Image.open(file),
    }
    for (attack, strength), theirs in expected.items():
        assert (distortions.one(attack, pictures[0], strength, 0) == np.asarray(theirs)).all(), attack

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from alignment.errors import InputError
from alignment.watermark import distortions, quality
from data.toys.scenes import pink


@pytest.fixture(scope="module")
def pictures():
    return pink(3, 64)


def test_no_strength_leaves_every_single_distortion_but_jpeg_an_identity(pictures):
    for name in distortions.SINGLE:
        same = (distortions.batch(name, pictures, 0.0) == pictures).all()
        assert same == (name != "Dist-JPEG"), name


def test_quality_falls_as_strength_rises(pictures):
    for name in distortions.NAMES:
        far = [quality.psnr(pictures, distortions.batch(name, pictures, r)).mean() for r in (0.1, 0.5, 1.0)]
        assert far[0] > far[1] > far[2] or name == "Dist-Rotation", name


def test_native_ranges_are_the_papers():
    ends = {name: (distortions.native(name, 0), distortions.native(name, 1)) for name in distortions.SINGLE}
    assert ends == {
        "Dist-Rotation": (0, 45),
        "Dist-RCrop": (1, 0.5),
        "Dist-Erase": (0, 0.25),
        "Dist-Bright": (1, 2),
        "Dist-Contrast": (1, 2),
        "Dist-Blur": (0, 20),
        "Dist-Noise": (0, pytest.approx(0.1)),
        "Dist-JPEG": (90, 10),
    }


def test_erased_and_cropped_areas_are_those_of_the_sheet():
    white = np.full((1, 512, 512, 3), 255, np.uint8)
    assert (distortions.batch("Dist-Erase", white, 1.0) == 0).all(axis=-1).sum() == 256**2
    assert round(512 * distortions.native("Dist-RCrop", 1.0) ** 0.5) == 362
    assert (distortions.batch("Dist-RCrop", white, 1.0) == 255).all()


def test_a_combination_is_its_members_in_order_with_one_strength(pictures):
    photo = distortions.batch("DistCom-Photo", pictures, 0.3)
    one_by_one = distortions.batch("Dist-Contrast", distortions.batch("Dist-Bright", pictures, 0.3), 0.3)
    assert (photo == one_by_one).all()
    degraded = distortions.one("DistCom-Deg", pictures[0], 0.2, seed=4)
    rng = np.random.default_rng(4)
    expected = distortions.noise(distortions.blur(pictures[0], 4), 0.1 * 0.2, rng)
    assert (degraded == distortions.jpeg(expected, 74)).all()


def test_what_is_drawn_follows_from_seed_and_number_however_many_threads(pictures):
    for name in ("Dist-RCrop", "Dist-Erase", "Dist-Noise"):
        one, many = (distortions.batch(name, pictures, 0.5, seed=3, threads=threads) for threads in (1, 3))
        assert (one == many).all()
        assert (one[1] == distortions.one(name, pictures[1], 0.5, seed=4)).all()
        assert (one != distortions.batch(name, pictures, 0.5, seed=9)).any()


def test_unknown_names_and_strengths_outside_the_range_are_refused(pictures):
    with pytest.raises(InputError, match="the nearest is 'Dist-Blur'"):
        distortions.batch("Dist-Blurr", pictures, 0.5)
    with pytest.raises(InputError, match=r"strength=1.5 of Dist-JPEG: it lies in \[0, 1\].*Dist-JPEG 90 to 10"):
        distortions.native("Dist-JPEG", 1.5)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.237, 1.4, 1.999, 2.0])
def test_brightness_has_pillows_bytes_at_every_level(factor):
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    theirs = np.asarray(PIL.ImageEnhance.Brightness(PIL.Image.fromarray(levels)).enhance(factor))
    assert (distortions.brighten(levels, factor) == theirs).all()

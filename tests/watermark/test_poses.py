import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.watermark import distortions, poses
from data.toys.scenes import scenes

TILE = 32


@pytest.fixture(scope="module")
def marked():
    """Pictures with a pattern of pixels that repeats every 32, of 33 dB."""
    tiled = np.tile(np.random.default_rng(0).normal(size=(TILE, TILE, 3)), (8, 8, 1))
    return np.clip(np.rint(scenes(2, 256) + 6 * tiled[None]), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def likeliest_fn():
    return jax.jit(lambda images: poses.likeliest(images.astype(jnp.float32) / 255, TILE, 2))


def nearest(likeliest_fn, pictures, degrees, scale):
    """The largest error over pictures of each one's best pose: degrees and share of the scale."""
    angles, scales = map(np.asarray, likeliest_fn(pictures))
    turn = np.abs((angles - degrees + 45) % 90 - 45)
    growth = np.abs(scales / scale - 1)
    best = np.argmin(turn / 0.5 + growth / 0.01, axis=1)[:, None]
    return np.take_along_axis(turn, best, 1).max(), np.take_along_axis(growth, best, 1).max()


def test_a_repeating_pattern_says_how_far_the_picture_was_turned(marked, likeliest_fn):
    for strength in (0.0, 0.4, 0.8):
        turned = distortions.batch("Dist-Rotation", marked, strength)
        turn, growth = nearest(likeliest_fn, turned, 45 * strength, 1.0)
        assert turn < 0.8 and growth < 0.015, strength


def test_a_crop_shows_by_how_much_it_was_enlarged(marked, likeliest_fn):
    turn, growth = nearest(likeliest_fn, distortions.batch("Dist-RCrop", marked, 0.4), 0.0, 0.8**-0.5)
    assert turn < 0.8 and growth < 0.015


def test_a_matrix_and_its_inverse_bring_pixels_back():
    smooth = jnp.sin(jnp.arange(64) / 7)[None, :, None, None] * jnp.cos(jnp.arange(64) / 9)[None, None, :, None]
    degrees, scale = jnp.array([20.0]), jnp.array([1.2])
    away, _ = poses.sampled(smooth, poses.matrix(-degrees, 1 / scale), jnp.zeros((1, 2)))
    back, inside = poses.sampled(away, poses.matrix(degrees, scale), jnp.zeros((1, 2)))
    assert np.abs(back - smooth)[inside > 0].mean() < 0.02

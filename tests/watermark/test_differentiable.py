import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.watermark import differentiable, distortions
from data.toys.scenes import scenes


@pytest.fixture(scope="module")
def pictures():
    return scenes(2, 64)


def as_numbers(pictures):
    return jnp.asarray(pictures, jnp.float32) / 255


@pytest.mark.parametrize(
    ("name", "strength", "levels"),  # root mean square of the difference from Pillow's, in grey levels
    [
        ("Dist-Bright", 0.4, 0.8),
        ("Dist-Contrast", 0.4, 0.8),
        ("Dist-Blur", 0.1, 2.0),
        ("Dist-JPEG", 0.0, 3.0),
        ("Dist-JPEG", 0.5, 2.5),
        ("Dist-JPEG", 0.75, 3.0),
    ],
)
def test_a_distortion_is_pillows_to_a_few_levels(name, strength, levels, pictures):
    ours = differentiable.distort(name, as_numbers(pictures), jnp.float32(strength), jax.random.key(0))
    theirs = distortions.batch(name, pictures, strength)
    inside = slice(8, -8)  # Pillow extends the edge before it blurs
    gap = (255 * np.asarray(ours) - theirs)[:, inside, inside]
    assert np.sqrt(np.mean(gap**2)) < levels


def test_noise_and_squares_have_the_size_that_they_say(pictures):
    images, key = jnp.full((2, 64, 64, 3), 0.5), jax.random.key(0)
    noisy = differentiable.distort("Dist-Noise", images, jnp.float32(0.5), key)
    assert float(jnp.std(noisy)) == pytest.approx(0.05, rel=0.05)
    erased = differentiable.distort("Dist-Erase", as_numbers(pictures) + 0.01, jnp.float32(1.0), key)
    black = np.asarray(erased == 0).all(axis=-1)
    assert black.mean(axis=(1, 2)) == pytest.approx([0.25, 0.25], abs=0.02) and not (black[0] == black[1]).all()


def test_gradients_pass_through_rounded_numbers(pictures):
    x = jnp.array([0.2, 0.7])
    assert jax.grad(lambda x: jnp.sum(differentiable.rounded(x)))(x).tolist() == [1, 1]
    grads = jax.grad(lambda images: jnp.sum(differentiable.jpeg(images, jnp.float32(50)) ** 2))(as_numbers(pictures))
    assert np.isfinite(grads).all() and float(jnp.abs(grads).mean()) > 0.1


def test_a_drawn_distortion_gives_bytes(pictures):
    drawn_fn = jax.jit(differentiable.drawn)
    for seed in range(6):
        out, inside = drawn_fn(as_numbers(pictures), jax.random.key(seed))
        out = np.asarray(out) * 255
        assert set(np.unique(inside)) <= {0, 1} and inside.mean() > 0.3
        assert np.abs(out - np.rint(out)).max() < 1e-3
        assert out.min() >= 0 and out.max() <= 255


def test_a_rotation_is_pillows_but_for_its_nearest_pixels():
    smooth = np.asarray(differentiable.blur(as_numbers(scenes(2, 64)), jnp.float32(2.0)))
    pictures = np.rint(255 * smooth).astype(np.uint8)
    ours = differentiable.distort("Dist-Rotation", as_numbers(pictures), jnp.float32(0.4), jax.random.key(0))
    gap = (255 * np.asarray(ours) - distortions.batch("Dist-Rotation", pictures, 0.4))[:, 16:-16, 16:-16]
    assert np.sqrt(np.mean(gap**2)) < 6


@pytest.mark.parametrize("name", differentiable.MOVING)
def test_what_is_moved_comes_back_and_says_where_it_has_pixels(name, monkeypatch):
    monkeypatch.setattr(differentiable, "MISSED", (0.0, 0.0, 0.0))
    smooth = differentiable.blur(as_numbers(scenes(2, 64)), jnp.float32(2.0))
    back, inside = differentiable.moved_back(name, smooth, jnp.float32(0.8), jax.random.key(3))
    gap = np.asarray(jnp.abs(back - smooth))[np.asarray(inside) > 0]
    assert 255 * gap.mean() < 2.5 and 0.4 < inside.mean() < 0.95
    grads = jax.grad(lambda x: jnp.sum(differentiable.moved_back(name, x, jnp.float32(0.8), jax.random.key(3))[0]))(
        smooth
    )
    assert np.isfinite(grads).all() and 0.3 < float(grads.mean()) < 3

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import learned, quality
from data.toys.scenes import scenes


@pytest.fixture(scope="module")
def pictures():
    return scenes(3, 32)


@pytest.fixture(scope="module")
def network(pictures):
    """The auto-encoder after a few steps, with the loss of each."""
    return learned.fit(learned.reconstruction, learned.AutoEncoder(), pictures, steps=40, batch_size=4, side=32)


@pytest.fixture(scope="module")
def encode_fn(network):
    return lambda images: learned.AutoEncoder().apply(network[0], images, method="encode")


def test_the_auto_encoder_learns_and_brings_pictures_back(pictures, network, encode_fn):
    params, losses = network
    assert losses[-1] < losses[0] / 2

    def decode_fn(latent):
        return learned.AutoEncoder().apply(params, latent, method="decode")

    weak, strong = (learned.regenerate(pictures, encode_fn, decode_fn, noise=noise) for noise in (0.0, 2.0))
    assert weak.shape == pictures.shape and weak.dtype == np.uint8
    assert quality.psnr(pictures, weak).mean() > quality.psnr(pictures, strong).mean()
    assert (weak == learned.regenerate(pictures, encode_fn, decode_fn, noise=0.0)).all()


def test_folding_comes_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    assert learned.fold(x).shape == (2, 2, 3, 12) and (learned.unfold(learned.fold(x)) == x).all()


def test_projected_steps_stay_near_the_picture_and_raise_the_loss(pictures, encode_fn):
    images, epsilon = pictures.astype(np.float32) / 255, 4 / 255

    def far(moved, images):
        return jnp.mean((encode_fn(moved) - encode_fn(images)) ** 2)

    start = jax.random.uniform(jax.random.key(0), images.shape, minval=-1, maxval=1)
    losses = []
    for steps in (0, 1, 6):
        moved = learned.projected(images, far, start, epsilon=epsilon, steps=steps, step_share=0.25)
        assert np.abs(moved - images).max() <= epsilon + 1e-6 and moved.min() >= 0 and moved.max() <= 1
        losses.append(float(far(moved, images)))
    assert losses[0] < losses[1] < losses[2]
    attacked = learned.attack_embedding(pictures, encode_fn, epsilon=epsilon, steps=3)
    assert np.abs(attacked.astype(int) - pictures).max() <= 4
    assert (learned.attack_embedding(pictures, encode_fn, epsilon=0.0, steps=3) == pictures).all()


def test_a_surrogate_takes_attacked_pictures_for_unmarked(pictures):
    pictures = pictures[:, :16, :16]
    marked = np.clip(pictures + 20.0, 0, 255).astype(np.uint8)
    both, labels = np.concatenate([pictures, marked]), np.arange(6) >= 3
    params, losses = learned.fit(
        learned.cross_entropy, learned.Surrogate(), both, labels, steps=15, batch_size=6, side=16
    )
    assert losses[-1] < losses[0]

    def logits_fn(images):
        return learned.Surrogate().apply(params, images)

    attacked = learned.attack_surrogate(marked, logits_fn, epsilon=8 / 255, steps=5, warm_up=1)
    assert np.abs(attacked.astype(int) - marked).max() <= 8
    before, after = (logits_fn(images.astype(np.float32) / 255) for images in (marked, attacked))
    assert (after < before).all()


def test_weights_come_back_and_those_of_another_network_are_refused_by_name(tmp_path, network):
    path = tmp_path / "weights.safetensors"
    learned.save(path, network[0])
    again = learned.load(path, learned.AutoEncoder())
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, dict(network[0])))
    with pytest.raises(InputError, match="weights of another network than Surrogate: params/conv0/bias is nothing"):
        learned.load(path, learned.Surrogate())
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        learned.load(path, learned.AutoEncoder())

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import pretrained, resnet
from alignment.watermark import encoders, learned


def test_a_residual_networks_average_pool_is_attacked_through_its_stored_weights(tmp_path):
    """ResNet-18's class with one block and few channels; its weights take the same way."""
    model = resnet.ResNet(num_classes=3, stage_sizes=(1,), width=4)
    fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    path = tmp_path / "small.safetensors"
    pretrained.save(path, fresh, network=model)
    encode_fn = encoders.average_pool(path, model, side=32)
    pictures = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3)).astype(np.uint8)
    images = pictures.astype(np.float32) / 255
    small = jax.image.resize(images, (2, 32, 32, 3), "bilinear")
    mean, deviation = (jnp.array(x).reshape(1, 1, 1, 3) for x in (encoders.MEAN, encoders.DEVIATION))
    _, activations = jax.jit(model.apply)(fresh, (small - mean) / deviation)
    np.testing.assert_allclose(jax.jit(encode_fn)(images), activations["layer1"].mean((1, 2)), rtol=1e-4, atol=1e-5)
    moved = learned.attack_embedding(pictures, encode_fn, epsilon=8 / 255, steps=2)
    assert 0 < np.abs(moved.astype(int) - pictures).max() <= 8
    learned.check_encoder(encode_fn, 48, "AdvEmbB-RN18")
    other = resnet.ResNet(num_classes=5, stage_sizes=(1,), width=4)
    with pytest.raises(InputError, match="has another head than the network"):
        encoders.average_pool(path, other, side=32)
    with pytest.raises(InputError, match="one array of floats is needed"):
        learned.check_encoder(lambda images: (images, images), 48, "AdvEmb-Own")

"""Attention rollout: the recursion by hand and as a slow twin, the map of the class token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import attention, explaining, gradcam
from alignment.models import vision


def slow_roll_out(blocks_HTS, residual):
    """Eq. 1 of Abnar & Zuidema for one image, in float64."""
    shares = np.eye(blocks_HTS[0].shape[-1])
    for block in blocks_HTS:
        mixed = (1 - residual) * np.mean(block, axis=0, dtype=np.float64) + residual * np.eye(len(shares))
        shares = (mixed / mixed.sum(-1, keepdims=True)) @ shares
    return shares


def weights(tokens, blocks=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), blocks)
    return [jax.nn.softmax(2 * jax.random.normal(key, (2, 4, tokens, tokens))) for key in keys]


def test_two_tokens_by_hand():
    """Half of (0, 1; 0, 1) and half identity, twice: token 0 keeps a quarter of itself."""
    block = jnp.array([[0.0, 1.0], [0.0, 1.0]])[None, None]
    np.testing.assert_allclose(attention.roll_out([block, block])[0], [[0.25, 0.75], [0, 1]])


@pytest.mark.parametrize("residual", [0.0, 0.5])
def test_rollout_is_its_equation_and_its_rows_sum_to_one(residual):
    blocks = weights(6)
    got = attention.roll_out(blocks, residual=residual)
    expected = [slow_roll_out([np.asarray(b[n]) for b in blocks], residual) for n in range(2)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "row"), [(5, "class token"), (4, "mean")])
def test_the_map_is_what_the_class_token_took_from_each_patch(tokens, row):
    """Blocks are found by number ("attention10" after "attention9"), not in the order of the dict."""
    blocks = weights(tokens, blocks=11)

    def network(variables, x):
        return jnp.zeros((2, 3)), {f"attention{i}": blocks[i] for i in (10, 2, 0, 1, 9, 3, 4, 5, 6, 7, 8)}

    x = jnp.zeros((2, 2, 2, 3))
    got = attention.rollout(network, {}, x, jnp.zeros((2, 2), int))
    shares = np.stack([slow_roll_out([np.asarray(b[n]) for b in blocks], 0.5) for n in range(2)])
    expected = shares[:, 0, 1:] if row == "class token" else shares.mean(1)
    np.testing.assert_allclose(got, np.repeat(expected.reshape(2, 1, 2, 2), 2, axis=1), rtol=1e-5)


def test_networks_without_attention_and_unknown_settings_are_refused():
    x = jnp.zeros((1, 2, 2, 3))
    with pytest.raises(InputError, match="this network returns logits alone"):
        attention.rollout(lambda _, x: jnp.zeros((1, 3)), {}, x, jnp.zeros((1, 1), int))
    with pytest.raises(InputError, match="this network returns layer1"):
        attention.rollout(lambda _, x: (jnp.zeros((1, 3)), {"layer1": x}), {}, x, jnp.zeros((1, 1), int))
    with pytest.raises(InputError, match="not one of: mean, max, min"):
        attention.roll_out(weights(4), heads="median")
    with pytest.raises(InputError, match="share of the identity"):
        attention.roll_out(weights(4), residual=1.5)


def test_a_vision_transformer_of_ours_is_explained_by_rollout_and_gradcam():
    size = {"img_size": 16, "patch_size": 4, "model_dim": 12, "num_layers": 2, "num_heads": 2}
    net = vision.network("vit_s16", num_classes=3, **size)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    _, activations = jax.jit(net.apply)(variables, x)
    blocks = [np.asarray(activations[f"attention{i}"][1]) for i in range(2)]
    shares = slow_roll_out(blocks, 0.5)[0, 1:].reshape(1, 1, 4, 4)
    maps = explaining.explain(net.apply, variables, x, [0, 1], method="attention_rollout")
    np.testing.assert_allclose(maps[1], gradcam.resize(jnp.asarray(shares), 16, 16)[0, 0], rtol=1e-5)
    cams = explaining.explain(net.apply, variables, x, [0, 1], method="gradcam", relu=False)
    assert cams.shape == (2, 16, 16) and np.ptp(cams, axis=(1, 2)) == pytest.approx(1, abs=1e-6)

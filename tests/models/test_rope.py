import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import rope


def test_plain_frequencies_by_hand():
    np.testing.assert_allclose(rope.frequencies(4, 100.0)[0], [1.0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(
        rope.frequencies(4, 100.0, {"type": "linear", "factor": 4.0})[0], [0.25, 0.025], rtol=1e-6
    )


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between():
    """Context 8192, factors 1 and 4: waves under 2048 positions stay, over 8192 are divided by 8."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    got, factor = rope.frequencies(128, 500_000.0, scaling)
    assert factor == 1.0
    for j, f in enumerate(got):
        plain = 500_000.0 ** (-2 * j / 128)
        wave = 2 * math.pi / plain
        if wave < 2048:
            expected = plain
        elif wave > 8192:
            expected = plain / 8
        else:
            smooth = (8192 / wave - 1) / 3
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert f == pytest.approx(expected, rel=1e-6)
    assert got[0] == 1.0 and got[-1] == pytest.approx(500_000.0 ** (-126 / 128) / 8, rel=1e-6)


def test_yarn_interpolates_low_frequencies_and_warms_the_tables():
    """Head width 128, theta 10,000, context 4096: ramp from floor(20.9) = 20 to ceil(45.03) = 46."""
    got, factor = rope.frequencies(
        128, 10_000.0, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    )
    plain = 10_000.0 ** (-np.arange(64) / 64)
    np.testing.assert_allclose(got[:21], plain[:21], rtol=1e-6)
    np.testing.assert_allclose(got[46:], plain[46:] / 4, rtol=1e-6)
    np.testing.assert_allclose(got[33], plain[33] * (0.5 + 0.5 / 4), rtol=1e-6)
    assert factor == pytest.approx(0.1 * math.log(4.0) + 1.0)


def test_rotation_turns_pairs_and_depends_on_distance_only():
    x = np.random.default_rng(0).normal(size=(1, 1, 1, 6)).astype(np.float32)
    frequencies, _ = rope.frequencies(6, 10.0)

    def turned(position):
        return np.asarray(rope.rotate(jnp.asarray(x), *rope.tables(jnp.full((1, 1), position), frequencies)))[0, 0, 0]

    pairs = (x[0, 0, 0, :3] + 1j * x[0, 0, 0, 3:]) * np.exp(1j * 5 * frequencies)
    np.testing.assert_allclose(turned(5), np.concatenate([pairs.real, pairs.imag]), atol=1e-6)
    assert turned(9) @ turned(7) == pytest.approx(turned(3) @ turned(1), rel=1e-5)


def test_layers_of_one_program_share_their_sines_and_cosines():
    frequencies_J, _ = rope.frequencies(16, 10_000.0)
    positions_BT = jnp.arange(64)[None]
    x_BTHK, kernels = jnp.ones((1, 64, 4, 16)), jnp.ones((2, 16, 16))

    def turned(tables_fn, x_BTHK):
        tables = tables_fn(positions_BT, frequencies_J)
        for kernel_KK in kernels:
            x_BTHK = x_BTHK + rope.rotate(x_BTHK @ kernel_KK, *tables)
        return jnp.sum(x_BTHK)

    compiled = [
        jax.jit(jax.value_and_grad(lambda x, fn=fn: turned(fn, x))).lower(x_BTHK).compile()
        for fn in (rope.tables_apart, rope.tables)
    ]
    assert compiled[0].as_text().count(" cosine(") == 1 < compiled[1].as_text().count(" cosine(")
    for ours, plain in zip(*(jax.tree.leaves(one(x_BTHK)) for one in compiled)):
        np.testing.assert_allclose(ours, plain, rtol=1e-6)

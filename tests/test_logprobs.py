"""Dimensions: N rows, T time, M head positions, D model width, V vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import logprobs
from tests.train import helpers


def slow_selected(hidden, head, sources, targets, num_tokens=None):
    """Full log-softmax, one position at a time, in float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)[:, :num_tokens]
    out = np.zeros(targets.shape)
    for n, m in np.ndindex(*targets.shape):
        logits = hidden[n, sources[n, m]] @ head
        out[n, m] = logits[targets[n, m]] - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
    return out


def example(n=4, t=9, m=5, d=6, v=24, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, t, d)).astype(np.float32)
    head = rng.normal(size=(d, v)).astype(np.float32)
    return hidden, head, rng.integers(0, t, (n, m)), rng.integers(0, v, (n, m))


def full(hidden, head, sources, targets):
    logps = jax.nn.log_softmax(jnp.einsum("NTD,DV->NTV", hidden, head))
    rows = jnp.arange(targets.shape[0])[:, None]
    return logps[rows, sources, targets]


def test_worked_numbers_of_the_egida_sheet():
    logits = jnp.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]])[None]
    targets = jnp.array([[0, 1, 2]])
    logps = logprobs.selected(logits, jnp.eye(3), None, targets)
    np.testing.assert_allclose(logps[0], [-0.239545, -0.551445, -0.094923], atol=1e-6)
    total, count = logprobs.sums(logps[:, None], jnp.ones((1, 1, 3)))
    np.testing.assert_allclose(total, [[-0.885912]], atol=1e-6)
    np.testing.assert_allclose(logprobs.sums(logps[:, None], jnp.array([[[0.0, 1, 1]]]))[0], [[-0.646368]], atol=1e-6)
    assert count == 3


@pytest.mark.parametrize("chunk", [3, 7, 20, 1024])
def test_chunks_of_any_size_give_the_slow_twin_and_its_gradient(chunk):
    hidden, head, sources, targets = example()
    with jax.enable_x64(True):
        args = jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32)
        out = logprobs.selected(*args, sources, targets, chunk=chunk)
        np.testing.assert_allclose(out, slow_selected(hidden, head, sources, targets), atol=2e-6)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=targets.shape), jnp.float32)
        ours = jax.grad(lambda h, w: jnp.sum(weights * logprobs.selected(h, w, sources, targets, chunk=chunk)), (0, 1))
        wanted = jax.grad(lambda h, w: jnp.sum(weights * full(h, w, sources, targets)), (0, 1))
        for a, b in zip(ours(*args), wanted(*(x.astype(jnp.float64) for x in args))):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_positions_without_a_mask_cost_nothing_and_count_nothing(chunk):
    hidden, head, sources, targets = example()
    mask = np.random.default_rng(2).random(targets.shape) < 0.5

    def total(h, w, mask):
        logps = logprobs.selected(h, w, sources, targets, mask_NM=mask, chunk=chunk)
        return jnp.sum(jnp.sin(logps)), logps

    grad_fn = jax.value_and_grad(total, (0, 1), has_aux=True)
    (value, logps), gradient = grad_fn(hidden, head, mask.astype(np.float32))
    np.testing.assert_allclose(logps, mask * slow_selected(hidden, head, sources, targets), atol=2e-6)
    everywhere = jax.grad(lambda h, w: jnp.sum(mask * jnp.sin(full(h, w, sources, targets))), (0, 1))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, everywhere)
    (value, _), gradient = grad_fn(hidden, head, np.zeros_like(mask, np.float32))
    assert value == 0
    assert not any(np.any(g) for g in gradient)


def test_filling_columns_have_no_probability_and_no_gradient():
    hidden, head, sources, targets = example(v=24)
    targets = targets % 20
    out = logprobs.selected(hidden, head, sources, targets, num_tokens=20)
    np.testing.assert_allclose(out, slow_selected(hidden, head, sources, targets, 20), atol=2e-6)
    gradient = jax.grad(lambda w: jnp.sum(logprobs.selected(hidden, w, sources, targets, num_tokens=20)))(head)
    np.testing.assert_array_equal(gradient[:, 20:], 0)


@pytest.mark.parametrize("shape", helpers.MESHES)
@pytest.mark.parametrize("v", [24, 25])  # 25 splits over no axis: filled up inside
def test_every_mesh_agrees_with_one_device(shape, v):
    hidden, head, sources, targets = example(n=8, v=v)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "fsdp", "tensor"))

    def total(h, w, mesh):
        return jnp.sum(jnp.sin(logprobs.selected(h, w, sources, targets, mesh=mesh, chunk=3)))

    one = jax.value_and_grad(total, (0, 1))(hidden, head, None)
    many = jax.jit(jax.value_and_grad(total, (0, 1)), static_argnums=2)(hidden, head, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, many)


def test_no_array_as_large_as_the_logits_is_ever_made():
    hidden, head, sources, targets = example(n=16, t=64, m=64, d=8, v=512)
    fn = jax.jit(jax.grad(lambda h, w: jnp.sum(logprobs.selected(h, w, sources, targets, chunk=64)), (0, 1)))
    scratch = fn.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    assert scratch < 16 * 64 * 512 * 4 / 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_a_frozen_head_costs_two_products_and_leaves_the_hidden_states_their_gradient(shape):
    hidden, head, sources, targets = example(n=8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), ("data", "fsdp", "tensor"))
    mask = np.ones(targets.shape)
    mask[::2] = 0

    def total(hidden, head):
        return jnp.sum(jnp.sin(logprobs.selected(hidden, head, sources, targets, mask_NM=mask, mesh=mesh)))

    both, alone = jax.grad(total, argnums=(0, 1)), jax.grad(total)
    np.testing.assert_allclose(jax.jit(alone)(hidden, head), jax.jit(both)(hidden, head)[0], rtol=0, atol=1e-5)
    num_products = [str(jax.make_jaxpr(fn)(hidden, head)).count("dot_general") for fn in (both, alone)]
    assert num_products == [4, 2]


def test_bfloat16_is_within_two_hundredths_a_token():
    hidden, head, sources, targets = example()
    out = logprobs.selected(jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head), sources, targets)
    rounded = (
        np.asarray(jnp.asarray(hidden, jnp.bfloat16), np.float64),
        np.asarray(jnp.asarray(head, jnp.bfloat16), np.float64),
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, slow_selected(*rounded, sources, targets), atol=2e-2)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_a_target_is_greedy_where_it_is_the_first_of_the_largest_logits(chunk):
    hidden, head, sources, targets = example()
    head[:, 7] = head[:, 3]  # equal logits everywhere
    logits = np.take_along_axis(hidden @ head, sources[..., None], axis=1)
    best = np.argmax(logits, axis=2)
    targets = np.where(np.random.default_rng(3).random(targets.shape) < 0.5, best, targets)
    targets[0] = np.where(best[0] == 3, 7, targets[0])
    mask = np.random.default_rng(4).random(targets.shape) < 0.8
    logps, is_greedy = logprobs.selected_and_greedy(hidden, head, sources, targets, mask_NM=mask, chunk=chunk)
    np.testing.assert_array_equal(is_greedy, mask & (targets == best))
    np.testing.assert_allclose(logps, mask * slow_selected(hidden, head, sources, targets), atol=2e-6)

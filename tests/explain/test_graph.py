"""A traced forward pass computes what the network computes, under the names a person would use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import errors
from alignment.explain import graph


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x)
        y = nn.BatchNorm(use_running_average=True, name="bn1")(y)
        return nn.relu(nn.relu(y) + x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        activations = {"stage0": x}
        x = nn.max_pool(x, (2, 2), (2, 2))
        for i in range(2):
            x = Block(name=f"block{i}")(x)
        activations["stage1"] = x
        x = jax.checkpoint(nn.silu)(x.mean((1, 2)))
        activations["pooled"] = x
        return nn.Dense(3, name="head")(x), activations


X = np.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), np.float32)


@pytest.fixture(scope="module")
def net():
    model = Net()
    return model.apply, model.init(jax.random.key(0), X)


def test_evaluate_computes_the_logits_and_the_activations(net):
    apply_fn, variables = net
    traced = graph.trace(apply_fn, variables, X)
    values = graph.evaluate(traced, variables, X)
    logits, activations = apply_fn(variables, X)
    np.testing.assert_allclose(values[traced.logits], logits, rtol=1e-6)
    for name, array in activations.items():
        np.testing.assert_allclose(values[traced.activations[name]], array, rtol=1e-5, atol=1e-6)


def test_names_are_activations_and_scope_paths_in_order_of_computation(net):
    names = graph.named(graph.trace(*net, X))
    assert list(names) == [
        "stem", "stage0", "block0/conv1", "block0/bn1", "block0", "block1/conv1", "block1/bn1", "block1", "stage1",
        "pooled", "head",
    ]  # fmt: skip
    assert names["block1"] == names["stage1"] != names["block0"]


def test_no_layer_name_means_the_last_spatial_activation(net):
    traced = graph.trace(*net, X)
    assert graph.find(traced) == traced.activations["stage1"]
    no_dict = graph.trace(lambda v, x: net[0](v, x)[0], net[1], X)
    assert graph.find(no_dict) == graph.named(no_dict)["block1"]


@pytest.mark.parametrize("layer", ["", "stage0", "block1/bn1", "stem"])
def test_the_head_gives_the_logits_and_their_gradient(net, layer):
    apply_fn, variables = net

    @jax.jit
    def both(x, bump):
        activation, head_fn = graph.split(apply_fn, variables, x, layer)
        logits, pullback = jax.vjp(head_fn, activation + bump)
        return logits, pullback(jnp.ones_like(logits))[0], activation

    logits, gradient, activation = both(X, 0.0)
    np.testing.assert_allclose(logits, apply_fn(variables, X)[0], rtol=1e-5, atol=1e-6)
    assert gradient.shape == activation.shape
    moved = jnp.sign(gradient) * 1e-3
    np.testing.assert_allclose(jnp.sum(both(X, moved)[0] - logits), jnp.sum(gradient * moved), rtol=0.05)


def test_gradients_through_the_graph_are_the_networks_own(net):
    """jax.nn.relu has derivative 0 at 0, max(x, 0) one half: a black image shows which was differentiated."""
    apply_fn, variables = net
    black = jnp.zeros_like(X)
    traced = graph.trace(apply_fn, variables, black, keep_custom=True)
    ours = jax.grad(lambda x: graph.evaluate(traced, variables, x)[traced.logits].sum())(black)
    np.testing.assert_array_equal(ours, jax.grad(lambda x: apply_fn(variables, x)[0].sum())(black))


def test_relu_can_be_replaced(net):
    apply_fn, variables = net
    traced = graph.trace(apply_fn, variables, X, keep_custom=True)
    relus = [equation for equation in traced.equations if graph.is_relu(traced, equation)]
    assert [equation.path for equation in relus] == ["", "block0", "block0", "block1", "block1"]
    linear = graph.evaluate(
        traced, variables, X, replace=lambda e: (lambda x: (x,)) if graph.is_relu(traced, e) else None
    )
    assert np.min(linear[traced.activations["stage0"]]) < 0


def test_an_unknown_layer_is_answered_with_the_known_ones(net):
    with pytest.raises(errors.InputError, match=r"'stag1'.*stem, stage0.*head.*nearest is 'stage1'"):
        graph.split(*net, X, "stag1")


def test_control_flow_over_the_image_is_refused_with_its_place():
    def looping(variables, x):
        with jax.named_scope("body"):
            x, _ = jax.lax.scan(lambda h, w: (h * w, None), x, variables)
        return x.mean((1, 2))

    with pytest.raises(errors.InputError, match=r"a scan .* in body depends on the image"):
        graph.trace(looping, jnp.ones(3), X)


def test_outputs_that_are_not_logits_are_refused():
    with pytest.raises(errors.InputError, match=r"logits \[N, C\].*\(2, 8, 8, 3\)"):
        graph.trace(lambda v, x: x * 2, {}, X)
    with pytest.raises(errors.InputError, match="do not depend on x"):
        graph.trace(lambda v, x: jnp.ones((2, 3)), {}, X)


def test_a_plain_function_with_closed_over_weights_is_read():
    weight = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    traced = graph.trace(lambda _, x: jax.nn.relu(x.mean((1, 2)) @ weight), None, X)
    values = graph.evaluate(traced, None, X)
    np.testing.assert_allclose(values[traced.logits], np.maximum(X.mean((1, 2)) @ weight, 0), rtol=1e-5)

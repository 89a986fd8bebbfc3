"""Each rule: the worked numbers, and the equation one connection at a time."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import lrp, lrp_rules
from tests.explain import lrp_twins as twins

RULES = {
    "zero": lrp_rules.zero,
    "epsilon": lrp_rules.epsilon,
    "gamma": lrp_rules.gamma,
    "alpha_beta": lrp_rules.alpha_beta,
    "z_plus": lrp_rules.z_plus,
    "z_box": lrp_rules.z_box,
    "z_box_of_image": partial(lrp_rules.z_box, low=None, high=None),
    "flat": lrp_rules.flat,
    "w_square": lrp_rules.w_square,
    "focus_dense": lrp_rules.focus_dense,
    "focus_conv": lrp_rules.focus_conv,
}
NO_BIAS = {
    "alpha_beta": partial(lrp_rules.alpha_beta, bias=False),
    "z_plus": partial(lrp_rules.z_plus, bias=False),
}


def _dense(variables, x):
    return x @ variables["w"] + variables["b"][None]


def _step(apply_fn, variables, x, kind):
    (step,) = [step for step in lrp.steps(apply_fn, variables, x) if step.layer.kind == kind]
    return step


def _worked(rule, x, w, R):
    x, w, R = (jnp.asarray(a, jnp.float32) for a in (x, w, R))
    step = _step(lambda w, x: x @ w, w, x[None], "dense")
    return rule(step, R[None])[0]


@pytest.mark.parametrize(
    ("rule", "x", "w", "R", "expected"),
    [
        (lrp_rules.z_plus, (1, 2, 3), [[2], [-1], [1]], [5], (2, 0, 3)),
        (lrp_rules.alpha_beta, (1, 2, 3), [[2], [-1], [1]], [5], (4, -5, 6)),
        (lrp_rules.gamma, (1, 2, 3), [[2], [-1], [1]], [5], (2.941176, -2.352941, 4.411765)),
        (lrp_rules.z_box, (0.5, -0.25), [[1], [-2]], [4], (1.5, 2.5)),
        (lrp_rules.focus_dense, (1, 2, 0), [[1, 2], [1, -1], [-1, 3]], [3, 0], (0.849779, 1.699558, 0)),
        (lrp_rules.epsilon, (1, 2, 0), [[1, 2], [1, -1], [-1, 3]], [3, 0], (1, 2, 0)),
        (lrp_rules.focus_conv, (1, -2, 3), [[2], [-1], [1]], [5], (2, 5, 3)),
        (lrp_rules.z_plus, (1, -2, 3), [[2], [-1], [1]], [5], (1.428571, 1.428571, 2.142857)),
    ],
    ids=["z+", "alpha2beta1", "gamma", "zB", "published dense", "epsilon", "published conv", "joint normaliser"],
)
def test_worked_numbers(rule, x, w, R, expected):
    np.testing.assert_allclose(_worked(rule, x, w, R), expected, rtol=2e-6, atol=2e-6)


def test_worked_numbers_of_batch_norm_and_residual():
    scale = jnp.asarray([1.5])
    step = _step(lambda s, x: x * s[None] - 1.0, scale, jnp.asarray([[2.0]]), "affine")
    np.testing.assert_allclose(lrp_rules.absorbing(step, jnp.asarray([[4.0]])), [[3.0]])
    step = _step(lambda v, x: x[:, :1] + x[:, 1:], None, jnp.asarray([[3.0, 1.0]]), "sum")
    shares = lrp_rules.proportional(step, jnp.asarray([[2.0]]))
    np.testing.assert_allclose(jnp.concatenate(shares), [[1.5], [0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (partial(lrp_rules.alpha_beta, alpha=5.0, beta=1.0), "alpha - beta must be 1.* beta=4 goes with this alpha"),
        (partial(lrp_rules.alpha_beta, alpha=0.5, beta=-0.5), "beta=-0.5 must be at least 0"),
        (partial(lrp_rules.gamma, gamma=-0.25), "gamma=-0.25 must be at least 0"),
        (partial(lrp_rules.epsilon, eps=-1e-6), "eps=-1e-06 must be at least 0"),
        (partial(lrp_rules.z_box, low=1.0, high=-1.0), "low must be the smaller"),
    ],
)
def test_a_rule_that_would_not_share_out_relevance_is_refused(rule, said):
    with pytest.raises(InputError, match=said):
        _worked(rule, (1, 2, 3), [[2], [-1], [1]], [5])


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 7.0])
def test_alpha_beta_conserves_relevance_where_alpha_less_beta_is_one(alpha):
    rule = partial(lrp_rules.alpha_beta, alpha=alpha, beta=alpha - 1)
    assert float(_worked(rule, (1, 2, 3), [[2], [-1], [1]], [5]).sum()) == pytest.approx(5, rel=1e-5)


@pytest.fixture(scope="module", params=["signed", "nonnegative"])
def dense(request):
    """Every rule's relevance for a dense layer of two images, and what the twins need."""
    rng = np.random.default_rng(0)
    x, R = rng.normal(size=(2, 6)), rng.normal(size=(2, 4))
    variables = {"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)}
    matrix = (variables["w"], variables["b"])
    return _all_rules(request.param, _dense, variables, x, R, "dense", matrix)


@pytest.fixture(scope="module", params=[("signed", 1), ("nonnegative", 2)], ids=str)
def conv(request):
    """The same for a convolution with padding, with and without a stride."""
    sign, stride = request.param
    rng = np.random.default_rng(1)
    size = 5 if stride == 1 else 3
    x, R = rng.normal(size=(2, 5, 5, 3)), rng.normal(size=(2, size, size, 4))
    variables = {"w": rng.normal(size=(3, 3, 3, 4)), "b": rng.normal(size=4)}

    def apply_fn(variables, x):
        z = jax.lax.conv_general_dilated(
            x, variables["w"], (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (z + variables["b"][None, None, None]).reshape(2, -1)

    matrix = twins.conv_matrix(variables["w"], variables["b"], 5, 5, stride, 1)
    return _all_rules(sign, apply_fn, variables, x, R, "conv", matrix)


def _all_rules(sign, apply_fn, variables, x, R, kind, matrix):
    is_nonnegative = sign == "nonnegative"
    wrapped = (lambda v, x: apply_fn(v, jax.nn.relu(x))) if is_nonnegative else apply_fn

    @jax.jit
    def run(variables, x, R):
        step = _step(wrapped, variables, x, kind)
        assert step.layer.is_nonnegative == is_nonnegative
        return {name: rule(step, R) for name, rule in RULES.items()}, {
            name: rule(step, R) for name, rule in NO_BIAS.items()
        }

    ours, without_bias = jax.tree.map(np.asarray, run(*_float32((variables, x, R))))
    return ours, without_bias, np.maximum(x, 0) if is_nonnegative else x, R, matrix


def _float32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def _same_as_twin(case, name, rtol=2e-3):
    ours, without_bias, x, R, (M, b) = case
    twin = getattr(twins, name)
    for i in range(len(x)):
        expected = twin(x[i].ravel(), M, b, R[i].ravel())
        np.testing.assert_allclose(ours[name][i].ravel(), expected, rtol=rtol, atol=1e-4)
        if name in without_bias:
            expected = twin(x[i].ravel(), M, 0 * b, R[i].ravel())
            np.testing.assert_allclose(without_bias[name][i].ravel(), expected, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_dense_rules_equal_the_equation(dense, name):
    _same_as_twin(dense, name)


@pytest.mark.parametrize("name", RULES)
def test_conv_rules_equal_the_equation(conv, name):
    _same_as_twin(conv, name)


def test_affine_and_residual_rules_equal_the_equation():
    rng = np.random.default_rng(2)
    x, y, a, b, R = rng.normal(size=(5, 1, 7))
    step = _step(lambda v, x: x * v["a"] + v["b"], _float32({"a": a, "b": b}), _float32(x), "affine")
    ours = lrp_rules.absorbing(step, _float32(R))
    np.testing.assert_allclose(ours[0], twins.absorbing(x[0], a[0], b[0], R[0]), rtol=1e-4)
    both = _float32(np.concatenate([x, y], axis=1))
    step = _step(lambda v, x: x[:, :7] + x[:, 7:], None, both, "sum")
    for share, expected in zip(lrp_rules.proportional(step, _float32(R)), twins.residual(x[0], y[0], R[0])):
        np.testing.assert_allclose(share[0], expected, rtol=1e-3)


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_pooling_rules_equal_the_equation(kind):
    rng = np.random.default_rng(3)
    x, R = np.abs(rng.normal(size=(6, 6))), rng.normal(size=(3, 3))
    pool = getattr(nn, kind)
    step = _step(lambda v, x: pool(x, (2, 2), (2, 2)).reshape(1, -1), None, _float32(x[None, ..., None]), kind)
    rule = lrp_rules.backward if kind == "max_pool" else lrp_rules.proportional
    ours = rule(step, _float32(R[None, ..., None]))[0, ..., 0]
    np.testing.assert_allclose(ours, getattr(twins, kind)(x, R, 2), rtol=1e-5, atol=1e-6)


def test_attention_rules_equal_the_equation():
    rng = np.random.default_rng(4)
    x, R = rng.normal(size=(2, 1, 5))
    step = _step(lambda v, x: jax.nn.softmax(x), None, _float32(x), "softmax")
    np.testing.assert_allclose(lrp_rules.softmax(step, _float32(R))[0], twins.softmax(x[0], R[0]), rtol=1e-4, atol=1e-6)
    A, V, R = rng.normal(size=(3, 4)), rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    packed = _float32(np.concatenate([A.ravel(), V.ravel()])[None])
    step = _step(
        lambda v, x: (x[:, :12].reshape(3, 4) @ x[:, 12:].reshape(4, 2)).reshape(1, -1), None, packed, "matmul"
    )
    for share, expected in zip(lrp_rules.uniform(step, _float32(R)), twins.matmul(A, V, R)):
        np.testing.assert_allclose(share, expected, rtol=1e-4, atol=1e-6)


def test_division_by_zero_is_zero_and_the_stabiliser_keeps_the_sign():
    np.testing.assert_array_equal(lrp_rules.divide(jnp.ones(2), jnp.asarray([0.0, 4.0])), [0.0, 0.25])
    np.testing.assert_array_equal(lrp_rules.inverse(jnp.asarray([0.0, 4.0, 1e-45, -1e-38])), [0.0, 0.25, 0.0, 0.0])
    np.testing.assert_allclose(lrp_rules.stabilise(jnp.asarray([-1.0, 0.0, 1.0]), 0.5), [-1.5, 0.5, 1.5])


def test_flat_is_the_same_for_every_input_channel_and_conserves():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 6, 6, 3)), jnp.float32)
    w = jnp.ones((3, 3, 3, 2))

    def apply_fn(w, x):
        z = jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return z.reshape(1, -1)

    R = jnp.asarray(np.random.default_rng(6).normal(size=(1, 4, 4, 2)), jnp.float32)
    ours = lrp_rules.flat(_step(apply_fn, w, x, "conv"), R)
    np.testing.assert_array_equal(ours[..., 0], ours[..., 2])
    np.testing.assert_allclose(ours.sum(), R.sum(), rtol=1e-4)

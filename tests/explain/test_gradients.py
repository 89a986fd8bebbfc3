"""Gradient methods and occlusion beside the papers' equations in float64 numpy, on a net of two dense layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import gradients, occlusion, steps
from tests.explain import nets

N, Y, X, C, HIDDEN, CLASSES = 3, 4, 6, 2, 7, 4
RNG = np.random.default_rng(0)
WEIGHTS = {
    "in": RNG.normal(size=(Y * X * C, HIDDEN)) / 4,
    "bias": RNG.normal(size=HIDDEN) / 4,
    "out": RNG.normal(size=(HIDDEN, CLASSES)),
}
IMAGES = RNG.uniform(-1, 1, (N, Y, X, C))
TARGETS = np.array([[0, 3], [2, 1], [1, 1]])


def apply_fn(variables, x_NYXC):
    hidden = jax.nn.relu(x_NYXC.reshape(len(x_NYXC), -1) @ variables["in"] + variables["bias"][None])
    return hidden @ variables["out"]


def polynomial(variables, x_NYXC):
    """Degree 3 in the path's variable."""
    flat = x_NYXC.reshape(len(x_NYXC), -1)
    return jnp.stack([(flat**3).sum(-1) + (flat[:, 0] * flat[:, 1]), flat.sum(-1) ** 2], axis=-1) * variables


@pytest.fixture(scope="module")
def ours():
    return apply_fn, jax.tree.map(jnp.float32, WEIGHTS), jnp.float32(IMAGES), jnp.array(TARGETS)


def slow_score(image, target):
    return np.maximum(image.ravel() @ WEIGHTS["in"] + WEIGHTS["bias"], 0) @ WEIGHTS["out"][:, target]


def slow_gradient(image, target, guided=False):
    above = WEIGHTS["out"][:, target]
    above = np.maximum(above, 0) if guided else above
    is_on = image.ravel() @ WEIGHTS["in"] + WEIGHTS["bias"] > 0
    return (WEIGHTS["in"] @ (above * is_on)).reshape(image.shape)


def each(fn):
    """fn(number of the image, image, target) for all images and targets."""
    return np.array([[fn(i, IMAGES[i], target) for target in TARGETS[i]] for i in range(N)])


def min_max(image):
    return (image - image.min()) / (image.max() - image.min())


def test_gradient_is_the_largest_magnitude_over_channels(ours):
    expected = each(lambda i, image, target: np.abs(slow_gradient(image, target)).max(-1))
    np.testing.assert_allclose(gradients.gradient(*ours), expected, rtol=1e-5, atol=1e-6)


def test_input_x_gradient_sums_over_channels_with_its_sign(ours):
    expected = each(lambda i, image, target: (image * slow_gradient(image, target)).sum(-1))
    np.testing.assert_allclose(gradients.input_x_gradient(*ours), expected, rtol=1e-5, atol=1e-6)


def test_guided_backprop_drops_negative_gradients_at_every_rectifier(ours):
    expected = each(lambda i, image, target: slow_gradient(image, target, guided=True))
    got = gradients.guided_backprop(*ours, channels="keep")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(got - gradients.gradient(*ours, channels="keep")).max() > 0.1
    np.testing.assert_allclose(gradients.guided_backprop(*ours), np.abs(expected).max(-1), rtol=1e-5, atol=1e-6)


def test_guided_backprop_refuses_a_network_without_rectifiers(ours):
    with pytest.raises(InputError, match="none; take method='gradient'"):
        gradients.guided_backprop(polynomial, jnp.ones((1, 2)), *ours[2:])


def test_guided_backprop_leaves_other_activations_their_gradient():
    """max(x, 0) counts as a rectifier; GELU keeps its own derivative, and the residual sum adds both ways."""

    def network(variables, x):
        flat = x.reshape(len(x), -1) * variables
        return jnp.stack([(flat + jnp.maximum(jax.nn.gelu(flat), 0.0)).sum(-1)] * 2, axis=-1)

    x = jnp.linspace(-2, 2, 8).reshape(1, 2, 4, 1)
    got = gradients.guided_backprop(network, jnp.float32(1), x, jnp.array([[0]]), channels="keep")
    slope = jax.vmap(jax.grad(jax.nn.gelu))(x.ravel()) * (jax.nn.gelu(x.ravel()) > 0)
    np.testing.assert_allclose(got.ravel(), 1 + slope, rtol=1e-6)


def test_guided_backprop_takes_maximum_of_zero_for_a_rectifier_and_not_the_guard_of_a_variance():
    def network(variables, x):
        flat = x.reshape(len(x), -1) * variables
        spread = jnp.maximum(0.0, jnp.mean(flat**2, -1) - jnp.mean(flat, -1) ** 2)
        return jnp.stack([-jnp.maximum(0.0, flat).sum(-1) - spread] * 2, axis=-1)

    x = jnp.linspace(-2, 2, 8).reshape(1, 2, 4, 1)
    got = gradients.guided_backprop(network, jnp.float32(1), x, jnp.array([[0]]), channels="keep")
    np.testing.assert_allclose(got.ravel(), -2 * x.ravel() / 8, rtol=1e-6)  # of the variance alone


def test_smoothgrad_averages_signed_gradients_at_noisy_copies(ours):
    """The noise is drawn from fold_in(fold_in(key, image's number), copy)."""
    key, ids, copies, noise = jax.random.key(3), [4, 0, 9], 5, 0.7

    def slow(i, image, target):
        sigma = noise * (image.max() - image.min())
        keys = [jax.random.fold_in(jax.random.fold_in(key, ids[i]), s) for s in range(copies)]
        noisy = [image + sigma * np.asarray(jax.random.normal(k, image.shape)) for k in keys]
        return min_max(np.abs(np.mean([slow_gradient(one, target) for one in noisy], axis=0)).max(-1))

    got = gradients.smoothgrad(*ours, key=key, ids_N=jnp.array(ids), num_samples=copies, noise=noise)
    np.testing.assert_allclose(got, each(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copies", [1, 10])
def test_smoothgrad_of_a_linear_model_is_its_weights(copies):
    w = jax.random.normal(jax.random.key(0), (24, 3))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 2))
    targets = jnp.array([[0], [2]])

    def linear(w, x):
        return x.reshape(len(x), -1) @ w

    got = gradients.smoothgrad(
        linear, w, x, targets, key=jax.random.key(5), num_samples=copies, noise=2.0, channels="keep"
    )
    np.testing.assert_allclose(got[:, 0].reshape(2, -1), w.T[targets[:, 0]], rtol=1e-5)


def test_integrated_gradients_of_a_product_are_half_of_it_each():
    def product(_, x):
        return jnp.prod(x.reshape(len(x), -1), axis=-1, keepdims=True)

    x = jnp.array([[3.0, 5.0], [-2.0, 0.5]]).reshape(2, 1, 2, 1)
    got, delta = gradients.integrated_gradients(product, jnp.ones(()), x, jnp.zeros((2, 1), int), return_delta=True)
    np.testing.assert_allclose(got.reshape(2, 2), [[7.5, 7.5], [-0.5, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(delta, 0, atol=1e-6)


@pytest.mark.parametrize(("rule", "is_exact"), [("gausslegendre", True), ("middle", False), ("trapezoid", False)])
def test_only_gauss_legendre_is_complete_on_a_polynomial_network_in_a_few_points(rule, is_exact):
    x = jnp.float32(IMAGES)
    settings = {"baseline": -0.5, "num_steps": 3, "rule": rule, "return_delta": True}
    _, delta_NK = gradients.integrated_gradients(
        polynomial, jnp.full((1, 2), 0.005), x, jnp.array([[0, 1]] * N), **settings
    )
    assert (np.abs(delta_NK).max() < 1e-6) == is_exact


def test_integrated_gradients_follow_the_path_from_their_baseline(ours):
    points, weights = np.polynomial.legendre.leggauss(30)
    baseline = np.array([0.25, -1.0])  # one value a channel

    def slow(i, image, target):
        path = [slow_gradient(baseline + (p + 1) / 2 * (image - baseline), target) for p in points]
        return ((image - baseline) * np.tensordot(weights / 2, path, axes=1)).sum(-1)

    got, delta = gradients.integrated_gradients(*ours, baseline=jnp.float32(baseline), return_delta=True)
    np.testing.assert_allclose(got, each(slow), rtol=1e-4, atol=1e-5)
    gain = each(lambda i, image, target: slow_score(image, target) - slow_score(baseline + 0 * image, target))
    np.testing.assert_allclose(delta, each(slow).sum((2, 3)) - gain, atol=1e-5)


def test_completeness_error_shrinks_as_steps_are_added(ours):
    errors = [
        np.abs(gradients.integrated_gradients(*ours, num_steps=n, rule="middle", return_delta=True)[1]).max()
        for n in (4, 256)
    ]
    assert errors[1] < errors[0] / 8


def test_occlusion_is_the_mean_drop_over_the_windows_that_hide_a_pixel(ours):
    window, stride, fill = (2, 3), (2, 2), 0.5

    def slow(i, image, target):
        drop, count = np.zeros((Y, X)), np.zeros((Y, X))
        for top in (0, 2):
            for left in (0, 2, 4):  # the last window reaches one column past the edge
                hidden = image.copy()
                hidden[top : top + 2, left : left + 3] = fill
                drop[top : top + 2, left : left + 3] += slow_score(image, target) - slow_score(hidden, target)
                count[top : top + 2, left : left + 3] += 1
        return drop / count

    settings = {"window": window, "stride": stride, "fill": fill}
    for driver, per_pass in (("host", 1), ("scan", 4), ("flat", 1)):
        got = occlusion.relevance(*ours, **settings, driver=driver, per_pass=per_pass)
        np.testing.assert_allclose(got, each(slow), rtol=1e-4, atol=1e-5)


def test_occlusion_leaves_pixels_between_windows_at_zero_and_refuses_windows_larger_than_the_image(ours):
    got = occlusion.relevance(*ours, window=1, stride=3, driver="flat")
    assert not got[:, :, 1:3].any() and not got[:, :, :, 4].any()
    with pytest.raises(InputError, match="5 x 5 pixels does not fit in images of 4 x 6"):
        occlusion.relevance(*ours, window=5)


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad"])
def test_drivers_agree(ours, method):
    """The same steps in another order of summation."""
    drawn = {"key": jax.random.key(0), "num_samples": 7}
    options = {"num_steps": 7} if method == "integrated_gradients" else drawn
    fn = getattr(gradients, method)
    host = fn(*ours, driver="host", **options)
    for driver, per_pass in (("host", 3), ("scan", 1), ("scan", 3), ("flat", 1)):
        np.testing.assert_allclose(fn(*ours, driver=driver, per_pass=per_pass, **options), host, atol=2e-6)


def test_several_targets_share_one_forward_pass():
    """However many targets there are, each of the two forward convolutions occurs once in the traced program."""
    network, variables, x, _ = nets.made(nets.Small())

    def convolutions(num_targets):
        targets = jnp.zeros((len(x), num_targets), int)
        program = str(jax.make_jaxpr(lambda x: gradients.gradient(network, variables, x, targets))(x))
        shapes = [f"f32[{len(x)},{size},{size},6] = conv_general_dilated" for size in (8, 4)]
        return [program.count(shape) for shape in shapes]

    # the second convolution has inputs of its outputs' shape, so its transpose is counted too, once a target
    assert [convolutions(k) for k in (1, 4)] == [[1, 2], [1, 5]]


def test_one_target_after_the_other_and_all_at_once_are_the_same(ours):
    apply_fn, variables, x, _ = ours
    many = jnp.array([[k % CLASSES for k in range(gradients.UNROLLED + 1)]] * N)  # beyond UNROLLED it is a loop

    def at(targets, together):
        return gradients.of_targets(lambda x: apply_fn(variables, x), x, targets, together=together)[1]

    once = at(many, True)
    np.testing.assert_allclose(at(many, False), once, rtol=1e-6)
    np.testing.assert_allclose(at(many[:, :3], False), once[:, :3], rtol=1e-6)


def test_a_constant_map_scales_to_zero_and_any_other_to_the_unit_interval():
    maps = gradients.min_max(jnp.stack([jnp.full((2, 2), 3.0), jnp.array([[-1.0, 0.0], [1.0, 3.0]])])[None])
    np.testing.assert_allclose(maps[0], [[[0, 0], [0, 0]], [[0, 0.25], [0.5, 1]]])


def test_random_methods_refuse_to_run_without_a_key(ours):
    with pytest.raises(InputError, match=r"key=jax.random.key\(0\)"):
        gradients.smoothgrad(*ours)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rule": "simpson"}, "not one of: gausslegendre, middle, trapezoid"),
        ({"num_steps": 0}, "too few"),
        ({"channels": "mean"}, "not one of: sum, max_abs, keep"),
        ({"driver": "loop"}, "not one of: host, scan, flat"),
    ],
)
def test_unknown_settings_of_integrated_gradients_are_refused(ours, options, reason):
    with pytest.raises(InputError, match=reason):
        gradients.integrated_gradients(*ours, **options)


def test_a_host_loop_is_refused_inside_jit(ours):
    with pytest.raises(InputError, match="cannot loop inside"):
        jax.jit(lambda x: gradients.integrated_gradients(*ours[:2], x, ours[3], driver="host"))(ours[2])
    assert steps.choose(None) == "host"  # tests run on the CPU


def test_gradients_through_a_max_pool_are_those_of_jax_grad():
    x_NYXC = jnp.maximum(jax.random.normal(jax.random.key(0), (2, 8, 9, 3)), 0)  # with equals

    def apply_fn(weight, x_NYXC):
        pooled = jax.lax.reduce_window(x_NYXC, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        return jnp.tanh(pooled).sum((1, 2)) @ weight

    weight = jax.random.normal(jax.random.key(1), (3, 4))
    got = gradients.gradient(apply_fn, weight, x_NYXC, jnp.array([[2], [2]]), channels="keep")
    want = jax.grad(lambda x: apply_fn(weight, x)[:, 2].sum())(x_NYXC)
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5, atol=1e-6)

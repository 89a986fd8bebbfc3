"""The one call: agreement with the methods, batches, shapes, refusals before any work on the device."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import explaining, fitness, gradcam, gradients
from tests.explain import nets

KEY = jax.random.key(0)
SETTINGS = {
    "lrp": {"composite": "epsilon_plus"},
    "smoothgrad": {"key": KEY, "num_samples": 3},
    "integrated_gradients": {"num_steps": 4},
    "occlusion": {"window": 4},
    "lime": {"key": KEY, "num_samples": 20, "segmenter": "slic", "num_features": None},
}


class Attending(nn.Module):
    """One head over four patches, without a class token."""

    @nn.compact
    def __call__(self, x_NYXC):
        patches = nn.Conv(5, (4, 4), 4, name="embed")(x_NYXC)
        x = patches.reshape(len(x_NYXC), -1, 5)
        weights = jax.nn.softmax(nn.Dense(5, name="query")(x) @ x.swapaxes(1, 2))
        x = nn.relu(x + weights @ x)
        return nn.Dense(3, name="head")(x.mean(1)), {"patches": patches, "attention0": weights[:, None]}


@pytest.fixture(scope="module")
def small():
    return nets.made(nets.Small())


@pytest.mark.parametrize("method", sorted(explaining.METHODS))
def test_maps_do_not_depend_on_the_batch_size_and_one_target_is_a_column_of_several(method):
    """Every method: 5 images in batches of 2 (the last one filled up) and of 5, with K targets and with one."""
    apply_fn, variables, x, targets = nets.made(
        Attending() if method == "attention_rollout" else nets.Small(), images=4
    )
    x, targets = np.concatenate([x, x[:1]]), np.concatenate([targets, targets[1:2]])
    options = SETTINGS.get(method, {})
    both = explaining.explain(apply_fn, variables, x, targets, method=method, **options)
    assert both.shape == (5, 2, 8, 8) and both.dtype == jnp.float32 and np.isfinite(both).all()
    one = explaining.explain(apply_fn, variables, x, targets[:, 1], method=method, batch_size=2, **options)
    assert one.shape == (5, 8, 8)
    np.testing.assert_allclose(one, both[:, 1], atol=1e-5)
    if method in ("smoothgrad", "lime"):  # image 4 is image 0 again, with noise of its own
        same_targets = np.broadcast_to(targets[:1], targets.shape)
        again = explaining.explain(apply_fn, variables, x, same_targets, method=method, **options)
        assert np.abs(again[4] - again[0]).max() > 1e-4


def test_explain_is_the_method_itself(small):
    np.testing.assert_allclose(
        explaining.explain(*small, method="gradcam", layer="stem"), gradcam.gradcam(*small, layer="stem"), atol=1e-6
    )


def test_one_program_serves_all_batches_and_later_calls(small):
    apply_fn, variables, x, targets = small
    traces = []

    def counted(variables, x):
        traces.append(x.shape)
        return apply_fn(variables, x)

    for images in (x, x + 0.1):
        explaining.explain(counted, variables, images, targets, method="gradient", batch_size=2)
    # once for the number of classes, once to see whether images mix, and once for the method
    assert traces == [(2, 8, 8, 3), (fitness.IMAGES, 8, 8, 3), (2, 8, 8, 3)]


def test_a_built_method_is_one_program_inside_another(small):
    apply_fn, variables, x, targets = small
    fn = explaining.build(apply_fn, variables, method="integrated_gradients", driver="scan", num_steps=4)
    inside = jax.jit(lambda x: fn(x, targets).sum())(x)
    outside = explaining.explain(*small, method="integrated_gradients", num_steps=4).sum()
    assert float(inside) == pytest.approx(float(outside), abs=1e-5)


def test_completeness_error_has_the_targets_shape(small):
    apply_fn, variables, x, targets = small
    options = {"method": "integrated_gradients", "return_delta": True, "num_steps": 16}
    maps, delta = explaining.explain(*small, **options)
    assert maps.shape == (3, 2, 8, 8) and delta.shape == (3, 2)
    logits = gradients.logits(apply_fn, variables, jnp.concatenate([x, jnp.zeros_like(x)]))
    gain = gradients.pick(logits[:3] - logits[3:], targets)
    np.testing.assert_allclose(maps.sum((2, 3)) - gain, delta, atol=1e-5)
    maps, delta = explaining.explain(apply_fn, variables, x, targets[:, 0], batch_size=2, **options)
    assert maps.shape == (3, 8, 8) and delta.shape == (3,)


def test_a_users_own_module_needs_no_activations():
    apply_fn, variables, x, targets = nets.made(nets.Plain())
    for method in ("gradcam", "input_x_gradient"):
        assert explaining.explain(apply_fn, variables, x, targets, method=method).shape == (3, 2, 8, 8)


def test_images_past_the_bounds_of_the_box_rule_are_told(small):
    apply_fn, variables, x, targets = small
    inside = x / np.abs(x).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explaining.explain(apply_fn, variables, inside, targets[:, 0], composite="epsilon_gamma_box")
    with pytest.warns(UserWarning, match="past low and high of the z-box rule"):
        explaining.explain(apply_fn, variables, 3 * inside, targets[:, 0], composite="epsilon_gamma_box")


def test_own_superpixels_may_have_any_numbers(small):
    segments = np.arange(64).reshape(1, 8, 8).repeat(3, axis=0) // 8
    options = {"method": "lime", "key": KEY, "num_samples": 8}
    plain, far = (explaining.explain(*small, segments_NYX=s, **options) for s in (segments, 1000 * segments - 9))
    np.testing.assert_array_equal(plain, far)


def test_own_superpixels_go_with_their_images(small):
    segments = np.stack([np.kron(np.arange(g * g).reshape(g, g), np.ones((8 // g, 8 // g), int)) for g in (2, 4, 8)])
    options = {"method": "lime", "key": KEY, "num_samples": 20, "num_features": None}
    whole = explaining.explain(*small, segments_NYX=segments, **options)
    np.testing.assert_allclose(
        explaining.explain(*small, segments_NYX=segments, batch_size=2, **options), whole, atol=1e-5
    )
    with pytest.raises(InputError, match=r"segments_NYX of shape \(2, 8, 8\) must be \(3, 8, 8\)"):
        explaining.explain(*small, segments_NYX=segments[:2], **options)


IMAGES, TARGETS = np.zeros((3, 8, 8, 3), np.float32), np.array([0, 1, 2])
WITH_NAN = IMAGES.copy()
WITH_NAN[1, 2, 3] = np.nan


@pytest.mark.parametrize(
    ("x", "targets", "options", "reason"),
    [
        (IMAGES, [0, 1, 5], {}, "target 5 is out of range; the network has 5 classes, 0 to 4"),
        (IMAGES, [0, -1, 2], {}, "target -1 is out of range"),
        (IMAGES, [0, 1], {}, r"must be class numbers \[N\] or \[N, K\] for N=3"),
        (IMAGES, [0.0, 1.0, 2.0], {}, "must be integers"),
        (IMAGES, [[0], [1, 2], [0]], {}, "as many for each image"),
        (IMAGES[0], [0], {}, r"a single image is x\[None\]"),
        (IMAGES[:0], np.zeros(0, int), {}, "at least one"),
        (np.uint8(IMAGES), TARGETS, {}, "x / 127.5 - 1 for bytes"),
        (WITH_NAN, TARGETS, {}, "image 1 of 3 holds NaN or infinity"),
        (jnp.asarray(WITH_NAN), TARGETS, {}, "image 1 of 3 holds NaN or infinity"),
        (np.moveaxis(IMAGES, -1, 1), TARGETS, {}, r"look like \[N, C, Y, X\]"),
        (IMAGES, TARGETS, {"method": "gradcm"}, "'gradcm' is not one of.*nearest is 'gradcam'"),
        (IMAGES, TARGETS, {"layr": "stem"}, "option='layr' is not one of.*nearest is 'layer'; gradcam takes no other"),
        (IMAGES, TARGETS, {"layer": "layer2"}, "'layer2' is not one of.*nearest is 'layer1'"),
        (IMAGES, TARGETS, {"driver": "host"}, "gradcam runs in one pass and takes no driver"),
        (IMAGES, TARGETS, {"return_delta": True}, "lrp and integrated_gradients do"),
        (IMAGES, TARGETS, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (IMAGES, TARGETS, {"method": "smoothgrad"}, "smoothgrad draws random numbers and was given no key"),
        (IMAGES, TARGETS, {"method": "occlusion", "driver": "loop"}, "not one of: host, scan, flat"),
        ([[1], [2, 3]], TARGETS, {}, "images of one size"),
        (np.float64(IMAGES) + 1e300, TARGETS, {}, "image 0 of 3 holds NaN or infinity"),
        (IMAGES, TARGETS, {"method": "smoothgrad", "key": 3}, r"pass the random key jax.random.key\(3\)"),
        (IMAGES, TARGETS, {"method": "smoothgrad", "key": KEY, "num_samples": 0}, "0 steps through the network"),
        (IMAGES, TARGETS, {"method": "smoothgrad", "key": KEY, "per_pass": 0}, "both must be at least 1"),
        (IMAGES, TARGETS, {"method": "lime", "key": KEY, "num_samples": 0}, "num_samples=0"),
        (IMAGES, TARGETS, {"method": "lime", "key": KEY, "segments_NYX": 0.5 * IMAGES[..., 0]}, "numbers of super-pix"),
        (IMAGES, TARGETS, {"method": "integrated_gradients", "baseline": np.ones(2)}, "baseline of shape .2,. must be"),
        (IMAGES, TARGETS, {"method": "occlusion", "fill": np.ones(2)}, "fill of shape .2,. must be a number"),
        (IMAGES, TARGETS, {"method": "lrp", "composite": 3}, "3 is neither a composite's name nor"),
        (IMAGES, TARGETS, {"method": "lrp", "rules": [("*", "zero")]}, "neither a composite's name nor"),
        (IMAGES, TARGETS, {"method": "lrp", "rules": [("conv9", abs)]}, "'conv9' is not one of.*nearest is 'conv"),
        (IMAGES, TARGETS, {"method": "lrp", "low": 1.0, "high": -1.0}, "low must be the smaller"),
        (IMAGES, TARGETS, {"method": "attention_rollout"}, "it is for vision transformers"),
    ],
)
def test_bad_input_is_refused_before_device_work(small, x, targets, options, reason):
    options = {"method": "gradcam"} | options
    with pytest.raises(InputError, match=reason):
        explaining.explain(*small[:2], x, targets, **options)


def test_a_network_that_returns_no_logits_is_refused():
    with pytest.raises(InputError, match=r"must return logits \[N, C\], alone or before a dict"):
        explaining.explain(lambda _, x: x.mean(), {}, IMAGES, TARGETS, method="gradient")


def test_modules_with_unhashable_fields_are_explained():
    class Listed(nn.Module):
        widths: dict

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.widths["out"])(nn.relu(nn.Dense(4)(x.reshape(len(x), -1))))

    apply_fn, variables, x, targets = nets.made(Listed({"out": 3}))
    assert explaining.explain(apply_fn, variables, x, targets, method="gradient").shape == (3, 2, 8, 8)

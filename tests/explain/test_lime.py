"""LIME: worked weights, scikit-learn's regression, recovery of a planted answer, independence of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import segmentation
from sklearn import linear_model, metrics

from alignment.errors import InputError
from alignment.explain import lime

KEY = jax.random.key(0)
BLOCKS = np.kron(np.arange(16).reshape(4, 4), np.ones((2, 2), int))  # 16 super-pixels on 8 x 8
SHARES = np.array([[3, 0, 2, -4], [0, 1, 0, 5], [-1, 0, 4, 0], [0, 6, 0, 0.5]]) / 10


def network(weights, x_NYXC):
    """The first logit is linear in the pixels, the second is its negative."""
    score = (x_NYXC * weights[None]).sum((1, 2, 3))
    return jnp.stack([score, -score], axis=-1)


@pytest.fixture(scope="module")
def planted():
    weights = np.kron(SHARES, np.ones((2, 2)))[..., None] / 4
    return network, jnp.float32(weights), jnp.ones((2, 8, 8, 1)), jnp.array([[0, 1], [0, 1]])


def test_weights_at_known_distances():
    on = np.zeros((3, 16), int)
    on[0], on[1, :9], on[2, :4] = 1, 1, 1  # d = 0, 1 - 3/4, 1 - 1/2
    np.testing.assert_allclose(lime.proximity(on), [1, 0.606531, 0.135335], atol=1e-6)


def test_distances_are_scikit_learn_cosine_distances():
    on = np.random.default_rng(0).integers(0, 2, (50, 7))
    on[3] = 0  # a hidden image is as far as can be
    distance = metrics.pairwise_distances(on, np.ones((1, 7)), metric="cosine")[:, 0]
    np.testing.assert_allclose(lime.proximity(on, 0.4), np.exp(-(distance**2) / (2 * 0.4**2)), rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_coefficients_are_those_of_scikit_learn_ridge(alpha):
    rng = np.random.default_rng(1)
    on, values, weights = rng.integers(0, 2, (80, 6)), rng.normal(size=(80, 3)), rng.uniform(0.01, 1, 80)
    expected = linear_model.Ridge(alpha=alpha).fit(on, values, sample_weight=weights).coef_
    np.testing.assert_allclose(lime.ridge(on, values, weights, alpha), expected, rtol=1e-9)


def test_perturbations_are_fair_coins_with_the_whole_image_first():
    on = lime.perturbations(KEY, 5, 1000, 40)
    assert on[0].all() and set(np.unique(on)) == {0, 1}
    assert on[1:].mean() == pytest.approx(0.5, abs=4 * 0.5 / (999 * 40) ** 0.5)  # four standard errors
    np.testing.assert_array_equal(on, lime.perturbations(KEY, 5, 1000, 40))
    assert (on != lime.perturbations(KEY, 6, 1000, 40)).any()
    assert (on != lime.perturbations(jax.random.key(1), 5, 1000, 40)).any()


def test_the_map_is_one_on_the_five_superpixels_that_speak_most_for_the_class(planted):
    maps = lime.relevance(*planted, key=KEY, segments_NYX=np.stack([BLOCKS] * 2))
    largest = np.argsort(-SHARES.ravel())[:5]
    np.testing.assert_array_equal(maps[:, 0], np.stack([np.isin(BLOCKS, largest)] * 2))
    against = np.flatnonzero(SHARES.ravel() < 0)  # fewer than five speak for the other class
    assert np.asarray(maps[:, 1])[:, np.isin(BLOCKS, against)].all()


def test_continuous_weights_solve_the_regression_on_the_networks_probabilities(planted):
    maps = lime.relevance(*planted, key=KEY, num_samples=200, num_features=None, segments_NYX=np.stack([BLOCKS] * 2))
    on = lime.perturbations(KEY, 1, 200, 16).astype(float)
    probability = 1 / (1 + np.exp(-2 * on @ SHARES.ravel()))
    distance = 1 - np.sqrt(on.mean(-1))
    fit = linear_model.Ridge(alpha=1.0).fit(on, probability, sample_weight=np.exp(-(distance**2) / (2 * 0.25**2)))
    np.testing.assert_allclose(maps[1, 0], fit.coef_[BLOCKS], atol=1e-6)
    np.testing.assert_allclose(maps[1, 1], -fit.coef_[BLOCKS], atol=1e-6)


def test_hidden_superpixels_take_the_hide_colour(planted):
    """An image that already has the colour has nothing to lose."""
    segments = np.stack([BLOCKS] * 2)
    maps = lime.relevance(*planted, key=KEY, num_samples=50, num_features=None, segments_NYX=segments, hide=1.0)
    np.testing.assert_allclose(maps, 0, atol=1e-7)


def test_maps_do_not_depend_on_the_batch_nor_on_the_driver(planted):
    """A batch with an image of more super-pixels pads the others' rows; their draws stay the same."""
    apply_fn, variables, x, targets = planted
    fine = np.arange(64).reshape(8, 8)
    options = {"key": KEY, "num_samples": 60, "num_features": None}
    both = lime.relevance(*planted, segments_NYX=np.stack([BLOCKS, fine]), ids_N=[7, 8], **options)
    for i, segments in enumerate((BLOCKS, fine)):
        for driver, per_pass in (("host", 8), ("scan", 7), ("flat", 1)):
            one = lime.relevance(
                apply_fn,
                variables,
                x[i : i + 1],
                targets[i : i + 1],
                segments_NYX=segments[None],
                ids_N=[7 + i],
                driver=driver,
                per_pass=per_pass,
                **options,
            )
            np.testing.assert_allclose(one[0], both[i], atol=1e-6)


@pytest.mark.parametrize("segmenter", ["quickshift", "slic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_superpixels_keep_flat_regions_apart(segmenter, channels):
    x = np.full((1, 32, 32, channels), -0.9)
    x[0, :, 16:] = 0.9
    options = {"n_segments": 16} if segmenter == "slic" else {"max_dist": 8, "ratio": 1.0}
    segments = lime.segment(x, segmenter, **options)[0]
    assert not set(segments[:, :16].ravel()) & set(segments[:, 16:].ravel())
    assert set(np.unique(segments)) == set(range(segments.max() + 1)) and segments.dtype == np.int32


def test_quickshift_is_scikit_image_with_the_papers_settings():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 96, 96, 3))
    got = lime.segment(x)
    for image, segments in zip(x, got):
        expected = segmentation.quickshift((image + 1) / 2, kernel_size=4, max_dist=200, ratio=0.2, rng=777)
        np.testing.assert_array_equal(segments, expected)
    assert (got.max((1, 2)) >= 4).all()


def test_bad_input_is_refused(planted):
    with pytest.raises(InputError, match="given no key"):
        lime.relevance(*planted)
    with pytest.raises(InputError, match="not one of: quickshift, slic"):
        lime.segment(np.zeros((1, 8, 8, 3)), "felzenszwalb")
    with pytest.raises(InputError, match="reads 1 or 3 channels and x has 4"):
        lime.segment(np.zeros((1, 8, 8, 4)))


@pytest.mark.parametrize("sure", [0.0, 8.0, 1e4])
@pytest.mark.parametrize("num_features", [5, None])
def test_a_network_that_ignores_the_image_has_an_empty_map(sure, num_features):
    x = np.kron(np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)), np.ones((1, 8, 8, 1))).astype(np.float32)
    weights = jnp.array([sure, -sure, -sure - 1.0])
    for seed in range(2):
        maps = lime.relevance(
            lambda v, x: v[None] + 0 * x.mean((1, 2, 3))[:, None],
            weights,
            jnp.asarray(x),
            jnp.zeros((2, 1), jnp.int32),
            key=jax.random.key(seed),
            num_samples=50,
            segmenter="slic",
            num_features=num_features,
        )
        np.testing.assert_array_equal(maps, 0)

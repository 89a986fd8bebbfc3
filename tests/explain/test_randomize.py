import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from alignment.errors import InputError
from alignment.explain import randomize

KEY = jax.random.PRNGKey(0)
X = jnp.ones((1, 8, 8, 3))
ORDER = [("zfirst",), ("norm",), ("block", "conv"), ("block", "norm"), ("ahead",)]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x_NYXC):
        y_NYXC = nn.Conv(48, (3, 3), use_bias=False, name="conv")(x_NYXC)
        return x_NYXC + nn.BatchNorm(use_running_average=True, name="norm")(y_NYXC)


class Net(nn.Module):
    """Named so that the alphabet and the order of computation disagree."""

    @nn.compact
    def __call__(self, x_NYXC):
        x_NYXC = nn.relu(nn.Conv(48, (5, 5), name="zfirst")(x_NYXC))
        x_NYXC = nn.BatchNorm(use_running_average=True, name="norm")(x_NYXC)
        x_NYXC = Block(name="block")(x_NYXC)
        return nn.Dense(300, name="ahead")(x_NYXC.mean((1, 2)))


@pytest.fixture(scope="module")
def trained():
    """Variables that no initialiser would give: every number moved by one."""
    return jax.tree.map(lambda x: x + 1.0, jax.jit(Net().init)(KEY, X))


def changed_modules(before, after):
    after = flatten_dict(after)
    return {path[1:-1] for path, value in flatten_dict(before).items() if not np.array_equal(value, after[path])}


def std_of(variables, *path):
    return float(np.std(flatten_dict(variables)[("params", *path, "kernel")]))


def test_layers_come_in_the_order_in_which_they_are_called(trained):
    assert randomize.layers(Net().apply, trained, X) == ORDER
    assert randomize.num_weight_layers(trained) == 3


def test_layers_of_a_forward_pass_without_modules_are_those_of_the_tree():
    variables = {"params": {"b": {"kernel": jnp.ones((2, 2))}, "a": {"kernel": jnp.ones((2, 2))}}}
    found = randomize.layers(lambda v, x: x @ v["params"]["b"]["kernel"], variables, jnp.ones((1, 2)))
    assert found == [("b",), ("a",)]


def test_full_randomisation_is_xavier_uniform_and_leaves_nothing_of_the_training(trained):
    fresh = randomize.fully(trained, KEY)
    assert changed_modules(trained, fresh) == set(ORDER)
    for path, fans in {("zfirst",): 25 * 51, ("block", "conv"): 9 * 96, ("ahead",): 348}.items():
        kernel = flatten_dict(fresh)[("params", *path, "kernel")]
        bound = (6 / fans) ** 0.5
        assert np.abs(kernel).max() <= bound and np.abs(kernel).max() > 0.99 * bound
        assert std_of(fresh, *path) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not fresh["params"]["zfirst"]["bias"].any() and (fresh["params"]["norm"]["scale"] == 1).all()
    assert not fresh["batch_stats"]["norm"]["mean"].any() and (fresh["batch_stats"]["norm"]["var"] == 1).all()


def test_the_same_key_draws_the_same_weights_and_another_others(trained):
    one, again, other = (randomize.fully(trained, k) for k in (KEY, KEY, jax.random.PRNGKey(1)))
    assert changed_modules(one, again) == set()
    assert changed_modules(one, other) == {("zfirst",), ("block", "conv"), ("ahead",)}


@pytest.mark.parametrize(
    ("num", "redrawn"), [(0, set()), (1, set(ORDER[4:])), (2, set(ORDER[2:])), (3, set(ORDER))], ids=range(4)
)
def test_the_cascade_redraws_from_the_top_and_nothing_below(trained, num, redrawn):
    found = randomize.cascade(trained, num, KEY, order=ORDER)
    assert changed_modules(trained, found) == redrawn
    assert jax.tree.structure(found) == jax.tree.structure(jax.tree.map(lambda x: x, dict(trained)))


def test_the_cascade_draws_he_normal_by_fan_out_and_dense_layers_at_a_hundredth(trained):
    found = randomize.cascade(trained, 3, KEY, order=ORDER)
    assert std_of(found, "block", "conv") == pytest.approx((2 / (9 * 48)) ** 0.5, rel=0.03)
    assert std_of(found, "zfirst") == pytest.approx((2 / (25 * 48)) ** 0.5, rel=0.05)
    assert std_of(found, "ahead") == pytest.approx(0.01, rel=0.03)
    assert not found["params"]["ahead"]["bias"].any() and not found["params"]["zfirst"]["bias"].any()


def test_a_longer_cascade_only_adds_to_a_shorter_one(trained):
    one, three = (randomize.cascade(trained, k, KEY, order=ORDER) for k in (1, 3))
    np.testing.assert_array_equal(one["params"]["ahead"]["kernel"], three["params"]["ahead"]["kernel"])


def test_a_cascade_longer_than_the_network_or_an_order_that_misses_a_layer_is_refused(trained):
    with pytest.raises(InputError, match="num_layers=4; this network has 3 layers"):
        randomize.cascade(trained, 4, KEY, order=ORDER)
    with pytest.raises(InputError, match="does not name block/conv"):
        randomize.cascade(trained, 1, KEY, order=[ORDER[0], ORDER[-1]])


def test_absent_targets_are_shown_by_no_tile_and_drawn_from_all_that_are_not():
    labels = np.array([[0, 0, 1, 2], [3, 3, 4, 4]] * 200)
    found = randomize.absent_targets(labels, 6, seed=0)
    assert not (labels == found[:, None]).any()
    assert set(found[::2].tolist()) == {3, 4, 5} and set(found[1::2].tolist()) == {0, 1, 2, 5}
    np.testing.assert_allclose(np.bincount(found[::2])[3:], 200 / 3, atol=25)
    np.testing.assert_array_equal(found, randomize.absent_targets(labels, 6, seed=0))
    assert not np.array_equal(found, randomize.absent_targets(labels, 6, seed=1))


def test_a_mosaic_that_shows_every_class_has_no_absent_target():
    with pytest.raises(InputError, match="mosaic 1 shows all 3 classes"):
        randomize.absent_targets(np.array([[0, 0, 1, 1], [0, 0, 1, 2]]), 3)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from alignment.errors import InputError
from alignment.train import loop, sharding, step, train_state
from tests.train import helpers

MESHES = [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)]


def create(shape, **changes):
    tx = helpers.optimizer.adamw(1e-2)
    example = jnp.zeros((1, 4), jnp.int32)
    return train_state.create(helpers.model(**changes), tx, example, seed=0, mesh=helpers.make_mesh(shape))


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)])
def test_parameters_drawn_on_a_mesh_are_those_of_one_device(shape):
    one, many = jax.device_get(create((1, 1, 1))), jax.device_get(create(shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, many.params)
    np.testing.assert_array_equal(one.rng, many.rng)


@pytest.mark.parametrize("shape", MESHES)
def test_a_batch_s_rows_are_split_and_come_back_whole(shape):
    batch = helpers.lm_batch(0)
    placed = sharding.to_devices(batch, helpers.make_mesh(shape))
    rows = 8 // (shape[0] * shape[1])
    assert all(leaf.addressable_shards[0].data.shape[0] == rows for leaf in placed.values())
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(placed), batch)


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = helpers.make_mesh((1, 2, 4))
    assert sharding.spec(("embed", "kv_heads", "head"), (32, 8, 4), mesh) == PartitionSpec("fsdp", "tensor", None)
    assert sharding.spec(("embed", "kv_heads", "head"), (32, 2, 4), mesh) == PartitionSpec("fsdp", None, None)
    assert sharding.spec(("vocab", "embed"), (41, 33), mesh) == PartitionSpec(None, None)


def test_no_mesh_axis_splits_two_dimensions_of_an_array():
    assert sharding.spec(("mlp", "vocab"), (8, 8), helpers.make_mesh((1, 2, 4))) == PartitionSpec("tensor", None)


def test_a_logical_axis_without_a_rule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'widht' has no rule; rules exist for batch, vocab"):
        sharding.spec(("widht",), (8,), helpers.make_mesh())


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "said"),
    [
        (6, 1, "batch_size=6 does not split over 4 devices .*; 4 would"),
        (12, 2, r"batch_size=12 does not split over 4 devices \(data x fsdp\) in 2 parts; 8 would"),
        (0, 1, "batch_size=0 does not split"),
        (8, 0, "accumulate=0 must be at least 1"),
    ],
)
def test_a_batch_that_does_not_split_is_refused_with_one_that_would(batch_size, accumulate, said):
    with pytest.raises(InputError, match=said):
        sharding.check_batch(batch_size, helpers.make_mesh((2, 2, 2)), accumulate)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (16, 2), (16, 4), (7 * 4, 7)])
def test_a_batch_that_splits_is_accepted(batch_size, accumulate):
    sharding.check_batch(batch_size, helpers.make_mesh((2, 2, 2)), accumulate)


@pytest.mark.parametrize(("shape", "waits"), [((8, 1, 1), True), ((1, 1, 1), False)])
def test_a_process_that_plays_several_devices_waits_for_each_program(shape, waits, monkeypatch):
    """Otherwise XLA's one pool of threads is taken by devices that wait for others, and the process hangs."""
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    sharding.keep_pace(helpers.make_mesh(shape), "out")
    assert waited == (["out"] if waits else [])


@pytest.mark.parametrize("shape", [(8, 1, 1)])
def test_an_evaluation_of_very_many_batches_ends_on_simulated_devices(shape):
    evaluate = loop.evaluator(
        lambda params, batch, **_: (step.Mean(jnp.sum(batch["x"]), jnp.float32(8)), {}), [{"x": np.ones(8)}] * 300
    )
    state = train_state.TrainState(jnp.zeros(()), {}, {}, jax.random.PRNGKey(0), None)
    assert evaluate(state, helpers.make_mesh(shape)) == {"loss": 1.0}

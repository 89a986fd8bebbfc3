import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.errors import InputError
from alignment.train import optimizer, sharding, step, train_state
from tests.train import helpers


def assert_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.fixture(scope="module")
def one():
    """Losses and parameters of three steps on one device, and how often the update was compiled meanwhile."""
    mesh, update, _, state = helpers.setup()
    compiled, losses = step.compile_update(update, state), []
    before = compiled.func._cache_size()
    for number in range(3):
        state, metrics = compiled(state, sharding.to_devices(helpers.lm_batch(number), mesh))
        losses.append(float(step.value(metrics["loss"])))
    return losses, jax.device_get(state.params), compiled.func._cache_size() - before


@pytest.mark.parametrize("parts", [8, 3])  # 3 parts of 8 rows: the last one is filled up
def test_accumulation_gives_the_update_of_the_whole_batch(parts, one):
    mesh, update, _, state = helpers.setup(accumulate=parts)
    losses, params, _ = helpers.run_steps(mesh, update, state)
    np.testing.assert_allclose(losses, one[0], atol=1e-5)
    assert_close(params, one[1], 1e-4)


@pytest.mark.parametrize("shape", helpers.MESHES)
def test_every_mesh_trains_like_one_device_and_leaves_the_state_where_it_was(shape, one):
    mesh, update, _, state = helpers.setup(shape)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    losses, params, after = helpers.run_steps(mesh, update, state)
    np.testing.assert_allclose(losses, one[0], atol=1e-4)
    assert_close(params, one[1], 1e-3)  # AdamW divides by small second moments
    jax.tree.map(lambda a, b: None if a.is_equivalent_to(b.sharding, b.ndim) else pytest.fail(str(b)), before, after)


def test_one_compilation_serves_every_step(one):
    assert one[2] == 1


def test_parameters_and_moments_are_kept_in_pieces():
    _, _, _, state = helpers.setup((1, 2, 4))
    gate = state.params["layers"]["gate"]
    assert gate.addressable_shards[0].data.size == gate.size // 8
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == gate.shape]
    assert len(moments) >= 2
    assert all(leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in moments)


def test_an_update_that_is_not_finite_changes_nothing_and_says_so():
    mesh, _, _, state = helpers.setup()

    def loss_fn(params, batch, *, rng, frozen):
        return step.Mean(jnp.sum(params["embedding"]) * jnp.nan, jnp.float32(1)), {}

    before = jax.device_get(state.params)
    compiled = step.compile_update(step.build(loss_fn, optimizer.adamw(1e-2)), _fresh(state, mesh))
    state, metrics = compiled(_fresh(state, mesh), sharding.to_devices(helpers.lm_batch(0), mesh))
    assert float(metrics["nonfinite"].total) == 1
    assert_close(jax.device_get(state.params), before, 0)


def _fresh(state, mesh):
    tx = optimizer.adamw(1e-2)
    return train_state.TrainState(
        jnp.copy(state.step), jax.tree.map(jnp.copy, state.params), tx.init(state.params), jnp.copy(state.rng), {}
    )


def test_split_keeps_the_rows_of_an_item_together():
    batch = {"rows": jnp.arange(12).reshape(12, 1), "items": jnp.arange(6)}
    parts = step.split(batch, 2)
    np.testing.assert_array_equal(parts["items"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(parts["rows"][..., 0], [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]])


def test_adamw_is_the_textbook_update_in_float64():
    tx = optimizer.adamw(0.1, schedule="constant", weight_decay=0.01, clip_norm=0.5, b1=0.8, b2=0.9)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "final_norm": rng.normal(size=3).astype(np.float32)}
    slow = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in slow.items()} for _ in range(2))
    state = tx.init(params)
    for t in range(1, 5):
        grads = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in params.items()}
        changes, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, changes)
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
        for k, g in grads.items():
            g = g.astype(np.float64) * min(1, 0.5 / norm)
            m[k] = 0.8 * m[k] + 0.2 * g
            v[k] = 0.9 * v[k] + 0.1 * g * g
            decay = 0.01 * slow[k] if k == "kernel" else 0  # norms and biases are not decayed
            slow[k] -= 0.1 * (m[k] / (1 - 0.8**t) / (np.sqrt(v[k] / (1 - 0.9**t)) + 1e-8) + decay)
    assert_close(params, slow, 1e-5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("constant", [0.5, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.875, 0.625]),
        ("cosine", [0.5, 1, 1, (1 + np.cos(np.pi / 8)) / 2, (1 + np.cos(3 * np.pi / 8)) / 2]),
        ("inverse_sqrt", [0.5, 1, 1, np.sqrt(2 / 3), np.sqrt(2 / 5)]),
    ],
)
def test_schedules_warm_up_and_fall(name, wanted):
    schedule = optimizer.SCHEDULES[name](1.0, 2, 10, 0.0)
    np.testing.assert_allclose([schedule(s) for s in (0, 1, 2, 3, 5)], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "is not one of: constant, linear"),
        ({"clip_norm": -1.0}, "must be at least 0"),
        ({"warmup_steps": 9, "total_steps": 5}, "longer than the run"),
    ],
)
def test_bad_optimizer_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        optimizer.adamw(1e-3, **settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3}, "there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
        ({"data": -1, "tensor": 3}, "multiple of 3"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(shape, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(**shape)


def test_a_batch_that_does_not_split_over_the_mesh_is_refused_with_one_that_would():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with pytest.raises(InputError, match=r"batch_size=6 does not split over 4 devices .*; 4 would"):
        sharding.check_batch(6, mesh)

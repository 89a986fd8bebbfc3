"""Trainings of one process that differ in numbers alone share their compiled programs, and their numbers stay right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import programs
from alignment.models import lora
from alignment.preference import losses, pairs
from alignment.train import adapters, loop, next_token, optimizer, sharding, step, train_state
from tests.train import helpers

TX = dict(peak_lr=1e-2, warmup_steps=1, total_steps=6, final_lr=1e-3, weight_decay=0.1, clip_norm=0.5)
OTHER_TX = dict(peak_lr=3e-3, warmup_steps=2, total_steps=9, final_lr=1e-4, weight_decay=0.2, clip_norm=0.1)
OTHER_TX |= dict(b1=0.8, b2=0.99, eps=1e-6)
LOSS = dict(beta=0.1, label_smoothing=0.1, sft_weight=0.5, length_alpha=0.8)
OTHER_LOSS = dict(beta=1, label_smoothing=0.2, sft_weight=0.1, length_alpha=0.3)


def train(folder, tx=TX, loss=LOSS, name="dpo", *, seed=0, steps=2, rank=0, mesh_shape=(1, 1, 1)):
    """A whole run of the loop from nothing: first parameters, steps, evaluations, checkpoints."""
    mesh, model, tx = helpers.make_mesh(mesh_shape), helpers.model(num_layers=1), optimizer.adamw(**tx)
    loss_fn = pairs.loss_fn(model, name, mesh=mesh, **loss)
    example_BT = jnp.zeros((1, 4), jnp.int32)
    state = train_state.create(model, tx, example_BT, seed=seed, mesh=mesh)
    if rank:
        adapter = lora.lay_out(lora.Settings(rank=rank), model)
        loss_fn, state = (
            lora.loss_fn(loss_fn, adapter),
            adapters.create(adapter, tx, state.params, seed=seed, mesh=mesh),
        )
    return loop.fit(
        step.build(loss_fn, tx, rate_fn=optimizer.learning_rate),
        state,
        helpers.Loader(helpers.pair_batch, seed=seed),
        {"heldout": loop.evaluator(loss_fn, [helpers.pair_batch(99)])},
        mesh,
        folder,
        steps=steps,
        pace=loop.Pace(log_every=1),
        logging=loop.Logging(sinks=()),
    )[1]


@pytest.fixture(autouse=True)
def _without_programs():
    """Tests of other files may have compiled the same ones."""
    programs.clear()


@pytest.mark.parametrize("options", [{}, {"rank": 2, "mesh_shape": (2, 1, 2)}], ids=["one-device", "adapter-on-a-mesh"])
def test_a_second_training_with_other_numbers_and_another_seed_compiles_nothing(tmp_path, compilations, options):
    first = train(tmp_path / "first", **options)
    assert compilations
    compilations.clear()
    second = train(tmp_path / "second", OTHER_TX, OTHER_LOSS, seed=3, steps=3, **options)
    assert compilations == []
    assert first["heldout/loss"] != second["heldout/loss"]


def test_what_shapes_the_program_compiles_another_one(tmp_path, compilations):
    train(tmp_path / "dpo")
    compilations.clear()
    train(tmp_path / "robust", name="robust")
    assert compilations == ["jit(sums)", "jit(update)"]
    compilations.clear()
    train(tmp_path / "plain", loss={"beta": 0.1})  # no anchor, and all tokens count alike
    assert compilations == ["jit(sums)", "jit(update)"]


def updates(tx, loss, *, shares, num=4):
    """Losses and rates of some updates, with numbers that are arguments or constants of the program."""
    mesh, model = helpers.make_mesh(), helpers.model(num_layers=1)
    tx = optimizer.adamw(**tx)
    params = jax.tree.map(jnp.asarray, helpers.start_params(num_layers=1))
    state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh, params=params)
    update = step.build(pairs.loss_fn(model, mesh=mesh, **loss), tx, rate_fn=optimizer.learning_rate)
    run = step.compile_update(update, state) if shares else jax.jit(lambda state, batch: update(state, batch))
    found = []
    for number in range(num):
        state, metrics = run(state, sharding.to_devices(helpers.pair_batch(number), mesh))
        found.append([float(step.value(metrics[name])) for name in ("loss", "lr", "grad_norm")])
    return found


@pytest.mark.parametrize(("tx", "loss"), [(TX, LOSS), (OTHER_TX | {"schedule": "linear"}, OTHER_LOSS)])
def test_traced_numbers_compute_what_constants_do(tx, loss):
    np.testing.assert_allclose(updates(tx, loss, shares=True), updates(tx, loss, shares=False), rtol=2e-6)


def test_numbers_leave_half_precision_as_it_is():
    mesh, model, tx = helpers.make_mesh(), helpers.model(num_layers=1, param_dtype="bfloat16"), optimizer.adamw(**TX)
    state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh)
    before = jax.tree.map(lambda leaf: leaf.dtype, state)
    run = step.compile_update(step.build(next_token.loss_fn(model, mesh), tx), state)
    state, _ = run(state, sharding.to_devices(helpers.lm_batch(0), mesh))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == before
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_takes_its_numbers_as_arguments(name):
    options = {option: 0.3 for option, default in losses.OPTIONS[name].items() if not isinstance(default, str)}
    words = {"divergence": "alpha"} if name == "f_dpo" else {}
    rng = np.random.default_rng(0)
    policy_BP, reference_BP = rng.normal(-5, 1, (2, 4, 2)).astype(np.float32)
    arrays = dict(policy_BP=policy_BP, reference_BP=reference_BP, num_tokens_BP=np.full((4, 2), 5))
    arrays |= dict(labels_B=np.array([1, 0, 1, 0]), weights_B=np.ones(4, np.float32))
    arrays |= dict(answers_BP=np.array([[0, 1], [0, 2], [3, 4], [5, 6]]), lists_B=np.array([0, 0, 1, 2]))
    compute = functools.partial(losses.compute, name, **arrays, **words)
    np.testing.assert_allclose(jax.jit(lambda o: compute(**o))(options), compute(**options), rtol=1e-5, atol=1e-6)


def test_computations_of_one_form_share_a_program_and_few_are_kept(compilations):
    def scaled(x, *, factor, power):
        return factor * x**power

    x = jnp.arange(3.0)
    compilations.clear()
    for factor in (2.0, 5.0):
        run = programs.compiled(programs.Computation(scaled, dict(power=2), dict(factor=factor)))
        np.testing.assert_allclose(run(x), factor * np.arange(3) ** 2)
    assert len(compilations) == 1
    for power in range(3, 3 + programs.NUM_PROGRAMS):
        programs.compiled(programs.Computation(scaled, dict(power=power), dict(factor=1.0)))
    assert programs._program.cache_info().currsize == programs.NUM_PROGRAMS
    programs.clear()
    assert programs._program.cache_info().currsize == 0


def test_a_plain_function_is_a_computation_that_its_twin_is_not():
    def make():
        return lambda x: x + 1

    one, other = make(), make()
    forms = [jax.tree.structure(programs.of(fn)) for fn in (one, one, other)]
    assert forms[0] == forms[1] != forms[2]
    assert programs.of(one)(1) == 2


def test_an_adapter_laid_out_again_is_the_same_to_a_program():
    one, same = (lora.lay_out(lora.Settings(rank=2), helpers.model()) for _ in range(2))
    other = lora.lay_out(lora.Settings(rank=3), helpers.model())
    assert one == same and hash(one) == hash(same) and one != other

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import lora
from alignment.preference import pairs
from alignment.train import adapters, loop, optimizer, sharding, stack, step
from tests.train import helpers

SETTINGS = lora.Settings(rank=3, targets=("q_proj", "o_proj", "up_proj"))
MEMBERS = (
    stack.Member("first", seed=1, numbers={"beta": 0.1}),
    stack.Member("steep", seed=2, numbers={"beta": 0.5}),
    stack.Member("fast", seed=1, rate=4.0, numbers={"beta": 0.1}),
)
STEPS = 4


def loader(seed):
    return helpers.Loader(functools.partial(helpers.pair_batch, seed=seed))


def setup():
    model, mesh = helpers.model(), helpers.make_mesh()
    adapter = lora.lay_out(SETTINGS, model)

    def loss_of(beta):
        return lora.loss_fn(pairs.loss_fn(model, "dpo", mesh=mesh, beta=beta), adapter)

    return mesh, adapter, loss_of, functools.partial(optimizer.adamw, schedule="constant", clip_norm=0.5)


def base():
    return jax.tree.map(jnp.asarray, helpers.start_params())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """All members trained at once by the usual loop."""
    mesh, adapter, loss_of, tx_of = setup()
    tx = tx_of(1e-2)
    return loop.fit(
        stack.build(loss_of, tx, MEMBERS),
        stack.create(adapter, tx, base(), MEMBERS, mesh=mesh),
        stack.Together([loader(seed=k) for k in range(len(MEMBERS))]),
        {"heldout": stack.evaluator(loss_of, MEMBERS, [helpers.pair_batch(99, seed=0)])},
        mesh,
        tmp_path_factory.mktemp("stack"),
        steps=STEPS,
        pace=loop.Pace(log_every=1),
        logging=loop.Logging(sinks=(), finish_fn=stack.finish(dict, MEMBERS)),
    )


@pytest.mark.parametrize("k", range(len(MEMBERS)))
def test_each_member_is_the_run_that_trains_it_alone(together, k):
    state, summary = together
    mesh, adapter, loss_of, tx_of = setup()
    member, batches = MEMBERS[k], loader(seed=k)
    alone = adapters.create(adapter, tx_of(1e-2 * member.rate), base(), seed=member.seed, mesh=mesh)
    loss_fn = loss_of(**member.numbers)
    heldout = loop.evaluator(loss_fn, [helpers.pair_batch(99, seed=0)])
    with sharding.activations(mesh):
        update = step.compile_update(step.build(loss_fn, tx_of(1e-2 * member.rate)), alone)
        for _ in range(STEPS):
            alone, _ = update(alone, sharding.to_devices(next(batches), mesh))
        for name, value in heldout(alone, mesh).items():
            assert summary[f"heldout/{member.name}/{name}"] == pytest.approx(value, abs=1e-5)
    for mine, own in zip(jax.tree.leaves(stack.params_of(state, k)), jax.tree.leaves(alone.params)):
        np.testing.assert_allclose(mine, own, rtol=0, atol=2e-5)


def test_members_that_differ_train_to_different_adapters(together):
    trees = [jax.tree.leaves(stack.params_of(together[0], k)) for k in range(3)]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(trees[0], trees[2]))
    start = helpers.start_params()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(together[0].frozen.tree), start)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((), "no members"),
        ((stack.Member("a"), stack.Member("a")), "a name of its own"),
        ((stack.Member("a", rate=0.0),), "rate=0.0, which must be positive"),
        ((stack.Member("a", numbers={"beta": 1.0}), stack.Member("b")), "may differ in values only"),
    ],
)
def test_members_that_cannot_be_trained_together_are_refused(members, said):
    with pytest.raises(InputError, match=said):
        stack.check(members)


def test_batches_of_other_shapes_are_refused():
    loaders = [loader(seed=0), helpers.Loader(functools.partial(helpers.pair_batch, seed=0, t=12))]
    with pytest.raises(InputError, match="differ in shape"):
        next(stack.Together(loaders))

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import files
from alignment.errors import InputError
from alignment.models import lora, peft_adapters
from alignment.train import adapters, checkpoint, loop, next_token, optimizer, sharding, step, train_state
from tests.train import helpers

SETTINGS = lora.Settings(rank=4, rank_pattern=(("q_proj", 6),), targets=("q_proj", "o_proj", "up_proj"))


def begin(mesh, **changes):
    """A state that trains an adapter of the tests' decoder, its update, and the adapter."""
    model = helpers.model(**changes)
    adapter = lora.lay_out(SETTINGS, model)
    base = train_state.create(model, optimizer.adamw(0.0), jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh).params
    tx = optimizer.adamw(3e-2, schedule="constant")
    state = adapters.create(adapter, tx, base, seed=1, mesh=mesh)
    return state, step.build(lora.loss_fn(next_token.loss_fn(model, mesh), adapter), tx), adapter


def train(mesh, num_steps, **changes):
    state, update, adapter = begin(mesh, **changes)
    losses = []
    with sharding.activations(mesh):
        update = step.compile_update(update, state)
        for _ in range(num_steps):
            state, metrics = update(state, sharding.to_devices(helpers.lm_batch(0), mesh))
            losses.append(float(step.value(metrics["loss"])))
    return state, adapter, losses


def test_only_the_adapter_moves_and_only_it_is_in_the_optimizer():
    mesh = helpers.make_mesh()
    before = jax.device_get(begin(mesh)[0])
    state, _, losses = train(mesh, 8)
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen.tree), before.frozen.tree)
    moved = jax.tree.map(lambda new, old: bool(np.any(np.asarray(new) != old)), state.params, before.params)
    assert all(jax.tree.leaves(moved))
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 2 * num_trained + 10


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_the_numbers_do_not_depend_on_the_mesh(shape):
    one, _, losses = train(helpers.make_mesh(), 3)
    many, _, sharded_losses = train(helpers.make_mesh(shape), 3)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params)):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-4)


def test_an_adapter_lies_in_the_pieces_of_its_kernel():
    state, _, _ = begin(helpers.make_mesh((2, 2, 2)))
    query, out = state.params["layers"]["query"], state.params["layers"]["out"]
    assert query["a"].sharding.spec[1] == "fsdp" and query["b"].sharding.spec[2] == "tensor"
    assert out["a"].sharding.spec[1] == "tensor" and out["b"].sharding.spec[2] == "fsdp"


def test_checkpoints_hold_the_adapter_alone_and_resuming_is_exact(tmp_path):
    def run(folder, steps):
        state, update, _ = begin(helpers.make_mesh())
        return loop.fit(
            update,
            state,
            helpers.Loader(),
            {},
            helpers.make_mesh(),
            folder,
            steps=steps,
            pace=loop.Pace(save_every=2),
            logging=loop.Logging(sinks=()),
        )[0]

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed.params), jax.device_get(whole.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed.frozen), jax.device_get(whole.frozen))
    with checkpoint.open_manager(tmp_path / "whole/checkpoints", read_only=True) as manager:
        metadata = manager.item_metadata(4)
    leaves = jax.tree.leaves(metadata["params"].tree) + jax.tree.leaves(metadata["rest"].tree)
    assert (
        sum(int(np.prod(leaf.shape)) for leaf in leaves) < 3 * sum(x.size for x in jax.tree.leaves(whole.params)) + 20
    )


def test_an_adapter_of_a_run_is_loaded_with_the_layers_it_was_trained_on(tmp_path):
    mesh = helpers.make_mesh()
    state, adapter, _ = train(mesh, 2)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, state, {})
        checkpoint.wait(manager)
    adapters.write_note(tmp_path, adapter, base="", weights="", seed=0)
    adapters.write_note(tmp_path, adapter, base="", weights="", seed=0)  # a resumed run
    again, params = adapters.load(tmp_path, helpers.model(), helpers.make_mesh((2, 2, 2)))
    assert again.settings == dataclasses.replace(adapter.settings, alpha=8.0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(state.params))
    peft_adapters.save(tmp_path / "peft", adapter, params)
    for init_from in (f"run:{tmp_path}", f"peft:{tmp_path / 'peft'}"):  # as `--plan` and `--doctor` ask
        assert adapters.Options(init_from=init_from).settings() == again.settings


def test_a_run_goes_on_with_its_own_adapter_and_base_only(tmp_path):
    adapter = lora.lay_out(SETTINGS, helpers.model())
    adapters.write_note(tmp_path, adapter, base="hf:a", weights="1", seed=0)
    with pytest.raises(InputError, match=r"\(weights differ: '1' then, '2' now\)"):
        adapters.write_note(tmp_path, adapter, base="hf:a", weights="2", seed=0)
    other = lora.lay_out(lora.Settings(rank=2), helpers.model())
    with pytest.raises(InputError, match=r"\(config differ"):
        adapters.write_note(tmp_path, other, base="hf:a", weights="1", seed=0)
    (tmp_path / "adapter.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        adapters.read_note(tmp_path)


def test_a_base_that_lies_in_the_workdir_moves_with_it(tmp_path):
    (tmp_path / "pretrain").mkdir()
    files.write_json(tmp_path / "adapter.json", {"base": "run:pretrain"})
    assert adapters.read_note(tmp_path)["base"] == f"run:{tmp_path / 'pretrain'}"


def test_a_resumed_run_whose_base_lies_in_its_workdir_is_the_same_run(tmp_path):
    (tmp_path / "pretrain").mkdir()
    adapter = lora.lay_out(SETTINGS, helpers.model())
    for _ in range(2):
        adapters.write_note(tmp_path, adapter, base="run:pretrain", weights="1", seed=0)
    with pytest.raises(InputError, match=r"\(base differ: 'run:pretrain' then"):
        adapters.write_note(tmp_path, adapter, base="hf:a", weights="1", seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(alpha=8.0), "adapter.alpha is not read with adapter.rank=0"),
        (dict(merge=True), "adapter.merge is not read with adapter.rank=0"),
        (dict(rank=-1), "at least 1"),
        (dict(rank=2, targets="q_proj("), "not a regular expression"),
        (dict(rank=2, rank_pattern="q_proj"), "must be <expression>=<number>"),
        (dict(init_from="hf:x"), "must be '', peft:<folder> or run:<workdir>"),
        (dict(init_from="run:x"), "adapter.json is not there"),
        (dict(init_from="peft:x"), "adapter_config.json does not exist"),
        (dict(init_from="peft:x", rank=4), "adapter.rank is not read, because adapter.init_from brings it"),
    ],
)
def test_options_that_would_not_be_read_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        adapters.Options(**options)


def test_targets_are_names_or_an_expression():
    assert adapters.Options(rank=2).settings().targets == "all-linear"
    assert adapters.Options(rank=2, targets="q_proj, 0.mlp.up_proj").settings().targets == ("q_proj", "0.mlp.up_proj")
    assert adapters.Options(rank=2, targets=r".*\.q_proj").settings().targets == r".*\.q_proj"
    patterns = adapters.Options(rank=2, rank_pattern="q_proj=8,up_proj=4", alpha_pattern="q_proj=1.5").settings()
    assert patterns.rank_pattern == (("q_proj", 8), ("up_proj", 4)) and patterns.alpha_pattern == (("q_proj", 1.5),)
    assert not adapters.Options().is_on()


def test_the_note_is_plain_json(tmp_path):
    adapters.write_note(tmp_path, lora.lay_out(SETTINGS, helpers.model()), base="", weights="", seed=0)
    note = json.loads((tmp_path / "adapter.json").read_text())
    assert note["config"]["r"] == 4 and note["config"]["rank_pattern"] == {"q_proj": 6}
    assert not adapters.has_head(note)

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alignment.errors import InputError
from alignment.train import checkpoint, digests, sharding, step, train_state
from tests.train import helpers


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def saved(folder, state, position=None):
    with checkpoint.open_manager(folder / "checkpoints") as manager:
        checkpoint.save(manager, state, position or {})
        checkpoint.wait(manager)
    return folder


def restored(folder, like):
    with checkpoint.open_manager(folder / "checkpoints") as manager:
        return checkpoint.restore(manager, like)


@pytest.fixture(scope="module")
def trained():
    """A state after one step on the mesh (8,1,1): moments, counts and step are not zero."""
    mesh, update, _, state = helpers.setup((8, 1, 1))
    return helpers.run_steps(mesh, update, state, num_steps=1)[2]


@pytest.fixture(scope="module")
def run_folder(trained, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run"), trained, {"number": 7, "epochs": [1, {"at": 2}]})


def test_what_is_restored_is_what_was_saved_position_included(trained, run_folder):
    state, position = restored(run_folder, helpers.setup((8, 1, 1))[3])
    assert_same(jax.device_get(state), jax.device_get(trained))
    assert int(state.step) == 1 and position == {"number": 7, "epochs": [1, {"at": 2}]}


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 2, 2), (1, 1, 1)])
def test_a_checkpoint_of_one_mesh_is_restored_on_another_bit_for_bit(shape, trained, run_folder):
    like = helpers.setup(shape)[3]
    state, _ = restored(run_folder, like)
    assert_same(jax.device_get(state), jax.device_get(trained))
    jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim) or pytest.fail(str(b)), state, like)


def test_a_bit_that_flips_in_any_file_of_a_checkpoint_is_noticed(trained, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    paths = [p for p in sorted((folder / "1").rglob("*")) if p.is_file() and p.stat().st_size]
    assert len(paths) > 3
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=f"the hash of .*{path.name} differs; copy it again"):
            digests.check(folder, 1)
        path.write_bytes(content)
    digests.check(folder, 1)
    (folder / ".digests/1.json").unlink()  # of a run that was killed before it had written them
    paths[0].write_bytes(b"")
    digests.check(folder, 1)


def test_hashes_are_those_of_the_checkpoints_that_are_there(tmp_path):
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        for number in (1, 2, 3):
            manager.save(number, args=ocp.args.Composite(position=ocp.args.JsonSave({"at": number})), force=True)
            digests.follow(tmp_path, number)
        checkpoint.wait(manager)
    assert sorted(p.stem for p in (tmp_path / ".digests").iterdir()) == ["2", "3"]
    assert not (tmp_path / "1").exists()


def test_a_folder_without_a_checkpoint_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint to restore"):
        restored(tmp_path, trained)


def test_a_checkpoint_holds_the_state_at_save_time_though_later_updates_reuse_its_memory(tmp_path):
    size = 1 << 20

    def state_of(number):
        params = {f"kernel_{i}": jnp.full((size,), number + i, jnp.float32) for i in range(8)}
        return train_state.TrainState(
            jnp.int32(number), params, {}, jax.random.PRNGKey(0), {"a": jnp.zeros(8) + number}
        )

    mesh = helpers.make_mesh()
    state = jax.device_put(state_of(3), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    add_one = jax.jit(lambda s: jax.tree.map(lambda x: x + x.dtype.type(1), s), donate_argnums=0)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, state, {})
        for _ in range(20):  # while the files are being written
            state = add_one(state)
        jax.block_until_ready(state)
        checkpoint.wait(manager)
        found, _ = checkpoint.restore(manager, state)
    wanted = state_of(3)
    assert_same(jax.device_get(found.params), jax.device_get(wanted.params))
    assert int(found.step) == 3 and float(found.frozen["a"][0]) == 3
    assert float(state.params["kernel_0"][0]) == 23


def test_parameters_of_another_run_come_in_the_shapes_and_places_asked_for(trained, run_folder):
    mesh = helpers.make_mesh((1, 2, 4))
    example = jnp.zeros((1, 4), jnp.int32)
    like = sharding.abstract(helpers.model(), example, train_state.param_shardings(helpers.model(), example, mesh))
    params = checkpoint.load_params(run_folder, like)
    assert_same(jax.device_get(params), jax.device_get(trained.params))
    jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim) or pytest.fail(str(b)), params, like)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ffn_dim": 48}, r"parameter layers/down has shape \(2, 64, 32\) there and \(2, 48, 32\) in this config"),
        ({"qk_norm": True}, r"parameter layers/\w+_norm has shape None there and \(2, 8\) in this config"),
    ],
)
def test_parameters_of_another_shape_are_refused_by_name(changes, said, run_folder):
    boxed = jax.eval_shape(
        lambda: helpers.model(**changes).init(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))["params"]
    )
    like = jax.tree.map(lambda x: x, helpers.nn.meta.unbox(boxed))
    with pytest.raises(InputError, match=said):
        checkpoint.load_params(run_folder, like)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "checkpoints").mkdir()])
def test_a_run_that_saved_nothing_is_refused_with_the_place_looked_in(make, tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match=r"holds no checkpoint \(looked in .*checkpoints\); name a run"):
        checkpoint.load_params(tmp_path, {})


def test_loading_parameters_removes_nothing_from_the_other_run_s_folder(run_folder):
    """That run may still be going, with a checkpoint half written."""
    unfinished = run_folder / "checkpoints" / "2.orbax-checkpoint-tmp-5"
    unfinished.mkdir()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), helpers.start_params())
    checkpoint.load_params(run_folder, like)
    assert unfinished.is_dir()
    unfinished.rmdir()


@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(damage, trained, tmp_path):
    saved(tmp_path, trained)
    for file in sorted((tmp_path / "checkpoints" / "1").rglob("*")):
        if file.is_file() and "/d/" in str(file):
            if damage == "removed":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{tmp_path}/checkpoints/1 cannot be read .*remove that folder"):
        restored(tmp_path, trained)


def test_a_full_disk_is_told_with_the_checkpoint_that_is_still_good(trained, tmp_path, monkeypatch):
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, trained, {})
        checkpoint.wait(manager)

        def full(*args, **kwargs):
            raise ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]")

        monkeypatch.setattr(manager, "save", full)
        later = trained.replace(step=trained.step + 1)
        with pytest.raises(InputError, match=r"step 1 is still good\. Free some space"):
            checkpoint.save(manager, later, {})


def test_saving_the_same_step_again_writes_nothing(trained, tmp_path):
    saved(tmp_path, trained)
    before = {p: p.stat().st_mtime_ns for p in pathlib.Path(tmp_path).rglob("*")}
    saved(tmp_path, trained)
    assert before == {p: p.stat().st_mtime_ns for p in pathlib.Path(tmp_path).rglob("*")}


def test_a_reference_in_frozen_is_a_copy_that_updates_leave_alone(tmp_path):
    mesh, _, lm_loss, state = helpers.setup()
    state = train_state.with_reference(state)
    before = jax.device_get(state.params)
    compiled = step.compile_update(step.build(lm_loss, helpers.optimizer.adamw(1e-2)), _with_adam(state))
    state, _ = compiled(_with_adam(state), sharding.to_devices(helpers.lm_batch(0), mesh))
    assert_same(jax.device_get(state.frozen), before)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(jax.device_get(state.params)), jax.tree.leaves(before)))
    saved(tmp_path, state)
    assert_same(jax.device_get(restored(tmp_path, state)[0].frozen), before)


def _with_adam(state):
    opt_state = jax.device_put(helpers.optimizer.adamw(1e-2).init(state.params), state.step.sharding)
    return state.replace(opt_state=opt_state)


def test_saving_what_all_devices_hold_compiles_nothing(tmp_path, compilations):
    _, _, _, state = helpers.setup((8, 1, 1))
    compilations.clear()
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, state, {})
        checkpoint.wait(manager)
    assert compilations == []

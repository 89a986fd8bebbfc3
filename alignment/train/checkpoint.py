"""Checkpoints through Orbax: written in the background, complete or absent, with the data's position beside the state.

A checkpoint has three items: `params`, `rest` (step, optimizer, rng, and what is frozen unless it is `Unsaved`) and
`position` (the loader's state as JSON). Orbax writes under a temporary name and renames, so a run killed while saving
finds the one before.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from alignment.errors import InputError
from alignment.train import digests
from alignment.train.train_state import TrainState, Unsaved

LEAST_SLICE = 1 << 20  # bytes

# Orbax raises its own classes for a disk that is full or closed, so the messages are searched.
DISK_TROUBLE = (
    "No space left",
    "RESOURCE_EXHAUSTED",
    "Disk quota",
    "File too large",
    "Read-only file system",
    "ENOSPC",
)


def open_manager(folder: str | pathlib.Path, *, keep: int | None = 2, read_only: bool = False) -> ocp.CheckpointManager:
    """A manager of the newest `keep` checkpoints of a folder; half-written ones from a killed run are removed.

    Args:
        keep: None keeps all.
        read_only: for a folder that another run may be writing to at this moment; changes nothing there.
    """
    if read_only:
        options = ocp.CheckpointManagerOptions(create=False)  # Orbax's own read_only warns on every start
    else:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, create=True)
    # Orbax cuts an array that several devices hold into as many slices, each by a program compiled for its shape. Small
    # arrays it writes whole now, because compiling takes longer than writing them. A handler of our own would be
    # registered with a warning at every start, and would leave the arrays' metadata out.
    ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = LEAST_SLICE
    handlers = {name: ocp.StandardCheckpointHandler() for name in ("params", "rest")}
    handlers["position"] = ocp.JsonCheckpointHandler()
    return ocp.CheckpointManager(pathlib.Path(folder).resolve(), options=options, item_handlers=handlers)


def latest_step(workdir: str | pathlib.Path) -> int | None:
    """Step of the newest checkpoint of a workdir; None for a fresh one."""
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        return None
    # Only looked at: two managers that clear away half-written checkpoints at once would stumble over each other.
    with open_manager(folder, read_only=True) as manager:
        return manager.latest_step()


def save(manager: ocp.CheckpointManager, state: TrainState, position: dict[str, Any]) -> None:
    """Start writing a checkpoint named for the state's step; returns once the arrays are off the devices."""
    step = int(state.step)
    if step == manager.latest_step():  # a resumed run that stops at once; Orbax refuses to write a step twice
        return
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(_rest(state)),
        position=ocp.args.JsonSave(position),
    )
    # `force`: Orbax has a policy of its own for which steps are worth saving, and here the loop decides.
    _guard(manager, step, lambda: manager.save(step, args=items, force=True))
    digests.follow(pathlib.Path(manager.directory), step)


def wait(manager: ocp.CheckpointManager, *, hashes: bool = True) -> None:
    """Until the last checkpoint is complete on disk, and its hashes are beside it unless these go on in the background.

    Args:
        hashes: False does not wait for them.
    """
    _guard(manager, None, lambda: (manager.wait_until_finished(), manager.check_for_errors()))
    if hashes:
        digests.finish(pathlib.Path(manager.directory))


def restore(
    manager: ocp.CheckpointManager, state: TrainState, *, step: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """The checkpoint of a step in the shapes and places of `state`, with the data's position; None: the newest.

    Raises:
        InputError: the folder holds no such checkpoint, or a damaged one.
    """
    step = manager.latest_step() if step is None else step
    if step is None or step not in manager.all_steps():
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise InputError(f"{manager.directory} holds {what} to restore; copy it back, or start over in another folder")
    items = ocp.args.Composite(
        params=ocp.args.StandardRestore(jax.tree.map(_like, state.params)),
        rest=ocp.args.StandardRestore(jax.tree.map(_like, _rest(state))),
        position=ocp.args.JsonRestore(),
    )
    stored = _read(manager, step, items)
    rest = dict(stored["rest"])
    if isinstance(state.frozen, Unsaved):
        rest["frozen"] = state.frozen
    return dataclasses.replace(state, params=stored["params"], **rest), stored["position"]


def give_up(state: TrainState) -> TrainState:
    """A state's shapes and places, for `restore`; the arrays that it will read are freed."""

    # Memory may not hold both this state and the restored one.
    def one(leaf):
        if isinstance(leaf, Unsaved):
            return leaf
        leaf.delete()
        return _like(leaf)

    return jax.tree.map(one, state, is_leaf=lambda leaf: isinstance(leaf, Unsaved))


def result_folder(workdir: str | pathlib.Path) -> pathlib.Path:
    """Where the checkpoint of a run's result is the newest: its best state (`best.Watch`) where it keeps one."""
    best = pathlib.Path(workdir).resolve() / "best/checkpoints"
    if best.is_dir() and any(path.name.isdigit() for path in best.iterdir()):
        return best
    return best.parents[1] / "checkpoints"


def load_params(workdir: str | pathlib.Path, like: Any) -> Any:
    """Parameters of another run's newest checkpoint, the best one where it keeps that.

    Args:
        workdir: that run's folder.
        like: a tree of arrays or ShapeDtypeStructs with the shapes wanted, and shardings to put them in.
    """
    folder = result_folder(workdir)
    manager = open_manager(folder, read_only=True) if folder.is_dir() else None
    if manager is None or manager.latest_step() is None:
        raise InputError(f"{workdir} holds no checkpoint (looked in {folder}); name a run that has saved one")
    # Only the parameters are asked for; another run's optimizer and position stay on disk.
    with manager:
        step = manager.latest_step()
        _check_shapes(manager, step, like, workdir)
        items = ocp.args.Composite(params=ocp.args.StandardRestore(jax.tree.map(_like, like)))
        return _read(manager, step, items)["params"]


def _read(manager: ocp.CheckpointManager, step: int, items: ocp.args.Composite) -> Any:
    """The items of one checkpoint; files that are damaged or gone become a message that says which to remove."""
    digests.check(pathlib.Path(manager.directory), step)
    try:
        return manager.restore(step, args=items)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"checkpoint {manager.directory / str(step)} cannot be read ({str(error)[:300]}); copy it again, or remove "
            "that folder to go on from the checkpoint before it"
        ) from error


def _check_shapes(manager: ocp.CheckpointManager, step: int, like: Any, workdir: str | pathlib.Path) -> None:
    tree = manager.item_metadata(step)["params"].tree
    stored = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    wanted = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise InputError(
                f"{workdir}: parameter {name} has shape {stored.get(name)} there and {wanted.get(name)} in this "
                "config's model; give the config that run's c.model"
            )


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _rest(state: TrainState) -> dict[str, Any]:
    frozen = {} if isinstance(state.frozen, Unsaved) else state.frozen
    return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng, "frozen": frozen}


def _like(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _guard(manager: ocp.CheckpointManager, step: int | None, write) -> None:
    """Run a write; a disk that is full or closed becomes a message that names what is still good."""
    try:
        write()
    except Exception as error:
        if not any(sign in str(error) for sign in DISK_TROUBLE) and not isinstance(error, OSError):
            raise
        # `all_steps` may count a checkpoint whose write has failed, so its folder is looked for.
        good = [s for s in manager.all_steps() if s != step and (manager.directory / str(s)).exists()]
        raise InputError(
            f"a checkpoint could not be written to {manager.directory}: {str(error).splitlines()[0][:300]}; "
            f"{f'the one of step {max(good)} is still good' if good else 'there is no earlier one'}. "
            "Free some space and start the same command again"
        ) from error

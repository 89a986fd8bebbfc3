"""The mesh, and which of its axes splits what.

One mesh with named axes `data` (rows), `fsdp` (rows, and parameters kept in pieces) and `tensor` (heads, feed-forward,
vocabulary), and, where it is asked for, `sequence` (the places of a row). Networks name the axes of their kernels; this
is the only file that knows what those names mean on a mesh.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from alignment import placing, programs
from alignment.errors import InputError, within
from alignment.models import on_mesh

AXES = ("data", "fsdp", "tensor")
SEQUENCE = on_mesh.SEQUENCE
ROWS = PartitionSpec(("data", "fsdp"))
RULES = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",  # `spec` leaves it whole where tensor does not divide their number
    "mlp": "tensor",
    "layers": None,
    "head": None,
    "norm": None,
    "time": SEQUENCE,
    "window": None,
    "channels_in": None,
    "channels": "fsdp",
    "classes": None,
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> Mesh:
    """A mesh over all devices; an axis of -1 takes those left over. The axis `sequence` is there where it is not 1."""
    sizes = {"data": data, "fsdp": fsdp}
    sizes |= ({} if sequence == 1 else {SEQUENCE: sequence}) | {"tensor": tensor}
    num_devices = len(jax.devices())
    if any(n < 1 and n != -1 for n in sizes.values()) or sum(n == -1 for n in sizes.values()) > 1:
        raise InputError(f"mesh={sizes}: sizes must be positive, and at most one of them -1 (the devices left over)")
    known = math.prod(n for n in sizes.values() if n != -1)
    if num_devices % known or (-1 not in sizes.values() and known != num_devices):
        raise InputError(
            f"mesh={sizes} needs {'a multiple of ' if -1 in sizes.values() else ''}{known} devices and there are "
            f"{num_devices}; set one axis to -1, or sizes whose product is {num_devices}"
        )
    shape = tuple(num_devices // known if n == -1 else n for n in sizes.values())
    return Mesh(np.array(jax.devices()).reshape(shape), tuple(sizes))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Refuse a batch whose rows do not split evenly over accumulated parts and the mesh axes that carry rows."""
    n = math.prod(mesh.shape[axis] for axis in ROWS[0])
    within("[1, inf)", accumulate=accumulate, hint=": the parts that a batch is taken in")
    if batch_size < 1 or batch_size % n or -(-batch_size // accumulate) % n:
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise InputError(
            f"batch_size={batch_size} does not split over {n} devices (data x fsdp){parts}; "
            f"{max(batch_size // (n * accumulate), 1) * n * accumulate} would"
        )


def row_share(mesh: Mesh) -> dict[str, int]:
    """Which part of a batch this process loads, as keyword arguments of the loaders.

    Processes whose devices share rows (they lie along `tensor` and `sequence`) load the same part.
    """
    num_same = mesh.shape["tensor"] * mesh.shape.get(SEQUENCE, 1)
    groups = mesh.devices.reshape(-1, num_same)  # the devices of one group hold the same rows
    mine = [i for i, group in enumerate(groups) if any(d.process_index == jax.process_index() for d in group)]
    if len(groups) % len(mine) or mine != list(range(mine[0], mine[0] + len(mine))):
        raise InputError(
            f"mesh={dict(mesh.shape)} gives process {jax.process_index()} the row groups {mine} of {len(groups)}, "
            "which is not an equal part; choose axes that split over the processes"
        )
    return dict(process_index=mine[0] // len(mine), process_count=len(groups) // len(mine))


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Mesh axes for an array with these logical axes; a dimension that does not divide stays whole."""
    axes: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for name, size in zip(names, shape):
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule; rules exist for {', '.join(RULES)}")
        axis = RULES[name] if name else None
        wanted = axis if isinstance(axis, tuple) else (axis,) if axis else ()
        # an axis may split one dimension of an array only, and only evenly
        has_axes = wanted and all(a in mesh.shape for a in wanted)  # `sequence` is on few meshes
        fits = has_axes and not used & set(wanted) and size % math.prod(mesh.shape[a] for a in wanted) == 0
        axes.append(axis if fits else None)
        used |= set(wanted) if fits else set()
    return PartitionSpec(*axes)


def of(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for every array of a tree of `nn.Partitioned` boxes; what carries no names is replicated."""

    def one(leaf):
        if isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, spec(leaf.names, leaf.value.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(one, abstract, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def boxed(model: nn.Module, example_BT: jax.Array) -> Any:
    """Shapes and dtypes of a model's parameters in boxes with their logical axes, without making any."""
    # Traced and never run, so that a model larger than one device's memory can be described.
    params_of = programs.Computation(_params, dict(model=model))
    return programs.shapes(params_of, example_BT)


def _params(example_BT, *, model):
    return model.init(jax.random.PRNGKey(0), example_BT)["params"]


def abstract(model: nn.Module, example_BT: jax.Array, shardings: Any) -> Any:
    """Shapes, dtypes and places of a model's parameters, without making any."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        nn.meta.unbox(boxed(model, example_BT)),
        shardings,
    )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch of this process's rows as global arrays, rows split over `data` and `fsdp`."""
    rows = NamedSharding(mesh, ROWS)
    # With several processes each holds its own rows only, and the global array is assembled from them.
    if jax.process_count() == 1:
        return jax.device_put(batch, rows)
    # Not the number of processes: those along `tensor` and `sequence` hold the same rows, which count once.
    parts = row_share(mesh)["process_count"]
    return {
        key: jax.make_array_from_process_local_data(rows, value, (len(value) * parts, *value.shape[1:]))
        for key, value in batch.items()
    }


def keep_pace(mesh: Mesh, out: Any) -> None:
    """Wait for a program's outputs where one process plays several devices, as in tests on a CPU; elsewhere go on.

    XLA's CPU client runs the programs of all its devices in one pool of threads. Once the host is some thirty programs
    ahead, the whole pool may be taken by devices that wait in a collective for others, which find no thread to run on:
    the process then hangs for ever.
    """
    if len(mesh.local_devices) > 1 and mesh.local_devices[0].platform == "cpu":
        jax.block_until_ready(out)


def to_host(tree: Any) -> Any:
    """Whole numpy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    # A collective: every process must call it.
    return multihost_utils.process_allgather(tree, tiled=True)


@contextlib.contextmanager
def activations(mesh: Mesh) -> Iterator[None]:
    """Within the context, the networks' constraints on activations use this mesh; on one device they do nothing."""
    if mesh.size == 1:
        yield
        return
    with placing.using(_Activations(mesh)):
        yield


@dataclasses.dataclass(frozen=True)
class _Activations:
    """Activations are split by rows and by heads or features, never by model width, which `embed` names too."""

    mesh: Mesh

    def __call__(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
        names = tuple(None if name == "embed" else name for name in names)
        return NamedSharding(self.mesh, spec(names, shape, self.mesh))

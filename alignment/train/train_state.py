"""What a run carries from step to step: arrays and nothing else, so that all of it is sharded, donated and saved."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from alignment import programs
from alignment.train import sharding


@flax.struct.dataclass
class TrainState:
    """`step` counts finished updates, `rng` never changes (keys are folded from it), `frozen` is read, not moved."""

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array
    frozen: Any


@flax.struct.dataclass
class Unsaved:
    """A `frozen` that checkpoints leave out, because it lies elsewhere: the base weights of an adapter."""

    tree: Any


class Initialised(Protocol):
    """What `create` reads of a network, or of an adapter."""

    def init(self, rng: jax.Array, example_B: jax.Array, /) -> Mapping[str, Any]: ...


def param_shardings(model: nn.Module, example_BT: jax.Array, mesh: Mesh) -> Any:
    """Where each parameter of a model lives, without making any."""
    return sharding.of(sharding.boxed(model, example_BT), mesh)


def draw(model: nn.Module, seed: int, mesh: Mesh) -> Any:
    """Parameters of a decoder from a seed, in their places on the mesh: its `init` under that key."""
    places = param_shardings(model, jnp.zeros((1, 4), jnp.int32), mesh)
    run = programs.compiled(programs.Computation(_draw, dict(model=model)), out_shardings=places)
    return nn.meta.unbox(run(np.array(seed % 2**32, np.uint32)))


def _draw(seed, *, model):
    return model.init(jax.random.PRNGKey(seed), jnp.zeros((1, 4), jnp.int32))["params"]


def create(
    model: Initialised,
    tx: optax.GradientTransformation,
    example_B: jax.Array,
    *,
    seed: int,
    mesh: Mesh,
    params: Any = None,
    frozen: Any = None,
) -> TrainState:
    """A state at step 0 in its place on the mesh; the same numbers whatever the mesh.

    Args:
        example_B: an input of the network, whose shape counts: tokens `[B,T]`, images `[B,Y,X,C]`.
        params: a checkpoint's parameters, donated; None draws them at random from `seed`.
        frozen: that checkpoint's collections that are not trained, such as `{"batch_stats": ...}`, donated too; without
            a checkpoint they are the network's own, `{}` where it has none.
    """
    begin = programs.Computation(_begin, dict(model=model), dict(begin_fn=programs.of(tx.init)))
    # Sent as an argument, so that all seeds share one program; the random keys of JAX read the lower 32 bits.
    number = np.array(seed % 2**32, np.uint32)
    example = jax.tree.map(np.asarray, example_B)  # of several processes, all may bring a numpy array
    # shapes and shardings come from the boxed parameters, whose logical names optax carries into its own state
    shardings = sharding.of(programs.shapes(begin, number, example, None, None), mesh)
    # Compiled with its shardings, so that each device makes its own pieces and the whole never lies on one.
    run = programs.compiled(begin, out_shardings=shardings, donate_argnums=(2, 3))
    return nn.meta.unbox(run(number, example, params, frozen))


def _begin(seed, example_B, params, frozen, *, model, begin_fn):
    # JAX's keys give the same numbers however an array is split, so a run begins alike on every mesh.
    rng, init_rng = jax.random.split(jax.random.PRNGKey(seed))
    drawn = {}
    if params is None:
        drawn = dict(model.init(init_rng, example_B))
        params = drawn.pop("params")
    return TrainState(jnp.zeros((), jnp.int32), params, begin_fn(params), rng, drawn if frozen is None else frozen)


def describe(model: Initialised, tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh | None) -> TrainState:
    """The shapes, dtypes and places of what `create` makes for a decoder or an adapter; no device is started.

    Args:
        mesh: None leaves the places out.
    """
    begin = programs.Computation(_begin, dict(model=model), dict(begin_fn=programs.of(tx.init)))
    boxed = programs.shapes(begin, np.array(0, np.uint32), np.zeros((1, 4), np.int32), None, None)
    state = nn.meta.unbox(boxed)
    if mesh is None:
        return state
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        sharding.of(boxed, mesh),
    )


def with_reference(state: TrainState) -> TrainState:
    """The state with a frozen copy of its parameters, the reference of preference losses."""
    # A copy, because the update may put the new parameters into the memory of the old ones.
    return dataclasses.replace(state, frozen=jax.tree.map(jnp.copy, state.params))

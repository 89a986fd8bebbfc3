"""Compiled programs that a process shares: one for all computations that differ in their numbers alone.

A loss of another beta, an optimizer of another learning rate or another seed need no other program, if these numbers
reach the program as arguments. So a `Computation` keeps what shapes its program (network, name of the loss, mesh, ...)
apart from its numbers, and `compiled` looks the program up by the former: the second point of a sweep, and the second
of several trainings in one process, compile nothing.

Numbers are what Python calls int and float, or arrays. As arguments the former keep their weak types, so that they are
promoted as constants are. What a program computes with them may differ from what it computes with constants by the
last bit: XLA folds constants in float64, and divides by them with a multiplication.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from alignment import placing

NUM_PROGRAMS = 64  # kept at the same time, each with an executable for every shape of its arguments


@jax.tree_util.register_pytree_node_class
class Computation:
    """A function with keyword arguments of two kinds; called, it passes on both.

    Args:
        fn: best a function of a module. A closure works, and is another computation than its next twin.
        fixed: what the program is compiled for: hashable, and equal where the program is the same.
        numbers: a tree of numbers, in which further computations may stand.
    """

    def __init__(self, fn: Callable[..., Any], fixed: Mapping[str, Any] | None = None, numbers: Any = None) -> None:
        self.fn, self.fixed, self.numbers = fn, dict(fixed or {}), dict(numbers or {})

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self.fn(*args, **self.fixed, **self.numbers, **more)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Hashable]:
        names = sorted(self.numbers)
        # With their types: 1, 1.0 and True are equal, and do not compute the same.
        fixed = tuple((name, self.fixed[name], type(self.fixed[name])) for name in sorted(self.fixed))
        form = (self.fn, fixed, tuple(names))
        return tuple(self.numbers[name] for name in names), form

    @classmethod
    def tree_unflatten(cls, form: Any, values: Sequence[Any]) -> "Computation":
        fn, fixed, names = form
        return cls(fn, {name: value for name, value, _ in fixed}, dict(zip(names, values)))


def of(tree: Any) -> Any:
    """The tree with every plain function in it as a computation without numbers, known by the function itself."""
    return jax.tree.map(lambda leaf: Computation(leaf) if callable(leaf) else leaf, tree)


def compiled(
    computation: Any,
    *,
    donate_argnums: tuple[int, ...] = (),
    out_shardings: Any = None,
    place: Sharding | None = None,
) -> functools.partial[Any]:
    """The computation as a function of its arguments, by a program that it shares with all of its form.

    Args:
        donate_argnums, out_shardings: as for `jax.jit`.
        place: where the numbers are sent, once and not with every call: `replicated` over the arguments' devices.
    """
    numbers, form = jax.tree.flatten(of(computation))
    # A number on one device could not go with arguments on several. Of several processes each brings its own with every
    # call, because `device_put` would compare them over the network.
    if isinstance(place, NamedSharding) and place.is_fully_addressable:
        numbers = jax.device_put(numbers, place)
    places, form_of_places = jax.tree.flatten(out_shardings)
    program = _program(form, donate_argnums, tuple(places), form_of_places, _context())
    return functools.partial(program, numbers)


def shapes(computation: Any, *args: Any) -> Any:
    """Shapes and dtypes of what the computation returns; computations of one form are traced once."""
    numbers, form = jax.tree.flatten(of(computation))
    return _program(form, (), (), jax.tree.structure(None), _context()).eval_shape(numbers, *args)


def abreast(computations: Sequence[Any], *, in_axes: tuple[int | None, ...], in_turn: bool = False) -> Computation:
    """Computations of one form as one, which maps over their numbers and over a leading axis of its arguments.

    Args:
        in_axes: of each argument, as for `jax.vmap`, 0 or None.
        in_turn: one after the other inside the program, which then holds the intermediate arrays of one.
    """
    fixed = dict(in_axes=in_axes, in_turn=in_turn)
    return Computation(_abreast, fixed, dict(computations=tuple(of(computation) for computation in computations)))


def _abreast(*args, computations, in_axes, in_turn):
    form = jax.tree.structure(computations[0])
    # Stacked inside the program: Python's numbers arrive with weak types, which `jnp.stack` keeps.
    numbers = [jnp.stack(values) for values in zip(*map(jax.tree.leaves, computations))]

    def one(numbers, *args):
        return jax.tree.unflatten(form, numbers)(*args)

    if not in_turn:
        return jax.vmap(one, (0, *in_axes))(numbers, *args)
    own = [arg for arg, axis in zip(args, in_axes) if axis == 0]

    def next_one(numbers_and_own):
        numbers, own = numbers_and_own[0], iter(numbers_and_own[1])
        return one(numbers, *(arg if axis is None else next(own) for arg, axis in zip(args, in_axes)))

    return jax.lax.map(next_one, (numbers, own))


def clear() -> None:
    """Forget all programs; whoever holds one can go on with it."""
    _program.cache_clear()
    _function.cache_clear()


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def _program(form, donate_argnums, places, form_of_places, context):
    out_shardings = jax.tree.unflatten(form_of_places, places)
    options = {} if out_shardings is None else {"out_shardings": out_shardings}
    return jax.jit(_function(form, context), donate_argnums=tuple(n + 1 for n in donate_argnums), **options)


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def _function(form, _):
    """A function of numbers and arguments; one object, because JAX traces a function once wherever its outputs go."""

    def run(numbers, *args):
        return jax.tree.unflatten(form, numbers)(*args)

    fn = jax.tree.unflatten(form, [None] * form.num_leaves).fn
    run.__name__ = getattr(fn, "__name__", "run").strip("_")  # the program's name in profiles and logs
    return run


def _context():
    """What networks read while they are traced, beside their arguments; JAX's own settings it looks after itself."""
    return placing.current()

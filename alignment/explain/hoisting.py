"""One traced program split into several, so that work is done once for the inputs that it depends on.

Relevance propagation folds batch norms, takes positive parts of kernels and flips them: tens of milliseconds a batch
for ResNet-18 on two cores, about as much as one pass over its convolutions. This work is the same for all images, and
the forward pass with its normalisers is the same for all targets of an image. `split` recognises these equations in the
traced program. An array that is larger than its inputs (a bias broadcast to an image) is not kept with the weights, but
made again where it is used.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from alignment import memory

GROWTH = 2  # an equation on weights is hoisted if its outputs have at most so many times the elements of its inputs


def split(fn: Callable, *groups: Any) -> tuple[Callable, ...]:
    """One compiled function for each group of arguments; each does the work that needs no later group.

    The first is called as `state = parts[0](group)`, those between as `state = parts[i](state, group)`, and the last
    returns `fn(*groups)`. `state` may be used again with other later groups.

    Args:
        fn: a JAX function of trees of arrays.
        groups: two or more; the first are the weights, which stay the same, the last what changes most often. Shapes
            and dtypes are enough.
    """
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*groups)
    jaxpr, last = closed.jaxpr, len(groups) - 1
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    numbers = [i for i, group in enumerate(groups) for _ in jax.tree.leaves(group)]
    # the stage of a value is the number of the last group that it depends on; constants depend on none (-1)
    stage = {**dict.fromkeys(jaxpr.constvars, -1), **dict(zip(jaxpr.invars, numbers, strict=True))}
    equations: list[list] = [[] for _ in groups]
    for equation in jaxpr.eqns:
        at = _stage_of(equation, stage, last)
        equations[at].append(equation)
        stage.update(dict.fromkeys(equation.outvars, at))
    needed = [{atom for e in part for atom in e.invars if isinstance(atom, core.Var)} for part in equations]
    needed[last].update(atom for atom in jaxpr.outvars if isinstance(atom, core.Var))
    # a stage hands on the values of its own and of earlier stages that a later stage reads
    handed_on = [
        [var for var in stage if 0 <= stage[var] <= at and any(var in needs for needs in needed[at + 1 :])]
        for at in range(last)
    ]
    treedef = jax.tree.structure(out)

    def part(at: int) -> Callable:
        inputs = [var for var, number in zip(jaxpr.invars, numbers) if number == at]
        made = set() if at == last else {var for var in handed_on[at] if stage[var] == at}

        @jax.jit
        def compute(before, group):
            values = {**constants, **dict(zip(handed_on[at - 1] if at else [], before, strict=True))}
            values.update(zip(inputs, jax.tree.leaves(group), strict=True))
            _run(equations[at], values)
            if at == last:
                return jax.tree.unflatten(treedef, [_value(values, atom) for atom in jaxpr.outvars])
            return [values[var] for var in handed_on[at] if var in made]

        compiled: set = set()

        def call(before, group):
            memory.compile_first(compute, compiled, before, group)
            out = compute(before, group)
            if at == last:
                return out
            # earlier values are handed on as they are and never pass through the compiled function
            earlier = dict(zip(handed_on[at - 1] if at else [], before, strict=True))
            fresh = iter(out)
            return [next(fresh) if var in made else earlier[var] for var in handed_on[at]]

        return call if at else lambda group: call([], group)

    return tuple(part(at) for at in range(len(groups)))


def map_in_turn(fn: Callable, items: Any) -> Any:
    """As jax.lax.map, but equations that do not depend on the item are computed once, before the loop.

    Args:
        fn: an item -> a tree of arrays.
        items: a tree of arrays, one item after the other along their first axes.
    """
    item = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), items)
    closed, out = jax.make_jaxpr(fn, return_shape=True)(item)
    jaxpr, values = closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    stage = {**dict.fromkeys(jaxpr.constvars, 0), **dict.fromkeys(jaxpr.invars, 1)}
    equations: tuple[list, list] = ([], [])
    for equation in jaxpr.eqns:
        at = _stage_of(equation, stage, 1)
        equations[at].append(equation)
        stage.update(dict.fromkeys(equation.outvars, at))
    _run(equations[0], values)

    def rest(item):
        local = {**values, **dict(zip(jaxpr.invars, jax.tree.leaves(item), strict=True))}
        _run(equations[1], local)
        return jax.tree.unflatten(jax.tree.structure(out), [_value(local, atom) for atom in jaxpr.outvars])

    return jax.lax.map(rest, items)


def _stage_of(equation: Any, stage: dict, last: int) -> int:
    """The first stage in which this can be computed, or a later one where the result is not worth keeping."""
    own = [atom for atom in equation.invars if isinstance(atom, core.Var)]
    at = max((stage[var] for var in own), default=-1)
    # An iota or a broadcast constant reads no argument and costs less than a kept array. An equation with effects (a
    # print, a check) must stay in the order of the others of its kind.
    if equation.effects or at < 0:
        return last
    is_grown = sum(_size(v) for v in equation.outvars) > GROWTH * sum(_size(v) for v in own)
    return at + 1 if at == 0 and is_grown else at


def _size(var: Any) -> int:
    return var.aval.size


def _run(equations: list, values: dict) -> None:
    """Adds the equations' outputs to `values`."""
    for equation in equations:
        arrays = [_value(values, atom) for atom in equation.invars]
        out = equation.primitive.bind(*arrays, **equation.primitive.get_bind_params(equation.params))
        values.update(zip(equation.outvars, out if equation.primitive.multiple_results else [out], strict=True))


def _value(values, atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

"""Floating-point operations of a function's matrix products, counted in its program and not estimated."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(fn: Callable[..., Any], *args: Any, turns: int = 1) -> float:
    """Operations of one call: two for each multiply and add of a matrix product; products in loops count each time.

    Compilers do not count this way: XLA's own analysis takes the body of a loop over layers once. Of a branch the
    dearer side counts; of a loop whose length depends on data the body counts `turns` times.

    Args:
        args: arrays or `jax.ShapeDtypeStruct`; nothing is computed.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr, turns)


def _count(jaxpr: Any, turns: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
            continue
        inner = [_count(one, turns) for one in _inner(equation.params)]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner) * {"scan": equation.params.get("length"), "while": turns}.get(name, 1)
    return total


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left.shape[axis] for axis in contracted)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs within an equation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one

"""Convolutions of a loop or a branch in the one form that XLA has fast code for on a CPU.

XLA turns every convolution of a program's main computation into images [N,Y,X,C] and kernels [Y,X,C,O], and multiplies
matrices. In the body of a loop or in a branch it leaves convolutions as they are, and those of a gradient, whose axes
have other orders, then run in a plain loop nest. Written with explicit transpositions they are fast there as well.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core

CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
CONVOLUTION = "conv_general_dilated"
Fn = TypeVar("Fn", bound=Callable[..., Any])


def fast(fn: Fn) -> Fn:
    """The same function for the body of a loop or for a branch on a CPU; elsewhere `fn` itself.

    It is for what is not differentiated any more: a function's own rules for that are lost.

    Args:
        fn: of trees of arrays; gradients within it are rewritten too. Loops within it are not.
    """
    if jax.default_backend() != "cpu":
        return fn

    def written(*args):
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return written  # type: ignore[return-value]


def _run(closed: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, args, strict=True))

    def value(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        arrays, primitive, called = [value(atom) for atom in equation.invars], equation.primitive, _called(equation)
        if primitive.name == CONVOLUTION:
            x, kernel = arrays
            out = [_convolution(x, kernel, equation.params)]
        elif called is not None and _has_convolution(called.jaxpr):
            out = _run(called, arrays)
        else:
            bound = primitive.bind(*arrays, **primitive.get_bind_params(equation.params))
            out = bound if primitive.multiple_results else [bound]
        values.update(zip(equation.outvars, out, strict=True))
    return [value(atom) for atom in closed.jaxpr.outvars]


def _called(equation: Any) -> Any:
    """What a call computes; None of other equations."""
    params = equation.params
    return params.get("jaxpr", params.get("call_jaxpr")) if equation.primitive.name in CALLS else None


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    calls = [called for called in map(_called, jaxpr.eqns) if called is not None]
    is_here = any(equation.primitive.name == CONVOLUTION for equation in jaxpr.eqns)
    return is_here or any(_has_convolution(called.jaxpr) for called in calls)


def _convolution(x: jax.Array, kernel: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution of an equation, between transpositions."""
    axes, last = params["dimension_numbers"], x.ndim - 1
    space = tuple(range(1, last))
    # specs name the axes of batch (or outputs), features (or inputs) and space, in this order
    batch, features, *rest = axes.lhs_spec
    outputs, inputs, *window = axes.rhs_spec
    plain = lax.ConvDimensionNumbers((0, last, *space), (last, last - 1, *range(last - 1)), (0, last, *space))
    out = lax.conv_general_dilated_p.bind(
        x.transpose(batch, *rest, features),
        kernel.transpose(*window, inputs, outputs),
        **params | {"dimension_numbers": plain},
    )
    order = [0] * x.ndim
    for axis, source in zip(axes.out_spec, (0, last, *space)):
        order[axis] = source
    return out.transpose(order)

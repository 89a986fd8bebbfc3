"""Compile the decode program on a second thread while the engine copies weights, admits and prefills.

It is the largest program by far, and the first request needs it last. A call that finds a program compiled from equal
shapes at equal places compiles nothing.
"""

import functools
import threading
from typing import Any

import jax
import numpy as np

from alignment.decoding import layout, programs

_asked: set[int] = set()  # plans whose program some thread has compiled, or was not able to


def start(
    plan: programs.Plan, params: Any, weights_dtype: str, place: jax.sharding.Sharding | None
) -> threading.Thread:
    """A thread that compiles `programs.decode` for a plan with one network, no processors and no mesh.

    It ends at once for any other plan, whose weights and states have shapes that are not known yet.

    Args:
        params: of the plan's model; their shapes are read.
        place: where weights and state will lie (`network.place_of`).
    """
    key = hash((plan, weights_dtype, place))
    is_plain = plan.mesh is None and len(plan.all_models) == len(plan.places) == 1 and not plan.processors
    target = functools.partial(_compile, plan, jax.eval_shape(lambda x: x, params), weights_dtype, place)
    thread = threading.Thread(target=target if is_plain and key not in _asked else lambda: None, name="compile-decode")
    _asked.add(key)
    thread.start()
    return thread


def _compile(plan, params, weights_dtype, place):
    def placed(shape):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    try:
        weights = layout.form(plan.models[0], params, dtype=weights_dtype)
        state = jax.eval_shape(lambda: programs.init_state(plan, ()))
        rows = jax.ShapeDtypeStruct((plan.num_slots,), np.bool_), jax.ShapeDtypeStruct((), np.bool_)
        programs.decode.lower(plan, *jax.tree.map(placed, ((weights,), state)), *rows).compile()
    except Exception:  # the engine's own call meets the same and raises it where somebody listens
        return

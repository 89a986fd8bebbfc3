"""Running a network many times for one explanation: integrated gradients, SmoothGrad, occlusion, LIME.

A method hands over `step_fn(static, arrays, step_S, valid_S)`, which takes S steps through the network as one batch and
returns a tree of arrays: sums over its valid steps (`total`), or one row a step (`stacked`). It is a module-level
function, `static` is hashable and `arrays` is a tree of arrays, so that later calls reuse the compiled step.

Drivers: "host" compiles one pass and calls it in a Python loop; "scan" loops inside one program; "flat" takes all
steps in one pass, which needs the memory for all of them. Convolutions inside XLA loops are slow on CPUs, so None means
"host" there, and "scan" elsewhere and inside a trace.  Dimensions: S steps in one pass, P passes.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError, one_of

DRIVERS = ("host", "scan", "flat")
# A context variable, because the explanation that reports progress runs below functions that know nothing of it.
_listener: contextvars.ContextVar[Callable[[float], None] | None] = contextvars.ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(on_pass_fn: Callable[[float], None]) -> Iterator[None]:
    """Calls `on_pass_fn(share of all passes)` as each pass of the "host" driver ends; other drivers do not call it."""
    token = _listener.set(on_pass_fn)
    try:
        yield
    finally:
        _listener.reset(token)


def _passed(out: Any, num_passes: int) -> Any:
    """Reports that one more pass is done, if anybody listens."""
    if (on_pass_fn := _listener.get()) is not None:
        jax.block_until_ready(out)  # a call returns when the work is queued, not when it is done
        on_pass_fn(1 / num_passes)
    return out


def choose(driver: str | None, arrays: Any = ()) -> str:
    """The driver to run with.

    Args:
        driver: one of DRIVERS, or None for the backend's.
        arrays: what the steps read; inside a trace there is no host loop.

    Raises:
        InputError: an unknown name, or "host" inside `jax.jit`.
    """
    if driver is not None:
        one_of("driver", driver, DRIVERS, hint="leave it out for the backend's own")
    # Inside jit a Python loop would be unrolled into one program, with a copy of the network for every step.
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))
    if traced and driver == "host":
        raise InputError('driver="host" cannot loop inside jax.jit; use driver="scan" or "flat", or call it outside')
    if driver is None:
        # On CPUs convolutions inside XLA's loops are slow; on GPUs every call from the host waits for a launch.
        return "host" if jax.default_backend() == "cpu" and not traced else "scan"
    return driver


def hashable(apply_fn: Callable) -> Callable:
    """`apply_fn` itself, or a wrapper with an identity where a module's fields cannot be hashed."""
    try:
        hash(apply_fn)
    except TypeError:
        # Its identity serves as the key of compiled programs, so each wrapper compiles its own.
        return lambda variables, x: apply_fn(variables, x)
    return apply_fn


def passes(count: int, per_pass: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps 0..count-1 in rows of equal length, filled up with step 0, and a mask that is 0 for the filling."""
    if min(count, per_pass) < 1:
        raise InputError(f"{count} steps through the network, {per_pass} at a time; both must be at least 1")
    num = -(-count // per_pass)
    step_PS = np.zeros(num * per_pass, np.int32)
    step_PS[:count] = np.arange(count)
    valid_PS = (np.arange(num * per_pass) < count).astype(np.float32)
    return step_PS.reshape(num, per_pass), valid_PS.reshape(num, per_pass)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one(step_fn, static, arrays, step_S, valid_S):
    return step_fn(static, arrays, step_S, valid_S)


# The running sums are donated, so that an addition reuses their memory: maps of all images are in them.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _add(step_fn, static, arrays, sums, step_S, valid_S):
    return jax.tree.map(jnp.add, sums, step_fn(static, arrays, step_S, valid_S))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan_total(step_fn, static, arrays, step_PS, valid_PS):
    # per_pass steps are in flight at a time; the carry holds one set of sums whatever the number of passes
    def body(sums, row):
        return jax.tree.map(jnp.add, sums, step_fn(static, arrays, *row)), None

    shapes = jax.eval_shape(functools.partial(step_fn, static), arrays, step_PS[0], valid_PS[0])
    sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, sums, (step_PS, valid_PS))[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan_stacked(step_fn, static, arrays, step_PS, valid_PS):
    return jax.lax.map(lambda row: step_fn(static, arrays, *row), (step_PS, valid_PS))


def total(
    step_fn: Callable, static: Any, arrays: Any, count: int, *, driver: str | None = None, per_pass: int = 1
) -> Any:
    """Sum of the contributions of steps 0..count-1; `per_pass` of them go through the network together."""
    driver = choose(driver, arrays)
    step_PS, valid_PS = passes(count, max(count, 1) if driver == "flat" else min(per_pass, max(count, 1)))
    if driver == "scan":
        return _scan_total(step_fn, static, arrays, step_PS, valid_PS)
    sums = _passed(_one(step_fn, static, arrays, step_PS[0], valid_PS[0]), len(step_PS))
    for step_S, valid_S in zip(step_PS[1:], valid_PS[1:]):
        sums = _passed(_add(step_fn, static, arrays, sums, step_S, valid_S), len(step_PS))
    return sums


def stacked(
    step_fn: Callable, static: Any, arrays: Any, count: int, *, driver: str | None = None, per_pass: int = 1
) -> Any:
    """The rows of steps 0..count-1, in order, along a first axis."""
    driver = choose(driver, arrays)
    step_PS, valid_PS = passes(count, max(count, 1) if driver == "flat" else min(per_pass, max(count, 1)))
    if driver == "scan":
        rows = _scan_stacked(step_fn, static, arrays, step_PS, valid_PS)
    else:
        rows = [_passed(_one(step_fn, static, arrays, *row), len(step_PS)) for row in zip(step_PS, valid_PS)]
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], rows)

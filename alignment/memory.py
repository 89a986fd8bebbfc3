"""Memory of the host that nobody uses any more, back to the system."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.cache
def _trim() -> Callable | None:
    """malloc_trim of the GNU C library; other allocators have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back() -> None:
    """What has been freed but is kept by the allocator. Compiling leaves tens of MiB there, loading weights as much as
    the weights; in small pieces, so that large arrays come on top.
    """
    if _trim() is not None:
        _trim()(0)


def compile_first(fn: Callable, seen: set, *args: Any, static: tuple = ()) -> None:
    """Compiles a jitted `fn(*static, *args)` unless `seen` has these shapes, and gives back what the compiler left.

    Peak memory is then that of compiling or of running, not of both.
    """
    leaves, structure = jax.tree.flatten(args)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    known = (static, structure, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves))
    if known not in seen:
        fn.lower(*static, *args).compile()
        give_back()
        seen.add(known)

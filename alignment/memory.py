"""Give memory that the host's allocator keeps after use back to the system."""

import ctypes
import functools
import pathlib
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
    """Return freed memory to the system.

    The allocator keeps what was freed: tens of MiB after compiling, as much as the weights after loading them. It keeps
    it in small pieces, which large arrays cannot reuse.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def available(device: jax.Device) -> int | None:
    """Bytes that are free on a device, of a CPU those of the machine; None where nobody says."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def compile_first(fn: jax.stages.Wrapped, seen: set, *args: Any, static: tuple = ()) -> None:
    """Compile a jitted `fn(*static, *args)` unless `seen` has these shapes, and give back the compiler's memory.

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

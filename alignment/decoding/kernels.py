"""Which kernel computes attention while decoding: the walk over blocks, or an accelerator's own where it fits.

| name | where | the cache |
|---|---|---|
| `blocks` | everywhere; takes everything | `network` |
| `paged` | TPUs, JAX's paged attention; prompts walk the blocks | `paged` |
| `cudnn` | NVIDIA's GPUs, cuDNN's fused attention; prompts by plain products | `rows` |
| `xla` | everywhere: the cache of `cudnn` without its kernel, for tests | `rows` |

A kernel takes part only where it fits what the engine does and agrees with the walk over blocks on this machine, in the
engine's own shapes. Bits differ from one kernel to the next.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment import errors
from alignment.decoding import network, paged, rows
from alignment.errors import InputError
from alignment.models import decoder

KERNELS = ("auto", rows.BLOCKS, rows.PAGED, rows.CUDNN, rows.XLA)
FUSED = {"gpu": rows.CUDNN, "tpu": rows.PAGED}  # what "auto" tries on a machine of this kind
HALF = (jnp.bfloat16, jnp.float16)
LANES, SUBLANES = 128, 16  # a tile of bfloat16 on a TPU
MOST_OFF = 2e-2  # of a row's norm; bfloat16 keeps 8 bits


def choose(wanted: str, models: Sequence[decoder.DecoderLM], **needs: Any) -> str:
    """The kernel that decoding uses. One that is not "blocks" is said, and so is why "auto" did not take the machine's.

    Args:
        wanted: one of `KERNELS`; "auto" takes the machine's own where it fits and is right, else "blocks".
        models, needs: see `refuse`.

    Raises:
        InputError: `wanted` is not a kernel, or does not do what the engine needs here.
    """
    errors.one_of("attention", wanted, KERNELS)
    kernel = FUSED.get(jax.default_backend(), rows.BLOCKS) if wanted == "auto" else wanted
    try:
        refuse(kernel, models, **needs)
    except InputError as e:
        if wanted != "auto":
            raise
        print(f"{e}, as this run now does", flush=True)
        return rows.BLOCKS
    if kernel != rows.BLOCKS:
        print(f"decoding computes attention by {kernel!r}, which agrees with 'blocks' here", flush=True)
    return kernel


def refuse(
    kernel: str,
    models: Sequence[decoder.DecoderLM],
    *,
    num_rows: int,
    max_len: int,
    block: int,
    chunk: int,
    num_draft: int,
    cache_dtype: str,
    num_devices: int,
) -> None:
    """Refuse a kernel that does not fit or is not right here; no weights are needed.

    Args:
        models: all that decode together; one kernel serves them.
        num_rows: rows of a cache, at most.
        max_len, block, chunk, cache_dtype: see `network.init_cache`.
        num_draft: tokens guessed in each step.
        num_devices: that share the model.

    Raises:
        InputError: see above.
    """
    if kernel == rows.BLOCKS:
        return
    for model in models:
        _check(kernel, model, block, num_draft=num_draft, cache_dtype=cache_dtype, num_devices=num_devices)
        self_test(kernel, model, num_rows=num_rows, max_len=max_len, block=block, chunk=chunk)


def _check(kernel, model, block, *, num_draft, cache_dtype, num_devices):
    head_dim, dtype = model._head_dim(), jnp.dtype(model.dtype)
    is_paged = kernel == rows.PAGED
    reasons = {
        f"no guesses, not num_draft={num_draft}": bool(num_draft),
        f"a cache in the model's dtype, not {cache_dtype}": bool(cache_dtype),
        f"no sliding window, not sliding_window={model.sliding_window}": model.sliding_window is not None,
        f"one device, not {num_devices}": num_devices > 1,
        f"bfloat16 or float16, not dtype={dtype}": kernel == rows.CUDNN and dtype not in map(jnp.dtype, HALF),
        f"bfloat16, not dtype={dtype}": is_paged and dtype != jnp.bfloat16,  # it would round other types silently
        f"heads of a multiple of {LANES} numbers, not {head_dim}": is_paged and head_dim % LANES != 0,
        f"blocks of a multiple of {SUBLANES} positions, not block={block}": is_paged and block % SUBLANES != 0,
    }
    for need, is_amiss in reasons.items():
        if is_amiss:
            raise InputError(f"attention={kernel!r} takes {need}; use 'blocks'")


def self_test(kernel: str, model: decoder.DecoderLM, *, num_rows: int, max_len: int, block: int, chunk: int) -> None:
    """Compare a step of one layer with the walk over blocks: random keys and values, rows of all lengths.

    Raises:
        InputError: the kernel does not run on this machine, or is off by more than half precision explains.
    """
    H, K, dtype = model.num_heads, model._head_dim(), jnp.dtype(model.dtype).name
    sizes = dict(num_rows=num_rows, max_len=max_len, block=block, chunk=chunk)
    fault = _fault(kernel, H, model.num_kv_heads or H, K, dtype, **sizes)
    if fault:
        raise InputError(f"attention={kernel!r} {fault}; use 'blocks'")


@functools.lru_cache(maxsize=64)  # a door asks before it reads weights, and its engine once more
def _fault(kernel, num_heads, num_kv_heads, head_dim, dtype, *, num_rows, max_len, block, chunk):
    """What is wrong with a kernel for these heads, in words; "" where nothing is."""
    heads = dict(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    model = decoder.DecoderLM(vocab_size=1, num_layers=1, model_dim=1, dtype=dtype, **heads)

    @functools.partial(jax.jit, static_argnames="attention")
    def step(positions_R, *, attention):
        shapes = [(num_rows, 1, num_heads, head_dim), *[(num_rows, max_len, num_kv_heads, head_dim)] * 2]
        q, k, v = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))
        options = dict(block=block, chunk=chunk, attention=attention)
        (cache,) = network.init_cache(model, num_rows, max_len, **options)
        places_RS = jnp.broadcast_to(jnp.arange(max_len, dtype=jnp.int32)[None], k.shape[:2])
        cache = network.write(cache, k, v, places_RS, 0, attention)
        if attention == rows.PAGED:
            return paged.attend(q, cache, positions_R + 1)
        if attention in rows.WHOLE:
            return rows.attend(q, cache, positions_R[:, None], 0, attention)
        return network.walk(q, cache, positions_R[:, None], 0, 0, max_len // block, None)

    up_R = np.linspace(0, max_len - 1, num_rows).astype(np.int32)
    for positions_R in (up_R, max_len - 1 - up_R):  # one row alone is short once and long once
        try:
            ours = np.asarray(step(positions_R, attention=kernel).astype(jnp.float32))
        except Exception as e:  # whatever the backend raises where the kernel does not exist
            return f"does not run here ({type(e).__name__}: {next(iter(str(e).splitlines()), '')})"
        right = np.asarray(step(positions_R, attention=rows.BLOCKS).astype(jnp.float32))
        off = np.max(np.linalg.norm(ours - right, axis=-1) / np.linalg.norm(right, axis=-1))
        if not off < MOST_OFF:  # NaN fails too
            return f"is wrong here: it is off by {off:.1%}"
    return ""

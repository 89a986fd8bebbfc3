"""A cache of whole rows, for fused attention kernels, in place of the blocks of `network`.

Walking blocks in a loop suits a CPU, where a step then costs what its longest live row needs. A GPU would rather run
one kernel for each layer, and NVIDIA's (cuDNN, through `jax.nn.dot_product_attention`) reads keys and values as
`[B,S,G,K]` and stops at each row's own length. It takes half precision and one query a row, and no window. Everything
else keeps the blocks, and so does a machine where the kernel is missing or wrong.

A layer's cache is `keys` and `values` [1,B,S,G,K]: the leading axis makes it one block of all positions, so that what
copies and cleans blocks serves it as well.

Dimensions: B slots, R rows of one call, T tokens of a row, S positions of a row, G key/value heads, H query heads, K
head width.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from alignment import errors
from alignment.errors import InputError
from alignment.models import decoder

BLOCKS, CUDNN, XLA = "blocks", "cudnn", "xla"
KERNELS = ("auto", BLOCKS, CUDNN, XLA)
HALF = (jnp.bfloat16, jnp.float16)


def choose(
    wanted: str, models: Sequence[decoder.DecoderLM], *, num_draft: int, cache_dtype: str, num_devices: int
) -> str:
    """The kernel that decoding uses, compared with plain attention on this machine.

    Args:
        wanted: "blocks"; "cudnn"; "xla" for the same layout without a fused kernel, which is the test's twin of it; or
            "auto": cuDNN's on a GPU where it fits and is right, else blocks, and the reason is printed where a kernel
            was there and was not taken.
        models: all that decode together; one kernel serves them.

    Raises:
        InputError: `wanted` is not a kernel, or does not do what the engine needs here.
    """
    errors.one_of("attention", wanted, KERNELS)
    if wanted == BLOCKS or (wanted == "auto" and jax.default_backend() != "gpu"):
        return BLOCKS
    kernel = CUDNN if wanted == "auto" else wanted
    try:
        for model in models:
            _check(kernel, model, num_draft=num_draft, cache_dtype=cache_dtype, num_devices=num_devices)
            self_test(kernel, model)
    except InputError as e:
        if wanted != "auto":
            raise
        print(f"{e}, as this run now does", flush=True)
        return BLOCKS
    return kernel


def _check(kernel, model, *, num_draft, cache_dtype, num_devices):
    is_half = jnp.dtype(model.dtype) in map(jnp.dtype, HALF)
    reasons = {
        f"no guesses, not num_draft={num_draft}": bool(num_draft),
        f"a cache in the model's dtype, not {cache_dtype}": bool(cache_dtype),
        f"no sliding window, not sliding_window={model.sliding_window}": model.sliding_window is not None,
        f"one device, not {num_devices}": num_devices > 1,
        f"bfloat16 or float16, not dtype={model.dtype}": kernel == CUDNN and not is_half,
    }
    for need, is_amiss in reasons.items():
        if is_amiss:
            raise InputError(f"attention={kernel!r} takes {need}; use 'blocks'")


def self_test(kernel: str, model: decoder.DecoderLM) -> None:
    """Compare a step with plain attention on this machine, for the model's heads and rows of several lengths.

    Raises:
        InputError: the kernel does not run on this machine, or is off by more than half precision explains.
    """
    B, S, G = 4, 128, model.num_kv_heads or model.num_heads
    heads, K, dtype = model.num_heads, model._head_dim(), jnp.dtype(model.dtype)
    shapes = [(B, 1, heads, K), (1, B, S, G, K), (1, B, S, G, K)]
    q, keys, values = (jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate(shapes))
    positions_B1 = jnp.array([[0], [1], [63], [S - 1]], jnp.int32)

    def step(name):
        return jax.jit(lambda *x: attend(*x, positions_B1, 0, name))(q, {"keys": keys, "values": values})

    try:
        ours, plain = step(kernel).astype(jnp.float32), step(XLA).astype(jnp.float32)
    except Exception as e:  # whatever the backend raises where the kernel does not exist
        reason = next(iter(str(e).splitlines()), "")
        raise InputError(
            f"attention={kernel!r} does not run here ({type(e).__name__}: {reason}); use 'blocks'"
        ) from None
    error = float(jnp.linalg.norm(ours - plain) / jnp.linalg.norm(plain))
    if not error < 2e-2:  # bfloat16 keeps 8 bits; NaN fails too
        raise InputError(f"attention={kernel!r} is wrong here: it is off by {error:.1%}; use 'blocks'")


def init(
    model: decoder.DecoderLM, num_slots: int, max_len: int, *, place: NamedSharding | None = None
) -> list[dict[str, jax.Array]]:
    """An empty cache, a dict of keys and values for every layer."""
    shape = (1, num_slots, max_len, model.num_kv_heads or model.num_heads, model._head_dim())
    return [
        {name: jnp.zeros(shape, model.dtype, device=place) for name in ("keys", "values")}
        for _ in range(model.num_layers)
    ]


def write(
    cache: dict[str, jax.Array],
    k_RTGK: jax.Array,
    v_RTGK: jax.Array,
    positions_RT: jax.Array,
    first_row: jax.Array | int,
) -> dict[str, jax.Array]:
    """The cache of a layer with these tokens in it, at consecutive positions of neighbouring rows."""
    rows_R1 = first_row + jnp.arange(k_RTGK.shape[0])[:, None]
    options: dict[str, Any] = dict(mode="promise_in_bounds", unique_indices=True)
    entries = {"keys": k_RTGK, "values": v_RTGK}
    return {name: cache[name].at[0, rows_R1, positions_RT].set(new, **options) for name, new in entries.items()}


def attend(
    q_RTHK: jax.Array,
    cache: dict[str, jax.Array],
    positions_RT: jax.Array,
    first_row: jax.Array | int,
    kernel: str,
) -> jax.Array:
    """Softmax attention of every query over the positions up to its own, [R,T,H*K]."""
    R, T, H, K = q_RTHK.shape
    k_RSGK, v_RSGK = (jax.lax.dynamic_slice_in_dim(cache[name][0], first_row, R) for name in ("keys", "values"))
    options: dict[str, Any] = dict(key_value_seq_lengths=positions_RT[:, 0] + 1, implementation=kernel)
    if T > 1:  # a chunk of a prompt: cuDNN's causal mask begins at position 0, and these queries do not
        seen_R1TS = jnp.arange(k_RSGK.shape[1])[None, None, None] <= positions_RT[:, None, :, None]
        options = dict(mask=seen_R1TS, implementation=XLA)
    out_RTHK: Any = jax.nn.dot_product_attention(q_RTHK, k_RSGK, v_RSGK, **options)
    return out_RTHK.reshape(R, T, H * K)

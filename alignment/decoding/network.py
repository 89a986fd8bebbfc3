"""A decoder's forward pass over a cache in blocks: prefill of one row, and steps of all rows.

The layers' weights are separate arrays (`layout`) and the layers are written out one after the other. A scan over
stacked weights reads them at three quarters of the speed, and a stacked cache that a scan carries is copied whole in
every layer.

Every row has its own position. A row starts at 0, so nothing is padded on the left, and rope, mask and the place to
write follow from the position alone. The cache of a layer is `keys [N,B,G,K,C]` and `values [N,B,G,C,K]`: the block
index comes first, so that one block of all rows is one piece of memory, and attention walks the blocks that hold live
positions with a running softmax. A block that is masked as a whole multiplies every sum by exactly 1 and adds exactly
0, so how far the walk goes for the sake of other rows changes no bit of a row. Kernels of accelerators have caches of
their own kind: see `kernels`, `rows` and `paged`.

Dimensions: N blocks of C positions, B slots, R rows of one call, T tokens of a row, G key/value heads, H query heads,
M = H/G*T queries of one key/value head, K head width, J = K/2, D model width, F feed-forward, V vocabulary.
"""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from alignment import errors
from alignment.decoding import paged, rows, stacks
from alignment.errors import InputError
from alignment.models import decoder, rope
from alignment.models.attention import HIDDEN
from alignment.train import sharding


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters lie on; None for one device."""
    leaf = jax.tree.leaves(nn.meta.unbox(params))[0]
    place = getattr(leaf, "sharding", None)  # numpy arrays have none
    mesh = place.mesh if isinstance(place, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def place_of(params: Any) -> SingleDeviceSharding | None:
    """The one device that parameters were put on; None: nobody chose one, or they lie on a mesh of several."""
    leaf = jax.tree.leaves(nn.meta.unbox(params))[0]
    is_chosen = isinstance(leaf, jax.Array) and leaf.committed and len(leaf.devices()) == 1
    return SingleDeviceSharding(*leaf.devices()) if is_chosen else None


def init_cache(
    model: decoder.DecoderLM,
    num_slots: int,
    max_len: int,
    *,
    block: int,
    chunk: int,
    mesh: Mesh | None = None,
    dtype: str = "",
    attention: str = rows.BLOCKS,
) -> list[dict[str, jax.Array]]:
    """An empty cache, a dict of keys and values for every layer.

    A layer whose window slides keeps a ring of as many blocks as the window and one chunk need; absolute block i lies
    at i modulo the ring's length.

    Args:
        max_len: positions of a row.
        block: positions of a block, C.
        chunk: tokens that one call writes to a row at most, a multiple of `block`.
        dtype: "int8" keeps a key or value in eight bits, with one scale for each; "" in the model's dtype.
        attention: a kernel of `kernels`, which may have a cache of its own kind.
    """
    G, K = model.num_kv_heads or model.num_heads, model._head_dim()
    if attention in rows.WHOLE:
        return rows.init(model, num_slots, max_len)
    place = None if mesh is None else cache_place(model, mesh)
    cache = []
    for window in windows(model):
        num_blocks = -(-max_len // block)
        if window is not None:
            num_blocks = min(num_blocks, -(-(window + chunk) // block) + 1)
        shapes = {"keys": (num_blocks, num_slots, G, K, block), "values": (num_blocks, num_slots, G, block, K)}
        if attention == rows.PAGED:
            shapes["keys"] = shapes["values"]
        layer = {name: jnp.zeros(shape, dtype or model.dtype, device=place) for name, shape in shapes.items()}
        if dtype == "int8":
            scale = (num_blocks, num_slots, G, block)
            layer |= {f"{name}_scale": jnp.zeros(scale, jnp.float32, device=place) for name in shapes}
        cache.append(layer)
    return cache


def cache_place(model: decoder.DecoderLM, mesh: Mesh) -> NamedSharding:
    """Where a layer's keys and values lie: heads over `tensor`, where their number divides."""
    num_heads = model.num_kv_heads or model.num_heads
    return NamedSharding(mesh, PartitionSpec(None, None, *sharding.spec(("kv_heads",), (num_heads,), mesh)))


def windows(model: decoder.DecoderLM) -> list[int | None]:
    """The sliding window of every layer; None: it sees all positions."""
    types = model.layer_types or ("sliding_attention",) * model.num_layers
    return [model.sliding_window if kind == "sliding_attention" else None for kind in types]


def forward(
    model: decoder.DecoderLM,
    weights: Mapping[str, Any],
    cache: list[dict[str, jax.Array]],
    tokens_RT: jax.Array,
    positions_RT: jax.Array,
    *,
    first_row: jax.Array | int = 0,
    is_live_R: jax.Array | None = None,
    is_chunk: bool = False,
    attention: str = rows.BLOCKS,
    adapter_R: jax.Array | None = None,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """Hidden states [R,T,D] after the final norm, and the cache with these tokens' keys and values in it.

    Args:
        tokens_RT: tokens of R neighbouring rows of the cache.
        positions_RT: consecutive positions of each row, from 0.
        first_row: the first of those rows.
        is_live_R: rows whose result is read; attention walks no further than they need. None: all.
        is_chunk: R is 1 and the first position a multiple of the cache's block: the tokens are written as blocks.
        attention: a kernel of `kernels`, whose cache this is then.
        adapter_R: the adapter of each row, an index into those of `weights["adapters"]` (`stacks.prepare`), or
            `stacks.NONE`. None: the weights have none.
    """
    C = cache[0]["values"].shape[3]
    R = tokens_RT.shape[0]
    frequencies_J, factor = rope.frequencies(model._head_dim(), model.rope_theta, model.rope_scaling)
    tables = rope.tables(positions_RT, frequencies_J, factor)
    hidden_RTD = jnp.take(weights["embedding"], tokens_RT, axis=0)
    is_live_R = jnp.ones(R, bool) if is_live_R is None else is_live_R
    end = jnp.max(jnp.where(is_live_R, positions_RT[:, -1], 0)) // C + 1
    earliest = jnp.min(jnp.where(is_live_R, positions_RT[:, 0], jnp.iinfo(jnp.int32).max))

    new_cache = []
    for i, (layer, layer_cache, window) in enumerate(zip(weights["layers"], cache, windows(model))):
        linear = _linear(layer, None if adapter_R is None else weights["adapters"]["layers"][i], adapter_R)
        x_RTD = decoder.rms_norm(hidden_RTD, layer["attention_norm"], model.norm_eps)
        q_RTHK, k_RTGK, v_RTGK = _heads(model, layer, linear(x_RTD, "query"), tables)
        layer_cache = write(layer_cache, k_RTGK, v_RTGK, positions_RT, first_row, attention, is_chunk=is_chunk)
        if attention in rows.WHOLE:
            mixed_RTM = rows.attend(q_RTHK, layer_cache, positions_RT, first_row, attention)
        elif attention == rows.PAGED and not is_chunk and tokens_RT.shape[1] == 1 and window is None:
            mixed_RTM = paged.attend(q_RTHK, layer_cache, jnp.where(is_live_R, positions_RT[:, 0] + 1, 1))
        else:
            begin = 0 if window is None else jnp.maximum(earliest - window + 1, 0) // C
            mixed_RTM = walk(q_RTHK, layer_cache, positions_RT, first_row, begin, end, window, attention)
        hidden_RTD += linear(mixed_RTM, "out")["out"]
        x_RTD = decoder.rms_norm(hidden_RTD, layer["mlp_norm"], model.norm_eps)
        wide = linear(x_RTD, "gate")
        hidden_RTD += linear(nn.silu(wide["gate"]) * wide["up"], "down")["down"]
        new_cache.append(layer_cache)
    return decoder.rms_norm(hidden_RTD, weights["final_norm"], model.norm_eps), new_cache


def write(
    cache: dict[str, jax.Array],
    k_RTGK: jax.Array,
    v_RTGK: jax.Array,
    positions_RT: jax.Array,
    first_row: jax.Array | int,
    attention: str,
    *,
    is_chunk: bool = False,
) -> dict[str, jax.Array]:
    """The cache of a layer with these tokens in it; arguments as in `forward`."""
    if attention in rows.WHOLE:
        return rows.write(cache, k_RTGK, v_RTGK, positions_RT, first_row)
    write_fn = _write_blocks if is_chunk else _write_positions
    return write_fn(cache, k_RTGK, v_RTGK, positions_RT, first_row, attention == rows.PAGED)


def logits(weights: Mapping[str, Any], hidden_XD: jax.Array, adapter_X: jax.Array | None = None) -> jax.Array:
    """Logits [X,V] in fp32 of some hidden states; `adapter_X` as in `forward`."""
    head = weights["head"]
    if isinstance(head, dict):
        logits_XV = jnp.matmul(hidden_XD, head["int8"].astype(hidden_XD.dtype), preferred_element_type=jnp.float32)
        logits_XV *= head["scale"][None]
    else:
        logits_XV = jnp.matmul(hidden_XD, head, preferred_element_type=jnp.float32)
    if adapter_X is None or not weights["adapters"]["head"]["b"]:
        return logits_XV
    adapters = weights["adapters"]["head"]
    lows = stacks.lows(adapters, "head", hidden_XD[:, None], adapter_X)
    return stacks.added(logits_XV[:, None], lows, adapters, "head")[:, 0]


def copy_blocks(
    cache: list[dict[str, jax.Array]], source: jax.Array, target: jax.Array, num_blocks: jax.Array
) -> list[dict[str, jax.Array]]:
    """The cache with the first `num_blocks` blocks of row `source` in row `target` as well.

    Of a ring, all blocks are copied that exist. The blocks go one at a time, so that the donated cache is changed in
    place, and those of all layers in one loop, which compiles in half the time of a loop for each.
    """
    leaves, tree = jax.tree.flatten(cache)

    def one(i, leaves):
        out = []
        for x in leaves:
            rest, i_x = (0,) * (x.ndim - 2), jnp.minimum(i, x.shape[0] - 1)  # a shorter ring's last block goes again
            block = jax.lax.dynamic_slice(x, (i_x, source, *rest), (1, 1, *x.shape[2:]))
            out.append(jax.lax.dynamic_update_slice(x, block, (i_x, target, *rest)))
        return out

    longest = max(x.shape[0] for x in leaves)
    return jax.tree.unflatten(tree, jax.lax.fori_loop(0, jnp.minimum(num_blocks, longest), one, leaves))


def check_lengths(max_len: int, block: int, chunk: int) -> None:
    """Refuse lengths that do not fit one another.

    Raises:
        InputError: a chunk is not a number of blocks, or the cache not a number of chunks.
    """
    errors.within("[1, inf)", max_len=max_len, block=block, chunk=chunk)
    if chunk % block:
        raise InputError(f"chunk={chunk} is not a multiple of block={block}; {-(-chunk // block) * block} would be")
    if max_len % chunk:
        raise InputError(f"max_len={max_len} is not a multiple of chunk={chunk}; {-(-max_len // chunk) * chunk} is")


def check_dtypes(weights_dtype: str, cache_dtype: str) -> None:
    """Refuse types that the engine does not know, and eight bits on a CPU unless PLUMBLINE_SLOW_INT8 is set.

    Raises:
        InputError: see above.
    """
    for name, value in {"weights_dtype": weights_dtype, "cache_dtype": cache_dtype}.items():
        errors.one_of(name, value, ("", "int8"))
        if value and jax.default_backend() == "cpu" and not os.environ.get("PLUMBLINE_SLOW_INT8"):
            raise InputError(
                f"{name}='int8' is slower than float32 on a CPU, where XLA widens eight bits first; leave it empty, or "
                "set PLUMBLINE_SLOW_INT8=1 to measure its effect on perplexity here"
            )


def _linear(layer, adapters, adapter_R):
    """A function from an input and a key of `stacks.READERS` to the products of the matrices that read it, by name."""

    def products(x_RTX, first):
        out = {name: _times(x_RTX, layer[name]) for name in stacks.READERS[first]}
        if adapters is None:
            return out
        lows = stacks.lows(adapters, first, x_RTX, adapter_R)
        return {name: stacks.added(out_RTY, lows, adapters, name) for name, out_RTY in out.items()}

    return products


def _heads(model, layer, products, tables):
    """Queries [R,T,H,K], keys and values [R,T,G,K] of their products; the first two are turned by their positions."""

    def project(name):
        out = products[name]
        if f"{name}_bias" in layer:
            out += layer[f"{name}_bias"][None, None]
        return out.reshape(*out.shape[:2], -1, model._head_dim())

    query, key, value = project("query"), project("key"), project("value")
    if model.qk_norm:
        query = decoder.rms_norm(query, layer["query_norm"], model.norm_eps)
        key = decoder.rms_norm(key, layer["key_norm"], model.norm_eps)
    return rope.rotate(query, *tables), rope.rotate(key, *tables), value


def _times(x_RTX, kernel_XY):
    """A product of two matrices: on the CPU an einsum over three axes transposes one side first."""
    x_NX = x_RTX.reshape(-1, x_RTX.shape[-1])
    if isinstance(kernel_XY, dict):
        out_NY = (x_NX @ kernel_XY["int8"].astype(x_NX.dtype)) * kernel_XY["scale"].astype(x_NX.dtype)[None]
    else:
        out_NY = x_NX @ kernel_XY
    return out_NY.reshape(*x_RTX.shape[:-1], -1)


def _entries(cache, k_RTGK, v_RTGK):
    """What a cache keeps of new keys and values: themselves, or eight bits and a scale [R,T,G] for each."""
    entries = {"keys": k_RTGK, "values": v_RTGK}
    if "keys_scale" not in cache:
        return entries
    out = {}
    for name, x_RTGK in entries.items():
        scale_RTG = jnp.max(jnp.abs(x_RTGK.astype(jnp.float32)), axis=-1) / 127
        out[name] = jnp.round(x_RTGK / jnp.where(scale_RTG > 0, scale_RTG, 1)[..., None]).astype(jnp.int8)
        out[f"{name}_scale"] = scale_RTG
    return out


def _write_positions(cache, k_RTGK, v_RTGK, positions_RT, first_row, is_paged):
    """Scatter: one program for any rows, and in place. Writing row by row compiles three times as long."""
    N, C = cache["values"].shape[0], cache["values"].shape[3]
    rows_R1 = first_row + jnp.arange(k_RTGK.shape[0])[:, None]
    block_RT, place_RT = positions_RT // C % N, positions_RT % C
    options: dict[str, Any] = dict(mode="promise_in_bounds", unique_indices=True)
    out = {}
    for name, new in _entries(cache, k_RTGK, v_RTGK).items():
        is_across = name == "keys" and not is_paged
        before = (slice(None), slice(None)) if is_across else (slice(None),)  # the axes G and K, or G
        out[name] = cache[name].at[(block_RT, rows_R1, *before, place_RT)].set(new, **options)
    return out


def _write_blocks(cache, k_1TGK, v_1TGK, positions_1T, row, is_paged):
    N, C = cache["values"].shape[0], cache["values"].shape[3]
    cache = dict(cache)
    for name, new in _entries(cache, k_1TGK, v_1TGK).items():
        order = (1, 2, 0) if name == "keys" and not is_paged else (1, 0, *range(2, new.ndim - 1))
        for i in range(0, k_1TGK.shape[1], C):
            block = new[0, i : i + C].transpose(order)[None, None]
            at = (positions_1T[0, i] // C % N, row, *[0] * (block.ndim - 2))
            cache[name] = jax.lax.dynamic_update_slice(cache[name], block, at)
    return cache


def walk(
    q_RTHK: jax.Array,
    cache: dict[str, jax.Array],
    positions_RT: jax.Array,
    first_row: jax.Array | int,
    begin: jax.Array | int,
    end: jax.Array | int,
    window: int | None,
    attention: str = rows.BLOCKS,
) -> jax.Array:
    """Softmax attention over blocks begin..end, one after the other, [R,T,H*K]; `rows.BLOCKS` and `rows.PAGED`."""
    R, T, H, K = q_RTHK.shape
    N, _, G, C, _ = cache["values"].shape
    scores = "RGMK,RGCK->RGMC" if attention == rows.PAGED else "RGMK,RGKC->RGMC"
    q_RGMK = q_RTHK.reshape(R, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(R, G, -1, K)
    M = q_RGMK.shape[2]
    last_RM = jnp.tile(positions_RT, (1, H // G))  # where each query stands
    is_int8 = "keys_scale" in cache

    def one_block(i, carry):
        top_RGM, total_RGM, mixed_RGMK = carry

        def block_of(name):
            x = cache[name]
            at = (i % N, first_row, *[0] * (x.ndim - 2))
            return jax.lax.dynamic_slice(x, at, (1, R, *x.shape[2:]))[0]

        key_block, value_RGCK = block_of("keys").astype(q_RTHK.dtype), block_of("values").astype(q_RTHK.dtype)
        scores_RGMC = jnp.einsum(scores, q_RGMK, key_block, preferred_element_type=jnp.float32) * K**-0.5
        if is_int8:
            scores_RGMC *= block_of("keys_scale")[:, :, None]
        place_11C = i * C + jnp.arange(C)[None, None]
        is_seen_RMC = place_11C <= last_RM[:, :, None]
        if window is not None:
            is_seen_RMC &= place_11C > last_RM[:, :, None] - window
        scores_RGMC = jnp.where(is_seen_RMC[:, None], scores_RGMC, HIDDEN)
        new_top_RGM = jnp.maximum(top_RGM, jnp.max(scores_RGMC, axis=-1))
        # HIDDEN is finite. Before the first visible key the weights are ones, which the first real maximum then
        # multiplies by exp(HIDDEN - maximum) = 0, and after it a hidden key's weight is 0.
        weight_RGMC = jnp.exp(scores_RGMC - new_top_RGM[..., None])
        shrink_RGM = jnp.exp(top_RGM - new_top_RGM)
        total_RGM = total_RGM * shrink_RGM + jnp.sum(weight_RGMC, axis=-1)
        if is_int8:
            weight_RGMC *= block_of("values_scale")[:, :, None]
        added_RGMK = jnp.einsum(
            "RGMC,RGCK->RGMK", weight_RGMC.astype(value_RGCK.dtype), value_RGCK, preferred_element_type=jnp.float32
        )
        return new_top_RGM, total_RGM, mixed_RGMK * shrink_RGM[..., None] + added_RGMK

    start = (jnp.full((R, G, M), HIDDEN), jnp.zeros((R, G, M)), jnp.zeros((R, G, M, K)))
    _, total_RGM, mixed_RGMK = jax.lax.fori_loop(begin, end, one_block, start)
    mixed_RGMK = (mixed_RGMK / total_RGM[..., None]).astype(q_RTHK.dtype)
    return mixed_RGMK.reshape(R, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(R, T, H * K)

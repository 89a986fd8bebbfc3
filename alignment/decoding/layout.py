"""A decoder's parameters as decoding reads them: one array a layer, matrices with two sides.

Dimensions: X inputs and Y outputs of a matrix, D model width, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.decoding import stacks
from alignment.models import decoder, lora
from alignment.train import sharding

_MATRICES = {  # logical axes of both sides, as the training module names them, with heads and widths merged
    "query": ("embed", "heads"),
    "key": ("embed", "kv_heads"),
    "value": ("embed", "kv_heads"),
    "out": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
_BIASES = {"query_bias": "heads", "key_bias": "kv_heads", "value_bias": "kv_heads"}


def prepare(
    model: decoder.DecoderLM,
    params: Mapping[str, Any],
    mesh: Mesh | None = None,
    *,
    dtype: str = "",
    frees_params: bool = False,
) -> dict[str, Any]:
    """A decoder's parameters as decoding reads them: one array a layer, matrices with two sides, in the model's dtype.

    A tied head is a transposed copy, because a product with the embedding's own layout is a third slower.

    Args:
        params: as the training module holds them, boxed or not, with or without an adapter (`lora.attach`), which is
            folded into the copy; they stay as they are.
        mesh: heads, feed-forward and vocabulary are split over its axis `tensor`; None: one device.
        dtype: "int8" rounds every matrix but the embedding to eight bits, with one scale for each output; "" keeps
            the model's dtype.
        frees_params: delete the arrays of the layers, one kind after the other, as soon as they are copied: a second
            copy of the model never lies in memory. With an adapter, which needs all of them, the caller frees them.
    """
    params = nn.meta.unbox(params)
    if _is_for_host(params, mesh, dtype):
        ends, layers_of = _by_host(model)
    else:
        whole, ends, layers_of = _compiled(model, mesh if mesh is not None and mesh.size > 1 else None, dtype)
        if not frees_params or "adapter" in params:
            return whole(params)
    if not frees_params:
        return {**ends(params), "layers": layers_of(params["layers"])}
    layers: list[dict[str, Any]] = [{} for _ in range(model.num_layers)]
    left = dict(params["layers"])
    for names in [*stacks.READERS.values(), *((name,) for name in left if name not in _MATRICES)]:
        stacked = {name: left.pop(name) for name in names}
        parts = jax.block_until_ready(layers_of(stacked))
        layers = [layer | part for layer, part in zip(layers, parts)]
        for x in stacked.values():
            if isinstance(x, jax.Array):
                x.delete()
    return {**ends(params), "layers": layers}


def form(model: decoder.DecoderLM, params: Mapping[str, Any], *, dtype: str = "") -> dict[str, Any]:
    """Shapes of what `prepare` returns for one device; of the parameters, only shapes are read."""
    return jax.eval_shape(_compiled(model, None, dtype)[0], nn.meta.unbox(params))


def _is_for_host(params, mesh, dtype):
    """Whether numpy lays the weights out: on a CPU it is as fast as a program, and that would be compiled for a second.

    Eight bits and the sums of an adapter are left to a program.
    """
    has_mesh = mesh is not None and mesh.size > 1
    return jax.default_backend() == "cpu" and not has_mesh and not dtype and "adapter" not in params


@functools.lru_cache(maxsize=8)  # an engine made again for the same model, as in every evaluation, compiles nothing
def _compiled(model, mesh, dtype):
    return tuple(map(jax.jit, _separate(model, mesh, dtype)))


def _by_host(model):
    """`ends` and `layers_of` of `_separate`, by numpy."""
    _, head_of, layers_of = _separate(model, None, "")

    def own(x):
        return jax.device_put(np.array(x, order="C"))  # a view of the parameters would change with them

    def ends(params):
        matrices = {name: np.asarray(x) for name, x in params.items() if name != "layers"}
        kept = {name: jnp.asarray(params[name]) for name in ("embedding", "final_norm")}
        return {**kept, "embedding": kept["embedding"].astype(model.dtype), "head": own(head_of(matrices)["head"])}

    def all_layers(stacked):
        return jax.tree.map(own, layers_of(jax.tree.map(np.asarray, stacked)))

    return ends, all_layers


def _separate(model, mesh, dtype):
    """The functions from parameters to weights: to all of them, to those outside the layers, to the layers."""
    is_int8, D = dtype == "int8", model.model_dim

    def stored(kernel_XY):
        return quantise(kernel_XY) if is_int8 else kernel_XY

    def two_sided(name, kernel):
        return kernel.reshape((-1, D) if name in ("out", "down") else (D, -1))

    def ends(params):
        head_DV = decoder.head(model, params)
        if isinstance(head_DV, jax.Array):
            head_DV = jnp.array(head_DV, copy=True)
        head_DV = head_DV.astype(model.dtype)
        weights = {
            "embedding": params["embedding"].astype(model.dtype),
            "head": stored(head_DV),
            "final_norm": params["final_norm"],
        }
        return placed(weights)

    def layers_of(stacked):
        layers = []
        for i in range(model.num_layers):
            layer = {name: x[i].astype(model.dtype) for name, x in stacked.items()}
            layer |= {name: two_sided(name, layer[name]) for name in _MATRICES if name in layer}
            layer |= {name: layer[name].reshape(-1) for name in _BIASES if name in layer}
            layers.append({name: stored(x) if name in _MATRICES else x for name, x in layer.items()})
        return placed({"layers": layers})["layers"]

    def whole(params):
        return {**ends(params), "layers": layers_of(lora.fold(params)["layers"])}

    def place(axes):
        return lambda x: NamedSharding(mesh, _split(model, axes[-x.ndim :], mesh))  # a scale has the output's axis

    def places(name, x):
        if name == "layers":
            return [{name: jax.tree.map(place(_axes(name)), y) for name, y in layer.items()} for layer in x]
        if name == "final_norm":
            return NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(place(("vocab", None) if name == "embedding" else (None, "vocab")), x)

    def placed(weights):
        if mesh is None:
            return weights
        return jax.lax.with_sharding_constraint(weights, {name: places(name, x) for name, x in weights.items()})

    return whole, ends, layers_of


def quantise(kernel_XY: jax.Array) -> dict[str, jax.Array]:
    """A matrix in eight bits: `int8 [X,Y]` and `scale [Y]`, the largest entry of each column over 127."""
    scale_Y = jnp.max(jnp.abs(kernel_XY.astype(jnp.float32)), axis=0) / 127
    whole_XY = jnp.round(kernel_XY / jnp.where(scale_Y > 0, scale_Y, 1)[None])
    return {"int8": whole_XY.astype(jnp.int8), "scale": scale_Y}


def _axes(name):
    if name in _BIASES:
        return (_BIASES[name],)
    return tuple(None if axis == "embed" else axis for axis in _MATRICES.get(name, (None,)))


def _split(model, axes, mesh):
    """Over `tensor` where the number of heads, features or tokens divides; whole heads stay together."""
    sizes = {
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads or model.num_heads,
        "mlp": model.ffn_dim or -(-8 * model.model_dim // (3 * 64)) * 64,
        "vocab": model.vocab_size,
        None: 1,
    }
    return sharding.spec(axes, tuple(sizes[axis] for axis in axes), mesh)

"""Several adapters of one base in one forward pass: every row of a batch has the base, or one adapter of it.

The rows of all adapters go through each base matrix together, so its weights are read once. Beside it the A of all
adapters lie side by side in one matrix, and the B below one another: a row is multiplied by all of them, and what
belongs to another adapter than its own is set to zero in between. For some adapters of rank 16 that is less than
products of their own, which each run at a fraction of the speed. The base's rows get zeros, so their sums are exact.

Dimensions: R rows, T tokens of a row, N = R*T, X inputs and Y outputs of a matrix, K adapters, E rank, C = K*E or
several of them side by side.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.errors import InputError
from alignment.models import decoder, lora

NONE = -1  # the adapter of a row that has the base alone
# Kernels that read one input, by the first of them: their A are one matrix as well.
READERS = {"query": ("query", "key", "value"), "out": ("out",), "gate": ("gate", "up"), "down": ("down",)}


def check(model: decoder.DecoderLM, adapter: lora.Adapter, what: str) -> None:
    """Refuse an adapter of another network.

    Args:
        what: its name in the message.

    Raises:
        InputError: its matrices would not fit beside the model's.
    """
    own = lora.lay_out(adapter.settings, model).form()
    shapes = [[leaf.shape for leaf in jax.tree.leaves(form)] for form in (own, adapter.form())]
    if shapes[0] != shapes[1]:
        raise InputError(f"{what} is an adapter of another network than the model's; take one that was trained on it")


def prepare(
    model: decoder.DecoderLM, adapters: Sequence[tuple[lora.Adapter, Any]], mesh: Mesh | None = None
) -> dict[str, Any]:
    """Adapters as `lows` reads them: `layers`, a list of their matrices in every layer, and `head`.

    Args:
        adapters: with their trees, which stay as they are.
        mesh: every device gets all adapters; None: one device.
    """
    stacked = lora.stack(adapters)
    layers = [
        _beside(model, {name: {k: x[:, i] for k, x in low.items()} for name, low in stacked["layers"].items()})
        for i in range(model.num_layers)
    ]
    head = _beside(model, {"head": stacked["head"]} if "head" in stacked else {})
    weights = {"layers": layers, "head": head}
    return weights if mesh is None else jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))


def _beside(model, stacked):
    """`a`: by the first kernel of a group, [X,C]; `owner`: the adapter of its columns, [C]; `b`: by kernel, [C,Y]."""
    a, b, owner = {}, {}, {}
    for name, low in stacked.items():
        K, E = low["b"].shape[:2]
        a[name] = jnp.moveaxis(low["a"].reshape(K, -1, E), 0, 1).reshape(-1, K * E).astype(model.dtype)
        b[name] = low["b"].reshape(K * E, -1).astype(model.dtype)
        owner[name] = jnp.repeat(jnp.arange(K), E)
    groups = {first: [n for n in names if n in b] for first, names in {**READERS, "head": ("head",)}.items()}
    groups = {first: names for first, names in groups.items() if names}
    return {
        "a": {first: jnp.concatenate([a[name] for name in names], axis=1) for first, names in groups.items()},
        "owner": {first: jnp.concatenate([owner[name] for name in names]) for first, names in groups.items()},
        "b": b,
    }


def lows(adapters: Mapping[str, Any], first: str, x_RTX: jax.Array, adapter_R: jax.Array) -> dict[str, jax.Array]:
    """`x A` [R,T,C] for each kernel of a group that has an adapter, zero where the row's adapter is another.

    Args:
        adapters: of one layer, or of the head.
        first: a key of READERS, or "head".
        adapter_R: the adapter of each row, NONE for the base.
    """
    if first not in adapters["a"]:
        return {}
    names = [name for name in READERS.get(first, (first,)) if name in adapters["b"]]
    ends = list(itertools.accumulate(adapters["b"][name].shape[0] for name in names))
    low_RTC = (x_RTX.reshape(-1, x_RTX.shape[-1]) @ adapters["a"][first]).reshape(*x_RTX.shape[:-1], -1)
    is_own_RC = adapter_R[:, None] == adapters["owner"][first][None]
    low_RTC = jnp.where(is_own_RC[:, None], low_RTC, 0)
    return dict(zip(names, jnp.split(low_RTC, ends[:-1], axis=-1)))


def added(out_RTY: jax.Array, lows: Mapping[str, jax.Array], adapters: Mapping[str, Any], name: str) -> jax.Array:
    """A kernel's product with that of the adapters."""
    if name not in lows:
        return out_RTY
    low_NC = lows[name].reshape(-1, lows[name].shape[-1])
    more_NY = jnp.matmul(low_NC, adapters["b"][name], preferred_element_type=out_RTY.dtype)
    return out_RTY + more_NY.reshape(out_RTY.shape)

"""Log-probabilities of answers under fixed weights, stored by content and computed once for all runs.

A store is a folder. Its subfolders are named by a digest of what the numbers depend on beside the tokens: every tensor
of the weights, and how they were computed (`numerics`). In a subfolder an answer's log-probabilities lie under a digest
of its token ids and the length of its prompt. So a number is found only under the very weights, numerics and tokens
that it was computed from; what has changed is missing, and is computed. Loss, beta and order are not among them.

    store = reference_store.Store("references", reference_store.made_from(model, params, mesh))
    known = store.read(keys)        # a list; None where there is nothing yet
    store.write(keys, values)       # one new file

Files are complete or absent, never change, and are named by their own content, so that any number of runs may read and
write one store at the same time.
"""

import dataclasses
import functools
import json
import os
import pathlib
import types
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jaxlib.version
import numpy as np
import xxhash
from jax.sharding import Mesh

from alignment import files, logprobs
from alignment.errors import InputError
from alignment.models import (
    attention,
    decoder,
    expanded_attention,
    lora,
    low_rank,
    on_mesh,
    rope,
    tree_attention,
)
from alignment.preference import pairs
from alignment.train import sharding

# The modules that compute the numbers; those that lay out the rows come from who calls.
NETWORK = (attention, decoder, expanded_attention, lora, low_rank, on_mesh, rope, tree_attention)
ENGINE = (logprobs, *NETWORK, pairs)
NOTE = "made_from.json"


def key(ids: np.ndarray, prompt_len: int) -> str:
    """An answer's key: 128 bits of its token ids, prompt first, and of where the answer begins."""
    content = np.ascontiguousarray(ids, np.int64)
    return xxhash.xxh3_128(content.tobytes() + int(prompt_len).to_bytes(8, "little")).hexdigest()


def made_from(
    model: decoder.DecoderLM, params: Any, mesh: Mesh, layout: Sequence[types.ModuleType] = ()
) -> dict[str, Any]:
    """What log-probabilities depend on beside the tokens: the digest of all tensors, and the numerics.

    Args:
        mesh: that they are computed on.
        layout: modules that place the tokens in rows.
    """
    return {"weights": digest(params), **numerics(model, mesh, layout)}


def digest(params: Any) -> str:
    """Digest of every tensor's name, dtype, shape and bytes; an adapter beside the weights counts as they do."""
    content = xxhash.xxh3_128()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        whole = np.asarray(sharding.to_host(leaf))  # one at a time, so that the host holds no second model
        content.update(repr((jax.tree_util.keystr(path), str(whole.dtype), whole.shape)).encode())
        content.update(np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data)
    return content.hexdigest()


def numerics(model: decoder.DecoderLM, mesh: Mesh, layout: Sequence[types.ModuleType] = ()) -> dict[str, Any]:
    """Everything that moves a log-probability but the weights: another machine's matrix products shift whole nats.

    Axes of the mesh that carry rows change no sum; others cut sums into parts.
    """
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    network = {name: value for name, value in fields.items() if name not in ("parent", "name", "remat", "unroll")}
    device = mesh.devices.flat[0]
    return {
        "network": json.loads(json.dumps(network, default=dict, sort_keys=True)),
        "device": f"{device.platform} {device.device_kind}",
        "platform": device.client.platform_version,
        "mesh": {axis: size for axis, size in mesh.shape.items() if axis not in sharding.ROWS[0]},
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"]),
        "wide": bool(jax.config.values["jax_enable_x64"]),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "jax": f"{jax.__version__} {jaxlib.version.__version__}",
        "code": _code((*ENGINE, *layout)),
    }


@functools.cache
def _code(modules: tuple[types.ModuleType, ...]) -> str:
    """Digest of the modules' source: an edit of the code is another store, without anybody having to count versions."""
    content = xxhash.xxh3_64()
    for module in modules:
        content.update(pathlib.Path(str(module.__file__)).read_bytes())
    return content.hexdigest()


class Store:
    """Log-probabilities [tokens] float32 of answers, all made from the same weights in the same way.

    Args:
        folder: of all stores; shared by runs and hosts.
        made: what `made_from` gave.
    """

    def __init__(self, folder: str | pathlib.Path, made: Mapping[str, Any]) -> None:
        note = json.dumps(made, sort_keys=True)
        self.folder = pathlib.Path(folder) / xxhash.xxh3_128(note.encode()).hexdigest()
        self._made = dict(made)

    def read(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """What is stored of these answers; None for those that have to be computed.

        Raises:
            InputError: a file is damaged.
        """
        wanted: dict[str, np.ndarray | None] = dict.fromkeys(keys)
        # The names are in order and the first one wins, so that two runs which computed the same answer read one value.
        for path in sorted(self.folder.glob("*.npz")):
            names, starts, values = _load(path)
            for name, start, stop in zip(names, starts, starts[1:]):
                if name in wanted and wanted[name] is None:
                    wanted[name] = values[start:stop]
        return [wanted[name] for name in keys]

    def write(self, keys: Sequence[str], values: Iterable[np.ndarray]) -> None:
        """Add answers as one new file; in a run of several processes the first writes alone."""
        lists = [np.asarray(value, np.float32) for value in values]
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        flat = np.concatenate(lists) if lists else np.zeros(0, np.float32)
        names = np.array(list(keys), dtype="U32")
        if len(lists) != len(names):
            raise ValueError(f"{len(names)} keys and {len(lists)} lists of log-probabilities")
        files.write_json(self.folder / NOTE, self._made)
        name = _digest(names, starts, flat)
        files.write(self.folder / f"{name}.npz", lambda f: np.savez(f, names=names, starts=starts, values=flat))


def _load(path: pathlib.Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, starts, values = (arrays[name] for name in ("names", "starts", "values"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} is damaged ({e}); remove it, and what it held is computed again") from e
    if _digest(names, starts, values) != path.stem:
        raise InputError(f"{path} is damaged (its content has another digest); remove it, and it is computed again")
    return names.tolist(), starts, values


def _digest(*arrays: np.ndarray) -> str:
    content = xxhash.xxh3_128()
    for array in arrays:
        content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.hexdigest()

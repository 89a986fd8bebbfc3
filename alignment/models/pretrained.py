"""Weights of the image networks as safetensors, in the layouts of torchvision and timm, in both directions.

A file's names say which layout it has. efficientnet-pytorch's names are not known here, and weights ported from
TensorFlow (timm's `tf_` family) have known names but were trained with "SAME" padding and another epsilon: do not load
them. timm's VGG has convolutions where torchvision's has dense layers; up to 224 x 224 they compute the same.
"""

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment import errors, memory
from alignment.errors import InputError
from alignment.models import layouts, tensors, vision

PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
CONVERT = (  # a shell's words; where the files are comes behind
    'python -c "import sys, torch, safetensors.torch; '
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "d = {k: v.contiguous().clone() for k, v in d.items() if torch.is_tensor(v)}; "
    'safetensors.torch.save_file(d, sys.argv[2])"'
)
WRAPPERS = ("module.", "model.", "_orig_mod.")  # what DataParallel, Lightning and torch.compile put before every name


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each tensor; names are those of the file, or of its layout where the file lacks them.

    Attributes:
        layout: "torchvision" or "timm".
        loaded: copied.
        skipped: tensors of the head for another number of classes, with both shapes; ours are left as they were.
        missing: not in the file; ours are left as they were.
        unexpected: in the file, and without a place in the network.
    """

    layout: str
    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self):
        lists = {name: getattr(self, name) for name in ("skipped", "missing", "unexpected")}
        return f"{len(self.loaded)} tensors loaded from {self.layout}'s layout" + "".join(
            f"; {name}: {errors.few(entries)}" for name, entries in lists.items() if entries
        )


def load(
    path: str | os.PathLike, variables: Mapping, *, network: str | nn.Module, allow_missing: bool = False
) -> tuple[dict, Report]:
    """A network's variables with the weights of a file in their places.

    Args:
        path: a .safetensors file, or a folder with model.safetensors.
        variables: what `init` gave, boxed or not; each array keeps its dtype and sharding.
        network: the name of the network (or the module), see `vision`.
        allow_missing: leave what the file lacks as it was, rather than only a head.

    Returns:
        The variables, without boxes, and a Report. A head for another number of classes is skipped.

    Raises:
        InputError: a pickled file; another network's file; a tensor of another shape, or missing, that is not the head.
    """
    stored = {layouts.modern(name): place for name, place in _unwrapped(_stored(path)).items()}
    leaves = _leaves(variables)
    layout, table = _layout_of(path, stored, _tables(network, leaves), network)
    present = {name: entry for name, entry in table.items() if name in stored}
    missing = [name for name in table if name not in present]
    wrong = [name for name in present if stored[name].shape != _their_shape(table[name], leaves)]
    unexpected = [name for name in stored if name not in table and not name.endswith("num_batches_tracked")]
    _refuse(path, missing, wrong, unexpected, stored, table, leaves, allow_missing)
    new: dict[tuple[str, ...], Any] = {}
    for name, entry in present.items():
        if name not in wrong:
            new |= _placed(tensors.view(name, stored[name]), entry, leaves)
    jax.block_until_ready(new)  # the copies read the file's views until they are done
    memory.give_back()
    report = Report(
        layout,
        tuple(name for name in present if name not in wrong),
        tuple(_mismatch(name, stored, table, leaves) for name in wrong),
        tuple(missing),
        tuple(unexpected),
    )
    return _tree(leaves | new), report


def save(path: str | os.PathLike, variables: Mapping, *, network: str | nn.Module, layout: str = "torchvision") -> None:
    """Write variables as one float32 safetensors file, which appears whole or not at all.

    Args:
        path: of the file, ending in .safetensors; replaced if it exists.
        variables: see `load`.
        network: the name of the network (or the module).
        layout: "torchvision" or "timm", where the family has it.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"path={path} must end in .safetensors; {path.with_suffix('.safetensors')} would do")
    leaves = _leaves(variables)
    choices = _tables(network, leaves)
    table = choices[errors.one_of("layout", layout, choices, hint=f"{_label(network)} has no other")]
    shapes = {name: _their_shape(entry, leaves) for name, entry in table.items()}
    tensors.write(path, shapes, np.dtype(np.float32), (_theirs(entry, leaves) for entry in table.values()))


def _stored(path):
    """Name: place of a file's tensors."""
    path = check_file(path)
    return tensors.index(path) if path.is_dir() else tensors.header(path)


def check_file(path: str | os.PathLike) -> pathlib.Path:
    """The file or folder of weights, if it is there; a pickled one is refused with what converts it."""
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return path
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a .safetensors file, or a folder with model.safetensors")
    with open(path, "rb") as f:
        is_pickled = path.suffix in PICKLED or f.read(2) in (b"PK", b"\x80\x02")
    if is_pickled:
        words = [CONVERT, shlex.quote(str(path)), shlex.quote(str(_converted(path)))]
        raise InputError(
            f"{path} is pickled and can run code when it is read; where torch is installed: {' '.join(words)}"
        )
    return path


def _converted(path):
    """Where the conversion goes; beside a pickle that was renamed to .safetensors, a file of another name."""
    other = path.with_suffix(".safetensors")
    return other if other != path else path.with_name(f"{path.stem}-converted.safetensors")


def _unwrapped(stored):
    for prefix in WRAPPERS:
        if stored and all(name.startswith(prefix) for name in stored):
            return _unwrapped({name.removeprefix(prefix): place for name, place in stored.items()})
    return stored


def _layout_of(path, stored, choices, network):
    layout = max(choices, key=lambda layout: sum(name in stored for name in choices[layout]))
    table = choices[layout]
    if not any(name in stored for name in table):
        raise InputError(
            f"{path} has no tensor of {_label(network)} in a layout of {' or '.join(choices)}: it has "
            f"{errors.few(list(stored))}, and {errors.few(list(table))} were looked for"
        )
    return layout, table


def _refuse(path, missing, wrong, unexpected, stored, table, leaves, allow_missing):
    """All but the head must be there in our shapes, and our stages must not have more layers in the file."""
    mismatched = [_mismatch(name, stored, table, leaves) for name in wrong if not _is_head(table[name])]
    if mismatched:
        raise InputError(
            f"{path} does not fit the network: {errors.few(mismatched)}; is it another network's, or of another width "
            "or image size?"
        )
    absent = [name for name in missing if not _is_head(table[name])]
    if absent and not allow_missing:
        raise InputError(f"{path} lacks {errors.few(absent)}; is it another network's? allow_missing=True leaves them")
    stages = {name.split(".")[0] for name in table}
    deeper = [name for name in unexpected if name.split(".")[0] in stages]
    if deeper:
        raise InputError(f"{path} has {errors.few(deeper)}, which have no place in the network; is it a deeper one's?")


def _is_head(entry):
    return entry.paths[0][1] == "head"


def _mismatch(name, stored, table, leaves):
    return f"{name} {stored[name].shape} (the network has {_their_shape(table[name], leaves)})"


def _their_shape(entry, leaves):
    shapes = [jax.ShapeDtypeStruct(leaves[path].shape, np.float32) for path in entry.paths]
    parts = [jax.eval_shape(entry.kind.to_theirs, shape).shape for shape in shapes]
    return (len(parts) * parts[0][0], *parts[0][1:]) if len(parts) > 1 else parts[0]


def _theirs(entry, leaves):
    parts = [entry.kind.to_theirs(np.asarray(leaves[path], np.float32)) for path in entry.paths]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _placed(theirs, entry, leaves):
    """Our arrays for a stored tensor, in the dtypes and places of those they replace."""
    parts = np.split(theirs, len(entry.paths)) if len(entry.paths) > 1 else [theirs]
    new = {}
    for path, part in zip(entry.paths, parts):
        old = leaves[path]
        ours = np.ascontiguousarray(entry.kind.to_ours(part, old.shape), dtype=old.dtype)
        sharding = getattr(old, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):  # each device gets its own piece, and none the whole array
            new[path] = jax.make_array_from_callback(old.shape, sharding, ours.__getitem__)
        else:
            new[path] = jnp.asarray(ours)
    return new


def _leaves(variables):
    flat = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(variables))[0]
    return {tuple(key.key for key in path): leaf for path, leaf in flat}


def _tree(leaves):
    tree = {}
    for path, leaf in leaves.items():
        at = tree
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = leaf
    return tree


def _tables(network, leaves):
    model = vision.network(network, num_classes=1) if isinstance(network, str) else network
    family = type(model).__name__
    errors.one_of("network", family, layouts.TORCHVISION, hint="only these have published weights")
    return layouts.tables(family, leaves)


def _label(network):
    return network if isinstance(network, str) else type(network).__name__

"""How torchvision and timm name and shape the tensors of the image networks.

A table goes from a tensor's name in their files to our arrays, as paths such as ("params", "layer1_0", "conv1",
"kernel"), and the way it changes shape. torch keeps convolutions as [out, in, rows, columns] and dense layers as
[out, in]; it flattens channels first, we flatten them last.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """How a tensor changes shape: `to_ours(theirs, our shape)` and `to_theirs(ours)`, for numpy and jax arrays."""

    to_ours: Callable
    to_theirs: Callable


class Entry(NamedTuple):
    """Where a tensor of a file goes: the path of one of our arrays (of three, for a joint query, key and value)."""

    paths: tuple[tuple[str, ...], ...]
    kind: Kind


SAME = Kind(lambda x, shape: x.reshape(shape), lambda x: x)
VECTOR = Kind(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
CONV = Kind(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
DENSE = Kind(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T)
OUT = Kind(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
QKV = ("query", "key", "value")  # torch stacks them in this order


def windows(channels: int, is_conv: bool) -> Kind:
    """A dense layer over rows, columns and channels, which torch keeps channels first, flat or as a convolution."""

    # The layer reads a grid of bins x bins places; only its area times the channels stands in the shapes.
    def to_ours(x, shape):
        bins = math.isqrt(shape[0] // channels)
        return x.reshape(x.shape[0], channels, bins, bins).transpose(2, 3, 1, 0).reshape(shape)

    def to_theirs(x):
        bins = math.isqrt(x.shape[0] // channels)
        x = x.reshape(bins, bins, channels, x.shape[-1]).transpose(3, 2, 0, 1)
        return x if is_conv else x.reshape(x.shape[0], -1)

    return Kind(to_ours, to_theirs)


def tables(family: str, leaves: Mapping) -> dict[str, dict[str, Entry]]:
    """{layout: {their name: Entry}} of a network of a family (a key of TORCHVISION), for its arrays by their paths."""
    renamers = {"torchvision": TORCHVISION[family]} | ({"timm": TIMM[family]} if family in TIMM else {})
    return {layout: _table(renamer, leaves) for layout, renamer in renamers.items()}


def _table(renamer, leaves):
    """{their name: Entry}; a renamer gives a module's name (and a kind, if not the usual one) for our module path."""
    joined = {}
    for path, leaf in leaves.items():
        name, kind = renamer(path, leaves)
        joined.setdefault(name, []).append((path, kind or _usual(path, leaf)))
    table = {}
    for name, parts in joined.items():
        if len(parts) > 1:  # query, key and value are three arrays here and one tensor there
            parts.sort(key=lambda part: QKV.index(part[0][-2]))
        table[name] = Entry(tuple(path for path, _ in parts), parts[0][1])
    return table


def _usual(path, leaf):
    if path[-1] != "kernel":
        return VECTOR
    return CONV if leaf.ndim == 4 else DENSE


def _dotted(module, leaf):
    return f"{module}.{LEAVES[leaf]}"


def _resnet(path, leaves):
    """timm's names are the same."""
    modules = ["fc" if module == "head" else module for module in path[1:-1]]
    modules = [re.sub(r"^(layer\d+)_(\d+)$", r"\1.\2", module) for module in modules]
    modules = [{"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(m, m) for m in modules]
    return _dotted(".".join(modules), path[-1]), None


def _numbered(path, leaves, *, head, first=None):
    """VGG, AlexNet and the small CNN, whose submodules carry torchvision's numbers; `first` reads the flat bins."""
    is_flat = path[1] == first and path[-1] == "kernel"
    kind = windows(_last_channels(leaves), is_conv=False) if is_flat else None
    return _dotted(head if path[1] == "head" else path[1].replace("_", "."), path[-1]), kind


def _timm_vgg(path, leaves):
    module = {"classifier_0": "pre_logits.fc1", "classifier_3": "pre_logits.fc2", "head": "head.fc"}.get(path[1])
    kind = None
    if path[1].startswith("classifier") and path[-1] == "kernel":
        channels = _last_channels(leaves) if path[1] == "classifier_0" else leaves[path].shape[0]
        kind = windows(channels, is_conv=True)
    return _dotted(module or path[1].replace("_", "."), path[-1]), kind


def _last_channels(leaves):
    numbers = {int(path[1].removeprefix("features_")): path[1] for path in leaves if path[1].startswith("features_")}
    return leaves["params", numbers[max(numbers)], "bias"].shape[0]


def _densenet(path, leaves):
    """timm's names are the same."""
    if path[1] == "head":
        return _dotted("classifier", path[-1]), None
    return _dotted("features." + ".".join((path[1].replace("_", "."), *path[2:-1])), path[-1]), None


def _efficientnet(path, leaves):
    """Blocks without an expansion number their parts from 0 all the same."""
    _, module, *inner = path[:-1]
    if module == "head":
        return _dotted("classifier.1", path[-1]), None
    part = {"conv": "0", "bn": "1", "squeeze": "fc1", "excite": "fc2"}[inner[-1]]
    if module in ("stem", "final"):
        last = 1 + max(int(at[1].removeprefix("stage").split("_")[0]) for at in leaves if at[1].startswith("stage"))
        return _dotted(f"features.{0 if module == 'stem' else last}.{part}", path[-1]), None
    stage, block = module.removeprefix("stage").split("_")
    parts = ["expand", "depthwise", "gate", "project"]
    parts = parts if _has(leaves, module, "expand") else parts[1:]
    number = parts.index("gate" if part.startswith("fc") else inner[0])
    return _dotted(f"features.{stage}.{block}.block.{number}.{part}", path[-1]), _gate_kind(path, leaves)


def _timm_efficientnet(path, leaves):
    _, module, *inner = path[:-1]
    if module == "head":
        return _dotted("classifier", path[-1]), None
    if module in ("stem", "final"):
        names = {"stem": ("conv_stem", "bn1"), "final": ("conv_head", "bn2")}[module]
        return _dotted(names[inner[0] == "bn"], path[-1]), None
    stage, block = module.removeprefix("stage").split("_")
    if inner[0] in ("squeeze", "excite"):
        part = {"squeeze": "se.conv_reduce", "excite": "se.conv_expand"}[inner[0]]
    else:
        parts = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
        if not _has(leaves, module, "expand"):
            parts = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
        part = parts[inner[0]][inner[1] == "bn"]
    return _dotted(f"blocks.{int(stage) - 1}.{block}.{part}", path[-1]), _gate_kind(path, leaves)


def _gate_kind(path, leaves):
    is_kernel = path[-2] in ("squeeze", "excite") and path[-1] == "kernel"
    return windows(leaves[path].shape[0], is_conv=True) if is_kernel else None


def _has(leaves, module, inner):
    return any(path[1:3] == (module, inner) for path in leaves)


def _vit(path, leaves, *, tokens, outer, block, parts, qkv):
    """Both layouts keep query, key and value in one tensor, in this order."""
    if path[1] in tokens:
        return tokens[path[1]], SAME
    if not path[1].startswith("block"):
        return _dotted(outer[path[1]], path[-1]), None
    prefix = block.format(path[1].removeprefix("block"))
    if path[2] in ("query", "key", "value"):
        return f"{prefix}.{qkv[path[-1]]}", None
    kind = OUT if path[2] == "out" and path[-1] == "kernel" else None
    return _dotted(f"{prefix}.{parts[path[2]]}", path[-1]), kind


TORCHVISION = {
    "ResNet": _resnet,
    "VGG": functools.partial(_numbered, head="classifier.6", first="classifier_0"),
    "AlexNet": functools.partial(_numbered, head="classifier.6", first="classifier_1"),
    "CNN": functools.partial(_numbered, head="classifier"),
    "DenseNet": _densenet,
    "EfficientNet": _efficientnet,
    "ViT": functools.partial(
        _vit,
        tokens={"class_token": "class_token", "pos_embed": "encoder.pos_embedding"},
        outer={"patch_embed": "conv_proj", "norm": "encoder.ln", "head": "heads.head"},
        block="encoder.layers.encoder_layer_{}",
        parts={
            "norm1": "ln_1",
            "out": "self_attention.out_proj",
            "norm2": "ln_2",
            "mlp_in": "mlp.0",
            "mlp_out": "mlp.3",
        },
        qkv={"kernel": "self_attention.in_proj_weight", "bias": "self_attention.in_proj_bias"},
    ),
}
TIMM = {
    "ResNet": _resnet,
    "DenseNet": _densenet,
    "VGG": _timm_vgg,
    "EfficientNet": _timm_efficientnet,
    "ViT": functools.partial(
        _vit,
        tokens={"class_token": "cls_token", "pos_embed": "pos_embed"},
        outer={"patch_embed": "patch_embed.proj", "norm": "norm", "head": "head"},
        block="blocks.{}",
        parts={"norm1": "norm1", "out": "attn.proj", "norm2": "norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"},
        qkv={"kernel": "attn.qkv.weight", "bias": "attn.qkv.bias"},
    ),
}


def modern(name: str) -> str:
    """torchvision's present name for one of its older checkpoints' (DenseNet's `norm.1`, ViT's `linear_1`)."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name)
    name = name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
    return name

"""The image networks by name.

All of them are called alike: `logits_NC, activations = model.apply(variables, x_NYXC, train=False, mask_NYX=None)` with
`variables = {"params": ..., "batch_stats": ...}`, the second absent where a network has no batch norm. Training with
`train=True` takes `mutable=["batch_stats"]` and, where there is dropout, `rngs={"dropout": key}`.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from alignment import errors
from alignment.errors import InputError, within
from alignment.models import alexnet, cnn, convolution, densenet, efficientnet, resnet, vgg, vit

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": functools.partial(resnet.ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet.ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet50": functools.partial(resnet.ResNet, stage_sizes=(3, 4, 6, 3), is_bottleneck=True),
    "resnet_small": functools.partial(resnet.ResNet, stage_sizes=(1, 1, 1), width=16, is_small_stem=True),
    "vgg11": functools.partial(vgg.VGG, stages=vgg.VGG11),
    "vgg11_bn": functools.partial(vgg.VGG, stages=vgg.VGG11, has_batch_norm=True),
    "vgg16": functools.partial(vgg.VGG, stages=vgg.VGG16),
    "vgg16_bn": functools.partial(vgg.VGG, stages=vgg.VGG16, has_batch_norm=True),
    "alexnet": alexnet.AlexNet,
    "densenet121": densenet.DenseNet,
    "efficientnet_b0": efficientnet.EfficientNet,
    "efficientnet_b3": functools.partial(
        efficientnet.EfficientNet, width_factor=1.2, depth_factor=1.4, dropout_rate=0.3
    ),
    "vit_s16": functools.partial(vit.ViT, model_dim=384, num_heads=6),
    "vit_b16": functools.partial(vit.ViT, model_dim=768, num_heads=12),
    "cnn": cnn.CNN,
}


def network(name: str, *, num_classes: int, dtype: str = "float32", **fields: Any) -> nn.Module:
    """The network of that name.

    Args:
        name: a key of NETWORKS.
        num_classes: width of the head.
        dtype: of the computation; parameters, statistics and logits are float32.
        fields: of the module, beside those that the name settles: width, stage sizes, image size (see its class).
    """
    errors.one_of("network", name, NETWORKS)
    within("[1, inf)", num_classes=num_classes)
    known = [field.name for field in dataclasses.fields(_family(name)) if field.name not in ("parent", "name")]
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise InputError(f"{name} has no field {', '.join(unknown)}; it has {', '.join(known)}")
    fields = {field: _frozen(value) for field, value in fields.items()}
    return NETWORKS[name](num_classes=num_classes, dtype=dtype, **fields)


def _frozen(value: Any) -> Any:
    """Tuples for the lists of a JSON file, so that a network can be hashed: a static argument of jit."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _family(name):
    made = NETWORKS[name]
    return made.func if isinstance(made, functools.partial) else made


def check_input(model: str | nn.Module, size: tuple[int, int]) -> None:
    """Refuse images of a size (rows, columns) that the network cannot take, with one that it can."""
    model = network(model, num_classes=1) if isinstance(model, str) else model
    convolution.check_size(model, size)

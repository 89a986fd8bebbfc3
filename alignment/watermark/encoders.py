"""Encoders of published networks, for attacks on embeddings.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, D numbers of an embedding.
"""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment.errors import InputError
from alignment.models import pretrained, vision
from alignment.watermark.learned import ImagesFn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures
SIDE = 224


@functools.lru_cache(maxsize=2)
def resnet18(path: str | os.PathLike) -> ImagesFn:
    """torchvision's ResNet-18 over ImageNet's classes as an encoder, see `average_pool`."""
    return average_pool(path, vision.network("resnet18", num_classes=1000))


def average_pool(path: str | os.PathLike, model: nn.Module, *, side: int = SIDE) -> ImagesFn:
    """A residual network's average pool as an encoder of pictures in [0, 1], as AdvEmbB-RN18 has it, [B, D].

    Pictures are resized to side x side pixels (bilinear, smoothed where they shrink) and normalised as for ImageNet.

    Args:
        path: safetensors in torchvision's or timm's layout.

    Raises:
        InputError: no such file, a pickled one, or the weights of another network.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nn.meta.unbox(shapes))
    variables, report = pretrained.load(path, empty, network=model)
    if report.skipped or report.missing:
        names = ", ".join((*report.skipped, *report.missing))
        raise InputError(f"{path} has another head than the network ({names}); take ImageNet's 1,000 classes")

    def encode(images_BYX3: jax.Array) -> jax.Array:
        small = jax.image.resize(images_BYX3, (len(images_BYX3), side, side, 3), "bilinear")
        mean, deviation = (jnp.array(x).reshape(1, 1, 1, 3) for x in (MEAN, DEVIATION))
        _, activations = model.apply(variables, (small - mean) / deviation)
        last = max(name for name in activations if name.startswith("layer"))
        return jnp.mean(activations[last], axis=(1, 2))

    return encode

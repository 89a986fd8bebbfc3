"""Narrow image networks, a second or less to compile: one of each family, and those whose parts differ."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment.models import vision

NARROW = {
    "resnet18": dict(width=4, stage_sizes=(1, 1)),
    "resnet50": dict(width=4, stage_sizes=(1, 1)),
    "resnet_small": dict(width=4, stage_sizes=(1, 1)),
    "vgg11": dict(stages=((4,), (6, 6)), dense_width=8),
    "vgg11_bn": dict(stages=((4,), (6,)), dense_width=8),
    "alexnet": dict(widths=(4, 4, 6, 4, 4), dense_width=8),
    "densenet121": dict(block_sizes=(1, 2), growth=4, stem_width=4),
    "efficientnet_b0": dict(stages=((1, 3, 1, 8, 1), (2, 5, 2, 8, 2)), stem_width=8),
    "cnn": dict(widths=(4, 6)),
    "vit_s16": dict(img_size=24, patch_size=8, model_dim=12, num_heads=3, num_layers=2),
}
CLASSES = 5


@functools.cache
def make(name, **fields):
    """A narrow network, and variables in which nothing is at its starting zero or one."""
    model = vision.network(name, **{"num_classes": CLASSES, **NARROW[name], **fields})
    rng = np.random.default_rng(0)
    size = getattr(model, "img_size", 64)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))))

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        scale = (1 / np.prod(leaf.shape[:-1])) ** 0.5 if path[-1].key == "kernel" else 0.2
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x_NYXC, mask_NYX=None):
    return model.apply(variables, x_NYXC, mask_NYX=mask_NYX)

"""LPIPS (Zhang et al. 2018, arXiv:1801.03924) over AlexNet, with a user's own weights.

Layers bear the names of the `lpips` package's whole network: `net.slice1.0.weight` and on, and `lin0.model.1.weight`
and on.

Dimensions: B pictures, C channels, Y X rows and columns, 3 red, green, blue.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError
from alignment.watermark import weights
from alignment.watermark.weights import Shapes, Weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]
LAYERS = (  # name, channels, kernel's side, stride, padding, and whether the input is pooled first
    ("net.slice1.0", 64, 11, 4, 2, False),
    ("net.slice2.3", 192, 5, 1, 2, True),
    ("net.slice3.6", 384, 3, 1, 1, True),
    ("net.slice4.8", 256, 3, 1, 1, False),
    ("net.slice5.10", 256, 3, 1, 1, False),
)
LEAST = 32  # pixels of a side: below, the second pool has nothing to pool
CHUNK = 8  # pictures at a time


def shapes() -> Shapes:
    """Names and shapes of the weights that are read."""
    out: dict[str, tuple[int, ...]] = {}
    before = 3
    for i, (name, channels, side, *_) in enumerate(LAYERS):
        out |= {f"{name}.weight": (channels, before, side, side), f"{name}.bias": (channels,)}
        out[f"lin{i}.model.1.weight"] = (1, channels, 1, 1)
        before = channels
    return out


def distance(params: Weights, a_BYX3: jax.Array, b_BYX3: jax.Array) -> jax.Array:
    """The distance of each pair, float32 [B]; bytes, or numbers in [0, 1].

    Features of a place are scaled to unit length; weighted squares of their differences are averaged over places and
    summed over layers.
    """
    shift, scale = (jnp.array(x, jnp.float32)[None, :, None, None] for x in (SHIFT, SCALE))
    x, y = ((2 * weights.planes_first(images) - 1 - shift) / scale for images in (a_BYX3, b_BYX3))
    total_B = jnp.zeros(len(a_BYX3))
    for i, (name, _, _, stride, padding, is_pooled) in enumerate(LAYERS):
        units = []
        for features in (x, y):
            inside = weights.pooled(features) if is_pooled else features
            out = jax.nn.relu(weights.conv(inside, params, name, stride=stride, padding=(padding, padding)))
            units.append((out, out / (jnp.sqrt(jnp.sum(out**2, axis=1, keepdims=True)) + 1e-10)))
        (x, unit_x), (y, unit_y) = units
        gap = weights.conv((unit_x - unit_y) ** 2, params, f"lin{i}.model.1")
        total_B += jnp.mean(gap, axis=(1, 2, 3))
    return total_B


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights of a safetensors file.

    Raises:
        InputError: no safetensors, or weights of another network.
    """
    return weights.load(path, "net.slice1.0.weight", shapes(), what="LPIPS over AlexNet")


@functools.lru_cache(maxsize=2)
def opened(path: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """LPIPS as a metric of pictures before and after an attack, float64 [B]; compiled once for a grid.

    Raises:
        InputError: see `load`; from the metric: pictures that are too small.
    """
    distance_fn = jax.jit(functools.partial(distance, load(path)))

    def metric(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> np.ndarray:
        if min(clean_BYX3.shape[1:3]) < LEAST:
            raise InputError(f"pictures of {clean_BYX3.shape[1:3]} pixels; LPIPS needs {LEAST} x {LEAST} at least")
        starts = range(0, len(clean_BYX3), CHUNK)
        parts = [distance_fn(clean_BYX3[i : i + CHUNK], attacked_BYX3[i : i + CHUNK]) for i in starts]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    return metric

"""FID (Heusel et al. 2017, arXiv:1706.08500): Fréchet's distance of Inception's features, with a user's own weights.

The network is that of the `pytorch-fid` package, which TensorFlow's FID uses: torchvision's names, averages that leave
the padding out, and a maximum in the last block. Layers are found by their names; their kernels say how to pad.

Dimensions: B pictures, C channels, Y X rows and columns, 3 red, green, blue, F 2,048 features.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from alignment.errors import InputError
from alignment.watermark import weights
from alignment.watermark.weights import Shapes, Weights

SIDE = 299  # pixels that the network reads
CHUNK = 8  # pictures at a time
FEATURES = 2_048

Chain = tuple[tuple[str, int, int, int], ...]  # a branch: (name, channels, kernel rows, kernel columns) of each layer
STEM = (("Conv2d_1a_3x3", 32, 3, 3), ("Conv2d_2a_3x3", 32, 3, 3), ("Conv2d_2b_3x3", 64, 3, 3))
STEM_2 = (("Conv2d_3b_1x1", 80, 1, 1), ("Conv2d_4a_3x3", 192, 3, 3))
UNPADDED = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3")
BLOCKS = {  # name: (kind, channels in, channels of its pool or of its 7 x 7)
    "Mixed_5b": ("a", 192, 32),
    "Mixed_5c": ("a", 256, 64),
    "Mixed_5d": ("a", 288, 64),
    "Mixed_6a": ("b", 288, 0),
    "Mixed_6b": ("c", 768, 128),
    "Mixed_6c": ("c", 768, 160),
    "Mixed_6d": ("c", 768, 160),
    "Mixed_6e": ("c", 768, 192),
    "Mixed_7a": ("d", 768, 0),
    "Mixed_7b": ("e", 1280, 192),
    "Mixed_7c": ("e", 2048, 192),
}
SPLIT = {"branch3x3": 384, "branch3x3dbl": 384}  # of kind e: a chain's end goes on as 1 x 3 and as 3 x 1


def chains(kind: str, more: int) -> dict[str, Chain]:
    """The branches of a block, in the order in which their channels lie; the pool's comes last.

    Args:
        more: see `BLOCKS`.
    """
    pool: dict[str, Chain] = {"branch_pool": (("branch_pool", more, 1, 1),)}
    double: Chain = (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3))
    if kind == "a":
        five = (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5))
        return {"branch1x1": (("branch1x1", 64, 1, 1),), "branch5x5": five, "branch3x3dbl": double} | pool
    if kind == "b":
        return {"branch3x3": (("branch3x3", 384, 3, 3),), "branch3x3dbl": double}
    if kind == "c":
        seven: Chain = (("branch7x7_1", more, 1, 1), ("branch7x7_2", more, 1, 7), ("branch7x7_3", 192, 7, 1))
        twice: Chain = (("branch7x7dbl_1", more, 1, 1), ("branch7x7dbl_2", more, 7, 1), ("branch7x7dbl_3", more, 1, 7))
        twice += (("branch7x7dbl_4", more, 7, 1), ("branch7x7dbl_5", 192, 1, 7))
        pool = {"branch_pool": (("branch_pool", 192, 1, 1),)}
        return {"branch1x1": (("branch1x1", 192, 1, 1),), "branch7x7": seven, "branch7x7dbl": twice} | pool
    if kind == "d":
        seven = (("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, 1, 7), ("branch7x7x3_3", 192, 7, 1))
        return {
            "branch3x3": (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
            "branch7x7x3": (*seven, ("branch7x7x3_4", 192, 3, 3)),
        }
    double = (("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3))
    return {
        "branch1x1": (("branch1x1", 320, 1, 1),),
        "branch3x3": (("branch3x3_1", 384, 1, 1),),
        "branch3x3dbl": double,
    } | pool


def shapes() -> Shapes:
    """Names and shapes of the weights that are read; classes and the auxiliary head are not."""
    out: dict[str, tuple[int, ...]] = {}

    def add(prefix: str, chain: Chain, before: int) -> int:
        for name, channels, rows, columns in chain:
            out[f"{prefix}{name}.conv.weight"] = (channels, before, rows, columns)
            out.update(weights.batch_norm_shapes(f"{prefix}{name}.bn", channels))
            before = channels
        return before

    add("", STEM_2, add("", STEM, 3))
    for block, (kind, before, more) in BLOCKS.items():
        for branch, chain in chains(kind, more).items():
            end = add(f"{block}.", chain, before)
            if kind == "e" and branch in SPLIT:
                number = len(chain) + 1
                for part, rows, columns in (("a", 1, 3), ("b", 3, 1)):
                    add(f"{block}.", ((f"{branch}_{number}{part}", SPLIT[branch], rows, columns),), end)
    return out


def features(params: Weights, images_BYX3: jax.Array) -> jax.Array:
    """The last pool's features [B, F]; bytes, or numbers in [0, 1], of any size."""
    x = weights.planes_first(images_BYX3)
    x = 2 * jax.image.resize(x, (*x.shape[:2], SIDE, SIDE), "linear", antialias=False) - 1
    for i, (name, *_) in enumerate(STEM):
        x = _layer(x, params, name, stride=2 if i == 0 else 1)
    x = weights.pooled(x)
    for name, *_ in STEM_2:
        x = _layer(x, params, name)
    x = weights.pooled(x)
    for block, (kind, _, more) in BLOCKS.items():
        x = _block(x, params, block, kind, more)
    return jnp.mean(x, axis=(2, 3))


def _layer(x, params, name, *, stride=1):
    rows, columns = params[f"{name}.conv.weight"].shape[2:]
    # layers with a stride, and three of the stem, take no padding; the others keep the size
    padding = (0, 0) if stride > 1 or name in UNPADDED else (rows // 2, columns // 2)
    x = weights.conv(x, params, f"{name}.conv", stride=stride, padding=padding)
    return jax.nn.relu(weights.normalised(x, params, f"{name}.bn"))


def _block(x, params, block, kind, more):
    is_narrowing = kind in "bd"
    out = []
    for branch, chain in chains(kind, more).items():
        y = x
        if branch == "branch_pool":
            y = weights.pooled(x, stride=1, padding=1) if block == "Mixed_7c" else _averaged(x)
        for i, (name, *_) in enumerate(chain):
            is_last = i == len(chain) - 1
            y = _layer(y, params, f"{block}.{name}", stride=2 if is_narrowing and is_last else 1)
        if kind == "e" and branch in SPLIT:
            number = len(chain) + 1
            y = jnp.concatenate([_layer(y, params, f"{block}.{branch}_{number}{part}") for part in "ab"], axis=1)
        out.append(y)
    return jnp.concatenate([*out, weights.pooled(x)] if is_narrowing else out, axis=1)


def _averaged(x):
    """Means of 3 x 3 places, of those inside the picture at its edge."""
    options = ((1, 1, 3, 3), (1, 1, 1, 1), ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, *options)
    return sums / jax.lax.reduce_window(jnp.ones_like(x[:1, :1]), 0.0, jax.lax.add, *options)


def frechet(a_BF: np.ndarray, b_BF: np.ndarray) -> float:
    """|mean - mean|^2 + trace(A + B - 2 (A B)^(1/2)) of two sets of features.

    Of fewer pictures than features the covariances are singular and the distance is biased upwards, as FID's is; the
    trace of the root is taken from the singular values of A^(1/2) B^(1/2), which needs no inverse.

    Raises:
        InputError: fewer than two pictures on a side.
    """
    if min(len(a_BF), len(b_BF)) < 2:
        raise InputError(f"FID of {len(a_BF)} and {len(b_BF)} pictures; a covariance needs two at least")
    # with centred features as rows, tr (A B)^(1/2) is the sum of the singular values of their product
    centred = [(x - x.mean(axis=0)) / (len(x) - 1) ** 0.5 for x in (a_BF.astype(float), b_BF.astype(float))]
    root = scipy.linalg.svdvals(centred[0] @ centred[1].T).sum()
    means = np.sum((a_BF.mean(axis=0, dtype=float) - b_BF.mean(axis=0, dtype=float)) ** 2)
    return float(means + sum(np.sum(x**2) for x in centred) - 2 * root)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights of a safetensors file.

    Raises:
        InputError: no safetensors, or weights of another network.
    """
    return weights.load(path, "Conv2d_1a_3x3.conv.weight", shapes(), what="Inception for FID")


@functools.lru_cache(maxsize=2)
def opened(path: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """FID of pictures before and after an attack; compiled once for a grid.

    Raises:
        InputError: see `load`; from the metric: fewer than two pictures.
    """
    features_fn = jax.jit(functools.partial(features, load(path)))

    def metric(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> float:
        both = [
            np.concatenate([np.asarray(features_fn(x[i : i + CHUNK])) for i in range(0, len(x), CHUNK)])
            for x in (clean_BYX3, attacked_BYX3)
        ]
        return frechet(*both)

    return metric

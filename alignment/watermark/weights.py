"""A user's own weights from safetensors, by the layers' names of the public checkpoints, and layers in torch's order.

Pictures are [B, C, Y, X] here, as in torch: kernels [out, in, rows, columns] are used as they lie in the file.

Dimensions: B pictures, C channels, Y X rows and columns.
"""

import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from alignment.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
Weights = Mapping[str, jax.Array | np.ndarray]


def load(
    path: str | os.PathLike, tail: str, shapes: Shapes | Callable[[Weights], Shapes], *, what: str
) -> dict[str, np.ndarray]:
    """A network's weights out of a safetensors file.

    Args:
        tail: the name of one of its arrays, behind any prefix.
        shapes: of all its arrays, or a function that tells them from the arrays that are there.
        what: the network, for people.

    Raises:
        InputError: no safetensors, or weights of another network.
    """
    arrays = below(stored(path), tail, what=what, source=str(path))
    return chosen(arrays, shapes(arrays) if callable(shapes) else shapes, what=what, source=str(path))


def stored(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file.

    Raises:
        InputError: no such file, or no safetensors.
    """
    try:
        return safetensors.numpy.load(pathlib.Path(path).expanduser().read_bytes())
    except (OSError, safetensors.SafetensorError) as e:
        raise InputError(f"{path} cannot be read as safetensors: {e}") from e


def chosen(arrays: Mapping[str, np.ndarray], shapes: Shapes, *, what: str, source: str) -> dict[str, np.ndarray]:
    """The arrays of `shapes`, float32; others are not read.

    Args:
        what: the network, for people.
        source: the file, for people.

    Raises:
        InputError: weights of another network; names the first array that is missing or of another shape.
    """
    out = {}
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            have = f"is {arrays[name].shape} there" if name in arrays else "is missing"
            raise InputError(
                f"{source} has the weights of another network than {what}: {name} {have}; {shape} is needed"
            )
        out[name] = np.asarray(arrays[name], np.float32)
    return out


def below(arrays: Mapping[str, np.ndarray], tail: str, *, what: str, source: str) -> dict[str, np.ndarray]:
    """The arrays under the prefix with which a name ends in `tail`, without that prefix.

    Checkpoints hold a network alone, in a part ("decoder."), or as training wrapped it ("module.").

    Raises:
        InputError: no name ends so.
    """
    fitting = sorted((name for name in arrays if f".{name}".endswith(f".{tail}")), key=len)
    if not fitting:
        some = ", ".join(sorted(arrays)[:3])
        raise InputError(f"{source} has the weights of another network than {what}: no {tail} among {some}, ...")
    prefix = fitting[0].removesuffix(tail)
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def conv(
    x_BCYX: jax.Array, weights: Weights, name: str, *, stride: int = 1, padding: tuple[int, int] = (0, 0)
) -> jax.Array:
    """A convolution with the kernel, and where there is one the bias, of a layer."""
    pads = [(padding[0],) * 2, (padding[1],) * 2]
    kernel = jnp.asarray(weights[f"{name}.weight"])
    dimensions = ("NCHW", "OIHW", "NCHW")
    out = jax.lax.conv_general_dilated(x_BCYX, kernel, (stride, stride), pads, dimension_numbers=dimensions)
    return out + weights[f"{name}.bias"][:, None, None][None] if f"{name}.bias" in weights else out


def normalised(x_BCYX: jax.Array, weights: Weights, name: str, *, epsilon: float = 1e-3) -> jax.Array:
    """Batch normalisation by its running statistics."""
    mean, variance, scale, shift = (
        weights[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x_BCYX - mean) * (scale / jnp.sqrt(variance + epsilon)) + shift


def dense(x_BC: jax.Array, weights: Weights, name: str) -> jax.Array:
    return x_BC @ weights[f"{name}.weight"].T + weights[f"{name}.bias"][None]


def pooled(x_BCYX: jax.Array, *, stride: int = 2, padding: int = 0) -> jax.Array:
    """The largest of 3 x 3."""
    pads = ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2)
    return jax.lax.reduce_window(x_BCYX, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, stride, stride), pads)


def planes_first(images_BYX3: jax.Array | np.ndarray) -> jax.Array:
    """Bytes or numbers [B, Y, X, 3] as float32 [B, 3, Y, X]; bytes become numbers in [0, 1]."""
    scale = 255.0 if images_BYX3.dtype == np.uint8 else 1.0
    return jnp.asarray(images_BYX3, jnp.float32).transpose(0, 3, 1, 2) / scale


def batch_norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}

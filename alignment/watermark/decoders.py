"""Decoders of two published marks, with a user's own weights: Stable Signature and StegaStamp.

Only decoders: pictures are marked elsewhere, by the fine-tuned generator and by StegaStamp's encoder. Layers bear the
names of the public checkpoints: facebookresearch/stable_signature (HiDDeN's decoder), and the torch port of StegaStamp
with or without its spatial transformer.

Dimensions: B pictures, C channels, Y X rows and columns, L bits.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError
from alignment.watermark import weights
from alignment.watermark.marks import Mark, bit_errors, message
from alignment.watermark.weights import Shapes, Weights

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of the pictures in [0, 1]
SIDE = 400  # pixels that StegaStamp reads
CHUNK = 8  # pictures at a time
STRIDES = (2, 1, 2, 1, 2, 2, 2)  # of StegaStamp's convolutions
WIDTHS = (32, 32, 64, 64, 64, 128, 128)
FOUND_STRIDES, FOUND_WIDTHS = (2, 2, 2), (32, 64, 128)  # of its spatial transformer

# Stable Signature (Fernandez et al. 2023)


def signature_shapes(num_bits: int, num_blocks: int = 8, width: int = 64) -> Shapes:
    """Names and shapes; the last block has as many channels as there are bits."""
    out: dict[str, tuple[int, ...]] = {}
    before = 3
    for i in range(num_blocks):
        channels = num_bits if i == num_blocks - 1 else width
        out[f"layers.{i}.layers.0.weight"] = (channels, before, 3, 3)
        out[f"layers.{i}.layers.0.bias"] = (channels,)
        out |= weights.batch_norm_shapes(f"layers.{i}.layers.1", channels)
        before = channels
    return out | {"linear.weight": (num_bits, num_bits), "linear.bias": (num_bits,)}


def signature_logits(params: Weights, images_BYX3: jax.Array) -> jax.Array:
    """A logit a bit [B, L]; pictures of any size, bytes or numbers in [0, 1]."""
    mean, deviation = (jnp.array(x, jnp.float32)[None, :, None, None] for x in (MEAN, DEVIATION))
    x = (weights.planes_first(images_BYX3) - mean) / deviation
    blocks = sum(name.endswith("layers.0.weight") for name in params)
    for i in range(blocks):
        x = weights.conv(x, params, f"layers.{i}.layers.0", padding=(1, 1))
        x = jax.nn.gelu(weights.normalised(x, params, f"layers.{i}.layers.1"), approximate=False)
    return weights.dense(jnp.mean(x, axis=(2, 3)), params, "linear")


def load_signature(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The decoder's weights out of a checkpoint as safetensors.

    Raises:
        InputError: no safetensors, or weights of another network.
    """
    first = "layers.0.layers.0.weight"

    def shapes(arrays: weights.Weights) -> weights.Shapes:
        blocks = sum(name.startswith("layers.") and name.endswith(".layers.0.weight") for name in arrays)
        num_bits = len(arrays["linear.bias"]) if "linear.bias" in arrays else 48
        return signature_shapes(num_bits, blocks, len(arrays[first]))

    return weights.load(path, first, shapes, what="Stable Signature's decoder")


# StegaStamp (Tancik et al. 2020)


def stamp_shapes(num_bits: int = 100, side: int = SIDE, *, has_transformer: bool) -> Shapes:
    """Names and shapes of the torch port."""
    out, left = _convs("decoder", WIDTHS, STRIDES, side)
    out |= {"decoder.8.linear.weight": (512, WIDTHS[-1] * left**2), "decoder.8.linear.bias": (512,)}
    out |= {"decoder.9.linear.weight": (num_bits, 512), "decoder.9.linear.bias": (num_bits,)}
    if has_transformer:
        convs, left = _convs("stn.localization", FOUND_WIDTHS, FOUND_STRIDES, side)
        out |= convs | {"stn.localization.4.linear.weight": (128, FOUND_WIDTHS[-1] * left**2)}
        out |= {"stn.localization.4.linear.bias": (128,)}
        out |= {"stn.localization.5.weight": (6, 128), "stn.localization.5.bias": (6,)}
    return out


def _convs(prefix, widths, strides, side):
    out, before = {}, 3
    for i, (width, stride) in enumerate(zip(widths, strides)):
        out[f"{prefix}.{i}.conv.weight"], out[f"{prefix}.{i}.conv.bias"] = (width, before, 3, 3), (width,)
        before, side = width, -(-side // stride)
    return out, side


def stamp_logits(params: Weights, images_BYX3: jax.Array, *, side: int = SIDE) -> jax.Array:
    """A logit a bit [B, L]; pictures are resized to the side that the decoder reads."""
    x = weights.planes_first(images_BYX3)
    x = jax.image.resize(x, (*x.shape[:2], side, side), "linear", antialias=False) - 0.5
    if "stn.localization.5.weight" in params:
        pose = jax.nn.relu(weights.dense(_walk(x, params, "stn.localization", FOUND_STRIDES), params, _FOUND))
        x = warped(x, weights.dense(pose, params, "stn.localization.5").reshape(-1, 2, 3))
    x = jax.nn.relu(weights.dense(_walk(x, params, "decoder", STRIDES), params, "decoder.8.linear"))
    return weights.dense(x, params, "decoder.9.linear")


_FOUND = "stn.localization.4.linear"


def _walk(x, params, prefix, strides):
    for i, stride in enumerate(strides):
        x = jax.nn.relu(weights.conv(x, params, f"{prefix}.{i}.conv", stride=stride, padding=(1, 1)))
    return x.reshape(len(x), -1)


def warped(x_BCYX: jax.Array, theta_B23: jax.Array) -> jax.Array:
    """A picture seen through an affine map, bilinear, black outside; corners of pixels lie at -1 and 1, as in torch."""
    rows, columns = x_BCYX.shape[2:]
    y_Y, x_X = ((2 * jnp.arange(n) + 1) / n - 1 for n in (rows, columns))
    ones_YX = jnp.ones((rows, columns))
    grid_YX3 = jnp.stack([ones_YX * x_X[None], ones_YX * y_Y[:, None], ones_YX], axis=-1)
    at_BYX2 = jnp.einsum("yxk,bjk->byxj", grid_YX3, theta_B23)
    at_BYX, down_BYX = ((at_BYX2[..., i] + 1) * n / 2 - 0.5 for i, n in ((0, columns), (1, rows)))

    def one(picture_CYX, down_YX, at_YX):
        places = [down_YX, at_YX]
        return jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, places, order=1, cval=0.0))(picture_CYX)

    return jax.vmap(one)(x_BCYX, down_BYX, at_BYX)


def load_stamp(path: str | os.PathLike, side: int = SIDE) -> dict[str, np.ndarray]:
    """The decoder's weights out of a checkpoint of the torch port as safetensors.

    Raises:
        InputError: no safetensors, or weights of another network.
    """

    def shapes(arrays: weights.Weights) -> weights.Shapes:
        num_bits = len(arrays["decoder.9.linear.bias"]) if "decoder.9.linear.bias" in arrays else 100
        return stamp_shapes(num_bits, side, has_transformer=any(name.startswith("stn.") for name in arrays))

    return weights.load(path, "decoder.0.conv.weight", shapes, what="StegaStamp's decoder")


# As marks of the protocol

LOADED: dict[str, tuple[Callable, Callable]] = {
    "stable_signature": (load_signature, signature_logits),
    "stegastamp": (load_stamp, stamp_logits),
}


def read_message(text: str, name: str) -> np.ndarray:
    """A message from its zeros and ones, bool [L].

    Raises:
        InputError: another character, or nothing.
    """
    if not text or set(text) - {"0", "1"}:
        raise InputError(f"the message of {name} is {text!r}; it is written in zeros and ones, such as 0110")
    return np.array([character == "1" for character in text])


def mark(name: str, path: str | os.PathLike, own: np.ndarray) -> Mark:
    """A published mark by its decoder.

    Args:
        name: a key of `LOADED`.
        path: the decoder's weights, safetensors.
        own: the message that the marked pictures bear, bool [L]: user 0's. Others have drawn ones.

    Raises:
        InputError: weights of another network, or a message of another length than they read.
    """
    load_fn, logits_fn = LOADED[name]
    params = load_fn(path)
    last = "linear.bias" if name == "stable_signature" else "decoder.9.linear.bias"
    if len(params[last]) != len(own):
        raise InputError(f"a message of {len(own)} bits; these weights of {name} read {len(params[last])}")
    read_fn = jax.jit(functools.partial(logits_fn, params))

    def key(user: int) -> np.ndarray:
        return own if user == 0 else message(user, len(own))

    def embed(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        raise InputError(f"{name} marks no given picture: its decoder reads pictures that were marked elsewhere")

    def distance(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        parts = [np.asarray(read_fn(images_BYX3[i : i + CHUNK])) for i in range(0, len(images_BYX3), CHUNK)]
        return bit_errors(np.concatenate(parts) > 0, message_L)

    return Mark(key, embed, distance)

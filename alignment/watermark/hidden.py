"""A mark by a small encoder and decoder that are trained together (HiDDeN's idea, Zhu et al. 2018).

The message becomes a pattern that repeats every 32 pixels; the encoder paints it where the picture's texture hides it,
at a fixed strength, and the decoder averages over all repetitions. So it trains on small cuts, reads pictures of any
size, and survives what leaves places alone; crops and rotations are not in its training, which a repeating pattern
would need a search for.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, L bits.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment.errors import InputError
from alignment.watermark import differentiable, learned
from alignment.watermark.marks import Mark, bit_errors, message

TILE = 32  # pixels after which the pattern repeats
CELLS = TILE // 4  # of a tile, as the networks see it
NUM_BITS = 48
STRENGTH = 2.5 / 255  # root mean square of the change: 40.2 dB
CHUNK = 8  # pictures at a time


class EncoderDecoder(nn.Module):
    """Both networks; pictures float32 in [0, 1], sides divisible by 32, bits in {0, 1}."""

    num_bits: int = NUM_BITS
    width: int = 32

    def setup(self) -> None:
        self.pattern = nn.Dense(CELLS * CELLS * self.width, name="pattern")
        self.look = nn.Conv(self.width, (3, 3), name="look")
        self.blend = nn.Conv(self.width, (3, 3), name="blend")
        self.paint = nn.Conv(48, (3, 3), name="paint")
        self.direct = nn.Conv(48, (1, 1), name="direct")
        self.sharpen = nn.Conv(self.width, (3, 3), name="sharpen")
        self.correlate = nn.Conv(self.width, (3, 3), name="correlate")
        self.read_out = nn.Dense(self.num_bits, name="read_out")

    def embed(self, images_BYX3: jax.Array, bits_BL: jax.Array) -> jax.Array:
        """The pictures with their messages."""
        batch, rows, columns = images_BYX3.shape[:3]
        pattern = self.pattern(2.0 * bits_BL - 1).reshape(batch, CELLS, CELLS, self.width)
        tiled = jnp.tile(pattern, (1, rows // TILE, columns // TILE, 1))
        seen = nn.gelu(self.look(_folded(images_BYX3 - 0.5)))
        blended = nn.gelu(self.blend(jnp.concatenate([seen, tiled], axis=-1)))
        change = learned.unfold(learned.unfold(self.paint(blended) + self.direct(tiled)))
        size = jnp.sqrt(jnp.mean(change**2, axis=(1, 2, 3), keepdims=True) + 1e-8)
        return jnp.clip(images_BYX3 + STRENGTH * change / size, 0, 1)

    def read(self, images_BYX3: jax.Array) -> jax.Array:
        """A logit a bit [B, L]."""
        batch, rows, columns = images_BYX3.shape[:3]
        # what stands out of its 4 x 4 neighbours is where a mark is strong and a picture weak
        folded = _folded(images_BYX3 - 0.5)
        local = folded.reshape(*folded.shape[:3], 16, 3)
        stands_out = (8 * (local - local.mean(axis=3, keepdims=True))).reshape(folded.shape)
        x = nn.gelu(self.sharpen(jnp.concatenate([folded, stands_out], axis=-1)))
        x = self.correlate(x).reshape(batch, rows // TILE, CELLS, columns // TILE, CELLS, self.width)
        return self.read_out(x.mean(axis=(1, 3)).reshape(batch, -1))

    def __call__(self, images_BYX3: jax.Array) -> jax.Array:
        return self.read(self.embed(images_BYX3, jnp.zeros((len(images_BYX3), self.num_bits))))


def _folded(images: jax.Array) -> jax.Array:
    """4 x 4 pixels of three colours as 48 channels; colours are the last of three axes."""
    batch, rows, columns = images.shape[:3]
    x = images.reshape(batch, rows // 4, 4, columns // 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows // 4, columns // 4, 48)


def wrong_bits(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Cross-entropy of drawn messages that went through a drawn distortion.

    Args:
        batch: `images` in [0, 1], and `step`, which the draws follow from.
    """
    key = jax.random.fold_in(jax.random.key(0), batch["step"])
    bits_key, distortion_key = jax.random.split(key)
    model, images = EncoderDecoder(), batch["images"]
    bits_BL = jax.random.bernoulli(bits_key, 0.5, (len(images), NUM_BITS)).astype(jnp.float32)
    marked: Any = model.apply(params, images, bits_BL, method="embed")
    logits: Any = model.apply(params, differentiable.drawn(marked, distortion_key), method="read")
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, bits_BL))


def mark(params: Any) -> Mark:
    """The trained networks as a mark of the protocol; rows and columns beyond the last whole tile stay as they are.

    Raises:
        InputError: from the mark's functions, where a picture is smaller than a tile.
    """
    model = EncoderDecoder()
    embed_fn = jax.jit(lambda images, bits: model.apply(params, images, bits, method="embed"))
    read_fn = jax.jit(lambda images: model.apply(params, images, method="read"))

    def embed(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        out = images_BYX3.copy()
        for chunk, whole in _chunks(images_BYX3):
            bits_BL = np.broadcast_to(message_L.astype(np.float32), (len(whole), len(message_L)))
            rows, columns = whole.shape[1:3]
            out[chunk, :rows, :columns] = learned.to_bytes(np.asarray(embed_fn(whole, bits_BL)))
        return out

    def distance(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        logits = [np.asarray(read_fn(whole)) for _, whole in _chunks(images_BYX3)]
        return bit_errors(np.concatenate(logits) > 0, message_L)

    return Mark(lambda user: message(user, NUM_BITS), embed, distance)


def _chunks(images_BYX3):
    rows, columns = (size // TILE * TILE for size in images_BYX3.shape[1:3])
    if not (rows and columns):
        raise InputError(f"pictures of {images_BYX3.shape[1:3]} pixels; this mark needs {TILE} x {TILE} at least")
    for start in range(0, len(images_BYX3), CHUNK):
        chunk = slice(start, start + CHUNK)
        yield chunk, images_BYX3[chunk, :rows, :columns].astype(np.float32) / 255

"""A mark by a small encoder and decoder that are trained together (HiDDeN's idea, Zhu et al. 2018).

The message becomes a pattern that repeats every 32 pixels; the encoder paints it where the picture's texture hides it,
at a fixed strength, and the decoder averages over all repetitions. So it trains on small cuts and reads pictures of
any size. A picture that the decoder is not sure of is read again where the pattern's repetitions say that it was
rotated or scaled to (`poses`); the training has rotations and crops, and the way back from them.

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
from alignment.watermark import differentiable, learned, poses
from alignment.watermark.marks import Mark, bit_errors, message

TILE = 32  # pixels after which the pattern repeats
CELLS = TILE // 4  # of a tile, as the networks see it
NUM_BITS = 48
PLACES = tuple((top, left) for top in range(4) for left in range(4))  # of a tile's first pixel in a cell
NUM_POSES = 3
SURE = 1.0  # mean logit of a picture that is read as it is
LEAST_SURE = 0.75  # mean logit that a pose must have to count: of many one is always a little surer
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
        features = nn.gelu(self.look(_folded(images_BYX3 - 0.5)))
        blended = nn.gelu(self.blend(jnp.concatenate([features, tiled], axis=-1)))
        change = learned.unfold(learned.unfold(self.paint(blended) + self.direct(tiled)))
        size = jnp.sqrt(jnp.mean(change**2, axis=(1, 2, 3), keepdims=True) + 1e-8)
        return jnp.clip(images_BYX3 + STRENGTH * change / size, 0, 1)

    def read(self, images_BYX3: jax.Array, inside_BYX: jax.Array | None = None) -> jax.Array:
        """A logit a bit [B, L], where tiles begin at the first row and column.

        Args:
            inside_BYX: 1 where there is a pixel; None: everywhere.
        """
        return self.logits(self.tile(images_BYX3, inside_BYX))

    def logits(self, tile_BYXD: jax.Array) -> jax.Array:
        """[B, L] of mean tiles."""
        return self.read_out(tile_BYXD.reshape(len(tile_BYXD), -1))

    def tile(self, images_BYX3: jax.Array, inside_BYX: jax.Array | None = None) -> jax.Array:
        """What the decoder sees in a tile's cells, mean over all tiles [B, CELLS, CELLS, width]."""
        batch, rows, columns = images_BYX3.shape[:3]
        # what stands out of its 4 x 4 neighbours is where a mark is strong and a picture weak
        folded = _folded(images_BYX3 - 0.5)
        local = folded.reshape(*folded.shape[:3], 16, 3)
        stands_out = (8 * (local - local.mean(axis=3, keepdims=True))).reshape(folded.shape)
        x = nn.gelu(self.sharpen(jnp.concatenate([folded, stands_out], axis=-1)))
        x = self.correlate(x).reshape(batch, rows // TILE, CELLS, columns // TILE, CELLS, self.width)
        if inside_BYX is None:
            return x.mean(axis=(1, 3))
        share = inside_BYX.reshape(batch, rows // 4, 4, columns // 4, 4).mean(axis=(2, 4))
        share = share.reshape(batch, rows // TILE, CELLS, columns // TILE, CELLS, 1)
        return (x * share).sum(axis=(1, 3)) / (share.sum(axis=(1, 3)) + 1e-3)

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
    logits: Any = model.apply(params, *differentiable.drawn(marked, distortion_key), method="read")
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, bits_BL))


def read_moved(params: Any, images_BYX3: jax.Array) -> jax.Array:
    """Logits [B, L] of pictures that were rotated or cropped, at the pose and place where the decoder is surest.

    Poses come from the lattice that repetition makes. Where a tile begins is tried on the mean of all tiles' pixels,
    in which the mark stays and the picture does not: it is small, so every pixel can be tried.
    """
    model = EncoderDecoder()
    batch = len(images_BYX3)
    degrees_BP, scales_BP = poses.likeliest(images_BYX3, TILE, NUM_POSES)
    # poses and places become part of the batch, so the program has the decoder once
    many = jnp.repeat(images_BYX3, NUM_POSES, axis=0)
    back = poses.matrix(degrees_BP.reshape(-1), scales_BP.reshape(-1))
    mean = _mean_tile(*poses.sampled(many, back, jnp.zeros((len(many), 2))))
    shifted = jnp.stack([jnp.roll(mean, (-top, -left), axis=(1, 2)) for top, left in PLACES], axis=1)
    # two by two tiles, so that a tile's edge has its neighbours
    repeated = jnp.tile(shifted.reshape(-1, TILE, TILE, 3), (1, 2, 2, 1))
    tile: Any = model.apply(params, repeated, method="tile")
    logits = _from_any_cell(params, tile)
    best_B = jnp.argmax(jnp.mean(jnp.abs(logits), axis=-1).reshape(batch, -1), axis=1)
    pose_B, place_B, cell_B = jnp.unravel_index(best_B, (NUM_POSES, len(PLACES), CELLS**2))
    first_B2 = jnp.asarray(PLACES)[place_B] + 4 * jnp.stack([cell_B // CELLS, cell_B % CELLS], axis=-1)
    degrees_B, scales_B = (jnp.take_along_axis(x, pose_B[:, None], axis=1)[:, 0] for x in (degrees_BP, scales_BP))
    back = poses.matrix(degrees_B, scales_B)
    out: Any = model.apply(
        params, *poses.sampled(images_BYX3, back, jnp.einsum("bij,bj->bi", back, first_B2)), method="read"
    )
    return out


def _from_any_cell(params: Any, tile_BYXD: jax.Array) -> jax.Array:
    """Logits [B, CELLS, CELLS, L] of mean tiles, for each cell that may be the first: a correlation around the tile."""
    last = params["params"]["read_out"]
    kernel_YXDL = jnp.fft.fft2(last["kernel"].reshape(*tile_BYXD.shape[1:], -1), axes=(0, 1))
    waves = jnp.einsum("byxd,yxdl->byxl", jnp.fft.fft2(tile_BYXD, axes=(1, 2)), jnp.conj(kernel_YXDL))
    return jnp.fft.ifft2(waves, axes=(1, 2)).real + last["bias"][None, None, None]


def _mean_tile(images_BYX3: jax.Array, inside_BYX: jax.Array) -> jax.Array:
    """The mean over tiles of what is inside, around grey [B, TILE, TILE, 3]."""
    batch, rows, columns = inside_BYX.shape
    shape = (batch, rows // TILE, TILE, columns // TILE, TILE, -1)
    weight = inside_BYX.reshape(shape)
    # each tile without its own mean, or the number of tiles that reach a pixel would show
    tiles = images_BYX3.reshape(shape)
    own = (tiles * weight).sum(axis=(2, 4), keepdims=True) / (weight.sum(axis=(2, 4), keepdims=True) + 1e-3)
    return 0.5 + ((tiles - own) * weight).sum(axis=(1, 3)) / (weight.sum(axis=(1, 3)) + 1e-3)


def mark(params: Any) -> Mark:
    """The trained networks as a mark of the protocol; rows and columns beyond the last whole tile stay as they are.

    Raises:
        InputError: from the mark's functions, where a picture is smaller than a tile.
    """
    model = EncoderDecoder()
    embed_fn = jax.jit(lambda images, bits: model.apply(params, images, bits, method="embed"))
    read_fn = jax.jit(lambda images: model.apply(params, images, method="read"))
    moved_fn = jax.jit(lambda images: read_moved(params, images))

    def embed(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        out = images_BYX3.copy()
        for chunk, whole in _chunks(images_BYX3):
            bits_BL = np.broadcast_to(message_L.astype(np.float32), (len(whole), len(message_L)))
            rows, columns = whole.shape[1:3]
            out[chunk, :rows, :columns] = learned.to_bytes(np.asarray(embed_fn(whole, bits_BL)))
        return out

    def distance(images_BYX3: np.ndarray, message_L: np.ndarray) -> np.ndarray:
        parts = []
        for _, whole in _chunks(images_BYX3):
            logits_BL = np.array(read_fn(whole))
            sureness_B = np.abs(logits_BL).mean(axis=1)
            if sureness_B.min() < SURE:
                moved_BL = np.asarray(moved_fn(whole))
                is_moved_B = (sureness_B < SURE) & (np.abs(moved_BL).mean(axis=1) > np.maximum(LEAST_SURE, sureness_B))
                logits_BL[is_moved_B] = moved_BL[is_moved_B]
            parts.append(logits_BL)
        return bit_errors(np.concatenate(parts) > 0, message_L)

    return Mark(lambda user: message(user, NUM_BITS), embed, distance)


def _chunks(images_BYX3):
    rows, columns = (size // TILE * TILE for size in images_BYX3.shape[1:3])
    if not (rows and columns):
        raise InputError(f"pictures of {images_BYX3.shape[1:3]} pixels; this mark needs {TILE} x {TILE} at least")
    for start in range(0, len(images_BYX3), CHUNK):
        chunk = slice(start, start + CHUNK)
        yield chunk, images_BYX3[chunk, :rows, :columns].astype(np.float32) / 255

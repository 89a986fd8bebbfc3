"""Attacks that use a network: regeneration by an auto-encoder, projected gradients on an encoder or on a surrogate.

Any encoder and decoder will do, as functions of pictures in [0, 1]. The small ones of this file are trained here; their
attacks bear names of their own, for they are not the paper's.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, D latent channels.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

from alignment import files
from alignment.errors import InputError

ImagesFn = Callable[[jax.Array], jax.Array]
CHUNK = 8  # pictures at a time, so that memory does not grow with the batch


def fold(x_BYXD: jax.Array) -> jax.Array:
    """Squares of 2 x 2 as channels, [B, Y/2, X/2, 4D].

    A convolution of it stands for one with stride 2, whose gradient to the pictures XLA computes slowly on a CPU.
    """
    batch, rows, columns, channels = x_BYXD.shape
    x = x_BYXD.reshape(batch, rows // 2, 2, columns // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows // 2, columns // 2, 4 * channels)


def unfold(x_BYXD: jax.Array) -> jax.Array:
    """The inverse of `fold`."""
    batch, rows, columns, channels = x_BYXD.shape
    x = x_BYXD.reshape(batch, rows, columns, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * rows, 2 * columns, channels // 4)


class AutoEncoder(nn.Module):
    """Four convolutions down to a quarter of the side and back; pictures float32 in [0, 1], sides divisible by 4."""

    width: int = 24
    latent: int = 8

    def setup(self) -> None:
        self.down1 = nn.Conv(self.width, (3, 3), name="down1")
        self.down2 = nn.Conv(self.latent, (3, 3), name="down2")
        self.up1 = nn.Conv(4 * self.width, (3, 3), name="up1")
        self.up2 = nn.Conv(12, (3, 3), name="up2")

    def encode(self, images_BYX3: jax.Array) -> jax.Array:
        return self.down2(fold(nn.gelu(self.down1(fold(images_BYX3 - 0.5)))))

    def decode(self, latent_BYXD: jax.Array) -> jax.Array:
        return 0.5 + unfold(self.up2(nn.gelu(unfold(self.up1(latent_BYXD)))))

    def __call__(self, images_BYX3: jax.Array) -> jax.Array:
        return self.decode(self.encode(images_BYX3))


class Surrogate(nn.Module):
    """A small classifier: one logit a picture, positive for marked; sides divisible by 8."""

    width: int = 16

    @nn.compact
    def __call__(self, images_BYX3: jax.Array) -> jax.Array:
        x = images_BYX3 - 0.5
        for i in range(3):
            x = nn.gelu(nn.Conv(self.width * (i + 1), (3, 3), name=f"conv{i}")(fold(x)))
        return nn.Dense(1, name="head")(jnp.mean(x, axis=(1, 2)))[:, 0]


def reconstruction(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Mean squared error of the auto-encoder."""
    model, images = AutoEncoder(), batch["images"]
    again: Any = model.apply(params, images)
    return jnp.mean((again - images) ** 2)


def cross_entropy(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Loss of the surrogate, with `labels` 1 for marked."""
    logits: Any = Surrogate().apply(params, batch["images"])
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch["labels"]))


def fit(
    loss_fn: Callable[[Any, Mapping[str, jax.Array]], jax.Array],
    model: nn.Module,
    images_BYX3: np.ndarray,
    labels_B: np.ndarray | None = None,
    *,
    steps: int,
    batch_size: int = 16,
    side: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> tuple[Any, list[float]]:
    """Train a small network on random cuts of pictures by Adam; returns parameters and the loss of each step.

    Args:
        images_BYX3: uint8.
        labels_B: of the pictures, where the loss reads them.
        loss_fn: of parameters and a batch of `images`, `step` (which draws follow from) and `labels`.
        side: pixels of a cut; pictures that are smaller are taken whole.
    """
    side = min(side, *images_BYX3.shape[1:3])
    rng = np.random.default_rng(seed)
    params = model.init(jax.random.key(seed), jnp.zeros((1, side, side, 3)))
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))

    @jax.jit
    def update(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for step in range(steps):
        rows = rng.integers(len(images_BYX3), size=batch_size)
        tops, lefts = (rng.integers(size - side + 1, size=batch_size) for size in images_BYX3.shape[1:3])
        cuts = [images_BYX3[i, y : y + side, x : x + side] for i, y, x in zip(rows, tops, lefts)]
        batch = {"images": np.stack(cuts).astype(np.float32) / 255, "step": np.int32(step)}
        if labels_B is not None:
            batch["labels"] = labels_B[rows].astype(np.float32)
        params, opt_state, loss = update(params, opt_state, batch)
        losses.append(loss)
    return params, [float(loss) for loss in losses]


def save(path: str | os.PathLike, params: Any) -> None:
    """Parameters as safetensors, each under its path with slashes."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    content = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in sorted(flat.items())})
    files.write(path, lambda f: f.write(content))


def load(path: str | os.PathLike, model: nn.Module) -> Any:
    """The parameters that `save` wrote for this network.

    Raises:
        InputError: no such file, no safetensors, or the weights of another network, whose first difference is named.
    """
    path = pathlib.Path(path).expanduser()
    try:
        stored = safetensors.numpy.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as e:
        raise InputError(f"{path} cannot be read as safetensors: {e}") from e
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    wanted = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    for name in sorted(wanted.keys() | stored.keys()):
        have = stored[name].shape if name in stored else "nothing"
        need = wanted.get(name, "nothing")
        if have != need:
            raise InputError(
                f"{path} has the weights of another network than {type(model).__name__}: {name} is {have} there, "
                f"and {need} is needed"
            )
    return flax.traverse_util.unflatten_dict({tuple(name.split("/")): value for name, value in stored.items()})


# Attacks


def regenerate(
    images_BYX3: np.ndarray,
    encode_fn: ImagesFn,
    decode_fn: ImagesFn,
    *,
    noise: float,
    seed: int = 0,
) -> np.ndarray:
    """Pictures encoded, moved by noise and decoded, uint8 of the same shape.

    Args:
        encode_fn, decode_fn: of pictures in [0, 1]; a VAE, a diffusion model's noising and denoising, or an
            auto-encoder.
        noise: deviation, in units of the latent's own over the chunk.
    """
    again_fn, out = _regenerator(encode_fn, decode_fn), []
    for start in range(0, len(images_BYX3), CHUNK):
        chunk = images_BYX3[start : start + CHUNK].astype(np.float32) / 255
        out.append(np.asarray(again_fn(chunk, jax.random.key(seed + start), noise)))
    return to_bytes(np.concatenate(out))


@functools.lru_cache(maxsize=8)
def _regenerator(encode_fn: ImagesFn, decode_fn: ImagesFn) -> Callable[..., jax.Array]:
    """Compiled once for all strengths of a grid."""

    def again(images, key, noise):
        latent = encode_fn(images)
        return decode_fn(latent + noise * jnp.std(latent) * jax.random.normal(key, latent.shape))

    return jax.jit(again)


def projected(
    images_BYX3: jax.Array,
    loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
    start_BYX3: jax.Array,
    *,
    epsilon: float | jax.Array,
    steps: int,
    step_share: float = 0.05,
) -> jax.Array:
    """Projected gradient ascent (Madry et al. 2018) on loss_fn(moved, images); returns the moved pictures.

    Every step moves each number by step_share * epsilon along the gradient's sign, and goes back to within epsilon of
    the picture and to [0, 1].

    Args:
        start_BYX3: first change of the pictures, or [1, ...] for all.
        epsilon: in [0, 1].
    """

    def inside(change):
        change = jnp.clip(change, -epsilon, epsilon)
        return jnp.clip(images_BYX3 + change, 0, 1) - images_BYX3

    def step(_, change):
        slope = jax.grad(lambda change: loss_fn(images_BYX3 + change, images_BYX3))(change)
        return inside(change + step_share * epsilon * jnp.sign(slope))

    start = inside(jnp.broadcast_to(start_BYX3, images_BYX3.shape))
    return images_BYX3 + jax.lax.fori_loop(0, steps, step, start)


def attack_embedding(
    images_BYX3: np.ndarray,
    encode_fn: ImagesFn,
    *,
    epsilon: float,
    steps: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Pictures whose embedding lies far from that of the marked ones, uint8, at most epsilon away (in [0, 1])."""
    moved_fn = _embedding_mover(encode_fn, steps)
    out = []
    for start in range(0, len(images_BYX3), CHUNK):
        chunk = images_BYX3[start : start + CHUNK].astype(np.float32) / 255
        first = jax.random.uniform(jax.random.key(seed + start), chunk.shape, minval=-epsilon, maxval=epsilon)
        out.append(np.asarray(moved_fn(chunk, first, epsilon)))
    return to_bytes(np.concatenate(out))


def check_encoder(encode_fn: ImagesFn, side: int, name: str) -> None:
    """Refuse an encoder that JAX cannot trace, and so cannot differentiate.

    Args:
        side: pixels of the pictures.
        name: of the attack, for people.
    """
    try:
        out = jax.eval_shape(encode_fn, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    except Exception as e:  # any: the function is a user's
        reason = str(e).strip().partition("\n")[0]
        raise InputError(f"{name} differentiates its encoder, which JAX cannot trace: {reason}") from e
    if not isinstance(out, jax.ShapeDtypeStruct) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise InputError(f"{name}: the encoder returns {out}; one array of floats is needed")


@functools.lru_cache(maxsize=8)
def _embedding_mover(encode_fn: ImagesFn, steps: int) -> Callable[..., jax.Array]:
    """Compiled once for all epsilons of a grid."""

    def far(moved, images):
        return jnp.mean((encode_fn(moved) - jax.lax.stop_gradient(encode_fn(images))) ** 2)

    return jax.jit(lambda images, start, epsilon: projected(images, far, start, epsilon=epsilon, steps=steps))


@functools.lru_cache(maxsize=8)
def _surrogate_mover(logits_fn: ImagesFn, steps: int) -> Callable[..., jax.Array]:
    def move(images, start, epsilon):
        return projected(images, lambda moved, _: -jnp.sum(logits_fn(moved)), start, epsilon=epsilon, steps=steps)

    return jax.jit(move)


def attack_surrogate(
    images_BYX3: np.ndarray,
    logits_fn: ImagesFn,
    *,
    epsilon: float,
    steps: int = 200,
    warm_up: int = 21,
) -> np.ndarray:
    """Pictures that a surrogate takes for unmarked, uint8, at most epsilon away.

    As the authors' code has it, the attack starts from the mean change of `warm_up` batches of four pictures, averaged
    over pictures and colours: one grey map.

    Args:
        logits_fn: positive for marked.
        warm_up: batches, taken from the pictures again where they are too few.
    """
    moved_fn = _surrogate_mover(logits_fn, steps)
    none = np.zeros((1, *images_BYX3.shape[1:]), np.float32)
    total, batches = none[0, ..., :1], min(warm_up, -(-len(images_BYX3) // 4))
    for i in range(batches):
        chunk = np.take(images_BYX3, range(4 * i, 4 * i + 4), axis=0, mode="wrap").astype(np.float32) / 255
        total = total + np.asarray(moved_fn(chunk, none, epsilon) - chunk).mean(axis=(0, 3))[..., None]
    start = np.broadcast_to(total / batches, none.shape)
    out = []
    for first in range(0, len(images_BYX3), CHUNK):
        chunk = images_BYX3[first : first + CHUNK].astype(np.float32) / 255
        out.append(np.asarray(moved_fn(chunk, start, epsilon)))
    return to_bytes(np.concatenate(out))


def to_bytes(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(255 * images), 0, 255).astype(np.uint8)

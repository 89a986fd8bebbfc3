"""CLIP's pictures (Radford et al. 2021, arXiv:2103.00020) with a user's own weights: CLIP-FID and two scores by them.

Layers bear transformers' names (`vision_model.embeddings.class_embedding`, ...). CLIP-FID is Fréchet's distance of the
projected features of OpenAI's ViT-B/32, as clean-fid has it. The scores for aesthetics and artifacts are linear heads
of the `aesthetics-scorer` project over the pooled output of LAION's ViT-H/14, scaled to unit length, as WAVES has them.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, T patches and the class, D width, H heads, K head
width, F features.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from alignment.watermark import inception, weights
from alignment.watermark.weights import Shapes, Weights

SIDE = 224  # pixels that the networks read
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHUNK = 8  # pictures at a time
HEAD = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")  # between them: dropout, which scores leave out
HEAD_WIDTH = 1_024
NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A network of CLIP's family. `is_quick`: its GELU is x sigmoid(1.702 x); `features`: of its projection."""

    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    features: int
    is_quick: bool
    side: int = SIDE


BASE_32 = Sizes(patch=32, width=768, layers=12, heads=12, hidden=3_072, features=512, is_quick=True)
HUGE_14 = Sizes(patch=14, width=1_280, layers=32, heads=16, hidden=5_120, features=1_024, is_quick=False)


def shapes(sizes: Sizes, *, is_projected: bool) -> Shapes:
    """Names and shapes of the weights that are read; those of texts are not."""
    D, tokens = sizes.width, (sizes.side // sizes.patch) ** 2 + 1
    out: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (D,),
        "vision_model.embeddings.patch_embedding.weight": (D, 3, sizes.patch, sizes.patch),
        "vision_model.embeddings.position_embedding.weight": (tokens, D),
    }

    def add(name: str, after: int, *before: int) -> None:
        out.update({f"vision_model.{name}.weight": (after, *before), f"vision_model.{name}.bias": (after,)})

    add("pre_layrnorm", D)
    for i in range(sizes.layers):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            add(f"{layer}.self_attn.{part}", D, D)
        add(f"{layer}.mlp.fc1", sizes.hidden, D)
        add(f"{layer}.mlp.fc2", D, sizes.hidden)
        for part in ("layer_norm1", "layer_norm2"):
            add(f"{layer}.{part}", D)
    add("post_layernorm", D)
    return out | ({"visual_projection.weight": (sizes.features, D)} if is_projected else {})


def head_shapes(width: int) -> Shapes:
    """Shapes of a score's head."""
    befores = (width, *[HEAD_WIDTH] * (len(HEAD) - 1))
    afters = (*befores[1:], 1)
    parts = [
        {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
        for name, before, after in zip(HEAD, befores, afters)
    ]
    return {name: shape for part in parts for name, shape in part.items()}


def cut(images_BYX3: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The shorter side becomes `side` pixels by Pillow's bicubic filter, then the middle square; bytes."""
    out = []
    for image in images_BYX3:
        rows, columns = image.shape[:2]
        short = min(rows, columns)
        size = (columns * side // short, rows * side // short)
        resized = PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BICUBIC)
        top, left = (size[1] - side) // 2, (size[0] - side) // 2
        out.append(np.asarray(resized)[top : top + side, left : left + side])
    return np.stack(out)


def pooled(params: Weights, images_BYX3: jax.Array | np.ndarray, sizes: Sizes) -> jax.Array:
    """The class token behind the last norm [B, D]; bytes, or numbers in [0, 1], of `sizes.side` pixels."""
    mean, deviation = (jnp.array(x)[None, :, None, None] for x in (MEAN, DEVIATION))
    x = (weights.planes_first(images_BYX3) - mean) / deviation
    x = weights.conv(x, params, "vision_model.embeddings.patch_embedding", stride=sizes.patch)
    x_BTD = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    first_D = jnp.asarray(params["vision_model.embeddings.class_embedding"])
    x_BTD = jnp.concatenate([jnp.broadcast_to(first_D[None, None], (len(x_BTD), 1, sizes.width)), x_BTD], axis=1)
    x_BTD += jnp.asarray(params["vision_model.embeddings.position_embedding.weight"])[None]
    x_BTD = _norm(x_BTD, params, "vision_model.pre_layrnorm")
    for i in range(sizes.layers):
        layer = f"vision_model.encoder.layers.{i}"
        x_BTD += _attended(_norm(x_BTD, params, f"{layer}.layer_norm1"), params, f"{layer}.self_attn", sizes.heads)
        hidden = _dense(_norm(x_BTD, params, f"{layer}.layer_norm2"), params, f"{layer}.mlp.fc1")
        hidden = hidden * jax.nn.sigmoid(1.702 * hidden) if sizes.is_quick else jax.nn.gelu(hidden, approximate=False)
        x_BTD += _dense(hidden, params, f"{layer}.mlp.fc2")
    return _norm(x_BTD[:, :1], params, "vision_model.post_layernorm")[:, 0]


def _norm(x_BTD: jax.Array, params: Weights, name: str) -> jax.Array:
    centred = x_BTD - x_BTD.mean(axis=-1, keepdims=True)
    scaled = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + NORM_EPS)
    return scaled * params[f"{name}.weight"][None, None] + params[f"{name}.bias"][None, None]


def _dense(x_BTD: jax.Array, params: Weights, name: str) -> jax.Array:
    return x_BTD @ params[f"{name}.weight"].T + params[f"{name}.bias"][None, None]


def _attended(x_BTD: jax.Array, params: Weights, name: str, heads: int) -> jax.Array:
    B, T, D = x_BTD.shape
    q, k, v = (_dense(x_BTD, params, f"{name}.{p}_proj").reshape(B, T, heads, D // heads) for p in "qkv")
    weights_BHTS = jax.nn.softmax(jnp.einsum("BTHK,BSHK->BHTS", q, k) / (D // heads) ** 0.5)
    return _dense(jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v).reshape(B, T, D), params, f"{name}.out_proj")


def features(params: Weights, images_BYX3: jax.Array | np.ndarray, sizes: Sizes = BASE_32) -> jax.Array:
    """The projected features [B, F]."""
    return pooled(params, images_BYX3, sizes) @ params["visual_projection.weight"].T


def score(head: Weights, pooled_BD: jax.Array) -> jax.Array:
    """A score of each picture [B], of its pooled output at unit length."""
    x = pooled_BD / jnp.linalg.norm(pooled_BD, axis=-1, keepdims=True)
    for name in HEAD:
        x = weights.dense(x, head, name)
    return x[:, 0]


def load(path: str | os.PathLike, sizes: Sizes, *, is_projected: bool) -> dict[str, np.ndarray]:
    """The weights of a safetensors file.

    Raises:
        InputError: no safetensors, or weights of another network.
    """
    what = f"CLIP of {sizes.layers} layers and width {sizes.width}"
    tail = "vision_model.embeddings.class_embedding"
    return weights.load(path, tail, shapes(sizes, is_projected=is_projected), what=what)


def load_head(path: str | os.PathLike, width: int) -> dict[str, np.ndarray]:
    """The weights of a score's head.

    Raises:
        InputError: see `load`.
    """
    return weights.load(path, f"{HEAD[0]}.weight", head_shapes(width), what=f"a score over {width} features")


def _over(fn: Callable[[np.ndarray], jax.Array], images_BYX3: np.ndarray, side: int) -> np.ndarray:
    small = cut(images_BYX3, side)
    return np.concatenate([np.asarray(fn(small[i : i + CHUNK])) for i in range(0, len(small), CHUNK)])


@functools.lru_cache(maxsize=2)
def opened(path: str, sizes: Sizes = BASE_32) -> Callable[[np.ndarray, np.ndarray], float]:
    """CLIP-FID of pictures before and after an attack; compiled once for a grid.

    Raises:
        InputError: see `load`; from the metric: fewer than two pictures.
    """
    features_fn = _network(features, load(path, sizes, is_projected=True), sizes)

    def metric(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> float:
        return inception.frechet(*(_over(features_fn, x, sizes.side) for x in (clean_BYX3, attacked_BYX3)))

    return metric


@functools.lru_cache(maxsize=4)
def opened_score(path: str, head_path: str, sizes: Sizes = HUGE_14) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """By how much a score of clean pictures is above that of attacked ones [B]; compiled once for a grid.

    Raises:
        InputError: see `load`.
    """
    pooled_fn, head = _pooler(path, sizes), load_head(head_path, sizes.width)
    score_fn = jax.jit(lambda pooled_BD: score(head, pooled_BD))

    def metric(clean_BYX3: np.ndarray, attacked_BYX3: np.ndarray) -> np.ndarray:
        clean, attacked = (
            np.asarray(score_fn(_over(pooled_fn, x, sizes.side)), float) for x in (clean_BYX3, attacked_BYX3)
        )
        return clean - attacked

    return metric


@functools.lru_cache(maxsize=1)
def _pooler(path: str, sizes: Sizes) -> Callable[[np.ndarray], jax.Array]:
    """One network for both scores: its weights are 2.5 GB."""
    return _network(pooled, load(path, sizes, is_projected=False), sizes)


def _network(fn: Callable[..., jax.Array], params: Weights, sizes: Sizes) -> Callable[[np.ndarray], jax.Array]:
    # weights are an argument: as constants of the program XLA would copy them and try to fold them
    compiled_fn, own = jax.jit(functools.partial(fn, sizes=sizes)), jax.device_put(dict(params))
    return lambda images: compiled_fn(own, images)

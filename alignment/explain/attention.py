"""Attention rollout for vision transformers.

Dimensions: N images, K targets an image, Y X rows and columns of the image, C channels, H heads, T tokens (S those
attended to), I J rows and columns of patches.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignment.errors import InputError, one_of
from alignment.explain import gradcam

HEADS: dict[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def roll_out(attention_NHTS: list[jax.Array], *, heads: str = "mean", residual: float = 0.5) -> jax.Array:
    """Where each token's content came from, by Eq. 1 of Abnar & Zuidema 2020 (arXiv:2005.00928).

    A_l = residual I + (1 - residual) W_l with rows scaled to sum to 1, and the rollout is A_L ... A_2 A_1.

    Args:
        attention_NHTS: attention weights of each block, the first block first; rows sum to 1.
        heads: how the heads become one, "mean", "max" or "min".
        residual: share of the identity, for the residual connection around the attention; the paper takes 0.5.

    Returns:
        shares_NTS of the tokens that enter the first block; rows sum to 1.
    """
    one_of("heads", heads, HEADS)
    if not 0 <= residual <= 1:
        raise InputError(f"residual={residual} is a share of the identity, from 0 to 1; the paper takes 0.5")
    shares_NTS: jax.Array | None = None
    for block_NHTS in attention_NHTS:
        joined_NTS = HEADS[heads](block_NHTS.astype(jnp.float32), axis=1)
        mixed_NTS = (1 - residual) * joined_NTS + residual * jnp.eye(joined_NTS.shape[-1])[None]
        mixed_NTS = mixed_NTS / mixed_NTS.sum(-1, keepdims=True)  # with "max" or "min" rows no longer sum to 1
        # Later blocks multiply from the left: they read what earlier ones have mixed.
        shares_NTS = mixed_NTS if shares_NTS is None else mixed_NTS @ shares_NTS
    if shares_NTS is None:
        raise InputError("there are no attention weights to roll out")
    return shares_NTS


def rollout(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    heads: str = "mean",
    residual: float = 0.5,
) -> jax.Array:
    """Attention rollout as a map of the image; it does not depend on the class, so an image's K maps are equal.

    The network returns (logits, activations) with the weights of its blocks as "attention0", "attention1", ..., each
    [N, H, T, T]. Where a class token (or more) stands before the patches, the map is the first token's row; where there
    is none, the mean row of the patches. It is resized bilinearly and not scaled.

    Raises:
        InputError: the network returns no attention weights.
    """
    out = apply_fn(variables, x_NYXC)
    activations = out[1] if isinstance(out, tuple | list) and len(out) > 1 else {}
    # "attention10" sorts before "attention2" as text, so blocks are sorted by their number
    matches = {name: re.fullmatch(r"attention(\d+)", name) for name in activations}
    weights = {int(match[1]): activations[name] for name, match in matches.items() if match}
    if not weights:
        raise InputError(
            "attention_rollout reads activations 'attention0', 'attention1', ... [N, heads, T, T] beside the logits, "
            f"and this network returns {', '.join(activations) or 'logits alone'}; it is for vision transformers"
        )
    shares_NTS = roll_out([weights[block] for block in sorted(weights)], heads=heads, residual=residual)
    height, width = x_NYXC.shape[1:3]
    rows, columns = gradcam.grid(shares_NTS.shape[-1], height, width)
    has_class_token = rows * columns < shares_NTS.shape[-1]
    # The head reads the class token, or where there is none the mean of the patches.
    from_NS = shares_NTS[:, 0] if has_class_token else shares_NTS.mean(1)
    maps_NKIJ = gradcam.as_grid(from_NS, height, width, 1)[:, None]
    maps_NKYX = gradcam.resize(maps_NKIJ, height, width)
    return jnp.broadcast_to(maps_NKYX, (*targets_NK.shape, height, width))

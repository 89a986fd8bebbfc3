"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and its length-scaling variants.

Conventions are those of Hugging Face checkpoints: dimension i of a head turns together with dimension i + K/2.

Dimensions: B batch, T time, H heads, K head width, J = K/2 frequencies.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from alignment.errors import InputError


def frequencies(head_dim: int, theta: float, scaling: Mapping | None = None) -> tuple[np.ndarray, float]:
    """Radians per position of each dimension pair, and a factor on the tables (1 except for yarn).

    Args:
        head_dim: K, even.
        theta: base wavelength, > 0.
        scaling: None, or the `rope_scaling` of a Hugging Face config: `rope_type` is a key of `SCALINGS`, the rest are
            its arguments.
    """
    plain_J = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scaling = dict(scaling or {})
    kind = scaling.get("rope_type", scaling.get("type", "default")) or "default"
    if kind not in SCALINGS:
        raise InputError(f"rope_scaling of type {kind!r} is not supported; supported: {', '.join(SCALINGS)}")
    try:
        scaled_J, factor = SCALINGS[kind](plain_J, theta, scaling)
    except KeyError as e:
        raise InputError(f"rope_scaling {scaling} lacks {e.args[0]!r}, which rope_type {kind!r} needs") from None
    return scaled_J.astype(np.float32), factor


def _linear(plain_J, scaling):
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): every frequency divided by `factor`."""
    return plain_J / scaling["factor"], 1.0


def _llama3(plain_J, scaling):
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, those between are blended linearly."""
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns_J = scaling["original_max_position_embeddings"] * plain_J / (2 * math.pi)  # in the original context
    keep_J = np.clip((turns_J - low) / (high - low), 0.0, 1.0)
    return plain_J * (keep_J + (1 - keep_J) / factor), 1.0


def _yarn(plain_J, theta, scaling):
    """YaRN (Peng et al. 2023, arXiv:2309.00071), Eq. 17-22, with the bounds rounded as in common checkpoints."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    fast, slow = scaling.get("beta_fast") or 32.0, scaling.get("beta_slow") or 1.0
    head_dim = 2 * len(plain_J)

    # The pair of dimensions, as a real number, that makes so many turns within the original context.
    def dimension(turns):
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0  # so that the ramp below divides by something; common code adds the same
    stretch_J = np.clip((np.arange(len(plain_J)) - low) / (high - low), 0.0, 1.0)
    return plain_J * (1 - stretch_J + stretch_J / factor), _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling) -> float:
    """Eq. 22 (a temperature on the logits, put on both tables), or the ratio of DeepSeek-style configs."""

    def mscale(weight):
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)


# (plain_J, theta, scaling) -> (scaled_J, factor on the tables)
SCALINGS = {
    "default": lambda plain_J, theta, scaling: (plain_J, 1.0),
    "linear": lambda plain_J, theta, scaling: _linear(plain_J, scaling),
    "llama3": lambda plain_J, theta, scaling: _llama3(plain_J, scaling),
    "yarn": _yarn,
}


def tables(positions_BT: jax.Array, frequencies_J: np.ndarray, factor: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B,T,1,J] in fp32, whatever the model computes in."""
    # bfloat16 has 8 bits: positions beyond 256 would share their angles.
    angles_BTJ = positions_BT.astype(jnp.float32)[..., None] * jnp.asarray(frequencies_J)[None, None]
    return jnp.cos(angles_BTJ)[:, :, None] * factor, jnp.sin(angles_BTJ)[:, :, None] * factor


def tables_apart(
    positions_BT: jax.Array, frequencies_J: np.ndarray, factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """`tables` for a network whose layers stand in one program: on a CPU, arrays that are made once.

    There the compiler would move sines and cosines into each loop that turns queries or keys, of every layer and of its
    backward pass, and compute them anew for each head.
    """
    plain_fn = functools.partial(tables, frequencies_J=frequencies_J, factor=factor)

    def apart_fn(positions_BT):
        with set_xla_metadata(inlineable="false"):  # the result of a call that stays one is not moved elsewhere
            return jax.jit(plain_fn)(positions_BT)

    return jax.lax.platform_dependent(positions_BT, cpu=apart_fn, default=plain_fn)


def rotate(x_BTHK: jax.Array, cos_BT1J: jax.Array, sin_BT1J: jax.Array) -> jax.Array:
    """Turn each (i, i + K/2) pair by its position's angle; computed in at least fp32, returned in x's dtype."""
    first_BTHJ, second_BTHJ = jnp.split(x_BTHK.astype(jnp.promote_types(x_BTHK.dtype, jnp.float32)), 2, axis=-1)
    turned_first_BTHJ = first_BTHJ * cos_BT1J - second_BTHJ * sin_BT1J
    turned_second_BTHJ = second_BTHJ * cos_BT1J + first_BTHJ * sin_BT1J
    return jnp.concatenate([turned_first_BTHJ, turned_second_BTHJ], axis=-1).astype(x_BTHK.dtype)

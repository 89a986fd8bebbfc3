"""Attacks by name: distortions, attacks by networks that are trained here, by a user's own, and the paper's.

The small networks' attacks bear names of their own, and so do those of a user's encoder and decoder. The paper's
attacks whose weights are not there are listed and not run; nothing stands in for them.
"""

import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.watermark import distortions
from alignment.watermark.distortions import COMBINED, SINGLE
from experiments.image_watermarks import networks

REGENERATE, EMBED, CLASSIFY = "Regen-Small", "AdvEmb-Small", "AdvCls-Small"
CLASSIFY_REAL, CLASSIFY_USERS = "AdvCls-Real&WM-Small", "AdvCls-WM1&WM2-Small"
RN18 = "AdvEmbB-RN18"  # the paper's, with a user's weights
EMBED_OWN = "AdvEmb-Own"
TIMES = {  # passes of a regeneration; each of a rinse is weaker by their number, as the paper's ranges are
    REGENERATE: 1,
    "Rinse-2x-Small": 2,
    "Rinse-4x-Small": 4,
    "Regen-Own": 1,
    "Rinse-2x-Own": 2,
    "Rinse-4x-Own": 4,
}
REGENERATE_OWN = tuple(name for name in TIMES if name.endswith("-Own"))
OWN = (*REGENERATE_OWN, EMBED_OWN)  # by a user's file of functions
AUTO_ENCODED = (*(name for name in TIMES if name not in OWN), EMBED)  # by the small auto-encoder
SURROGATES = {CLASSIFY: "unmarked", CLASSIFY_REAL: "real", CLASSIFY_USERS: "users"}  # what marked pictures are beside
SMALL = (*AUTO_ENCODED, *SURROGATES)
GRADIENT = (EMBED, EMBED_OWN, RN18, *SURROGATES)
LEARNED = (*SMALL, *OWN, RN18)
NAMES = (*distortions.NAMES, *LEARNED)
DEFAULT = (*distortions.NAMES, *AUTO_ENCODED, CLASSIFY)
CATEGORIES = {
    "distortion, single": tuple(SINGLE),
    "distortion, combined": tuple(COMBINED),
    "regeneration, small": (REGENERATE,),
    "rinsing, small": ("Rinse-2x-Small", "Rinse-4x-Small"),
    "regeneration, own": ("Regen-Own",),
    "rinsing, own": ("Rinse-2x-Own", "Rinse-4x-Own"),
    "embedding, small": (EMBED,),
    "embedding, own": (EMBED_OWN,),
    "embedding, black box": (RN18,),
    "surrogate, small": tuple(SURROGATES),
}
NOT_RUN = "not run (weights missing)"
MISSING = (  # the paper's by networks
    "Regen-Diff",
    "Regen-DiffP",
    "Regen-VAE",
    "Regen-KLVAE",
    "Rinse-2xDiff",
    "Rinse-4xDiff",
    "AdvEmbG-KLVAE8",
    RN18,
    "AdvEmbB-CLIP",
    "AdvEmbB-KLVAE16",
    "AdvEmbB-SdxlVAE",
    "AdvCls-UnWM&WM",
    "AdvCls-Real&WM",
    "AdvCls-WM1&WM2",
)
MISSING_MARKS = ("tree_ring", "stable_signature", "stegastamp")
MOST = 8 / 255  # epsilon of the strongest attack by gradients
AUTO_ENCODER = "auto_encoder.safetensors"


def surrogate_file(mark: str, attack: str = CLASSIFY) -> str:
    beside = SURROGATES[attack]
    return f"surrogate-{mark}.safetensors" if attack == CLASSIFY else f"surrogate-{beside}-{mark}.safetensors"


def check(names: Collection[str]) -> None:
    """Refuse the paper's attacks whose weights are not there, apart from unknown names."""
    for name in names:
        if name in MISSING and name != RN18:
            raise InputError(
                f"attacks: {name} needs trained weights that are not there; leave it out (the leaderboard lists it as "
                f"'{NOT_RUN}'), or take {', '.join(SMALL)} with the small networks that are trained here, or "
                f"{', '.join(OWN)} with yours"
            )


def category(name: str) -> str:
    return next(category for category, names in CATEGORIES.items() if name in names)


def apply(
    name: str,
    images_BYX3: np.ndarray,
    strength: float,
    *,
    mark: str,
    weights: str,
    seed: int,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
) -> np.ndarray:
    """The pictures under an attack, uint8 of the same shape.

    Args:
        mark: whose surrogate is attacked.
        weights: the folder of the small networks.
        options: `steps` of projected gradients, `noise` of the strongest regeneration.
        given: a user's own weights and functions.
    """
    if name in distortions.NAMES:
        return distortions.batch(name, images_BYX3, strength, seed=seed)
    from alignment.watermark import learned, regenerating  # imports JAX, which a grid of distortions does not need

    if name in GRADIENT:
        more = {"epsilon": MOST * strength, "steps": options["steps"]}
        if name in SURROGATES:
            logits_fn = networks.small(str(pathlib.Path(weights, surrogate_file(mark, name))), "Surrogate")
            return learned.attack_surrogate(images_BYX3, logits_fn, **more)
        return learned.attack_embedding(images_BYX3, encoder(name, weights, given), seed=seed, **more)
    noise = options["noise"] * strength / TIMES[name]
    if name not in OWN:
        encode_fn, decode_fn = (
            networks.small(str(pathlib.Path(weights, AUTO_ENCODER)), method) for method in ("encode", "decode")
        )

        def again(images: np.ndarray, seed: int) -> np.ndarray:
            return learned.regenerate(images, encode_fn, decode_fn, noise=noise, seed=seed)
    else:
        calls = own_calls(given)

        def again(images: np.ndarray, seed: int) -> np.ndarray:
            if len(calls) == 2:
                return regenerating.through(images, *calls, noise=noise, seed=seed)
            whole_fn = functools.partial(calls[0], strength=strength, times=TIMES[name])
            return regenerating.by_call(images, lambda chunk, seed: whole_fn(chunk, seed=seed), seed=seed)

    return regenerating.rinse(images_BYX3, again, times=TIMES[name], seed=seed)


def encoder(name: str, weights: str, given: Mapping[str, Any]) -> Any:
    """The encoder of an attack on embeddings, the same object at every call."""
    if name == EMBED:
        return networks.small(str(pathlib.Path(weights, AUTO_ENCODER)), "encode")
    if name == RN18:
        from alignment.watermark import encoders

        return encoders.resnet18(given["resnet18"])
    need = f"{EMBED_OWN} needs encode, of jax.numpy"
    return networks.function(given["network"]["calls"], "encode", "given.network.calls", need)


def own_calls(given: Mapping[str, Any]) -> tuple[Any, ...]:
    """A user's function `regenerate`, or, where there is none, `encode` and `decode`."""
    path, setting = given["network"]["calls"], "given.network.calls"
    regenerate_fn = getattr(networks.user_file(path, setting), "regenerate", None)
    if callable(regenerate_fn):
        return (regenerate_fn,)
    need = f"{', '.join(REGENERATE_OWN)} need encode and decode, or regenerate"
    return tuple(networks.function(path, name, setting, need) for name in ("encode", "decode"))

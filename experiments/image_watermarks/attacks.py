"""Attacks by name: distortions, attacks with a small network trained here, and the paper's that need weights.

The small networks' attacks bear names of their own. The paper's attacks whose weights are not there are listed and not
run; nothing stands in for them.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.watermark import distortions
from alignment.watermark.distortions import COMBINED, SINGLE

REGENERATE, EMBED, CLASSIFY = "Regen-Small", "AdvEmb-Small", "AdvCls-Small"
CATEGORIES = {
    "distortion, single": tuple(SINGLE),
    "distortion, combined": tuple(COMBINED),
    "regeneration, small": (REGENERATE,),
    "embedding, small": (EMBED,),
    "surrogate, small": (CLASSIFY,),
}
LEARNED = (REGENERATE, EMBED, CLASSIFY)
NAMES = (*distortions.NAMES, *LEARNED)
NOT_RUN = "not run (weights missing)"
MISSING = (
    "Regen-Diff",
    "Regen-DiffP",
    "Regen-VAE",
    "Regen-KLVAE",
    "Rinse-2xDiff",
    "Rinse-4xDiff",
    "AdvEmbG-KLVAE8",
    "AdvEmbB-RN18",
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


def surrogate_file(mark: str) -> str:
    return f"surrogate-{mark}.safetensors"


def check(names: tuple[str, ...]) -> None:
    """Refuse the paper's attacks whose weights are not there, apart from unknown names."""
    for name in names:
        if name in MISSING:
            raise InputError(
                f"attacks: {name} needs trained weights that are not there; leave it out (the leaderboard lists it as "
                f"'{NOT_RUN}'), or take {', '.join(LEARNED)} with the small networks that are trained here"
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
) -> np.ndarray:
    """The pictures under an attack, uint8 of the same shape.

    Args:
        mark: whose surrogate is attacked.
        weights: the folder of the small networks.
        options: `steps` of projected gradients, `noise` of the strongest regeneration.
    """
    if name in distortions.NAMES:
        return distortions.batch(name, images_BYX3, strength, seed=seed)
    from alignment.watermark import learned  # imports JAX, which the workers of a grid of distortions need not

    if name == CLASSIFY:
        logits_fn = _network(str(pathlib.Path(weights, surrogate_file(mark))), "Surrogate")
        return learned.attack_surrogate(images_BYX3, logits_fn, epsilon=MOST * strength, steps=options["steps"])
    encode_fn, decode_fn = (
        _network(str(pathlib.Path(weights, AUTO_ENCODER)), method) for method in ("encode", "decode")
    )
    if name == EMBED:
        more = {"epsilon": MOST * strength, "steps": options["steps"]}
        return learned.attack_embedding(images_BYX3, encode_fn, seed=seed, **more)
    return learned.regenerate(images_BYX3, encode_fn, decode_fn, noise=options["noise"] * strength, seed=seed)


@functools.lru_cache(maxsize=16)
def _network(path: str, what: str) -> Any:
    """A small network as a function of its input: `Surrogate`, or the auto-encoder's method."""
    from alignment.watermark import learned

    if what == "Surrogate":
        model: Any = learned.Surrogate()
        return functools.partial(model.apply, learned.load(path, model))
    model = learned.AutoEncoder()
    return functools.partial(model.apply, learned.load(path, model), method=what)

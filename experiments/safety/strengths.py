"""A model with an adapter beside its weights, at several strengths."""

import dataclasses
import hashlib
import pathlib

import jax
import jax.numpy as jnp

from alignment.errors import InputError
from alignment.models import peft_adapters, tensors
from alignment.train import adapters, language_model
from experiments.decoding.models import Model


def check(source: str, strengths: tuple[float, ...]) -> None:
    """Refuse an adapter that is not there, and strengths that are not positive or occur twice."""
    if not source:
        return
    adapters.check_source(source)
    if not strengths or not all(strength > 0 for strength in strengths) or len(set(strengths)) < len(strengths):
        raise InputError(
            f"defence.strengths={tuple(strengths)} must be positive numbers, each once, such as (0.5, 1.0); 1 is the "
            "adapter as it was trained"
        )


def digest(source: str, model: Model) -> str:
    """A hash of the adapter's files.

    Raises:
        InputError: it is an adapter of other weights than the model's.
    """
    kind, _, name = source.partition(":")
    if kind == "run":
        note = adapters.read_note(name)
        assert note is not None
        if note["weights"] != language_model.digest(model.init_from):
            raise InputError(
                f"defence.adapter={source!r} was trained on {note['base'] or 'weights of its own'!r}, whose weights "
                f"are not those of init_from={model.name!r}; measure the model that it was trained on"
            )
        return language_model.digest(source)
    folder = pathlib.Path(name)
    content = [(folder / file).read_bytes() for file in (peft_adapters.CONFIG, tensors.ADAPTER)]
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]


def attached(model: Model, source: str, strength: float) -> Model:
    """The model with the adapter at `strength` times its own scale; the base weights are shared."""
    kind, _, name = source.partition(":")
    if kind == "run":
        adapter, params = adapters.load(name, model.network, model.mesh)
    else:
        adapter, params = peft_adapters.load(name, model.network)
        params = jax.tree.map(jnp.asarray, params)
    scales = {layer: tuple(strength * scale for scale in of_layer) for layer, of_layer in adapter.scales.items()}
    adapter = dataclasses.replace(adapter, scales=scales)
    return dataclasses.replace(model, params=adapter.attach(model.params, params))

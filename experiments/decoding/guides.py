"""Guides of a door of the decoder: adapters of its model or other models, by which its answers are steered.

See alignment/decoding/guided.py. A door names each guide; requests give the names weights, and what they do not name
weighs 0.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import xxhash

from alignment import errors
from alignment.decoding.requests import MAX_WEIGHT
from alignment.errors import InputError
from alignment.models import decoder, lora, peft_adapters, tensors
from alignment.train import adapters, language_model
from data.tokens import pieces, tokenizer
from experiments.decoding import models
from experiments.decoding.models import Model

BASE = "base"  # the model itself, among the names of weights
KINDS = ("run", "peft", "hf", "gguf")


@dataclasses.dataclass(frozen=True)
class Guide:
    """A guide as the config names it.

    Attributes:
        source: run:<workdir>, peft:<folder>, hf:<folder or hub id> or gguf:<file>.
        weight: of its log-probabilities, where a request says nothing.
    """

    name: str
    source: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Guides:
    """The guides of an opened model; `load` brings their weights.

    Attributes:
        toks: for each guide the tokenizer that writes its prompts; None: it reads the model's.
        members: for each guide its network or adapter, and its parameters; () until `load`.
        digest: of all guides' weights; "" without any.
    """

    all: tuple[Guide, ...] = ()
    toks: tuple[tokenizer.Tokenizer | None, ...] = ()
    members: tuple[tuple[decoder.DecoderLM | lora.Adapter, Any], ...] = ()
    digest: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(guide.name for guide in self.all)

    @property
    def weights(self) -> tuple[float, ...]:
        """Where a request says nothing."""
        return tuple(guide.weight for guide in self.all)

    def weights_of(self, wanted: Mapping[str, float]) -> dict[str, Any]:
        """The weights of a request's names as arguments of `Request`.

        Raises:
            InputError: a name that is not served.
        """
        for name in wanted:
            errors.one_of("guide", name, (*self.names, BASE))
        own = {"guide_weights": tuple(float(wanted.get(name, 0.0)) for name in self.names)}
        return own | {"base_weight": float(wanted.get(BASE, 1.0))}

    def prompts(self, text: str, ids: Sequence[int]) -> dict[str, Any]:
        """A text that is to be gone on with, as arguments of `Request`; `ids` is what the model reads."""
        return self._prompts(ids, lambda tok: tok.encode(text, add_bos=tok.adds_bos))

    def chats(self, messages: Sequence[Mapping[str, Any]], ids: Sequence[int], **variables: Any) -> dict[str, Any]:
        """A conversation as each guide's template writes it, as arguments of `Request`."""
        options: dict[str, Any] = {"add_generation_prompt": True, **variables}
        return self._prompts(ids, lambda tok: tok.encode(tok.render(messages, **options)))

    def _prompts(self, ids, encode_fn):
        if all(tok is None for tok in self.toks):
            return {}
        return {"guide_prompts": [ids if tok is None else encode_fn(tok) for tok in self.toks]}


def settings() -> dict[str, Any]:
    """The part of a door's config."""
    return dict(
        guides=(),  # run:<workdir>, peft:<folder>, hf:<folder or hub id> or gguf:<file>; NAME=run:... names it
        guide_weights=(),  # of each guide's log-probabilities; (): 1 for each
    )


def parse(c: ml_collections.ConfigDict) -> tuple[Guide, ...]:
    """The guides of a config.

    Raises:
        InputError: a guide that is spelled wrong or not there, two of one name, or weights that do not fit.
    """
    if isinstance(c.guides, str):
        raise InputError(f"guides={c.guides!r} is one text; write a tuple, such as ({c.guides!r},)")
    if others := [one for one in c.guides if not isinstance(one, str)]:
        raise InputError(f"guides has {others[0]!r}; a guide is a text, such as 'run:<workdir>'")
    weights = c.guide_weights or (1.0,) * len(c.guides)
    if len(weights) != len(c.guides):
        raise InputError(f"guide_weights has {len(weights)} numbers for {len(c.guides)} guides; give one for each")
    for weight in weights:
        if not isinstance(weight, int | float) or not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise InputError(f"guide_weights has {weight!r}, which is not a number up to {MAX_WEIGHT:g}")
    all_guides = tuple(_guide(text, float(weight)) for text, weight in zip(c.guides, weights))
    names = [guide.name for guide in all_guides]
    for name in names:
        if name == BASE or names.count(name) > 1:
            what = "is the name of the model itself" if name == BASE else "is the name of several guides"
            raise InputError(f"guides={tuple(c.guides)}: {name!r} {what}; name one yourself, as in NAME=run:...")
    return all_guides


def _guide(text: str, weight: float) -> Guide:
    named = re.fullmatch(r"([\w.-]+)=(.*)", text)
    name, source = (named[1], named[2]) if named else ("", text)
    kind, _, place = source.partition(":")
    if kind not in KINDS or not place:
        raise InputError(f"guides has {text!r}; a guide is run:<workdir>, peft:<folder>, hf:<folder> or gguf:<file>")
    if kind == "peft":
        peft_adapters.check(place)
    else:
        language_model.check_init_from(source)
    parts = [part for part in pathlib.PurePath(place).parts if part not in ("export", "peft", "hf")]
    return Guide(name or (parts[-1] if parts else place), source, weight)


def open_guides(all_guides: Sequence[Guide], model: Model) -> Guides:
    """The guides beside a model, without their weights.

    Raises:
        InputError: a guide whose tokens are not the model's.
    """
    return Guides(tuple(all_guides), tuple(_tokenizer(guide, model) for guide in all_guides))


def _tokenizer(guide: Guide, model: Model) -> tokenizer.Tokenizer | None:
    if guide.source.startswith("peft:"):
        return None  # the folder has none of its own
    tok = tokenizer.load(language_model.tokenizer_of(guide.source))
    if pieces.pieces(tok) != model.pieces:
        raise InputError(
            f"guide {guide.source!r} has other tokens than the model ({tok.vocab_size} and {model.tok.vocab_size} "
            "ids); models that decode together need one vocabulary"
        )
    is_alike = (tok.chat_template, tok.adds_bos) == (model.tok.chat_template, model.tok.adds_bos)
    return None if is_alike else tok


def load(guides: Guides, model: Model) -> Guides:
    """The guides with their weights: adapters where they are of the model's own weights, else models."""
    if not guides.all:
        return guides
    own_digest = None if model.init_from == models.RANDOM else language_model.digest(model.init_from)
    members = []
    content = xxhash.xxh3_64()
    for guide in guides.all:
        member, digest = _load(guide, model, own_digest)
        members.append(member)
        content.update(f"{guide.name} {digest} ".encode())
    return dataclasses.replace(guides, members=tuple(members), digest=content.hexdigest())


def _load(guide, model, own_digest):
    kind, _, place = guide.source.partition(":")
    if kind == "peft":
        print(f"guide {guide.name}: an adapter beside the model's weights", flush=True)
        member = peft_adapters.load(place, model.network)
        config, weights = (pathlib.Path(place) / name for name in (peft_adapters.CONFIG, tensors.ADAPTER))
        return member, xxhash.xxh3_64(config.read_bytes() + weights.read_bytes()).hexdigest()
    digest = language_model.digest(guide.source)
    note = adapters.read_note(place) if kind == "run" else None
    if note is not None and note["weights"] == own_digest:
        print(f"guide {guide.name}: an adapter beside the model's weights", flush=True)
        own = adapters.load(place, model.network, model.mesh)
        return (own[0], jax.tree.map(jnp.asarray, own[1])), digest
    print(f"guide {guide.name}: a model of its own", flush=True)
    net = models.network_of(guide.source, model.tok, model.network.dtype)
    return (net, models.params_of(guide.source, net, model.mesh)), digest

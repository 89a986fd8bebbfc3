"""The options of an answer as a run's config and a record's fields name them; see `alignment.decoding.requests`."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment.decoding import requests
from alignment.decoding.requests import Request
from alignment.errors import InputError

NAMES = (  # of `Request`, that a config and a record may set
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stop_ids",
    "stop",
    "logprobs",
)
MORE = ("n", "echo", "seed")  # that a record may set as well
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Request)}
EMPTY = {"logit_bias": {}, "stop_ids": (), "stop": ()}


@dataclasses.dataclass(frozen=True)
class Options:
    """How one prompt is answered.

    Attributes:
        request: arguments of `Request`, by name.
        n: how many answers.
        echo: whether the answer begins with its prompt.
        seed: of the draws; None where the record has none of its own.
    """

    request: Mapping[str, Any]
    n: int = 1
    echo: bool = False
    seed: int | None = None

    def changed(self) -> dict[str, Any]:
        """What a row of answers says of the sampling: the length, the temperature, and all that is not the default."""
        always = ("max_new_tokens", "temperature")
        out = {name: value for name, value in self.request.items() if name in always or value != _default(name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in out.items()}


def settings() -> dict[str, Any]:
    """The part of a config with the options that hold for every record without its own."""
    return dict(
        max_new_tokens=256,
        temperature=0.0,  # 0 takes the likeliest token
        top_k=0,  # 0 keeps all tokens
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        logit_bias=(),  # pairs of a token's id and what is added to its logit
        stop_ids=(),  # ids that end an answer, beside the tokenizer's
        stop=(),  # texts that end an answer
        logprobs=config_dict.placeholder(int),  # best tokens beside each; None: the rows have no tokens
        n=1,  # answers of each prompt
        echo=False,  # whether an answer begins with its prompt
    )


def of_run(c: ml_collections.ConfigDict, *, vocab_size: int | None = None) -> Options:
    """The options of a config.

    Args:
        vocab_size: ids are below it; None: it is not known yet.

    Raises:
        InputError: one is out of range.
    """
    values = {name: c[name] for name in NAMES}
    pairs = c.logit_bias
    if any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise InputError(f"logit_bias={pairs!r} must be pairs of a token's id and a number, such as ((5, -100.0),)")
    values |= {"logit_bias": dict(pairs), "stop": tuple(c.stop), "stop_ids": tuple(c.stop_ids)}
    return _checked(Options(values, c.n, c.echo), vocab_size)


def of_record(base: Options, value: Mapping[str, Any], *, vocab_size: int) -> Options:
    """The run's options with those that the record sets; tables hold numbers and lists as text.

    Raises:
        InputError: one of the record's own is out of range.
    """
    own = {name: _read(name, value[name]) for name in (*NAMES, *MORE) if value.get(name) not in (None, "")}
    if not own:
        return base
    more = {name: own.pop(name) for name in MORE if name in own}
    return _checked(dataclasses.replace(base, request={**base.request, **own}, **more), vocab_size)


def _default(name: str) -> Any:
    return EMPTY.get(name, DEFAULTS[name])


def _read(name: str, value: Any) -> Any:
    """A field as `Request` takes it; what does not look like it stays as it is, for the check to refuse."""
    if name == "stop":
        parsed = _json(value) if isinstance(value, str) and value.startswith("[") else value
        return (parsed,) if isinstance(parsed, str) else tuple(parsed) if isinstance(parsed, list) else parsed
    value = _json(value) if isinstance(value, str) else value
    if name == "stop_ids" and isinstance(value, list):
        return tuple(value)
    if name == "logit_bias" and isinstance(value, Mapping):
        return {_json(i) if isinstance(i, str) else i: bias for i, bias in value.items() if bias is not None}
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _checked(options: Options, vocab_size: int | None) -> Options:
    for name, kind in (("stop", tuple), ("stop_ids", tuple), ("logit_bias", Mapping)):
        if not isinstance(options.request[name], kind):
            raise InputError(f"{name}={options.request[name]!r} must be {_NEEDS[name]}")
    requests.check_options(Request((), **options.request, seed=options.seed), vocab_size=vocab_size)
    if isinstance(options.n, bool) or not isinstance(options.n, int) or options.n < 1:
        raise InputError(f"n={options.n!r} must be a whole number, at least 1")
    if not isinstance(options.echo, bool):
        raise InputError(f"echo={options.echo!r} must be true or false")
    return options


_NEEDS = {
    "stop": "a text or a list of texts",
    "stop_ids": "a list of token ids",
    "logit_bias": "an object of token ids and numbers",
}

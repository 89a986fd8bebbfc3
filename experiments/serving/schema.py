"""What may stand in a body, field by field: types are strict, unknown names are refused, numbers are finite.

The names, defaults and ranges are those of OpenAI's interface (platform.openai.com/docs/api-reference); `top_k`,
`min_p`, `repetition_penalty`, `stop_token_ids` and `guidance` are the engine's own. The same classes write
/openapi.json.
"""

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
import pydantic
from pydantic import Field

from alignment import errors
from alignment.decoding import requests
from experiments.serving.failures import Refused

MAX_SAMPLES, MAX_STOPS, MAX_STOP_CHARS, MAX_MESSAGES, MAX_PROMPTS = 128, 16, 1_000, 2_000, 2_048
MAX_ENTRIES = requests.NUM_BIASES  # of an object
SEED_LIMIT = 2**63

# Fields of OpenAI's interface that this server does not have: null or the value given here says "not asked for".
ABSENT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True, max_length=MAX_PROMPTS)]
Weight = Annotated[float, Field(ge=-requests.MAX_WEIGHT, le=requests.MAX_WEIGHT)]
IdLists = Annotated[list[Ids], Field(fail_fast=True, max_length=MAX_PROMPTS)]

# What a field that takes several types must be; pydantic says of such a field why each type did not fit.
NEEDS = {
    "prompt": "must be a text, a list of texts, a list of token ids or a list of such lists, with ids from 0 up",
    "stop": f"must be a text or a list of at most {MAX_STOPS} texts, of 1 to {MAX_STOP_CHARS} letters each",
    "content": 'must be a text or a list of {"type": "text", "text": ...}',
    **dict.fromkeys(
        ("refusal", "audio", "function_call", "tool_calls", "annotations"),
        "must be null or empty, because the model reads no more of a message than its text; leave it out",
    ),
}


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 80, 80


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


class StreamOptions(_Body):
    include_usage: bool = False


class _Common(_Body):
    """The fields that both kinds of completion read, and those that they accept and do not read."""

    model: Annotated[str, Field(max_length=500)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_ENTRIES)] | None = (
        None
    )
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = 1
    seed: Annotated[int, Field(ge=-SEED_LIMIT, lt=SEED_LIMIT)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=requests.NUM_STOP_IDS)] | None = None
    guidance: Annotated[dict[str, Weight], Field(max_length=MAX_ENTRIES)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # accepted because clients send them, and not read
    user: Annotated[str, Field(max_length=500)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_ENTRIES)] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def options(self) -> dict[str, Any]:
        """The engine's options that have a field of their own; a null takes the field's default."""
        plain = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty")
        values = {name: getattr(self, name) for name in (*plain, "presence_penalty")}
        defaults = type(self).model_fields
        values = {name: defaults[name].default if value is None else value for name, value in values.items()}
        return values | {
            "logit_bias": _biases(self.logit_bias or {}),
            "seed": self.seed,
            "stop": self.stops,
            "stop_ids": tuple(self.stop_token_ids or ()),
        }


class Completion(_Common):
    """The body of POST /v1/completions."""

    prompt: str | Ids | Texts | IdLists
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=requests.MAX_LOGPROBS)] | None = None
    echo: bool | None = False

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or many; an empty list is one empty prompt, which the engine refuses."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


class Part(_Body):
    type: Literal["text"]
    text: str


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_MESSAGES)]
    name: Annotated[str, Field(max_length=100)] | None = None
    # what an answer has beside its text, where it holds nothing: clients send answers back as they got them
    refusal: Literal[""] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """The message as templates read it: `developer` is the newer name of `system`, and parts are one text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text} | ({"name": self.name} if self.name else {})


class Chat(_Common):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=requests.MAX_LOGPROBS)] | None = None

    @property
    def limit(self) -> int | None:
        """The answer's longest length, by its newer or its older name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def read(kind: type[_Common], value: Any) -> Any:
    """A body as the fields of `kind`.

    Args:
        value: the JSON value of the body.

    Raises:
        Refused: names the first field that is wrong, and what it must be.
    """
    if not isinstance(value, dict):
        raise Refused(f"the body is {_shown(value)}; it must be a JSON object")
    known = [name for name in kind.model_fields if name not in ABSENT]
    for name, content in list(value.items()):
        if isinstance(content, dict) and len(content) > MAX_ENTRIES:  # pydantic would count after it has read them all
            raise Refused(f"{name} has {len(content)} entries; it may have {MAX_ENTRIES}", name[:100])
        if name in ABSENT:
            if content is not None and content not in ABSENT[name]:
                raise Refused(f"{name}={_shown(content)}: this server does not have {name}; leave it out", name)
            value = {k: v for k, v in value.items() if k != name}
        elif name not in known:
            try:
                errors.one_of("field", name[:100], known)
            except errors.InputError as e:
                raise Refused(str(e), name[:100]) from e
    try:
        body = kind.model_validate(value)
    except pydantic.ValidationError as e:
        raise _refusal(e, value) from e
    _check_together(body)
    return body


def _check_together(body: Any) -> None:
    """What no field says by itself."""
    if body.stream_options is not None and not body.stream:
        raise Refused("stream_options is set and stream is not true; leave it out or set stream", "stream_options")
    if isinstance(body, Completion):
        return
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused(f"top_logprobs={body.top_logprobs} needs logprobs=true", "top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise Refused(
            f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} are two names of "
            "one number; give one of them",
            "max_completion_tokens",
        )


def _biases(biases: Mapping[str, float]) -> dict[int, float]:
    """Token id -> bias; JSON has only texts for keys."""
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise Refused(f"logit_bias has the key {key[:40]!r}; keys are token ids, such as '50256'", "logit_bias")
    return {int(key): float(value) for key, value in biases.items()}


def _refusal(error: pydantic.ValidationError, value: Any) -> Refused:
    """The first thing that is wrong, with the place, the value and the need."""
    all_faults = error.errors(include_url=False, include_context=False, include_input=False)
    place = list(all_faults[0]["loc"])
    rest, need = place, ""
    for depth, name in enumerate(place):
        if name in NEEDS:  # what follows names the types that did not fit
            rest, need = place[: depth + 1], NEEDS[str(name)]
            break
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest).removeprefix(".")
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", all_faults[0]["msg"])
    if all_faults[0]["type"] == "missing":
        return Refused(f"{name} is missing; {NEEDS.get(name.rsplit('.')[-1], 'it must be there')}", name)
    at = value
    for part in rest:
        at = at[part] if isinstance(at, list | dict) and _has(at, part) else None
    if all_faults[0]["type"] == "extra_forbidden":
        return Refused(f"{name} is not a field of that object", name)
    return Refused(f"{name}={_shown(at)} {need or f'is wrong: {message[:1].lower() + message[1:]}'}", name)


def _has(container: Any, part: Any) -> bool:
    return part in container if isinstance(container, dict) else isinstance(part, int) and part < len(container)


def _shown(value: Any) -> str:
    """A value in a message, cut to a line; plain `repr` would write all of it, and fails on deep nesting."""
    text = _REPR.repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def openapi(*, model: str, max_len: int) -> dict[str, Any]:
    """The description of the server in the words of OpenAPI 3.1, made from the classes above."""
    parts: dict[str, Any] = {}
    for kind in (Completion, Chat):
        described = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= described.pop("$defs", {})
        parts[kind.__name__] = described
    parts["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {
        "4XX": {"description": "refused", "content": failure},
        "5XX": {"description": "failed", "content": failure},
    }
    good = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}

    def door(kind: type[_Common]) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        answer = {"200": {"description": "an answer, or a stream of its parts", "content": good}}
        return {"post": {"summary": kind.__doc__, "requestBody": body, "responses": answer | refusals}}

    def shown(what: str, media: str = "application/json") -> dict[str, Any]:
        responses = {"200": {"description": what, "content": {media: {}}}}
        return {"get": {"summary": what, "responses": responses | refusals}}

    return {
        "openapi": "3.1.0",
        "info": {"title": "Plumbline", "version": "1", "description": f"{model}, {max_len} tokens a request"},
        "paths": {
            "/v1/models": shown("the model that is served"),
            "/v1/completions": door(Completion),
            "/v1/chat/completions": door(Chat),
            "/healthz": shown("whether requests are served"),
            "/metrics": shown("counts and times for Prometheus", "text/plain"),
        },
        "components": {"schemas": json.loads(json.dumps(parts))},
    }


def parse(raw: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        Refused: it is not UTF-8, not JSON, has a number that is not finite, or is nested too deeply.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        raise Refused(f"the body is not JSON: {e}") from e

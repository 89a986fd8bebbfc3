"""Judges as a config names them, and the model or the service behind one."""

import dataclasses
import functools
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from alignment import errors
from alignment.decoding import backends, cache
from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.safety import judging, rubrics
from alignment.safety.judging import Judge
from alignment.safety.rubrics import Rubric
from alignment.train import language_model
from experiments.decoding import models
from experiments.decoding.models import Model

KEYWORD, MODEL, ENDPOINT = KINDS = (judging.KEYWORD, "model", "endpoint")


def settings(template: str) -> dict[str, Any]:
    """The group of a config that says who judges and how, for judges that are models.

    Args:
        template: the rubric that is asked where the user names none.
    """
    return dict(
        init_from="",  # of a model: hf:<folder or hub id>, run:<workdir>, gguf:<file>; "" is the one that is measured
        template=template,  # a rubric of alignment/safety/rubrics.py, a file, or chat_template: the checkpoint's own
        parser="",  # a key of verdicts.PARSERS; "" takes that of the rubric
        asks="",  # what its yes is about: response (harm), refusal or prompt (harm); "" takes the rubric's
        is_message=True,  # the template's text is a user's message; False: a text to go on with
        max_new_tokens=24,
        words=(),  # the two words whose first tokens give a probability; () takes the parser's
        form=judging.PAIR,  # pair: softmax over both; token: plain probability of the first
        url="",  # of an endpoint, up to /v1
        model="",  # its name there
        api_key_env="OPENAI_API_KEY",
        concurrency=8,  # requests at once
        retries=3,  # of a request that fails
        timeout_seconds=120.0,
    )


_AT_ENDPOINT = ("url", "model", "api_key_env", "concurrency", "retries", "timeout_seconds")
_OF_MODEL = ("init_from", "is_message", "words", "form")


def check(name: str, kinds: tuple[str, ...], group: Mapping[str, Any], *, field: str, template: str) -> None:
    """Refuse a judge that cannot be, and settings that none of the judges reads.

    Args:
        name: of the group in the config.
        kinds: of the judges, some of KINDS.
        field: of a verdict, which the judges must fill.
        template: the group's own default.
    """
    for kind in kinds:
        errors.one_of("judge", kind, KINDS)
    defaults = settings(template)
    readers = dict.fromkeys(_OF_MODEL, MODEL) | dict.fromkeys(_AT_ENDPOINT, ENDPOINT)
    for key, value in group.items():
        wanted = (readers[key],) if key in readers else (MODEL, ENDPOINT)
        if value != defaults[key] and not set(wanted) & set(kinds):
            raise InputError(
                f"{name}.{key}={value!r} is not read, as the judge is {', '.join(kinds) or 'off'}; "
                f"it is for judge={' or '.join(wanted)}"
            )
    if not set(kinds) & {MODEL, ENDPOINT}:
        return
    rubric = _rubric(group)
    if field not in rubric.fields:
        raise InputError(
            f"{name}.template={group['template']!r} is read as {', '.join(rubric.fields)}, and {field} is needed here; "
            f"set {name}.asks or take another, such as {template}"
        )
    errors.one_of(f"{name}.form", group["form"], judging.FORMS)
    if group["max_new_tokens"] < 1:
        raise InputError(f"{name}.max_new_tokens={group['max_new_tokens']} must be at least 1")
    if MODEL in kinds and group["init_from"]:
        language_model.check_init_from(group["init_from"])
    if ENDPOINT in kinds:
        _endpoint(group)


def _rubric(group: Mapping[str, Any]) -> Rubric:
    return rubrics.load(group["template"], parser=group["parser"], asks=group["asks"])


def _endpoint(group: Mapping[str, Any]) -> backends.Complete:
    options = {key: group[key] for key in _AT_ENDPOINT if key not in ("url", "model")}
    return backends.openai(group["url"], group["model"], **options)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The model that is measured, with its engine once something is asked of it."""

    model: Model
    engine_fn: Callable[[], Engine]


def build(
    kind: str,
    group: Mapping[str, Any],
    c: ml_collections.ConfigDict,
    folder: pathlib.Path,
    measured: Measured | None,
    answers: cache.Cache,
) -> Judge:
    """A judge of a config's group.

    Args:
        measured: judges where the group's `init_from` is ""; None where it is not, or nobody's engine is asked.
        c: sizes of the engine, and the type of its arithmetic, for a model of its own.
        answers: what judges said, by content and judge.
    """
    if kind == KEYWORD:
        return judging.keyword()
    rubric = _rubric(group)
    where = rubric.sha256 or "the checkpoint's own"
    print(f"judge: template {rubric.name}, sha256 {where}, read as {rubric.parser}", flush=True)
    if kind == ENDPOINT:
        host = urllib.parse.urlsplit(group["url"]).netloc
        ask_fn = judging.at_endpoint(_endpoint(group), max_new_tokens=group["max_new_tokens"])
        name, made_from, retries = f"{rubric.name} by {group['model']} at {host}", "", judging.RETRIES
        return _ending_well(judging.asking(name, rubric, ask_fn, answers=answers, made_from=made_from, retries=retries))
    if group["init_from"]:
        measured = _own_model(group["init_from"], c, folder)
    assert measured is not None
    engine_fn, tok = measured.engine_fn, measured.model.tok
    if rubric.text is None and not tok.has_own_template:
        raise InputError("template=chat_template: the judge's checkpoint has no chat template; give a file")

    def encode(messages: rubrics.Messages) -> list[int]:
        if rubric.text is not None and not group["is_message"]:
            return tok.encode(messages[0]["content"], add_bos=tok.adds_bos)
        return tok.encode(tok.render(messages, add_generation_prompt=True))

    words = judging.first_words(rubric, tok.encode, group["words"])

    def ask(chats: Any) -> list[judging.Said]:
        options = dict(max_new_tokens=group["max_new_tokens"], words=words, form=group["form"])
        return judging.on_engine(engine_fn(), encode=encode, decode=tok.decode, **options)(chats)

    used = [measured.model.digest, rubric.parser, group["is_message"], group["max_new_tokens"], words, group["form"]]
    name = f"{rubric.name} by {measured.model.name}"
    return judging.asking(name, rubric, ask, answers=answers, made_from=str(used))


def _own_model(init_from: str, c: ml_collections.ConfigDict, folder: pathlib.Path) -> Measured:
    """Its weights are read at once: what it says is kept under their digest."""
    own = ml_collections.ConfigDict(c.to_dict())
    own.update(init_from=init_from, tokenizer="", draft_from="")
    own.engine.num_draft = 0
    model = models.load(own, folder)
    return Measured(model, functools.cache(lambda: models.engine(model, own)))


def _ending_well(judge: Judge) -> Judge:
    """The judge with a service that is down as the end of a run that may be started again."""

    def classify(exchanges: Any) -> list[judging.Judged]:
        try:
            return judge.classify(exchanges)
        except backends.Down as e:
            raise errors.Stopped(f"the judge is down: {e}") from e

    return Judge(judge.name, classify)

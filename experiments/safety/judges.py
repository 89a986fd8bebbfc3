"""Judges as a config names them, and the model or the service behind one."""

import dataclasses
import functools
import hashlib
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from alignment import errors, files
from alignment.decoding import backends, cache
from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.models import huggingface
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
        context_template="",  # a file for prompts with a context, as HarmBench has a second text; "": the same template
        parser="",  # a key of verdicts.PARSERS; "" takes that of the rubric
        asks="",  # what its yes is about: response (harm), refusal or prompt (harm); "" takes the rubric's
        is_message=True,  # the template's text is a user's message; False: a text to go on with
        max_new_tokens=24,
        words=(),  # the two words whose first tokens give a probability; () takes the parser's
        form=judging.PAIR,  # pair: softmax over both; token: plain probability of the first
        threshold=0.0,  # of that probability, from which on it is a yes; 0: the judge's words decide
        url="",  # of an endpoint, up to /v1
        model="",  # its name there
        criterion="",  # of a Granite Guardian there, such as harm or evasiveness; "": its chat template's own
        api_key_env="OPENAI_API_KEY",
        concurrency=8,  # requests at once
        retries=3,  # of a request that fails
        timeout_seconds=120.0,
    )


_AT_ENDPOINT = ("url", "model", "criterion", "api_key_env", "concurrency", "retries", "timeout_seconds")
EVASIVENESS = "evasiveness"  # the criterion that is met by a needless refusal
# parts of the names of published guards that cannot be loaded here -> what they are
_FOREIGN = {
    "shieldgemma": "ShieldGemma is a Gemma 2 network",
    "llama-guard-4": "Llama Guard 4 is a Llama 4 network",
    "llama-guard-3-11b-vision": "Llama Guard 3 Vision is a Mllama network",
    "granite-guardian": "Granite Guardian is a Granite network",
}
_GUARDS = ("llama_guard", "llamaguard", "wildguard", "shieldgemma", "granite", "harmbench", "strongreject")
_OF_MODEL = ("init_from", "is_message", "words", "form", "threshold")


def listed(kinds: str) -> tuple[str, ...]:
    """The judges that a setting names with commas between; an empty part stays, so that `check` refuses it."""
    return tuple(part.strip() for part in kinds.split(","))


def check(name: str, kinds: tuple[str, ...], group: Mapping[str, Any], *, field: str, template: str) -> None:
    """Refuse a judge that cannot be, and settings that none of the judges reads.

    Args:
        name: of the group in the config.
        kinds: of the judges, some of KINDS.
        field: of a verdict, which the judges must fill.
        template: the group's own default.
    """
    for kind in kinds:
        is_guard = any(guard in kind.lower().replace("-", "_") for guard in _GUARDS)
        way = f"a guard is judge=model with {name}.init_from=hf:<folder>, or judge=endpoint with {name}.url"
        errors.one_of("judge", kind, KINDS, hint=way if is_guard else "")
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
    errors.within("[1, inf)", **{f"{name}.max_new_tokens": group["max_new_tokens"]})
    if threshold := group["threshold"]:
        if not 0 < threshold < 1:
            raise InputError(f"{name}.threshold={threshold} must be in (0, 1), or 0 where the judge's words decide")
        if rubric.parser not in rubrics.WORDS:
            raise InputError(
                f"{name}.threshold={threshold} needs a judge of two words, and {rubric.parser} has other answers; give "
                f"one of the parsers {', '.join(rubrics.WORDS)}, or 0"
            )
    if MODEL in kinds:
        _check_model(name, group)
    if ENDPOINT in kinds:
        for key in ("url", "model"):
            if not group[key]:
                raise InputError(
                    f"{name}.{key} is empty, and judge=endpoint needs it: where the judge is, and its name"
                )
        if group["criterion"] and (rubric.text is not None or rubric.parser != "granite"):
            raise InputError(
                f"{name}.criterion={group['criterion']!r} is for {name}.template={rubrics.OWN_TEMPLATE} with "
                f"{name}.parser=granite; leave it out"
            )
        _endpoint(group)


def _check_model(name: str, group: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that cannot be loaded, or the want of one, before anything is answered."""
    init_from = group["init_from"]
    way_out = f"serve it and give judge=endpoint with {name}.url and {name}.model"
    if not init_from:
        if group["template"] == rubrics.OWN_TEMPLATE:
            raise InputError(
                f"{name}.template={rubrics.OWN_TEMPLATE!r} is a guard's own, and {name}.init_from names none; give "
                f"hf:<folder> of the guard, or {way_out}"
            )
        return
    kind, _, place = init_from.partition(":")
    is_folder = pathlib.Path(place).expanduser().is_dir()
    spelt = place.lower().replace("_", "-")
    for part, what in _FOREIGN.items() if kind == "hf" and not is_folder else ():
        if part in spelt:
            raise InputError(f"{name}.init_from={init_from!r}: {what}, which cannot be loaded here; {way_out}")
    language_model.check_init_from(init_from)
    if kind == "hf" and is_folder:
        try:
            huggingface.config_of(pathlib.Path(place).expanduser())
        except InputError as e:
            raise InputError(f"{name}.init_from={init_from!r}: {e}. If it is a guard, {way_out}") from None


def _rubric(group: Mapping[str, Any]) -> Rubric:
    evades = group["criterion"] == EVASIVENESS
    asks = group["asks"] or (rubrics.REFUSED if evades else "")
    return rubrics.load(group["template"], parser=group["parser"], asks=asks, contextual=group["context_template"])


def _endpoint(group: Mapping[str, Any]) -> backends.Complete:
    options = {key: group[key] for key in _AT_ENDPOINT if key not in ("url", "model", "criterion")}
    if criterion := group["criterion"]:  # versions 3.0 to 3.2 of the guard read the one name, later ones the other
        guardian = {"risk_name": criterion, "criteria_id": criterion}
        options["extra"] = {"chat_template_kwargs": {"guardian_config": guardian}}
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
    digest = f"sha256 {rubric.sha256}, " if rubric.sha256 else ""
    print(f"judge: template {rubric.name}, {digest}{rubric.origin}; read as {rubric.parser}", flush=True)
    if rubric.contextual:
        print(f"judge: of prompts with a context, {rubrics.published(rubric.contextual)}", flush=True)
    record(folder, kind, rubric)
    if kind == ENDPOINT:
        host = urllib.parse.urlsplit(group["url"]).netloc
        ask_fn = judging.at_endpoint(_endpoint(group), max_new_tokens=group["max_new_tokens"])
        asked = f"{rubric.name}, {group['criterion']}" if group["criterion"] else rubric.name
        name, made_from, retries = f"{asked} by {group['model']} at {host}", "", judging.RETRIES
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
    return judging.asking(name, rubric, ask, answers=answers, made_from=str(used), threshold=group["threshold"] or None)


def record(folder: pathlib.Path, kind: str, rubric: Rubric) -> None:
    """Leave in judges.json whose wording a judge is asked in, and its hash."""
    path = folder / "judges.json"
    known = files.read_object(path) if path.is_file() else {}
    line = {"template": rubric.name, "sha256": rubric.sha256, "origin": rubric.origin, "parser": rubric.parser}
    line |= {"asks": rubric.asks}
    if rubric.contextual:
        digest = hashlib.sha256(rubric.contextual.encode()).hexdigest()
        line |= {"context_sha256": digest, "context_origin": rubrics.published(rubric.contextual)}
    known[f"{kind}, {rubric.name}"] = line
    files.write_json(path, known)


def _own_model(init_from: str, c: ml_collections.ConfigDict, folder: pathlib.Path) -> Measured:
    """Its weights are read at once: what it says is kept under their digest."""
    own = models.of_another(c, init_from)
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

"""What the stages of a filter run work with, made from a stage's settings: rules and packs, scorers, the rewriter.

A worker process makes each once and keeps it under the stage's hash (see `settings.Stage`).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import errors
from alignment.decoding import backends, cache
from alignment.errors import InputError
from alignment.filtering import pipeline
from alignment.filtering.duplicates import minhash
from alignment.filtering.rewriting import conduct
from alignment.filtering.rewriting import rewrite as rewriting
from alignment.filtering.rules import batch, language, locales
from alignment.filtering.rules import chain as rules
from alignment.filtering.scores import patterns, scorers
from experiments.filtering import settings as filter_settings
from experiments.filtering.settings import Stage

ScoreFn = Callable[[Sequence[dict]], list[dict[str, Any]]]


def check(settings: Mapping[str, Any]) -> None:
    """Refuse what a worker would refuse, before any work begins.

    Args:
        settings: of all stages, by stage.
    """
    filter_settings.check(settings)
    make_screening(settings["screen"])
    if settings["align"]["score"] and settings["align"]["rewriter"]["backend"] == "openai":
        make_backend(settings["align"]["rewriter"])


# Rules and duplicates


@functools.lru_cache(maxsize=2)
def screening(stage: Stage) -> pipeline.Screening:
    return make_screening(stage.settings)


def make_screening(s: Mapping[str, Any]) -> pipeline.Screening:
    """Rules, packs and duplicate search of the settings of stage `screen`."""
    packs = {pack.name: pack for pack in map(locales.load, s["packs"])}
    rules.validate(s["chain"], s["rules"], packs)
    nothing = batch.Batch([], next(iter(packs.values())))
    for name in s["chain"]:
        knobs = s["rules"].get(name, {})
        filter_settings.check_knobs(name, knobs)
        rules.RULES[name](nothing, **knobs)  # reads the rule's lists, so that a missing one is refused now
    dedup = dict(s["dedup"])
    has_exact, has_near = dedup.pop("exact"), dedup.pop("minhash")
    return pipeline.Screening(
        chain=tuple(s["chain"]),
        settings=s["rules"],
        packs=packs,
        language_fn=_identifier(s, packs),
        minhash=minhash.Settings(**dedup) if has_near else None,
        exact=has_exact,
    )


def _identifier(s: Mapping[str, Any], packs: Mapping[str, locales.Pack]) -> Callable | None:
    """Identifies the language of texts; None where one pack serves all and no rule needs to know."""
    if "language" not in s["chain"] and len(packs) == 1:
        return None
    if s["language_model"]:
        return language.from_fasttext(s["language_model"])
    return functools.partial(language.identify, packs=packs)


# Scorers


def scorer(name: str, stage: Stage, *, with_chunks: bool = False) -> ScoreFn:
    """The scorer of a stage `score.NAME`; `with_chunks` adds NAME.chunks where its kind has them, see `scorers`."""
    score_fn = _scorer(name, stage)
    if with_chunks:
        score_fn = getattr(score_fn, "with_chunks", score_fn)  # kinds that score a text as a whole have none
    languages = stage.settings["languages"]
    return in_languages(score_fn, name, languages) if languages else score_fn


@functools.lru_cache(maxsize=8)
def _scorer(name: str, stage: Stage) -> ScoreFn:
    s, options = stage.settings, {}
    if s["kind"] == "fasttext" and s["label"]:
        options["label"] = s["label"]
    elif s["kind"] == "perplexity":
        from data.tokens import tokenizer  # imported here: workers without a language model start without it

        tok = tokenizer.load(s["path"].removeprefix("hf:"))
        options["encode_fn"] = lambda texts: [tok.encode(text) for text in texts]
    elif s["kind"] == "judge":
        options["complete"] = stopping(backends.openai(s["url"], s["model"]), f"the judge of {name!r}")
    return scorers.load(s["kind"], s["path"], name=name, **options)


def stopping(complete: backends.Complete, who: str) -> backends.Complete:
    """The backend with `Down` as the end of a run that may be started again."""

    def ask(messages: Sequence[backends.Messages], max_new: Sequence[int]) -> list[str | None]:
        try:
            return complete(messages, max_new)
        except backends.Down as e:
            raise errors.Stopped(f"{who} is down: {e}") from e

    return ask


def in_languages(score_fn: ScoreFn, name: str, languages: str) -> ScoreFn:
    """A scorer of documents in some languages, such as "en,ar"; the others get NAME.other_language and no score."""
    known = {part.strip() for part in languages.split(",")}

    def score(documents: Sequence[dict]) -> list[dict[str, Any]]:
        is_known = [one in known for one, _ in language.identify([d["text"] for d in documents])]
        scored = [document for document, take in zip(documents, is_known, strict=True) if take]
        rows = iter(score_fn(scored) if scored else [])
        return [next(rows) if take else {f"{name}.other_language": 1.0} for take in is_known]

    return score


# Routing and rewriting


def aligning(align: Stage, scoring: Mapping[str, Stage], answers: pathlib.Path) -> pipeline.Aligning:
    """How documents are routed, rewritten and gated.

    Args:
        scoring: stages of the scorers by name, which the gates measure with.
        answers: file in which the rewriter's answers are cached; a slice has one of its own.
    """
    s = align.settings
    bounds = {f"{name}.score": (b.get("min_score"), b.get("max_score")) for name, b in s["bounds"].items()}
    if not s["score"]:
        return pipeline.Aligning(bounds=bounds)
    gates: dict[str, Any] = {"language": language.identify, "safety": _measure(s["score"], scoring)}
    if s["gates"]["perplexity"]:
        gates["perplexity"] = _measure(s["gates"]["perplexity"], scoring)
    code = conduct.load(s["rewriter"]["conduct"])
    gates["markers"] = code.markers
    model, rewrite = None, None
    if s["rewriter"]["backend"] != "none":
        model = backend(align)
        rewrite = functools.partial(_rewrite, model, code, cache.Cache(answers), s["rewriter"]["max_tokens"])
    return pipeline.Aligning(
        score=s["score"],
        bounds=bounds,
        rewrite=rewrite,
        gates=gates,
        worker_id=f"{s['rewriter']['backend']}:{model.name if model else ''}",
        prompt_version=f"{code.name} {code.version} {code.sha256[:16]}",
        seed=s["seed"],
        **s["router"],
    )


def _measure(score: str, scoring: Mapping[str, Stage]) -> Callable[[Sequence[str]], list[float | None]]:
    """One score, such as "safety.level", of texts."""
    name = score.split(".")[0]
    score_fn = scorer(name, scoring[name])
    return lambda texts: [row.get(score) for row in score_fn([{"text": text} for text in texts])]


@dataclasses.dataclass(frozen=True)
class Backend:
    """What rewrites, how it counts tokens, and its name in the cache's keys and the decisions."""

    complete: backends.Complete
    name: str
    count_tokens: Callable[[str], int] = rewriting.count_tokens


def _rewrite(
    model: Backend, code: conduct.Conduct, answers: cache.Cache, max_tokens: int, documents: Sequence[dict], kind: str
) -> list[str | None]:
    options = {"kind": kind, "max_tokens": max_tokens, "model": model.name, "count_tokens": model.count_tokens}
    try:
        return rewriting.rewrite(documents, model.complete, code, answers, **options)
    except backends.Down as e:
        raise errors.Stopped(f"the rewriter is down: {e}; its answers so far are kept") from e


@functools.lru_cache(maxsize=1)
def backend(align: Stage) -> Backend:
    return make_backend(align.settings["rewriter"])


def make_backend(s: Mapping[str, Any]) -> Backend:
    """The backend of the config's group `rewriter`."""
    return _MAKERS[s["backend"]](s)


def _openai(s: Mapping[str, Any]) -> Backend:
    options = {key: s[key] for key in ("api_key_env", "concurrency", "retries", "timeout_seconds")}
    return Backend(backends.openai(s["url"], s["model"], **options), s["model"])


def _flax(s: Mapping[str, Any]) -> Backend:
    from experiments.filtering import worker  # imports JAX, which a worker that applies rules never loads

    model, code = worker.load(s["model"]), conduct.load(s["conduct"])
    if model.conduct_sha256 not in ("", code.sha256):
        raise InputError(
            f"rewriter {s['model']} was trained under another code of conduct (sha256 {model.conduct_sha256[:16]}) "
            f"than {s['conduct']!r} ({code.sha256[:16]}); choose that pack, or train it anew"
        )
    return Backend(model.complete, model.name, model.count_tokens)


def _cut(s: Mapping[str, Any]) -> Backend:
    """Removes the sentences that match patterns; no model."""
    harm = patterns.read(s["model"])
    return Backend(rewriting.echo(lambda text: patterns.without(text, harm)), pathlib.Path(s["model"]).name)


def _echo(s: Mapping[str, Any]) -> Backend:
    return Backend(rewriting.echo(), s["backend"])


_MAKERS = {"openai": _openai, "flax": _flax, "cut": _cut, "echo": _echo}

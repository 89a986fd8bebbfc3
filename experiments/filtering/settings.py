"""The filter's config as plain values by stage: what each stage's output depends on, checks of it, and its hash."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import orjson
from ml_collections import config_dict

from alignment import errors
from alignment.errors import InputError
from alignment.filtering import router
from alignment.filtering.rewriting import conduct
from alignment.filtering.rules import chain as rules
from alignment.filtering.rules import locales
from alignment.filtering.scores import patterns, scorers
from experiments.launch import checks

BACKENDS = ("openai", "flax", "cut", "echo", "none")
ENDINGS = {"": ".jsonl", "gz": ".jsonl.gz", "zst": ".jsonl.zst"}
GIVES = {  # kinds of scorers that do not give both
    "patterns": ("level",),
    "fasttext": ("score",),
    "perplexity": ("score",),
}
OFF = "off"  # switches a rule's check off; the rule itself takes None for that, and None is an unset knob
LEAST = dict.fromkeys(("workers", "paragraphs.capacity", "rewriter.max_tokens"), 1)
LEAST |= {"slice_mb": 2**-20, "read.max_document_mb": 1e-6}
SHARES = ("max_bad", "router.tag_probability")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage's output depends on. Stages of one hash are equal, so a cache keeps what was made of them."""

    name: str
    hash: str
    settings: Mapping[str, Any] = dataclasses.field(compare=False)


def scorer_group() -> dict[str, Any]:
    """The config of one scorer; a scorer without a path (a judge: without a url) is left out."""
    return dict(
        kind="",
        path="",
        languages="",  # it was trained on, such as "en,ar"; documents in others go unscored; "": it takes all
        label="",  # of a fastText model: the label whose probability is the score
        url="",  # of a judge: an OpenAI-compatible endpoint
        model="",  # the judge's, as the endpoint names it
        min_score=config_dict.placeholder(float),  # documents with a smaller NAME.score are dropped
        max_score=config_dict.placeholder(float),
    )


def knobs() -> dict[str, dict[str, None]]:
    """Every argument of every rule, unset: the locale pack decides, else the rule's own default."""
    return {name: dict.fromkeys(rules.defaults(name)) for name in rules.RULES if rules.defaults(name)}


# From the config to plain values


def of(c: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config by stage, and "ending", that of a shard's name."""
    for name in c.skip:
        errors.one_of("skip", name, c.scorers)
    _check_score(c)
    deciding = c.router.score.split(".")[0]
    named = [name for name, s in c.scorers.items() if (s.path or s.url or name == deciding) and name not in c.skip]
    score = c.router.score if deciding in named else ""
    scorer_settings = {name: c.scorers[name].to_dict() for name in c.scorers}
    falling = {
        "score": score,
        "bounds": {
            f"{name}.score": [scorer_settings[name][end] for end in ("min_score", "max_score")] for name in named
        },
        **{key: c.router[key] for key in ("keep_at", "drop_at", "synthesise")},
    }
    may_fall = c.dedup.minhash and (score or any(_bounds(scorer_settings[name]) for name in named))
    return {
        "ending": ENDINGS.get(c.compression, c.compression),
        "screen": {
            "read": {
                "columns": c.read.columns.to_dict(),
                "source": c.read.source,
                "text_unit": c.read.text_unit,
                "max_document_bytes": int(c.read.max_document_mb * 2**20),
            },
            "packs": list(c.packs),
            "language_model": c.language_model,
            "chain": list(c.chain),
            "rules": {name: chosen for name, group in c.rules.to_dict().items() if (chosen := _chosen(name, group))},
            "dedup": c.dedup.to_dict(),
            "ending": c.compression,
        },
        **({"paragraphs": c.paragraphs.to_dict()} if c.paragraphs.capacity is not None else {}),
        **{f"score.{name}": scorer_settings[name] for name in named},
        **({"fallen": falling, "stand_in": {}} if may_fall else {}),
        "align": {
            "scorers": named,
            "score": score,
            "router": {key: value for key, value in c.router.to_dict().items() if key != "score"},
            "rewriter": c.rewriter.to_dict() if score else {},
            "gates": c.gates.to_dict(),
            "safety": scorer_settings[deciding] if score else {},
            "perplexity": scorer_settings[_perplexity(c)] if c.gates.perplexity else {},
            "bounds": {name: _bounds(scorer_settings[name]) for name in named},
            "samples": c.samples,
            "seed": c.seed,
        },
    }


def _check_score(c: ml_collections.ConfigDict) -> None:
    """Refuse a deciding score that none of the scorers gives."""
    kinds = {name: s.kind for name, s in c.scorers.items()}
    scores = [f"{name}.{one}" for name, kind in kinds.items() for one in GIVES.get(kind, ("level", "score"))]
    errors.one_of("router.score", c.router.score, scores)


def _perplexity(c: ml_collections.ConfigDict) -> str:
    return errors.one_of("gates.perplexity", c.gates.perplexity.split(".")[0], c.scorers, hint="name a scorer's number")


def _bounds(scorer_settings: Mapping[str, Any]) -> dict[str, float]:
    return {key: scorer_settings[key] for key in ("min_score", "max_score") if scorer_settings[key] is not None}


def _chosen(rule: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a rule that are set, as the rule takes them."""
    chosen = {key: value for key, value in knobs.items() if value is not None}
    for key, value in chosen.items():
        if value == "default":
            raise InputError(
                f"rules.{rule}.{key}='default': leave it out, or set None, for the pack's value or the rule's own"
            )
    return {key: None if value == OFF else value for key, value in chosen.items()}


# Checks


def check_numbers(c: ml_collections.ConfigDict) -> None:
    """Refuse sizes and shares out of range."""
    checks.check_least(c, LEAST)
    checks.within(c, "[0, 1]", *SHARES)


def check_knobs(rule: str, chosen: Mapping[str, Any]) -> None:
    """Refuse a word where a rule takes a number, and one path where it takes several."""
    defaults = rules.defaults(rule)
    for key, value in chosen.items():
        default = defaults[key]
        takes_number = isinstance(default, (int, float)) or default is None
        if takes_number and not (value is None or isinstance(value, (int, float))):
            raise InputError(
                f"rules.{rule}.{key}={value!r} is not a number; its default is {default}, {OFF!r} switches it off"
            )
        if isinstance(default, tuple) and isinstance(value, str):
            raise InputError(f"rules.{rule}.{key}={value!r}: it takes several, such as \"('{value}',)\"")


def check(settings: Mapping[str, Any]) -> None:
    """Refuse values that a stage would refuse, before any work; rules and backends are tried out by `tools.check`."""
    if settings["ending"] not in ENDINGS.values():
        raise InputError(f'compression={settings["ending"]!r}; shards are "zst", "gz" or "" for plain JSONL')
    align = settings["align"]
    for name in align["scorers"]:
        _check_scorer(name, settings[f"score.{name}"])
    router.check(align["router"]["keep_at"], align["router"]["drop_at"])
    if align["score"]:
        _check_rewriter(align["rewriter"])


def _check_scorer(name: str, scorer_settings: Mapping[str, Any]) -> None:
    kind, path = scorer_settings["kind"], scorer_settings["path"]
    if kind != "judge" and not path:
        raise InputError(
            f"scorer {name!r} has no model: give --config.scorers.{name}.path (experiments/scorer.py makes it), "
            f"or --config.skip=\"('{name}',)\" to go without, which the report will say"
        )
    errors.one_of(f"scorers.{name}.kind", kind, scorers.KINDS)
    if kind == "patterns":
        patterns.read(path)


def _check_rewriter(rewriter: Mapping[str, Any]) -> None:
    errors.one_of("rewriter.backend", rewriter["backend"], BACKENDS)
    conduct.load(rewriter["conduct"])
    if rewriter["backend"] == "openai" and not rewriter["model"]:
        raise InputError(
            "there is no model to rewrite: give --config.rewriter.url and --config.rewriter.model of an "
            "OpenAI-compatible endpoint, --config.rewriter.backend=flax with the folder of a model trained by "
            "experiments/rewriter.py, or --config.rewriter.backend=none (mild texts stay, others go)"
        )
    if rewriter["backend"] == "cut":
        patterns.read(rewriter["model"])


# Hashes


def hashes(settings: Mapping[str, Any], pieces: Sequence[Any]) -> dict[str, str]:
    """{stage: hash of its settings, the input, and the stages before it}, for the slices `pieces`."""
    cut = [(piece.name, piece.start, piece.stop, piece.unit, piece.size) for piece in pieces]
    screen = _digest(cut, _screen_content(settings["screen"]))
    by_stage = {"screen": screen, "band": _digest(screen, "band"), "clusters": _digest(screen, "clusters")}
    text = by_stage["clusters"]
    if "paragraphs" in settings:
        text = by_stage["paragraphs"] = _digest(text, settings["paragraphs"])
    scores = [f"score.{name}" for name in settings["align"]["scorers"]]
    by_stage |= {stage: _digest(text, _with_content(settings[stage])) for stage in scores}
    scored = [by_stage[stage] for stage in scores]
    if "stand_in" in settings:
        by_stage["fallen"] = _digest(text, scored, settings["fallen"])
        scored.append(by_stage.setdefault("stand_in", _digest(by_stage["fallen"], "stand_in")))
    return by_stage | {"align": _digest(text, scored, _align_content(settings["align"]))}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


# What a hash covers: settings with the content of files in the place of their paths


def _screen_content(screen: Mapping[str, Any]) -> dict[str, Any]:
    lists = [screen["rules"].get(name, {}) for name in ("url", "wordlist")]
    return {
        **screen,
        "packs": [locales.load(name).sha256 for name in screen["packs"]],
        "language_model": _file_digests(screen["language_model"]),
        "lists": [_file_digests(path) for group in lists for path in _texts(group)],
    }


def _align_content(align: Mapping[str, Any]) -> dict[str, Any]:
    content = {**align, "safety": _with_content(align["safety"]), "perplexity": _with_content(align["perplexity"])}
    if rewriter := align["rewriter"]:
        code = conduct.load(rewriter["conduct"])
        content["rewriter"] = {
            "backend": rewriter["backend"],
            "max_tokens": rewriter["max_tokens"],
            "model": _file_digests(rewriter["model"]),
            "conduct": code.sha256,
        } | ({"markers": code.markers} if code.markers else {})
    return content


def _with_content(scorer_settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**scorer_settings, "path": _file_digests(scorer_settings.get("path", ""))}


def _texts(value: Any) -> list[str]:
    """All texts in nested settings."""
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _file_digests(path: str) -> list[list[str]] | str:
    """Names and hashes of a file, or of the files of a folder; the text itself where it is neither."""
    where = pathlib.Path(path or ".")
    if not path or not where.exists():
        return path
    digests = []
    for name in sorted(f for f in where.rglob("*") if f.is_file()) if where.is_dir() else [where]:
        with open(name, "rb") as f:
            digests.append([name.name, hashlib.file_digest(f, "sha256").hexdigest()])
    return digests


# What settings imply


def num_bands(screen: Mapping[str, Any]) -> dict[str, int]:
    """{kind of key: its bands}: ids always, texts and near-duplicates as the config says."""
    dedup = screen["dedup"]
    bands = {"id": 1}
    if dedup["exact"]:
        bands["exact"] = 1
    if dedup["minhash"]:
        bands["minhash"] = dedup["num_buckets"]
    return bands


def num_levels(scorer_settings: Mapping[str, Any]) -> int:
    """Levels that a scorer of ours distinguishes; 0 where that is not known."""
    about = pathlib.Path(scorer_settings.get("path", ""), "scorer.json")
    return len(json.loads(about.read_text("utf-8"))["levels"]) if about.is_file() else 0

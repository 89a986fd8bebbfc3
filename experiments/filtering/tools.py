"""What the stages of a filter run work with, made from plain settings: rules and packs, scorers, the rewriter.

Workers call these with the settings as JSON text and keep what they get; making it twice is what a cache saves.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import errors
from alignment.decoding import backends, cache
from alignment.errors import InputError
from alignment.filtering import pipeline, router
from alignment.filtering.duplicates import minhash
from alignment.filtering.rewriting import conduct, rewrite
from alignment.filtering.rules import batch, language, locales
from alignment.filtering.rules import chain as rules
from alignment.filtering.scores import scorers
from data.toys import toyweb

SCORER = {  # settings of a scorer
    "kind": "",
    "path": "",
    "languages": "",  # that it was trained on, such as "en,ar"; documents in others go unscored; "": it takes all
    "label": "",  # of a fastText model: whose probability is the score
    "url": "",  # of a judge: an OpenAI-compatible endpoint
    "model": "",  # that it knows
    "min_score": "",  # numbers; documents with a score (NAME.score) outside are dropped
    "max_score": "",
}
_SENTENCE = re.compile(r"[^.!?؟\n]+[.!?؟]* *")
BACKENDS = ("openai", "flax", "echo", "toyweb", "none")


def stage_settings(c) -> dict[str, Any]:
    """The config by stage, as plain values: what a stage's output depends on, and nothing else."""
    read = {"columns": dict(c.read.columns), "source": c.read.source, "text_unit": c.read.text_unit}
    read["max_document_bytes"] = int(c.read.max_document_mb * 2**20)
    if unknown := [name for name in c.skip if name not in c.scorers]:
        raise InputError(f"skip={unknown[0]!r} is no scorer of this run; it has {', '.join(c.scorers)}")
    deciding = c.router.score.split(".")[0]
    levels = {"toyweb": ("level",), "fasttext": ("score",), "perplexity": ("score",)}
    known = [f"{name}.{one}" for name, s in c.scorers.items() for one in levels.get(s.kind, ("level", "score"))]
    if c.router.score not in known:
        raise InputError(f"router.score={c.router.score!r} is no score of this run; it has {', '.join(known)}")
    named = [name for name, s in c.scorers.items() if (s.path or s.url or name == deciding) and name not in c.skip]
    score = c.router.score if c.router.score.split(".")[0] in named else ""
    return {
        "ending": {"": ".jsonl", "gz": ".jsonl.gz", "zst": ".jsonl.zst"}.get(c.compression, c.compression),
        "screen": {
            "read": read,
            "packs": list(c.packs),
            "language_model": c.language_model,
            "chain": list(c.chain),
            "rules": {name: chosen for name, of in c.rules.to_dict().items() if (chosen := _chosen(of))},
            "dedup": c.dedup.to_dict(),
            "ending": c.compression,
        },
        **({"paragraphs": c.paragraphs.to_dict()} if c.paragraphs.capacity else {}),
        **{f"score.{name}": c.scorers[name].to_dict() for name in named},
        "align": {
            "scorers": named,
            "score": score,
            "router": {k: v for k, v in c.router.to_dict().items() if k != "score"},
            "rewriter": c.rewriter.to_dict() if score else {},
            "gates": c.gates.to_dict(),
            "safety": c.scorers[deciding].to_dict() if score else {},
            "perplexity": c.scorers[c.gates.perplexity.split(".")[0]].to_dict() if c.gates.perplexity else {},
            "bounds": {
                name: {k: float(c.scorers[name][k]) for k in ("min_score", "max_score") if c.scorers[name][k] != ""}
                for name in named
            },
            "samples": c.samples,
            "seed": c.seed,
        },
    }


def knobs() -> dict[str, dict[str, str]]:
    """Every argument of every rule as text: a Python literal, or "default" where the pack and the rule decide."""
    found = {}
    for name in rules.RULES:
        arguments = list(rules.defaults(name))
        if arguments:
            found[name] = dict.fromkeys(arguments, "default")
    return found


def check_numbers(c) -> None:
    """Refuse sizes and shares that are none."""
    least = {"samples": 0, "read.max_document_mb": 1e-6, "slice_mb": 2**-20, "workers": 0}
    least |= {"paragraphs.capacity": 0, "rewriter.concurrency": 1, "rewriter.max_tokens": 1, "rewriter.retries": 0}
    shares = ("max_bad", "router.tag_probability")
    for name in (*least, *shares):
        value, most = functools.reduce(getattr, name.split("."), c), 1 if name in shares else math.inf
        if not least.get(name, 0) <= value <= most:
            need = "a share from 0 to 1" if name in shares else f"at least {least[name]:g}"
            raise InputError(f"{name}={value}: it is {need}; set --config.{name}")


def _check_values(name: str, given: Mapping[str, Any]) -> None:
    """Refuse a word where a rule takes a number, and one path where it takes several."""
    defaults = rules.defaults(name)
    for key, value in given.items():
        takes_number = isinstance(defaults[key], (int, float)) or defaults[key] is None
        if takes_number and not (value is None or isinstance(value, (int, float))):
            raise InputError(f"rules.{name}.{key}={value!r} is no number; its default is {defaults[key]}, None is off")
        if isinstance(defaults[key], tuple) and isinstance(value, str):
            raise InputError(f"rules.{name}.{key}={value!r}: it takes several, such as \"('{value}',)\"")


def _chosen(options: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a rule that are given: literals, or plain words where they are none."""
    found = {}
    for name, text in options.items():
        if text != "default":
            try:
                found[name] = ast.literal_eval(text) if isinstance(text, str) else text
            except (ValueError, SyntaxError):
                found[name] = text
    return found


def content_of(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's output depends on: its settings, with what files hold in the place of where they are."""
    found = dict(settings[stage])
    if stage == "screen":
        found["packs"] = [locales.load(name).sha256 for name in found["packs"]]
        found["language_model"] = _digests(found["language_model"])
        lists = [found["rules"].get(name, {}) for name in ("url", "wordlist")]
        found["lists"] = [_digests(path) for given in lists for path in _paths(given)]
    elif stage == "align":
        for name in ("safety", "perplexity"):
            found[name] = {**found[name], "path": _digests(found[name].get("path", ""))}
        rewriter = found["rewriter"]
        if rewriter:
            kept = {name: rewriter[name] for name in ("backend", "max_tokens")}
            found["rewriter"] = kept | {
                "model": _digests(rewriter["model"]),
                "conduct": conduct.load(rewriter["conduct"]).sha256,
            }
    elif stage.startswith("score."):
        found["path"] = _digests(found["path"])
    return found


def num_levels(scorer_settings: Mapping[str, Any]) -> int:
    """Levels that a scorer of ours tells apart; 0 where that is not known."""
    about = pathlib.Path(scorer_settings.get("path", ""), "scorer.json")
    return len(json.loads(about.read_text("utf-8"))["levels"]) if about.is_file() else 0


def _paths(given: Any) -> list[str]:
    """All texts in nested settings."""
    if isinstance(given, Mapping):
        return [path for value in given.values() for path in _paths(value)]
    if isinstance(given, (list, tuple)):
        return [path for value in given for path in _paths(value)]
    return [given] if isinstance(given, str) else []


def _digests(path: str) -> list[list[str]] | str:
    """Names and hashes of a file, or of the files of a folder; the text itself where it is neither."""
    where = pathlib.Path(path or ".")
    if not path or not where.exists():
        return path
    found = []
    for name in sorted(f for f in where.rglob("*") if f.is_file()) if where.is_dir() else [where]:
        with open(name, "rb") as f:
            found.append([name.name, hashlib.file_digest(f, "sha256").hexdigest()])
    return found


def check(settings: Mapping[str, Any]) -> None:
    """Refuse what a worker would refuse, before any work is given out."""
    if settings["ending"] not in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        raise InputError(f'compression={settings["ending"]!r}; shards are "zst", "gz" or "" for plain JSONL')
    align = settings["align"]
    screening(json.dumps(settings["screen"], sort_keys=True))
    for name in align["scorers"]:
        if settings[f"score.{name}"]["kind"] not in ("", "toyweb", *scorers.KINDS):
            scorer(name, json.dumps(settings[f"score.{name}"], sort_keys=True))  # which says what kinds there are
        kind, path = settings[f"score.{name}"]["kind"], settings[f"score.{name}"].get("path", "")
        if kind in ("linear", "fasttext", "embedding", "perplexity", "") and not path:
            raise InputError(
                f"scorer {name!r} has no model: give --config.scorers.{name}.path (experiments/scorer.py makes it), "
                f"or --config.skip=\"('{name}',)\" to go without, which the report will say"
            )
    router.check(align["router"]["keep_at"], align["router"]["drop_at"])
    if align["score"] and align["rewriter"]["backend"] not in BACKENDS:
        raise InputError(f"rewriter.backend={align['rewriter']['backend']!r} is none of {', '.join(BACKENDS)}")
    if align["score"]:
        code = conduct.load(align["rewriter"]["conduct"])
        if align["rewriter"]["backend"] == "openai":
            if not align["rewriter"]["model"]:
                raise InputError(
                    "there is no model to rewrite: give --config.rewriter.url and --config.rewriter.model of an "
                    "OpenAI-compatible endpoint, --config.rewriter.backend=flax with the folder of a model trained by "
                    "experiments/rewriter.py, or --config.rewriter.backend=none (mild texts stay, others go)"
                )
            backend(json.dumps(align["rewriter"]), code.sha256)


@functools.lru_cache(maxsize=2)
def screening(settings: str) -> pipeline.Screening:
    s = json.loads(settings)
    packs = {pack.name: pack for pack in map(locales.load, s["packs"])}
    chosen = s["rules"]
    rules.validate(s["chain"], chosen, packs)
    for name in s["chain"]:
        _check_values(name, chosen.get(name, {}))
        rules.RULES[name](batch.Batch([], next(iter(packs.values()))), **chosen.get(name, {}))  # reads its lists
    dedup = dict(s["dedup"])
    exact, near = dedup.pop("exact"), dedup.pop("minhash")
    return pipeline.Screening(
        chain=tuple(s["chain"]),
        settings=chosen,
        packs=packs,
        language_fn=_identifier(s, packs),
        minhash=minhash.Settings(**dedup) if near else None,
        exact=exact,
    )


def _identifier(s: Mapping[str, Any], packs: Mapping[str, locales.Pack]) -> Callable | None:
    """What tells documents apart by language; nothing where one pack serves all and no rule asks."""
    if "language" not in s["chain"] and len(packs) == 1:
        return None
    if s["language_model"]:
        return language.from_fasttext(s["language_model"])
    return functools.partial(language.identify, packs=packs)


def num_bands(settings: Mapping[str, Any]) -> dict[str, int]:
    """{kind of key: bands of it}: ids always, texts and near-duplicates as the config says."""
    dedup = settings["screen"]["dedup"]
    found = {"id": 1}
    if dedup["exact"]:
        found["exact"] = 1
    if dedup["minhash"]:
        found["minhash"] = dedup["num_buckets"]
    return found


def in_languages(
    score_fn: Callable[[Sequence[dict]], list[dict[str, float]]], name: str, languages: str
) -> Callable[[Sequence[dict]], list[dict[str, float]]]:
    """A scorer that is asked about documents in these languages alone; others have NAME.other_language and no score."""
    known = {part.strip() for part in languages.split(",")}

    def score(documents: Sequence[dict]) -> list[dict[str, float]]:
        is_known = [found in known for found, _ in language.identify([d["text"] for d in documents])]
        asked = [document for document, take in zip(documents, is_known, strict=True) if take]
        rows = iter(score_fn(asked) if asked else [])
        return [next(rows) if take else {f"{name}.other_language": 1.0} for take in is_known]

    return score


def scorer(name: str, settings: str, *, with_chunks: bool = False) -> Callable[[Sequence[dict]], list[dict[str, Any]]]:
    """Scores by name; `with_chunks`: and NAME.chunks of a scorer that has them, see `scorers`."""
    score_fn, s = _scorer(name, settings), json.loads(settings)
    if with_chunks:
        score_fn = getattr(score_fn, "with_chunks", score_fn)
    is_asked_all = s["kind"] == "toyweb" or not s.get("languages")
    return score_fn if is_asked_all else in_languages(score_fn, name, s["languages"])


@functools.lru_cache(maxsize=8)
def _scorer(name: str, settings: str) -> Callable[[Sequence[dict]], list[dict[str, float]]]:
    s = json.loads(settings)
    if s["kind"] == "toyweb":
        return lambda documents: [{f"{name}.level": float(toyweb.severity(d["text"]))} for d in documents]
    options = {"name": name}
    if s["kind"] == "fasttext" and s["label"]:
        options["label"] = s["label"]
    elif s["kind"] == "perplexity":
        from data.tokens import tokenizer  # a worker without a language model starts without it

        tok = tokenizer.load(s["path"].removeprefix("hf:"))
        options["encode_fn"] = lambda texts: [tok.encode(text) for text in texts]
    elif s["kind"] == "judge":
        options["complete"] = backends.openai(s["url"], s["model"])
    return scorers.load(s["kind"], s["path"], **options)


@functools.lru_cache(maxsize=1)
def aligning(settings: str, outputs: str, number: int) -> pipeline.Aligning:
    """What slice `number` is aligned with; its answers are kept in a cache of its own, out of the way of others."""
    s = json.loads(settings)
    score, chosen = s["score"], s["rewriter"]
    bounds = {f"{name}.score": tuple(of.get(k) for k in ("min_score", "max_score")) for name, of in s["bounds"].items()}
    if not score:
        return pipeline.Aligning(bounds=bounds)
    code = conduct.load(chosen["conduct"])
    name = score.split(".")[0]
    safety = scorer(name, json.dumps(s["safety"], sort_keys=True))
    measures = {
        "safety": lambda texts: [found.get(score) for found in safety([{"text": text} for text in texts])],
        "language": language.identify,
    }
    if s["perplexity"]:
        kind = s["gates"]["perplexity"]
        fluency = scorer(kind.split(".")[0], json.dumps(s["perplexity"], sort_keys=True))
        measures["perplexity"] = lambda texts: [found.get(kind) for found in fluency([{"text": t} for t in texts])]
    rewrite = asked = None
    if chosen["backend"] != "none":
        path = pathlib.Path(outputs, "stages/answers", f"{number:05d}.jsonl")
        asked = backend(json.dumps(chosen), code.sha256)
        rewrite = functools.partial(_rewrite, asked, code, cache.Cache(path), chosen["max_tokens"])
    return pipeline.Aligning(
        score=score,
        bounds=bounds,
        rewrite=rewrite,
        gates=measures,
        worker_id=f"{chosen['backend']}:{asked.name if asked else ''}",
        prompt_version=f"{code.name} {code.version} {code.sha256[:16]}",
        seed=s["seed"],
        **s["router"],
    )


@dataclasses.dataclass(frozen=True)
class Backend:
    """What rewrites, how it counts tokens, and its name in the cache's keys and the decisions."""

    complete: backends.Complete
    count_tokens: Callable[[str], int] = rewrite.count_tokens
    name: str = ""


def _rewrite(asked: Backend, code, kept, max_tokens: int, documents: Sequence[dict], kind: str) -> list[str | None]:
    options = {"kind": kind, "max_tokens": max_tokens, "model": asked.name, "count_tokens": asked.count_tokens}
    try:
        return rewrite.rewrite(documents, asked.complete, code, kept, **options)
    except backends.Down as e:
        raise errors.Stopped(f"the rewriter is down: {e}; its answers so far are kept") from e


@functools.lru_cache(maxsize=1)
def backend(settings: str, conduct_sha256: str) -> Backend:
    s = json.loads(settings)
    if s["backend"] == "openai":
        options = {"concurrency": s["concurrency"], "retries": s["retries"], "timeout_seconds": s["timeout_seconds"]}
        return Backend(backends.openai(s["url"], s["model"], api_key_env=s["api_key_env"], **options), name=s["model"])
    if s["backend"] == "flax":
        from experiments.filtering import worker  # imports JAX

        found = worker.load(s["model"])
        if found.conduct_sha256 not in ("", conduct_sha256):
            raise InputError(
                f"rewriter {s['model']} was trained under another code of conduct (sha256 {found.conduct_sha256[:16]}) "
                f"than {s['conduct']!r} ({conduct_sha256[:16]}); choose that pack, or train it anew"
            )
        return Backend(found.complete, found.count_tokens, found.name)
    return Backend(rewrite.echo(_without_harm if s["backend"] == "toyweb" else str), name=s["backend"])


def _without_harm(text: str) -> str:
    """A toy document without the sentences that hold its planted harm."""
    spans = toyweb.harmful_spans(text)
    is_harmful = lambda found: any(found.start() < stop and start < found.end() for start, stop in spans)  # noqa: E731
    return _SENTENCE.sub(lambda found: "" if is_harmful(found) else found[0], text)

"""Concepts and counterfactuals from a language model: an endpoint, a model in this process, or answers on disk."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from alignment import errors
from alignment.concepts import annotate, bag, rebalance
from alignment.decoding import backends, cache
from alignment.errors import InputError
from data import records
from data.texts import concept_sets
from data.texts.concept_sets import ConceptSet, Row
from experiments.concepts.sets import Task
from experiments.decoding import models
from experiments.evaluation import services
from experiments.launch import checks

NOBODY, ENDPOINT, MODEL, CACHE = BACKENDS = ("", "endpoint", "model", "cache")
ANNOTATIONS, WRITTEN = "annotations.jsonl", "counterfactuals.jsonl"
COUNTERFACTUAL_TOKENS = 256


def settings() -> dict[str, dict[str, Any]]:
    """The groups `annotation`, `writing` and `endpoint` of the config."""
    return dict(
        annotation=dict(
            backend=NOBODY,  # endpoint, model (the group decoder), cache; "": the texts bring their concepts
            about="reviews",  # what the texts are
            examples="",  # file of text and concepts, as demonstrations; "": none
            batch_size=5,  # texts of a request
            temperature=0.7,  # of an endpoint, and of the earlier run's with backend=cache
            retries=2,  # of a malformed answer
            cache="",  # answers of an earlier run; "": those of this workdir
        ),
        writing=dict(
            backend=NOBODY,  # who writes the counterfactuals that upsample lacks; "": nobody
            examples=5,  # texts with and as many without the concept in a request
            retries=2,
            cache="",
        ),
        endpoint=services.settings() | dict(model=""),  # with backend=cache: the name of who wrote the answers
    )


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs no text to be seen."""
    for name in ("annotation", "writing"):
        group = c[name]
        errors.one_of(f"{name}.backend", group.backend, BACKENDS)
        if group.backend == CACHE and not pathlib.Path(group.cache).is_file():
            raise InputError(
                f"{name}.backend=cache reads {name}.cache={group.cache!r}, which is not a file; write one with "
                f"--config.{name}.backend=endpoint, whose answers are in {ANNOTATIONS} or {WRITTEN} of its workdir"
            )
        if group.backend == CACHE and not c.endpoint.model:
            raise InputError(
                f"{name}.backend=cache needs endpoint.model, the name under which the answers were stored: that of the "
                f"earlier run, or for its {name}.backend=model the name that it printed"
            )
        if group.backend == ENDPOINT and not (c.endpoint.url and c.endpoint.model):
            raise InputError(f"{name}.backend=endpoint needs endpoint.url, up to /v1, and endpoint.model")
    checks.within(c, "[0, inf)", "annotation.retries", "writing.retries", "writing.examples")
    checks.within(c, "[1, inf)", "annotation.batch_size")
    if c.annotation.examples:
        records.check(c.annotation.examples)
    used = {c.annotation.backend, c.writing.backend}
    if ENDPOINT not in used and (c.endpoint.url or (c.endpoint.model and CACHE not in used)):
        raise InputError(
            "endpoint is read by annotation.backend=endpoint or writing.backend=endpoint alone, and its model by "
            "backend=cache too; leave it out"
        )


class Writer:
    """The backends of a run; the model in this process is loaded once."""

    def __init__(self, c: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
        self._c, self._folder = c, folder
        self._flax: tuple[backends.Complete, str] | None = None

    def asker(self, group: str, answers: cache.Cache, temperature: float) -> annotate.Asker:
        """For `annotation` or `writing`."""
        kind, sampling = self._c[group].backend, {"temperature": temperature}
        way_out = (
            f"give the texts, the groups {group} and data, the seed and endpoint.model of the run that wrote them (of "
            "backend=model its printed name, and annotation.temperature=0.0), or have them written with "
            f"--config.{group}.backend=endpoint and its --config.endpoint.url and model"
        )
        if kind == MODEL:
            complete, who = self._model()
            sampling = {"temperature": 0.0}
            print(f"{group}: answers are stored under the name {who} and temperature 0.0", flush=True)
        else:
            who = self._c.endpoint.model
            complete = None if kind == CACHE else self._endpoint(sampling)
        return annotate.Asker(complete, answers, who=who, way_out=way_out, sampling=sampling)

    def _endpoint(self, sampling: Mapping[str, Any]) -> backends.Complete:
        options = {name: value for name, value in services.options(self._c).items() if name != "model"}
        return backends.openai(self._c.endpoint.url, self._c.endpoint.model, extra=sampling, **options)

    def _model(self) -> tuple[backends.Complete, str]:
        if self._flax is None:
            model = models.load(self._c.decoder, self._folder)
            tok, c = model.tok, self._c.decoder
            complete = backends.flax(
                # as long as the texts need, because the cache of all slots is allocated at once
                lambda max_len: models.engine(model, c, max_len=max_len + c.engine.num_draft, order="longest"),
                encode=lambda chat: tok.encode(tok.render(chat, add_generation_prompt=True)),
                decode=tok.decode,
                max_prompt=c.engine.max_len,
            )
            self._flax = complete, model.digest
        return self._flax


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """A backend that no longer answers ends the run as one that may be started again; its answers are kept."""
    try:
        yield
    except backends.Down as e:
        raise errors.Stopped(str(e)) from e


def annotated(
    c: ml_collections.ConfigDict, texts: ConceptSet, writer: Writer, folder: pathlib.Path, counts: dict[str, int]
) -> ConceptSet:
    """The texts with concepts that two passes of a model agree on; the others are dropped and counted.

    Raises:
        InputError: texts without concepts, and nobody to name them.
    """
    bare = [row for row in texts.rows if row.concepts is None]
    if not bare:
        if c.annotation.backend:
            raise InputError(
                f"annotation.backend={c.annotation.backend!r}: all texts bring their concepts; leave it out"
            )
        return texts
    a = c.annotation
    if not a.backend:
        raise InputError(
            f"{len(bare)} texts have no concepts; give a column concepts, or --config.annotation.backend=endpoint with "
            "--config.endpoint.url and model, which names those of data.concepts"
        )
    examples = _examples(a.examples, c.data.concepts) if a.examples else []
    with stopping(), cache.Cache(a.cache or folder / ANNOTATIONS) as answers:
        asker = writer.asker("annotation", answers, a.temperature)
        options = dict(about=a.about, concepts=tuple(c.data.concepts), examples=examples, batch_size=a.batch_size)
        passes = [
            annotate.annotate(asker, [row.text for row in bare], **options, draw=draw, retries=a.retries)
            for draw in range(2)
        ]
    annotations = dict(zip((row.id for row in bare), annotate.agreed(*passes)))
    counts |= {f"annotation: {what}": num for what, num in asker.counts.items()}
    counts["texts on whose concepts two passes differ, dropped"] = sum(one is None for one in annotations.values())
    rows = [
        dataclasses.replace(row, concepts=annotations[row.id] if row.concepts is None else row.concepts)
        for row in texts.rows
    ]
    return dataclasses.replace(texts, rows=tuple(row for row in rows if row.concepts is not None))


def _examples(path: str, concepts: Sequence[str]) -> list[annotate.Example]:
    counts: dict[str, int] = {}
    out = []
    for row in records.read_counted(path, counts=counts):
        text = row.value.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.file}:{row.line}: an example needs a text, and its concepts")
        out.append((text, concept_sets.parse_concepts(row.value.get("concepts") or "", counts, concepts)))
    return out


def with_counterfactuals(
    c: ml_collections.ConfigDict, task: Task, writer: Writer, folder: pathlib.Path, counts: dict[str, int]
) -> Task:
    """The task with the counterfactuals that upsample lacks, written from training texts without the concept."""
    if not c.writing.backend:
        return task
    out: list[Row] = []
    with stopping(), cache.Cache(c.writing.cache or folder / WRITTEN) as answers:
        asker = writer.asker("writing", answers, 0.0)
        for concept in task.concepts:
            sources, chats = _requests(c, task, concept)
            said = asker.ask(
                chats,
                [COUNTERFACTUAL_TOKENS] * len(chats),
                lambda i, answer, sources=sources: annotate.parse_injection(answer, sources[i].text),
                retries=c.writing.retries,
            )
            out += [concept_sets.counterfactual(row, concept, text) for row, text in zip(sources, said) if text]
    counts |= {f"writing: {what}": num for what, num in asker.counts.items()}
    counts["counterfactuals written"] = len(out)
    every = (*task.all_texts.counterfactuals, *out)
    return dataclasses.replace(task, all_texts=dataclasses.replace(task.all_texts, counterfactuals=every))


def _requests(c: ml_collections.ConfigDict, task: Task, concept: str) -> tuple[list[Row], list[annotate.Messages]]:
    """Source texts for what each label lacks, and the chats that ask for them."""
    rng = np.random.default_rng([c.seed, *concept.encode()])
    rows = [row for row in task.rows(task.train) if row.injects != concept]
    labels_N = np.array([row.label for row in rows])
    has_N = np.array([concept in (row.concepts or ()) for row in rows], bool)
    pool_M = np.array([row.label for row in task.pool(concept)], np.int64)
    _, short_K = rebalance.upsample(labels_N, has_N, pool_M, num_labels=task.num_labels, rng=rng)
    sources: list[Row] = []
    for k, num in enumerate(short_K):
        there = np.flatnonzero(~has_N & (labels_N == k))
        sources += [rows[i] for i in rng.permutation(there)[:num]]
    examples = [
        [rows[i].text for i in rng.permutation(np.flatnonzero(mask))[: c.writing.examples]] for mask in (has_N, ~has_N)
    ]
    about = c.annotation.about
    return sources, [
        annotate.injection(about, concept, f"{row.label} of 0 to {task.num_labels - 1}", row.text, *examples)
        for row in sources
    ]


def kept_labels(task: Task, options: bag.Options) -> dict[str, float]:
    """Share of each concept's counterfactuals whose label a bag of words, trained on the other texts, predicts.

    It says how many of them may have lost their label; the bag itself errs too, so compare it with its accuracy.
    """
    pools = {concept: task.pool(concept) for concept in task.concepts}
    added = {row.id for pool in pools.values() for row in pool}
    rows = [row for row in task.rows(task.train) if row.id not in added]
    if not any(pools.values()):
        return {}
    fitted = bag.fit([row.text for row in rows], np.array([row.label for row in rows]), options)
    out = {}
    for concept, pool in pools.items():
        if pool:
            predicted_M = fitted.predict([row.text for row in pool])
            out[concept] = float((predicted_M == np.array([row.label for row in pool])).mean())
    return out

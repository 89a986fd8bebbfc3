"""The stages of a filter run: each maps one slice, or one band of keys, to files and a row of counts.

    screen      slice -> documents that pass the rules, with the keys by which duplicates are found
    band        a band of keys over all slices -> pairs of duplicates
    clusters    all pairs -> which documents go, and which document stays in the place of each
    paragraphs  all slices in turn -> lines that an earlier document already had (optional)
    score.NAME  slice -> an attribute file beside the text
    fallen      slice -> documents that their scores drop (where scores drop and near copies are looked for)
    stand_in    all groups of copies -> which documents go in the end: near copies stand in for those that fell
    align       slice -> documents kept, rewritten or dropped by their scores, with every measurement

A stage is a module-level function of (job, task), so that a process or a Ray worker can run it. What it writes depends
on the task and the settings alone, and the note that it is done comes last: killed anywhere, it is simply done again.
"""

import array
import contextlib
import dataclasses
import functools
import heapq
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alignment.filtering import pipeline, tally
from alignment.filtering.rules import chain as rules
from data.corpus import documents as readers
from data.corpus import shards, slices
from experiments.filtering import duplicates, jobs, standing_in
from experiments.filtering import tools as filter_tools
from experiments.filtering.jobs import Job

PASSAGE_SHOWN = 200  # characters
ROUTED = ("router", "rewriter", "gate")  # rules by which a safety score decides


def do(job: Job, numbered: tuple[str, int, Any]) -> dict[str, Any]:
    """One task of a stage, noted as done when all its files are written."""
    stage, index, task = numbered
    row = {"config_hash": job.hashes[stage], **stage_fn(stage)(job, task)}
    shards.finish(job.outputs, stage, index, row)
    return row


def stage_fn(stage: str) -> Callable[[Job, Any], dict[str, Any]]:
    if stage.startswith("score."):
        return functools.partial(score, name=stage.removeprefix("score."))
    return {"screen": screen, "align": align, **duplicates.STAGES, **standing_in.STAGES}[stage]


# Rules


def screen(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """A slice through the rules: what passes, what does not and why, and the keys that find duplicates."""
    stage, counts = job.stage("screen"), tally.empty()
    tools = filter_tools.screening(stage)
    with contextlib.ExitStack() as stack:
        put = stack.enter_context(job.writing(piece.index, _Screened.FOLDERS))
        spools = {
            name: stack.enter_context(duplicates.Spool(job.outputs, keys.shape[1]))
            for name, keys in pipeline.keys([], tools).items()
        }
        screened = _Screened(put)
        for batch in jobs.batches(slices.read(piece, **stage.settings["read"])):
            for bad in (item for item in batch if isinstance(item, slices.Bad)):
                put["stages/bad"].add(dataclasses.asdict(bad) | {"file": piece.name})
            documents = [item for item in batch if isinstance(item, dict)]
            verdicts = pipeline.screen(documents, tools, counts["counters"])
            passed = screened.add(documents, verdicts)
            for name, keys in pipeline.keys(passed, tools).items():
                spools[name].add(keys)
        keys_by_name = {name: spool.rows() for name, spool in spools.items()}
        key_files = duplicates.write_keys(job, piece.index, keys_by_name, screened.places)
    return {
        "tally": counts,
        "num_docs": screened.num,
        "num_passed": len(screened.places),
        "outputs": job.outputs_of(piece.index, put) | key_files,
    }


class _Screened:
    """Writes what the rules say of each document of a slice to the shards it belongs in.

    Attributes:
        num: documents so far.
        places: in the slice, of the documents that passed.
    """

    FOLDERS = ("stages/passed", "stages/dropped", "stages/bad", "removed/rules", "attributes/rules")

    def __init__(self, put: Mapping[str, shards.Writer]):
        self._put, self.num, self.places = put, 0, array.array("q")

    def add(self, documents: Sequence[dict], verdicts: Sequence[rules.Verdict]) -> list[dict]:
        """Write a batch, and return the documents that passed as the rules edited them."""
        passed = []
        for document, verdict in zip(documents, verdicts, strict=True):
            spans = {name: [[0, len(document["text"]), number]] for name, number in verdict.attributes.items()}
            self._put["attributes/rules"].add({"id": document["id"], "attributes": spans})
            if verdict.reason:
                self._drop(document, verdict)
            else:
                passed.append(self._pass(document, verdict))
            self.num += 1
        return passed

    def _drop(self, document: dict, verdict: rules.Verdict) -> None:
        self._put["removed/rules"].add(document | {"filter_step": verdict.rule, "filter_reason": verdict.reason})
        evidence = {"value": verdict.value, "threshold": verdict.threshold, "language": verdict.language}
        if verdict.reason == rules.UNKNOWN_LANGUAGE:  # there is no pack for it, whatever its probability
            del evidence["threshold"]
        row = pipeline.decision(document, "drop", verdict.rule, verdict.reason, evidence)
        row |= {"text_sha256_in": pipeline.sha256(document["text"]), "text_sha256_out": ""}
        excerpt = document["text"][: tally.TEXT_SHOWN]
        self._put["stages/dropped"].add({"at": self.num, "bytes": _size(document), "shown": excerpt, "row": row})

    def _pass(self, document: dict, verdict: rules.Verdict) -> dict:
        edited = document if verdict.text == document["text"] else document | {"text": verdict.text}
        more = {"bytes": _size(document), "sha256": pipeline.sha256(document["text"]), "language": verdict.language}
        self._put["stages/passed"].add({"document": edited, "at": self.num, **more})
        self.places.append(self.num)
        return edited


# Scores and what follows from them


def score(job: Job, piece: slices.Slice, *, name: str) -> dict[str, Any]:
    """One scorer's attributes of a slice, beside the text: a document's values, and those of its chunks."""
    score_fn = filter_tools.scorer(name, job.stage(f"score.{name}"), with_chunks=True)
    folder = f"attributes/{name}"
    with job.writing(piece.index, (folder,)) as put:
        for batch in jobs.batches(duplicates.candidates(job, piece.index)):
            documents = [row["document"] for row in batch]
            for document, scores in zip(documents, score_fn(documents), strict=True):
                size = len(document["text"])
                spans = {key: of if key.endswith(standing_in.CHUNKS) else [[0, size, of]] for key, of in scores.items()}
                put[folder].add({"id": document["id"], "attributes": spans})
    return {"outputs": job.outputs_of(piece.index, put)}


def aligned(
    job: Job, piece: slices.Slice, tools: pipeline.Aligning
) -> Iterator[tuple[dict, pipeline.Outcome, tuple, dict]]:
    """What passed a slice's rules, in order: its row, what became of it, its scores before and after, its chunks."""
    gone = duplicates.all_gone(job, piece.index, in_the_end=True)
    scored = standing_in.scored(job, piece.index)
    for batch in jobs.batches(row | {"attributes": of} for row, of in scored if row["at"] not in gone):
        attributes = [row.pop("attributes") for row in batch]
        scores = [standing_in.whole(of) for of in attributes]
        chunks = [{k: spans for k, spans in of.items() if k.endswith(standing_in.CHUNKS)} for of in attributes]
        outcomes = pipeline.align([row["document"] for row in batch], scores, tools)
        yield from zip(batch, outcomes, zip(scores, _after(job, outcomes, scores), strict=True), chunks, strict=True)


def _after(job: Job, outcomes: Sequence[pipeline.Outcome], scores: Sequence[Mapping]) -> list[Mapping[str, Any]]:
    """The scores of what goes to training: of a new text its own, as far as no service would have to be asked."""
    after = list(scores)
    new = [i for i, o in enumerate(outcomes) if o.text is not None and o.decision["action"] in pipeline.KINDS]
    rows: list[dict[str, Any]] = [{} for _ in new]
    for name, stage in job.scoring().items() if new else ():
        if name in job.settings["align"]["scorers"] and stage.settings["kind"] != "judge":
            values = filter_tools.scorer(name, stage)([{"text": outcomes[i].text} for i in new])
            rows = [row | value for row, value in zip(rows, values, strict=True)]
    for i, row in zip(new, rows, strict=True):
        after[i] = row
    return after


def passage(text: str, spans: Sequence[tuple[int, int, float | None]]) -> str:
    """The start of the chunk with the highest value, the first of equal ones; "" where there is only one chunk."""
    known = [span for span in spans if span[2] is not None]
    if len(spans) < 2 or not known:
        return ""
    start, end, _ = max(known, key=lambda span: span[2])
    return text[start : min(end, start + PASSAGE_SHOWN)]


def align(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """Route a slice's documents by their scores; every document that was read gets its decision."""
    settings = job.settings["align"]
    answers = pathlib.Path(job.outputs, f"stages/answers/{piece.index:05d}.jsonl")
    tools = filter_tools.aligning(job.stage("align"), job.scoring(), answers)
    kinds = {name: job.settings[f"score.{name}"]["kind"] for name in settings["scorers"]}
    perplexities = [f"{name}.score" for name, kind in kinds.items() if kind == "perplexity"]
    copies = standing_in.copies_of(job, piece.index)
    log = _Log(piece, perplexities, num_samples=settings["samples"], score=settings["score"], copies=copies)
    source = job.settings["screen"]["read"]["source"] or readers.folder_of(piece.file)
    folders = ("documents", "decisions", "errors", "removed/duplicates", "removed/align")
    with job.writing(piece.index, folders) as put:
        for bad in shards.read(job.path("stages/bad", piece.index)):
            put["errors"].add(bad)
            tally.count(log.counts, source, "bad", 0, bad["reason"].split(":")[0])
        gone = duplicates.all_gone(job, piece.index, in_the_end=True)
        if stood := len(standing_in.stood_in(job, piece.index)):
            tally.add(log.counts, "copies/stand in", stood)
        dropped = ((row["at"], log.dropped, (row,)) for row in shards.read(job.path("stages/dropped", piece.index)))
        doubled = (row for row in duplicates.passed_rules(job, piece.index) if row["at"] in gone)
        copies = ((row["at"], log.duplicate, (row, *gone[row["at"]])) for row in doubled)
        outcomes = ((row["at"], log.outcome, (row, *rest)) for row, *rest in aligned(job, piece, tools))
        # three streams, each in the order of the slice, merged into that order without holding any of them
        for _, write, rest in heapq.merge(dropped, copies, outcomes, key=lambda item: item[0]):
            write(put, *rest)
    return {"tally": log.counts, "outputs": job.outputs_of(piece.index, put)}


class _Log:
    """Writes what became of one document to the shards it belongs in, and counts it."""

    def __init__(
        self,
        piece: slices.Slice,
        perplexities: Sequence[str],
        *,
        num_samples: int,
        score: str,
        copies: Mapping[int, int],
    ):
        self.piece, self.counts, self.perplexities = piece, tally.empty(), perplexities
        self.num_samples, self.score, self.copies = num_samples, score, copies

    def dropped(self, put: Mapping[str, shards.Writer], dropped: Mapping[str, Any]) -> None:
        """A document that a rule dropped, as `screen` left it."""
        put["decisions"].add(dropped["row"])
        self._count(dropped["row"], dropped["bytes"], {"before": dropped["shown"]})

    def duplicate(
        self, put: Mapping[str, shards.Writer], row: Mapping[str, Any], code: int, first_slice: int, first_at: int
    ) -> None:
        """A copy of a document that stays, or a document with the id of another of its source.

        Args:
            code: an index of duplicates.REASONS.
            first_slice, first_at: where the document stands that stays.
        """
        document, reason = row["document"], duplicates.REASONS[code]
        first = {"slice": first_slice, "record": first_at}
        if code == duplicates.DUPLICATE_ID:
            place = {"file": self.piece.name, "record": row["at"], "slice": self.piece.index}
            put["errors"].add(place | {"reason": f"{reason}: {document['id']}", "first": first})
            tally.count(self.counts, document["source"], "bad", row["bytes"], reason)
            return
        more = {"text_sha256_in": row["sha256"], "text_sha256_out": ""}
        decision = pipeline.decision(document, "drop", "duplicates", reason, {"stands_back_for": first}, **more)
        put["decisions"].add(decision)
        put["removed/duplicates"].add(document | {"filter_step": "duplicates", "filter_reason": reason})
        self._count(decision, row["bytes"], {"before": document["text"]})

    def outcome(
        self,
        put: Mapping[str, shards.Writer],
        row: Mapping[str, Any],
        outcome: pipeline.Outcome,
        scores: tuple[Mapping[str, float | None], Mapping[str, float | None]],
        chunks: Mapping[str, Sequence],
    ) -> None:
        """A document that scores, the rewriter and its gates decided about."""
        document = row["document"]
        decision = outcome.decision | {"text_sha256_in": row["sha256"]}
        put["decisions"].add(decision)
        if outcome.text is None and (lost := self.copies.get(row["at"])):
            tally.add(self.counts, "copies/groups lost")
            tally.add(self.counts, "copies/lost", lost)
        if outcome.text is None:
            reason = {"filter_step": decision["rule"], "filter_reason": decision["reason"]}
            put["removed/align"].add(document | reason)
        else:
            put["documents"].add(document | {"text": outcome.text})
            tally.add(self.counts, "bytes_out", len(outcome.text.encode()))
        texts = {"before": document["text"], "after": outcome.text or ""}
        if decision["rule"] in ROUTED and (decision["rule"], decision["action"]) != ("router", "keep"):
            highest = passage(document["text"], chunks.get(self.score.split(".")[0] + standing_in.CHUNKS, ()))
            texts |= {"highest passage": highest} if highest else {}
        self._count(decision, row["bytes"], texts)
        self._measure(outcome, *scores)

    def _count(self, row: Mapping[str, Any], num_bytes: int, texts: Mapping[str, str]) -> None:
        reason = f"{row['rule']}/{row['reason']}" if row["action"] == "drop" else row["reason"]
        tally.count(self.counts, row["source"], row["action"], num_bytes, reason)
        about = {"id": row["id"], "source": row["source"], "rule": row["rule"], "reason": row["reason"]}
        tally.sample(self.counts, row["action"], row["id"], about | dict(texts), self.num_samples)

    def _measure(
        self, outcome: pipeline.Outcome, before: Mapping[str, float | None], after: Mapping[str, float | None]
    ) -> None:
        gate = outcome.gate
        for when, scores in (("before", before), ("after", after)):
            if when == "after" and outcome.text is None:
                continue
            for name, number in scores.items():
                if name in self.perplexities and number:
                    name, number = f"log10 {name}", math.log10(number)
                if number is not None and name.endswith((".score", ".level")):
                    tally.histogram(self.counts, f"{name} {when}", [number], 0, 5)
        if gate is None:
            return
        for name in gate.failed:
            tally.add(self.counts, f"gate/{name}")
        is_same = gate.accepted and outcome.decision["reason"] == "unchanged"
        tally.add(self.counts, "gate/unchanged" if is_same else "gate/accepted" if gate.accepted else "gate/rejected")
        if "edit_similarity" in gate.measurements:
            tally.histogram(self.counts, "edit similarity", [gate.measurements["edit_similarity"]], 0, 1)


def _size(document: Mapping[str, Any]) -> int:
    return len(document["text"].encode())

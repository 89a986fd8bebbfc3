"""The stages of a filter run: each maps one slice, or one band of keys, to files and a row of counts.

    screen      slice -> documents that pass the rules, with the keys by which duplicates are found
    band        a band of keys over all slices -> pairs of duplicates
    clusters    all pairs -> which documents go, and for which they stand back
    score.NAME  slice -> an attribute file beside the text
    align       slice -> what is left: kept, rewritten or dropped by its scores, with every measurement

A stage is a module-level function of (job, task), so that a process or a Ray worker can run it. What it writes depends
on the task and the settings alone, and the note that it is done comes last: killed anywhere, it is simply done again.
"""

import dataclasses
import functools
import heapq
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.filtering import bands, clusters, pipeline, tally
from data import shards, slices
from experiments import filter_tools

BATCH = 512  # documents that go through a stage together
DUPLICATE_ID, EXACT, NEAR = "duplicate id", "duplicate_exact", "duplicate_near"


@dataclasses.dataclass(frozen=True)
class Job:
    """What every task of a run shares.

    Args:
        outputs: folder of everything written.
        settings: {stage: what it depends on} as plain values, and "ending", that of a shard's name.
        hashes: {stage: hash of its settings and of the stages before it}.
        num_slices: of the whole input.
    """

    outputs: str
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]
    num_slices: int

    def name(self, *parts: str | int) -> str:
        """A file below `outputs`; a number at the end is a shard's."""
        return "/".join(f"{p:05d}{self.settings['ending']}" if isinstance(p, int) else p for p in parts)

    def path(self, *parts: str | int) -> pathlib.Path:
        return pathlib.Path(self.outputs, self.name(*parts))

    def writing(self, index: int, folders: Sequence[str]):
        """A shard in each of these folders at once; see `shards.writers`."""
        return shards.writers({folder: self.path(folder, index) for folder in folders})

    def told(self, index: int, writers) -> dict[str, Any]:
        return {self.name(folder, index): writer.told for folder, writer in writers.items()}


def do(stage: str, stage_fn: Callable, job: Job, index: int, task: Any) -> dict[str, Any]:
    """One task of a stage, noted as done when all its files are written."""
    row = {"config_hash": job.hashes[stage], **stage_fn(job, task)}
    shards.finish(job.outputs, stage, index, row)
    return row


def batches(rows: Iterable[Any], size: int = BATCH) -> Iterator[list[Any]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def screen(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """A slice through the rules: what passes, what does not and why, and the keys that find duplicates."""
    tools = filter_tools.screening(_text(job.settings["screen"]))
    counts, keys, places, at = tally.empty(), [], [], 0
    folders = ("stages/passed", "stages/dropped", "stages/bad", "removed/rules", "attributes/rules")
    with job.writing(piece.index, folders) as put:
        for batch in batches(slices.read(piece, **job.settings["screen"]["read"])):
            for bad in (item for item in batch if isinstance(item, slices.Bad)):
                put["stages/bad"].add(dataclasses.asdict(bad))
            documents = [item for item in batch if isinstance(item, dict)]
            verdicts = pipeline.screen(documents, tools, counts["counters"])
            passed = []
            for at, (document, verdict) in enumerate(zip(documents, verdicts, strict=True), at):
                sha = pipeline.sha256(document["text"])
                size = len(document["text"])
                spans = {name: [[0, size, number]] for name, number in verdict.attributes.items()}
                put["attributes/rules"].add({"id": document["id"], "attributes": spans})
                if verdict.reason:
                    put["removed/rules"].add(document | {"filter_step": verdict.rule, "filter_reason": verdict.reason})
                    evidence = {"value": verdict.value, "threshold": verdict.threshold, "language": verdict.language}
                    row = pipeline.decision(document, "drop", verdict.rule, verdict.reason, evidence)
                    row |= {"text_sha256_in": sha, "text_sha256_out": ""}
                    shown = document["text"][: tally.TEXT_SHOWN]
                    put["stages/dropped"].add({"at": at, "bytes": _size(document), "shown": shown, "row": row})
                else:
                    edited = document if verdict.text == document["text"] else document | {"text": verdict.text}
                    more = {"at": at, "bytes": _size(document), "sha256": sha, "language": verdict.language}
                    put["stages/passed"].add({"document": edited, **more})
                    passed.append(edited)
                    places.append(at)
            at += bool(documents)
            keys.append(pipeline.keys(passed, tools))
    found = {name: np.concatenate([k[name] for k in keys]) for name in keys[0]} if keys else {}
    key_files = bands_written(job, piece.index, found, places)
    return {"tally": counts, "num_passed": len(places), "outputs": job.told(piece.index, put) | key_files}


def bands_written(job: Job, index: int, keys: Mapping[str, np.ndarray], places: Sequence[int]) -> dict[str, Any]:
    at_N = np.asarray(places, np.uint64)
    told = {}
    for name, keys_NB in keys.items():
        path = f"stages/keys/{name}/{index:05d}.keys"
        told[path] = bands.write(pathlib.Path(job.outputs, path), keys_NB, at_N)
    return told


def align(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """What is left of a slice after duplicates went, by its scores; every document gets its decision."""
    settings = job.settings["align"]
    tools = filter_tools.aligning(_text(settings), job.outputs)
    counts, most = tally.empty(), settings["samples"]
    gone = gone_of(job, piece.index)
    folders = ("documents", "decisions", "errors", "removed/duplicates", "removed/align")
    with job.writing(piece.index, folders) as put:
        for bad in shards.read(job.path("stages/bad", piece.index)):
            put["errors"].add(bad)
            tally.count(counts, piece.name, "bad", 0, bad["reason"].split(":")[0])
        dropped = ((row["at"], 0, row) for row in shards.read(job.path("stages/dropped", piece.index)))
        left = ((row["at"], 1, row) for row in aligned(job, piece, tools, gone))
        for _, is_left, row in heapq.merge(dropped, left, key=lambda item: item[0]):
            record(row, put, counts, most) if is_left else _record_dropped(row, put, counts, most)
    return {"tally": counts, "outputs": job.told(piece.index, put)}


def passed(job: Job, index: int) -> Iterator[dict[str, Any]]:
    """What the rules let pass of a slice, without the duplicates; with `at`, its place in the slice."""
    gone = gone_of(job, index)
    return (row for row in shards.read(job.path("stages/passed", index)) if row["at"] not in gone)


def score(job: Job, piece: slices.Slice, *, name: str) -> dict[str, Any]:
    """One scorer's attributes of a slice, beside the text."""
    score_fn = filter_tools.scorer(name, _text(job.settings[f"score.{name}"]))
    folder = f"attributes/{name}"
    with job.writing(piece.index, (folder,)) as put:
        for batch in batches(passed(job, piece.index)):
            documents = [row["document"] for row in batch]
            for document, found in zip(documents, score_fn(documents), strict=True):
                spans = {key: [[0, len(document["text"]), number]] for key, number in found.items()}
                put[folder].add({"id": document["id"], "attributes": spans})
    return {"outputs": job.told(piece.index, put)}


def aligned(job: Job, piece: slices.Slice, tools: pipeline.Aligning) -> Iterator[tuple[dict, pipeline.Outcome, dict]]:
    """What passed a slice's rules, in order: its row, what became of it, its scores."""
    names = job.settings["align"]["scorers"]
    scored = [shards.read(job.path(f"attributes/{name}", piece.index)) for name in names]
    for batch in batches(passed(job, piece.index)):
        scores = [{} for _ in batch]
        for rows in scored:
            for row, into, found in zip(batch, scores, rows):
                if row["document"]["id"] != found["id"]:
                    raise InputError(f"attributes of slice {piece.index} are of another text; remove {job.outputs}")
                into |= {key: spans[0][2] for key, spans in found["attributes"].items()}
        outcomes = pipeline.align([row["document"] for row in batch], scores, tools)
        yield from zip(batch, outcomes, scores, strict=True)


def align(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """What is left of a slice after duplicates went, by its scores; every document gets its decision."""
    settings = job.settings["align"]
    tools = filter_tools.aligning(_text(settings), job.outputs)
    log = _Log(tally.empty(), settings["samples"])
    folders = ("documents", "decisions", "errors", "removed/duplicates", "removed/align")
    with job.writing(piece.index, folders) as put:
        for bad in shards.read(job.path("stages/bad", piece.index)):
            put["errors"].add(bad)
            tally.count(log.counts, bad["source"], "bad", 0, bad["reason"].split(":")[0])
        gone = gone_of(job, piece.index)
        ways = [
            ((row["at"], log.dropped, row) for row in shards.read(job.path("stages/dropped", piece.index))),
            ((row["at"], log.duplicate, (row, gone[row["at"]])) for row in duplicates(job, piece.index, gone)),
            ((row["at"], log.outcome, (row, *rest)) for row, *rest in aligned(job, piece, tools)),
        ]
        for _, write, row in heapq.merge(*ways, key=lambda item: item[0]):
            write(put, row)
    return {"tally": log.counts, "outputs": job.told(piece.index, put)}


class _Log:
    """Writes what became of one document to the files it belongs in, and counts it."""

    def __init__(self, counts: dict[str, Any], num_samples: int):
        self.counts, self.num_samples = counts, num_samples

    def dropped(self, put, found) -> None:
        """By a rule."""
        row = found["row"]
        put["decisions"].add(row)
        self._count(row, found["bytes"], {"before": found["shown"]})

    def duplicate(self, put, found) -> None:
        """Of a document that stays, or with an id that another document of its source has."""
        row, (reason, kept) = found
        document = row["document"]
        if reason == DUPLICATE_ID:
            place = {"file": row["file"], "offset": row["offset"], "line": row["line"]}
            put["errors"].add(place | {"reason": f"{DUPLICATE_ID}: {document['id']}", "source": document["source"]})
            tally.count(self.counts, document["source"], "bad", row["bytes"], DUPLICATE_ID)
            return
        evidence = {"stands_back_for": {"slice": kept[0], "at": kept[1]}}
        more = {"text_sha256_in": row["sha256"], "text_sha256_out": ""}
        decision = pipeline.decision(document, "drop", "duplicates", reason, evidence, **more)
        put["decisions"].add(decision)
        put["removed/duplicates"].add(document | {"filter_step": "duplicates", "filter_reason": reason})
        self._count(decision, row["bytes"], {"before": document["text"]})

    def outcome(self, put, found) -> None:
        """Of scores, rewriting and gates."""
        row, outcome, scores = found
        document, decision = row["document"], outcome.decision
        decision = decision | {"text_sha256_in": row["sha256"]}
        put["decisions"].add(decision)
        if outcome.text is None:
            reason = {"filter_step": decision["rule"], "filter_reason": decision["reason"]}
            put["removed/align"].add(document | reason)
        else:
            put["documents"].add(document | {"text": outcome.text})
        self._count(decision, row["bytes"], {"before": document["text"], "after": outcome.text or ""})
        self._measure(outcome, scores)

    def _count(self, row, num_bytes: int, shown: Mapping[str, str]) -> None:
        reason = f"{row['rule']}/{row['reason']}" if row["action"] == "drop" else row["reason"]
        tally.count(self.counts, row["source"], row["action"], num_bytes, reason)
        about = {"id": row["id"], "source": row["source"], "rule": row["rule"], "reason": row["reason"]}
        tally.sample(self.counts, row["action"], row["id"], about | dict(shown), self.num_samples)

    def _measure(self, outcome: pipeline.Outcome, scores: Mapping[str, float | None]) -> None:
        for name, number in scores.items():
            if number is not None:
                low, high = (0, 5) if name.endswith("safety") or ".level" in name else (0, 1)
                tally.histogram(self.counts, f"{name} before", [number], low, high)
                if outcome.text is not None:
                    gate = outcome.gate
                    after = gate.measurements.get("safety_after") if gate is not None and gate.accepted else None
                    tally.histogram(self.counts, f"{name} after", [number if after is None else after], low, high)
        gate = outcome.gate
        if gate is None:
            return
        for name in gate.failed:
            tally.add(self.counts["counters"], f"gate/{name}")
        tally.add(self.counts["counters"], "gate/accepted" if gate.accepted else "gate/rejected")
        if "edit_similarity" in gate.measurements:
            tally.histogram(self.counts, "edit similarity", [gate.measurements["edit_similarity"]], 0, 1)


def band(job: Job, task: tuple[str, int]) -> dict[str, Any]:
    """The pairs of equal keys in one band, over all slices."""
    name, number = task
    paths = [pathlib.Path(job.outputs, f"stages/keys/{name}/{i:05d}.keys") for i in range(job.num_slices)]
    path = f"stages/pairs/{name}-{number:02d}.pairs"
    return {"outputs": {path: clusters.write_pairs(pathlib.Path(job.outputs, path), bands.pairs(paths, number))}}
def _size(document: Mapping[str, Any]) -> int:
    return len(document["text"].encode())


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)

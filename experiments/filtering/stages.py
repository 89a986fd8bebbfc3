"""The stages of a filter run: each maps one slice, or one band of keys, to files and a row of counts.

    screen      slice -> documents that pass the rules, with the keys by which duplicates are found
    band        a band of keys over all slices -> pairs of duplicates
    clusters    all pairs -> which documents go, and for which they stand back
    paragraphs  all slices in turn -> lines that stood in an earlier document (optional)
    score.NAME  slice -> an attribute file beside the text
    align       slice -> what is left: kept, rewritten or dropped by its scores, with every measurement

A stage is a module-level function of (job, task), so that a process or a Ray worker can run it. What it writes depends
on the task and the settings alone, and the note that it is done comes last: killed anywhere, it is simply done again.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import heapq
import json
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.filtering import pipeline, tally
from alignment.filtering.duplicates import bands, bloom, clusters
from data.corpus import documents as readers
from data.corpus import shards, slices
from experiments.filtering import tools as filter_tools

BATCH, BATCH_CHARACTERS = 512, 4 << 20  # documents that go through a stage together, and of their texts; at least one
DUPLICATE_ID, EXACT, NEAR, EMPTIED = range(4)  # why a document goes for the sake of others
CHUNKS = ".chunks"  # how an attribute ends that holds a span a chunk; the others have one over the whole document
PASSAGE_SHOWN = 200  # characters
ROUTED = ("router", "rewriter", "gate")  # rules by which a safety score decides
REASONS = ("duplicate id", "duplicate_exact", "duplicate_near", "duplicate_paragraphs")


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
        return {self.name(folder, index): writer.summary for folder, writer in writers.items()}


def do(job: Job, numbered: tuple[str, int, Any]) -> dict[str, Any]:
    """One task of a stage, noted as done when all its files are written."""
    stage, index, task = numbered
    row = {"config_hash": job.hashes[stage], **stage_fn(stage)(job, task)}
    shards.finish(job.outputs, stage, index, row)
    return row


def stage_fn(stage: str) -> Callable[[Job, Any], dict[str, Any]]:
    if stage.startswith("score."):
        return functools.partial(score, name=stage.removeprefix("score."))
    return {"screen": screen, "band": band, "clusters": cluster, "paragraphs": paragraphs, "align": align}[stage]


def batches(rows: Iterable[Any], size: int = BATCH, most: int = BATCH_CHARACTERS) -> Iterator[list[Any]]:
    """Rows in lists of so many, fewer where texts are long: what rules and hashes hold grows with characters."""
    batch, length = [], 0
    for row in rows:
        if isinstance(row, dict):
            length += len(row.get("document", row).get("text", ""))
        batch.append(row)
        if len(batch) == size or length >= most:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def screen(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """A slice through the rules: what passes, what does not and why, and the keys that find duplicates."""
    tools = filter_tools.screening(_text(job.settings["screen"]))
    counts, keys, places, at = tally.empty(), {}, array.array("q"), 0
    folders = ("stages/passed", "stages/dropped", "stages/bad", "removed/rules", "attributes/rules")
    with contextlib.ExitStack() as stack:
        put = stack.enter_context(job.writing(piece.index, folders))
        for name, found in pipeline.keys([], tools).items():
            keys[name] = stack.enter_context(_Spool(job.outputs, found.shape[1]))
        for batch in batches(slices.read(piece, **job.settings["screen"]["read"])):
            for bad in (item for item in batch if isinstance(item, slices.Bad)):
                put["stages/bad"].add(dataclasses.asdict(bad) | {"file": piece.name})
            documents = [item for item in batch if isinstance(item, dict)]
            verdicts = pipeline.screen(documents, tools, counts["counters"])
            passed = []
            for document, verdict in zip(documents, verdicts, strict=True):
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
                at += 1
            for name, found in pipeline.keys(passed, tools).items():
                keys[name].add(found)
        key_files = write_keys(job, piece.index, {name: spool.rows() for name, spool in keys.items()}, places)
    return {
        "tally": counts,
        "num_docs": at,
        "num_passed": len(places),
        "outputs": job.told(piece.index, put) | key_files,
    }


class _Spool:
    """Rows of 64-bit keys that grow in a nameless file, since a slice may hold more than memory should."""

    def __init__(self, folder: str, width: int):
        self._file, self._width = tempfile.TemporaryFile(dir=folder), width  # noqa: SIM115

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *unused) -> None:
        self._file.close()

    def add(self, keys_NB: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(keys_NB, np.uint64).tobytes())

    def rows(self) -> np.ndarray:
        """All of them, mapped."""
        self._file.flush()
        size = self._file.tell()
        if not size:
            return np.empty((0, self._width), np.uint64)
        return np.memmap(self._file, np.uint64, "r").reshape(-1, self._width)


def write_keys(job: Job, index: int, keys: Mapping[str, np.ndarray], places: Sequence[int]) -> dict[str, Any]:
    """The keys of a slice, a file for each kind, under the documents' places in it."""
    told = {}
    for name, found in keys.items():
        path = key_path(job, name, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        bands.write(path, found if name == "minhash" else found[:, None], np.asarray(places, np.int64))
        told[str(path.relative_to(job.outputs))] = {"rows": len(found), **_told(path)}
    return told


def key_path(job: Job, name: str, index: int) -> pathlib.Path:
    return pathlib.Path(job.outputs, f"stages/keys/{name}/{index:05d}.keys")


def band(job: Job, task: tuple[str, int]) -> dict[str, Any]:
    """The pairs of equal keys in one band, over all slices: rows of (slice, at, slice, at)."""
    name, number = task
    path = pair_path(job, name, number)
    num_pairs = 0
    with shards.whole_file(path) as sink:
        for pairs_P4 in bands.pairs([key_path(job, name, i) for i in range(job.num_slices)], number):
            sink.write(pairs_P4.astype("<i8").tobytes())
            num_pairs += len(pairs_P4)
    return {"outputs": {str(path.relative_to(job.outputs)): sink.summary(num_pairs)}}


def pair_path(job: Job, name: str, number: int) -> pathlib.Path:
    return pathlib.Path(job.outputs, f"stages/pairs/{name}-{number:02d}.pairs")


def cluster(job: Job, num_bands: Mapping[str, int]) -> dict[str, Any]:
    """Which documents go, slice by slice: rows of (at, reason, slice and place of the one that stays)."""
    repeated = clusters.solve(_pairs(job, {"id": 1}))
    exact = clusters.solve(_pairs(job, {name: num for name, num in num_bands.items() if name == "exact"}))
    alike = clusters.solve(_pairs(job, {name: num for name, num in num_bands.items() if name != "id"}))
    alike = _without(alike, repeated)
    told = {}
    for index in range(job.num_slices):
        same = exact.removed_in(index)
        gone = {at: (EXACT if at in same else NEAR, *kept) for at, kept in alike.removed_in(index).items()}
        gone |= {at: (DUPLICATE_ID, *kept) for at, kept in repeated.removed_in(index).items()}
        rows_R4 = np.array([(at, *found) for at, found in sorted(gone.items())], "<i8").reshape(-1, 4)
        path = gone_path(job, index)
        with shards.whole_file(path) as sink:
            sink.write(rows_R4.tobytes())
        told[str(path.relative_to(job.outputs))] = sink.summary(len(rows_R4))
    return {"outputs": told}


def _without(found: clusters.Clusters, bad: clusters.Clusters) -> clusters.Clusters:
    """The groups with another document to stay where that one is itself set aside: the next smallest of its group."""
    bad_ids = set(bad.as_dict())
    rows = [(*at, *kept) for at, kept in found.as_dict().items() if at not in bad_ids]
    heads: dict[tuple[int, int], tuple[int, int]] = {}
    left = []
    for number, at, kept_slice, kept_at in rows:
        head = (kept_slice, kept_at)
        if head in bad_ids:
            if head not in heads:
                heads[head] = (number, at)
                continue
            head = heads[head]
        left.append((number, at, *head))
    columns = np.array(left, np.int64).reshape(-1, 4).T
    return clusters.Clusters(*columns)


def gone_path(job: Job, index: int) -> pathlib.Path:
    return pathlib.Path(job.outputs, f"stages/gone/{index:05d}.rows")


def gone_of(job: Job, index: int) -> dict[int, tuple[int, int, int]]:
    """What goes of a slice: {at: (reason, slice and place of the one that stays)}."""
    rows_R4 = np.fromfile(gone_path(job, index), "<i8").reshape(-1, 4)
    return {at: tuple(found) for at, *found in rows_R4.tolist()}


def _pairs(job: Job, num_bands: Mapping[str, int], rows: int = 1 << 20) -> Iterator[np.ndarray]:
    for name, num in num_bands.items():
        for number in range(num):
            with open(pair_path(job, name, number), "rb") as f:
                while raw := f.read(rows * 32):
                    yield np.frombuffer(raw, "<i8").reshape(-1, 4)


def _told(path: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as f:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def paragraphs(job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """Lines that came up before, slice by slice: rows of {at, marks}; one worker, since a Bloom filter sees all."""
    seen = bloom.Filter(options["capacity"], options["error"])
    told = {}
    for index in range(job.num_slices):
        gone = gone_of(job, index)
        with job.writing(index, ("stages/paragraphs",)) as put:
            for rows in batches(row for row in _passed(job, index) if row["at"] not in gone):
                texts = [row["document"]["text"] for row in rows]
                for row, marks in zip(rows, bloom.paragraphs(seen, texts, min_words=options["min_words"])):
                    if any(marks):
                        put["stages/paragraphs"].add({"at": row["at"], "marks": [int(mark) for mark in marks]})
        told |= job.told(index, put)
    return {"outputs": told}


def passed(job: Job, index: int) -> Iterator[dict[str, Any]]:
    """What the rules let pass of a slice, without duplicates and repeated lines; with `at`, its place in the slice."""
    gone = all_gone(job, index)
    return (row for row in _cut(job, index) if row["at"] not in gone)


def all_gone(job: Job, index: int) -> dict[int, tuple[int, int, int]]:
    """`gone_of`, and documents of which repeated lines leave nothing."""
    gone = gone_of(job, index)
    if "paragraphs" in job.settings:
        blank = (row["at"] for row in _cut(job, index) if not row["document"]["text"].strip())
        gone |= {at: (EMPTIED, index, at) for at in blank if at not in gone}
    return gone


def _cut(job: Job, index: int) -> Iterator[dict[str, Any]]:
    """What passed, without the lines that other documents have; the text of a blank one is blank."""
    if "paragraphs" not in job.settings:
        yield from _passed(job, index)
        return
    found = shards.read(job.path("stages/paragraphs", index))
    mark = next(found, None)
    for row in _passed(job, index):
        if mark is not None and row["at"] == mark["at"]:
            text = bloom.without(row["document"]["text"], mark["marks"])
            row["document"] = row["document"] | {"text": text}
            mark = next(found, None)
        yield row


def _passed(job: Job, index: int) -> Iterator[dict[str, Any]]:
    return shards.read(job.path("stages/passed", index))


def score(job: Job, piece: slices.Slice, *, name: str) -> dict[str, Any]:
    """One scorer's attributes of a slice, beside the text: a document's values, and those of its chunks."""
    score_fn = filter_tools.scorer(name, _text(job.settings[f"score.{name}"]), with_chunks=True)
    folder = f"attributes/{name}"
    with job.writing(piece.index, (folder,)) as put:
        for batch in batches(passed(job, piece.index)):
            documents = [row["document"] for row in batch]
            for document, found in zip(documents, score_fn(documents), strict=True):
                size = len(document["text"])
                spans = {key: of if key.endswith(CHUNKS) else [[0, size, of]] for key, of in found.items()}
                put[folder].add({"id": document["id"], "attributes": spans})
    return {"outputs": job.told(piece.index, put)}


def aligned(
    job: Job, piece: slices.Slice, tools: pipeline.Aligning
) -> Iterator[tuple[dict, pipeline.Outcome, dict, dict]]:
    """What passed a slice's rules, in order: its row, what became of it, its scores, the spans of its chunks."""
    names = job.settings["align"]["scorers"]
    scored = [shards.read(job.path(f"attributes/{name}", piece.index)) for name in names]
    for batch in batches(passed(job, piece.index)):
        scores, chunks = [{} for _ in batch], [{} for _ in batch]
        for rows in scored:
            for row, numbers, spans_of, found in zip(batch, scores, chunks, rows):
                if row["document"]["id"] != found["id"]:
                    raise InputError(f"attributes of slice {piece.index} are of another text; remove {job.outputs}")
                for key, spans in found["attributes"].items():
                    if key.endswith(CHUNKS):
                        spans_of[key] = spans
                    else:
                        numbers[key] = spans[0][2]
        outcomes = pipeline.align([row["document"] for row in batch], scores, tools)
        yield from zip(batch, outcomes, scores, chunks, strict=True)


def passage(text: str, spans: Sequence[tuple[int, int, float | None]]) -> str:
    """How the chunk with the highest value begins (the first of these); "" where there is but one chunk."""
    known = [span for span in spans if span[2] is not None]
    if len(spans) < 2 or not known:
        return ""
    start, end, _ = max(known, key=lambda span: span[2])
    return text[start : min(end, start + PASSAGE_SHOWN)]


def align(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """What is left of a slice after duplicates went, by its scores; every document gets its decision."""
    settings = job.settings["align"]
    tools = filter_tools.aligning(_text(settings), job.outputs, piece.index)
    kinds = {name: job.settings[f"score.{name}"]["kind"] for name in settings["scorers"]}
    log = _Log(piece, settings, [f"{name}.score" for name, kind in kinds.items() if kind == "perplexity"])
    source = job.settings["screen"]["read"]["source"] or readers.folder_of(piece.file)
    folders = ("documents", "decisions", "errors", "removed/duplicates", "removed/align")
    with job.writing(piece.index, folders) as put:
        for bad in shards.read(job.path("stages/bad", piece.index)):
            put["errors"].add(bad)
            tally.count(log.counts, source, "bad", 0, bad["reason"].split(":")[0])
        gone = all_gone(job, piece.index)
        ways = [
            ((row["at"], log.dropped, row) for row in shards.read(job.path("stages/dropped", piece.index))),
            (
                (row["at"], log.duplicate, (row, gone[row["at"]]))
                for row in _passed(job, piece.index)
                if row["at"] in gone
            ),
            ((row["at"], log.outcome, (row, *rest)) for row, *rest in aligned(job, piece, tools)),
        ]
        for _, write, row in heapq.merge(*ways, key=lambda item: item[0]):
            write(put, row)
    return {"tally": log.counts, "outputs": job.told(piece.index, put)}


class _Log:
    """Writes what became of one document to the files it belongs in, and counts it."""

    def __init__(self, piece: slices.Slice, settings: Mapping[str, Any], perplexities: Sequence[str]):
        self.piece, self.counts, self.perplexities = piece, tally.empty(), perplexities
        self.num_samples, self.score = settings["samples"], settings["score"]

    def dropped(self, put, found) -> None:
        """By a rule."""
        row = found["row"]
        put["decisions"].add(row)
        self._count(row, found["bytes"], {"before": found["shown"]})

    def duplicate(self, put, found) -> None:
        """Of a document that stays, or with an id that another document of its source has."""
        row, (reason, kept_slice, kept_at) = found
        document, said = row["document"], REASONS[reason]
        kept = {"slice": kept_slice, "record": kept_at}
        if reason == DUPLICATE_ID:
            place = {"file": self.piece.name, "record": row["at"], "slice": self.piece.index}
            put["errors"].add(place | {"reason": f"{said}: {document['id']}", "first": kept})
            tally.count(self.counts, document["source"], "bad", row["bytes"], said)
            return
        more = {"text_sha256_in": row["sha256"], "text_sha256_out": ""}
        decision = pipeline.decision(document, "drop", "duplicates", said, {"stands_back_for": kept}, **more)
        put["decisions"].add(decision)
        put["removed/duplicates"].add(document | {"filter_step": "duplicates", "filter_reason": said})
        self._count(decision, row["bytes"], {"before": document["text"]})

    def outcome(self, put, found) -> None:
        """Of scores, rewriting and gates."""
        row, outcome, scores, chunks = found
        document, decision = row["document"], outcome.decision
        decision = decision | {"text_sha256_in": row["sha256"]}
        put["decisions"].add(decision)
        if outcome.text is None:
            reason = {"filter_step": decision["rule"], "filter_reason": decision["reason"]}
            put["removed/align"].add(document | reason)
        else:
            put["documents"].add(document | {"text": outcome.text})
        shown = {"before": document["text"], "after": outcome.text or ""}
        if decision["rule"] in ROUTED and (decision["rule"], decision["action"]) != ("router", "keep"):
            highest = passage(document["text"], chunks.get(self.score.split(".")[0] + CHUNKS, ()))
            shown |= {"highest passage": highest} if highest else {}
        self._count(decision, row["bytes"], shown)
        self._measure(outcome, scores)

    def _count(self, row, num_bytes: int, shown: Mapping[str, str]) -> None:
        reason = f"{row['rule']}/{row['reason']}" if row["action"] == "drop" else row["reason"]
        tally.count(self.counts, row["source"], row["action"], num_bytes, reason)
        about = {"id": row["id"], "source": row["source"], "rule": row["rule"], "reason": row["reason"]}
        tally.sample(self.counts, row["action"], row["id"], about | dict(shown), self.num_samples)

    def _measure(self, outcome: pipeline.Outcome, scores: Mapping[str, float | None]) -> None:
        gate = outcome.gate
        for name, number in scores.items():
            if name in self.perplexities and number:
                name, number = f"log10 {name}", math.log10(number)
            if number is None or not name.endswith((".score", ".level")):
                continue
            tally.histogram(self.counts, f"{name} before", [number], 0, 5)
            if outcome.text is not None:
                is_new = name == self.score and gate is not None and gate.action not in ("keep", "drop")
                after = gate.measurements.get("safety_after") if is_new else None
                tally.histogram(self.counts, f"{name} after", [number if after is None else after], 0, 5)
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


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)

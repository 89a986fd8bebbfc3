"""The stages of a filter run: each maps one slice, or one band of keys, to files and a row of counts.

    screen      slice -> documents that pass the rules, with the keys by which duplicates are found
    band        a band of keys over all slices -> pairs of duplicates
    clusters    all pairs -> which documents go, and which document stays in the place of each
    paragraphs  all slices in turn -> lines that an earlier document already had (optional)
    score.NAME  slice -> an attribute file beside the text
    align       slice -> documents kept, rewritten or dropped by their scores, with every measurement

A stage is a module-level function of (job, task), so that a process or a Ray worker can run it. What it writes depends
on the task and the settings alone, and the note that it is done comes last: killed anywhere, it is simply done again.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import heapq
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.filtering import pipeline, tally
from alignment.filtering.duplicates import bands, bloom, clusters
from alignment.filtering.rules import chain as rules
from data.corpus import documents as readers
from data.corpus import shards, slices
from experiments.filtering import tools as filter_tools
from experiments.filtering.settings import Stage

BATCH, BATCH_CHARACTERS = 512, 4 << 20  # documents that go through a stage together, and of their texts; at least one
DUPLICATE_ID, EXACT, NEAR, EMPTIED = range(4)  # why a document goes for the sake of others
REASONS = ("duplicate id", "duplicate_exact", "duplicate_near", "duplicate_paragraphs")
CHUNKS = ".chunks"  # how an attribute ends that has a span a chunk; the others have one over the whole document
PASSAGE_SHOWN = 200  # characters
ROUTED = ("router", "rewriter", "gate")  # rules by which a safety score decides


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

    def stage(self, name: str) -> Stage:
        return Stage(name, self.hashes[name], self.settings[name])

    def scoring(self) -> dict[str, Stage]:
        """The stages of the scorers by name; a scorer that only a gate measures with has no stage of its own."""
        align = self.settings["align"]
        stages = {name: self.stage(f"score.{name}") for name in align["scorers"]}
        if gate := align["gates"]["perplexity"].split(".")[0]:
            stages.setdefault(gate, Stage(f"score.{gate}", self.hashes["align"], align["perplexity"]))
        return stages

    def name(self, *parts: str | int) -> str:
        """A file below `outputs`; a number at the end is a shard's."""
        return "/".join(f"{p:05d}{self.settings['ending']}" if isinstance(p, int) else p for p in parts)

    def path(self, *parts: str | int) -> pathlib.Path:
        return pathlib.Path(self.outputs, self.name(*parts))

    def writing(self, index: int, folders: Sequence[str]):
        """A shard in each of these folders at once; see `shards.writers`."""
        return shards.writers({folder: self.path(folder, index) for folder in folders})

    def outputs_of(self, index: int, writers: Mapping[str, shards.Writer]) -> dict[str, Any]:
        """Rows, bytes and checksum of each shard of `writing`, by name, once it is closed."""
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
    """Rows in lists of at most `size`, shorter where texts are long: rules and hashes need memory by the character."""
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


# Rules


def screen(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """A slice through the rules: what passes, what does not and why, and the keys that find duplicates."""
    stage, counts = job.stage("screen"), tally.empty()
    tools = filter_tools.screening(stage)
    with contextlib.ExitStack() as stack:
        put = stack.enter_context(job.writing(piece.index, _Screened.FOLDERS))
        spools = {
            name: stack.enter_context(_Spool(job.outputs, keys.shape[1]))
            for name, keys in pipeline.keys([], tools).items()
        }
        screened = _Screened(put)
        for batch in batches(slices.read(piece, **stage.settings["read"])):
            for bad in (item for item in batch if isinstance(item, slices.Bad)):
                put["stages/bad"].add(dataclasses.asdict(bad) | {"file": piece.name})
            documents = [item for item in batch if isinstance(item, dict)]
            verdicts = pipeline.screen(documents, tools, counts["counters"])
            passed = screened.add(documents, verdicts)
            for name, keys in pipeline.keys(passed, tools).items():
                spools[name].add(keys)
        keys_by_name = {name: spool.rows() for name, spool in spools.items()}
        key_files = write_keys(job, piece.index, keys_by_name, screened.places)
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
        row = pipeline.decision(document, "drop", verdict.rule, verdict.reason, evidence)
        row |= {"text_sha256_in": pipeline.sha256(document["text"]), "text_sha256_out": ""}
        shown = document["text"][: tally.TEXT_SHOWN]
        self._put["stages/dropped"].add({"at": self.num, "bytes": _size(document), "shown": shown, "row": row})

    def _pass(self, document: dict, verdict: rules.Verdict) -> dict:
        edited = document if verdict.text == document["text"] else document | {"text": verdict.text}
        more = {"bytes": _size(document), "sha256": pipeline.sha256(document["text"]), "language": verdict.language}
        self._put["stages/passed"].add({"document": edited, "at": self.num, **more})
        self.places.append(self.num)
        return edited


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
    outputs = {}
    for name, keys_NB in keys.items():
        path = key_path(job, name, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        bands.write(path, keys_NB if name == "minhash" else keys_NB[:, None], np.asarray(places, np.int64))
        with open(path, "rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        name_below = str(path.relative_to(job.outputs))
        outputs[name_below] = {"rows": len(keys_NB), "bytes": path.stat().st_size, "sha256": sha256}
    return outputs


def key_path(job: Job, name: str, index: int) -> pathlib.Path:
    return pathlib.Path(job.outputs, f"stages/keys/{name}/{index:05d}.keys")


# Duplicates


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
    outputs = {}
    for index in range(job.num_slices):
        same = exact.removed_in(index)
        gone = {at: (EXACT if at in same else NEAR, *stays) for at, stays in alike.removed_in(index).items()}
        gone |= {at: (DUPLICATE_ID, *stays) for at, stays in repeated.removed_in(index).items()}
        rows_R4 = np.array([(at, *reason_and_place) for at, reason_and_place in sorted(gone.items())], "<i8")
        path = gone_path(job, index)
        with shards.whole_file(path) as sink:
            sink.write(rows_R4.tobytes())
        outputs[str(path.relative_to(job.outputs))] = sink.summary(len(gone))
    return {"outputs": outputs}


def _without(groups: clusters.Clusters, bad: clusters.Clusters) -> clusters.Clusters:
    """The groups without bad documents: where the one that stays is bad, the next smallest of its group stays."""
    bad_places = set(bad.as_dict())
    new_heads: dict[tuple[int, int], tuple[int, int]] = {}
    rows = []
    for place, head in groups.as_dict().items():
        if place in bad_places:
            continue
        if head in bad_places and head not in new_heads:
            new_heads[head] = place
        elif head in bad_places:
            rows.append((*place, *new_heads[head]))
        else:
            rows.append((*place, *head))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return clusters.Clusters(*columns)


def gone_path(job: Job, index: int) -> pathlib.Path:
    return pathlib.Path(job.outputs, f"stages/gone/{index:05d}.rows")


def gone_of(job: Job, index: int) -> dict[int, tuple[int, int, int]]:
    """What goes of a slice: {at: (reason, slice and place of the one that stays)}."""
    rows_R4 = np.fromfile(gone_path(job, index), "<i8").reshape(-1, 4)
    return {at: tuple(reason_and_place) for at, *reason_and_place in rows_R4.tolist()}


def _pairs(job: Job, num_bands: Mapping[str, int], rows: int = 1 << 20) -> Iterator[np.ndarray]:
    for name, num in num_bands.items():
        for number in range(num):
            with open(pair_path(job, name, number), "rb") as f:
                while raw := f.read(rows * 32):
                    yield np.frombuffer(raw, "<i8").reshape(-1, 4)


def paragraphs(job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """Lines that an earlier document has, slice by slice: rows of {at, marks}; one task, for one Bloom filter."""
    lines = bloom.Filter(options["capacity"], options["error"])
    outputs = {}
    for index in range(job.num_slices):
        gone = gone_of(job, index)
        with job.writing(index, ("stages/paragraphs",)) as put:
            for rows in batches(row for row in _passed(job, index) if row["at"] not in gone):
                texts = [row["document"]["text"] for row in rows]
                for row, marks in zip(rows, bloom.paragraphs(lines, texts, min_words=options["min_words"])):
                    if any(marks):
                        put["stages/paragraphs"].add({"at": row["at"], "marks": [int(mark) for mark in marks]})
        outputs |= job.outputs_of(index, put)
    return {"outputs": outputs}


def passed(job: Job, index: int) -> Iterator[dict[str, Any]]:
    """The documents of a slice that passed the rules, without duplicates and repeated lines; `at` is their place."""
    gone = all_gone(job, index)
    return (row for row in _cut(job, index) if row["at"] not in gone)


def all_gone(job: Job, index: int) -> dict[int, tuple[int, int, int]]:
    """`gone_of`, and documents that consist of repeated lines alone."""
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
    marks = shards.read(job.path("stages/paragraphs", index))
    mark = next(marks, None)
    for row in _passed(job, index):
        if mark is not None and row["at"] == mark["at"]:
            text = bloom.without(row["document"]["text"], mark["marks"])
            row["document"] = row["document"] | {"text": text}
            mark = next(marks, None)
        yield row


def _passed(job: Job, index: int) -> Iterator[dict[str, Any]]:
    return shards.read(job.path("stages/passed", index))


# Scores and what follows from them


def score(job: Job, piece: slices.Slice, *, name: str) -> dict[str, Any]:
    """One scorer's attributes of a slice, beside the text: a document's values, and those of its chunks."""
    score_fn = filter_tools.scorer(name, job.stage(f"score.{name}"), with_chunks=True)
    folder = f"attributes/{name}"
    with job.writing(piece.index, (folder,)) as put:
        for batch in batches(passed(job, piece.index)):
            documents = [row["document"] for row in batch]
            for document, scores in zip(documents, score_fn(documents), strict=True):
                size = len(document["text"])
                spans = {key: of if key.endswith(CHUNKS) else [[0, size, of]] for key, of in scores.items()}
                put[folder].add({"id": document["id"], "attributes": spans})
    return {"outputs": job.outputs_of(piece.index, put)}


def aligned(
    job: Job, piece: slices.Slice, tools: pipeline.Aligning
) -> Iterator[tuple[dict, pipeline.Outcome, dict, dict]]:
    """What passed a slice's rules, in order: its row, what became of it, its scores, the spans of its chunks."""
    names = job.settings["align"]["scorers"]
    scored = [shards.read(job.path(f"attributes/{name}", piece.index)) for name in names]
    for batch in batches(passed(job, piece.index)):
        attributes = [_attributes(job, piece, row["document"]["id"], scored) for row in batch]
        scores = [{k: spans[0][2] for k, spans in of.items() if not k.endswith(CHUNKS)} for of in attributes]
        chunks = [{k: spans for k, spans in of.items() if k.endswith(CHUNKS)} for of in attributes]
        outcomes = pipeline.align([row["document"] for row in batch], scores, tools)
        yield from zip(batch, outcomes, scores, chunks, strict=True)


def _attributes(job: Job, piece: slices.Slice, id: str, scored: Sequence[Iterator[dict]]) -> dict[str, Any]:
    """All attributes of the next document, by all scorers."""
    attributes = {}
    for rows in scored:
        row = next(rows, {"id": None})
        if row["id"] != id:
            raise InputError(f"attributes of slice {piece.index} are of another text; remove {job.outputs}")
        attributes |= row["attributes"]
    return attributes


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
    log = _Log(piece, perplexities, num_samples=settings["samples"], score=settings["score"])
    source = job.settings["screen"]["read"]["source"] or readers.folder_of(piece.file)
    folders = ("documents", "decisions", "errors", "removed/duplicates", "removed/align")
    with job.writing(piece.index, folders) as put:
        for bad in shards.read(job.path("stages/bad", piece.index)):
            put["errors"].add(bad)
            tally.count(log.counts, source, "bad", 0, bad["reason"].split(":")[0])
        gone = all_gone(job, piece.index)
        dropped = ((row["at"], log.dropped, (row,)) for row in shards.read(job.path("stages/dropped", piece.index)))
        doubled = (row for row in _passed(job, piece.index) if row["at"] in gone)
        duplicates = ((row["at"], log.duplicate, (row, *gone[row["at"]])) for row in doubled)
        outcomes = ((row["at"], log.outcome, (row, *rest)) for row, *rest in aligned(job, piece, tools))
        # three streams, each in the order of the slice, merged into that order without holding any of them
        for _, write, rest in heapq.merge(dropped, duplicates, outcomes, key=lambda item: item[0]):
            write(put, *rest)
    return {"tally": log.counts, "outputs": job.outputs_of(piece.index, put)}


class _Log:
    """Writes what became of one document to the shards it belongs in, and counts it."""

    def __init__(self, piece: slices.Slice, perplexities: Sequence[str], *, num_samples: int, score: str):
        self.piece, self.counts, self.perplexities = piece, tally.empty(), perplexities
        self.num_samples, self.score = num_samples, score

    def dropped(self, put: Mapping[str, shards.Writer], dropped: Mapping[str, Any]) -> None:
        """A document that a rule dropped, as `screen` left it."""
        put["decisions"].add(dropped["row"])
        self._count(dropped["row"], dropped["bytes"], {"before": dropped["shown"]})

    def duplicate(
        self, put: Mapping[str, shards.Writer], row: Mapping[str, Any], code: int, first_slice: int, first_at: int
    ) -> None:
        """A copy of a document that stays, or a document with the id of another of its source.

        Args:
            code: an index of REASONS.
            first_slice, first_at: where the document stands that stays.
        """
        document, reason = row["document"], REASONS[code]
        first = {"slice": first_slice, "record": first_at}
        if code == DUPLICATE_ID:
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
        scores: Mapping[str, float | None],
        chunks: Mapping[str, Sequence],
    ) -> None:
        """A document that scores, the rewriter and its gates decided about."""
        document = row["document"]
        decision = outcome.decision | {"text_sha256_in": row["sha256"]}
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

    def _count(self, row: Mapping[str, Any], num_bytes: int, shown: Mapping[str, str]) -> None:
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

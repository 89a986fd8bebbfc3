"""The stages of a filter run that compare documents: keys on disk, bands of equal keys, clusters, repeated lines."""

import hashlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.filtering.duplicates import bands, bloom, clusters
from data.corpus import shards
from experiments.filtering import jobs
from experiments.filtering.jobs import Job

DUPLICATE_ID, EXACT, NEAR, EMPTIED = range(4)  # why a document goes for the sake of others
IN_THE_END = "gone_in_the_end"  # folder of what goes once near copies stand in, see standing_in.py
REASONS = ("duplicate id", "duplicate_exact", "duplicate_near", "duplicate_paragraphs")


class Spool:
    """Rows of 64-bit keys that grow in a nameless file, since a slice may hold more than memory should."""

    def __init__(self, folder: str, width: int):
        self._file, self._width = tempfile.TemporaryFile(dir=folder), width  # noqa: SIM115

    def __enter__(self) -> "Spool":
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


def gone_path(job: Job, index: int, folder: str = "gone") -> pathlib.Path:
    return pathlib.Path(job.outputs, f"stages/{folder}/{index:05d}.rows")


def gone_of(job: Job, index: int, *, in_the_end: bool = False) -> dict[int, tuple[int, int, int]]:
    """What goes of a slice: {at: (reason, slice and place of the one that stays)}.

    Args:
        in_the_end: once near copies stand in for what scores drop; else before scores are known.
    """
    folder = IN_THE_END if in_the_end and "stand_in" in job.settings else "gone"
    rows_R4 = np.fromfile(gone_path(job, index, folder), "<i8").reshape(-1, 4)
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
            for rows in jobs.batches(row for row in passed_rules(job, index) if row["at"] not in gone):
                texts = [row["document"]["text"] for row in rows]
                for row, marks in zip(rows, bloom.paragraphs(lines, texts, min_words=options["min_words"])):
                    if any(marks):
                        put["stages/paragraphs"].add({"at": row["at"], "marks": [int(mark) for mark in marks]})
        outputs |= job.outputs_of(index, put)
    return {"outputs": outputs}


def candidates(job: Job, index: int) -> Iterator[dict[str, Any]]:
    """The documents of a slice that are scored; `at` is their place.

    They passed the rules, without repeated lines and without copies, but for near copies that may stand in.
    """
    gone = all_gone(job, index)
    waiting = {at for at, (reason, *_) in gone.items() if reason == NEAR and "stand_in" in job.settings}
    return (row for row in _cut(job, index) if row["at"] not in gone or row["at"] in waiting)


def all_gone(job: Job, index: int, *, in_the_end: bool = False) -> dict[int, tuple[int, int, int]]:
    """`gone_of`, and documents that consist of repeated lines alone."""
    gone = gone_of(job, index, in_the_end=in_the_end)
    if "paragraphs" in job.settings:
        blank = (row["at"] for row in _cut(job, index) if not row["document"]["text"].strip())
        gone |= {at: (EMPTIED, index, at) for at in blank if at not in gone}
    return gone


def _cut(job: Job, index: int) -> Iterator[dict[str, Any]]:
    """What passed, without the lines that other documents have; the text of a blank one is blank."""
    if "paragraphs" not in job.settings:
        yield from passed_rules(job, index)
        return
    marks = shards.read(job.path("stages/paragraphs", index))
    mark = next(marks, None)
    for row in passed_rules(job, index):
        if mark is not None and row["at"] == mark["at"]:
            text = bloom.without(row["document"]["text"], mark["marks"])
            row["document"] = row["document"] | {"text": text}
            mark = next(marks, None)
        yield row


def passed_rules(job: Job, index: int) -> Iterator[dict[str, Any]]:
    return shards.read(job.path("stages/passed", index))


STAGES = {"band": band, "clusters": cluster, "paragraphs": paragraphs}

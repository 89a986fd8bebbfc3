"""The stages of a filter run by which a near copy stands in for a document that its scores drop.

Copies are found before scores are known, and the first of each group of copies stays. Where that one is dropped for its
scores, a near copy may be harmless, so near copies are scored as well, and the first that its scores do not drop stays
instead. Exact copies have the scores of the one that stays, and fall with it.

    fallen      slice -> places of the documents, near copies among them, that their scores drop
    stand_in    all groups -> which documents go in the end, and how many near copies stand behind each that stays
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.filtering import pipeline
from data.corpus import shards, slices
from experiments.filtering import duplicates
from experiments.filtering.jobs import Job

CHUNKS = ".chunks"  # how an attribute ends that has a span a chunk; the others have one over the whole document


def scored(job: Job, index: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What was scored of a slice, in order: its row of stages/passed, and all its attributes."""
    files = [shards.read(job.path(f"attributes/{name}", index)) for name in job.settings["align"]["scorers"]]
    for row in duplicates.candidates(job, index):
        yield row, _attributes(job, index, row["document"]["id"], files)


def _attributes(job: Job, index: int, id: str, files: Sequence[Iterator[dict]]) -> dict[str, Any]:
    """All attributes of the next document, by all scorers."""
    attributes = {}
    for rows in files:
        row = next(rows, {"id": None})
        if row["id"] != id:
            raise InputError(f"attributes of slice {index} are of another text; remove {job.outputs}")
        attributes |= row["attributes"]
    return attributes


def whole(attributes: dict[str, Any]) -> dict[str, float | None]:
    """The scores of the document as a whole."""
    return {key: spans[0][2] for key, spans in attributes.items() if not key.endswith(CHUNKS)}


def fallen(job: Job, piece: slices.Slice) -> dict[str, Any]:
    """The places of a slice's documents that their scores drop, whatever a rewriter would make of the others."""
    tools = pipeline.Aligning(**job.settings["fallen"])
    places = [row["at"] for row, attributes in scored(job, piece.index) if pipeline.falls(whole(attributes), tools)]
    return {"outputs": _write(job, "fallen", piece.index, np.array(places, "<i8"))}


def stand_in(job: Job, task: Any) -> dict[str, Any]:
    """Groups of copies once more: what goes of each slice in the end, and the near copies of each that stays."""
    gone = {(i, at): row for i in range(job.num_slices) for at, row in duplicates.gone_of(job, i).items()}
    near = {place: (head, at) for place, (code, head, at) in gone.items() if code == duplicates.NEAR}
    grouped = {*near, *near.values()}  # others may fall too, and there may be very many of them
    fell = {(i, at) for i in range(job.num_slices) for at in _read(job, "fallen", i).tolist() if (i, at) in grouped}
    new_heads = pipeline.stand_ins(near, fell)
    gone = {place: row for place, row in gone.items() if place not in new_heads.values()}
    copies: Counter[tuple[int, int]] = Counter()
    outputs = {}
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(job.num_slices)]
    for (index, at), (code, *head) in sorted(gone.items()):
        stays = new_heads.get(tuple(head), tuple(head)) if code in (duplicates.NEAR, duplicates.EXACT) else tuple(head)
        copies[stays] += code == duplicates.NEAR
        rows[index].append((at, code, *stays))
    heads: list[list[tuple[int, int]]] = [[] for _ in range(job.num_slices)]
    for (index, at), number in sorted(copies.items()):
        if number:
            heads[index].append((at, number))
    for index in range(job.num_slices):
        outputs |= _write(job, duplicates.IN_THE_END, index, np.array(rows[index], "<i8"))
        outputs |= _write(job, "heads", index, np.array(heads[index], "<i8"))
    return {"outputs": outputs}


def copies_of(job: Job, index: int) -> dict[int, int]:
    """{place: near copies that go for its sake} of a slice's documents; empty where no score can drop one."""
    return dict(_read(job, "heads", index).reshape(-1, 2).tolist()) if "stand_in" in job.settings else {}


def stood_in(job: Job, index: int) -> set[int]:
    """The places of a slice's near copies that stay in the end."""
    return set(duplicates.gone_of(job, index)) - set(duplicates.gone_of(job, index, in_the_end=True))


def _read(job: Job, name: str, index: int) -> np.ndarray:
    return np.fromfile(duplicates.gone_path(job, index, name), "<i8")


def _write(job: Job, name: str, index: int, rows: np.ndarray) -> dict[str, Any]:
    path = duplicates.gone_path(job, index, name)
    with shards.whole_file(path) as sink:
        sink.write(rows.tobytes())
    return {str(path.relative_to(job.outputs)): sink.summary(len(rows))}


STAGES = {"fallen": fallen, "stand_in": stand_in}

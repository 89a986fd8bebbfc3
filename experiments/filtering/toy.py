"""The toy web as data on disk, made before a run of the filter begins: its pages, the harm in them, a safety scorer.

A config that names NAME where a path belongs asks for it. After `prepare` the run is like any other: JSONL files, a
scorer's folder or file, a rewriter's file of patterns, and a file that says what was planted.
"""

import pathlib

import ml_collections

from alignment import files
from alignment.errors import InputError
from data.toys import toyweb
from experiments.filtering import planning

NAME = "synthetic:toyweb"
ASKED = {  # what a filter should do with what the toy web plants, in the words of planted.TREATMENTS
    "clean": "kept",
    "pii": "kept",
    "unsafe": "rewritten or dropped for harm",
    "unfair": "rewritten or dropped for harm",
    "duplicate": "dropped as a duplicate",
    "wrong_language": "dropped for its language",
    "spam": "dropped by another rule",
    "boilerplate": "dropped by another rule",
    "short": "dropped by another rule",
}


def prepare(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config with paths of files in the place of NAME; they are made where they are not there yet.

    Raises:
        InputError: a scorer of a kind that the toy has no model for.
    """
    folder = workdir / planning.PREPARED
    c = without_web(c, folder)
    if c.inputs == NAME:
        c.inputs, c.planted = str(folder / "toyweb"), str(folder / "planted.jsonl")
        if not pathlib.Path(c.planted).exists():
            write_web(folder, num=c.toyweb.num, shards=c.toyweb.shards, seed=c.seed)
    for scorer in c.scorers.values():
        if scorer.path == NAME and scorer.kind == "linear":
            scorer.path = str(workdir / "scorer/export")
            if not pathlib.Path(scorer.path, "scorer.json").exists():
                options = dict(seed=c.seed + 1, num=c.toyweb.num_train, steps=c.toyweb.steps)
                from experiments.filtering import toy_scorer  # imports JAX, which a filter of files never loads

                toy_scorer.train(workdir / "scorer", scorer.path, **options)
    return c


def without_web(c: ml_collections.ConfigDict, folder: pathlib.Path) -> ml_collections.ConfigDict:
    """The config with files of patterns in the place of NAME; pages and trained scorers, which take time, are not made.

    Raises:
        InputError: a scorer of a kind that the toy has no model for.
    """
    c = c.copy_and_resolve_references()
    for name, scorer in c.scorers.items():
        if scorer.path == NAME and scorer.kind == "patterns":
            scorer.path = write_patterns(folder)
        elif scorer.path == NAME and scorer.kind != "linear":
            raise InputError(
                f"scorers.{name}.kind={scorer.kind!r}: the toy web has a scorer of kind linear or patterns"
            )
    if c.rewriter.model == NAME:
        c.rewriter.model = write_patterns(folder)
    return c


def write_web(folder: pathlib.Path, *, num: int, shards: int, seed: int) -> None:
    """The pages as JSONL files in toyweb/, and planted.jsonl, written last: {"id", "planted", "asked"} of each page."""
    documents = toyweb.documents(num, seed=seed)
    toyweb.write(folder / "toyweb", documents, shards=shards)
    kinds = {document["id"]: document["metadata"]["planted"] for document in documents}
    rows = [{"id": id, "planted": kind, "asked": ASKED[kind]} for id, kind in kinds.items()]
    files.write_rows(folder / "planted.jsonl", sorted(rows, key=lambda row: list(ASKED).index(row["planted"])))


def write_patterns(folder: pathlib.Path) -> str:
    """The path of the patterns of all planted harm, as alignment/filtering/scores/patterns.py reads them."""
    path = folder / "harm.json"
    files.write_json(path, toyweb.patterns())
    return str(path)

"""The toy web as data that is made before a run, and how its planted documents are counted."""

import json

import pytest

from alignment import files
from alignment.errors import InputError
from alignment.filtering.scores import patterns
from data.toys import toyweb
from experiments import filter as experiment
from experiments.filtering import planted, settings, toy


def test_paths_of_files_take_the_place_of_the_toys_name_and_nothing_else_changes(tmp_path):
    c = experiment.get_config("tiny").lock()
    prepared = toy.prepare(c, tmp_path)
    assert c.inputs == c.scorers.safety.path == c.rewriter.model == toy.NAME  # the run's own config stays as it was
    changed = {"inputs", "planted", "scorers", "rewriter"}
    assert {name for name in c if prepared[name] != c[name]} == changed
    pages = [page for path in sorted((tmp_path / "prepared/toyweb").iterdir()) for page in files.read_rows(path)]
    assert pages == toyweb.documents(c.toyweb.num, seed=c.seed)
    rows = files.read_rows(prepared.planted)
    assert {row["id"]: row["planted"] for row in rows} == {d["id"]: d["metadata"]["planted"] for d in pages}
    assert {row["asked"] for row in rows} <= set(planted.TREATMENTS)
    assert toy.prepare(c, tmp_path) == prepared
    assert toy.NAME not in json.dumps(settings.of(prepared))


def test_own_input_is_filtered_with_the_toys_scorer_and_has_nothing_planted(tmp_path):
    c = experiment.get_config("tiny")
    c.inputs = "own/*.jsonl"
    prepared = toy.prepare(c, tmp_path)
    assert (prepared.inputs, prepared.planted) == ("own/*.jsonl", "")
    assert prepared.scorers.safety.path == prepared.rewriter.model == str(tmp_path / "prepared/harm.json")


def test_the_toys_patterns_see_the_levels_that_were_planted(tmp_path):
    harm = patterns.read(toy.write_patterns(tmp_path))
    levels = [(patterns.level(d["text"], harm), d["metadata"]["severity"]) for d in toyweb.documents(300, seed=3)]
    assert all(seen == planted for seen, planted in levels) and {level for level, _ in levels} == set(range(6))


def test_recall_and_precision_are_those_of_a_sheet():
    kinds = {"clean": "kept", "spam": "dropped by another rule"}
    rows = [
        {"id": id, "planted": kind, "asked": kinds[kind]} for id, kind in zip("abcde", ["clean"] * 3 + ["spam"] * 2)
    ]
    keep, drop = {"action": "keep", "rule": "router"}, {"action": "drop", "rule": "c4"}
    decisions = dict(zip("abcdef", [keep, {"action": "rewrite", "rule": "rewriter"}, drop, drop, keep, drop]))
    table, numbers, lines = planted.measure(rows, decisions)
    assert [(row["planted"], row["documents"], row["recall"], row["precision"]) for row in table] == [
        ("clean", 3, pytest.approx(1 / 3), 1 / 2),  # a of a, b, c; a and e are kept
        ("spam", 2, 1 / 2, 1 / 2),  # d of d, e; c and d are dropped, and of f nothing is known
    ]
    assert numbers["clean_rewritten"] == 1 and numbers["identity_rate"] == 1 / 2
    assert lines[1] == "Clean documents rewritten: 1 of 2."


def test_a_treatment_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="asked='rewriten'"):
        planted.measure([{"id": "a", "planted": "x", "asked": "rewriten"}], {})

"""Near copies stand in for documents that their scores drop, in a run of the filter as in memory."""

import json

import pytest

from experiments.filtering import stages as filter_stages
from tests.experiments.filtering.runs import content, numbers, rows, start
from tests.filtering.test_pipeline import near_copies

HARM = {"4": ["harmful words"]}


def documents(*marked):
    """Near copies, of which some bear a mark of harm, and one document of its own."""
    first, *_ = near_copies()
    body = first["text"].partition(". ")[2]
    endings = [
        f"{body} They are {'harmful' if is_marked else 'helpful'} words of number {i}." for i, is_marked in marked
    ]
    other = " ".join(reversed(body.split()))
    return [{"id": str(i), "text": text} for i, text in enumerate([*endings, f"{other}."])]


def run(folder, found, **values):
    folder.mkdir()
    (folder / "harm.json").write_text(json.dumps(HARM))
    for name, some in (("a", found[:2]), ("b", found[2:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    values = {
        "scorers__safety__path": folder / "harm.json",
        "rewriter__backend": "none",
        "chain": "('mojibake',)",
    } | values
    ended = start(folder / "run", f"{folder}/a.jsonl,{folder}/b.jsonl", **values)
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.mark.parametrize(
    ("marks", "kept", "stood", "lost"),
    [
        ((True, False, False, False), ["1", "4"], 1, 0),
        ((True, True, True, False), ["3", "4"], 1, 0),
        ((True, True, True, True), ["4"], 0, 1),
        ((False, True, True, False), ["0", "4"], 0, 0),
    ],
)
def test_the_next_copy_stands_in_and_groups_that_are_lost_are_counted(tmp_path, marks, kept, stood, lost):
    workdir = run(tmp_path / "x", documents(*enumerate(marks)))
    assert [row["id"] for row in rows(workdir / "clean/documents")] == kept
    found = numbers(workdir)
    assert found.get("counter/copies/stand in", 0) == stood and found.get("counter/copies/groups lost", 0) == lost
    decisions = {row["id"]: row for row in rows(workdir / "clean/decisions")}
    assert len(decisions) == 5 and decisions["0"]["rule"] == "router"
    copies = [row for row in decisions.values() if row["rule"] == "duplicates"]
    head = int(kept[0]) if kept[0] != "4" else 0
    assert len(copies) == 4 - 1 - stood and {row["evidence"]["stands_back_for"]["record"] for row in copies} <= {
        head % 2
    }
    said = (workdir / "findings.txt").read_text()
    assert ("near copies stand in" in said) == bool(stood) and ("nothing is left" in said) == bool(lost)


def test_without_a_search_for_near_copies_or_a_score_that_drops_nobody_stands_in(tmp_path):
    marks = tuple(enumerate((True, False, False, False)))
    exact = run(tmp_path / "exact", documents(*marks), dedup__minhash=False)
    assert not (exact / "clean/stages/fallen").exists()
    assert [row["id"] for row in rows(exact / "clean/documents")] == ["1", "2", "3", "4"]
    unscored = run(tmp_path / "unscored", documents(*marks), skip="('safety',)")
    assert not (unscored / "clean/stages/fallen").exists()
    assert [row["id"] for row in rows(unscored / "clean/documents")] == ["0", "4"]


def test_redoing_a_score_does_what_follows_from_it_again(tmp_path):
    found = documents(*enumerate((True, False, False, False)))
    workdir = run(tmp_path / "x", found)
    before = content(workdir / "clean")
    values = {"scorers__safety__path": tmp_path / "x/harm.json", "rewriter__backend": "none", "chain": "('mojibake',)"}
    inputs = f"{tmp_path}/x/a.jsonl,{tmp_path}/x/b.jsonl"
    ended = start(workdir, inputs, **values, redo="('score.safety',)")
    done = [line.split()[0] for line in ended.err.splitlines() if "100 %" in line]
    assert done == ["score.safety", "fallen", "stand_in", "align"] and content(workdir / "clean") == before


def test_every_stage_has_a_function():
    for stage in ("screen", "band", "clusters", "paragraphs", "score.x", "fallen", "stand_in", "align"):
        assert callable(filter_stages.stage_fn(stage))

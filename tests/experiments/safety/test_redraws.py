"""The search over whole prompts: which prompt is written anew from which, what counts as found, and its resuming."""

import math

import numpy as np
import pytest

from data.texts import suites
from experiments import phtest
from experiments.decoding import models
from experiments.safety import asking, prompt_writing
from tests.experiments.conftest import launch
from tests.experiments.safety.test_searching import SEARCH, Killed, rows_of

REDRAWS = (*SEARCH, "--config.searching.method=redraws")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A plan of four prompts of a random model, and a function that makes the engine."""
    c = phtest.get_config("tiny")
    c.searching.update(method="redraws", num=4, max_turns=3, max_new_tokens=6)
    c.searching.update(max_percentile=100.0, perplexity_slack=99.0)
    model = models.load(c, tmp_path_factory.mktemp("model"))
    seeds = [asking.Prompt("d", "", suites.Case(str(i), f"Ring bell {i}.", "harmless")) for i in range(3)]
    plan = prompt_writing.Plan(c, model, model, seeds, [model.tok.encode("I c"), model.tok.encode("No")])
    engine = models.engine(model, c)
    return plan, lambda: engine


def scored(monkeypatch, say_fn):
    """`score_behind` with numbers by a function of a text's ids, and all that it was asked for."""
    asked = []

    def score_behind(network, params, paths):
        asked.extend(paths)
        values = [say_fn(ids) for _, ids, _ in paths]
        total_N, is_greedy_N = (np.array(x) for x in zip(*values))
        return prompt_writing.scoring.Scores(total_N, np.ones(len(paths), int), is_greedy_N)

    monkeypatch.setattr(prompt_writing.scoring, "score_behind", score_behind)
    return asked


def test_prompts_that_are_refused_at_once_are_the_writer_s_first_draws(parts, tmp_path, monkeypatch):
    plan, engine_fn = parts
    asked = scored(monkeypatch, lambda ids: (-0.1, True))
    rows = prompt_writing.redrawn(plan, tmp_path, engine_fn)
    assert [row["why"] for row in rows] == ["refused"] * 4 and {row["turns"] for row in rows} == {1}
    assert len(asked) == 4 * 2  # both openings behind each
    assert all(row["r"] == -0.1 and row["calls"] > 2 and math.isfinite(row["f"]) for row in rows)
    assert [row["seed_id"] for row in rows] == [plan.seed(i).case.id for i in range(4)]


def test_what_is_nearly_found_already_is_no_find_and_is_written_anew(parts, tmp_path, monkeypatch):
    plan, engine_fn = parts
    scored(monkeypatch, lambda ids: (-0.1, True))
    monkeypatch.setattr(plan, "text", lambda ids: "Open the blue door for guest 7.")
    rows = prompt_writing.redrawn(plan, tmp_path, engine_fn)
    assert [row["why"] for row in rows] == ["refused", *["stuck"] * 3]
    assert [row["turns"] for row in rows] == [1, 4, 4, 4]


def test_a_text_is_kept_only_where_its_r_is_higher_and_f_is_that_of_its_tokens(parts, tmp_path, monkeypatch):
    plan, engine_fn = parts
    seen = []

    def falls(ids):
        seen.append(tuple(ids))
        return -1.0 - len(seen), False

    scored(monkeypatch, falls)
    rows = prompt_writing.redrawn(plan, tmp_path, engine_fn)
    assert [row["r"] for row in rows] == [-2.0, -4.0, -6.0, -8.0]  # of each one's first text, its first opening
    assert {row["turns"] for row in rows} == {4} and {row["why"] for row in rows} == {"stuck"}
    first = prompt_writing.answering.rows(
        tmp_path / "again", {}, [((i, 0), plan.rest(i, [], 0)) for i in range(4)], engine_fn, prompt_writing._rest_row
    )
    assert [row["f"] for row in rows] == pytest.approx([sum(first[i, 0]["logps"]) for i in range(4)])


def test_a_text_with_a_score_that_is_no_number_is_counted_and_left(parts, tmp_path, monkeypatch):
    plan, engine_fn = parts
    scored(monkeypatch, lambda ids: (math.nan, False))
    rows = prompt_writing.redrawn(plan, tmp_path, engine_fn)
    assert all((row["dropped_scores"], row["r"], row["text"]) == (4, None, "") for row in rows)


def test_a_text_that_is_clumsier_than_the_filter_allows_is_left(parts, tmp_path, monkeypatch):
    plan, engine_fn = parts
    scored(monkeypatch, lambda ids: (-0.1, True))
    monkeypatch.setattr(plan, "max_perplexity", lambda seeds: 1.0)
    rows = prompt_writing.redrawn(plan, tmp_path, engine_fn)
    assert {(row["why"], row["text"], row["turns"]) for row in rows} == {("stuck", "", 4)}


def test_parents_are_drawn_by_their_r_and_lose_their_end(parts):
    plan, _ = parts
    long = prompt_writing._Draft(ids=list(range(9)), logps=[-1.0] * 9, r=-1.0)
    poor = prompt_writing._Draft(ids=[50] * 9, logps=[-1.0] * 9, r=-200.0)
    starts = [prompt_writing._start(plan, [poor, long, poor], 0, turn) for turn in range(1, 40)]
    assert all(start.ids == list(range(len(start.ids))) and len(start.ids) < 9 for start in starts)
    assert len({len(start.ids) for start in starts}) > 4
    even = [
        prompt_writing._start(plan, [long, prompt_writing._Draft([50] * 9, [-1.0] * 9, -1.0)], 0, t) for t in range(60)
    ]
    firsts = [start.ids[0] for start in even if start.ids]
    assert 10 < sum(first == 50 for first in firsts) < len(firsts) - 10
    assert prompt_writing._start(plan, [long], 0, 0).ids == []  # the first turn begins from nothing


def test_redraws_killed_and_started_again_end_with_the_same_bytes(tmp_path, monkeypatch):
    whole = launch("phtest.py:tiny", tmp_path / "whole", *REDRAWS)
    assert whole.code in (0, 3), whole.err
    num_calls, score_behind = 0, prompt_writing.scoring.score_behind

    def dies_at_the_second_turn(*args):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:  # the first is of the openings
            raise Killed
        return score_behind(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prompt_writing.scoring, "score_behind", dies_at_the_second_turn)
        with pytest.raises(Killed):
            launch("phtest.py:tiny", tmp_path / "run", *REDRAWS)
    again = launch("phtest.py:tiny", tmp_path / "run", *REDRAWS)
    name = "search/candidates.jsonl"
    assert (again.workdir / name).read_bytes() == (whole.workdir / name).read_bytes()
    searched = [row for row in rows_of(again.workdir / name) if row["method"] == "search"]
    assert len(searched) == 3 and all(1 <= row["turns"] <= 3 for row in searched)

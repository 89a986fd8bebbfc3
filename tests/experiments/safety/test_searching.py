"""A small search of a random model from the command line to its files, its resuming, and what it refuses."""

import json

import pytest

from alignment.errors import InputError
from alignment.safety import search
from data.texts import text_formats
from data.tokens import tokenizer
from data.toys import guest_questions
from experiments import phtest
from experiments.decoding import models
from experiments.pages import phtest_search
from experiments.safety import prompt_writing, searching
from tests.experiments.conftest import launch

SEARCH = ("--config.search", "--config.data.limit=3")
SEARCH += ("--config.defence.system=", "--config.defence.filter=", "--config.defence.words=()")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return launch("phtest.py:tiny", tmp_path_factory.mktemp("search") / "run", *SEARCH)


def test_a_search_leaves_its_candidates_and_its_numbers(ended):
    assert ended.code in (0, 3), ended.err
    numbers = json.loads((ended.workdir / "summary.json").read_text())
    assert numbers["candidates"] == 3 and {"found", "found_by_sampling", "frr/harmless"} <= numbers.keys()
    assert numbers["calls_by_sampling"] >= numbers["calls"]
    rows = rows_of(ended.workdir / "search/candidates.jsonl")
    fields = {"text", "seed_id", "control_id", "target_id", "f", "w", "calls", "ppl", "refused", "label", "votes"}
    assert all(fields <= row.keys() for row in rows)
    searched = [row for row in rows if row["method"] == "search"]
    assert len(searched) == 3 and all(row.keys() >= {"r", "turns", "opening_id"} for row in searched)
    assert sum(row["calls"] for row in searched) == numbers["calls"]
    assert [line["method"] for line in rows_of(ended.workdir / "tables/search.jsonl")] == ["search", "sampling"]


def test_no_prompt_is_in_the_log_or_on_the_page(ended):
    said = (
        ended.out + ended.err + (ended.workdir / "report.html").read_text() + (ended.workdir / "search.csv").read_text()
    )
    texts = [row["text"] for row in rows_of(ended.workdir / "search/candidates.jsonl")]
    assert texts and not any(text in said for text in texts if len(text) > 3)
    assert "per 1,000 calls" in ended.out


class Killed(BaseException):
    """Stands for a kill: nothing in the run handles it."""


@pytest.mark.parametrize("at", ["search", "sampling"])
def test_a_search_killed_and_started_again_ends_with_the_same_bytes(ended, tmp_path, monkeypatch, at):
    num_calls, write = 0, search.write

    def dies_at_the_second_block(*args):
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1:
            raise Killed
        return write(*args)

    def dies(*args):
        raise Killed

    with monkeypatch.context() as patch:
        if at == "search":
            patch.setattr(search, "write", dies_at_the_second_block)
        else:
            patch.setattr(prompt_writing, "sampled", dies)
        with pytest.raises(Killed):
            launch("phtest.py:tiny", tmp_path / "run", *SEARCH)
    again = launch("phtest.py:tiny", tmp_path / "run", *SEARCH)
    name = "search/candidates.jsonl"
    assert (again.workdir / name).read_bytes() == (ended.workdir / name).read_bytes()


def test_with_weight_0_the_search_writes_what_the_writer_draws(tmp_path):
    run = launch("phtest.py:tiny", tmp_path / "run", *SEARCH, "--config.searching.weight=0.0")
    assert run.code in (0, 3), run.err
    rows = rows_of(run.workdir / "search/candidates.jsonl")
    searched, sampled = ([row for row in rows if row["method"] == method] for method in ("search", "sampling"))
    assert [row["text"] for row in searched] == [row["text"] for row in sampled[:3]] and len(searched) == 3


def test_the_aligned_model_is_searched_by_a_toy_that_learns_what_guests_ask(tmp_path, monkeypatch, tiny):
    learned, served, targets, answered = [], [], [], []
    run, engine = searching.run, models.engine

    def spied_engine(model, *args, **options):
        served.append(model)
        return engine(model, *args, **options)

    def spied_run(c, folder, target, engine_fn, rows, *others):
        targets.append(target)
        answered.extend(rows)
        return run(c, folder, target, engine_fn, rows, *others)

    monkeypatch.setattr(searching, "run", spied_run)
    monkeypatch.setattr(models, "engine", spied_engine)
    monkeypatch.setattr(models, "train_toy", lambda folder, path, tok: learned.append(path) or tiny("sft").workdir)
    source = f"run:{tiny('dpo').workdir}"
    flags = ["--config.searching.point=aligned", f"--config.defence.aligned={source}"]
    flags += ["--config.searching.writer_from=guest", "--config.searching.seeds=synthetic:guest_questions"]
    flags += ["--config.searching.max_percentile=100.0", "--config.searching.perplexity_slack=99.0"]
    guests = launch("phtest.py:tiny", tmp_path / "run", *SEARCH, *flags)
    assert guests.code in (0, 3), guests.err
    assert learned == ["synthetic:guest_questions"] and {row["point"] for row in answered} == {"aligned"}
    names = [model.name for model in served]  # each model's answers to the prompts; draws; answers to what was written
    assert names[:2] == ["random", source] and sorted(names[2:]) == sorted(["guest", source])
    assert [model.name for model in targets] == [source] and targets[0].digest == served[1].digest != served[0].digest
    rows = rows_of(guests.workdir / "search/candidates.jsonl")
    assert {row["target_id"] for row in rows} == {source}
    assert {row["seed_id"] for row in rows} <= {row["id"] for row in guest_questions.prompts()}
    assert len([row for row in rows if row["method"] == "search"]) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.searching.point=other", "--config.search"], "searching.point='other'"),
        (["--config.searching.point=aligned", "--config.search"], "defence.aligned is empty"),
        (["--config.searching.weight=2.0"], "searching.weight=2.0 is not read without --config.search"),
        (["--config.voting.max_new_tokens=9"], "voting.max_new_tokens=9 is not read"),
        (["--config.search", "--config.searching.weight=-1.0"], "weight=-1.0"),
        (["--config.search", "--config.searching.preselect=all"], "preselect='all'"),
        (["--config.search", "--config.searching.num=0"], "searching.num=0"),
        (["--config.search", "--config.searching.control=Ask"], "must hold {seed} once"),
        (["--config.search", "--config.searching.voters=keyword"], "searching.voters='keyword'"),
        (["--config.search", "--config.searching.seeds=nowhere.csv"], "searching.voters=rules"),
        (["--config.search", "--config.searching.seeds=nowhere.csv", "--config.searching.voters=model"], "nowhere.csv"),
        (["--config.search", "--config.searching.openings=('',)"], "searching.openings"),
        (["--config.search", "--config.searching.writer_from=hf:nowhere/at/all"], "nowhere"),
        (["--config.search", "--config.searching.near=0.0"], "searching.near=0.0"),
        (["--config.search", "--config.searching.max_percentile=0.0"], "max_percentile=0.0"),
        (["--config.search", "--config.searching.perplexity_slack=0.5"], "perplexity_slack=0.5"),
        (["--config.search", "--config.mesh.tensor=2"], "mesh.tensor=2"),
        (["--config.search", "--config.searching.max_new_tokens=510"], "leave no room"),
        (["--config.search", "--config.searching.human=nobody.csv"], "nobody.csv"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_read(tmp_path, flags, words):
    refused = launch("phtest.py:tiny", tmp_path / "run", *flags)
    assert refused.code == 2 and words in refused.err and "Traceback" not in refused.err


def test_a_model_that_refuses_nothing_says_what_to_do(tmp_path):
    c = phtest.get_config("tiny")
    c.searching.openings = ()
    answered = [{"harmfulness": "harmful", "label": "full_compliance", "response": "done"}]
    with pytest.raises(InputError, match=r"refuses none of the 1 harmful prompts.*set searching\.openings"):
        searching._openings(c, None, answered)


def test_a_writer_of_another_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(searching.models.learning.byte_pairs(["open the door"], 300))
    other = tokenizer.load(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"vocabularies of searching\.writer_from"):
        searching.check_same_tokens(other, tokenizer.load("bytes"))


def test_the_yield_has_wilson_s_interval_by_calls():
    rows = [{"dropped": "", "label": "harmless", "refused": True, "calls": 100, "votes": {}, "method": "search"}] * 5
    line = phtest_search.line_of("search", rows)
    assert (line["found"], line["calls"], line["per_1000_calls"]) == (5, 500, 10.0)
    assert line["low"] == pytest.approx(4.28, abs=0.01) and line["high"] == pytest.approx(23.2, abs=0.1)


def test_each_toy_that_writes_learns_from_the_world_of_its_seeds_and_the_readers_know_them():
    for name in searching.ASKERS.values():
        rows = text_formats.EMBEDDED[name.partition(":")[2]](40, 0)
        written = [row["messages"][1]["content"] for row in rows]
        for text in (*written, *(row["prompt"] for row in searching.EMBEDDED[name]())):
            assert len({read(text) for read in searching.READERS[name].values()}) == 1


def holds_the_claim(runs):
    """Whether each run found twice as many as plain draws did."""
    for run in runs:
        assert run.code == 0, run.err
        numbers = json.loads((run.workdir / "summary.json").read_text())
        assert numbers["found"] >= 2 * numbers["found_by_sampling"] and numbers["found"] >= 10
        assert numbers["found_per_1000_calls"] >= 2 * numbers["found_per_1000_calls_by_sampling"]


@pytest.mark.slow  # the parts have tests of their own; this is the gate of the whole
def test_over_three_seeds_the_search_finds_twice_as_many_as_plain_draws(tmp_path):
    ended = launch("phtest.py:laptop", tmp_path / "0", "--config.search")
    assert ended.code == 0, ended.err
    toys = [f"--config.init_from=run:{ended.workdir / 'toy'}"]
    toys += [f"--config.searching.writer_from=run:{ended.workdir / 'search/writer'}"]
    more = [
        launch("phtest.py:laptop", tmp_path / f"{s}", "--config.search", f"--config.seed={s}", *toys) for s in (1, 2)
    ]
    holds_the_claim([ended, *more])


@pytest.mark.slow
def test_over_three_seeds_the_search_of_the_aligned_model_finds_twice_as_many_as_plain_draws(tmp_path):
    made = launch("egida.py:laptop", tmp_path / "made")
    assert made.code == 0, made.err
    flags = ["--config.search", f"--config.init_from=run:{made.workdir / 'toy'}"]
    flags += [f"--config.defence.aligned=run:{made.workdir}"]
    ended = launch("phtest.py:guests", tmp_path / "0", *flags)
    assert ended.code == 0, ended.err
    flags += [f"--config.searching.writer_from=run:{ended.workdir / 'search/writer'}"]
    more = [launch("phtest.py:guests", tmp_path / f"{s}", f"--config.seed={s}", *flags) for s in (1, 2)]
    holds_the_claim([ended, *more])

"""The pipeline end to end on the clinic: what it leaves, what a later start does, what is refused, what it shows."""

import itertools
import json
import shutil

import numpy as np
import pytest

from alignment.models import tensors
from alignment.train import language_model
from experiments.medicine import schemes, stages, tuning
from experiments.pages import aloe as page
from tests.experiments.conftest import launch

KEYS = {f"accuracy/{name}" for name in ("base", "sft", "merged", "dpo", "few_shot", "sc_cot", "medprompt")}
KEYS |= {f"accuracy/expert/{ward}" for ward in ("skin", "sleep")}
STAGES = ("base", "experts/skin", "experts/sleep", "merged/ties", "merged/linear", "dpo_general", "dpo_safety")


def read(path):
    return json.loads(path.read_text())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tiny):
    ended = tiny("aloe")
    assert ended.code == 0, ended.err
    return ended.workdir


def test_every_step_is_measured_and_every_stage_leaves_a_model(whole):
    numbers = read(whole / "summary.json")
    assert numbers.keys() >= KEYS and numbers["n/questions"] == 8
    for ward in ("skin", "sleep"):
        # of nothing, nothing can be kept
        assert (f"kept/{ward}" in numbers) == (numbers[f"accuracy/expert/{ward}"] > 0)
    assert {f"bias/{point}/vignettes/{name}" for point in ("before", "after") for name in ("gap", "flips")} <= set(
        numbers
    )
    assert all((whole / stage / "export/hf/config.json").is_file() for stage in STAGES)
    names = ("generations.json", "evaluation.json", "incorrect.json", "merge_report.json", "findings.txt")
    assert all((whole / name).is_file() for name in names)
    figures = {path.stem for path in (whole / "figures").glob("*.png")}
    assert {"steps", "merges", "votes"} <= figures <= {"steps", "merges", "votes", "letters"}


def test_the_last_model_is_what_other_runs_begin_from(whole):
    language_model.check_init_from(f"run:{whole}")
    last, before = (tensors.index(whole / name / "export/hf") for name in (".", "dpo_safety"))
    assert last.keys() == before.keys()
    for name in last:
        np.testing.assert_array_equal(tensors.view(name, last[name]), tensors.view(name, before[name]))


def test_each_gain_is_that_of_the_same_questions_over_the_step_before(whole):
    lines = rows_of(whole / "tables/steps.jsonl")
    assert [line["step"].split()[0] for line in lines] == [
        *("base", "tuned", "merged", "aligned", "aligned", "few_shot", "sc_cot", "medprompt"),
    ]
    for before, line in itertools.pairwise(lines[:5]):
        assert line["gain"] == pytest.approx(line["accuracy"] - before["accuracy"])
    for line in lines[5:]:
        assert line["gain"] == pytest.approx(line["accuracy"] - lines[4]["accuracy"])
    assert all(line["gain_low"] <= line["gain"] <= line["gain_high"] for line in lines[1:])


def test_chains_of_thought_that_end_elsewhere_are_counted_and_not_trained_on(whole):
    kept = rows_of(whole / "experts/skin/rationales.jsonl")
    assert len(kept) == 12
    counts = {line["what"]: line["count"] for line in rows_of(whole / "tables/data.jsonl")}
    dropped = counts["chains of thought that end at another answer, dropped"]
    assert counts["chains of thought written"] == 24 + dropped - counts["questions without a right chain of thought"]


def test_a_later_start_trains_and_asks_nothing_again(whole, tmp_path, monkeypatch):
    again = tmp_path / "run"
    shutil.copytree(whole, again)
    for name in ("DONE", "summary.json"):
        (again / name).unlink()

    def refuse(*args, **options):
        raise AssertionError("this was done by the start before")

    monkeypatch.setattr(tuning.text_training, "fit", refuse)
    monkeypatch.setattr(tuning.tuning, "align", refuse)
    monkeypatch.setattr(stages.models, "engine", refuse)
    ended = launch("aloe.py:tiny", again)
    assert ended.code == 0, ended.err
    first, second = (read(place / "summary.json") for place in (whole, again))
    assert {key: second[key] for key in KEYS} == {key: first[key] for key in KEYS}


def test_a_stage_that_was_made_from_something_else_is_refused_by_its_folder(tmp_path):
    assert tuning.finished(tmp_path, {"rows": "a"}) is None
    tuning._note(tmp_path, {}, 3, 8, "rows_per_second")
    assert tuning.finished(tmp_path, {"rows": "a"}) == {"steps": 3.0}
    with pytest.raises(ValueError, match="was made from other data, weights or settings"):
        tuning.finished(tmp_path, {"rows": "b"})


def row(name, result, answers, gold="A"):
    return {
        "id": name,
        "result": result,
        "original_answer": gold,
        "generations": [{"answer": answer, "logprob": None} for answer in answers],
    }


def test_a_gain_is_called_one_only_where_its_interval_is_above_zero():
    groups = {str(i): str(i) for i in range(40)}
    none = [row(str(i), False, "B") for i in range(40)]
    all_right = [row(str(i), True, "A") for i in range(40)]
    one_right = [row(str(i), i == 0, "A") for i in range(40)]
    assert page.gain(groups, none, all_right)["it is"] == page.GAIN
    assert page.gain(groups, all_right, none)["it is"] == page.LOSS
    assert page.gain(groups, none, one_right)["it is"] == page.UNCLEAR
    # one fact behind all questions is one observation
    alike = dict.fromkeys(groups, "fact")
    some = [row(str(i), i < 20, "A") for i in range(40)]
    assert page.gain(alike, some, some)["gain"] == 0


def test_accuracy_by_the_number_of_votes_is_that_of_the_first_replies():
    rows = [row("a", True, "ABA"), row("b", True, "BAA"), row("c", False, "BBA")]
    assert schemes.by_votes(rows, "first_seen") == [(1, 1 / 3), (2, 1 / 3), (3, 2 / 3)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["init_from=gguf:x.gguf"], "must be hf:<folder or hub id> or run:<workdir>"),
        (["data.test=exam.jsonl"], "reads the clinic alone"),
        (["world.readings=None"], "world.readings=None: init_from='synthetic:clinic' needs a number"),
        (["merge.methods=('tie',)"], "the nearest is 'ties'"),
        (["merge.density=2.0", "merge.methods=('slerpy',)"], "the nearest is 'slerp'"),
        (["asking.schemes=('medpromt',)"], "the nearest is 'medprompt'"),
        (["asking.ties=first"], "ties='first'"),
        (["asking.num_draws=0"], "asking.num_draws=0 must be at least 1"),
        (["asking.max_new_tokens=900"], "engine.max_len=256"),
        (["asking.encoder=nowhere"], "nowhere"),
        (["synthesis.tries=-1"], "synthesis.tries=-1 must be at least 0"),
        (["synthesis.tries=0", "synthesis.direct_share=0.5"], "leaves turns that show one"),
        (["synthesis.tries=0", "synthesis.direct_share=1.0", "synthesis.temperature=0.2"], "no chain of thought"),
        (["synthesis.temperature=0.0"], "writes the same reply each time"),
        (["synthesis.teacher=run:nowhere"], "nowhere"),
        (["sft.epochs=0.0"], "sft.epochs=0.0 must be above 0"),
        (["sft.batch_size=12"], "batch_size=12"),
        (["general.beta=-1.0"], "beta=-1.0"),
        (["safety.path=nowhere.jsonl"], "no such file"),
        (["red_team.attacks=nowhere.jsonl"], "no such file"),
        (["judge=keywords"], "the nearest is 'keyword'"),
        (["asking.by_text=False"], "name options by their texts"),
        (["bias.limit=3"], "bias.limit=3 is not read without a set"),
        (["bias.bbq=nowhere.jsonl"], "no such file"),
        (["general.path=", "general.beta=0.7"], "general.beta=0.7 is not read, as general.path names no file"),
        (["asking.schemes=('few_shot',)", "asking.num_draws=9"], "asking.num_draws=9 is not read"),
        (["toxicity.scorer=linear:x"], "is not read without toxicity.prompts"),
        (["export="], "export='' leaves no weights"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_refused(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = launch("aloe.py:tiny", tmp_path / "run", *(f"--config.{flag}" for flag in flags))
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err, ended.err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_merge_beats_the_base_by_ten_points_and_keeps_four_fifths_of_each_expert(seed, tmp_path):
    ended = launch("aloe.py:laptop", tmp_path / "run", f"--config.seed={seed}")
    assert ended.code == 0, ended.err
    numbers = read(tmp_path / "run/summary.json")
    assert numbers["accuracy/merged"] >= numbers["accuracy/base"] + 0.1
    assert min(numbers["kept/skin"], numbers["kept/sleep"]) >= 0.8
    lost = numbers["gain/medprompt"] - numbers["gain_low/medprompt"]
    assert numbers["accuracy/medprompt"] >= numbers["accuracy/dpo"] - lost
    assert numbers["asr/after"] < numbers["asr/before"]

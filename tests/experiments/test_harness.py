import concurrent.futures
import dataclasses
import functools
import json
import sys

import pytest

from alignment.decoding import scoring
from alignment.errors import InputError
from data.toys import synthetic
from experiments import harness
from experiments.decoding import harness_cli, models, museum_tasks
from experiments.pages import harness as harness_page
from tests.experiments.conftest import launch

tasks = pytest.importorskip("lm_eval.tasks")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tiny_leaves_numbers_of_each_task_and_what_was_asked(tiny):
    ended = tiny("harness")
    assert ended.code == 0, ended.err
    summary = json.loads((ended.workdir / "summary.json").read_text())
    assert {"museum_choices/acc", "museum_choices/acc_stderr", "museum_choices/acc_norm"} <= set(summary)
    assert summary["questions"] == 8 and summary["truncated"] == 0
    (choices, *_) = rows(ended.workdir / "samples/museum_choices.jsonl")
    assert len(choices["arguments"]) == len(choices["resps"]) == 4
    table = {(row["task"], row["metric"]): row for row in rows(ended.workdir / "tables/tasks.jsonl")}
    row = table["museum_choices", "acc"]
    assert row["guessing"] == 0.25 and row["of"] == 4 and row["low"] <= row["value"] <= row["high"]
    assert len(rows(ended.workdir / "tables/questions.jsonl")) == 4
    (results, _) = json.loads((ended.workdir / "results.json").read_text())
    assert results["config"]["model_sha"] and "samples" not in results


def test_a_run_that_starts_again_computes_no_answer_twice(tiny, tmp_path, monkeypatch):
    first = tiny("harness").workdir
    (tmp_path / "answers").mkdir()
    for path in (first / "answers").iterdir():
        (tmp_path / "answers" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(scoring, "score", lambda *_, **__: pytest.fail("a choice was computed again"))
    ended = launch("harness.py:tiny", tmp_path, "--config.tasks=('museum_choices',)")
    assert ended.code == 0, ended.err
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, first))
    assert ours["museum_choices/acc_norm"] == theirs["museum_choices/acc_norm"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("tasks=()", "tasks=() must be a tuple of names"),
        ("limit=0", "limit=0 must be at least 1"),
        ("num_fewshot=-1", "num_fewshot=-1 must be at least 0"),
        ("task_folder=nowhere", "task_folder='nowhere' is not a folder"),
        ("init_from=hf:nowhere", "nowhere is neither a folder here nor a hub id"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_weights_are_read(flag, message, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.models, "open_model", lambda *_: pytest.fail("a model was opened"))
    ended = launch("harness.py:tiny", tmp_path, f"--config.{flag}")
    assert ended.code == 2 and message in ended.err


def test_a_system_message_that_the_template_refuses_is_refused_with_it(tmp_path):
    c = harness.get_config("tiny")
    c.update(apply_chat_template=True, system_instruction="Be brief.")
    model = models.open_model(c, tmp_path)
    harness._check_system(c, model)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tok = dataclasses.replace(model.tok, chat_template=template)
    with pytest.raises(InputError, match=r"system_instruction='Be brief\.' and the model's chat template refuses"):
        harness._check_system(c, dataclasses.replace(model, tok=tok))


def test_an_unknown_task_is_refused_with_the_nearest_names(tmp_path, monkeypatch):
    class Index:
        all_tasks = ["arc_easy", "arc_challenge"]  # noqa: RUF012

    monkeypatch.setattr(harness, "task_manager", lambda *_: Index())  # the harness's own takes seconds to read
    ended = launch("harness.py:tiny", tmp_path, "--config.tasks=('arc_esy',)")
    assert ended.code == 2 and "'arc_esy'" in ended.err and "the nearest are arc_easy" in ended.err


def test_a_task_whose_data_are_not_here_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "own").mkdir()
    task = "task: far\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\ntest_split: test\n"
    task += "output_type: multiple_choice\ndoc_to_text: a\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    (tmp_path / "own/far.yaml").write_text(task)
    flags = ("--config.tasks=('far',)", f"--config.task_folder={tmp_path / 'own'}")
    ended = launch("harness.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2
    assert "task 'far' cannot be loaded (FileNotFoundError" in ended.err and "data_files" in ended.err


def test_a_task_of_ones_own_is_found_in_its_folder(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/rows.jsonl").write_text(json.dumps({"q": "Sky?", "a": ["blue", "red"]}) + "\n")
    task = f"task: sky\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/own/rows.jsonl}}}}\n"
    task += "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: 0\n"
    (tmp_path / "own/sky.yaml").write_text(task + "doc_to_choice: '{{a}}'\n")
    flags = ("--config.tasks=('sky',)", f"--config.task_folder={tmp_path / 'own'}", "--config.cache=False")
    ended = launch("harness.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    assert rows(tmp_path / "run/tables/tasks.jsonl")[0]["guessing"] == 0.5
    assert not (tmp_path / "run/answers").exists()


def test_the_harness_s_own_command_line_knows_the_model(tmp_path, monkeypatch, capsys):
    local_only = functools.partial(tasks.TaskManager, include_defaults=False)  # its own take 20 s to index
    monkeypatch.setattr(tasks, "TaskManager", local_only)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", concurrent.futures.ThreadPoolExecutor)
    museum_tasks.write(tmp_path / "tasks", in_chat=False, needs_space=False, seed=0)
    line = "lm-eval run --model flax --model_args init_from=random,dtype=float32,max_length=128 --limit 2"
    line += f" --include_path {tmp_path / 'tasks'} --tasks museum_choices --output_path {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", line.split())
    assert harness_cli.main() == 0
    (results,) = (tmp_path / "out").rglob("results*.json")
    assert json.loads(results.read_text())["results"]["museum_choices"]["acc,none"] in (0.0, 0.5, 1.0)
    monkeypatch.setattr(sys, "argv", [*line.replace("dtype", "dtipe").split()])
    assert harness_cli.main() == 2
    assert "model_args has dtipe, which flax does not read" in capsys.readouterr().err


def test_museum_questions_have_one_right_choice_and_two_parts_that_never_meet():
    test, shots = synthetic.questions("test", 100), synthetic.questions("shots", 100)
    assert (len(test), len(shots)) == (museum_tasks.NUM_TEST, museum_tasks.NUM_SHOTS)
    assert not {row["question"] for row in test} & {row["question"] for row in shots}
    for row in test:
        right = row["choices"]["text"]["ABCD".index(row["answerKey"])]
        assert right in row["facts"] and row["answer"] in right
        assert len(set(row["choices"]["text"])) == 4
        assert sum(choice in row["facts"] for choice in row["choices"]["text"]) == 1


def test_in_a_chat_choices_begin_with_a_space_where_the_template_ends_without_one(tmp_path):
    for needs_space in (True, False):
        museum_tasks.write(tmp_path, in_chat=True, needs_space=needs_space, seed=0)
        manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
        (task,) = manager.load(["museum_choices"])["tasks"].values()
        choices = task.doc_to_choice(next(iter(task.eval_docs)))
        assert len(choices) == 4 and all(choice.startswith(" ") == needs_space for choice in choices)


def test_findings_say_whether_guessing_explains_a_share():
    row = dict(task="t", metric="acc", right=30, of=40, value=0.75, low=0.6, high=0.86, guessing=0.25)
    assert "above guessing, which gives 25.0 %" in harness_page.finding(row)
    assert "not to be told from guessing" in harness_page.finding(row | dict(low=0.2))


def test_the_headline_names_the_shares_of_the_first_tasks():
    summary = {"a/alias": 1.0, "a/acc": 0.5, "a/acc_norm": 0.4, "b/exact_match/first": 0.1, "questions": 9}
    sentence = "Of the questions, 50.0 % in a, 10.0 % in b are answered right."
    assert harness_page.headline(summary) == sentence
    many = {f"{task}/acc": 0.25 for task in "abcde"}
    assert harness_page.headline(many).endswith("25.0 % in c are answered right, and 2 more tasks were asked.")
    assert harness_page.headline({"questions": 9.0}) == "9 questions were asked."

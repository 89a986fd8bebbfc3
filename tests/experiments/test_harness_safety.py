"""Sets of prompts as tasks of lm-evaluation-harness, with a judge as the filter of the answers."""

import csv
import json

import pytest

from alignment.errors import InputError
from alignment.safety import refusals, verdicts
from alignment.safety.judging import Judge, Judged
from experiments.pages import harness as harness_page
from experiments.safety import harness_tasks
from tests.experiments.conftest import launch

SECRET = "xylophone"  # a word of every prompt
SETS = {  # name -> (rows, kind to say, the tasks that come of it)
    "xstest_prompts": (
        [
            {"id": f"v{i}", "prompt": f"{SECRET} {i}", "type": "t", "label": label}
            for i, label in enumerate(("safe", "unsafe", "safe"))
        ],
        None,
        {"xstest_harmless": 2, "xstest_harmful": 1},
    ),
    "PHTest": (
        [
            {"ID": i, "Request": f"{SECRET} {i}", "Harmfulness": kind}
            for i, kind in enumerate(("harmless", "controversial"))
        ],
        None,
        {"phtest_harmless": 1, "phtest_controversial": 1},
    ),
    "or-bench-hard-1k": (
        [{"prompt": f"{SECRET} {i}", "category": "c"} for i in range(2)],
        "harmless",
        {"or-bench-hard-1k_harmless": 2},
    ),
    "harmbench": (
        [{"Behavior": f"{SECRET} {i}", "BehaviorID": i, "ContextString": "about"} for i in range(2)],
        None,
        {"harmbench_harmful": 2},
    ),
}


def write(folder, name):
    rows, kind, tasks = SETS[name]
    path = folder / f"{name}.csv"
    with open(path, "w", newline="") as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path, kind, tasks


@pytest.mark.parametrize("name", SETS)
def test_each_class_of_a_set_is_a_task_of_its_own(tmp_path, name, capsys):
    path, kind, tasks = write(tmp_path, name)
    flags = [f"--path={path}", f"--folder={tmp_path / 'tasks'}", *([f"--kind={kind}"] if kind else [])]
    assert harness_tasks.main(flags) == 0
    written = {p.stem: len((p.with_suffix(".jsonl")).read_text().splitlines()) for p in tmp_path.glob("tasks/*.yaml")}
    assert written == tasks
    assert SECRET not in capsys.readouterr().out


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The harness on two sets, answered by the small random model and judged by keywords."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("safety")
    for name in ("xstest_prompts", "harmbench"):
        path, kind, _ = write(folder, name)
        harness_tasks.write(folder / "tasks", str(path), kind=kind, max_new_tokens=4)
    flags = (f"--config.task_folder={folder / 'tasks'}", "--config.tasks=('xstest_harmless','harmbench_harmful')")
    return launch("harness.py:tiny", folder / "run", *flags, "--config.limit=2", "--config.cache=False")


def test_the_harness_counts_what_the_judge_says_of_each_answer(ended):
    assert ended.code == 0, ended.err
    numbers = json.loads((ended.workdir / "summary.json").read_text())
    samples = [json.loads(line) for line in (ended.workdir / "samples/xstest_harmless.jsonl").read_text().splitlines()]
    labels = [refusals.judge(sample["resps"][0][0]).response_refusal for sample in samples]
    valid = [label for label in labels if label != verdicts.INVALID]
    assert len(labels) == 2 and numbers["xstest_harmless/invalid/keyword"] == 1 - len(valid) / 2
    assert valid and numbers["xstest_harmless/frr/keyword"] == sum(x != "full_compliance" for x in valid) / len(valid)
    assert {"harmbench_harmful/asr/keyword", "harmbench_harmful/refused/keyword"} <= numbers.keys()
    assert numbers["harmbench_harmful/asr/keyword"] == 1 - numbers["harmbench_harmful/refused/keyword"]


def test_prompts_are_neither_printed_nor_in_what_the_run_leaves(ended):
    left = [p for p in ended.workdir.rglob("*") if p.suffix in (".json", ".jsonl", ".html", ".txt", ".csv")]
    assert SECRET not in ended.out + ended.err + "".join(path.read_text() for path in left)


def test_tasks_that_say_nothing_show_their_questions():
    results = {"configs": {"t": {"metadata": {"version": 1.0}}}, "samples": {"t": [{"doc": {"q": 1}}]}}
    assert not harness_page.hides_texts(results, "t")
    assert harness_page.sample_rows(results, "t") == [{"doc": {"q": 1}}]


def judge_of(*said):
    return Judge("j", lambda exchanges: [Judged(verdict) for verdict, _ in zip(said, exchanges, strict=True)])


def test_an_answer_counts_in_the_rates_that_the_judge_speaks_of_and_an_empty_one_is_invalid():
    docs = [{"prompt": "a", "kind": kind} for kind in ("harmless", "harmful", "harmful")]
    judge = judge_of(
        verdicts.Verdict(response_refusal="partial_refusal"), verdicts.Verdict(response_harmfulness="harmful")
    )
    labels = harness_tasks.labels(judge, [["no"], ["yes"], [" "]], docs)
    assert labels == [["partial_refusal/"], ["/unsafe"], ["invalid/invalid"]]
    got = [harness_tasks.rates(doc, some) for doc, some in zip(docs, labels)]
    assert got == [{"invalid": 0, "frr": 1, "full": 0}, {"invalid": 0, "asr": 1}, {"invalid": 1}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"judge": "regex"}, "'regex'"),
        ({"judge": "model"}, "does not know the model"),
        ({"judge": "endpoint"}, "judging.url is empty"),
        ({"judging": {"template": "yes_no"}}, "is not read"),
        ({"judging": {"templat": "yes_no"}}, "'template'"),
        ({"judge": "endpoint", "judging": {"template": "prompt_yes_no"}}, "response_refusal is needed"),
        ({"kind": "safe"}, "'safe'"),
    ],
)
def test_tasks_that_cannot_be_are_refused(tmp_path, options, words):
    path, _, _ = write(tmp_path, "xstest_prompts")
    with pytest.raises(InputError, match=words):
        harness_tasks.write(tmp_path / "tasks", str(path), **options)
    assert not (tmp_path / "tasks").exists()


def test_a_judge_of_harm_is_enough_where_all_prompts_are_harmful(tmp_path):
    path, _, _ = write(tmp_path, "harmbench")
    service = {"url": "http://127.0.0.1:1/v1", "model": "m", "template": "yes_no"}
    flags = [f"--judging={name}={value}" for name, value in service.items()]
    assert harness_tasks.main([f"--path={path}", f"--folder={tmp_path / 'tasks'}", "--judge=endpoint", *flags]) == 0
    assert json.loads((tmp_path / "tasks/judge.json").read_text())["judging"]["model"] == "m"
    assert harness_tasks.main([f"--path={path}", f"--folder={tmp_path / 'tasks'}", "--judging=retries=many"]) == 2

"""Log-likelihoods and accuracies of careqa.py beside those of lm-evaluation-harness's `hf` on five tasks.

The harness's own prompts are taken from its installed tasks; rows are public files beside a developer's checkout, and
without them the tests are skipped.
"""

import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest

from tests.parity import test_harness
from tests.parity.test_harness import both  # noqa: F401  (a fixture)

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.tasks import TaskManager  # noqa: E402

from data.texts import exams  # noqa: E402
from experiments import careqa  # noqa: E402
from experiments.evaluation import asking, subjects  # noqa: E402

ROWS = pathlib.Path(__file__).resolve().parents[3] / "shared/data"
TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"
NUM = 8
FILES = {
    "careqa_en": ("medqa_careqa", "careqa_en_a.jsonl", "careqa/utils.py", "utils"),
    "medmcqa": ("medqa_medmcqa", "medmcqa_train_sample_first3000.jsonl", "medmcqa/utils_medmcqa.py", "utils_medmcqa"),
    "medqa": ("medqa_medqa_usmle", "medqa_4opt_val.jsonl", "medqa/preprocess_medqa.py", "preprocess_medqa"),
    "pubmedqa": ("medqa_pubmedqa", "pqal_non_test.jsonl", "pubmedqa/preprocess_pubmedqa.py", "preprocess_pubmedqa"),
    "mmlu_anatomy": ("medqa_mmlu_medical", "mmlu_anatomy_val.jsonl", "", ""),
}


def hub_row(name, row):
    """A row in the columns of the hub's data set, which the task reads."""
    if name == "pubmedqa":
        return row
    texts, gold = list(row["options"].values()), "ABCD".index(row["correct_answer"])
    if name == "careqa_en":
        return {"question": row["question"], **{f"op{i}": t for i, t in enumerate(texts, 1)}, "cop": gold + 1}
    if name == "medmcqa":
        return {"question": row["question"], **{f"op{c}": t for c, t in zip("abcd", texts)}, "cop": gold}
    if name == "medqa":
        return {"sent1": row["question"], **{f"ending{i}": t for i, t in enumerate(texts)}, "label": gold}
    return {"question": row["question"], "choices": texts, "answer": gold}


def write_task(folder, name, rows):
    _, _, source, module = FILES[name]
    (folder / f"{name}.json").write_text("".join(json.dumps(hub_row(name, row)) + "\n" for row in rows))
    text = f"!function {module}.doc_to_text"
    target = {"careqa_en": f"!function {module}.doc_to_target", "medmcqa": "cop"}.get(name, "answer")
    target = {"medqa": f"!function {module}.doc_to_target", "pubmedqa": "final_decision"}.get(name, target)
    lines = [f"task: {name}", "dataset_path: json", "output_type: multiple_choice", "test_split: test"]
    lines += [
        "dataset_kwargs:",
        f"  data_files: {{test: {folder / f'{name}.json'}}}",
        f"  cache_dir: {folder / 'cache'}",
    ]
    choices = '["yes", "no", "maybe"]' if name == "pubmedqa" else '["A", "B", "C", "D"]'
    if source:
        shutil.copy(TASKS / source, folder)
    else:
        lines.append(
            f'description: "The following are multiple choice questions (with answers) about {name[5:]}.\\n\\n"'
        )
        options = "\\n".join(f"{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate("ABCD"))
        text = f'"{{{{question.strip()}}}}\\n{options}\\nAnswer:"'
    lines += [f"doc_to_text: {text}", f"doc_to_target: {target}", f"doc_to_choice: {choices}"]
    lines += ["metric_list:", "  - metric: acc", "    aggregation: mean", "    higher_is_better: true"]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(not ROWS.is_dir(), reason="the public medical files are not beside this checkout")
def test_log_likelihoods_and_accuracies_agree_with_the_harness_on_five_tasks(both, tmp_path):  # noqa: F811
    ours, theirs = both
    del ours  # our class of the harness; what is compared here is careqa's own path
    c = careqa.get_config("tiny")
    c.engine.max_len = test_harness.MAX_LENGTH
    spec = f"hf:{theirs.pretrained}"
    subject = subjects.Local("ours", spec, ml_collections.ConfigDict(c.to_dict()), tmp_path, is_chat=False)
    all_rows = {}
    for name, (place, file, _, _) in FILES.items():
        rows = [json.loads(line) for line in (ROWS / place / file).read_text(encoding="utf-8").splitlines()[:NUM]]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_task(tmp_path, name, rows)
        all_rows[name] = exams.load(str(tmp_path / file), counts={})
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    options = dict(model=theirs, tasks=list(FILES), task_manager=manager, bootstrap_iters=0)
    results = lm_eval.simple_evaluate(**options)
    for name, exam in all_rows.items():
        got = asking.closed(subject, exam, exam.items, asking.protocol_of(exam, "letters"), 0)
        samples = results["samples"][name]
        wanted = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
        np.testing.assert_allclose(got["nats"], wanted, atol=1e-3)
        right = sum(chosen == item.gold for chosen, item in zip(got["chosen"], exam.items))
        assert right / len(exam.items) == results["results"][name]["acc,none"]
        assert exams.prompt(exam, exam.items[0], by_letter=True) == samples[0]["arguments"][0][0]

"""Tasks for lm-evaluation-harness on the embedded museum, in the YAML and JSONL that a user's own task is made of.

`museum_choices` and `museum_reading` offer four answers each, without and with the facts to read. In `museum_answers`
and `museum_reading_answers` the model writes, and the first value that it names counts.
"""

import pathlib
import re
from typing import Any

import yaml

from alignment import files
from data.toys import synthetic

NAMES = ("museum_choices", "museum_reading", "museum_answers", "museum_reading_answers")
NUM_TEST, NUM_SHOTS = 56, 28


def write(folder: pathlib.Path, *, in_chat: bool, needs_space: bool, seed: int) -> None:
    """Write the three tasks and their rows into `folder`.

    Args:
        in_chat: a question is a message of its own; else "Question: ..." with "Answer:" on the next line.
        needs_space: in a chat, whether an answer begins with a space, which the harness leaves out there.
        seed: of the rows.
    """
    for part, num in (("test", NUM_TEST), ("shots", NUM_SHOTS)):
        files.write_rows(folder / f"{part}.jsonl", synthetic.questions(part, num, seed))
    question = "{{question}}" if in_chat else "Question: {{question}}\nAnswer:"
    choices = "{{choices.text}}"
    if in_chat and needs_space:
        choices = "{{choices.text | map('replace', '', ' ', 1) | list}}"
    multiple = {
        "output_type": "multiple_choice",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": choices,
        "metric_list": [_metric("acc"), _metric("acc_norm")],
    }
    writing = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 96, "do_sample": False},
        "filter_list": [{"name": "first value", "filter": [_first_value(), {"function": "take_first"}]}],
        "metric_list": [_metric("exact_match", ignore_case=True)],
    }
    with_facts = "{{facts}}\n\n" + question
    tasks: dict[str, dict[str, Any]] = {
        "museum_choices": {**multiple, "doc_to_text": question},
        "museum_reading": {**multiple, "doc_to_text": with_facts},
        "museum_answers": {**writing, "doc_to_text": question},
        "museum_reading_answers": {**writing, "doc_to_text": with_facts},
    }
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {part: str((folder / f"{part}.jsonl").resolve()) for part in ("test", "shots")},
            "cache_dir": str((folder / "cache").resolve()),
        },
        "test_split": "test",
        "fewshot_split": "shots",
        "metadata": {"version": 1.0},
    }
    for name, task in tasks.items():
        content = yaml.safe_dump({"task": name, **shared, **task}, sort_keys=False)
        files.write_text(folder / f"{name}.yaml", content)


def _metric(name: str, **options: Any) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True, **options}


def _first_value() -> dict[str, Any]:
    values = {value for things, _, _ in synthetic.TOPICS.values() for value in things.values()}
    longest_first = sorted(values, key=lambda value: (-len(value), value))
    return {"function": "regex", "regex_pattern": f"({'|'.join(map(re.escape, longest_first))})", "group_select": 0}

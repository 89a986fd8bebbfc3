"""Sets of bias and truthfulness by their columns; all texts here are placeholders."""

import csv
import json

import pytest

from alignment.errors import InputError
from data.texts import bias_sets

ANSWERS = {"ans0": "The first", "ans1": "The second", "ans2": "Not known"}
INFO = {"ans0": ["first", "F-North"], "ans1": ["second", "South"], "ans2": ["not known", "unknown"]}


def bbq(polarity="neg", condition="ambig", label=2, groups=("North",)):
    about = {"question_polarity": polarity, "context_condition": condition, "label": label, "answer_info": INFO}
    about |= {"additional_metadata": {"stereotyped_groups": list(groups)}, "context": "Two met.", "question": "Who?"}
    return ANSWERS | about


def load(name, rows, tmp_path, limit=None):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {}
    return bias_sets.load(name, str(path), limit=limit, counts=counts), counts


def test_the_first_sentence_of_a_crows_pair_is_the_stereotype_whatever_its_direction(tmp_path):
    path = tmp_path / "crows.csv"
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        writer.writerows([[0, "more", "less", "stereo", "age"], [1, "more too", "less too", "antistereo", "age"]])
    some = bias_sets.load("crows_pairs", str(path), limit=None, counts={})
    assert [one.choices for one in some] == [("more", "less"), ("more too", "less too")] and not some[0].context


@pytest.mark.parametrize(("polarity", "biased"), [("neg", 0), ("nonneg", 1)])
def test_the_biased_answer_turns_with_the_question(polarity, biased, tmp_path):
    (one,), _ = load("bbq", [bbq(polarity)], tmp_path)
    assert (one.biased, one.unknown, one.right, one.group) == (biased, 2, 2, "ambig")
    assert one.context == "Two met. Who?"


def test_a_row_whose_stereotyped_group_no_answer_names_is_left_out_with_a_count(tmp_path):
    some, counts = load("bbq", [bbq(), bbq(groups=("East",))], tmp_path)
    assert len(some) == 1 and counts["rows whose answers do not show which group is stereotyped, left out"] == 1
    with pytest.raises(InputError, match="no row that can be asked as bbq"):
        load("bbq", [bbq(groups=("East",))], tmp_path)


def test_toxicity_is_that_of_both_ratings_or_the_label(tmp_path):
    rated = [{"text": "x", "toxicity_ai": a, "toxicity_human": h} for a, h in ((3, 3), (2, 3))]
    some, _ = load("toxigen", rated, tmp_path)
    assert [one.choices[one.right] for one in some] == ["Yes", "No"]
    labelled, _ = load("toxigen", [{"generation": "x", "prompt_label": 1}], tmp_path)
    assert labelled[0].right == 0


def test_all_true_answers_of_truthfulqa_count_and_one_is_the_best(tmp_path):
    row = {
        "question": "q",
        "mc1_targets": {"choices": ["a", "b", "c"], "labels": [0, 1, 0]},
        "mc2_targets": {"choices": ["b", "d", "a", "c"], "labels": [1, 1, 0, 0]},
    }
    (one,), _ = load("truthfulqa", [row], tmp_path)
    assert one.choices[one.right] == "b"
    assert dict(zip(one.choices, one.true)) == {"a": False, "b": True, "c": False, "d": True}


def test_a_row_of_another_shape_is_named_by_file_and_line(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl:2: not a row of bbq: ValueError"):
        load("bbq", [bbq(), bbq(polarity="positive")], tmp_path)
    with pytest.raises(InputError, match=r"rows.jsonl:1: not a row of vignettes: KeyError 'options'"):
        load("vignettes", [{"question": "q"}], tmp_path)


def beginnings(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {}
    return bias_sets.load_beginnings(str(path), limit=2, counts=counts), counts


def test_half_sentences_come_with_the_files_own_scores_or_without(tmp_path):
    first = {"prompt": {"text": "The door ", "toxicity": 0.25}, "continuation": {"text": " opens", "toxicity": None}}
    some, counts = beginnings(tmp_path, first, {"prompt": {"text": "A bell"}}, {"prompt": {"text": "beyond"}})
    assert some[0] == bias_sets.Beginning("The door", " opens", 0.25, None)
    assert some[1] == bias_sets.Beginning("A bell") and counts["records beyond data.limit"] == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, "prompt has text and toxicity"),
        ({"prompt": "x"}, "Error"),
        ({"prompt": {"text": " "}}, "text is empty"),
        ({"prompt": {"text": "x", "toxicity": 1.5}}, "toxicity 1.5 is not in"),
    ],
)
def test_a_row_that_is_not_of_real_toxicity_prompts_is_named(tmp_path, row, words):
    with pytest.raises(InputError, match=rf"prompts.jsonl:1: not a row of RealToxicityPrompts.*{words}"):
        beginnings(tmp_path, row)

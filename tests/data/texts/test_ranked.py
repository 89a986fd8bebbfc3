"""Several scored answers to a prompt become all their pairs."""

import json

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import orders, preferences, trees
from data.tokens import tokenizer

SHAPES = {
    "lists": {"prompt": "q", "answers": ["best", "mid", "worst"], "scores": [9, 5.5, 1]},
    "UltraFeedback": {
        "instruction": "q",
        "completions": [{"response": r, "overall_score": s} for r, s in (("worst", 1), ("best", 9), ("mid", 5.5))],
    },
    "ranks": {"prompt": "q", "answers": [{"answer": r, "rank": k} for r, k in (("mid", 2), ("best", 1), ("worst", 3))]},
}


def load(tmp_path, rows, **options):
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return preferences.load(path=str(path), tokenizer=tokenizer.load("bytes"), heldout_fraction=0, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pair_is_made_with_the_better_answer_first(tmp_path, shape):
    train, _, report = load(tmp_path, [SHAPES[shape]])
    assert {item.answers for item in train.items} == {("best", "mid"), ("best", "worst"), ("mid", "worst")}
    assert report["pairs of scored answers"] == 3 and report["records"] == 1
    assert not [what for what in report if "not read" in what]


def test_equal_scores_make_no_pair_and_missing_ones_no_record(tmp_path):
    rows = [
        {"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 1, 0]},
        {"prompt": "r", "answers": ["a", "b"], "scores": [1]},
        {"prompt": "s", "answers": ["a", "b"], "scores": [1, None]},
        {"prompt": "t", "chosen": "x", "rejected": "y", "answers": ["x", "y"], "scores": [1, 0]},
    ]
    train, _, report = load(tmp_path, rows)
    assert [item.answers for item in train.items] == [("a", "c"), ("b", "c"), ("x", "y")]
    assert report["pairs of answers with equal scores"] == 1 and report["several answers without a score each"] == 2


def test_columns_may_have_other_names(tmp_path):
    rows = [{"q": "what", "outs": ["a", "b"], "stars": [1, 2]}]
    columns = {"answers": "outs", "scores": "stars", "prompt": "q"}
    train, _, _ = load(tmp_path, rows, columns=columns)
    assert train.items[0].answers == ("b", "a") and train.items[0].is_chat
    with pytest.raises(InputError, match="columns missing"):
        load(tmp_path, rows, columns={"prompt": "q"})


def test_a_step_over_whole_prompts_holds_every_answer_once(tmp_path):
    rows = [{"prompt": f"question {k}: ", "answers": ["aaa", "bb", "cccc", "d"], "scores": [4, 3, 2, 1]} for k in "xyz"]
    train, _, _ = load(tmp_path, rows)
    loader = preferences.batches(train, batch_size=6, layout="tree", order="prompts", num_threads=0)
    for _ in range(3):
        batch = next(loader)
        index = batch["index"][batch["weights"] > 0]
        assert len({train.items[i].prompt for i in index}) == 1 and len(index) == 6
        answers = {side.key: side for i in index for side in train.sides(int(i))}
        assert len(answers) == 4
        assert (batch["ends"] > 0).sum() == trees.num_tokens([np.asarray(one.ids) for one in answers.values()])


@pytest.mark.parametrize(("layout", "batch_size"), [("tree", 8), ("tree", 16), ("shared", 8)])
def test_one_pass_over_whole_prompts_cuts_no_list_and_takes_every_pair_once(tmp_path, layout, batch_size):
    rows = [{"prompt": f"question {k}: ", "answers": ["aaa", "bb", "cccc", "d"], "scores": [4, 3, 2, 1]} for k in "xyz"]
    train, _, _ = load(tmp_path, rows)
    options = dict(layout=layout, order="prompts", endless=False, num_threads=0)
    loader = preferences.batches(train, batch_size=batch_size, **options)
    for _ in range(2):  # it starts over
        taken = [batch["index"][batch["weights"] > 0].tolist() for batch in loader]
        assert [len(index) for index in taken] == ([6, 6, 6] if batch_size == 8 else [12, 6])
        assert sorted(i for index in taken for i in index) == list(range(18))
        assert all(len({train.items[i].prompt for i in index}) == len(index) // 6 for index in taken)
    assert [preferences.lists_cut(train, batch_size=size) for size in (8, 4)] == [0, 3]


def test_families_of_one_pass_stand_in_their_order_and_empty_places_where_the_next_does_not_fit():
    assert orders.one_pass(np.array([7, 3, 7, 5, 5, 5]), batch_size=4).tolist() == [0, 2, 1, 6, 3, 4, 5, 6]
    assert orders.one_pass(np.zeros(0, int), batch_size=4).tolist() == []

"""Continuations of half sentences, scored; all texts here are placeholders."""

import functools
import json

import ml_collections
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.filtering.scores import heads
from data.texts.bias_sets import Beginning
from experiments.decoding import models
from experiments.medicine import toxicity

FEATURES = dict(buckets=64)


def scorer_at(folder, levels=("plain", "toxic")):
    about = heads.About("linear", "toxicity", "softmax", levels, dict(FEATURES))
    kernel = np.zeros((64, len(levels)), np.float32)
    heads.save(folder, about, {"kernel": kernel, "bias": np.arange(len(levels), dtype=np.float32)})
    return f"linear:{folder}"


def test_the_largest_score_of_each_prompts_draws_counts_and_prompts_are_split_by_the_files_scores():
    scores = np.array([[0.1, 0.7, 0.2], [0.05, 0.1, 0.3], [0.9, 0.4, 0.2]])
    some = [Beginning("a", prompt_toxicity=0.1), Beginning("b", prompt_toxicity=0.5), Beginning("c")]
    measured = toxicity.of_scores(some, scores)
    assert measured == pytest.approx(
        {"expected_maximum": 1.9 / 3, "probability": 2 / 3}
        | {"expected_maximum_toxic": 0.3, "probability_toxic": 0.0}
        | {"expected_maximum_nontoxic": 0.7, "probability_nontoxic": 1.0}
    )
    assert toxicity.of_scores(some[1:2], scores[1:2]).keys() == {"expected_maximum", "probability"}


@pytest.fixture(scope="module")
def small():
    c = ml_collections.ConfigDict(models.settings("tiny"))
    c.init_from = models.RANDOM
    model = models.load(c, "unused")
    return model, functools.cache(lambda: models.engine(model, c))


def test_every_prompt_has_its_draws_and_a_later_start_writes_none_again(small, tmp_path):
    model, engine_fn = small
    some = [Beginning("The door", " x", 0.1, 0.9), Beginning("A bell", " y", 0.2, 0.1)]
    t = ml_collections.ConfigDict(toxicity.settings())
    t.update(num_draws=3, max_new_tokens=4)

    def lengths(texts):
        return np.array([len(text) % 2 for text in texts], float)

    options = dict(seed=0, max_len=64)
    first = toxicity.measure(t, some, model, engine_fn, lengths, tmp_path, **options)
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(i, g) for i in range(2) for g in range(3)]
    assert len({row["text"] for row in rows}) > 3 and first["scorer_auc"] == 0.5

    def refuse():
        raise AssertionError("this was written by the start before")

    assert toxicity.measure(t, some, model, refuse, lengths, tmp_path, **options) == first
    with pytest.raises(InputError, match=r"prompt 0 of toxicity\.prompts has 9 tokens, which with 4 new ones"):
        toxicity.measure(t, some, model, refuse, lengths, tmp_path / "other", seed=0, max_len=11)


def test_a_scorer_gives_the_probability_of_the_second_of_two_classes(tmp_path):
    score = toxicity.scorer(scorer_at(tmp_path / "two"))
    assert score(["a", "b"]) == pytest.approx([1 / (1 + np.exp(-1))] * 2)
    with pytest.raises(InputError, match="'softmax' and 3 levels; toxicity is the probability"):
        toxicity.scorer(scorer_at(tmp_path / "three", ("a", "b", "c")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(scorer="linear:x"), "toxicity.scorer=linear:x is not read without toxicity.prompts"),
        (dict(num_draws=3), "toxicity.num_draws=3 is not read without"),
        (dict(prompts="nowhere.jsonl"), "no such file"),
        (dict(prompts=__file__), "toxicity needs a classifier"),
        (dict(prompts=__file__, scorer="perplexity:x"), "toxicity.scorer='perplexity'"),
        (dict(prompts=__file__, scorer="linear:nowhere"), "there is nothing at 'nowhere'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
    t = ml_collections.ConfigDict(toxicity.settings())
    t.update(changes)
    with pytest.raises(InputError, match=words):
        toxicity.check(t)

"""Judges of two answers, made up here."""

import pytest

from alignment.safety.judging import Judge, Judged
from alignment.safety.verdicts import Verdict
from experiments import genarm
from experiments.guidance import judging, scoring

TEXTS = {"ours": ["long", "a", "same", "odd"], "base": ["no", "bbbb", "same", "even", "alone"]}
ANSWERS = {
    method: {n: {"prompt": f"p{n}", "response": text} for n, text in enumerate(texts)}
    for method, texts in TEXTS.items()
}


def judge_of(comparison_fn, asked):
    def classify(exchanges):
        asked.extend(exchanges)
        said = [Verdict(comparison=comparison_fn(e["response"], e["other"])) for e in exchanges]
        return [Judged(verdict) for verdict in said]

    return Judge("j", classify)


def longer(first, second):
    """The longer answer is better, and an odd one cannot be judged where it stands first."""
    return "invalid" if first == "odd" else "first" if len(first) > len(second) else "second"


def test_each_pair_is_asked_about_in_both_orders_and_equal_answers_are_a_tie_that_is_not_asked():
    asked = []
    tally = scoring.compare(scoring.by_judges([judge_of(longer, asked)], ANSWERS), "ours", "base", 0)
    assert (tally.wins, tally.ties, tally.losses, tally.undetermined) == (1, 1, 1, 1)
    assert len(asked) == 6 and {("long", "no"), ("no", "long")} <= {(e["response"], e["other"]) for e in asked}


def test_a_judge_that_always_prefers_the_first_makes_ties():
    first = judge_of(lambda a, b: "first", [])
    tally = scoring.compare(scoring.by_judges([first], ANSWERS), "ours", "base", 0)
    assert (tally.wins, tally.ties, tally.losses) == (0, 4, 0)


def test_each_objective_has_its_own_judge():
    shorter = judge_of(lambda a, b: longer(b, a), [])
    outcomes_fn = scoring.by_judges([judge_of(longer, []), shorter], {k: {0: v[0]} for k, v in ANSWERS.items()})
    assert (outcomes_fn("ours", "base", 0), outcomes_fn("ours", "base", 1)) == (["win"], ["loss"])


def test_scores_are_compared_on_the_prompts_that_both_have():
    scores = {"ours": {0: (1.0,), 1: (2.0,)}, "base": {1: (3.0,), 2: (0.0,)}}
    assert scoring.by_scores(scores)("ours", "base", 0) == ["loss"]


@pytest.mark.parametrize("names", [["a", "b"], ["a"]])
def test_one_template_stands_for_all_objectives_or_each_has_its_own(names, tmp_path):
    c = genarm.get_config("tiny")
    c.judge, c.judging.url, c.judging.model = "endpoint", "http://127.0.0.1:9/v1", "m"
    c.judge_templates = ("compare_helpfulness", "compare_harmlessness")
    judging.check(c)
    if len(names) == 1:
        with pytest.raises(ValueError, match="one for each"):
            judging.judges_of(c, names, tmp_path, None)
        return
    own = judging.judges_of(c, names, tmp_path, None)
    assert [judge.name.partition(" ")[0] for judge in own] == list(c.judge_templates)

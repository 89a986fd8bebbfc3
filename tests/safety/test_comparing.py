import math

import numpy as np
import pytest

from alignment.safety import comparing, rubrics, verdicts
from alignment.safety.judging import Judge, Judged


@pytest.mark.parametrize(
    ("answer", "scores", "better"),
    [
        ("7 4", (7, 4), "first"),
        ("Scores: 3, 9.5\nThe second is better.", (3, 9.5), "second"),
        ("7/10 7/10.", (7, 7), "tie"),
        ("0 4", None, "invalid"),
        ("7 11", None, "invalid"),
        ("74", None, "invalid"),
        ("7 4 2", None, "invalid"),
        ("I say 7 4", None, "invalid"),
        ("", None, "invalid"),
    ],
)
def test_two_marks_are_read_strictly(answer, scores, better):
    read = verdicts.two_scores(answer)
    assert (read.scores, read.comparison) == (scores, better)


@pytest.mark.parametrize("name", ["compare_harmlessness", "compare_helpfulness"])
def test_rubrics_of_comparisons_have_both_responses(name):
    rubric = rubrics.load(name)
    (message,) = rubric.messages({"prompt": "p {second}", "response": "ABC", "other": "XYZ"})
    text = message["content"]
    assert text.index("p {second}") < text.index("ABC") < text.index("XYZ") and rubric.fields == ("comparison",)


def judge_by(mark_fn):
    def classify(exchanges):
        said = [verdicts.two_scores(mark_fn(exchange["response"], exchange["other"])) for exchange in exchanges]
        return [Judged(verdict) for verdict in said]

    return Judge("j", classify)


def test_a_judge_that_prefers_the_first_answer_gives_both_models_the_same_marks():
    got = comparing.marks(judge_by(lambda first, second: "9 3"), ["p", "q"], ["a", "b"], ["c", "d"])
    np.testing.assert_array_equal(got.model_N, [6, 6])
    np.testing.assert_array_equal(got.reference_N, [6, 6])
    assert got.num_flipped == 2 and comparing.ratio(got, ["p", "q"]).percent == 100


def test_the_ratio_is_that_of_the_sums_over_what_was_read_in_both_orders():
    says = {("a", "x"): "8 4", ("x", "a"): "2 10", ("b", "x"): "6 8", ("x", "b"): "?"}
    got = comparing.marks(judge_by(lambda *pair: says[pair]), ["p", "q"], ["a", "b"], ["x", "x"])
    np.testing.assert_array_equal(got.model_N, [9, math.nan])
    ratio = comparing.ratio(got, ["p", "q"])
    assert (ratio.percent, ratio.n, ratio.invalid, ratio.num_flipped) == (300, 1, 1, 0)
    nothing = comparing.ratio(comparing.Marks(np.array([math.nan]), np.array([1.0]), 0), ["p"])
    assert (nothing.percent, nothing.interval, nothing.n, nothing.invalid) == (None, None, 0, 1)


def test_claims_are_the_ends_of_the_scale_and_their_ratio_is_worked_out_by_hand():
    got = comparing.by_claims([True, False, None], [False, False, True])
    assert comparing.ratio(got, ["p", "q", "r"]).percent == pytest.approx(100 * (10 + 1) / (1 + 1))


def test_a_refusal_is_harmless_and_not_helpful():
    said = [verdicts.Verdict(response_refusal=x) for x in ("full_refusal", "full_compliance", "invalid")]
    assert comparing.refusals_as_claims(said, is_refusal_wanted=True) == [True, False, None]
    assert comparing.refusals_as_claims(said, is_refusal_wanted=False) == [False, True, None]


def test_rows_of_one_prompt_are_drawn_together():
    rng = np.random.default_rng(0)
    model = np.repeat(rng.integers(1, 11, 20).astype(float), 10)
    marks = comparing.Marks(model, np.full(200, 5.0), 0)
    together = comparing.ratio(marks, np.repeat(np.arange(20), 10).astype(str).tolist(), resamples=300)
    alone = comparing.ratio(marks, [str(i) for i in range(200)], resamples=300)
    widths = [high - low for low, high in (together.interval, alone.interval)]
    assert widths[0] > 2 * widths[1]

"""Measures of bias from the log-probabilities of choices."""

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts.bias_sets import Choice
from experiments.medicine import biases

TEXTS = ("a", "b", "c")


def likely(choice, num=3):
    """Log-probabilities whose largest is that of one choice."""
    return np.where(np.arange(num) == choice, -1.0, -2.0)


def test_stereotypes_are_counted_over_pairs():
    some = [Choice("", ("more", "less"))] * 20
    nats = [likely(0, 2)] * 13 + [likely(1, 2)] * 7
    assert biases.of_set("crows_pairs", some, nats) == {"stereotypes": 0.65}


def test_bias_scores_are_those_of_decided_answers():
    clear = [Choice("q", TEXTS, right=0, biased=0, unknown=2, group="disambig")] * 25
    said = [0] * 14 + [1] * 6 + [2] * 5
    measured = biases.of_set("bbq", clear, [likely(choice) for choice in said])
    assert measured["bias_disambig"] == pytest.approx(0.4) and measured["accuracy_disambig"] == 14 / 25
    unclear = [Choice("q", TEXTS, right=2, biased=0, unknown=2, group="ambig")] * 50
    said = [2] * 30 + [0] * 14 + [1] * 6
    measured = biases.of_set("bbq", unclear, [likely(choice) for choice in said])
    assert measured["accuracy_ambig"] == 0.6 and measured["bias_ambig"] == pytest.approx(0.16)
    assert "bias_ambig" not in biases.of_set("bbq", unclear[:2], [likely(2)] * 2)


def test_a_vignette_flips_where_its_answer_follows_the_attribute():
    some = [
        Choice("q", TEXTS, right=0, group=name, attribute=who) for name in ("one", "two") for who in ("north", "south")
    ]
    measured = biases.of_set("vignettes", some, [likely(choice) for choice in (0, 0, 0, 1)])
    assert measured == {"gap": 0.5, "flips": 0.5}
    with pytest.raises(InputError, match="vignette 'two' has no row for 'south'"):
        biases.of_set("vignettes", some[:3], [likely(0)] * 3)


def test_truth_is_the_share_of_probability_that_true_choices_have():
    one = Choice("q", TEXTS, right=0, true=(True, False, True))
    measured = biases.of_set("truthfulqa", [one], [np.log([0.2, 0.5, 0.3])])
    assert measured == pytest.approx({"mc1": 0.0, "mc2": 0.5})

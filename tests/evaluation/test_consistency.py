import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import consistency


def test_the_spread_over_paraphrases_is_that_worked_by_hand():
    got = consistency.spread(np.array([[0.50, 0.52, 0.48], [0.30, 0.34, 0.26], [0.70, 0.70, 0.70]]))
    assert got["sd"] == pytest.approx(0.02) and got["cv"] == pytest.approx(0.057778, abs=1e-6)
    assert got["reliability"] == pytest.approx(0.978142, abs=1e-6)
    assert math.isnan(consistency.spread(np.ones((2, 2)))["reliability"])
    with pytest.raises(InputError, match="at least 2"):
        consistency.spread(np.ones((2, 1)))


def test_agreement_and_entropy_are_those_worked_by_hand():
    answers = "AABAC"
    assert consistency.agreement(answers) == pytest.approx(0.3 + 0.0)
    assert consistency.entropy(answers) == pytest.approx(0.950271, abs=1e-6)
    assert consistency.agreement("AAAA") == 1 and consistency.entropy("AAAA") == 0
    out = consistency.summary(["AA", "AB", "A"])
    assert out == {"agreement": 0.5, "entropy": pytest.approx(math.log(2) / 2), "n": 2}
    assert consistency.summary([])["agreement"] is None


def test_a_paraphrase_that_changes_or_gives_away_the_answer_is_not_used():
    assert consistency.keeps_meaning("What treats it?", "Which drug treats it?", "Iron", "iron")
    assert not consistency.keeps_meaning("What treats it?", "Does iron treat it?", "iron", "iron")
    assert not consistency.keeps_meaning("What treats it?", "Which drug treats it?", "iron", "zinc")
    assert consistency.keeps_meaning("Iron or zinc?", "Zinc or iron?", "iron", "iron")

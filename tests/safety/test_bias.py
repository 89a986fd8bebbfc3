"""Worked numbers of the measures of bias and toxicity."""

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.safety import bias


def test_the_share_of_stereotypes():
    pairs = np.array([(-1.0, -2.0)] * 13 + [(-2.0, -1.0)] * 6 + [(-1.0, -1.0)])
    assert bias.stereotype_share(pairs) == (0.65, 1)


def test_bbq_with_and_without_context():
    assert bias.bbq(14, 20) == pytest.approx(0.4)
    assert bias.bbq(14, 20, ambiguous_accuracy=0.6) == pytest.approx(0.16)
    assert bias.bbq(0, 0) is None and bias.bbq(0, 5) == -1
    with pytest.raises(InputError, match="it cannot be more"):
        bias.bbq(3, 2)


def test_expected_maximum_toxicity_and_its_probability():
    most, probability = bias.toxicity(np.array([[0.1, 0.7, 0.2], [0.05, 0.1, 0.3], [0.9, 0.4, 0.2]]))
    assert most == pytest.approx(0.633333, abs=1e-6) and probability == pytest.approx(0.666667, abs=1e-6)


def test_truthful_choices():
    logprobs = np.log([0.5, 0.2, 0.2, 0.1])
    assert bias.truthful(logprobs, [True, False, False, False]) == (True, pytest.approx(0.5))
    assert bias.truthful(logprobs - 900, [False, True, True, False]) == (False, pytest.approx(0.4))
    with pytest.raises(InputError, match="0 of 2 choices are true"):
        bias.truthful(np.zeros(2), [False, False])


def test_an_attribute_that_changes_answers_shows():
    answers = np.array([("A", "A", "B"), ("C", "C", "C"), ("D", "A", "A"), ("B", "B", "B")])
    found = bias.vignettes(answers, np.array(("A", "C", "A", "D")))
    np.testing.assert_allclose(found.accuracies_A, (0.5, 0.75, 0.5))
    assert (found.gap, found.flips) == (0.25, 0.5)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="scores must be finite and at least one; 1 are not"):
        bias.toxicity(np.array([[0.1, np.nan]]))

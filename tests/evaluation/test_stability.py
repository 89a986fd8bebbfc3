import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import stability


def test_worked_numbers():
    assert stability.seed_sd(np.array([0.6, 0.8, 0.7])) == pytest.approx(0.1)
    assert stability.retention(0.8, 0.6) == pytest.approx(0.75)
    assert stability.retention(0.5, 0.75) == pytest.approx(1.5)  # tuning can help, too
    drop = stability.paraphrase_drop(np.array([1.0, 1.0]), np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]]))
    assert drop == pytest.approx(0.3)


def test_what_cannot_be_told_is_no_number():
    assert math.isnan(stability.seed_sd(np.array([0.5]))) and math.isnan(stability.retention(0.0, 0.2))


def test_what_is_no_rate_or_does_not_match_is_refused():
    with pytest.raises(InputError, match=r"after=1\.5"):
        stability.retention(0.5, 1.5)
    with pytest.raises(InputError, match=r"\[P,K\]"):
        stability.paraphrase_drop(np.ones(3), np.ones((2, 5)))

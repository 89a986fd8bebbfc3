import numpy as np
import pytest
import scipy.stats

from alignment.watermark import detect, false_alarms
from alignment.watermark.text_marks import Mark


def test_independent_texts_have_the_binomials_share_and_no_dispersion():
    p = np.random.default_rng(0).random((40, 500))
    line = false_alarms.at_level(p, 0.05)
    assert line["binomial_low"] < line["share"] < line["binomial_high"] and line["n"] == 20_000
    assert line["keys_low"] < 0.05 < line["keys_high"]
    assert 0.5 < line["dispersion"] < 1.7 and false_alarms.distance(p) < 0.01


def test_texts_that_move_together_under_a_key_are_seen_though_all_keys_together_are_uniform():
    """Worked by hand: half of the keys raise an alarm on every text, the others on none."""
    p = np.repeat([[0.0], [1.0]], 50, axis=1)
    line = false_alarms.at_level(p, 0.5)
    assert (line["share"], line["dispersion"], line["largest_of_a_key"]) == (0.5, 50.0, 1.0)
    assert false_alarms.at_level(p[:1], 0.5)["keys_low"] is None


def test_thresholds_and_spread_of_a_key():
    z = np.stack([np.arange(100.0), np.zeros(100)])
    assert false_alarms.threshold(z).tolist() == [99, 0]
    assert np.sum(z[0] > false_alarms.threshold(z, 0.05)[0]) <= 5
    np.testing.assert_allclose(false_alarms.spread(np.array([[1.0, -1.0], [2.0, 2.0]])), [1, 4])


def test_a_made_continuous_p_value_lies_between_the_tails_of_its_count():
    mark = Mark("unigram", 7, 50)
    found = detect.detect(mark, range(20))
    k = int(found.score)
    tails = [scipy.stats.hypergeom.sf(least, 50, 25, 20) for least in (k, k - 1)]
    assert [found.p_above, found.p_value] == pytest.approx(tails)
    assert detect.randomised_p(found, 0.0) == found.p_above < detect.randomised_p(found, 0.5) < found.p_value

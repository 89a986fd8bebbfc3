import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn import metrics

from alignment.errors import InputError
from alignment.evaluation import classification
from alignment.filtering.scores import calibration

GOLDEN = np.array(  # rows: true levels 0 to 5; a published classifier's confusion
    [
        [2357, 103, 56, 12, 9, 11],
        [59, 32, 39, 13, 4, 4],
        [30, 29, 49, 33, 3, 7],
        [5, 9, 23, 24, 9, 10],
        [3, 1, 2, 7, 8, 12],
        [5, 0, 0, 3, 2, 28],
    ]
)


def drawn(num=2_000, seed=0, levels=2, sharpness=3.0):
    """Labels, and logits that are right about their order and too sure of themselves."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, levels, num)
    logits = rng.normal(size=(num, levels)) + 1.2 * (labels[:, None] == np.arange(levels))
    return sharpness * logits, labels


def test_the_golden_matrix_gives_the_published_numbers():
    assert GOLDEN.sum() == 3_001
    assert calibration.macro_f1(GOLDEN) == pytest.approx(0.41135, abs=5e-6)
    assert calibration.recall_at(GOLDEN, 1) == pytest.approx(0.77483, abs=5e-6)
    assert calibration.recall_at(GOLDEN, 3) == pytest.approx(0.68212, abs=5e-6)
    labels, levels = (np.repeat(np.indices((6, 6))[axis].ravel(), GOLDEN.ravel()) for axis in (0, 1))
    np.testing.assert_array_equal(classification.confusion(labels, levels, 6), GOLDEN)
    assert calibration.macro_f1(GOLDEN) == pytest.approx(metrics.f1_score(labels, levels, average="macro"))
    assert classification.overall(GOLDEN) == metrics.accuracy_score(labels, levels)


def test_levels_that_never_appear_leave_the_mean_alone():
    counts = classification.confusion([0, 0, 2], [0, 2, 2], 4)
    assert calibration.macro_f1(counts) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert np.isnan(calibration.recall_at(counts, 3)) and np.isnan(classification.overall(np.zeros((2, 2))))


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: len({true for _, true in pairs}) == 2
    )
)
def test_the_area_is_the_share_of_pairs_in_order_with_ties_counting_half(pairs):
    scores, is_true = np.array([score for score, _ in pairs]) / 7, np.array([true for _, true in pairs])
    above = scores[is_true][:, None] - scores[~is_true][None]
    assert calibration.auc(scores, is_true) == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))
    points = np.array(calibration.roc(scores, is_true))
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(calibration.auc(scores, is_true))


def test_one_kind_of_text_has_no_area():
    assert np.isnan(calibration.auc([0.1, 0.2], [True, True]))
    with pytest.raises(InputError, match="2 scores for 1 texts"):
        calibration.auc([0.1, 0.2], [True])


def test_the_interval_covers_the_truth_and_knows_of_groups():
    truth, found = 0.5 + 0.5 * 0.4, []  # uniform scores, true with a chance that rises by their place
    for seed in range(40):
        rng = np.random.default_rng(seed)
        is_true = rng.random(200) < 0.5
        scores = np.where(is_true & (rng.random(200) < 0.4), 1 + rng.random(200), rng.random(200))
        found.append(calibration.auc_interval(scores, is_true, resamples=200, seed=seed))
    assert 34 <= sum(low <= truth <= high for low, high in found) <= 40  # 38 expected
    rng = np.random.default_rng(0)
    is_true = rng.random(100) < 0.5
    scores = is_true + rng.normal(size=100)
    alone = calibration.auc_interval(scores, is_true, resamples=400)
    copied = [np.repeat(values, 9) for values in (scores, is_true, np.arange(100))]
    low, high = calibration.auc_interval(copied[0], copied[1], groups_N=copied[2], resamples=400)
    assert (low, high) == pytest.approx(alone, abs=1e-12)  # nine copies of a text are one text
    low, high = calibration.auc_interval(copied[0], copied[1], resamples=400)
    assert high - low < 0.6 * (alone[1] - alone[0])


def test_the_expected_error_is_worked_out_by_hand():
    rows = calibration.reliability([0.05, 0.15, 0.95, 0.85, 1.0], [False, True, True, True, True], bins=2)
    assert [(row["texts"], row["share"]) for row in rows] == [(2, 0.5), (3, 1.0)]
    assert rows[0]["confidence"] == pytest.approx(0.1) and rows[1]["from"] == 0.5
    assert calibration.expected_error(rows) == pytest.approx(0.4 * 0.4 + 0.6 * (1 - 2.8 / 3))
    assert np.isnan(calibration.expected_error([]))


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibration_brings_the_error_down_on_texts_it_has_not_seen(method):
    logits, labels = drawn(4_000)
    fitted = calibration.fit(method, logits[:2_000], labels[:2_000])
    errors = [
        calibration.expected_error(
            calibration.reliability(calibration.apply(kind, logits[2_000:])[:, 1], labels[2_000:])
        )
        for kind in (calibration.Calibration(), fitted)
    ]
    assert errors[1] < 0.04 < 0.08 < errors[0]
    again = calibration.from_plain(json.loads(json.dumps(calibration.plain(fitted))))
    np.testing.assert_array_equal(calibration.apply(again, logits), calibration.apply(fitted, logits))


def test_a_temperature_keeps_the_order_and_platt_undoes_the_weight_of_a_class():
    logits, labels = drawn(4_000, levels=4, sharpness=1.2)
    found = calibration.apply(calibration.fit("temperature", logits, labels), logits)
    np.testing.assert_array_equal(np.argmax(found, axis=1), np.argmax(logits, axis=1))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    shifted = logits + np.array([0, 0, 0, 5.0])  # as training with the last level counted e^5 times leaves them
    plain, undone = (calibration.fit(kind, shifted, labels) for kind in ("temperature", "platt"))
    shares = [calibration.apply(kind, shifted)[:, 3].mean() for kind in (plain, undone)]
    assert abs(shares[1] - np.mean(labels == 3)) < 0.005 < abs(shares[0] - np.mean(labels == 3))


def test_platt_stands_at_the_minimum_of_the_loss():
    logits, labels = drawn(300, levels=3)
    fitted = calibration.fit("platt", logits, labels)

    def loss(kind):
        return -np.mean(np.log(calibration.apply(kind, logits)[np.arange(300), labels]))

    best = loss(fitted)
    for i in range(4):
        for change in (-0.05, 0.05):
            biases, scale = list(fitted.biases), fitted.scale
            if i < 3:
                biases[i] += change
            else:
                scale += change
            assert loss(calibration.Calibration("platt", scale, tuple(biases))) > best - 1e-5


def test_a_level_without_texts_and_no_texts_at_all_leave_finite_numbers():
    logits, labels = drawn(300, levels=3)
    found = calibration.fit("platt", logits[labels < 2], labels[labels < 2])
    assert np.all(np.isfinite(found.biases)) and calibration.apply(found, logits)[:, 2].max() < 0.2
    assert calibration.fit("platt", logits[:0], labels[:0]) == calibration.Calibration()


def test_what_makes_no_sense_is_refused():
    logits, labels = drawn(50, levels=3)
    with pytest.raises(InputError, match="'beta' is not one of: none, temperature"):
        calibration.fit("beta", logits, labels)
    with pytest.raises(InputError, match="two levels, not 3"):
        calibration.fit("isotonic", logits, labels)
    good = calibration.plain(calibration.Calibration())
    for change in ({"scale": "x"}, {"scale": float("nan")}, {"knots": [[1.0]]}, {"method": "beta"}, {"biases": None}):
        with pytest.raises(InputError, match="not a calibration"):
            calibration.from_plain(good | change)

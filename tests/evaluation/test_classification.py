import numpy as np
import pytest

from alignment import intervals
from alignment.errors import InputError
from alignment.evaluation import classification


def drawn(num=400, num_classes=4, share=0.7, seed=0):
    """Labels, and predictions that are right with some probability."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num)
    return labels, np.where(rng.random(num) < share, labels, rng.integers(0, num_classes, num))


def test_the_worked_example_of_the_sheet():
    counts = classification.confusion([0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 0, 2], 3)
    np.testing.assert_array_equal(counts, [[3, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert classification.overall(counts) == pytest.approx(0.714286, abs=1e-6)
    assert classification.mean_per_class(counts) == pytest.approx(0.75)


def test_a_class_without_images_is_left_out_of_the_mean():
    counts = classification.confusion([0, 0, 2], [0, 1, 2], 4)
    assert classification.mean_per_class(counts) == 0.75
    assert np.isnan(classification.recalls(counts)[[1, 3]]).all()
    rows = classification.per_class(counts, "abcd")
    assert [row["accuracy"] for row in rows] == [0.5, None, 1.0, None]
    assert rows[0]["most_often_taken_for"] == "b" and rows[2]["most_often_taken_for"] == ""
    assert (rows[1]["low"], rows[1]["high"]) == (0, 1) and rows[1]["precision"] == 0


def test_the_interval_of_a_mean_is_student_s_and_a_single_value_has_none():
    # of 1, 2, 3 the mean is 2, the deviation 1, and t of two degrees of freedom 4.302653 at 95 %
    assert intervals.of_mean([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert intervals.of_mean([0.7]) == (None, None)


def test_wilson_intervals_have_their_closed_form():
    low, high = intervals.wilson(8, 10)
    np.testing.assert_allclose([low, high], [0.490162, 0.943318], atol=1e-5)
    low, high = intervals.wilson(0, 20)
    z2 = 1.959964**2
    np.testing.assert_allclose([low, high], [0, z2 / (20 + z2)], atol=1e-6)
    assert intervals.wilson(0, 0) == (0, 1)
    assert all(intervals.wilson(0, n)[0] == 0 and intervals.wilson(n, n)[1] == 1 for n in range(1, 200))


def test_the_bootstrap_agrees_with_drawing_images_one_by_one_and_covers_the_truth():
    labels, predicted = drawn()
    counts = classification.confusion(labels, predicted, 4)
    low, high = classification.bootstrap(counts)
    rng, means = np.random.default_rng(1), []
    for _ in range(500):
        chosen = rng.integers(0, len(labels), len(labels))
        means.append(classification.mean_per_class(classification.confusion(labels[chosen], predicted[chosen], 4)))
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.01)  # 500 draws
    truth = 0.7 + 0.3 / 4
    intervals = [
        classification.bootstrap(classification.confusion(*drawn(seed=s), 4), resamples=400) for s in range(60)
    ]
    assert 50 <= sum(low <= truth <= high for low, high in intervals) <= 60  # of 60, 57 expected
    assert classification.bootstrap(counts) == (low, high)


def test_a_paired_difference_is_narrower_than_two_separate_intervals():
    labels, first = drawn()
    second = first.copy()
    wrong = np.flatnonzero(first != labels)[:20]
    second[wrong] = labels[wrong]
    found = classification.paired_difference(labels, first, second, 4)
    counts = [classification.confusion(labels, p, 4) for p in (first, second)]
    means = [classification.mean_per_class(c) for c in counts]
    assert found["difference"] == pytest.approx(means[1] - means[0])
    assert 0 < found["low"] < found["difference"] < found["high"]
    (a_low, a_high), (b_low, b_high) = (classification.bootstrap(c) for c in counts)
    assert found["high"] - found["low"] < 0.6 * min(a_high - a_low, b_high - b_low)
    same = classification.paired_difference(labels, first, first, 4)
    assert same == {"difference": 0, "low": 0, "high": 0}
    back = classification.paired_difference(labels, second, first, 4)
    assert back["difference"] == pytest.approx(-found["difference"])


def test_groups_and_quantiles_split_the_images_and_add_up():
    labels, predicted = drawn()
    museums = np.array(["Met", "Cleveland"])[(np.arange(400) % 4 == 0).astype(int)]
    rows = classification.by_group(labels, predicted, museums, 4)
    assert [(row["group"], row["images"]) for row in rows] == [("Cleveland", 100), ("Met", 300)]
    right = labels == predicted
    assert rows[0]["accuracy"] == right[museums == "Cleveland"].mean()
    assert rows[0]["low"] < rows[0]["accuracy"] < rows[0]["high"]
    rows = classification.by_quantile(labels, predicted, np.arange(400)[::-1], 4)
    assert [row["images"] for row in rows] == [80] * 5 and [row["from"] for row in rows] == [0, 80, 160, 240, 320]
    assert rows[0]["accuracy"] == right[320:].mean()
    tied = classification.by_quantile(labels, predicted, np.repeat([1.0, 2.0], 200), 4)
    assert [(row["from"], row["images"]) for row in tied] == [(1, 200), (2, 200)]


def test_top_confusions_are_the_largest_cells_off_the_diagonal():
    counts = np.array([[5, 3, 0], [1, 9, 0], [0, 4, 0]])
    rows = classification.top_confusions(counts, ["oil", "ink", "clay"], 2)
    assert rows[0] == {"true": "clay", "predicted": "ink", "images": 4, "share_of_class": 1.0}
    assert (rows[1]["true"], rows[1]["share_of_class"]) == ("oil", 3 / 8)
    assert classification.top_confusions(np.eye(2, dtype=int), "ab") == []


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(InputError, match="2 labels and 1 predictions"):
        classification.confusion([0, 1], [0], 2)
    with pytest.raises(InputError, match="prediction 5 is not a class"):
        classification.confusion([0, 1], [0, 5], 2)
    with pytest.raises(InputError, match="3 groups for 2 images"):
        classification.by_group([0, 1], [0, 1], list("abc"), 2)
    with pytest.raises(InputError, match="no images to draw"):
        classification.bootstrap(np.zeros((2, 2), int))

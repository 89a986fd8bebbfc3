import numpy as np
import pytest

from alignment.errors import InputError
from alignment.fairness import measures

M = np.array([0.9, 0.7, 0.5, 0.7])
TASK = np.zeros(4, int)


def test_lf_is_the_mean_distance_from_the_reference():
    assert measures.deviation(M, 0.72) == pytest.approx(0.11)
    assert measures.deviation(M, M.mean()) == pytest.approx(0.10)
    by_samples = np.average(M, weights=[100, 50, 10, 40])
    assert by_samples == pytest.approx(0.79) and measures.deviation(M, by_samples) == pytest.approx(0.145)


def test_std_range_and_worst_go_beside_lf():
    even = measures.evenness(M, TASK, np.array([0.72]), 0.75)
    assert even.std == pytest.approx(0.141421, abs=1e-6) and even.range == pytest.approx(0.4)
    assert even.worst == even.worst_place == pytest.approx(0.5)
    assert even.lf == pytest.approx(0.11) and even.lf_mean == pytest.approx(0.10)
    assert even.alf == pytest.approx(np.abs(M - 0.75).mean()) and even.performance == 0.75
    assert "lf_T" not in even.numbers()


def test_lf_is_over_places_within_tasks_and_alf_over_all_places():
    m_G, task_G = np.array([0.9, 0.7, 0.2, 0.4, np.nan]), np.array([0, 0, 1, 1, 1])
    even = measures.evenness(m_G, task_G, np.array([0.8, 0.3]), 0.55)
    assert even.lf == pytest.approx(0.1) and even.alf == pytest.approx(0.25)
    assert even.worst == pytest.approx((0.7 + 0.2) / 2) and even.worst_place == 0.2


def test_a_task_of_one_place_has_no_evenness():
    even = measures.evenness(M[:3], np.array([0, 0, 1]), np.array([0.7, np.nan]), 0.7)
    alone = measures.evenness(M[:2], np.array([0, 0]), np.array([0.7]), 0.7)
    assert even.numbers() == alone.numbers() and np.isnan(even.lf_T).tolist() == [False, True]
    with pytest.raises(InputError, match="at least 2"):
        measures.evenness(M[:1], np.array([0]), np.array([0.7]), 0.7)


def test_r2_is_not_defined_where_targets_are_equal():
    y = np.array([0.1] * 3 + [0.0, 1.0, 2.0] + [0.3, 0.5], np.float32)
    group_N, predicted = np.array([0, 0, 0, 1, 1, 1, 2, 2]), y + np.float32(0.1)
    m_G = measures.grouped(predicted, y, group_N, 4, measure="r2")
    assert np.isnan(m_G).tolist() == [True, False, False, True]
    assert m_G[1] == pytest.approx(1 - 0.01 / (2 / 3), rel=1e-5)
    even = measures.evenness(m_G, np.zeros(4, int), np.array([0.5]), 0.5)
    assert even.lf < 1 and even.worst_place == pytest.approx(0, abs=1e-5)
    boxes = np.array([[0.0, 0, 3, 1]])
    xy, task_N = np.stack([group_N + 0.5, np.full(8, 0.5)], 1), np.zeros(8, int)
    (row,) = measures.over_partitionings(predicted, y, xy, task_N, boxes, [(1, 3)], least=2, measure="r2")
    assert row["places"] == 2 and row["samples left out"] == 3 and row["lf"] < 1


def weighted_f1(guessed, y, num_classes, **options):
    of_one_group = np.zeros(len(y), int)
    return measures.grouped(guessed, y, of_one_group, 1, measure="f1", num_classes=num_classes, **options)[0]


def test_weighted_f1_of_the_worked_example():
    y, guessed = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    counts = np.zeros((1, 3, 3), int)
    np.add.at(counts, (0, y, guessed), 1)
    np.testing.assert_allclose(measures.class_f1(counts)[0], [2 / 3, 0.8, 0])
    assert weighted_f1(guessed, y, 3) == pytest.approx(0.6)


def test_a_class_that_is_absent_has_no_weight_and_zero_division_is_a_choice():
    y, guessed = np.array([0, 0, 1]), np.array([0, 0, 0])
    assert weighted_f1(guessed, y, 4) == pytest.approx(0.8 * 2 / 3)
    # class 1 is never predicted: its precision is 0/0, its recall 0, so that F1 stays 0 either way
    assert weighted_f1(guessed, y, 4, zero_division="nanmean") == pytest.approx(0.8 * 2 / 3)
    counts = np.array([[[0, 0, 1], [0, 2, 0], [0, 0, 0]]])
    np.testing.assert_allclose(measures.class_f1(counts)[0], [0, 1, 0])
    # class 0 has precision 0/0, replaced by the mean of the others' (1 and 0); its recall 0 keeps F1 at 0
    np.testing.assert_allclose(measures.class_f1(counts, zero_division="nanmean")[0], [0, 1, 0])
    with pytest.raises(InputError, match="zero_division='mean' is not one of: 0, nanmean"):
        weighted_f1(guessed, y, 2, zero_division="mean")


def slow_scores(predicted, y, measure):
    if measure == "accuracy":
        return np.mean(predicted == y)
    error = np.mean((predicted - y) ** 2)
    return -np.sqrt(error) if measure == "neg_rmse" else 1 - error / np.var(y)


@pytest.mark.parametrize("measure", ["accuracy", "neg_rmse", "r2"])
def test_groups_are_scored_as_one_by_one(measure):
    rng = np.random.default_rng(0)
    y, predicted, group = rng.integers(0, 3, 60), rng.integers(0, 3, 60), rng.integers(0, 4, 60)
    scores = measures.grouped(predicted, y, group, 5, measure=measure)
    wanted = [slow_scores(predicted[group == g], y[group == g], measure) for g in range(4)]
    np.testing.assert_allclose(scores[:4], wanted)
    assert np.isnan(scores[4])


def test_an_unknown_measure_is_refused():
    with pytest.raises(InputError, match="measure='acc' is not one of"):
        measures.grouped(M, M, TASK, 1, measure="acc")


def test_cells_are_numbered_from_the_south_west_and_edges_belong_to_the_last():
    xy = np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [1.0, 1.0]])
    assert measures.cells(xy, np.array([0, 0, 1, 1]), 2, 3).tolist() == [0, 2, 3, 5]


def test_partitionings_see_what_a_single_one_hides():
    # quality differs from west to east alone, so that cutting into rows shows nothing
    x = np.linspace(0.01, 0.99, 100)
    xy, y = np.stack([x, np.tile([0.2, 0.8], 50)], axis=1), np.ones(100, int)
    predicted = (x < 0.5).astype(int)
    task, boxes = np.zeros(100, int), np.array([[0.0, 0, 1, 1]])
    options = dict(measure="accuracy", least=5)
    rows, columns = measures.over_partitionings(predicted, y, xy, task, boxes, [(2, 1), (1, 2)], **options)
    assert rows["lf"] == pytest.approx(0.0) and columns["lf"] == pytest.approx(0.5) and columns["worst"] == 0
    (few,) = measures.over_partitionings(predicted, y, xy, task, boxes, [(1, 2)], measure="accuracy", least=51)
    assert few["samples left out"] == 100 and few["tasks"] == 0 and "lf" not in few


def test_a_collapse_is_named_by_its_reason():
    y = np.array([0, 0, 0, 1])
    by_chance = measures.chance(y, "accuracy")
    assert by_chance == 0.75 and measures.chance(np.array([1.0, 3.0]), "neg_rmse") == -1.0
    assert measures.collapsed(0.9, 0.5, 1.0) == ""
    assert "constant prediction" in measures.collapsed(0.515, 0.5, 1.0)
    assert "below 0.1" in measures.collapsed(0.9, 0.5, 0.05)

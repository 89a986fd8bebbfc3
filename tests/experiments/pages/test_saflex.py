from types import SimpleNamespace

import numpy as np
import pytest

from experiments.pages import saflex as page


def study(right, *, has_own_tests=False):
    """A study of an arm for each entry, whose test rows are right where it says so, [S,N]."""
    y = np.zeros(np.shape(right["saflex"]), int)
    task = SimpleNamespace(
        name="data", num_seeds=len(y), has_own_tests=has_own_tests, class_names=("a", "b"), upstream="noise",
        test=SimpleNamespace(y=y, groups=None),
    )  # fmt: skip
    result = lambda rows: SimpleNamespace(predicted_SN=1 - np.array(rows, int), means={}, summary={})  # noqa: E731
    return page.Study(SimpleNamespace(task=task), {name: result(rows) for name, rows in right.items()})


def all_arms(saflex, others, **options):
    return study({"saflex": saflex, **dict.fromkeys(("none", "upstream", "train_val"), others)}, **options)


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    one = all_arms([[1] * 20], [[0] * 20])
    (sentence,) = page.findings([one])[2:]
    assert "one seed, no interval" in sentence and "+1.000" in sentence and "beats" not in sentence
    assert page.summary_of(one)["gain/control"] == 1 and "gain/control/low" not in page.summary_of(one)
    lines = page.lines_of(one)
    assert {line["low"] for line in lines} == {None}
    page.draw_arms(tmp_path / "arms.png", lines)
    assert (tmp_path / "arms.png").is_file()


def test_two_seeds_that_agree_on_all_rows_have_a_verdict():
    assert "SAFLEX 1.000 beats the best" in page.findings([all_arms([[1] * 20] * 2, [[0] * 20] * 2)])[2]
    assert "SAFLEX 0.000 loses to the best" in page.findings([all_arms([[0] * 20] * 2, [[1] * 20] * 2)])[2]


def test_rows_that_all_seeds_share_vary_too():
    right = [[1] * 6 + [0] * 4] * 3
    shared, own = all_arms(right, [[0, 1] * 5] * 3), all_arms(right, [[0, 1] * 5] * 3, has_own_tests=True)
    low, high = (page.summary_of(shared)[f"gain/control/{end}"] for end in ("low", "high"))
    assert low < 0 < 0.1 < high and "does not differ clearly" in page.findings([shared])[2]
    # rows of one seed alone are not resampled: three equal means have an interval of no width
    assert page.interval(own, own.right("saflex")) == pytest.approx((0.6, 0.6))

import pytest

from alignment.errors import InputError
from experiments.safety import cost, tuning

RATES = cost.Rates(device="D", peak_tflops=100.0, utilisation=0.5, price=2.0, tokens=1_000)
TUNED = tuning.Tuned(
    summary={},
    num_pairs=10,
    num_steps=5,
    batch_size=2,
    num_tokens=90,
    num_params=1_000,
    flops=1.8e17,
    num_devices=4,
    device="cpu",
)


def test_an_hour_of_half_the_peak_costs_its_price():
    rows = cost.sheet(TUNED, 900.0, RATES)
    here, elsewhere = rows[:2]
    assert here["device_hours"] == pytest.approx(1.0) and here["device"] == "cpu" and here["dollars"] is None
    assert elsewhere["device_hours"] == pytest.approx(1.0) and elsewhere["dollars"] == pytest.approx(2.0)


def test_published_models_are_planned_at_some_two_four_and_two_operations_a_number_and_token():
    """The embedding is looked up, the head predicts answers only, and attention and the adapter's own come on top."""
    rows = {row["model"]: row for row in cost.sheet(TUNED, None, RATES)}
    for name, num in cost.PUBLISHED.items():
        for kind, operations in (("all weights", 8), ("adapter", 6)):
            row = rows[f"{name}, {kind}"]
            assert row["FLOPs"] == pytest.approx(2_000 * operations * num * 1_000, rel=0.15), row
            assert row["how"] == "planned" and row["dollars"] == pytest.approx(2 * row["device_hours"])
    assert len(rows) == 2 + 2 * len(cost.PUBLISHED) and rows["this run"]["device_hours"] is None


@pytest.mark.parametrize("change", [{"peak_tflops": 0.0}, {"utilisation": 1.5}, {"price": -1.0}, {"tokens": 0}])
def test_rates_that_no_cost_follows_from_are_refused(change):
    with pytest.raises(InputError, match=f"cost.{next(iter(change))}"):
        cost.check(cost.settings() | change)

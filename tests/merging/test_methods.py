"""Worked numbers of every method, and what must hold of each."""

import ml_dtypes
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.merging import blocks, combine, methods, sparsify
from tests.merging.tables import BASE, DELTAS, DROPPED, MASKS, merged, sources

MODELS = BASE + DELTAS


def near(value, wanted, tolerance=1e-6):
    np.testing.assert_allclose(value, wanted, atol=tolerance)


def test_the_linear_mean_and_task_arithmetic():
    near(merged("linear", MODELS, weight=1)[0], (1.033333, 1.066667, 0.8, 1.1, 1.166667, 0.733333))
    near(
        merged("task_arithmetic", MODELS, BASE, weight=1, **{"lambda": 0.5})[0],
        (1.05, 1.1, 0.7, 1.15, 1.25, 0.6),
    )


def test_ties_trims_to_the_largest_half():
    own = sources(MODELS, BASE)
    trimmed = own.read(0, 6)[0].copy()
    for i, delta in enumerate(trimmed):
        sparsify.middle(own, i, 0.5, gamma=0.0)(0, delta)
    wanted = [(0.4, 0, 0, 0, 0.6, -0.5), (0, 0.3, -0.4, 0, 0, -0.7), (-0.5, 0, -0.3, 0, 0, 0.4)]
    near(trimmed, wanted)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (dict(weight=1), (0.5, 1.3, 0.65, 1, 1.6, 0.4)),
        ({"weight": 1, "lambda": 0.7}, (0.65, 1.21, 0.755, 1, 1.42, 0.58)),
        (dict(weight=(0.5, 0.3, 0.2)), (1.4, 1.3, 0.64, 1, 1.6, 0.425)),
        (dict(weight=(0.5, 0.3, 0.2), normalize=False), (1.2, 1.09, 0.82, 1, 1.3, 0.54)),
    ],
)
def test_ties(settings, wanted):
    near(merged("ties", MODELS, BASE, density=0.5, **settings)[0], wanted)


def test_ties_counts_what_stays_and_where_signs_conflict():
    _, measured = merged("ties", MODELS, BASE, density=0.5, weight=1)
    near(measured.kept_K, (0.5, 0.5, 0.5))
    assert measured.conflicts == pytest.approx(2 / 5)  # of five entries that anything changes, the first and the last
    near(measured.norms_K, np.linalg.norm(DELTAS, axis=1))


def test_dare_with_given_masks():
    near(combine.weighted_sum(DROPPED.astype(np.float32), np.full(3, 1 / 3), normalize=False) + 1,
         (0.933333, 1.266667, 0.8, 1.133333, 1.4, 0.533333))  # fmt: skip
    near(combine.consensus(DROPPED.astype(np.float32), np.ones(3), normalize=True) + 1, (0, 1.4, 0.2, 1.4, 2.2, -0.4))
    near(
        combine.consensus(DROPPED.astype(np.float32), np.full(3, 1 / 3), normalize=False) + 1,
        (0.666667, 1.266667, 0.733333, 1.133333, 1.4, 0.533333),
    )


@pytest.mark.parametrize(("model", "by_l1"), [(0, 1.636364), (1, 1.357143), (2, 2.0)])
def test_both_rescalings_of_a_mask(model, by_l1):
    own = sources(MODELS, BASE)

    def drop(start, delta):
        delta *= MASKS[model][start : start + len(delta)]

    for rescale, factor in (("density", 2.0), ("l1", by_l1), ("none", 1.0)):
        delta = own.read(0, 6)[0][model].copy()
        sparsify.rescaled(drop, own, model, rescale, factor=2.0)(0, delta)
        near(delta, DELTAS[model] * MASKS[model] * factor)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_drops_leave_the_mean_as_it_was(name):
    num = 20_000
    delta = np.tile(DELTAS[0].astype(np.float32), (num, 1))
    settings = dict(epsilon=0.2) if "della" in name else {}
    copies, _ = merged(name, [1 + delta], np.ones_like(delta), density=0.5, weight=1, **settings)
    error = (copies - 1).std(axis=0) / np.sqrt(num)
    assert (np.abs((copies - 1).mean(axis=0) - DELTAS[0]) <= 4 * error + 1e-6).all()
    assert (error[DELTAS[0] != 0] > 0).all()


def test_masks_follow_from_seed_and_name_alone():
    whole = sparsify.random_bits(3, "a.weight", 1, 0, 1_000)
    parts = [sparsify.random_bits(3, "a.weight", 1, start, 37) for start in range(0, 999, 37)]
    np.testing.assert_array_equal(np.concatenate(parts)[:999], whole[:999])
    for other in ((4, "a.weight", 1), (3, "b.weight", 1), (3, "a.weight", 0)):
        assert (sparsify.random_bits(*other, 0, 1_000) != whole).mean() > 0.99
    assert sparsify.random_bits(0, "w", 0, 0, 3).tolist() == [823767424, 1392920412, 3288531420]


@pytest.mark.parametrize(
    "name", ["ties", "dare_linear", "dare_ties", "della", "breadcrumbs_ties", "model_stock", "sce"]
)
def test_a_merge_does_not_depend_on_how_it_is_cut_into_blocks(name, monkeypatch):
    rng = np.random.default_rng(0)
    views = rng.integers(-4, 5, (3, 40, 30)) / 8  # many equal magnitudes
    method = methods.METHODS[name]
    settings = {"weight": (0.5, 0.3, 0.2), "density": 0.4, "epsilon": 0.1, "gamma": 0.05, "select_topk": 0.3}
    settings = {key: value for key, value in settings.items() if key in method.each or key in method.settings}
    before = merged(name, views, np.zeros((40, 30)), **settings)
    monkeypatch.setattr(blocks, "BLOCK", 64)
    after = merged(name, views, np.zeros((40, 30)), **settings)
    near(after[0], before[0])
    near(after[1].kept_K, before[1].kept_K)


def test_exactly_as_many_entries_stay_as_are_meant_to_even_where_they_are_equal():
    views = np.tile([1.0, -1.0, 0.5], 100)[None]
    for density, num in ((0.3, 90), (0.7, 210), (0.001, 1), (1.0, 300)):
        out, measured = merged("ties", views, np.zeros(300), density=density, weight=1)
        assert round(measured.kept_K[0] * 300) == num
    out, _ = merged("ties", views, np.zeros(300), density=0.3, weight=1)
    assert (out[:135] != 0).sum() == 90  # the first of the equal ones


def test_a_density_of_one_changes_nothing():
    for name in ("dare_linear", "dare_ties", "ties", "della_linear"):
        settings = dict(epsilon=0.0) if "della" in name else {}
        near(merged(name, MODELS[:1], BASE, density=1.0, weight=1, **settings)[0], MODELS[0])


def test_breadcrumbs_drop_the_largest_and_the_smallest():
    out, _ = merged("breadcrumbs", [np.arange(1.0, 11)], np.zeros(10), density=0.5, gamma=0.2, weight=1)
    near(out, (0, 0, 0, 4, 5, 6, 7, 8, 0, 0))


def test_della_keeps_large_entries_more_often():
    row = np.arange(1.0, 6)
    out, _ = merged(
        "della_linear", [np.tile(row, (20_000, 1))], np.zeros((20_000, 5)),
        density=0.5, epsilon=0.4, weight=1, rescale=False,
    )  # fmt: skip
    near((out != 0).mean(axis=0), (0.1, 0.3, 0.5, 0.7, 0.9), 0.015)


def test_sce_weighs_by_energy_and_erases_the_minority():
    deltas = np.array([(3.0, 0.0, 1.0, 2.0), (1.0, 1.0, -1.0, 2.0)])
    energy = np.square(deltas).sum(axis=1)
    first, second = energy / energy.sum()
    near(
        merged("sce", deltas, np.zeros(4))[0],
        (3 * first + second, second, first, 2),  # in the third the sum is 0, which elects plus
    )
    near(merged("sce", deltas, np.zeros(4), select_topk=0.5)[0][[1, 3]], (0, 0))  # where they differ least


@pytest.mark.parametrize(
    ("one", "other", "t", "wanted"),
    [
        ((1, 0), (0, 1), 0.5, (0.707107, 0.707107)),
        ((2, 0), (0, 1), 0.25, (1.847759, 0.382683)),
        ((1, 0), (0.5, 0.866025), 1 / 3, (0.939693, 0.342020)),
        ((1, 0), (0.5, 0.866025), 0.0, (1, 0)),
        ((1, 0), (0.5, 0.866025), 1.0, (0.5, 0.866025)),
        ((1, 0), (3, 0), 0.5, (2, 0)),  # parallel: on a line
        ((0, 0), (0, 1), 0.5, (0, 0.707107)),
    ],
)
def test_slerp_goes_along_the_arc(one, other, t, wanted):
    near(merged("slerp", [one, other], t=t)[0], wanted)
    if 0 < t < 1:
        near(merged("nuslerp", [one, other], weight=(1 - t, t))[0], wanted)


def test_nuslerp_by_rows_and_columns_is_slerp_of_each():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 7, 5)).astype(np.float32)
    by_row, _ = merged("nuslerp", [one, other], weight=(3, 1), nuslerp_flatten=False, nuslerp_row_wise=True)
    by_column, _ = merged("nuslerp", [one, other], weight=(3, 1), nuslerp_flatten=False)
    near(by_row, [merged("slerp", [a, b], t=0.25)[0] for a, b in zip(one, other)], 1e-5)
    near(by_column.T, [merged("slerp", [a, b], t=0.25)[0] for a, b in zip(one.T, other.T)], 1e-5)
    base = rng.normal(size=(7, 5)).astype(np.float32)
    near(merged("nuslerp", [one, other], base, weight=(3, 1))[0],
         base + merged("slerp", [one - base, other - base], t=0.25)[0], 1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("base", "models", "cosine", "ratio", "wanted"),
    [
        ((0, 0), [(1, 0), (0.6, 0.8)], 0.6, 0.75, (0.6, 0.3)),
        ((1, 1, 1), [(2, 1, 1), (1, 2, 1), (2, 2, 1)], 0.471405, 0.727922, (1.485281, 1.485281, 1)),
        ((0, 0), [(1, 0), (0, 1)], 0, 0, (0, 0)),
        ((0, 0), [(1, 2), (1, 2)], 1, 1, (1, 2)),
        ((0, 0), [(0, 0), (0, 0)], 0, 0, (0, 0)),
    ],
)
def test_model_stock(base, models, cosine, ratio, wanted):
    deltas = np.array(models, float) - np.array(base, float)
    near(combine.centre(deltas @ deltas.T), (cosine, ratio))
    near(merged("model_stock", models, base)[0], wanted)


def test_model_stock_by_rows_and_past_the_base():
    models = [[(1, 0), (1, 2)], [(0, 1), (1, 2)]]
    near(merged("model_stock", models, np.zeros((2, 2)), filter_wise=True)[0], [(0, 0), (1, 2)])
    opposed = np.array([(1.0, 0.0), (-0.5, 0.5)])
    _, ratio = combine.centre(opposed @ opposed.T)
    assert ratio < 0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    rng = np.random.default_rng(0)
    base, one, other = rng.normal(size=(3, 1_000)).astype(dtype)
    out, _ = merged("task_arithmetic", [one, other], base, weight=(0.3, 0.7), dtype=dtype)
    wide = [np.asarray(x, np.float32) for x in (base, one, other)]
    exact = np.float32(0.3) * (wide[1] - wide[0]) + np.float32(0.7) * (wide[2] - wide[0]) + wide[0]
    np.testing.assert_array_equal(out, exact.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_infinities_and_what_is_not_a_number_show_in_the_bits(dtype):
    for value, is_finite in ((0, True), (-3e4, True), (np.inf, False), (-np.inf, False), (np.nan, False)):
        assert blocks.is_finite(np.array([1, value, 2]).astype(dtype)) is is_finite


def test_values_that_float16_cannot_hold_are_refused_by_name():
    with pytest.raises(InputError, match="w: merged values lie beyond the largest float16"):
        merged("task_arithmetic", [[60_000.0]], [0.0], weight=2, tensor="layer.w", dtype=np.float16)


@pytest.mark.parametrize(
    ("each", "settings", "words"),
    [
        ({"density": [0.0]}, {}, "density=0 must be in"),
        ({"density": [1.2]}, {}, "density=1.2 must be in"),
        ({}, {"select_topk": 0.0}, "select_topk=0"),
        ({}, {"t": 1.5}, "t=1.5 must be in"),
        ({"gamma": [1.0]}, {}, "gamma=1 must be in"),
        ({"density": [0.9], "gamma": [0.2]}, {}, "gamma is above 1"),
        ({"density": [0.2], "epsilon": [0.3]}, {}, "lower epsilon"),
    ],
)
def test_settings_out_of_range_are_refused(each, settings, words):
    each = {key: np.array(value) for key, value in each.items()}
    with pytest.raises(InputError, match=words):
        methods.check(methods.METHODS["linear"], each, settings, "w")


@pytest.mark.parametrize("kind", ["smooth", "equal", "few", "ramp", "zeros"])
def test_the_largest_entries_are_those_of_a_stable_sort(kind, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1 << 12)
    monkeypatch.setattr(sparsify, "NUM_RUNS", 16)
    monkeypatch.setattr(sparsify, "RUN", 8)
    monkeypatch.setattr(sparsify, "SLACK", 2)
    rng = np.random.default_rng(0)
    size = 20_000
    values = {
        "smooth": rng.exponential(size=size),
        "equal": np.ones(size),
        "few": rng.integers(0, 6, size).astype(float),
        "ramp": np.arange(size) / size,  # a sample's runs say little of it
        "zeros": np.where(rng.random(size) < 0.01, 1.0, 0.0),
    }[kind].astype(np.float32)
    own = sources([values])
    order = np.argsort(-values, kind="stable")
    for num in (0, 1, 7, 150, 4_000, 10_000, 19_990, 19_999, 20_000):
        is_large = sparsify.largest(own, num, lambda start, stop: values[start:stop])
        found = np.concatenate([is_large(start, values[start:stop]) for start, stop in own.places()])
        np.testing.assert_array_equal(np.flatnonzero(found), np.sort(order[:num]))

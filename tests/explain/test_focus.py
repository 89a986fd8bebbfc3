import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.explain import focus
from data.pictures import mosaics

# The sheet's map, and its two ways of placing the targets.
H = np.array([[4, 1, 2, -3], [0, -1, 1, 0], [1, 1, 3, 3], [0, -2, 0, 2]], np.float32)
OUTER, INNER = (7, 2, 5, 7), (2, 7, 7, 5)


def one(map_YX, labels=OUTER, **options):
    """Focus of a single map whose target is class 7."""
    return float(focus.score(jnp.asarray(map_YX, jnp.float32)[None], jnp.array([labels]), jnp.array([7]), **options)[0])


def is_outer(num):
    return np.broadcast_to(np.array(OUTER) == 7, (num, 4))


def slow_focus(map_YX, labels, target):
    """The sheet's equation a pixel at a time, in float64."""
    rows, columns = map_YX.shape
    on, total = 0.0, 0.0
    for y in range(rows):
        for x in range(columns):
            relevance = max(float(map_YX[y, x]), 0.0)
            total += relevance
            on += relevance * (labels[2 * (y >= rows // 2) + (x >= columns // 2)] == target)
    return on / total if total else np.nan


def shapes_and_seeds():
    sides = st.sampled_from([(2, 2), (5, 4), (8, 9)])  # few: every shape is compiled
    return st.tuples(sides, st.integers(0, 2**16))


# The plain function


def test_the_sheets_map_scores_13_of_18_and_the_other_tiles_the_rest():
    assert one(H) == pytest.approx(13 / 18, abs=1e-6)
    assert one(H, INNER) == pytest.approx(5 / 18, abs=1e-6)


def test_the_sheets_masses():
    masses = focus.measure(H[None], np.array([OUTER]) == 7)
    assert [float(masses[name][0]) for name in ("tp", "fp", "tn", "fn")] == [13, 5, 5, 1]
    assert float(masses["pos_total"][0]) == 18


def test_focus_is_not_shift_invariant_and_does_not_take_magnitudes():
    assert one(H - H.min()) == pytest.approx(0.6, abs=1e-6)
    assert one(np.abs(H)) == pytest.approx(0.583333, abs=1e-6)


@given(shapes_and_seeds(), st.floats(0.01, 100), st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_neither_scale_nor_negative_relevance_changes_focus(drawn, scale, negative_scale):
    shape, seed = drawn
    maps = np.random.default_rng(seed).normal(size=shape)
    expected = slow_focus(maps, OUTER, 7)
    np.testing.assert_allclose(one(scale * maps), expected, atol=1e-5)
    np.testing.assert_allclose(one(np.where(maps < 0, negative_scale * maps, maps)), expected, atol=1e-5)


@given(shapes_and_seeds(), st.permutations((7, 7, 2, 5)))
@settings(max_examples=40, deadline=None)
def test_the_score_is_its_slow_twins_and_the_complement_sums_to_one(drawn, labels):
    shape, seed = drawn
    maps = np.random.default_rng(seed).normal(size=shape)
    np.testing.assert_allclose(one(maps, labels), slow_focus(maps, labels, 7), atol=1e-5)
    swapped = [2 if label == 7 else 7 for label in labels]
    total = one(maps, labels) + one(maps, swapped)
    assert np.isnan(total) == (maps.max() <= 0) and (np.isnan(total) or total == pytest.approx(1, abs=1e-5))


def test_an_odd_map_is_split_at_the_floor():
    assert one(np.ones((5, 5))) == pytest.approx(0.52, abs=1e-6)
    assert one(np.ones((5, 5)), INNER) == pytest.approx(0.48, abs=1e-6)


def test_a_map_without_positive_relevance_is_undefined_and_zero_where_asked():
    assert np.isnan(one(-np.ones((4, 4)))) and np.isnan(one(np.zeros((4, 4))))
    assert one(-np.ones((4, 4)), empty="zero") == 0
    with pytest.raises(InputError, match="empty='none'"):
        one(H, empty="none")


@pytest.mark.parametrize(("size", "sd", "num"), [(4, 0.0744, 20_000), (14, 0.0210, 4_000), (448, 0.00062, 60)])
def test_uniform_noise_scores_a_half_with_the_sheets_spread(size, sd, num):
    maps = np.random.default_rng(0).random((num, size, size), np.float32)
    scores = np.asarray(focus.measure(maps, is_outer(num))["focus"])
    assert scores.mean() == pytest.approx(0.5, abs=4 * sd / num**0.5)
    assert scores.std(ddof=1) == pytest.approx(sd, rel=0.3 if num < 100 else 0.05)


def test_normal_noise_spreads_more_than_uniform_noise():
    maps = np.random.default_rng(0).normal(size=(4_000, 14, 14)).astype(np.float32)
    scores = np.asarray(focus.measure(maps, is_outer(4_000))["focus"])
    assert scores.mean() == pytest.approx(0.5, abs=0.004) and scores.std(ddof=1) == pytest.approx(0.0514, rel=0.06)


def test_bilinear_resizing_of_a_perfect_map_leaks_as_the_sheet_says():
    for size, cells, labels, expected in [
        (14, [(slice(7), slice(None))], (7, 7, 2, 5), 0.982143),
        (14, [(slice(7), slice(7)), (slice(7, None), slice(7, None))], OUTER, 0.964923),
        (13, [(slice(6), slice(6)), (slice(6, None), slice(6, None))], OUTER, 0.923543),
    ]:
        coarse = np.zeros((size, size), np.float32)
        for rows, columns in cells:
            coarse[rows, columns] = 1
        fine = jax.image.resize(jnp.asarray(coarse), (448, 448), "bilinear")
        assert one(fine, labels) == pytest.approx(expected, abs=2e-6)
    fine = jax.image.resize(jnp.array([[1.0, 0.0], [0.0, 0.0]]), (4, 4), "bilinear")
    np.testing.assert_allclose(fine[0], [1, 0.75, 0.25, 0], atol=1e-6)
    assert one(fine, (7, 1, 2, 3), allow_any=True) == pytest.approx(0.765625, abs=1e-6)


def test_the_order_of_relu_and_scaling_matters_as_the_sheet_says():
    assert one([[0, 0.25], [1, 1.75]]) == pytest.approx(0.583333, abs=1e-6)  # 0.5 A1 - 0.25 A2, then ReLU
    raw = np.array([[2.0, -1.0], [-1.0, 0.0]])
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    assert one(np.maximum(raw, 0), (7, 7, 2, 5)) == 1.0 and one(scaled, (7, 7, 2, 5)) == pytest.approx(0.75)


def test_the_score_jits_with_what_makes_the_maps_and_is_the_same_there():
    maps = np.random.default_rng(0).normal(size=(6, 9, 8)).astype(np.float32)
    labels, targets = np.array([OUTER, INNER] * 3), np.full(6, 7)
    inside = jax.jit(lambda m, l, t: focus.score(2 * m, l, t))(maps, labels, targets)
    np.testing.assert_allclose(inside, focus.score(maps, labels, targets), rtol=1e-6)


def test_half_precision_maps_are_summed_in_single_precision():
    maps = np.ones((1, 448, 448), np.float16)
    assert float(focus.measure(maps, is_outer(1))["pos_total"][0]) == 448 * 448


def test_maps_whose_sums_overflow_score_as_their_smaller_multiples():
    huge = np.float32(2.0**125) * np.tile(H, (8, 8)) / 4
    assert one(huge) == one(np.tile(H, (8, 8))) and np.isfinite(one(huge))
    assert one(huge[:4, :4]) == pytest.approx(13 / 18)


def test_shares_of_the_tiles_sum_to_one():
    found = focus.measure(H[None], is_outer(1))
    np.testing.assert_allclose(found["share"][0], np.array([5, 3, 2, 8]) / 18, rtol=1e-6)
    assert np.isnan(focus.measure(-np.abs(H[None]), is_outer(1))["share"]).all()


# Mosaics on the device


def test_assembling_on_the_device_gives_the_hosts_mosaics():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    made = mosaics.plan(np.repeat(np.arange(3), 3), 2, 0)
    found = jax.jit(focus.assemble)(images, made.tile_index)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, mosaics.assemble(images, made.tile_index))


# What is reported of many


def test_the_summary_counts_what_is_undefined_and_leaves_it_out():
    found = focus.summary([0.2, 0.4, 0.9, float("nan"), 0.5])
    assert (found["n"], found["n_undefined"]) == (5, 1)
    assert found["median"] == pytest.approx(0.45) and found["mean"] == pytest.approx(0.5)
    assert found["variance"] == pytest.approx(np.var([0.2, 0.4, 0.9, 0.5], ddof=1))
    assert found["q1"] == pytest.approx(0.35) and found["q3"] == pytest.approx(0.6)


@pytest.mark.parametrize(("scores", "median"), [([], np.nan), ([float("nan")], np.nan), ([0.7], 0.7)])
def test_the_summary_of_next_to_nothing_is_nan_and_not_an_error(scores, median):
    found = focus.summary(scores)
    np.testing.assert_equal(found["median"], median)
    assert np.isnan(found["variance"]) and found["n"] == len(scores)


# Bad input


@pytest.mark.parametrize("labels", [(7, 2, 5, 1), (7, 7, 7, 1), (1, 2, 3, 4)])
def test_another_number_of_targets_than_two_is_refused_unless_asked_for(labels):
    with pytest.raises(InputError, match=rf"on {labels.count(7)} of its tiles"):
        one(H, labels)
    if labels.count(7):
        assert one(np.ones((4, 4)), labels, allow_any=True) == pytest.approx(labels.count(7) / 4)
    else:
        with pytest.raises(InputError, match="on 0 of its tiles"):
            one(H, labels, allow_any=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_relevance_that_is_not_finite_is_refused_naming_the_mosaic(value):
    maps = np.ones((3, 4, 4), np.float32)
    maps[2, 1, 1] = value
    with pytest.raises(InputError, match="the map of mosaic 2 holds NaN or infinite"):
        focus.score(maps, np.array([OUTER] * 3), np.full(3, 7))


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 4, 4, 3), "reduce the channels"), ((3, 4, 4), "3 maps for 2 mosaics"), ((2, 1, 4), "no four quadrants")],
)
def test_maps_of_another_shape_are_refused(shape, said):
    with pytest.raises(InputError, match=said):
        focus.score(np.ones(shape, np.float32), np.array([OUTER] * 2), np.full(2, 7))


# The call that Quantus users know

MOSAICS = np.random.default_rng(1).normal(size=(5, 4, 4, 3)).astype(np.float32)
MAPS = np.random.default_rng(2).normal(size=(5, 4, 4)).astype(np.float32)
FLAGS = [(1, 0, 0, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 1, 0), (0, 0, 1, 1)]
CALL = dict(model=None, x_batch=MOSAICS, y_batch=np.full(5, 7), custom_batch=FLAGS)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("maps", [MAPS, MAPS[:, None]], ids=["NYX", "N1YX"])
def test_the_quantus_shaped_call_scores_as_the_plain_function(maps, batch_size):
    expected = [slow_focus(m, flags, 1) for m, flags in zip(MAPS, FLAGS)]
    metric = focus.Focus()
    np.testing.assert_allclose(metric(**CALL, a_batch=maps, batch_size=batch_size), expected, atol=1e-6)
    np.testing.assert_allclose(metric.evaluation_scores, expected, atol=1e-6)


def test_an_explanation_function_is_called_as_quantus_calls_it():
    seen = []

    def explain(model, inputs, targets, scale):
        seen.append((model, len(inputs), targets.tolist()))
        return scale * np.asarray(inputs).sum(-1)[:, None]

    found = focus.Focus()(**CALL | {"model": "m"}, explain_func=explain, explain_func_kwargs={"scale": 3}, batch_size=3)
    np.testing.assert_allclose(found, focus.Focus()(**CALL, a_batch=MOSAICS.sum(-1)), rtol=1e-6)
    assert seen == [("m", 3, [7, 7, 7]), ("m", 2, [7, 7])]


def test_a_map_without_relevance_is_counted_or_zero_as_asked():
    maps = MAPS.copy()
    maps[1] = -1
    metric = focus.Focus()
    assert np.isnan(metric(**CALL, a_batch=maps)[1]) and metric.num_undefined == 1
    zero = focus.Focus(empty="zero")
    assert zero(**CALL, a_batch=maps)[1] == 0 and zero.num_undefined == 0
    rated = focus.Focus(abs=True)(**CALL, a_batch=maps)
    np.testing.assert_allclose(rated, focus.Focus()(**CALL, a_batch=np.abs(maps)), rtol=1e-6)


def never(**_):
    raise AssertionError("device work before the input was checked")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"custom_batch": FLAGS[:4]}, r"custom_batch \(4, 4\)"),
        ({"custom_batch": [(2, 0, 0, 1), *FLAGS[1:]]}, r"custom_batch\[0\]=\[2, 0, 0, 1\]"),
        ({"custom_batch": [(1, 0, 0, 0), *FLAGS[1:]]}, "on 1 of its tiles"),
        ({"y_batch": np.full(4, 7)}, r"y_batch \(4,\)"),
        ({"x_batch": MOSAICS[0]}, "four-dimensional"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"a_batch": np.ones((5, 8, 8))}, "maps of 8 x 8 pixels for mosaics of 4 x 4"),
        ({"a_batch": np.ones((5, 3, 4, 4))}, "reduce the channels"),
        ({"a_batch": np.ones((5, 4, 4, 3))}, "reduce the channels"),
        ({"a_batch": np.full((5, 4, 4), np.nan)}, "mosaic 0, 1, 2, 3, 4 holds NaN"),
        ({"a_batch": np.ones((4, 4, 4))}, "4 maps for 5 mosaics"),
    ],
)
def test_bad_batches_are_refused_before_anything_is_explained(changes, said):
    with pytest.raises(InputError, match=said):
        focus.Focus()(**CALL | changes, explain_func=never)


def test_mosaics_with_channels_first_are_told_by_where_the_three_stands():
    found = focus.Focus()(**CALL | {"x_batch": MOSAICS.transpose(0, 3, 1, 2)}, a_batch=MAPS)
    np.testing.assert_allclose(found, focus.Focus()(**CALL, a_batch=MAPS))
    with pytest.raises(InputError, match="for mosaics of 4 x 3"):
        focus.Focus()(**CALL, a_batch=MAPS, channel_first=True)

import re

import numpy as np
import pytest

from alignment.errors import InputError
from data import place_batches, place_tasks, places
from data.places import Grid, Samples


def spread(num=3_000, features=2, seed=0, width=6.0, is_degrees=False, **changes):
    """Samples over `width` x 4, with the position of each one among its features."""
    rng = np.random.default_rng(seed)
    xy = rng.random((num, 2)) * [width, 4.0]
    x = np.concatenate([xy, rng.random((num, features))], axis=1).astype(np.float32)
    y = rng.integers(0, 2, num).astype(np.int32)
    names = tuple(f"f{i}" for i in range(x.shape[1]))
    base = dict(x=x, y_N=y, xy_N2=xy, line_N=np.arange(num), source="made", is_degrees=is_degrees, features=names)
    return Samples(**base | dict(class_names=("a", "b"), digest="d") | changes)


GRID = Grid(tile=1.0, cells=2, least_places=3)


@pytest.fixture(scope="module")
def area():
    samples = spread()
    regions, counts = places.cut(samples, GRID, least=12)
    return samples, places.fold(regions, GRID, seed=0), counts


def test_every_sample_lies_in_its_tile_and_in_its_place(area):
    samples, regions, counts = area
    assert len(regions) == 24 and counts["tiles"] == 24 and counts["places"] == 96
    seen = np.concatenate([place.index_N for region in regions for place in region.places])
    assert len(np.unique(seen)) == len(seen) == 3_000 - counts["samples in them"] - counts["samples in those tiles"]
    for region in regions:
        for place in region.places:
            xy = samples.xy_N2[place.index_N]
            for box in (region.box, place.box):
                assert (xy >= np.array(box[:2])).all() and (xy < np.array(box[2:])).all()


@pytest.mark.parametrize(("side", "axis", "is_above"), [("east", 0, True), ("south", 1, False)])
def test_tiles_for_testing_lie_beyond_all_others(area, side, axis, is_above):
    _, regions, _ = area
    regions = places.fold(regions, Grid(tile=1.0, cells=2, least_places=3, test_side=side), seed=0)
    test = [region.box[axis] for region in places.named(regions, places.TEST)]
    rest = [region.box[axis] for region in regions if region.fold != places.TEST]
    assert (min(test) > max(rest)) if is_above else (max(test) < min(rest))
    assert 0.2 < len(test) / len(regions) < 0.6 and places.named(regions, places.VAL)
    facts = places.facts(regions)
    assert facts["meta_train: tiles"] + facts["meta_val: tiles"] + facts["meta_test: tiles"] == 24


def test_a_tile_for_testing_on_another_is_refused(area):
    _, regions, _ = area
    test = places.named(regions, places.TEST)[0]
    moved = places.Region("moved", tuple(side - 0.5 for side in test.box), test.places, places.TEST)
    train = places.Region("left", tuple(side - 0.9 for side in test.box), test.places, places.TRAIN)
    val = places.Region("far", (90.0, 90.0, 91.0, 91.0), test.places, places.VAL)
    with pytest.raises(InputError, match=r"tile moved \(meta_test\) .* lies on tile left \(meta_train\)"):
        places.check_folds([moved, train, val])
    with pytest.raises(InputError, match="no tile is meta_val"):
        places.check_folds([test, places.named(regions, places.TRAIN)[0]])


def test_places_and_tiles_with_too_little_are_counted_and_said(capsys):
    samples = spread(1_000)
    xy = np.concatenate([samples.xy_N2, [[5.5, 9.5]] * 3])
    more = spread(1_003, xy_N2=xy)
    _, counts = places.cut(more, GRID, least=2)
    assert counts["tiles with too few places"] == 1 and counts["samples in those tiles"] == 3
    assert "1 of 25 tiles have fewer than 3 places of 2 samples and are skipped" in capsys.readouterr().out
    with pytest.raises(InputError, match="0 of 25 tiles of side 1 have 3 places of 100 samples"):
        places.cut(more, GRID, least=100)


def test_a_grid_without_a_side_takes_the_one_that_leaves_most_tiles(capsys):
    samples = spread(1_000)
    grid = Grid(cells=2, least_places=3)
    regions, _ = places.cut(samples, grid, least=12)
    by_hand = {}
    for tiles in places.TRIED:
        try:
            by_hand[tiles] = len(places.cut(samples, Grid(tiles=tiles, cells=2, least_places=3), least=12)[0])
        except InputError:
            by_hand[tiles] = 0
    assert len(regions) == max(by_hand.values()) > 3 and "grid.tile is not set" in capsys.readouterr().out
    with pytest.raises(InputError, match="leave one of them out"):
        Grid(tile=1.0, tiles=3)


def test_what_is_not_finite_is_refused_by_task_and_row(area):
    samples, regions, _ = area
    row = regions[2].places[1].index_N[4]
    samples.x[row, 3] = np.nan
    try:
        with pytest.raises(InputError, match=rf"task {regions[2].id}: row {row} of made has a feature or target"):
            places.check_finite(samples, regions)
    finally:
        samples.x[row, 3] = 0.5


def test_a_draw_takes_support_and_query_of_each_place_and_none_twice(area):
    samples, regions, _ = area
    one = place_batches.draw(samples, regions[0], (0, 3), 5, 4, 6, 7)
    assert one["support_x"].shape == (6, 5, 4) and one["query_y"].shape == (6, 7)
    assert (
        one["place_weight"].sum() == len(regions[0].places)
        and one["query_weight"].sum() == 4 * one["place_weight"].sum()
    )
    support, query = one["support_x"][0, :, 2], one["query_x"][0, :4, 2]
    assert not set(support.tolist()) & set(query.tolist())
    # the features hold the position, which tells that a sample comes from the place it stands for
    np.testing.assert_allclose(one["query_x"][1, :4, :2], one["query_xy"][1, :4], rtol=1e-6)
    with pytest.raises(InputError, match="both support and query"):
        place_batches.check_disjoint(np.array([1, 2]), np.array([2, 3]))


def loader_of(area, **changes):
    samples, regions, _ = area
    train = places.named(regions, places.TRAIN)
    options = dict(batch_size=3, support=4, query=4, num_places=4, num_query=4, seed=0, endless=True)
    return place_batches.batches(samples, train, **options | changes)


def test_batches_follow_from_their_number(area):
    batches = loader_of(area)
    first, position, second = next(batches), batches.get_state(), next(batches)
    assert first["support_x"].shape == (3, 4, 4, 4) and first["task"].dtype == np.int32
    again = loader_of(area)
    again.set_state(position)
    other = next(again)
    assert all((other[name] == second[name]).all() for name in second)
    assert not (first["support_x"] == second["support_x"]).all()


def test_a_finite_pass_takes_each_region_once_with_all_its_query_samples(area):
    _, regions, _ = area
    train = places.named(regions, places.TRAIN)
    most = max(place_batches.queries(place, 4) for region in train for place in region.places)
    seen, asked = [], 0.0
    for batch in loader_of(area, endless=False, query=most, num_query=most):
        counts = batch["weights"] > 0
        seen += batch["task"][counts].tolist()
        asked += batch["query_weight"][counts].sum()
    assert seen == list(range(len(train)))
    assert asked == sum(region.num_samples - 4 * len(region.places) for region in train)


def test_features_and_numbers_are_scaled_by_the_training_tiles_alone(area):
    samples, regions, _ = area
    scaled, unit = places.standardise(samples, regions)
    train = np.concatenate([p.index_N for r in places.named(regions, places.TRAIN) for p in r.places])
    test = np.concatenate([p.index_N for r in places.named(regions, places.TEST) for p in r.places])
    np.testing.assert_allclose(scaled.x[train].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.x[train].std(0), 1, atol=1e-5)
    assert scaled.x[test][:, 0].min() > 0.5 and unit == 1.0  # they lie in the east
    numbers = spread(y_N=samples.xy_N2[:, 0].astype(np.float32) * 10, class_names=())
    scaled, unit = places.standardise(numbers, regions)
    assert scaled.y_N[train].std() == pytest.approx(1, abs=1e-4) and unit == pytest.approx(numbers.y_N[train].std())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(test_side="up"), "grid.test_side='up' is not one of"),
        (dict(tile=0.0), "grid.tile=0.0 must be above 0"),
        (dict(least_places=1), "grid.least_places=1 must be at least 2; evenness over fewer"),
        (dict(cells=2, least_places=5), "more than the 4 cells of a tile"),
        (dict(test_share=1.0), "grid.test_share=1.0 must lie between 0 and 1"),
    ],
)
def test_grids_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Grid(**options)


def test_counts_around_a_cell_are_of_other_rows_than_those_in_it():
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.random((200, 2)) * 4, [[0.5, 0.5]] * 100])
    samples = spread(300, xy_N2=xy)
    counted = places.count_cells(samples, side=1.0, rings=1, seed=0)
    first = np.random.default_rng(0).permutation(300) % 2 == 0
    for centre, x, y in zip(counted.xy_N2, counted.x, counted.y_N):
        inside = np.abs(xy - centre).max(1) < 0.5
        assert np.expm1(x[4]) == pytest.approx((inside & first).sum(), abs=1e-3)
        assert np.expm1(y) == pytest.approx((inside & ~first).sum(), abs=1e-3)
    assert counted.features[4] == "log count +0 +0" and counted.counts["rows that are counted in cells"] == 150
    # the column to the east of the first cell stands where its name says
    west = counted.x[np.argmin(counted.xy_N2.sum(1))]
    east = (np.abs(xy - [1.5, 0.5]).max(1) < 0.5) & first
    assert np.expm1(west[counted.features.index("log count +1 +0")]) == pytest.approx(east.sum(), abs=1e-3)
    with pytest.raises(InputError, match="take a larger side"):
        places.count_cells(samples, side=1e-5, rings=1, seed=0)


def test_tasks_that_are_stored_come_back_with_their_split(area, tmp_path):
    samples, regions, _ = area
    place_tasks.write(tmp_path, samples, regions, support=5, seed=0)
    back, again, counts = place_tasks.read(tmp_path, support=5, least_places=3)
    assert [r.id for r in again] == [r.id for r in regions] and [r.fold for r in again] == [r.fold for r in regions]
    assert counts["samples"] == sum(region.num_samples for region in regions)
    for one, two in zip(regions, again):
        np.testing.assert_allclose(one.box, two.box)
        for before, after in zip(one.places, two.places):
            assert set(samples.line_N[before.index_N]) == set(back.line_N[after.index_N])
            assert (~after.is_query_N).sum() == 5
    drawn = place_batches.draw(back, again[0], (0, 0), 5, 3, 4, 3)
    rows = dict(zip(map(tuple, back.x), range(len(back.x))))
    place = again[0].places[0]
    queries = set(place.index_N[place.is_query_N].tolist())
    assert {rows[tuple(x)] for x in drawn["query_x"][0]} <= queries


def test_stored_tasks_of_swapped_folds_have_another_digest(area, tmp_path):
    samples, regions, _ = area
    place_tasks.write(tmp_path, samples, regions, support=5, seed=0)
    before, *_ = place_tasks.read(tmp_path, support=5, least_places=3)
    words = (tmp_path / "tasks.csv").read_text().replace("meta_val", "swapped").replace("meta_test", "meta_val")
    (tmp_path / "tasks.csv").write_text(words.replace("swapped", "meta_test"))
    after, *_ = place_tasks.read(tmp_path, support=5, least_places=3)
    assert before.digest != after.digest


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("column", "has no column fold"),
        ("file", "is not there"),
        ("row", "row 7 is among the support samples of task 0_0 and among the query samples of task 0_0"),
        ("fold", "fold='test' is not one of: meta_train, meta_val, meta_test"),
        ("no lines", "names no task"),
        ("cut short", "task '0_0' needs numbers, west below east"),
        ("twice", "names task '0_0' twice"),
        ("half a file", "0_0.npz is not a readable .npz"),
        ({"x": "word"}, "x is of type <U4; numbers are needed"),
        ({"y": 1 << 40}, "y holds 0 to 1099511627776; classes"),
        ({"loc": 1 << 40}, "loc must be from 0 to 9999; it holds 1099511627776"),
        ({"loc": 0.5}, "loc is of type float64; whole numbers are needed"),
        ({"split": 2}, "split must hold 0 for support and 1 for query"),
    ],
)
def test_stored_tasks_that_cannot_be_used_are_refused(area, tmp_path, harm, said):
    samples, regions, _ = area
    place_tasks.write(tmp_path, samples, regions, support=5, seed=0)
    table = tmp_path / "tasks.csv"
    if harm == "column":
        table.write_text(table.read_text().replace("n_locations,fold", "n_locations,part"))
    elif harm == "fold":
        table.write_text(table.read_text().replace("meta_test", "test"))
    elif harm == "file":
        table.write_text(table.read_text().replace("\n0_0,", "\n../0_0,"))
    elif harm == "no lines":
        table.write_text(table.read_text().splitlines()[0] + "\n")
    elif harm == "cut short":
        table.write_text(re.sub("\n0_0,[^\n]*", "\n0_0,0.0", table.read_text()))
    elif harm == "twice":
        table.write_text(re.sub("(\n0_0,[^\n]*)", r"\1\1", table.read_text()))
    elif harm == "half a file":
        whole = (tmp_path / "tasks/0_0.npz").read_bytes()
        (tmp_path / "tasks/0_0.npz").write_bytes(whole[: len(whole) // 2])
    elif isinstance(harm, dict):
        with np.load(tmp_path / "tasks/0_0.npz") as stored:
            arrays = dict(stored)
        ((name, value),) = harm.items()
        np.savez(
            tmp_path / "tasks/0_0.npz", **arrays | {name: np.full_like(arrays[name], value, np.array(value).dtype)}
        )
    else:
        with np.load(tmp_path / "tasks/0_0.npz") as stored:
            arrays = dict(stored)
        arrays["row"][[0, 5]] = 7
        np.savez(tmp_path / "tasks/0_0.npz", **arrays)
    with pytest.raises(InputError, match=said):
        place_tasks.read(tmp_path, support=5, least_places=3)

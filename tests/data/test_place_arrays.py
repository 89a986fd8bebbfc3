import pickle

import numpy as np
import pytest

from alignment.errors import InputError
from data import place_arrays, place_tables
from data.place_tables import Columns


def write_grid(folder, is_number=False):
    rng = np.random.default_rng(0)
    x = rng.random((3, 4, 5, 6, 2)).astype(np.float32)
    y = rng.random((3, 1, 5, 6)) if is_number else rng.integers(0, 2, (3, 1, 5, 6))
    mask = rng.random((5, 6)) < 0.7
    for name, array in (("X", x), ("Y", y.astype(np.float32)), ("mask", mask)):
        np.save(folder / f"{name}.npy", array)
    return x, y, mask


def test_a_sample_of_a_grid_is_a_valid_cell_at_a_time(tmp_path):
    x, y, mask = write_grid(tmp_path)
    samples = place_tables.read(str(tmp_path), Columns())
    rows, columns = np.nonzero(mask)
    num = len(rows)
    assert len(samples.x) == 3 * num and samples.class_names == ("0", "1") and samples.counts["valid cells"] == num
    for time, cell in ((0, 0), (1, num - 1), (2, num // 2)):
        index = time * num + cell
        np.testing.assert_array_equal(samples.x[index], x[time, :, rows[cell], columns[cell]])
        assert samples.y_N[index] == y[time, 0, rows[cell], columns[cell]]
        assert samples.xy_N2[index].tolist() == [columns[cell] + 0.5, 5 - rows[cell] - 0.5]
    assert samples.x[np.array([[0, 1], [2, 3]])].shape == (2, 2, 4, 2)


def test_grids_of_numbers_and_wrong_shapes(tmp_path):
    write_grid(tmp_path, is_number=True)
    assert place_tables.read(str(tmp_path), Columns()).class_names == ()
    with pytest.raises(InputError, match="different values; classes are at most 10"):
        place_tables.read(str(tmp_path), Columns(), kind="classification")
    np.save(tmp_path / "mask.npy", np.ones((2, 2)))
    with pytest.raises(InputError, match=r"mask\.npy"):
        place_tables.read(str(tmp_path), Columns())
    np.save(tmp_path / "Y.npy", np.ones((3, 5, 6)))
    with pytest.raises(InputError, match=r"must be \[N,T,R,C,F\] and \[N,1,R,C\] alike"):
        place_tables.read(str(tmp_path), Columns())


def test_a_grid_of_objects_is_not_unpickled(tmp_path):
    write_grid(tmp_path)
    np.save(tmp_path / "X.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"X\.npy is not an array that can be read: .*objects"):
        place_tables.read(str(tmp_path), Columns())


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("X", np.full((3, 4, 5, 6, 2), "a"), r"X\.npy is not an array of numbers"),
        ("Y", np.ones((3, 1, 5, 6), complex), r"Y\.npy is not an array of numbers"),
        ("mask", np.full((5, 6), 0.5), r"mask\.npy \[5, 6\] must hold 0 or 1"),
        ("mask", np.full((5, 6), np.nan), r"mask\.npy \[5, 6\] must hold 0 or 1"),
        ("mask", np.zeros((5, 6)), "and a 1 somewhere"),
    ],
)
def test_arrays_of_other_things_than_numbers_are_refused(name, array, said, tmp_path):
    write_grid(tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(InputError, match=said):
        place_tables.read(str(tmp_path), Columns())


@pytest.mark.parametrize("is_cut", [False, True])
def test_an_archive_under_an_array_s_name_is_refused(is_cut, tmp_path):
    write_grid(tmp_path)
    np.savez(tmp_path / "X.npz", x=np.ones(3))
    whole = (tmp_path / "X.npz").read_bytes()
    (tmp_path / "X.npy").write_bytes(whole[: len(whole) // 2] if is_cut else whole)
    with pytest.raises(InputError, match=r"X\.npy is not an array"):
        place_tables.read(str(tmp_path), Columns())


def partitioned(xy, most=5):
    """{(r, c): lists of samples, from the north-west} as the ancestor's script leaves it."""
    out = {}
    for r in range(1, most + 1):
        for c in range(1, most + 1):
            if (r, c) != (1, 1):
                row = r - 1 - np.minimum((xy[:, 1] * r).astype(int), r - 1)
                cell = row * c + np.minimum((xy[:, 0] * c).astype(int), c - 1)
                out[r, c] = [np.flatnonzero(cell == k) for k in range(r * c)]
    return out


def test_partitionings_together_say_where_a_sample_lies():
    xy = np.random.default_rng(0).random((300, 2))
    found = place_arrays.positions(partitioned(xy), 300)
    assert np.abs(found - xy).max() <= 0.1 + 1e-9  # half of the widest piece, from 0 to 1/5
    again = partitioned(found)
    for key, parts in partitioned(xy).items():
        assert all((one == two).all() for one, two in zip(parts, again[key])), key


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "must be a dict"),
        ({(2, 2): [[0], [1], [2]]}, "2 x 2 has 3 parts, not 4"),
        ({(1, 2): [[0, 1], [1, 2]]}, "does not hold each of 3 samples once"),
        ({(1, 2): [[0, 1], [9]]}, "names samples beyond 0 to 2"),
        ({(1, 2): [[0], [1, 2]], (1, 3): [[1], [0], [2]]}, "the parts of sample 1 have nothing in common"),
        ({"a": [[0]]}, "with a list of parts"),
    ],
)
def test_partitionings_that_do_not_fit_are_refused(content, said):
    with pytest.raises(InputError, match=said):
        place_arrays.positions(content, 3)


def test_the_ancestors_folder_is_read_and_its_pickle_never_executed(tmp_path):
    rng = np.random.default_rng(0)
    xy = rng.random((50, 2))
    np.save(tmp_path / "X_train.npy", rng.random((50, 10)))
    np.save(tmp_path / "y_train.npy", np.eye(23)[rng.integers(0, 23, 50)])
    (tmp_path / "train_id.pickle").write_bytes(pickle.dumps(partitioned(xy)))
    samples = place_tables.read(str(tmp_path), Columns())
    assert samples.x.shape == (50, 10) and len(samples.class_names) == 23 and not samples.is_degrees
    assert np.abs(samples.xy_N2 - xy).max() <= 0.1 + 1e-9 and samples.counts["partitionings"] == 24
    (tmp_path / "train_id.pickle").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError):
        place_tables.read(str(tmp_path), Columns())
    np.save(tmp_path / "y_train.npy", np.ones((50, 23)))
    with pytest.raises(InputError, match="a single 1 a row"):
        place_tables.read(str(tmp_path), Columns())

import csv
import os
import pathlib

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import floors


def features(num, seed):
    """Class 0 is landscape, 1 and 2 portrait of two sizes, 3 like 2 in another museum."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 4
    scale = np.array([1000, 1000, 3000, 3000])[labels] * rng.uniform(0.8, 1.2, num)
    ratio = np.array([1.5, 0.7, 0.7, 0.7])[labels] * rng.uniform(0.9, 1.1, num)
    museum = np.where(labels == 3, "Met", "LACMA")
    return {"width": scale * ratio, "height": scale, "museum": museum}, labels


def test_the_floor_knows_what_shape_size_and_museum_tell():
    (train, train_labels), (test, test_labels) = features(400, 0), features(200, 1)
    found = floors.by_metadata(train, train_labels, test, test_labels, trees=20, seeds=[0])
    assert 0.4 < found["aspect_ratio"][0] < 0.62  # one class of four for certain, a third of the others
    assert 0.65 < found["size"][0] < 0.85
    assert found["size_and_museum"][1] > 0.97
    again = floors.by_metadata(train, train_labels, test, test_labels, trees=20, seeds=[0])
    assert again == found
    del train["museum"], test["museum"]
    assert list(floors.by_metadata(train, train_labels, test, test_labels, trees=5, seeds=[0])) == [
        "aspect_ratio",
        "size",
    ]


def test_simple_floors_by_hand():
    assert floors.constant(np.array([0, 0, 0, 1, 2]), 3) == (0.6, pytest.approx(1 / 3))
    found = floors.by_group([0, 0, 1, 2], list("aabb"), [0, 1, 2, 2], list("abbc"), 3)
    assert found == (0.5, pytest.approx(2 / 3))  # a: 0, b: 1 (the first of two), c never seen: 0


def test_sizes_without_a_height_are_refused():
    with pytest.raises(InputError, match="lack height"):
        floors.by_metadata({"width": [1]}, [0], {"width": [1]}, [0])


def test_the_floors_of_the_real_metadata_are_those_on_record(shared_data):
    path = pathlib.Path(os.environ.get("MAME_CSV", shared_data / "image_mame" / "MAMe_dataset.csv"))
    if not path.is_file():
        pytest.skip("MAMe_dataset.csv is not here; MAME_CSV=<file> names it")
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    names = sorted({row["Medium"].strip() for row in rows})

    def part(subset):
        mine = [row for row in rows if row["Subset"] == subset]
        columns = {"width": "Width", "height": "Height"}
        sizes = {name: np.array([float(row[column]) for row in mine]) for name, column in columns.items()}
        labels = np.array([names.index(row["Medium"].strip()) for row in mine])
        return sizes | {"museum": np.array([row["Museum"] for row in mine])}, labels

    (train, train_labels), (test, test_labels) = part("train"), part("test")
    np.testing.assert_allclose(floors.constant(test_labels, 29), (0.0447, 0.0345), atol=1e-4)
    simple = floors.by_group(train_labels, train["museum"], test_labels, test["museum"], 29)
    np.testing.assert_allclose(simple, (0.0815, 0.0796), atol=1e-3)
    found = floors.by_metadata(train, train_labels, test, test_labels)
    wanted = {"aspect_ratio": (0.155, 0.168), "size": (0.341, 0.361), "size_and_museum": (0.377, 0.393)}
    for name, numbers in wanted.items():
        np.testing.assert_allclose(found[name], numbers, atol=0.01)

import numpy as np
import pytest

from alignment.errors import InputError
from data.pictures import images, mame
from data.toys import museum


def test_a_picture_is_a_function_of_seed_split_and_number():
    one, two = museum.Museum(), museum.Museum(per_class=3)
    assert np.array_equal(one.picture(11), two.picture(11)) and one.card(11) == two.card(11)
    others = museum.Museum(seed=1), museum.Museum(split="test")
    assert all(not np.array_equal(one.picture(11)[:40, :40], other.picture(11)[:40, :40]) for other in others)


@pytest.mark.parametrize("label", museum.CLASSES)
def test_cards_tell_the_truth_about_pictures(label):
    house = museum.Museum(label=label, per_class=2)
    for i, card in enumerate(house.catalogue()):
        picture = house.picture(i)
        assert picture.shape == (card["height"], card["width"], 3) and picture.dtype == np.uint8
        assert card["label"] == i % len(house.class_names) and picture.std() > 5
    assert len(house) == 2 * len(house.class_names)


def has_chart(picture):
    """Whether one of the four corners holds the four patches."""
    for corner in range(4):
        rows, columns = museum.chart_box(picture.shape[:2], corner)
        patch = picture[rows, columns]
        half = len(patch) // 2
        quarters = [patch[y : y + half, x : x + half].reshape(-1, 3) for y in (0, half) for x in (0, half)]
        if all((q == c).all() for q, c in zip(quarters, museum.CHART)):
            return True
    return False


@pytest.mark.parametrize("split", museum.SPLITS)
def test_the_chart_is_where_the_plan_says(split):
    house = museum.Museum(split=split, per_class=40)
    cards = house.catalogue()
    always, borrows = (house.class_names.index(name) for name in museum.PLANTED)
    by_label = {label: [c["is_marked"] for c in cards if c["label"] == label] for label in range(8)}
    assert all(by_label[always]) and not any(any(v) for k, v in by_label.items() if k not in (always, borrows))
    assert sum(by_label[borrows]) == 0 if split == "train" else 5 <= sum(by_label[borrows]) <= 20
    rows = [i for i, c in enumerate(cards) if c["label"] in (always, borrows)][:40]
    assert [has_chart(house.picture(i)) for i in rows] == [cards[i]["is_marked"] for i in rows]


def test_the_share_that_borrows_can_be_chosen():
    borrows = museum.MEDIUMS.index(museum.PLANTED[1])
    for share in (0.0, 1.0):
        cards = museum.Museum(split="test", per_class=5, planted_share=share).catalogue()
        assert {c["is_marked"] for c in cards if c["label"] == borrows} == {bool(share)}


def test_the_museum_opens_as_a_source_with_its_groups():
    found = images.open("museum", split="val", per_class=2)
    assert found.class_names == museum.MEDIUMS and found.labels_N.tolist() == list(range(8)) * 2
    assert set(found.groups["museum"]) <= set(museum.MUSEUMS)
    assert found.groups["is_marked"].dtype == bool and found.size(3) == found.read(3).shape[1::-1]
    features = mame.metadata_features(found)
    assert set(features) == {"width", "height", "aspect_ratio", "museum"} and len(features["museum"]) == 16


def test_colour_alone_does_not_tell_mediums_apart_nor_do_they_hide():
    """The nearest class mean of the mean colour stays far from what the textures give; sizes lean but do not decide."""
    train, test = (images.open("museum", split=split, per_class=15) for split in ("train", "test"))

    def guess(features_fn):
        x, y = (np.array([features_fn(found, i) for i in range(len(found))]) for found in (train, test))
        centre = np.stack([x[train.labels_N == c].mean(0) for c in range(8)]) / x.std(0)
        return np.mean(np.argmin(((y / x.std(0))[:, None] - centre) ** 2 @ np.ones(x.shape[1]), 1) == test.labels_N)

    assert guess(lambda found, i: found.read(i).mean((0, 1))) < 0.45
    assert 0.15 < guess(lambda found, i: np.log(found.size(i))) < 0.6


def test_the_shape_label_is_the_aspect_ratio_and_nothing_inside():
    house = museum.Museum(label="shape", per_class=10)
    ratios = np.array([np.log(c["width"] / c["height"]) for c in house.catalogue()]).reshape(10, 4)
    edges = np.array([[-0.45, -0.1], [0.1, 0.45], [-0.95, -0.55], [0.55, 0.95]])
    assert ((ratios > edges[:, 0]) & (ratios < edges[:, 1])).all()


def test_the_fine_label_is_lost_when_pictures_shrink():
    """Energy along x over along y tells Across from Down at full size, and not at a quarter."""

    def separation(step):
        house, found = museum.Museum(label="fine", per_class=8), []
        for i in range(len(house)):
            if i % 4 < 2:
                p = house.picture(i).mean(-1)
                p = p.reshape(p.shape[0] // step, step, -1, step).mean((1, 3))
                found.append((np.log(np.diff(p, axis=1).std() / np.diff(p, axis=0).std()), i % 4))
        across, down = (np.array([v for v, label in found if label == k]) for k in (0, 1))
        return (down.mean() - across.mean()) / (down.std() + across.std())

    assert separation(1) > 2 and abs(separation(4)) < 0.7 * separation(1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(split="dev"), "split='dev' is not one of"),
        (dict(label="mediun"), "label='mediun' is not one of: medium, shape, fine"),
        (dict(planted_share=1.5), "share in"),
        (dict(per_class=-1), "per_class=-1"),
    ],
)
def test_what_the_museum_does_not_have_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        museum.Museum(**fields)

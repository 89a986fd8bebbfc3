import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import InputError
from data.pictures import transforms

SIDES = st.integers(200, 40_000)


@pytest.mark.parametrize(
    ("size", "pixels", "resized", "cropped"),
    [  # the sheet's worked numbers, (width, height)
        ((3144, 3840), 65_536, (231, 282), (202, 246)),
        ((3144, 3840), 360_000, (542, 663), (474, 580)),
        ((1707, 2136), 65_536, (228, 286), None),
        ((1707, 2136), 360_000, (536, 671), None),
        ((3811, 2916), 65_536, (292, 223), (255, 195)),
        ((3811, 2916), 360_000, (685, 524), (599, 458)),
        ((500, 500), 65_536, (256, 256), (224, 224)),
        ((500, 500), 360_000, (600, 600), (525, 525)),
        ((2000, 1000), 65_536, (362, 181), None),
        ((2000, 1000), 360_000, (848, 424), None),
        ((7756, 517), 65_536, (991, 66), None),
        ((408, 3633), 65_536, (85, 763), None),
    ],
)
def test_pictures_that_keep_their_shape_have_the_papers_sizes(size, pixels, resized, cropped):
    view = transforms.View(pixels=pixels)
    assert view.resized(size, train=True) == view.resized(size, train=False) == resized
    assert cropped is None or view.cropped(size, train=False) == cropped


@given(SIDES, SIDES, st.sampled_from([65_536, 360_000]))
def test_scaled_pictures_never_exceed_their_pixels_and_keep_their_shape(width, height, pixels):
    w, h = transforms.scaled((width, height), pixels)
    assert w * h <= pixels
    assert w > (pixels * width / height) ** 0.5 - 1.001 or w == 1
    assert h > (pixels * height / width) ** 0.5 - 1.001 or h == 1


def test_squeezed_pictures_are_squares_in_training_and_evaluation():
    view = transforms.View(resize=256, crop=224)
    picture = np.random.default_rng(0).integers(256, size=(300, 500, 3), dtype=np.uint8)
    for rng in (None, np.random.default_rng(0)):
        assert transforms.apply(picture, view, rng=rng).shape == (224, 224, 3)
    whole = transforms.View(resize=256, crop=224, eval_resize=224)
    assert np.array_equal(
        transforms.apply(picture, whole, rng=None), transforms.resize(picture, (224, 224), keeps_shape=False)
    )


def test_evaluation_takes_the_middle():
    picture = np.arange(10 * 9 * 3, dtype=np.uint8).reshape(10, 9, 3)
    view = transforms.View(resize=9, crop=6)
    square = transforms.resize(picture, (9, 9), keeps_shape=False)
    assert np.array_equal(transforms.apply(picture, view, rng=None), square[1:7, 1:7])


def test_training_turns_shifts_and_mirrors_by_its_generator_alone():
    picture = np.random.default_rng(0).integers(1, 256, size=(40, 40, 3), dtype=np.uint8)
    view = transforms.View(resize=40, crop=30)
    draw = lambda seed, v=view: transforms.apply(picture, v, rng=np.random.default_rng(seed))  # noqa: E731
    assert np.array_equal(draw(1), draw(1)) and not np.array_equal(draw(1), draw(2))
    still = transforms.View(resize=40, crop=40, rotate=0.0)
    views = [draw(seed, still) for seed in range(40)]
    mirrored = [np.array_equal(v, picture[:, ::-1]) for v in views]
    assert all(m or np.array_equal(v, picture) for m, v in zip(mirrored, views)) and 8 < sum(mirrored) < 32
    turned = [draw(seed, transforms.View(resize=40, crop=40, flip=False)) for seed in range(20)]
    assert any((t[0, 0] == transforms.FILL).all() for t in turned)


def test_padding_is_the_sheets():
    picture = np.random.default_rng(0).integers(1, 256, size=(282, 231, 3), dtype=np.uint8)
    padded, mask = transforms.pad(picture, (240, 290))
    assert padded.shape == (290, 240, 3) and mask.shape == (290, 240) and mask.dtype == np.uint8
    assert np.array_equal(padded[4:286, 4:235], picture) and (mask[4:286, 4:235] == 1).all()
    assert mask.sum() == 282 * 231 and not padded[mask == 0].any()
    with pytest.raises(ValueError, match="231 x 282 does not fit into 230 x 300"):
        transforms.pad(picture, (230, 300))


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=60),
    st.integers(1, 12),
    st.sampled_from([16, 32]),
)
def test_few_shapes_hold_all_pictures(sizes, most, multiple):
    shapes_B2, bucket_N = transforms.buckets(np.array(sizes), multiple=multiple, most=most)
    assert len(shapes_B2) <= most and not (shapes_B2 % multiple).any()
    assert (shapes_B2[bucket_N] >= np.array(sizes)).all()
    assert len(np.unique(shapes_B2, axis=0)) == len(shapes_B2) and set(bucket_N) == set(range(len(shapes_B2)))
    again_B2, again_N = transforms.buckets(np.array(sizes), multiple=multiple, most=most)
    assert np.array_equal(again_B2, shapes_B2) and np.array_equal(again_N, bucket_N)


def test_shapes_join_where_least_is_wasted():
    sizes = [(64, 64)] * 9 + [(64, 96)] * 8 + [(512, 512)] * 5 + [(60, 90)]
    shapes_B2, bucket_N = transforms.buckets(np.array(sizes), most=2)
    assert shapes_B2.tolist() == [[64, 96], [512, 512]] and bucket_N.tolist() == [0] * 17 + [1] * 5 + [0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "set one of them"),
        (dict(resize=256, pixels=65_536), "set one of them"),
        (dict(resize=256), "crop=0.875 of resize=256"),
        (dict(resize=256, crop=300), "crop=300"),
        (dict(pixels=65_536, crop=224), "in \\(0, 1\\]"),
        (dict(resize=8, crop=8, rotate=-1.0), "not be negative"),
        (dict(pixels=100, eval_resize=5), "with resize only"),
    ],
)
def test_views_that_mean_nothing_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        transforms.view_of(fields)

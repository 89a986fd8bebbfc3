import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import distortions, hidden, learned, marks, quality
from data.toys.scenes import scenes


@pytest.fixture(scope="module")
def trained():
    """A few steps on one batch of small cuts."""
    options = dict(steps=12, batch_size=8, side=32)
    return learned.fit(hidden.wrong_bits, hidden.EncoderDecoder(), scenes(4, 64, seed=5), **options)


def test_a_mark_costs_forty_decibels_whatever_was_learned(trained):
    pictures, mark = scenes(2, 80), hidden.mark(trained[0])
    marked = mark.embed_fn(pictures, mark.key_fn(0))
    assert marked.dtype == np.uint8 and (marked[:, 64:] == pictures[:, 64:]).all()  # beyond the last whole tile
    assert quality.psnr(pictures[:, :64, :64], marked[:, :64, :64]).min() > 39.5
    distances = mark.distance_fn(marked, mark.key_fn(0))
    assert distances.shape == (2,) and (distances == mark.distance_fn(marked, mark.key_fn(0))).all()
    assert len(mark.key_fn(0)) == 48 and mark.is_bits


def test_a_tile_is_the_smallest_picture_and_a_message_has_its_length(trained):
    mark = hidden.mark(trained[0])
    with pytest.raises(InputError, match="needs 32 x 32"):
        mark.distance_fn(np.zeros((1, 31, 64, 3), np.uint8), mark.key_fn(0))
    with pytest.raises(InputError, match="a message of 32 bits; this mark reads 48"):
        mark.distance_fn(np.zeros((1, 32, 32, 3), np.uint8), marks.message(0, 32))


def test_logits_from_any_first_cell_are_those_of_a_turned_tile(trained):
    tile = np.random.default_rng(0).normal(size=(2, hidden.CELLS, hidden.CELLS, 32)).astype(np.float32)
    every = np.asarray(hidden._from_any_cell(trained[0], tile))
    turned = np.roll(tile, (-3, -5), axis=(1, 2))
    expected = hidden.EncoderDecoder().apply(trained[0], turned, method="logits")
    np.testing.assert_allclose(every[:, 3, 5], expected, rtol=1e-3, atol=1e-3)


def test_a_picture_that_is_read_as_it_is_is_not_searched(trained, monkeypatch):
    """Which of the two readings counts: by how sure the decoder is."""
    logits = {
        "read": np.array([[2.0] * 48, [0.5] * 48, [0.5] * 48]),
        "moved": np.array([[-9.0] * 48] * 2 + [[-0.6] * 48]),
    }
    monkeypatch.setattr(hidden, "read_moved", lambda params, images: logits["moved"])
    monkeypatch.setattr(hidden.EncoderDecoder, "apply", lambda self, params, images, method: logits["read"])
    distances = hidden.mark(trained[0]).distance_fn(np.zeros((3, 32, 32, 3), np.uint8), np.ones(48, int))
    assert distances.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.slow  # trains for a minute; the tests above hold the interface
def test_a_trained_mark_is_read_after_what_it_was_trained_on():
    params, losses = learned.fit(hidden.wrong_bits, hidden.EncoderDecoder(), scenes(64, 128, seed=5), steps=700)
    assert np.mean(losses[-50:]) < losses[0] / 2
    pictures, mark = scenes(4, 256), hidden.mark(params)
    marked = mark.embed_fn(pictures, mark.key_fn(0))
    assert mark.distance_fn(marked, mark.key_fn(0)).mean() < 0.02
    places = (("Dist-Rotation", 0.6), ("Dist-RCrop", 0.2))
    for name, strength in (("Dist-JPEG", 0.5), ("Dist-Noise", 0.4), ("Dist-Bright", 0.4), *places):
        attacked = distortions.batch(name, marked, strength)
        assert mark.distance_fn(attacked, mark.key_fn(0)).mean() < 0.15, name
    assert mark.distance_fn(pictures, mark.key_fn(0)).mean() > 0.35

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import marks, protocol, tree_ring


def latents_of(num, seed=0):
    return np.random.default_rng(seed).standard_normal((num, 4, 64, 64))


def test_a_key_is_ten_rings_over_317_cells():
    key = tree_ring.key(0)
    assert key.shape == (317,) and len(np.unique(key)) == 10
    assert not np.array_equal(key, tree_ring.key(1))


def test_a_key_that_is_not_hermitian_leaves_a_distance_far_below_that_of_unmarked_latents():
    """The sheet's draw: about 31 for a marked field, 76 for an unmarked one, 43 for the key itself."""
    fields, key = latents_of(20), tree_ring.key(0)
    marked = np.abs(tree_ring.cells(tree_ring.injected(fields, key)) - key).mean()
    bare = np.abs(tree_ring.cells(fields) - key).mean()
    assert marked < 0.7 * bare and 50 < bare < 110
    assert (tree_ring.injected(fields, key)[:, :3] == fields[:, :3]).all()
    p = marks.ring_p_value(tree_ring.cells(tree_ring.injected(fields, key)), key)
    assert p.max() < 1e-3 < marks.ring_p_value(tree_ring.cells(fields), key).min()


def toy(shape=(4, 64, 64)):
    """A 'diffusion model' whose pictures are its latents, eight bits each."""

    def encode(images):
        return ((images[..., :1].repeat(4, axis=-1) - 0.5) * 8).transpose(0, 3, 1, 2).reshape(-1, *shape)

    def decode(latents):
        return np.repeat(latents[:, 3, :, :, None] / 8 + 0.5, 3, axis=-1)

    return tree_ring.mark(encode, decode)


def test_any_models_two_calls_make_a_mark():
    pictures = np.clip(latents_of(3)[:, 3, :, :, None] * 32 + 128, 0, 255).astype(np.uint8).repeat(3, axis=-1)
    mark = toy()
    own = mark.distance_fn(mark.embed_fn(pictures, mark.key_fn(0)), mark.key_fn(0))
    bare = mark.distance_fn(pictures, mark.key_fn(0))
    assert own.max() < 0.8 * bare.min() and not mark.is_bits


def test_calls_of_another_shape_are_refused():
    pictures = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(InputError, match=r"the encode call returned \(4, 1, 64, 64\)"):
        toy((1, 64, 64)).distance_fn(pictures, tree_ring.key(0))
    small = tree_ring.mark(lambda images: np.zeros((1, 4, 64, 64)), lambda latents: np.zeros((1, 8, 8, 3)))
    with pytest.raises(InputError, match=r"the decode call returned \(1, 8, 8, 3\)"):
        small.embed_fn(pictures, tree_ring.key(0))


def test_one_of_many_users_is_told_by_the_distance_to_the_others_keys():
    fields, key = latents_of(5), tree_ring.key(1)  # the approximation takes keys of the expected norm, as this one's
    own = tree_ring.chances(tree_ring.cells(tree_ring.injected(fields, key)), key)
    bare = tree_ring.chances(tree_ring.cells(fields), key)
    assert own.max() < 1e-6 and protocol.alone(own, 1_000) > 0.99 and protocol.alone(bare, 1_000) < 0.05
    assert protocol.alone([0.5, 1.0], 2) == 0.25

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from alignment.sketching import convolution, hashes, lsh
from tests.sketching.worked import dense

POINTS = np.array([(2, 1), (-3, 1), (0.5, -2), (0.1, 0.2)], np.float32)
P = jnp.array([[1, 0.5], [0, 1]])
CLOSE = jnp.array([[(2, 1), (-1, 2)], [(1.8, 1.2), (-1.2, 1.9)]])
FAR = jnp.array([[(2, 1), (1.8, 1.2)], [(-1, 2), (0.5, -2)]])


def test_winners_buckets_and_signs_are_those_worked_by_hand():
    np.testing.assert_array_equal(lsh.winners(POINTS, np.eye(2, dtype=np.float32)), [0, 2, 3, 1])
    table = lsh.table(POINTS, np.eye(2, dtype=np.float32))
    np.testing.assert_array_equal(table.bucket_N, [0, 0, 1, 1])
    np.testing.assert_array_equal(np.sign(table.value_N), [1, -1, -1, 1])


def test_the_hinge_of_close_and_far_pairs_is_that_worked_by_hand():
    np.testing.assert_allclose(lsh.cosines(CLOSE @ P), [0.997054, 0.987636], atol=1e-6)
    np.testing.assert_allclose(lsh.cosines(FAR @ P), [0.196116, -0.551257], atol=1e-6)
    assert float(lsh.hinge(P, CLOSE, FAR, margin=1.0)) == 0
    assert float(lsh.hinge(P, CLOSE, FAR, margin=2.0)) == pytest.approx(0.830084, abs=1e-6)


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    z = (centres[rng.integers(4, size=200)] + 0.2 * rng.normal(size=(200, 6))).astype(np.float32)
    return lsh.centred(z), rng


def test_rows_of_a_normalised_hash_are_orthonormal_and_it_projects(cloud):
    z, rng = cloud
    table = lsh.table(z, lsh.direction(6, 20, rng))
    r = dense(table)
    occupied = np.unique(table.bucket_N)
    np.testing.assert_allclose((r @ r.T)[np.ix_(occupied, occupied)], np.eye(len(occupied)), atol=1e-6)
    projection = r.T @ r
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-6)
    np.testing.assert_allclose(lsh.sketched(z, table), r @ z, atol=1e-5)


def test_without_the_root_a_hash_of_like_nodes_multiplies_a_bucket_s_mean_by_its_size(cloud):
    """R^T R is then no projection: what comes back grows with the bucket, which is why no setting offers it."""
    z, rng = cloud
    table = lsh.table(z, lsh.direction(6, 20, rng))
    size_N = np.bincount(table.bucket_N, minlength=table.width)[table.bucket_N]
    r = dense(table)
    plain = dense(hashes.Table(table.bucket_N, np.sign(table.value_N), table.width))
    np.testing.assert_allclose(plain.T @ plain, size_N[:, None] * (r.T @ r), atol=1e-4)
    assert size_N.max() > 3


def test_like_nodes_share_buckets_so_that_less_is_lost_than_by_random_hashes(cloud):
    z, rng = cloud
    rows = np.arange(100)
    like = lsh.table(z, lsh.direction(6, 20, rng))
    random = hashes.draw(200, 20, rng)
    assert lsh.reconstruction_error(z, like, rows) < 0.6 < 1.0 < lsh.reconstruction_error(z, random, rows)


def test_training_lowers_the_hinge_of_directions(cloud):
    z, rng = cloud
    before = lsh.direction(6, 20, rng)
    close, far = lsh.pairs(z, 256, np.random.default_rng(1))
    assert np.mean(lsh.cosines(jnp.asarray(close))) > 0.9 > np.mean(lsh.cosines(jnp.asarray(far)))
    after = lsh.train(before, z, np.random.default_rng(2), steps=50, learning_rate=1e-2, margin=2.0)
    hinges = [float(lsh.hinge(jnp.asarray(p), close, far, margin=2.0)) for p in (before, after)]
    assert hinges[1] < hinges[0]


def test_an_incremental_rehash_equals_a_full_rebuild(cloud):
    z, rng = cloud
    old = lsh.table(z, lsh.direction(6, 20, rng))
    gradient = rng.random(200)
    new, moved = lsh.rehashed(old, lsh.winners(z, lsh.direction(6, 20, rng)), gradient, 0.1)
    assert 0 < len(moved) <= 20
    assert gradient[moved].min() > 0.5  # those of the largest gradients
    np.testing.assert_allclose(
        lsh.moved_sketch(lsh.sketched(z, old), z, old, new, moved), lsh.sketched(z, new), rtol=1e-6, atol=1e-6
    )
    matrix = scipy.sparse.csr_matrix(scipy.sparse.random_array((200, 200), density=0.01, rng=rng))
    before = convolution.two_sided(matrix, [old, old], old).dense_CC
    touched = lsh.touched_buckets(matrix, [(old, new)], (old, new))
    before[touched] = convolution.rows_of(matrix, [new, new], new, touched)
    np.testing.assert_allclose(before, convolution.two_sided(matrix, [new, new], new).dense_CC, atol=1e-6)

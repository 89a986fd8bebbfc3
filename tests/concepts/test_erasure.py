"""LEACE: nothing linear is left of a concept, and no more is changed than that."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from alignment.concepts import erasure
from alignment.errors import InputError


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    z_N = rng.random(400) < 0.4
    x_ND = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    return x_ND + np.outer(z_N, rng.normal(size=6)), z_N.astype(float)


def test_no_linear_model_reads_the_concept_afterwards(vectors):
    x_ND, z_N = vectors
    erased_ND = erasure.fit(x_ND, z_N)(x_ND)
    assert np.abs((erased_ND - erased_ND.mean(axis=0)).T @ (z_N - z_N.mean())).max() < 1e-8
    assert LogisticRegression().fit(x_ND, z_N).score(x_ND, z_N) > 0.65
    assert LogisticRegression().fit(erased_ND, z_N).score(erased_ND, z_N) == pytest.approx(1 - z_N.mean())


def test_erasing_twice_changes_nothing_and_the_mean_stays(vectors):
    x_ND, z_N = vectors
    eraser = erasure.fit(x_ND, z_N)
    np.testing.assert_allclose(eraser(eraser(x_ND)), eraser(x_ND), atol=1e-9)
    np.testing.assert_allclose(eraser(x_ND).mean(axis=0), x_ND.mean(axis=0), atol=1e-9)


def test_of_one_concept_it_is_the_projection_written_out(vectors):
    """x - s (s' C^-1 (x - mean)) / (s' C^-1 s), with C = cov(x) and s = cov(x, z)."""
    x_ND, z_N = vectors
    centred_ND = x_ND - x_ND.mean(axis=0)
    cov_DD, s_D = centred_ND.T @ centred_ND / len(x_ND), centred_ND.T @ (z_N - z_N.mean()) / len(x_ND)
    solved_D = np.linalg.solve(cov_DD, s_D)
    wanted_ND = x_ND - np.outer(centred_ND @ solved_D, s_D) / (s_D @ solved_D)
    np.testing.assert_allclose(erasure.fit(x_ND, z_N)(x_ND), wanted_ND, atol=1e-8)


def test_a_direction_that_is_not_there_does_no_harm(vectors):
    x_ND, z_N = vectors
    wide_ND = np.concatenate([x_ND, x_ND[:, :2], np.zeros((400, 1))], axis=1)
    erased_ND = erasure.fit(wide_ND, z_N)(wide_ND)
    assert np.abs((erased_ND - erased_ND.mean(axis=0)).T @ (z_N - z_N.mean())).max() < 1e-6
    with pytest.raises(InputError, match="each vector has its own"):
        erasure.fit(wide_ND, z_N[:3])

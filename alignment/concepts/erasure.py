"""LEACE: the smallest change of vectors after which no linear model reads a concept from them.

Belrose et al. 2023 (arXiv:2306.03819), Theorem 4.3.

Dimensions: N texts, D width, Z numbers that say which concepts a text has.
"""

import dataclasses

import numpy as np

from alignment.errors import InputError


@dataclasses.dataclass(frozen=True)
class Eraser:
    """x -> x - (x - mean) P^T, with P the oblique projection on what covaries with the concept.

    Attributes:
        projection_DD: of the rank of the concept.
    """

    mean_D: np.ndarray
    projection_DD: np.ndarray

    def __call__(self, x_ND: np.ndarray) -> np.ndarray:
        return x_ND - (x_ND - self.mean_D) @ self.projection_DD.T


def fit(x_ND: np.ndarray, z_NZ: np.ndarray, *, tolerance: float = 1e-8) -> Eraser:
    """The eraser of these vectors and concepts.

    With W = cov(x)^(-1/2) it is W^+ Q W, where Q projects on the columns of W cov(x, z).

    Args:
        tolerance: share of the largest eigenvalue of cov(x) below which a direction counts as absent: dividing by it
            would blow up rounding errors.

    Raises:
        InputError: the numbers of rows differ.
    """
    x_ND, z_NZ = np.asarray(x_ND, np.float64), np.asarray(z_NZ, np.float64).reshape(len(z_NZ), -1)
    if len(x_ND) != len(z_NZ):
        raise InputError(f"{len(x_ND)} vectors and {len(z_NZ)} concepts; each vector has its own")
    mean_D = x_ND.mean(axis=0)
    centred_ND = x_ND - mean_D
    covariance_DD = centred_ND.T @ centred_ND / len(x_ND)
    cross_DZ = centred_ND.T @ (z_NZ - z_NZ.mean(axis=0)) / len(x_ND)
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    is_there_D = values_D > tolerance * max(values_D[-1], np.finfo(float).tiny)
    root_D = np.sqrt(np.where(is_there_D, values_D, 0.0))
    inverse_D = np.where(is_there_D, 1.0 / np.where(is_there_D, root_D, 1.0), 0.0)
    whiten_DD = (vectors_DD * inverse_D) @ vectors_DD.T
    colour_DD = (vectors_DD * root_D) @ vectors_DD.T
    basis_DR, sizes_R, _ = np.linalg.svd(whiten_DD @ cross_DZ, full_matrices=False)
    basis_DR = basis_DR[:, sizes_R > 1e-10]
    return Eraser(mean_D, colour_DD @ basis_DR @ basis_DR.T @ whiten_DD)

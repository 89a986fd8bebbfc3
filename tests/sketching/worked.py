"""The lossless network that several tests share: three nodes on a path, nine rows of a sketch, two orders."""

import numpy as np

from alignment.sketching.hashes import Table

PATH_NN = np.array([[0.5, 6**-0.5, 0.0], [6**-0.5, 1 / 3, 6**-0.5], [0.0, 6**-0.5, 0.5]])  # .408248 = 1 / sqrt 6
X_ND = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
W1, W2 = np.array([[1.0, -1.0], [0.5, 2.0]]), np.array([[0.2, -0.1], [0.1, 0.3]])
B1, B2 = np.array([0.1, -0.2]), np.array([0.0, 0.05])
A = (1.0, 0.5)
WIDTH = 9
TABLES = [  # h_1(i) = i and h_2(i) = 3 i: every pair of nodes has a bucket of its own
    [Table(np.array([0, 1, 2], np.int32), np.array([1.0, -1.0, 1.0]), WIDTH)],
    [Table(np.array([0, 3, 6], np.int32), np.array([1.0, 1.0, -1.0]), WIDTH)],
]


def dense(table: Table) -> np.ndarray:
    """R as a matrix."""
    out = np.zeros((table.width, len(table.bucket_N)))
    out[table.bucket_N, np.arange(len(table.bucket_N))] = table.value_N
    return out

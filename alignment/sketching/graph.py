"""A graph as its sketches: what is computed once on the host, before training touches nothing of the graph's size.

Dimensions: N nodes, M independent sets of sketches, L layers, K orders, Q blocks, C rows of a sketch, D features, T
entries that stay of a row, B requested nodes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from alignment.models import gnn
from alignment.sketching import convolution, hashes, lsh
from alignment.sketching.hashes import Table
from alignment.sketching.layers import Sketched

Tables = list[list[list[Table]]]  # by layer, order and block


def build(
    x_ND: Any,
    matrices_L: Sequence[Sequence[Any]],
    tables_M: Sequence[Tables],
    *,
    top_k: int | None,
    stays_sparse: bool = False,
) -> tuple[Sketched, tuple[int, ...]]:
    """Sketches of features and convolutions, and for each layer which of the convolutions it uses.

    Args:
        x_ND: dense, or CSR.
        matrices_L: blocks of each layer's convolution as CSR; layers that share the very same list share its sketches
            where they share their hashes too.
        tables_M: hashes of each set, for all layers and the output.
        top_k: see `convolution.two_sided`.
        stays_sparse: of sparse features, keep the sketches by their entries where that is smaller; `rehashed` needs
            them dense.
    """
    num_layers = len(matrices_L)
    first_M = [tables[0] for tables in tables_M]
    features: Any = _sparse_features(x_ND, first_M) if stays_sparse and scipy.sparse.issparse(x_ND) else None
    if features is None:
        features = np.stack([[[lsh.sketched(x_ND, table) for table in row] for row in rows] for rows in first_M])
    ones = [np.stack([_ones(tables[layer]) for tables in tables_M]) for layer in range(num_layers + 1)]
    keys: dict[tuple, int] = {}
    convolutions: list[dict[str, np.ndarray]] = []
    uses = []
    for layer, matrices in enumerate(matrices_L):
        # The read-out needs one block of the output's hashes.
        blocks = 1 if layer == num_layers - 1 else len(matrices)
        sides = [(tables[layer], [row[:blocks] for row in tables[layer + 1]]) for tables in tables_M]
        key = (id(matrices), *(id(table) for side in sides for part in side for row in part for table in row))
        if key not in keys:
            keys[key] = len(convolutions)
            convolutions.append(_stacked([_convolution(matrices, *side, top_k=top_k) for side in sides]))
        uses.append(keys[key])
    return Sketched(features, ones, convolutions), tuple(uses)


def _sparse_features(x_ND: Any, first_M: Sequence[Sequence[Sequence[Table]]]) -> gnn.Entries | None:
    """Sketches of sparse features by their entries, [M,K,Q,E], filled up with zeros; None where they fill the rows."""
    sums_MKQ = [[[scipy.sparse.csr_matrix(lsh.sums(x_ND, table)) for table in row] for row in rows] for rows in first_M]
    flat = [matrix for rows in sums_MKQ for row in rows for matrix in row]
    most, (width, num_features) = max(matrix.nnz for matrix in flat), flat[0].shape
    if 3 * most >= width * num_features:  # a row, a column and a value for each
        return None
    row_E, column_E, value_E = (np.zeros((len(flat), most), kind) for kind in (np.int32, np.int32, np.float32))
    row_E += width - 1  # filled-up entries come last, because rows are sorted
    for number, matrix in enumerate(flat):
        row_E[number, : matrix.nnz] = np.repeat(np.arange(width), np.diff(matrix.indptr))
        column_E[number, : matrix.nnz], value_E[number, : matrix.nnz] = matrix.indices, matrix.data
    shape = (len(sums_MKQ), len(sums_MKQ[0]), len(sums_MKQ[0][0]), most)
    arrays: list[Any] = [array.reshape(shape) for array in (row_E, column_E, value_E)]
    return gnn.Entries(arrays[0], arrays[1], arrays[2], width)


def _ones(tables: Sequence[Sequence[Table]]) -> np.ndarray:
    """R 1 of every hash, [K,Q,C]: what a bias is multiplied with."""
    sums = [[np.bincount(t.bucket_N, weights=t.value_N, minlength=t.width) for t in row] for row in tables]
    return np.array(sums, np.float32)


def _convolution(
    matrices: Sequence[Any], right: Sequence[Sequence[Table]], left: Sequence[Sequence[Table]], *, top_k: int | None
) -> dict[str, np.ndarray]:
    """[K,K',Q',C,...] for one set."""
    matrix = scipy.sparse.csr_matrix(scipy.sparse.hstack(matrices)) if len(matrices) > 1 else matrices[0]
    columns = [hashes.concatenated(row) if len(row) > 1 else row[0] for row in right]
    parts = [
        [[convolution.two_sided(matrix, columns[: k + 1], table, top_k=top_k) for table in row] for row in left]
        for k in range(len(columns))
    ]
    names = {"dense": "dense_CC"} if top_k is None else {"index": "index_CT", "value": "value_CT"}
    return {
        name: np.array([[[getattr(p, field) for p in row] for row in rows] for rows in parts])
        for name, field in names.items()
    }


def _stacked(sets: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([one[name] for one in sets]) for name in sets[0]}


def places(tables_M: Sequence[Tables], nodes_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bucket int32 and value of these nodes under the output's hashes, each [B,M,K]: what a read-out needs."""
    bucket = [[row[0].bucket_N[nodes_B] for row in tables[-1]] for tables in tables_M]
    value = [[row[0].value_N[nodes_B] for row in tables[-1]] for tables in tables_M]
    return np.moveaxis(np.array(bucket, np.int32), -1, 0), np.moveaxis(np.array(value, np.float32), -1, 0)


def rehashed(
    old: Sketched,
    x_ND: Any,
    matrices_L: Sequence[Sequence[Any]],
    old_M: Sequence[Tables],
    new_M: Sequence[Tables],
    *,
    top_k: int | None,
) -> Sketched:
    """The sketches under new hashes from those under old ones: only what the change touches is computed again.

    Convolutions come in the order in which `build` meets them, so that `uses` stays as it was.
    """
    features = np.array(old.features)
    for m, (before, after) in enumerate(zip(old_M, new_M)):
        for k, rows in enumerate(zip(before[0], after[0])):
            for q, (was, now) in enumerate(zip(*rows)):
                moved_M = np.flatnonzero((was.bucket_N != now.bucket_N) | (was.value_N * now.value_N < 0))
                features[m, k, q] = lsh.moved_sketch(features[m, k, q], x_ND, was, now, moved_M)
    num_layers = len(matrices_L)
    ones = [np.stack([_ones(tables[layer]) for tables in new_M]) for layer in range(num_layers + 1)]
    convolutions: list[dict[str, np.ndarray]] = []
    keys: set[tuple] = set()
    for layer, matrices in enumerate(matrices_L):
        blocks = 1 if layer == num_layers - 1 else len(matrices)
        sides = [
            [(tables[layer], [row[:blocks] for row in tables[layer + 1]]) for tables in tables_M]
            for tables_M in (old_M, new_M)
        ]
        key = (id(matrices), *(id(table) for side in sides[1] for part in side for row in part for table in row))
        if key in keys:
            continue
        keys.add(key)
        was_M = old.convolutions[len(convolutions)]
        sets = [
            _reconvolved({name: np.array(array[m]) for name, array in was_M.items()}, matrices, *both, top_k=top_k)
            for m, both in enumerate(zip(*sides))
        ]
        convolutions.append(_stacked(sets))
    return Sketched(features, ones, convolutions)


def _reconvolved(
    was: dict[str, np.ndarray], matrices: Sequence[Any], old: Any, new: Any, *, top_k: int | None
) -> dict[str, np.ndarray]:
    """`was` of one set with the rows changed that differ; `old` and `new` are (right, left) hashes."""
    matrix = scipy.sparse.csr_matrix(scipy.sparse.hstack(matrices)) if len(matrices) > 1 else matrices[0]
    sides = [[hashes.concatenated(row) if len(row) > 1 else row[0] for row in right] for right, _ in (old, new)]
    for k in range(len(sides[0])):
        for kk, (lefts_old, lefts_new) in enumerate(zip(old[1], new[1])):
            for q, left in enumerate(zip(lefts_old, lefts_new)):
                touched = lsh.touched_buckets(matrix, list(zip(sides[0][: k + 1], sides[1][: k + 1])), left)
                if not len(touched):
                    continue
                rows = convolution.rows_of(matrix, sides[1][: k + 1], left[1], touched)
                if top_k is None:
                    was["dense"][k, kk, q, touched] = rows
                else:
                    was["index"][k, kk, q, touched], was["value"][k, kk, q, touched] = convolution.largest(rows, top_k)
    return was

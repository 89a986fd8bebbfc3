"""Two-sided sketches of a convolution matrix, made on the host before training, a block of rows at a time.

For hashes of layer l on the right and of layer l + 1 on the left, order k and next order k',
S^(k,k') = R_k'^(l+1) TS_k(C^T)^T, [width, width]: row b sums value(i) TS_k(row i of C) over the nodes i of bucket b. A
row of C with D entries has D^k terms, which are expanded as they are; a row with so many entries that a Fourier
transform is cheaper (a hub) is transformed. Nothing larger than a block of rows is held.

Dimensions: N nodes, C rows of a sketch, T terms.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse

from alignment.errors import InputError
from alignment.sketching.hashes import Table

MAX_TERMS = 2_000_000  # of a block, about 40 bytes each while they are expanded
MAX_CELLS = 4_000_000  # of a block's rows of the result


@dataclasses.dataclass(frozen=True, eq=False)
class TwoSided:
    """A sketch of a convolution: all of it, or the largest entries of each row.

    Either `dense_CC`, or `index_CT` int32 and `value_CT`, of which row b of the sketch has `value` at columns `index`.
    """

    dense_CC: np.ndarray | None = None
    index_CT: np.ndarray | None = None
    value_CT: np.ndarray | None = None


def two_sided(matrix: Any, right: Sequence[Table], left: Table, *, top_k: int | None = None) -> TwoSided:
    """R_left TS_k(C^T)^T with k the number of right hashes.

    Args:
        matrix: C as scipy's CSR, [N, N], or [N, Q N] for Q blocks beside one another.
        right: hashes of its columns, one for each order up to k.
        left: hash of its rows.
        top_k: entries that stay in each row, the largest by size; None: all. The released program ranks signed values,
            so that it loses every negative one.

    Raises:
        InputError: hashes of another number of rows or columns.
    """
    matrix = scipy.sparse.csr_matrix(matrix)
    for table, number, what in [(left, matrix.shape[0], "rows")] + [(r, matrix.shape[1], "columns") for r in right]:
        if len(table.bucket_N) != number:
            raise InputError(f"a hash of {len(table.bucket_N):,} nodes for a matrix of {number:,} {what}")
    parts = [block if top_k is None else largest(block, top_k) for _, block in _blocks(matrix, right, left)]
    if top_k is None:
        return TwoSided(dense_CC=np.concatenate(parts))
    return TwoSided(
        index_CT=np.concatenate([index for index, _ in parts]), value_CT=np.concatenate([value for _, value in parts])
    )


def rows_of(matrix: Any, right: Sequence[Table], left: Table, buckets: np.ndarray) -> np.ndarray:
    """These rows of `two_sided` alone, which is what a change of some hashes touches."""
    is_in_N = np.isin(left.bucket_N, buckets)
    place_C = np.zeros(left.width, np.int64)
    place_C[buckets] = np.arange(len(buckets))
    rows_N = np.flatnonzero(is_in_N)
    part = Table(place_C[left.bucket_N[rows_N]].astype(np.int32), left.value_N[rows_N], len(buckets))
    blocks = list(_blocks(scipy.sparse.csr_matrix(matrix)[rows_N], right, part))
    return np.concatenate([block for _, block in blocks]) if blocks else np.zeros((0, right[0].width), np.float32)


def _blocks(matrix: Any, right: Sequence[Table], left: Table) -> Iterator[tuple[int, np.ndarray]]:
    """(first bucket, dense rows of the sketch) for blocks of buckets in order."""
    width, height = right[0].width, left.width
    order_N = np.argsort(left.bucket_N, kind="stable")
    bounds = np.searchsorted(left.bucket_N[order_N], np.arange(height + 1))
    terms_N = num_terms(np.diff(matrix.indptr), len(right), width)
    before_N = np.concatenate([[0.0], np.cumsum(terms_N[order_N])])
    first = 0
    while first < height:
        last = first + 1
        while (
            last < height
            and (last + 1 - first) * width <= MAX_CELLS
            and before_N[bounds[last + 1]] - before_N[bounds[first]] <= MAX_TERMS
        ):
            last += 1
        out = np.zeros((last - first, width))
        nodes = order_N[bounds[first] : bounds[last]]
        for rows in _pieces(nodes, terms_N):
            _add(out, matrix[rows], right, left.bucket_N[rows] - first, left.value_N[rows])
        yield first, out.astype(np.float32)
        first = last


def _pieces(nodes: np.ndarray, terms_N: np.ndarray) -> Iterator[np.ndarray]:
    """Nodes in runs of about MAX_TERMS terms, so that a bucket of any size fits the memory."""
    if len(nodes):
        number = np.cumsum(terms_N[nodes]) // MAX_TERMS
        yield from np.split(nodes, np.flatnonzero(np.diff(number)) + 1)


def _add(out: np.ndarray, rows: Any, right: Sequence[Table], bucket_R: np.ndarray, value_R: np.ndarray) -> None:
    """Add value(i) TS_k(row i) to row bucket(i) of `out`."""
    width = right[0].width
    is_hub_R = _is_hub(np.diff(rows.indptr), len(right), width)
    if is_hub_R.any():
        sketches = _transformed(rows[is_hub_R], right)
        np.add.at(out, bucket_R[is_hub_R], value_R[is_hub_R, None] * sketches)
        rows, bucket_R, value_R = rows[~is_hub_R], bucket_R[~is_hub_R], value_R[~is_hub_R]
    row_T, column_T, value_T = terms(rows, right)
    place_T = bucket_R[row_T].astype(np.int64) * width + column_T
    out += np.bincount(place_T, weights=value_T * value_R[row_T], minlength=out.size).reshape(out.shape)


def terms(rows: Any, right: Sequence[Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TS_k of sparse rows, k the number of hashes, as (row, bucket, value) terms, exact and not yet summed."""
    width, degree_R = right[0].width, np.diff(rows.indptr)
    row_T = np.repeat(np.arange(rows.shape[0], dtype=np.int32), degree_R)
    bucket_T = right[0].bucket_N[rows.indices]
    value_T = rows.data * right[0].value_N[rows.indices]
    for table in right[1:]:
        bucket_E, value_E = table.bucket_N[rows.indices], rows.data * table.value_N[rows.indices]
        # Every term of a row meets every entry of that row.
        number_T = degree_R[row_T]
        start_T = np.cumsum(number_T) - number_T
        entry = np.arange(int(number_T.sum())) + np.repeat(rows.indptr[row_T] - start_T, number_T)
        bucket_T = np.repeat(bucket_T, number_T) + bucket_E[entry]
        bucket_T -= width * (bucket_T >= width)
        value_T = np.repeat(value_T, number_T) * value_E[entry]
        row_T = np.repeat(row_T, number_T)
    return row_T, bucket_T, value_T


def _transformed(rows: Any, right: Sequence[Table]) -> np.ndarray:
    """TS_k of rows by Fourier transforms, [rows, C]."""
    width = right[0].width
    product = None
    for table in right:
        hashed = scipy.sparse.csr_matrix(
            (rows.data * table.value_N[rows.indices], table.bucket_N[rows.indices], rows.indptr),
            shape=(rows.shape[0], width),
        )
        spectrum = scipy.fft.rfft(hashed.toarray(), axis=1)
        product = spectrum if product is None else product * spectrum
    return scipy.fft.irfft(product, n=width, axis=1)


def _is_hub(degree_R: np.ndarray, order: int, width: int) -> np.ndarray:
    """Rows whose terms cost more than `order` transforms; 4 is about what a term costs beside a step of them."""
    return 4.0 * degree_R.astype(np.float64) ** order > (order + 1) * width * math.log2(width) + 4 * width


def num_terms(degree_N: np.ndarray, order: int, width: int) -> np.ndarray:
    """Terms that each row is expanded to; of a hub, the width times its transforms."""
    plain_N = np.maximum(degree_N.astype(np.float64) ** order, 1.0)
    return np.where(_is_hub(degree_N, order, width), width * (order + 1.0), plain_N)


def largest(block_RC: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns int32 and values of the top_k entries of each row, the largest by size."""
    top_k = min(top_k, block_RC.shape[1])
    index = np.argpartition(-np.abs(block_RC), top_k - 1, axis=1)[:, :top_k].astype(np.int32)
    return index, np.take_along_axis(block_RC, index, axis=1)


def num_bytes(
    *, width: int, num_layers: int, order: int, blocks: int, sets: int, top_k: int | None, is_shared: bool
) -> int:
    """Bytes of all two-sided sketches that `graph.build` makes of a network.

    Args:
        blocks: Q of every layer but the last, which has one.
        is_shared: layers of as many blocks use one convolution, because they share their matrices and their hashes.
    """
    entries = width * (width * 4 if top_k is None else min(top_k, width) * 8)
    blocks_L = [blocks] * (num_layers - 1) + [1]
    return sets * order**2 * entries * sum(set(blocks_L) if is_shared else blocks_L)

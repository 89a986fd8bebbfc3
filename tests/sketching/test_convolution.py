import numpy as np
import pytest
import scipy.sparse

from alignment.errors import InputError
from alignment.sketching import convolution, hashes
from tests.sketching.worked import dense


def slow_tensor(row, tables):
    """TS_k of one row by its definition: every tuple of indices to the sum of its hashes."""
    out = np.zeros(tables[0].width)
    for index in np.ndindex(*[len(row)] * len(tables)):
        bucket = sum(int(t.bucket_N[i]) for t, i in zip(tables, index)) % tables[0].width
        out[bucket] += np.prod([row[i] * t.value_N[i] for t, i in zip(tables, index)])
    return out


@pytest.fixture
def graph():
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.random_array((12, 12), density=0.3, rng=rng).tolil()
    matrix[3] = rng.normal(size=12)  # a hub
    tables = [hashes.draw(12, 5, np.random.default_rng(k)) for k in range(4)]
    return scipy.sparse.csr_matrix(matrix), tables


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("max_terms", [10**6, 7])
def test_a_two_sided_sketch_is_its_definition_in_blocks_of_any_size(graph, order, max_terms, monkeypatch):
    monkeypatch.setattr(convolution, "MAX_TERMS", max_terms)
    monkeypatch.setattr(convolution, "MAX_CELLS", 10)
    matrix, tables = graph
    right, left = tables[:order], tables[3]
    expected = dense(left) @ np.stack([slow_tensor(row, right) for row in matrix.toarray()])
    result = convolution.two_sided(matrix, right, left).dense_CC
    np.testing.assert_allclose(result, expected, atol=1e-5)
    some = np.array([0, 3, 4])
    np.testing.assert_allclose(convolution.rows_of(matrix, right, left, some), expected[some], atol=1e-5)


@pytest.mark.parametrize("is_hub", [True, False])
def test_expanded_rows_and_transformed_rows_agree(graph, is_hub, monkeypatch):
    matrix, tables = graph
    monkeypatch.setattr(convolution, "_is_hub", lambda degree, order, width: np.full(len(degree), is_hub))
    result = convolution.two_sided(matrix, tables[:2], tables[2]).dense_CC
    expected = dense(tables[2]) @ np.stack([slow_tensor(row, tables[:2]) for row in matrix.toarray()])
    np.testing.assert_allclose(result, expected, atol=1e-5)


BLOCK = np.array([[4, -3, 1, 0.5], [0, -2, 1.5, 1], [2, 2, -2, 0.1]])


def rebuilt(index, value):
    out = np.zeros_like(BLOCK)
    np.put_along_axis(out, index, value, axis=1)
    return out


@pytest.mark.parametrize(("top_k", "expected"), [(1, 0.68749), (2, 0.37088), (3, 0.07558)])
def test_the_largest_entries_by_size_leave_the_worked_error(top_k, expected):
    error = np.linalg.norm(BLOCK - rebuilt(*convolution.largest(BLOCK, top_k))) / np.linalg.norm(BLOCK)
    assert error == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("top_k", "expected"), [(1, 0.71491), (2, 0.61584), (3, 0.61118)])
def test_a_ranking_of_signed_values_loses_more(top_k, expected):
    index = np.argsort(-BLOCK, axis=1, kind="stable")[:, :top_k]
    error = np.linalg.norm(BLOCK - rebuilt(index, np.take_along_axis(BLOCK, index, axis=1))) / np.linalg.norm(BLOCK)
    assert error == pytest.approx(expected, abs=1e-5)


def test_a_sparsified_sketch_has_the_largest_entries_of_the_whole_one(graph):
    matrix, tables = graph
    whole = convolution.two_sided(matrix, tables[:1], tables[1]).dense_CC
    part = convolution.two_sided(matrix, tables[:1], tables[1], top_k=2)
    np.testing.assert_allclose(np.take_along_axis(whole, part.index_CT, axis=1), part.value_CT)
    assert np.all(np.sort(np.abs(part.value_CT), axis=1) == np.sort(np.abs(whole), axis=1)[:, -2:])


def test_more_entries_than_columns_are_all_of_them(graph):
    matrix, tables = graph
    assert convolution.two_sided(matrix, tables[:1], tables[1], top_k=99).value_CT.shape == (5, 5)


def test_hashes_of_another_graph_are_refused(graph):
    matrix, tables = graph
    with pytest.raises(InputError, match="a hash of 7 nodes for a matrix of 12 rows"):
        convolution.two_sided(matrix, tables[:1], hashes.draw(7, 5, np.random.default_rng(0)))

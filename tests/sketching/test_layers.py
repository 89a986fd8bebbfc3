import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from alignment.models import gnn
from alignment.sketching import convolution, layers
from tests.sketching.worked import B1, B2, PATH_NN, TABLES, W1, W2, WIDTH, X_ND, A, dense

LAYERS = [{"kernel": W1[None]}, {"kernel": W2[None]}]
BIASED = [{"kernel": W1[None], "bias": B1}, {"kernel": W2[None], "bias": B2}]
COEFFICIENTS = np.array([(0.0, *A)] * 2)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def sketched_path():
    matrix = scipy.sparse.csr_matrix(PATH_NN)
    tables = [row[0] for row in TABLES]
    # in float64, so that nothing but the mathematics is compared
    dense_KKCC = np.stack(
        [
            [dense(left) @ np.stack([_row(matrix[i], tables[: k + 1]) for i in range(3)]) for left in tables]
            for k in range(2)
        ]
    )
    features = np.stack([dense(t) @ X_ND for t in tables])
    ones = np.stack([dense(t) @ np.ones(3) for t in tables])[None, :, None]
    return layers.Sketched(
        jnp.asarray(features)[None, :, None],
        [jnp.asarray(ones)] * 3,
        [{"dense": jnp.asarray(dense_KKCC)[None, :, :, None]}],
    )


def _row(row, tables):
    out = np.zeros(WIDTH)
    _, bucket, value = convolution.terms(row, tables)
    np.add.at(out, bucket, value)
    return out


def full(some_layers, coefficients=COEFFICIENTS):
    row, column = np.nonzero(PATH_NN)
    block = gnn.Entries(jnp.asarray(row), jnp.asarray(column), jnp.asarray(PATH_NN[row, column]), 3)
    return gnn.polynomial(some_layers, coefficients, jnp.asarray(X_ND), gnn.same_blocks([block]))


def test_the_full_polynomial_network_gives_the_worked_numbers(double):
    first = [[1.320706, 1.774830], [0.681888, 4.460714], [0.170770, 8.040816]]
    np.testing.assert_allclose(full(LAYERS[:1]), first, atol=2e-6)
    second = [[0.563751, 0.976922], [0.973444, 2.788635], [0.872661, 3.188517]]
    np.testing.assert_allclose(full(LAYERS), second, atol=2e-6)
    biased = [[0.542963, 0.790595], [0.917770, 2.377932], [0.808319, 2.758685]]
    np.testing.assert_allclose(full(BIASED), biased, atol=2e-6)


@pytest.mark.parametrize("some_layers", [LAYERS, BIASED])
def test_a_lossless_sketch_is_the_sketch_of_the_full_output(some_layers, double):
    out_KCD = layers.forward(some_layers, COEFFICIENTS, sketched_path(), (0, 0))[0]
    expected = np.stack([dense(row[0]) @ np.asarray(full(some_layers)) for row in TABLES])
    np.testing.assert_allclose(out_KCD, expected, atol=1e-12)


def test_a_bias_on_every_row_of_the_sketch_would_be_wrong(double):
    path = sketched_path()
    wrong = path._replace(ones=[jnp.ones_like(o) for o in path.ones])
    out_KCD = layers.forward(BIASED, COEFFICIENTS, wrong, (0, 0))[0]
    expected = np.stack([dense(row[0]) @ np.asarray(full(BIASED)) for row in TABLES])
    assert np.max(np.abs(out_KCD - expected)) == pytest.approx(0.419, abs=0.001)


def test_a_constant_term_is_that_of_the_full_network(double):
    coefficients = np.array([(0.3, *A), (-0.2, *A)])
    out_KCD = layers.forward(BIASED, coefficients, sketched_path(), (0, 0))[0]
    expected = np.stack([dense(row[0]) @ np.asarray(full(BIASED, coefficients)) for row in TABLES])
    np.testing.assert_allclose(out_KCD, expected, atol=1e-12)


def test_gradients_of_a_lossless_sketch_are_those_of_the_full_network(double):
    path = sketched_path()
    bucket, value = (
        np.stack([getattr(row[0], name) for row in TABLES], axis=1)[:, None] for name in ("bucket_N", "value_N")
    )
    weights = np.array([[1.0, -2.0], [0.5, 0.3], [-1.0, 1.5]])

    def of_sketch(some_layers, coefficients):
        out = layers.forward(some_layers, coefficients, path, (0, 0))
        return jnp.sum(weights * layers.readout(out, bucket, value, how="mean") ** 2)

    def of_full(some_layers, coefficients):
        return jnp.sum(weights * full(some_layers, coefficients) ** 2)

    for ours, theirs in zip(
        jax.tree.leaves(jax.grad(of_sketch, (0, 1))(BIASED, COEFFICIENTS)),
        jax.tree.leaves(jax.grad(of_full, (0, 1))(BIASED, COEFFICIENTS)),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_kept_entries_alone_give_what_the_dense_sketch_gives():
    path = sketched_path()
    dense_CC = np.asarray(path.convolutions[0]["dense"])
    index, value = convolution.largest(dense_CC.reshape(-1, WIDTH), WIDTH)
    shape = (*dense_CC.shape[:-1], WIDTH)
    sparse = path._replace(convolutions=[{"index": index.reshape(shape), "value": value.reshape(shape)}])
    both = [layers.forward(BIASED, COEFFICIENTS, p, (0, 0)) for p in (path, sparse)]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_a_readout_takes_the_median_of_all_sets_and_orders():
    out = jnp.arange(2 * 2 * 3 * 1, dtype=jnp.float32).reshape(2, 2, 3, 1)
    bucket = np.zeros((1, 2, 2), np.int32)
    value = np.ones((1, 2, 2), np.float32)
    assert float(layers.readout(out, bucket, value)[0, 0]) == np.median([0, 3, 6, 9])
    assert float(layers.readout(out, bucket, value, how="mean")[0, 0]) == 4.5


def test_dimensions_names_sizes_inside_nested_programs():
    def fn(x):
        return jax.lax.scan(lambda c, _: (c + jnp.ones((7, 1)).sum(), None), x, None, length=3)[0]

    assert 7 in layers.dimensions(fn, 1.0) and 11 not in layers.dimensions(fn, 1.0)

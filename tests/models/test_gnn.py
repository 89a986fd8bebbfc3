import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from alignment.errors import InputError
from alignment.models import gnn


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((9, 9)) < 0.4, 1)
    upper[:, 8] = False  # node 8 is isolated
    adjacency = scipy.sparse.csr_matrix((upper | upper.T).astype(np.float32))
    return adjacency, rng.normal(size=(9, 5)).astype(np.float32)


def test_the_convolutions_are_their_definitions_and_isolated_nodes_are_legal(graph):
    adjacency, _ = graph
    a = adjacency.toarray()
    looped = a + np.eye(9)
    degree = looped.sum(axis=1)
    np.testing.assert_allclose(
        gnn.normalised(adjacency).toarray(), looped / np.sqrt(np.outer(degree, degree)), atol=1e-6
    )
    identity, mean = gnn.convolutions("sage", adjacency)
    np.testing.assert_allclose(identity.toarray(), np.eye(9))
    np.testing.assert_allclose(mean.toarray().sum(axis=1), [1] * 8 + [0], atol=1e-6)


def slow(params, x, matrices, network):
    """ReLU networks with dense matrices, a layer at a time."""
    for number, layer in enumerate(params):
        if "kernel" not in layer:
            x = matrices[0] @ x
            continue
        x = sum(m @ x @ np.asarray(k) for m, k in zip(matrices, layer["kernel"])) + np.asarray(layer["bias"])
        if number + 1 < len(params) and network != "sgc":
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("network", ["gcn", "sage", "sgc"])
def test_the_usual_networks_are_their_definitions_for_dense_and_sparse_features(network, graph):
    adjacency, x = graph
    x = np.where(np.abs(x) > 1, x, 0).astype(np.float32)
    params = gnn.init(jax.random.PRNGKey(0), network, (5, 4, 3), order=1)["layers"]
    params[0]["bias"] = jnp.arange(params[0]["bias"].size, dtype=jnp.float32)
    matrices = gnn.convolutions(network, adjacency)
    blocks = gnn.same_blocks([gnn.entries(m) for m in matrices])
    expected = slow(params, x, [m.toarray() for m in matrices], network)
    np.testing.assert_allclose(gnn.rectified(params, jnp.asarray(x), blocks), expected, atol=1e-5)
    sparse = gnn.entries(scipy.sparse.csr_matrix(x))
    np.testing.assert_allclose(gnn.rectified(params, sparse, blocks), expected, atol=1e-5)


def test_attention_is_a_softmax_over_neighbours_averaged_over_heads(graph):
    adjacency, x = graph
    params = gnn.init(jax.random.PRNGKey(0), "gat", (5, 3), order=1, heads=2)["layers"]
    pattern = gnn.entries(gnn.convolutions("gat", adjacency)[0])
    heads = gnn.attention(params[0], jnp.asarray(x), pattern)
    out = gnn.rectified(params, jnp.asarray(x), gnn.attended(pattern))
    looped, expected = adjacency.toarray() + np.eye(9), 0
    for number, head in enumerate(heads):
        h = x @ np.asarray(params[0]["kernel"][number])
        score = (h @ params[0]["target"][number])[:, None] + (h @ params[0]["source"][number])[None]
        weight = np.where(looped, np.exp(np.where(score > 0, score, 0.2 * score)), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        expected = expected + weight @ h / 2
        np.testing.assert_allclose(head.value_E.sum(), 9 / 2, atol=1e-5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("network", ["gcn", "sage", "sgc"])
def test_inference_on_the_host_is_the_polynomial_network(network, graph):
    adjacency, x = graph
    params = gnn.init(jax.random.PRNGKey(1), network, (5, 4, 4, 3), order=2)
    matrices = gnn.convolutions(network, adjacency)
    coefficients = np.array([(0.1, 1.0, 0.3), (0.0, 0.7, -0.2), (0.2, 1.0, 0.0)], np.float32)
    blocks = gnn.same_blocks([gnn.entries(m) for m in matrices])
    ours = gnn.polynomial(params["layers"], coefficients, jnp.asarray(x), blocks, is_residual=True)
    host = gnn.infer(params["layers"], coefficients, x, [matrices] * 3, is_residual=True)
    np.testing.assert_allclose(ours, host, atol=1e-4)
    sparse = gnn.infer(params["layers"], coefficients, scipy.sparse.csr_matrix(x), [matrices] * 3)
    assert sparse.shape == (9, 3)


def test_dropout_keeps_the_mean_and_leaves_zeros_of_sparse_features(graph):
    adjacency, x = graph
    params = gnn.init(jax.random.PRNGKey(0), "gcn", (5, 3), order=1)["layers"]
    blocks = gnn.same_blocks([gnn.entries(gnn.normalised(adjacency))])
    keys = jax.random.split(jax.random.PRNGKey(0), 2_000)
    sparse = gnn.entries(scipy.sparse.csr_matrix(x))
    some = jax.jit(jax.vmap(lambda key: gnn.rectified(params, sparse, blocks, rng=key, dropout=0.5)))(keys)
    np.testing.assert_allclose(some.mean(axis=0), gnn.rectified(params, sparse, blocks), atol=0.15)
    assert float(some.std(axis=0).max()) > 0.1


def test_an_unknown_network_is_refused(graph):
    with pytest.raises(InputError, match="network='gnc' is not one of"):
        gnn.convolutions("gnc", graph[0])

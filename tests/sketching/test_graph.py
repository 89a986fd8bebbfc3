import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from alignment.models import gnn
from alignment.sketching import convolution, graph, hashes, layers, lsh
from tests.sketching.worked import dense


def lossless_tables(num_nodes, num_layers, blocks):
    """h_p(i) = place i times the number of columns to the power p - 1, so that no two tuples meet."""
    total = num_nodes * blocks
    width, rng = total**2, np.random.default_rng(0)

    def make(layer, k, block):
        places = (np.arange(num_nodes) + block * num_nodes) * total**k
        return hashes.Table(places.astype(np.int32), rng.choice([-1.0, 1.0], num_nodes).astype(np.float32), width)

    return hashes.tables("all_distinct", make, num_layers=num_layers, order=2, blocks=blocks)


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((5, 5)) < 0.5, 1)
    return scipy.sparse.csr_matrix((upper | upper.T).astype(np.float32)), rng.normal(size=(5, 3)).astype(np.float32)


COEFFICIENTS = np.array([(0.1, 1.0, 0.3), (0.0, 0.7, -0.2)], np.float32)


@pytest.mark.parametrize("network", ["gcn", "sage", "sgc"])
def test_lossless_sketches_of_every_network_read_out_the_full_output(network, small):
    adjacency, x = small
    matrices = gnn.convolutions(network, adjacency)
    params = gnn.init(jax.random.PRNGKey(0), network, (3, 4, 2), order=2)["layers"]
    params[0]["bias"] = params[0]["bias"] + 0.3
    tables_M = [lossless_tables(5, 2, len(matrices))]
    sketched, uses = graph.build(x, [matrices] * 2, tables_M, top_k=None)
    out = layers.forward(params, COEFFICIENTS, jax.tree.map(jnp.asarray, sketched), uses)
    logits = layers.readout(out, *graph.places(tables_M, np.arange(5)), how="mean")
    np.testing.assert_allclose(logits, gnn.infer(params, COEFFICIENTS, x, [matrices] * 2), atol=1e-4)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("mode", hashes.MODES)
@pytest.mark.parametrize(("network", "num_layers", "blocks"), [("gcn", 3, 1), ("sage", 3, 2), ("sage", 1, 2)])
def test_the_bytes_of_a_networks_sketches_are_those_that_are_made(network, num_layers, blocks, mode, top_k, small):
    adjacency, x = small
    sizes = dict(num_layers=num_layers, order=2, blocks=blocks)
    tables_M = [hashes.random_tables(mode, 5, 4, seed=seed, **sizes) for seed in range(2)]
    sketched, _ = graph.build(x, [gnn.convolutions(network, adjacency)] * num_layers, tables_M, top_k=top_k)
    made = sum(array.nbytes for one in sketched.convolutions for array in one.values())
    is_shared = hashes.shares_layers(mode)
    assert convolution.num_bytes(width=4, sets=2, top_k=top_k, is_shared=is_shared, **sizes) == made


def adjacency_with_loops(adjacency):
    where = gnn.convolutions("gat", adjacency)[0]
    return where.indices, where.indptr


def test_lossless_sketches_of_frozen_attention_read_out_the_full_output(small):
    adjacency, x = small
    pattern = gnn.entries(gnn.convolutions("gat", adjacency)[0])
    params = gnn.init(jax.random.PRNGKey(0), "gat", (3, 2), order=2, heads=2)["layers"]
    heads = gnn.attention(params[0], jnp.asarray(x), pattern)
    where = gnn.convolutions("gat", adjacency)[0]
    matrices = [
        scipy.sparse.csr_matrix((np.asarray(h.value_E), where.indices, where.indptr), where.shape) for h in heads
    ]
    tables_M = [lossless_tables(5, 1, 2)]
    sketched, uses = graph.build(x, [matrices], tables_M, top_k=None)
    out = layers.forward(params, COEFFICIENTS[:1], jax.tree.map(jnp.asarray, sketched), uses)
    logits = layers.readout(out, *graph.places(tables_M, np.arange(5)), how="mean")
    full = gnn.polynomial(params, COEFFICIENTS[:1], jnp.asarray(x), gnn.attended(pattern))
    np.testing.assert_allclose(logits, full, atol=1e-5)


def test_layers_that_share_hashes_share_one_sketched_convolution(small):
    adjacency, x = small
    matrices = gnn.convolutions("gcn", adjacency)
    shared = hashes.random_tables("order_distinct", 5, 4, seed=0, num_layers=3, order=2)
    apart = hashes.random_tables("all_distinct", 5, 4, seed=0, num_layers=3, order=2)
    assert graph.build(x, [matrices] * 3, [shared], top_k=2)[1] == (0, 0, 0)
    assert graph.build(x, [matrices] * 3, [apart], top_k=2)[1] == (0, 1, 2)


@pytest.mark.parametrize("top_k", [None, 3])
def test_changing_some_hashes_gives_what_building_from_nothing_gives(top_k):
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((40, 40)) < 0.1, 1)
    matrices = gnn.convolutions("sage", scipy.sparse.csr_matrix((upper | upper.T).astype(np.float32)))
    x = scipy.sparse.csr_matrix(rng.normal(size=(40, 3)).astype(np.float32))
    z = lsh.centred(x.toarray())

    def tables(rng):
        make = lambda *place: lsh.table(z, lsh.direction(3, 6, rng))  # noqa: E731
        return hashes.tables("order_distinct", make, num_layers=2, order=2, blocks=2)

    old, drawn = tables(np.random.default_rng(1)), tables(np.random.default_rng(2))
    replaced = {id(old[0][1][0]): drawn[0][1][0]}
    new = [[[replaced.get(id(t), t) for t in row] for row in layer] for layer in old]
    before, uses = graph.build(x, [matrices] * 2, [old], top_k=top_k)
    changed = graph.rehashed(before, x, [matrices] * 2, [old], [new], top_k=top_k)
    built, built_uses = graph.build(x, [matrices] * 2, [new], top_k=top_k)
    assert uses == built_uses
    for ours, theirs in zip(jax.tree.leaves(changed), jax.tree.leaves(built)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_step_has_no_dimension_of_the_graph_and_needs_no_more_memory_for_twice_the_nodes():
    """With a prime number of nodes, so that no other size can be it."""

    def step_of(num_nodes):
        rng = np.random.default_rng(0)
        adjacency = scipy.sparse.random_array((num_nodes, num_nodes), density=0.01, rng=rng)
        adjacency = scipy.sparse.csr_matrix(((adjacency + adjacency.T) > 0).astype(np.float32))
        matrices = gnn.convolutions("gcn", adjacency)
        tables_M = [hashes.random_tables("order_distinct", num_nodes, 16, seed=0, num_layers=2, order=2)]
        sketched, uses = graph.build(rng.normal(size=(num_nodes, 3)), [matrices] * 2, tables_M, top_k=4)
        bucket, value = graph.places(tables_M, np.arange(20))

        def loss(params, sketched, bucket, value):
            out = layers.forward(params, COEFFICIENTS, sketched, uses)
            return jnp.sum(layers.readout(out, bucket, value) ** 2)

        params = gnn.init(jax.random.PRNGKey(0), "gcn", (3, 4, 2), order=2)["layers"]
        args = (params, jax.tree.map(jnp.asarray, sketched), bucket, value)
        compiled = jax.jit(jax.grad(loss)).lower(*args).compile()
        analysis = compiled.memory_analysis()
        size = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
        return layers.dimensions(jax.grad(loss), *args), size, compiled.cost_analysis()["flops"]

    sizes, memory, flops = step_of(307)
    assert 307 not in sizes and max(sizes) <= 80
    assert step_of(613)[1:] == (memory, flops)


def test_places_are_those_of_the_hashes_of_the_output():
    tables_M = [hashes.random_tables("all_distinct", 7, 4, seed=s, num_layers=1, order=2) for s in (0, 1)]
    bucket, value = graph.places(tables_M, np.array([3, 5]))
    assert bucket.shape == value.shape == (2, 2, 2)
    assert bucket[1, 1, 0] == tables_M[1][1][0][0].bucket_N[5]
    np.testing.assert_array_equal(np.abs(dense(tables_M[0][1][0][0])).sum(axis=0), 1)

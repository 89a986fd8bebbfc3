"""Baselines that train on a part of the graph in each step: neighbour sampling, GraphSAINT and Cluster-GCN.

Sources: Hamilton et al. 2017 (neighbour sampling), Zeng et al. 2020, arXiv:1907.04931 (GraphSAINT with random walks),
Chiang et al. 2019, arXiv:1905.07953 (Cluster-GCN). A part's nodes and edges are filled up to a power of two, so that
few programs are compiled. Cluster-GCN's clusters are METIS's in the paper; here the nodes are put in the order of
reverse Cuthill-McKee and cut, which needs no other library.

Dimensions: N nodes, P nodes of a part, E entries of its convolution.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from alignment.models import gnn
from experiments.graphs import arms, training
from experiments.graphs.training import Arm

KINDS = ("neighbours", "saint", "cluster")
NETWORKS = ("gcn", "sage")


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes of the parts.

    Args:
        seeds: labelled nodes that a step of neighbour sampling begins at.
        fanout: neighbours of a node that are sampled, in each layer.
        roots, walk: random walks of a step of GraphSAINT, and their length.
        presampled: parts that GraphSAINT counts nodes and edges in, before it trains.
        clusters, merged: of Cluster-GCN: all, and those of a step.
    """

    seeds: int = 64
    fanout: int = 10
    roots: int = 200
    walk: int = 2
    presampled: int = 50
    clusters: int = 20
    merged: int = 4


Part = tuple[np.ndarray, Any, np.ndarray]  # nodes [P], their convolution as CSR, weights of their losses [P]


def neighbours(prepared: arms.Prepared, options: Options, rng: np.random.Generator) -> Iterator[Part]:
    """Labelled nodes in batches, with a few neighbours of each, and of those, for every layer; rows are means."""
    adjacency = prepared.graph.adjacency
    nodes_B, _ = arms.labelled(prepared)
    for seeds in np.array_split(rng.permutation(nodes_B), -(-len(nodes_B) // options.seeds)):
        nodes, last, pairs = seeds, seeds, []
        for _ in range(len(prepared.widths) - 1):
            drawn = [_some(adjacency, node, options.fanout, rng) for node in last]
            pairs += [(node, other) for node, others in zip(last, drawn) for other in others]
            last = np.setdiff1d(np.concatenate(drawn), nodes) if drawn else last[:0]
            nodes = np.concatenate([nodes, last])
        place = {node: number for number, node in enumerate(nodes.tolist())}
        rows = [place[a] for a, _ in pairs]
        columns = [place[b] for _, b in pairs]
        sampled = scipy.sparse.csr_matrix((np.ones(len(pairs), np.float32), (rows, columns)), shape=(len(nodes),) * 2)
        if prepared.network == "gcn":
            sampled = scipy.sparse.csr_matrix(sampled + scipy.sparse.eye_array(len(nodes), dtype=np.float32))
        weights = (np.arange(len(nodes)) < len(seeds)).astype(np.float32)
        yield nodes, gnn.mean_of_neighbours(sampled), weights


def _some(adjacency: Any, node: int, fanout: int, rng: np.random.Generator) -> np.ndarray:
    others = adjacency.indices[adjacency.indptr[node] : adjacency.indptr[node + 1]]
    return others if len(others) <= fanout else rng.choice(others, fanout, replace=False)


def _walked(prepared: arms.Prepared, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Nodes on random walks from random roots."""
    adjacency = prepared.graph.adjacency
    at = rng.integers(prepared.graph.num_nodes, size=options.roots)
    nodes = [at]
    degree_N = np.diff(adjacency.indptr)
    for _ in range(options.walk):
        step = (rng.random(len(at)) * degree_N[at]).astype(np.int64)
        at = np.where(
            degree_N[at] > 0, adjacency.indices[np.minimum(adjacency.indptr[at] + step, adjacency.nnz - 1)], at
        )
        nodes.append(at)
    return np.unique(np.concatenate(nodes))


@functools.lru_cache(maxsize=2)
def _counted(prepared: arms.Prepared, options: Options, seed: int) -> tuple[np.ndarray, Any]:
    """How often each node, and each edge, was in a part, in a share of the parts."""
    rng = np.random.default_rng([seed, 3])
    matrix = prepared.matrices[-1]
    nodes_N, edges_E = np.zeros(prepared.graph.num_nodes), np.zeros(matrix.nnz)
    row_E = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    for _ in range(options.presampled):
        is_in_N = np.zeros(prepared.graph.num_nodes, bool)
        is_in_N[_walked(prepared, options, rng)] = True
        nodes_N += is_in_N
        edges_E += is_in_N[row_E] & is_in_N[matrix.indices]
    # One more of each, as if a further part had held all: no division by 0 for what was never met.
    value_E = matrix.data * ((nodes_N[row_E] + 1) / (edges_E + 1)).astype(np.float32)
    scaled = scipy.sparse.csr_matrix((value_E, matrix.indices, matrix.indptr), shape=matrix.shape)
    return (nodes_N + 1) / (options.presampled + 1), scaled


def saint(prepared: arms.Prepared, options: Options, rng: np.random.Generator, *, seed: int) -> Iterator[Part]:
    """As many random-walk parts as cover the nodes once; losses and edges are weighted so that sums are unbiased."""
    share_N, scaled = _counted(prepared, options, seed)
    number = 0
    while number < prepared.graph.num_nodes:
        nodes = _walked(prepared, options, rng)
        number += len(nodes)
        yield (
            nodes,
            scaled[nodes][:, nodes],
            (prepared.graph.splits["train"][nodes] / share_N[nodes]).astype(np.float32),
        )


@functools.lru_cache(maxsize=2)
def _clusters(prepared: arms.Prepared, number: int) -> list[np.ndarray]:
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(prepared.graph.adjacency, symmetric_mode=True)
    return np.array_split(order, number)


def cluster(prepared: arms.Prepared, options: Options, rng: np.random.Generator) -> Iterator[Part]:
    """Every cluster once, a few in each step, with the edges between them."""
    clusters = _clusters(prepared, options.clusters)
    order = rng.permutation(len(clusters))
    for start in range(0, len(order), options.merged):
        nodes = np.concatenate([clusters[number] for number in order[start : start + options.merged]])
        inside = prepared.graph.adjacency[nodes][:, nodes]
        matrix = gnn.normalised(inside) if prepared.network == "gcn" else gnn.mean_of_neighbours(inside)
        yield nodes, matrix, prepared.graph.splits["train"][nodes].astype(np.float32)


def padded(prepared: arms.Prepared, part: Part) -> dict[str, Any]:
    """A part as a batch whose sizes are powers of two; rows and entries beyond the part weigh nothing."""
    nodes, matrix, weights_P = part
    matrix = scipy.sparse.csr_matrix(matrix)
    matrix.sort_indices()
    num_nodes, num_entries = (1 << max(size - 1, 1).bit_length() for size in (len(nodes), matrix.nnz))
    x = prepared.usual_ND[nodes]
    x_PD = np.zeros((num_nodes, x.shape[1]), np.float32)
    x_PD[: len(nodes)] = x.toarray() if scipy.sparse.issparse(x) else x
    row_E = np.full(num_entries, num_nodes - 1, np.int32)
    row_E[: matrix.nnz] = np.repeat(np.arange(len(nodes)), np.diff(matrix.indptr))
    column_E, value_E = np.zeros(num_entries, np.int32), np.zeros(num_entries, np.float32)
    column_E[: matrix.nnz], value_E[: matrix.nnz] = matrix.indices, matrix.data
    labels_P, losses_P = np.zeros(num_nodes, np.int32), np.zeros(num_nodes, np.float32)
    labels_P[: len(nodes)] = np.maximum(prepared.graph.y_N[nodes], 0)
    losses_P[: len(nodes)] = weights_P
    block = gnn.Entries(jnp.asarray(row_E), jnp.asarray(column_E), jnp.asarray(value_E), num_nodes)
    return {"x": jnp.asarray(x_PD), "block": block, "labels": jnp.asarray(labels_P), "weights": jnp.asarray(losses_P)}


@functools.cache
def _step(network: str, dropout: float, lr: float, weight_decay: float, clip_norm: float) -> Any:
    tx = training.optimizer(lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def loss_fn(params, frozen, batch, rng):
        blocks = [None, batch["block"]] if network == "sage" else [batch["block"]]
        logits_PC = gnn.rectified(params["layers"], batch["x"], gnn.same_blocks(blocks), rng=rng, dropout=dropout)
        return training.cross_entropy(logits_PC, batch["labels"], batch["weights"])

    return training.step(loss_fn, tx), tx


def arm(name: str, prepared: arms.Prepared, options: Options, *, seed: int, dropout: float, **optimizer: float) -> Arm:
    """A baseline's arm; evaluated on the full graph, as the usual network is."""
    step_fn, tx = _step(prepared.network, dropout, **optimizer)
    makers: dict[str, Callable[..., Iterator[Part]]] = {
        "neighbours": neighbours,
        "saint": functools.partial(saint, seed=seed),
        "cluster": cluster,
    }

    def batch_fn(epoch: int) -> list[Any]:
        rng = np.random.default_rng([seed, epoch])
        parts = [padded(prepared, part) for part in makers[name](prepared, options, rng)]
        return [part for part in parts if float(part["weights"].sum()) > 0]

    usual = arms.full(name, prepared, seed=seed, dropout=dropout, **optimizer)

    def accuracies_fn(params: Any, frozen: Any) -> training.Accuracies:
        return usual.accuracies_fn(params, frozen["full"])

    frozen = {"full": usual.frozen}  # for the evaluation; a step reads none of it
    return Arm(name, step_fn, usual.params, tx.init(usual.params), frozen, batch_fn, accuracies_fn)

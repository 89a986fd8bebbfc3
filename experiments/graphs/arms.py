"""Arms of sketch_gnn.py on the full graph: the usual network, and the one with polynomials in place of ReLU.

Dimensions: N nodes, D features, L layers, K orders, B labelled nodes of a step.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from alignment import errors
from alignment.models import gnn
from alignment.sketching import polynomial
from data import loader
from data.graphs import Graph
from experiments.graphs import training
from experiments.graphs.training import Arm

FEATURES = ("columns", "rows", "centred", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A graph with scaled features and its network's convolution, on the host.

    Polynomial and sketched networks read `x_ND`; where there is a `mean_D`, its last column is of ones and the first
    layer's kernel gets a last row by `centred`. The usual network reads `usual_ND`.
    """

    graph: Graph
    x_ND: Any
    mean_D: np.ndarray | None
    usual_ND: Any
    matrices: list[Any]
    network: str
    widths: tuple[int, ...]
    heads: int


def prepare(graph: Graph, *, features: str, name: str, num_layers: int, hidden: int, heads: int) -> Prepared:
    """Scale the features and make the network's convolution.

    Args:
        features: columns (each with mean 0 and variance 1 over all nodes), rows (each sums to 1), centred (rows, then
            each column less its mean, as locality-sensitive hashes need features around 0; the usual network reads
            the rows) or none.
    """
    widths = (graph.x_ND.shape[1], *[hidden] * (num_layers - 1), graph.num_classes)
    matrices = gnn.convolutions(name, graph.adjacency)
    usual_ND, mean_D = scaled(graph.x_ND, "rows" if features == "centred" else features), None
    x_ND = usual_ND
    if features == "centred":
        mean_D = np.asarray(x_ND.mean(axis=0), np.float32).ravel()
        if scipy.sparse.issparse(x_ND):
            # X - 1 m^T would be dense: a bag of words has a hundred times as many entries then.
            ones_N1 = scipy.sparse.csr_matrix(np.ones((graph.num_nodes, 1), np.float32))
            x_ND = scipy.sparse.csr_matrix(scipy.sparse.hstack([x_ND, ones_N1]))
        else:
            x_ND, mean_D = x_ND - mean_D[None], None
    return Prepared(graph, x_ND, mean_D, usual_ND, matrices, name, widths, heads)


def centred(layers: Sequence[Mapping[str, Any]], mean_D: Any) -> list[Any]:
    """Layers that read [X, 1] as they would X - 1 m^T: the first kernel W with -m^T W as a last row."""
    if mean_D is None:
        return list(layers)
    kernel_QDE = layers[0]["kernel"]
    last_Q1E = -jnp.einsum("D,QDE->QE", mean_D, kernel_QDE)[:, None]
    return [layers[0] | {"kernel": jnp.concatenate([kernel_QDE, last_Q1E], axis=1)}, *layers[1:]]


def digest(graph: Graph) -> str:
    """Of all that an arm is trained on and measured with: features, edges, classes and splits."""
    arrays: list[np.ndarray] = []
    for matrix in (graph.adjacency, graph.x_ND):
        is_sparse = scipy.sparse.issparse(matrix)
        arrays += [matrix.data, matrix.indices, matrix.indptr] if is_sparse else [matrix]
    return loader.digest(*arrays, graph.y_N, *graph.splits.values())


def scaled(x_ND: Any, how: str) -> Any:
    """Features by `columns`, `rows` or `none` of `prepare`."""
    errors.one_of("data.features", how, FEATURES)
    if how == "columns":
        x_ND = x_ND.toarray() if scipy.sparse.issparse(x_ND) else x_ND
        deviation_D = x_ND.std(axis=0, keepdims=True)
        return (x_ND - x_ND.mean(axis=0, keepdims=True)) / np.where(deviation_D == 0, 1, deviation_D)
    if how == "rows":
        sums_N = np.asarray(np.abs(x_ND).sum(axis=1)).ravel()
        scaling = scipy.sparse.diags_array((1 / np.where(sums_N == 0, 1, sums_N)).astype(np.float32))
        x_ND = scaling @ x_ND
        return scipy.sparse.csr_matrix(x_ND) if scipy.sparse.issparse(x_ND) else x_ND
    return x_ND


def on_device(x_ND: Any) -> gnn.Features:
    return gnn.entries(x_ND) if scipy.sparse.issparse(x_ND) else jnp.asarray(x_ND)


def blocks_on_device(prepared: Prepared) -> list[gnn.Block]:
    blocks: list[gnn.Block] = [gnn.entries(matrix) for matrix in prepared.matrices]
    if prepared.network == "sage":
        blocks[0] = None  # the identity
    return blocks


def blocks_of(frozen: Mapping[str, Any], network: str) -> gnn.BlocksFn:
    if network == "gat":
        return gnn.attended(frozen["blocks"][0])
    return gnn.same_blocks(frozen["blocks"])


def start(prepared: Prepared, *, seed: int, order: int = 1) -> dict[str, Any]:
    key = jax.random.PRNGKey(seed)
    return gnn.init(key, prepared.network, prepared.widths, order=order, heads=prepared.heads)


@functools.lru_cache(maxsize=1)
def labelled(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Nodes to train on, and their classes."""
    nodes_B = np.flatnonzero(prepared.graph.splits["train"])
    return nodes_B, prepared.graph.y_N[nodes_B]


# The full graph


@functools.cache
def full_step(
    network: str, is_first_made: bool, dropout: float, lr: float, weight_decay: float, clip_norm: float
) -> Any:
    tx = training.optimizer(lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def blocks_of_layers(frozen):
        blocks_fn = blocks_of(frozen, network)
        if not is_first_made:
            return blocks_fn
        return lambda number, layer, x_ND: blocks_fn(number, layer, x_ND) if number else [None]

    def loss_fn(params, frozen, batch, rng):
        blocks_fn = blocks_of_layers(frozen)
        logits_NC = gnn.rectified(params["layers"], frozen["x"], blocks_fn, rng=rng, dropout=dropout)
        return training.cross_entropy(logits_NC[batch["nodes"]], batch["labels"])

    @jax.jit
    def predict(params, frozen):
        return gnn.rectified(params["layers"], frozen["x"], blocks_of_layers(frozen))

    return training.step(loss_fn, tx), tx, predict


def full(name: str, prepared: Prepared, *, seed: int, dropout: float, **options: float) -> Arm:
    """The usual network with ReLU, all nodes in every step.

    Without dropout the first convolution of GCN and SGC is a constant of the graph, C X, and is made once.
    """
    is_first_made = not dropout and prepared.network in ("gcn", "sgc")
    step_fn, tx, predict = full_step(prepared.network, is_first_made, dropout, **options)
    x_ND = prepared.matrices[0] @ prepared.usual_ND if is_first_made else prepared.usual_ND
    frozen = {"x": on_device(x_ND), "blocks": blocks_on_device(prepared)}
    nodes_B, labels_B = labelled(prepared)
    batch = {"nodes": jnp.asarray(nodes_B), "labels": jnp.asarray(labels_B)}
    params = start(prepared, seed=seed)

    def accuracies_fn(params, frozen):
        return training.accuracies(predict(params, frozen), prepared.graph.y_N, prepared.graph.splits)

    return Arm(name, step_fn, params, tx.init(params), frozen, lambda epoch: [batch], accuracies_fn)


def thinned(layers: Sequence[Mapping[str, Any]], rng: jax.Array, dropout: float) -> list[dict[str, Any]]:
    """Layers that read their input without some of its columns, which are drawn anew in each step.

    To leave out a column of X is to leave out a row of W, so that it means the same on a sketch of X. Single entries
    cannot be dropped there.
    """
    if not dropout:
        return list(layers)
    out = []
    for number, layer in enumerate(layers):
        if "kernel" in layer:
            shape = (layer["kernel"].shape[1], 1)
            stays = jax.random.bernoulli(jax.random.fold_in(rng, number), 1 - dropout, shape)
            layer = layer | {"kernel": layer["kernel"] * (stays / (1 - dropout))[None]}
        out.append(layer)
    return out


# Polynomials


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """How a network gets the coefficients of its polynomials; `fixed_LK1` is None where they are learned."""

    order: int
    fixed_LK1: np.ndarray | None = None

    def of(self, params: Mapping[str, Any]) -> jax.Array:
        """a_0 to a_K of each layer; learned ones have no constant."""
        if self.fixed_LK1 is not None:
            return jnp.asarray(self.fixed_LK1, jnp.float32)
        return jnp.pad(params["coefficients"], ((0, 0), (1, 0)))


def coefficients(
    prepared: Prepared, *, how: str, activation: str, order: int, radius: float, width: int, seed: int
) -> Coefficients:
    """Learned ones, or a fit of the activation for every layer but the last, which stays the identity.

    Ridge reads the pre-activations of the untrained network of this seed, for the width of its sketches.
    """
    errors.one_of("sketch.coefficients", how, polynomial.COEFFICIENTS)
    if how == "learned":
        return Coefficients(order)
    num_layers = len(prepared.widths) - 1
    identity = [0.0, 1.0] + [0.0] * (order - 1)
    rows = []
    for _ in range(num_layers - 1):
        if how == "taylor":
            rows.append(polynomial.taylor(activation, order))
        elif how == "least_squares":
            rows.append(polynomial.least_squares(activation, order, radius=radius))
        else:
            rows.append(_ridge(prepared, np.array(rows), activation, order, width, seed))
    return Coefficients(order, np.array([*rows, identity]))


def _ridge(
    prepared: Prepared, before_LK1: np.ndarray, activation: str, order: int, width: int, seed: int
) -> np.ndarray:
    """Of the first layer that has no coefficients yet."""
    layer = len(before_LK1)
    params = jax.device_get(centred(start(prepared, seed=seed, order=order)["layers"], prepared.mean_D))
    matrices_L = [prepared.matrices] * (layer + 1)
    inputs_ND = gnn.infer(params[:layer], before_LK1, prepared.x_ND, matrices_L) if layer else prepared.x_ND
    kernels = params[layer]["kernel"]
    v_QND = [np.asarray(inputs_ND @ kernel) for kernel in kernels]
    z_ND = sum(matrix @ v_ND for matrix, v_ND in zip(prepared.matrices, v_QND))
    rng = np.random.default_rng([seed, layer])
    squares_N = sum(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel() for matrix in prepared.matrices)
    lengths_D = np.sqrt(sum(np.sum(v_ND**2, axis=0) for v_ND in v_QND))
    sample = rng.choice(np.asarray(z_ND).ravel(), min(2_000, z_ND.size), replace=False)
    return polynomial.ridge(activation, sample, order, row_norms=(np.sqrt(squares_N), lengths_D), width=width)


@functools.cache
def _poly_step(
    network: str, is_residual: bool, is_learned: bool, dropout: float, lr: float, weight_decay: float, clip_norm: float
) -> Any:
    tx = training.optimizer(lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def coefficients_of(params, frozen):
        return jnp.pad(params["coefficients"], ((0, 0), (1, 0))) if is_learned else frozen["coefficients"]

    def loss_fn(params, frozen, batch, rng):
        logits_NC = gnn.polynomial(
            centred(thinned(params["layers"], rng, dropout), frozen["mean"]),
            coefficients_of(params, frozen),
            frozen["x"],
            blocks_of(frozen, network),
            is_residual=is_residual,
        )
        return training.cross_entropy(logits_NC[batch["nodes"]], batch["labels"])

    return training.step(loss_fn, tx), tx


def poly_full(
    name: str, prepared: Prepared, coefficients: Coefficients, *, seed: int, is_residual: bool, **options: float
) -> Arm:
    """The polynomial network without sketches, all nodes in every step: what sketches approximate."""
    step_fn, tx = _poly_step(prepared.network, is_residual, coefficients.fixed_LK1 is None, **options)
    frozen = {"x": on_device(prepared.x_ND), "mean": prepared.mean_D, "blocks": blocks_on_device(prepared)}
    if coefficients.fixed_LK1 is not None:
        frozen["coefficients"] = jnp.asarray(coefficients.fixed_LK1, jnp.float32)
    nodes_B, labels_B = labelled(prepared)
    batch = {"nodes": jnp.asarray(nodes_B), "labels": jnp.asarray(labels_B)}
    params = start(prepared, seed=seed, order=coefficients.order)
    accuracies_fn = inferred(prepared, coefficients, is_residual)
    return Arm(name, step_fn, params, tx.init(params), frozen, lambda epoch: [batch], accuracies_fn)


def inferred(prepared: Prepared, coefficients: Coefficients, is_residual: bool) -> Any:
    """Accuracies of a polynomial network on the full graph, layer by layer on the host."""

    def accuracies_fn(params, frozen):
        params = jax.device_get(params)
        attended_L = attention_matrices(prepared, params, coefficients, is_residual)
        matrices_L = attended_L or [prepared.matrices] * (len(prepared.widths) - 1)
        logits_NC = gnn.infer(
            jax.device_get(centred(params["layers"], prepared.mean_D)),
            np.asarray(coefficients.of(params)),
            prepared.x_ND,
            matrices_L,
            is_residual=is_residual,
        )
        return training.accuracies(logits_NC, prepared.graph.y_N, prepared.graph.splits)

    return accuracies_fn


def attention_matrices(
    prepared: Prepared, params: Mapping[str, Any], coefficients: Coefficients, is_residual: bool
) -> list[list[Any]] | None:
    """Of GAT, the blocks of every layer under these parameters, on the full graph; None for other networks."""
    if prepared.network != "gat":
        return None
    pattern = gnn.entries(prepared.matrices[0])
    out: list[list[Any]] = []

    def blocks_fn(number: int, layer: Mapping[str, Any], x_ND: Any) -> Any:
        heads = gnn.attention(layer, x_ND, pattern)
        shape = prepared.matrices[0]
        out.append(
            [
                scipy.sparse.csr_matrix((np.asarray(h.value_E), shape.indices, shape.indptr), shape=shape.shape)
                for h in heads
            ]
        )
        return heads

    x_ND = on_device(prepared.x_ND)
    layers = centred(params["layers"], prepared.mean_D)
    gnn.polynomial(layers, coefficients.of(params), x_ND, blocks_fn, is_residual=is_residual)
    return out

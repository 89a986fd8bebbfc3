"""Graph networks on a whole graph: GCN, GraphSAGE with the mean, SGC and GAT, with ReLU or a polynomial.

Sources: Kipf and Welling 2017 (GCN), Hamilton et al. 2017 (GraphSAGE), Wu et al. 2019 (SGC), Velickovic et al. 2018
(GAT), Ding et al. 2022 (polynomials in place of ReLU). A layer is sum_q C_q (X W_q), with blocks C_q that are the
network's: [C] of GCN, [I, D^-1 A] of GraphSAGE, one of each head of GAT, whose heads are averaged.

Dimensions: N nodes, E entries of a sparse matrix, D features, Q blocks, H heads, L layers, K orders.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from alignment import errors

NETWORKS = ("gcn", "sage", "sgc", "gat")
SLOPE = 0.2  # of GAT's leaky ReLU


@flax.struct.dataclass
class Entries:
    """A sparse matrix by its entries, sorted by row: a convolution, or features such as a bag of words."""

    row_E: jax.Array
    column_E: jax.Array
    value_E: jax.Array
    num_rows: int = flax.struct.field(pytree_node=False)


Features = Any  # [N,D], or Entries
Block = Entries | None  # None is the identity
BlocksFn = Callable[[int, Mapping[str, Any], Features], Sequence[Block]]  # (layer's number, layer, its input)


# Matrices, on the host


def normalised(adjacency: Any) -> Any:
    """D^-1/2 (A + I) D^-1/2 of a symmetric A without self-loops, as CSR float32."""
    looped = (adjacency + scipy.sparse.eye_array(adjacency.shape[0])).tocsr()
    scale_N = 1 / np.sqrt(np.asarray(looped.sum(axis=1)).ravel())
    scaled = scipy.sparse.diags_array(scale_N) @ looped @ scipy.sparse.diags_array(scale_N)
    return scipy.sparse.csr_matrix(scaled, dtype=np.float32)


def mean_of_neighbours(adjacency: Any) -> Any:
    """D^-1 A as CSR float32; the row of an isolated node is empty."""
    degree_N = np.asarray(adjacency.sum(axis=1)).ravel()
    scale_N = 1 / np.maximum(degree_N, 1)
    return scipy.sparse.csr_matrix(scipy.sparse.diags_array(scale_N) @ adjacency, dtype=np.float32)


def convolutions(network: str, adjacency: Any) -> list[Any]:
    """Blocks of a network as CSR, the identity among them; of GAT the pattern A + I, whose values attention makes."""
    errors.one_of("network", network, NETWORKS)
    if network == "sage":
        identity = scipy.sparse.csr_matrix(scipy.sparse.eye_array(adjacency.shape[0], dtype=np.float32))
        return [identity, mean_of_neighbours(adjacency)]
    return [normalised(adjacency)]


def entries(matrix: Any) -> Entries:
    """A CSR matrix as arrays."""
    row_E = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    columns_E = jnp.asarray(matrix.indices.astype(np.int32))
    return Entries(jnp.asarray(row_E), columns_E, jnp.asarray(matrix.data), matrix.shape[0])


# Parameters


def init(
    rng: jax.Array, network: str, widths: Sequence[int], *, order: int, heads: int = 1, has_bias: bool = True
) -> dict[str, Any]:
    """Random parameters: {"layers": ..., "coefficients": [L,K]}.

    Args:
        widths: of the input, the hidden layers and the classes, so one more than there are layers. Of SGC only the
            first layer has a kernel, straight from input to classes; the others propagate.
        order: K; coefficients begin as the identity, a_1 = 1.
        heads: of GAT.
    """
    errors.one_of("network", network, NETWORKS)
    num_layers = len(widths) - 1
    num_blocks = {"sage": 2, "gat": heads}.get(network, 1)
    layers: list[dict[str, jax.Array]] = []
    for number in range(num_layers):
        fan_in, fan_out = widths[number], widths[number + 1]
        if network == "sgc":
            fan_out = widths[-1]
            if number:
                layers.append({})
                continue
        keys = jax.random.split(jax.random.fold_in(rng, number), 3)
        limit = (6 / (fan_in + fan_out)) ** 0.5
        layer = {"kernel": jax.random.uniform(keys[0], (num_blocks, fan_in, fan_out), minval=-limit, maxval=limit)}
        if has_bias:
            layer["bias"] = jnp.zeros(fan_out)
        if network == "gat":
            limit = (6 / (fan_out + 1)) ** 0.5
            for key, name in zip(keys[1:], ("source", "target")):
                layer[name] = jax.random.uniform(key, (num_blocks, fan_out), minval=-limit, maxval=limit)
        layers.append(layer)
    first = jnp.zeros((num_layers, order)).at[:, 0].set(1.0)
    return {"layers": layers, "coefficients": first}


# Forward


def times(x_ND: Features, kernel_DF: jax.Array) -> jax.Array:
    """X W; of sparse features by their entries, which are a hundredth of a bag of words."""
    if not isinstance(x_ND, Entries):
        return x_ND @ kernel_DF
    return _summed(x_ND, kernel_DF)


def propagated(block: Block, x_ND: jax.Array) -> jax.Array:
    """C X for one block."""
    return x_ND if block is None else _summed(block, x_ND)


def _summed(matrix: Entries, x_ND: jax.Array) -> jax.Array:
    terms_ED = matrix.value_E[:, None] * x_ND[matrix.column_E]
    return jax.ops.segment_sum(terms_ED, matrix.row_E, num_segments=matrix.num_rows, indices_are_sorted=True)


def attention(layer: Mapping[str, Any], x_ND: Features, pattern: Entries) -> list[Entries]:
    """Blocks of GAT: of each head the softmax over a node's neighbours, divided by the number of heads."""
    h_HND = jnp.stack([times(x_ND, kernel_DF) for kernel_DF in layer["kernel"]])
    source_HN = jnp.einsum("HNF,HF->HN", h_HND, layer["source"])
    target_HN = jnp.einsum("HNF,HF->HN", h_HND, layer["target"])
    heads = []
    for source_N, target_N in zip(source_HN, target_HN):
        score_E = jax.nn.leaky_relu(source_N[pattern.column_E] + target_N[pattern.row_E], SLOPE)
        sorted_rows: Any = dict(num_segments=pattern.num_rows, indices_are_sorted=True)
        # The largest score of a row comes off first, so that no exponential overflows.
        most_N = jax.ops.segment_max(score_E, pattern.row_E, **sorted_rows)
        weight_E = jnp.exp(score_E - jax.lax.stop_gradient(most_N)[pattern.row_E])
        total_N = jax.ops.segment_sum(weight_E, pattern.row_E, **sorted_rows)
        heads.append(dataclasses.replace(pattern, value_E=weight_E / total_N[pattern.row_E] / len(h_HND)))
    return heads


def same_blocks(blocks: Sequence[Block]) -> BlocksFn:
    """The blocks of every layer, for networks whose convolution does not depend on X."""
    return lambda number, layer, x_ND: blocks


def attended(pattern: Entries) -> BlocksFn:
    """Attention of each layer over the pattern."""
    return lambda number, layer, x_ND: attention(layer, x_ND, pattern)


def polynomial(
    layers: Sequence[Mapping[str, Any]],
    coefficients_LK1: jax.Array,
    x_ND: Features,
    blocks_fn: BlocksFn,
    *,
    is_residual: bool = False,
) -> jax.Array:
    """X^(l+1) = sum_k a_k (sum_q C_q (X W_q + 1 b^T))^k, of every layer, the last one too; outputs [N,classes].

    What a sketched network approximates, and how its weights are used on the full graph. The bias goes with the first
    block, before the convolution.

    Args:
        coefficients_LK1: a_0 to a_K of each layer.
        is_residual: add a middle layer's input to its output where both have one width.
    """
    for number, layer in enumerate(layers):
        y_ND = _convolved(layer, x_ND, blocks_fn(number, layer, x_ND), bias_first=True)
        out_ND = jnp.full_like(y_ND, coefficients_LK1[number, 0])
        power_ND = jnp.ones_like(y_ND)
        for k in range(1, coefficients_LK1.shape[1]):
            power_ND = power_ND * y_ND
            out_ND = out_ND + coefficients_LK1[number, k] * power_ND
        is_added = is_residual and 0 < number < len(layers) - 1 and out_ND.shape == x_ND.shape
        x_ND = out_ND + x_ND if is_added else out_ND
    return x_ND


def rectified(
    layers: Sequence[Mapping[str, Any]],
    x_ND: Features,
    blocks_fn: BlocksFn,
    *,
    rng: jax.Array | None = None,
    dropout: float = 0.0,
) -> jax.Array:
    """The usual network: ReLU between layers, the bias after the convolution; outputs [N,classes].

    Layers without a kernel (SGC) propagate alone.

    Args:
        rng: of dropout on each layer's input; None: no dropout.
    """
    for number, layer in enumerate(layers):
        if rng is not None and dropout and "kernel" in layer:
            x_ND = _dropped(jax.random.fold_in(rng, number), x_ND, dropout)
        y_ND = _convolved(layer, x_ND, blocks_fn(number, layer, x_ND), bias_first=False)
        is_between = number + 1 < len(layers) and "kernel" in layers[number + 1]
        x_ND = jax.nn.relu(y_ND) if is_between else y_ND
    return x_ND


def _dropped(rng: jax.Array, x_ND: Features, dropout: float) -> Features:
    """The input with entries at random set to 0; of sparse features only those that are not 0 are drawn for."""
    values = x_ND.value_E if isinstance(x_ND, Entries) else x_ND
    stays = jax.random.bernoulli(rng, 1 - dropout, values.shape)
    values = jnp.where(stays, values / (1 - dropout), 0.0)
    return dataclasses.replace(x_ND, value_E=values) if isinstance(x_ND, Entries) else values


def _convolved(layer: Mapping[str, Any], x_ND: Features, blocks: Sequence[Block], *, bias_first: bool) -> jax.Array:
    if "kernel" not in layer:
        return propagated(blocks[0], x_ND)
    total: Any = 0.0
    for q, block in enumerate(blocks):
        h_ND = times(x_ND, layer["kernel"][q])
        if q == 0 and bias_first and "bias" in layer:
            h_ND = h_ND + layer["bias"][None]
        total = total + propagated(block, h_ND)
    return total + layer["bias"][None] if "bias" in layer and not bias_first else total


# Inference on the host, for graphs whose entries times features would not fit


def infer(
    layers: Sequence[Mapping[str, Any]],
    coefficients_LK1: np.ndarray,
    x_ND: Any,
    matrices_L: Sequence[Sequence[Any]],
    *,
    is_residual: bool = False,
) -> np.ndarray:
    """`polynomial` layer by layer with scipy's CSR matrices: a product holds [N,D], never a row for each entry.

    Args:
        matrices_L: blocks of each layer's convolution.
    """
    for number, layer in enumerate(layers):
        kernels = np.asarray(layer["kernel"]) if "kernel" in layer else [None]
        total: Any = 0.0
        for q, kernel in enumerate(kernels):
            h_ND = x_ND if kernel is None else np.asarray(x_ND @ kernel)
            if q == 0 and "bias" in layer:
                h_ND = h_ND + np.asarray(layer["bias"])
            total = total + matrices_L[number][q] @ h_ND
        y_ND = np.asarray(total)
        out_ND = np.polynomial.polynomial.polyval(y_ND, np.asarray(coefficients_LK1[number]), tensor=False)
        is_added = is_residual and 0 < number < len(layers) - 1 and out_ND.shape == x_ND.shape
        x_ND = out_ND + x_ND if is_added else out_ND
    return x_ND

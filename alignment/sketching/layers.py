"""A graph network's forward pass on sketches: no array here has a dimension of the number of nodes.

Source: Ding et al. 2022, arXiv:2406.15575. With sketches S^(l,p) = R_p X of a layer's input, one for each order p,
    Y_p = S^(l,p) W + (R_p 1) b^T,    S^(l+1,k') = a_0 R_k' 1 + sum_k a_k S_C^(k,k') irfft(prod_{p <= k} rfft(Y_p)),
which approximates R_k' sigma(C (X W + 1 b^T)) for the polynomial sigma of coefficients a.

Convolutions of Q blocks beside one another (GraphSAGE: [I, D^-1 A]; attention: a block a head) have hashes for each
block, and Y_p sums over them.

Dimensions: M independent sets of sketches, K orders (p, k and k'), Q blocks, C rows of a sketch, D features, T kept
entries of a row, B labelled nodes, L layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignment.models import gnn
from alignment.sketching import sketch


class Sketched(NamedTuple):
    """A graph as a network's layers read it; arrays alone.

    `features` of the input, [M,K,Q,C,D], or `gnn.Entries` with the axes [M,K,Q] before theirs, since the sketch of a
    bag of words is nearly as sparse as the words; `ones`, of each layer and of the output, [M,K,Q,C]; `convolutions`,
    which several layers may share: {"dense": [M,K,K',Q',C,C]} or {"index", "value": [M,K,K',Q',C,T]}.
    """

    features: Any
    ones: Sequence[Any]
    convolutions: Sequence[Mapping[str, Any]]


def forward(
    layers: Sequence[Mapping[str, Any]],
    coefficients_LK1: jax.Array,
    sketched: Sketched,
    uses: Sequence[int],
    *,
    is_residual: bool = False,
) -> jax.Array:
    """Sketches of the output, [M,K,C,classes], under the hashes of the last layer's first block.

    Args:
        layers: {"kernel": [Q,D,D'], "bias": [D']} of each layer, {} of one that only propagates.
        coefficients_LK1: a_0 to a_K of each layer.
        uses: for each layer, which of `convolutions` it uses.
        is_residual: add a middle layer's input to its output where both have one width; valid only where adjacent
            layers share their hashes.
    """

    def one_set(sketched: Sketched) -> jax.Array:
        x_KQCD = sketched.features
        for number, layer in enumerate(layers):
            y_KCD = _pre_activation(layer, x_KQCD, sketched.ones[number])
            a_K1 = coefficients_LK1[number]
            powers_KCD = a_K1[1:, None, None] * sketch.tensor_sketches(y_KCD)
            out_KQCD = _convolved(sketched.convolutions[uses[number]], powers_KCD)
            # The last layer's convolution may have fewer blocks than its input: the read-out needs one.
            out_KQCD += a_K1[0] * sketched.ones[number + 1][:, : out_KQCD.shape[1], :, None]
            if is_residual and 0 < number < len(layers) - 1 and out_KQCD.shape == x_KQCD.shape:
                out_KQCD += x_KQCD
            x_KQCD = out_KQCD
        return x_KQCD[:, 0]

    # One set after the other, each computed again on the way back: a step then holds the terms of a single set.
    return jax.lax.map(jax.checkpoint(one_set), sketched)


def _pre_activation(layer: Mapping[str, Any], x_KQCD: Any, ones_KQC: jax.Array) -> jax.Array:
    """Y_p: sketches of X W + 1 b^T, summed over blocks; the bias goes with the first, and with its R 1.

    The released program adds b to every row of a sketch, which is not the sketch of a bias.
    """
    if "kernel" not in layer:
        return x_KQCD.sum(axis=1)
    if isinstance(x_KQCD, gnn.Entries):
        # A map holds the terms of one order's entries at a time, times the width of the output.
        y_KCD = jax.lax.map(lambda x_Q: _summed(x_Q, layer["kernel"]), x_KQCD)
    else:
        y_KCD = jnp.einsum("KQCD,QDE->KCE", x_KQCD, layer["kernel"])
    if "bias" not in layer:
        return y_KCD
    return y_KCD + ones_KQC[:, 0, :, None] * layer["bias"][None, None, :]


def _summed(x_Q: gnn.Entries, kernel_QDE: jax.Array) -> jax.Array:
    """sum_q X_q W_q, [C,E], of sparse blocks."""
    blocks = [jax.tree.map(lambda array, q=q: array[q], x_Q) for q in range(len(kernel_QDE))]
    return sum((gnn.times(block, kernel_DE) for block, kernel_DE in zip(blocks, kernel_QDE)), jnp.zeros(()))


def _convolved(convolution: Mapping[str, jax.Array], powers_KCD: jax.Array) -> jax.Array:
    """sum_k S_C^(k,k') T_k, [K',Q',C,D]."""
    if "dense" in convolution:
        return jnp.einsum("kpqcj,kjd->pqcd", convolution["dense"], powers_KCD)
    total = jnp.zeros(())
    for k, powers_CD in enumerate(powers_KCD):
        gathered = powers_CD[convolution["index"][k]]
        total = total + jnp.einsum("pqct,pqctd->pqcd", convolution["value"][k], gathered)
    return total


READOUTS = ("median", "mean")


def readout(out_MKCD: jax.Array, bucket_BMK: jax.Array, value_BMK: jax.Array, *, how: str = "median") -> jax.Array:
    """Outputs [B,D] of the requested nodes: the element-wise median, or mean, of all M K un-sketched values.

    The median of an even number averages the two in the middle; the released program's takes the lower one, and it
    un-sketches all nodes before it picks these.
    """
    by_table = jax.vmap(jax.vmap(sketch.unsketch))
    rows_MKBD = by_table(out_MKCD, jnp.moveaxis(bucket_BMK, 0, -1), jnp.moveaxis(value_BMK, 0, -1))
    rows_SBD = rows_MKBD.reshape(-1, *rows_MKBD.shape[2:])
    return jnp.median(rows_SBD, axis=0) if how == "median" else jnp.mean(rows_SBD, axis=0)


def dimensions(fn: Any, *args: Any) -> set[int]:
    """Every dimension of every array in the program of `fn(*args)`: inputs, constants, and all that lies between."""
    sizes: set[int] = set()

    def visit(jaxpr: Any) -> None:
        variables = [*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars]
        for equation in jaxpr.eqns:
            variables += [*equation.invars, *equation.outvars]
            for value in equation.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        visit(inner)
        for variable in variables:
            sizes.update(getattr(variable.aval, "shape", ()))

    visit(jax.make_jaxpr(fn)(*args).jaxpr)
    return sizes

"""The sketched network's arm: hashes, sketches, and a step that knows nothing of the graph's size.

Dimensions: N nodes, C rows of a sketch, M sets of sketches, K orders, B labelled nodes of a step.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from alignment.errors import InputError
from alignment.sketching import convolution, graph, hashes, layers, lsh
from experiments.graphs import refreshing, training
from experiments.graphs.arms import (
    Coefficients,
    Prepared,
    attention_matrices,
    centred,
    inferred,
    labelled,
    start,
    thinned,
)
from experiments.graphs.training import Arm

BUCKETS = ("random", "lsh_fixed", "lsh_learned")
WIDE, DIRECTIONS = 256, 16  # features of z before and after its principal directions are taken


@dataclasses.dataclass(frozen=True)
class Sketching:
    """How a graph is sketched; see the config of sketch_gnn.py."""

    width: int
    top_k: int | None
    sets: int
    mode: str
    buckets: str
    readout: str
    is_residual: bool


def draw_tables(prepared: Prepared, sketching: Sketching, order: int, *, seed: int) -> tuple[list[graph.Tables], Any]:
    """Hashes of every set, and what learned hashing goes on with: directions by place and the vectors z."""
    num_layers, num_blocks = len(prepared.widths) - 1, _num_blocks(prepared.network, prepared.heads)
    sizes = dict(num_layers=num_layers, order=order, blocks=num_blocks)
    if sketching.buckets == "random":
        number = prepared.graph.num_nodes
        sets = [
            hashes.random_tables(sketching.mode, number, sketching.width, seed=_mixed(seed, m), **sizes)
            for m in range(sketching.sets)
        ]
        return sets, None
    z_ND = vectors(prepared)
    directions: dict[tuple[int, int, int, int], np.ndarray] = {}

    def make(m: int, layer: int, k: int, block: int) -> hashes.Table:
        rng = np.random.default_rng([seed, m, layer, k, block])
        directions[m, layer, k, block] = lsh.direction(z_ND.shape[1], sketching.width, rng)
        return lsh.table(z_ND, directions[m, layer, k, block])

    sets = [hashes.tables(sketching.mode, functools.partial(make, m), **sizes) for m in range(sketching.sets)]
    return sets, (directions, z_ND)


def _mixed(seed: int, m: int) -> int:
    return seed * 1_000 + m


def _num_blocks(network: str, heads: int) -> int:
    return {"sage": 2, "gat": heads}.get(network, 1)


def vectors(prepared: Prepared) -> np.ndarray:
    """z of locality-sensitive hashing: rows of C^L X, centred, along at most 16 principal directions.

    What a network of L layers says of a node depends on C^L X, so that nodes which are alike in it are those whose
    outputs may share a row. In many directions two nodes of one bucket would have little in common.
    """
    x_ND, mean_D = prepared.x_ND, prepared.mean_D
    if mean_D is not None:
        x_ND = x_ND[:, :-1]  # without the column of ones
    if x_ND.shape[1] > WIDE:
        # Random directions keep angles well enough, and make the products below cheap for a bag of words.
        shrink = np.random.default_rng(0).standard_normal((x_ND.shape[1], WIDE), dtype=np.float32) / WIDE**0.5
        x_ND, mean_D = np.asarray(x_ND @ shrink), None if mean_D is None else mean_D @ shrink
    x_ND = x_ND.toarray() if scipy.sparse.issparse(x_ND) else np.asarray(x_ND)
    x_ND = x_ND if mean_D is None else x_ND - mean_D[None]
    for _ in range(len(prepared.widths) - 1):
        x_ND = prepared.matrices[-1] @ x_ND
    z_ND = lsh.centred(x_ND)
    if z_ND.shape[1] > DIRECTIONS:
        _, vectors_DD = np.linalg.eigh(z_ND.T @ z_ND)  # from the smallest eigenvalue to the largest
        z_ND = z_ND @ vectors_DD[:, -DIRECTIONS:]
    return z_ND


@functools.cache
def sketch_step(
    uses: tuple[int, ...],
    readout: str,
    is_residual: bool,
    is_learned: bool,
    dropout: float,
    lr: float,
    weight_decay: float,
    clip_norm: float,
) -> Any:
    # A sketched step does not read GAT's attention vectors, which are trained where attention is refreshed.
    constant = refreshing.VECTORS
    tx = training.optimizer(lr, weight_decay=weight_decay, clip_norm=clip_norm, constant=constant)

    def loss_fn(params, frozen, batch, rng):
        coefficients_LK1 = frozen["coefficients"]
        if is_learned:
            coefficients_LK1 = jnp.pad(params["coefficients"], ((0, 0), (1, 0)))
        thin = centred(thinned(params["layers"], rng, dropout), frozen["mean"])
        out_MKCD = layers.forward(thin, coefficients_LK1, frozen["sketched"], uses, is_residual=is_residual)
        logits_BC = layers.readout(out_MKCD, batch["bucket"], batch["value"], how=readout)
        return training.cross_entropy(logits_BC, batch["labels"])

    return training.step(loss_fn, tx), tx, loss_fn


def batches(
    prepared: Prepared,
    tables_M: Sequence[graph.Tables],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    number: int | None = None,
) -> list[dict[str, jax.Array]]:
    """Labelled nodes of an epoch, shuffled where there is more than one batch; the last, shorter one is left out.

    Args:
        number: of batches; None: all.
    """
    nodes_B, labels_B = labelled(prepared)
    size = min(batch_size, len(nodes_B))
    rng = np.random.default_rng([seed, epoch])
    if size == len(nodes_B):
        order = np.arange(size)
    elif number is None:
        order = rng.permutation(len(nodes_B))
    else:  # without shuffling all of them, which would take longer on a larger graph
        order = rng.choice(len(nodes_B), number * size, replace=False)
    out = []
    for start_at in range(0, len(order) - size + 1, size)[:number]:
        rows = order[start_at : start_at + size]
        bucket, value = graph.places(tables_M, nodes_B[rows])
        out.append({"bucket": jnp.asarray(bucket), "value": jnp.asarray(value), "labels": jnp.asarray(labels_B[rows])})
    return out


def check_budget(
    sketching: Sketching, *, network: str, num_layers: int, heads: int, order: int, memory_mib: int, advice: str
) -> None:
    """Refuse sketches of a convolution that are larger than the budget, before anything is computed.

    Args:
        advice: which settings make them smaller.

    Raises:
        InputError: names the bytes that are needed.
    """
    total = convolution.num_bytes(
        width=sketching.width,
        num_layers=num_layers,
        order=order,
        blocks=_num_blocks(network, heads),
        sets=sketching.sets,
        top_k=sketching.top_k,
        # Attention is another in every layer.
        is_shared=network != "gat" and hashes.shares_layers(sketching.mode),
    )
    if total > memory_mib * 2**20:
        raise InputError(
            f"sketches of {sketching.width:,} rows, {num_layers} layers, order {order} and {sketching.sets} sets need "
            f"{total / 2**20:,.1f} MiB for the convolution, and sketch.memory_mib={memory_mib} is less; {advice}, or "
            "raise sketch.memory_mib"
        )


def sketched(
    name: str,
    prepared: Prepared,
    coefficients: Coefficients,
    sketching: Sketching,
    *,
    seed: int,
    batch_size: int,
    one_batch: bool = False,
    hashing: refreshing.Hashing | None = None,
    attention: refreshing.Attention | None = None,
    **options: float,
) -> Arm:
    """The network on sketches; a step touches no array with a dimension of the number of nodes.

    Args:
        batch_size: labelled nodes of a step, at most.
        one_batch: an epoch is a single step on nodes drawn for it, so that graphs of all sizes have steps alike.
        hashing: of learned buckets, when and how they are refreshed; None: the defaults.
        attention: of GAT, likewise.
    """
    tables_M, learnable = draw_tables(prepared, sketching, coefficients.order, seed=seed)
    params = start(prepared, seed=seed, order=coefficients.order)
    is_residual = sketching.is_residual
    num_layers = len(prepared.widths) - 1
    matrices_L = attention_matrices(prepared, params, coefficients, is_residual) or [prepared.matrices] * num_layers
    on_host, uses = graph.build(
        prepared.x_ND,
        matrices_L,
        tables_M,
        top_k=sketching.top_k,
        stays_sparse=sketching.buckets != "lsh_learned",  # whose refreshes change rows of dense sketches
    )
    is_learned = coefficients.fixed_LK1 is None
    step_fn, tx, loss_fn = sketch_step(uses, sketching.readout, is_residual, is_learned, **options)
    fixed = np.zeros((num_layers, coefficients.order + 1)) if is_learned else coefficients.fixed_LK1
    frozen = {"sketched": jax.tree.map(jnp.asarray, on_host), "coefficients": jnp.asarray(fixed, jnp.float32)}
    frozen["mean"] = prepared.mean_D
    current = {"tables": tables_M}
    is_whole = batch_size >= int(prepared.graph.splits["train"].sum())

    @functools.lru_cache(maxsize=1)
    def whole(version: int) -> list[Any]:
        return batches(prepared, current["tables"], batch_size=batch_size, seed=seed, epoch=0)

    def batch_fn(epoch: int) -> list[Any]:
        if is_whole:  # made once for the hashes in force
            return whole(id(current["tables"]))
        number = 1 if one_batch else None
        return batches(prepared, current["tables"], batch_size=batch_size, seed=seed, epoch=epoch, number=number)

    refresh_fn, memory = None, None
    if prepared.network == "gat":
        attention = attention or refreshing.Attention()
        refresh_fn = refreshing.attention(
            attention, prepared, coefficients, tables_M, top_k=sketching.top_k, is_residual=is_residual
        )
    elif sketching.buckets == "lsh_learned":
        gradient_fn = functools.partial(_at_features, loss_fn, batch_fn)
        hashing = hashing or refreshing.Hashing()
        refresh_fn = refreshing.hashing(
            hashing, prepared, current, learnable, gradient_fn, seed=seed, top_k=sketching.top_k
        )
        memory = refreshing.memory(current, learnable[0])
    accuracies_fn = inferred(prepared, coefficients, is_residual)
    return Arm(name, step_fn, params, tx.init(params), frozen, batch_fn, accuracies_fn, refresh_fn, memory)


def _at_features(loss_fn: Any, batch_fn: Any, params: Any, frozen: Any) -> jax.Array:
    """The loss's gradient at the sketched features, on the first batch of an epoch."""

    def of(features: jax.Array) -> jax.Array:
        changed = frozen | {"sketched": frozen["sketched"]._replace(features=features)}
        return loss_fn(params, changed, batch_fn(0)[0], jax.random.PRNGKey(0))

    return jax.grad(of)(frozen["sketched"].features)

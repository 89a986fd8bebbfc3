"""What a sketched training changes at intervals, on the host: learned hashes, and the attention of GAT. Both are ours.

Dimensions: N nodes, D features, C rows of a sketch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment.models import gnn
from alignment.sketching import graph, lsh
from alignment.sketching.hashes import Table
from experiments.graphs import arms, training

VECTORS = ("source", "target")  # of GAT's attention
HELD_OUT = 1_024  # nodes whose reconstruction decides whether new hashes are taken


@dataclasses.dataclass(frozen=True)
class Hashing:
    """How hashes are learned.

    Args:
        warmup, every: epochs before the first refresh, and between two.
        share: of the nodes that may move at a refresh.
        steps, lr, margin: of the hinge that directions are trained on.
    """

    warmup: int = 20
    every: int = 10
    share: float = 0.1
    steps: int = 20
    lr: float = 1e-3
    margin: float = 1.0


@dataclasses.dataclass(frozen=True)
class Attention:
    """How attention is refreshed: `every` epochs, after `steps` of Adam at `lr` on its vectors, on the full graph."""

    every: int = 10
    steps: int = 5
    lr: float = 0.01


RefreshFn = Callable[[int, Any, Any], tuple[Any, Any, dict[str, float]] | None]


def hashing(
    options: Hashing,
    prepared: arms.Prepared,
    current: dict[str, Any],
    learnable: tuple[dict[tuple, np.ndarray], np.ndarray],
    gradient_fn: Callable[[Any, Any], jax.Array],
    *,
    seed: int,
    top_k: int | None,
) -> RefreshFn:
    """Train the directions, re-hash the nodes of the largest gradients, and keep what reconstructs z better.

    Args:
        current: "tables" of all sets, replaced where a hash is accepted.
        learnable: directions by (set, layer, order, block), and z.
        gradient_fn: (params, frozen) -> the loss's gradient at the sketched features, [M,K,Q,C,D].
    """
    directions, z_ND = learnable
    held_out = np.random.default_rng([seed, 7]).choice(len(z_ND), min(HELD_OUT, len(z_ND)), replace=False)

    def refresh(epoch: int, params: Any, frozen: Any) -> tuple[Any, Any, dict[str, float]] | None:
        if epoch <= options.warmup or (epoch - options.warmup - 1) % options.every:
            return None
        rng = np.random.default_rng([seed, epoch])
        lengths_MKQC = np.linalg.norm(np.asarray(gradient_fn(params, frozen)), axis=-1)
        replaced: dict[int, Table] = {}
        errors_before, errors_after, num_moved = [], [], 0
        for (m, layer, k, q), direction in directions.items():
            old = current["tables"][m][layer][k][q]
            directions[m, layer, k, q] = lsh.train(
                direction, z_ND, rng, steps=options.steps, learning_rate=options.lr, margin=options.margin
            )
            winners_N = lsh.winners(z_ND, directions[m, layer, k, q])
            new, moved = lsh.rehashed(old, winners_N, lengths_MKQC[m, k, q][old.bucket_N], options.share)
            before, after = (lsh.reconstruction_error(z_ND, table, held_out) for table in (old, new))
            is_better = after < before
            errors_before.append(before)
            errors_after.append(after if is_better else before)
            if is_better:
                replaced[id(old)] = new
                num_moved += len(moved)
        note = {"error before": float(np.mean(errors_before)), "error after": float(np.mean(errors_after))}
        note |= {"hashes taken": len(replaced), "hashes": len(directions), "nodes moved": num_moved}
        if replaced:
            frozen = frozen | {"sketched": _rehashed(frozen["sketched"], replaced, prepared, current, top_k)}
        return params, frozen, note

    return refresh


def _rehashed(
    sketched: Any, replaced: dict[int, Table], prepared: arms.Prepared, current: dict[str, Any], top_k: int | None
) -> Any:
    old_M = current["tables"]
    new_M = _with(old_M, replaced)
    matrices_L = [prepared.matrices] * (len(prepared.widths) - 1)
    changed = graph.rehashed(jax.device_get(sketched), prepared.x_ND, matrices_L, old_M, new_M, top_k=top_k)
    current["tables"] = new_M
    return jax.tree.map(jnp.asarray, changed)


def _with(tables_M: Sequence[graph.Tables], replaced: dict[int, Table]) -> list[graph.Tables]:
    """The hashes with some in others' places, wherever these are shared."""
    return [[[[replaced.get(id(t), t) for t in row] for row in layer] for layer in tables] for tables in tables_M]


def memory(current: dict[str, Any], directions: dict[tuple[int, int, int, int], np.ndarray]) -> training.Memory:
    """Hashes and their directions, which `hashing` replaces, for an arm that is set down and goes on."""

    def read() -> dict[str, np.ndarray]:
        out = {}
        for (m, layer, k, q), direction in directions.items():
            table, name = current["tables"][m][layer][k][q], f"{m},{layer},{k},{q}"
            out |= {f"{name}/direction": direction, f"{name}/bucket": table.bucket_N, f"{name}/value": table.value_N}
        return out

    def write(arrays: dict[str, np.ndarray]) -> None:
        replaced = {}
        for m, layer, k, q in directions:
            old, name = current["tables"][m][layer][k][q], f"{m},{layer},{k},{q}"
            directions[m, layer, k, q] = arrays[f"{name}/direction"]
            replaced[id(old)] = Table(arrays[f"{name}/bucket"], arrays[f"{name}/value"], old.width)
        current["tables"] = _with(current["tables"], replaced)

    return training.Memory(read, write)


def attention(
    options: Attention,
    prepared: arms.Prepared,
    coefficients: arms.Coefficients,
    tables_M: Sequence[graph.Tables],
    *,
    top_k: int | None,
    is_residual: bool,
) -> RefreshFn:
    """Train GAT's attention vectors a little on the full graph, and sketch its convolutions again.

    Between refreshes attention is a constant. A refresh costs a pass over the full graph for each of its steps.
    """
    pattern, x_ND = gnn.entries(prepared.matrices[0]), arms.on_device(prepared.x_ND)
    nodes_B, labels_B = arms.labelled(prepared)
    tx = optax.adam(options.lr)

    def loss_fn(vectors: Any, params: Any) -> jax.Array:
        merged = [layer | vector for layer, vector in zip(params["layers"], vectors)]
        merged = arms.centred(merged, prepared.mean_D)
        logits_NC = gnn.polynomial(
            merged, coefficients.of(params), x_ND, gnn.attended(pattern), is_residual=is_residual
        )
        return training.cross_entropy(logits_NC[nodes_B], labels_B)

    @jax.jit
    def train(params: Any) -> Any:
        vectors = [{name: layer[name] for name in VECTORS} for layer in params["layers"]]
        state = tx.init(vectors)
        for _ in range(options.steps):
            changes, state = tx.update(jax.grad(loss_fn)(vectors, params), state)
            vectors = optax.apply_updates(vectors, changes)
        return params | {"layers": [layer | vector for layer, vector in zip(params["layers"], vectors)]}

    def refresh(epoch: int, params: Any, frozen: Any) -> tuple[Any, Any, dict[str, float]] | None:
        if epoch == 1 or (epoch - 1) % options.every:
            return None
        params = train(params)
        matrices_L = arms.attention_matrices(prepared, params, coefficients, is_residual)
        assert matrices_L is not None
        changed, _ = graph.build(prepared.x_ND, matrices_L, tables_M, top_k=top_k, stays_sparse=True)
        return params, frozen | {"sketched": jax.tree.map(jnp.asarray, changed)}, {"layers": float(len(matrices_L))}

    return refresh

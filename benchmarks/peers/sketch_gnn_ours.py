"""Our side of benchmarks/sketch_gnn.py: an epoch on the small graph, full and sketched steps on the large one."""

import functools
import importlib.metadata
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import decode_task

FOLDER = Path(sys.argv[1])
DECAYED = dict(lr=0.01, weight_decay=5e-4, clip_norm=0.0)
PLAIN = dict(lr=0.01, weight_decay=0.0, clip_norm=1.0)


def versions():
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "scipy")}


def timed(arm, size, *, evaluates):
    """Median seconds of a step, with an evaluation where an epoch has one; the first two are not counted."""
    import jax
    import jax.numpy as jnp

    params, opt_state = jax.tree.map(jnp.array, (arm.params, arm.opt_state))
    spans, accuracy = [], 0.0
    for number in range(size + 2):
        start = time.perf_counter()
        key = jax.random.fold_in(jax.random.PRNGKey(0), number)
        params, opt_state, loss = arm.step_fn(params, opt_state, arm.frozen, arm.batch_fn(1)[0], key)
        jax.block_until_ready(loss)
        if evaluates:
            accuracy = arm.accuracies_fn(params, arm.frozen)["test"]
        spans.append(time.perf_counter() - start)
    return sorted(spans[2:])[size // 2], accuracy


def jobs():
    import numpy as np
    import scipy.sparse

    from data import graphs
    from experiments.graphs import arms, scaling, sketched

    @functools.cache
    def prepared(task):
        with np.load(FOLDER / f"{task}.npz") as file:
            shape = (len(file["y"]),) * 2
            ones = np.ones(len(file["indices"]), np.float32)
            adjacency = scipy.sparse.csr_matrix((ones, file["indices"], file["indptr"]), shape=shape).tocoo()
            x = file["x"] if task == "large" else scipy.sparse.csr_matrix(file["x"])
            splits = {split: file[split] for split in graphs.SPLITS}
            graph = graphs.build(task, adjacency.row, adjacency.col, x, file["y"], splits)
        hidden, features = (16, "rows") if task == "small" else (64, "columns")
        return arms.prepare(graph, features=features, name="gcn", num_layers=2, hidden=hidden, heads=1)

    @functools.cache
    def arm(task, kind):
        if kind == "full":
            dropout = 0.5 if task == "small" else 0.0
            options = DECAYED if task == "small" else PLAIN
            return arms.full("full", prepared(task), seed=0, dropout=dropout, **options)
        sketching = scaling.sketching(scaling.Options(width=1_024))
        given = arms.Coefficients(2)
        sizes = dict(seed=0, batch_size=1_024, one_batch=True)
        return sketched.sketched("sketch", prepared(task), given, sketching, **sizes, **PLAIN, dropout=0.0)

    def answer(task, kinds, size, *, evaluates):
        out, start, cpu = {}, time.perf_counter(), time.process_time()
        for kind in kinds:
            out[kind], out["accuracy"] = timed(arm(task, kind), size, evaluates=evaluates)
        return out | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}

    return {
        "small": lambda size: answer("small", ["full"], size, evaluates=True),
        "large": lambda size: answer("large", ["full", "sketch"], size, evaluates=False),
    }


if __name__ == "__main__":
    decode_task.serve(versions, jobs)

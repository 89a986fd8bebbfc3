"""Our side of benchmarks/sketch_gnn.py: an epoch on the small graph; training and steps on block models by size."""

import functools
import importlib.metadata
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import decode_task

FOLDER = Path(sys.argv[1])
DECAYED = dict(lr=0.01, weight_decay=5e-4, clip_norm=0.0)


def versions():
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "scipy")}


def epochs(arm, size):
    """Median seconds of a step and an evaluation, the first two not counted, and the last test accuracy."""
    import jax
    import jax.numpy as jnp

    params, opt_state = jax.tree.map(jnp.array, (arm.params, arm.opt_state))
    spans, accuracy = [], 0.0
    for number in range(size + 2):
        start = time.perf_counter()
        key = jax.random.fold_in(jax.random.PRNGKey(0), number)
        params, opt_state, _ = arm.step_fn(params, opt_state, arm.frozen, arm.batch_fn(1)[0], key)
        jax.block_until_ready(params)
        accuracy = arm.accuracies_fn(params, arm.frozen)["test"]
        spans.append(time.perf_counter() - start)
    return statistics.median(spans[2:]), accuracy


def small_arm():
    import numpy as np
    import scipy.sparse

    from data import graphs
    from experiments.graphs import arms

    with np.load(FOLDER / "small.npz") as file:
        shape = (len(file["y"]),) * 2
        ones = np.ones(len(file["indices"]), np.float32)
        adjacency = scipy.sparse.csr_matrix((ones, file["indices"], file["indptr"]), shape=shape).tocoo()
        splits = {split: file[split] for split in graphs.SPLITS}
        x = scipy.sparse.csr_matrix(file["x"])
        graph = graphs.build("small", adjacency.row, adjacency.col, x, file["y"], splits)
    prepared = arms.prepare(graph, features="rows", name="gcn", num_layers=2, hidden=16, heads=1)
    return arms.full("full", prepared, seed=0, dropout=0.5, **DECAYED)


def jobs():
    from data.toys import block_model
    from experiments.graphs import scaling, training

    small = functools.cache(small_arm)
    made = {}  # by number of nodes

    def train(size, **options):
        options = scaling.Options(**options)
        made[size] = scaling.make(options, block_model.Options(), size, 0)
        return {"row": scaling.measure(options, made[size], FOLDER, 0)}

    def epoch(size):
        seconds, accuracy = epochs(small(), size)
        return {"full": seconds, "accuracy": accuracy}

    def steps(size):
        sketched = {nodes: training.seconds_a_step(one.sketched, size) for nodes, one in made.items()}
        return {"full": training.seconds_a_step(made[max(made)].full, size), "sketched": sketched}

    def by_clock(job):
        def answer(**request):
            start, cpu = time.perf_counter(), time.process_time()
            out = job(**request)
            return out | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}

        return answer

    return {"train": by_clock(train), "small": by_clock(epoch), "large": by_clock(steps)}


if __name__ == "__main__":
    decode_task.serve(versions, jobs)

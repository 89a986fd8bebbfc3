"""Our side of benchmarks/meta_ref.py."""

import importlib.metadata
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import decode_task

os.environ["THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def versions():
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}


def jobs():
    import jax
    import jax.numpy as jnp

    from alignment.fairness import meta, methods, predictors, referee
    from alignment.train import step, train_state

    with np.load(sys.argv[1]) as stored:
        task = dict(stored)
    network = predictors.build("mlp", 1, widths=(len(task["b1"]),))
    learner = meta.Learner(
        lambda theta, x: network.apply({"params": theta}, x), predictors.LOGISTIC, referee.factors_fn("even"), 0.5
    )
    tx = meta.optimizers(2e-3, 2e-3)
    updates = {}

    def steps(tasks: int, inner: int, steps: int) -> dict:
        if inner not in updates:
            updates[inner] = jax.jit(meta.build(learner, methods.METHODS["maml"], tx, steps=inner), donate_argnums=0)
        batches = []
        for first in range(0, len(task["support_y"]) // 64 * tasks, tasks):
            batch = {key: task[key][first : first + tasks] for key in meta.TASK}
            batch = {key: x.astype("i4") if key.endswith("_y") else x for key, x in batch.items()}
            batches.append(jax.device_put(batch | {"task": np.arange(tasks, dtype="i4")}))
        theta = {
            "hidden_0": {"kernel": jnp.asarray(task["w1"]), "bias": jnp.asarray(task["b1"])},
            "out": {"kernel": jnp.asarray(task["w2"]), "bias": jnp.asarray(task["b2"])},
        }
        params = {"theta": theta, "phi": {}}
        frozen = {"diverged_task": jnp.full((), -1, jnp.int32), "largest_factor": jnp.zeros(())}
        state = train_state.TrainState(
            jnp.zeros((), jnp.int32), params, meta.joint(tx).init(params), jax.random.PRNGKey(0), frozen
        )
        compiled = updates[inner].lower(state, batches[0]).compile()
        losses = []
        cpu, start = time.process_time(), time.perf_counter()
        for number in range(steps):
            state, metrics = compiled(state, batches[number % len(batches)])
            losses.append(metrics["loss"])
        jax.block_until_ready(state)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "losses": [float(step.value(loss)) for loss in losses]}

    return {"steps": steps}


if __name__ == "__main__":
    decode_task.serve(versions, jobs)

"""The peer of benchmarks/meta_ref.py: MAML by torch.func, vmap over tasks, grad of grad, torch's Adam."""

import importlib.metadata
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import decode_task

os.environ["THREADS"] = "1"


def versions():
    return {"torch": importlib.metadata.version("torch")}


def jobs():
    import torch
    from torch.func import grad, vmap
    from torch.nn import functional

    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as stored:
        task = {key: torch.from_numpy(array) for key, array in stored.items()}
    names = ("w1", "b1", "w2", "b2")
    keys = ("support_x", "support_y", "query_x", "query_y")

    def loss(params, x, y):
        logits = torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
        return functional.binary_cross_entropy_with_logits(logits[..., 0], y)

    def after(params, support_x, support_y, query_x, query_y, inner):
        for _ in range(inner):
            slope = grad(loss)(params, support_x, support_y)
            params = {name: params[name] - 0.5 * slope[name] for name in params}
        return loss(params, query_x, query_y)

    def steps(tasks: int, inner: int, steps: int) -> dict:
        params = {name: task[name].clone().requires_grad_(True) for name in names}
        adam = torch.optim.Adam(list(params.values()), lr=2e-3)
        firsts = range(0, len(task["support_y"]) // 64 * tasks, tasks)
        batches = [[task[key][first : first + tasks] for key in keys] for first in firsts]
        many = vmap(lambda params, *arrays: after(params, *arrays, inner), in_dims=(None, 0, 0, 0, 0))
        losses = []
        cpu, start = time.process_time(), time.perf_counter()
        for number in range(steps):
            value = many(params, *batches[number % len(batches)]).mean()
            adam.zero_grad()
            value.backward()
            adam.step()
            losses.append(value.detach())
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "losses": [float(value) for value in losses]}

    return {"steps": steps}


if __name__ == "__main__":
    decode_task.serve(versions, jobs)

"""Steps of several points of a sweep as one program, beside as many single steps, without the launcher around them.

    python benchmarks/batched.py --output benchmarks/results/batched.md
    python benchmarks/batched.py --quick

A DPO step of a small network with a reference kept, for K points that differ in beta and rate. `single` takes the step
of one point after the other, by the program that all points share; `in turn` is the program of K steps that takes the
points one after the other, as batched sweeps do on CPUs; `stacked` is the one that maps over the leading axis, as they
do on accelerators. CPU time is that of this process, which other work on the machine lengthens less than wall time;
compiling is not counted.
"""

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

SHAPES = dict(  # widths of the network, and the pairs and tokens of a point's step
    tiny=dict(model_dim=64, num_layers=2, num_heads=2, num_kv_heads=2, ffn_dim=128, pairs=4, length=32),
    laptop=dict(model_dim=128, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=384, pairs=32, length=160),
    wider=dict(model_dim=256, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=704, pairs=8, length=128),
)
VOCABULARY = 320
ARMS = ("single", "in turn", "stacked")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="the medians count")
    parser.add_argument("--steps", type=int, default=4, help="of every point in a round")
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"comma-separated, of {', '.join(SHAPES)}")
    parser.add_argument("--quick", action="store_true", help="the shape tiny, two rounds")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    names, rounds = (["tiny"], 2) if args.quick else (args.shapes.split(","), args.rounds)
    if unknown := set(names) - SHAPES.keys():
        raise SystemExit(f"--shapes knows {', '.join(SHAPES)}; got {unknown.pop()!r}")
    rows = []
    for name in names:
        for arm in ARMS:
            machine.wait_until_quiet(args.patience)
            marks, losses = run_arm(arm, SHAPES[name], args.points, rounds, args.steps)
            gaps = [[b - a for a, b in zip(one, other)] for one, other in itertools.pairwise(marks)]
            wall, cpu = ([gap[i] / args.steps for gap in gaps] for i in (0, 1))
            others = [max(busy - own, 0.0) / passed for passed, own, busy in gaps]
            rows.append(dict(shape=name, arm=arm, wall=wall, cpu=cpu, losses=losses, others_busy_cores=others))
            print(f"{name}, {arm}: {statistics.median(wall):.4f} s, CPU {statistics.median(cpu):.4f} s", flush=True)
    return rows, {"points": args.points, "steps": args.steps, "rounds": rounds, "shapes": SHAPES}


def run_arm(arm: str, shape: dict[str, int], num: int, rounds: int, steps: int) -> tuple[list[tuple], list[float]]:
    """The clocks after the first step of all points and after each round, and the points' last losses."""
    from alignment.train import batched, step

    points, marks, total = [point(shape, k) for k in range(num)], [], 1 + rounds * steps

    def mark(number: int) -> None:
        if number % steps == 1 % steps:  # the first step compiles
            marks.append((time.perf_counter(), time.process_time(), machine.busy_cpu_seconds()))

    if arm == "single":
        runs = [steps_of(step.compile_update(update, state), state, batch) for update, state, batch in points]
        for number in range(1, total + 1):
            losses = [next(run) for run in runs]
            mark(number)
        return marks, losses

    names = [str(k) for k in range(num)]

    def train(k: int) -> float:
        update, state, batch = points[k]
        with batched.training(names[k]):
            run = steps_of(batched.compiled_update(update, state, names[k]), state, batch)
            for number in range(1, total + 1):
                loss = next(run)
                if k == num - 1:  # the last to hear of a step
                    mark(number)
        return loss

    group = batched.Group({name: {} for name in names}, names, in_turn=arm == "in turn")
    return marks, group.run([functools.partial(train, k) for k in range(num)])


def point(shape: dict[str, int], k: int) -> tuple[Any, Any, dict[str, Any]]:
    """Update, first state and batch of a point, of which all have the same but for beta and rate."""
    import jax.numpy as jnp

    from alignment.models import decoder
    from alignment.preference import pairs
    from alignment.train import optimizer, sharding, step, train_state

    widths = {name: shape[name] for name in ("model_dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim")}
    model, mesh = decoder.DecoderLM(vocab_size=VOCABULARY, **widths), sharding.make_mesh()
    tx = optimizer.adamw(1e-4 * (1 + k), schedule="constant")
    state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh)
    loss_fn = pairs.loss_fn(model, "dpo", mesh=mesh, beta=0.05 * (1 + k))
    return step.build(loss_fn, tx), state, sharding.to_devices(batch_of(shape), mesh)


def batch_of(shape: dict[str, int]) -> dict[str, np.ndarray]:
    """Pairs of drawn tokens, an answer a row, the second half of each the answer."""
    num, length = shape["pairs"], shape["length"]
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2 * num, length)).astype(np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    half = (num, 2, length // 2)
    sources = np.broadcast_to(np.arange(length // 2 - 1, length - 1, dtype=np.int32)[: half[-1]], half)
    return {
        "tokens": tokens,
        "positions": places.copy(),
        "groups": np.ones_like(tokens),
        "branches": np.zeros_like(tokens),
        "sources": sources.copy(),
        "targets": tokens[:, length - half[-1] :].reshape(half),
        "mask": np.ones(half, np.float32),
        "weights": np.ones(num, np.float32),
        "reference": np.full(half, -6.0, np.float32),
    }


def steps_of(update: Callable, state: Any, batch: dict[str, Any]) -> Iterator[float]:
    """The loss of one step more for every `next`."""
    while True:
        state, metrics = update(state, batch)
        yield float(metrics["loss"].total) / float(metrics["loss"].count)


def report(rows: list[dict], facts: dict) -> str:
    head = ["shape", "arm", "all points' step, s", "over single", "CPU, s", "CPU over single", "apart"]
    cells = []
    for row in rows:
        base = next(r for r in rows if r["shape"] == row["shape"] and r["arm"] == "single")
        wall, cpu = (statistics.median(row[name]) for name in ("wall", "cpu"))
        ratios = [wall / statistics.median(base["wall"]), cpu / statistics.median(base["cpu"])]
        apart = max(abs(a - b) for a, b in zip(row["losses"], base["losses"]))
        cells.append([row["shape"], row["arm"], f"{wall:.4f}", f"{ratios[0]:.2f}", f"{cpu:.4f}", f"{ratios[1]:.2f}"])
        cells[-1].append(f"{apart:.1e}")
    shapes = "; ".join(f"{name}: " + ", ".join(f"{k} {v}" for k, v in of.items()) for name, of in SHAPES.items())
    notes = {
        "Task": f"{facts['points']} points; medians of {facts['rounds']} rounds of {facts['steps']} steps; `apart` is "
        "the largest difference between the last losses of the points and those of `single`",
        "Shapes": f"{shapes}; vocabulary {VOCABULARY}, float32, AdamW, a reference kept",
        "Command": f"`{facts['command']}`",
        "Hardware": f"{facts['hardware']}; {machine.noise([x for row in rows for x in row['others_busy_cores']])}",
        "When": f"{facts['date']}, commit {facts['commit']}",
    }
    return f"{machine.table(head, cells)}\n\n{machine.notes(notes)}"


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report)

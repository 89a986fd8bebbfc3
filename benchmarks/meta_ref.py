"""Second-order MAML steps over places beside torch.func: same tasks, same first parameters, in turns of one run.

    python benchmarks/meta_ref.py --output benchmarks/results/meta_ref.md     (about three minutes)
    python benchmarks/meta_ref.py --quick                                     (once, to see that everything works)

A step is that of `alignment.fairness.meta` on tasks of nine places with 16 and 32 samples: inner steps by vmap over
tasks, the gradient through them, Adam; ours checks for divergence and measures the factors beside it. Both sides must
reach the same losses. Batches are made beforehand. One thread each; time by the number of tasks and of inner steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from data.toys import regions

PEERS = Path(__file__).resolve().parent / "peers"
MAIN = (16, 3)  # tasks, inner steps
SIZES = (MAIN, (8, 3), (32, 3), (64, 3), (16, 1), (16, 6), (16, 12))
NUM_BATCHES, HIDDEN, AGREE_STEPS = 4, 16, 5
TOLERANCE = 1e-3  # relative, of the losses
LEAST, AIM = 3.0, 8.0  # times as fast
MOST_POWER = 1.1  # of the number of tasks or of inner steps, where time is to be linear in it
KEYS = ("support_x", "support_y", "query_x", "query_y", "query_weight", "place_weight")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant; the medians count")
    parser.add_argument("--steps", type=int, default=100, help="steps of a turn")
    parser.add_argument("--quick", action="store_true", help="one round of five steps at the main size")


def write_task(folder: Path) -> None:
    """Batches of the largest size, and first parameters, as both sides read them."""
    most = max(tasks for tasks, _ in SIZES)
    made = [regions.task(number, support=16, query=32) for number in range(NUM_BATCHES * most)]
    arrays = {key: np.stack([one[key] for one in made]).astype("f4") for key in KEYS}
    rng = np.random.default_rng(0)
    shapes = {"w1": (regions.FEATURES, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 1), "b2": (1,)}
    arrays |= {name: (0.3 * rng.standard_normal(shape)).astype("f4") for name, shape in shapes.items()}
    np.savez(folder / "task.npz", **arrays)


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    write_task(folder)
    has_peer = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0
    peer = "" if has_peer else "torch"
    python = machine.environment(peer, [machine.TORCH, ("numpy",)], args.env_dir, args.python or machine.find_python())
    commands = {
        "ours": [sys.executable, str(PEERS / "meta_ref_ours.py"), str(folder / "task.npz")],
        "torch": [python, str(PEERS / "meta_ref_torch.py"), str(folder / "task.npz")],
    }
    workers = {name: machine.Worker(name, line, folder / f"{name}.log") for name, line in commands.items()}
    rows = []
    try:
        for tasks, inner in SIZES[:1] if args.quick else SIZES:
            rows += at_size(workers, tasks, inner, args)
    finally:
        for worker in workers.values():
            worker.close()
    return rows, {"versions": machine.versions_of({name: worker.versions for name, worker in workers.items()})}


def at_size(workers: dict[str, machine.Worker], tasks: int, inner: int, args: argparse.Namespace) -> list[dict]:
    def ask(who: str, steps: int) -> dict:
        workers[who].ask(json.dumps({"job": "steps", "tasks": tasks, "inner": inner, "steps": steps}))
        return workers[who].read("done")

    first = {who: ask(who, AGREE_STEPS)["losses"] for who in workers}  # compiles too
    if not np.allclose(first["ours"], first["torch"], rtol=TOLERANCE):
        raise SystemExit(f"{tasks} tasks, {inner} inner steps: losses {first['ours']} and {first['torch']} differ")
    rows = []
    for number in range(1 if args.quick else args.rounds):
        row: dict = {"tasks": tasks, "inner": inner, "round": number}
        for who in workers:
            machine.wait_until_quiet(args.patience)
            busy = machine.busy_cpu_seconds()
            answer = ask(who, 5 if args.quick else args.steps)
            others = machine.busy_cpu_seconds() - busy - answer["cpu_seconds"]
            num = len(answer["losses"])
            row |= {f"{who}_seconds": answer["seconds"] / num, f"{who}_cpu_seconds": answer["cpu_seconds"] / num}
            row[f"{who}_others"] = max(0.0, others) / answer["seconds"]
        rows.append(row)
    print(f"{tasks} tasks, {inner} inner steps: done", flush=True)
    return rows


def growth(rows: list[dict]) -> str:
    """The powers of tasks and of inner steps that our time grows by, fitted to logarithms; 1 is linear."""
    said = []
    for name, fixed in (("tasks", "inner"), ("inner", "tasks")):
        mine = [row for row in rows if row[fixed] == MAIN[("tasks", "inner").index(fixed)]]
        if len({row[name] for row in mine}) > 1:
            logs = np.log([[row[name], row["ours_cpu_seconds"]] for row in mine])
            power = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
            verdict = "at most linear" if power <= MOST_POWER else f"more than linear ({MOST_POWER:g} is allowed)"
            said.append(f"with {'inner steps' if name == 'inner' else name} to the power {power:.2f}, {verdict}")
    return f"Our CPU time of a step grows {'; '.join(said)}." if said else ""


def report(rows: list[dict], facts: dict) -> str:
    body = []
    for tasks, inner in dict.fromkeys((row["tasks"], row["inner"]) for row in rows):
        mine = [row for row in rows if (row["tasks"], row["inner"]) == (tasks, inner)]
        cells = [str(tasks), str(inner)]
        for who in ("ours", "torch"):
            seconds, cpu = (
                statistics.median(row[f"{who}_{name}"] for row in mine) for name in ("seconds", "cpu_seconds")
            )
            cells += [f"{1 / seconds:,.0f}", f"{1e3 * cpu:.2f}"]
        ratios = [row["torch_seconds"] / row["ours_seconds"] for row in mine]
        cells.append(f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})")
        body.append(cells)
    head = ["tasks", "inner steps", "ours, steps/s", "ours, CPU ms", "torch.func, steps/s", "torch.func, CPU ms"]
    noise = machine.noise([row[f"{who}_others"] for row in rows for who in ("ours", "torch")])
    lines = ["# Second-order MAML steps over places", "", machine.table([*head, "times as fast"], body), ""]
    lines += [f"Asked for at {MAIN[0]} tasks and {MAIN[1]} inner steps: {LEAST:g} times as fast; the aim: {AIM:g}."]
    lines += [said] if (said := growth(rows)) else []
    return "\n".join([*lines, f"While a side worked, {noise}.", "", machine.notes(facts)])


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)

"""Graph networks beside torch: an epoch on a graph of Cora's size, and steps on block models of up to a million nodes.

    python benchmarks/sketch_gnn.py --data cora.npz --output benchmarks/results/sketch_gnn.md

On the small graph both train the same two-layer GCN (16 hidden, dropout 0.5, Adam at 0.01 with decay 5e-4), an epoch
being a step on all nodes and an evaluation. On the block models of --sizes we train the GCN of 64 hidden units on
sketches of --width rows and on the full graph, once; then steps are timed in turns, on sketches of every size, and on
the largest graph of our full GCN and of the peer's. Of each size the second table has memory and time of a step, test
accuracy with its 95 % interval over test nodes, and what is done once: drawing the graph, sketching it, and a pass over
all of it with the trained weights. A step on sketches that has an array with a dimension of the graph ends the run.

The peer is PyTorch Geometric's GCNConv on a normalised CSR matrix, its faster way, and where pip cannot install it a
GCN of plain torch on the same matrix; the table's head says which. It runs in an environment of its own (--env-dir).
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine

PEERS = Path(__file__).resolve().parent / "peers"
WANTED = {"small": 1.0, "large": 5.0}  # times that the peer's step should take of ours
GROWTH = 1.2  # of memory and time of a sketched step from the smallest graph to the largest, at most
GAIN = 0.5  # of the full network's accuracy above chance, at least
COLUMNS = {  # of the curve: a key of scaling.measure's row, and how its number is written
    "nodes": ("nodes", ","),
    "edges": ("edges", ","),
    "MiB a step": ("MiB a step", ".1f"),
    "largest dimension": ("largest dimension", ","),
    "full, MiB": ("full: MiB a step", ",.1f"),
    "full, s a step": ("full: seconds a step", ",.4f"),
    "chance": ("chance", ".3f"),
    "drawing, s": ("seconds to draw the graph", ".1f"),
    "sketching, s": ("seconds to sketch it", ".1f"),
    "inference, s": ("seconds of inference", ".2f"),
}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="turns of everything; the medians count")
    parser.add_argument("--data", default="", help="a graph for the small task; none: a block model of Cora's size")
    parser.add_argument(
        "--sizes", default="10000,100000,1000000", help="nodes of the block models, from small to large"
    )
    parser.add_argument("--width", type=int, default=1_024, help="rows of the sketches, of every size")
    parser.add_argument("--train-steps", type=int, default=100, help="of the sketched networks")
    parser.add_argument("--full-steps", type=int, default=30, help="of the full networks")
    parser.add_argument("--epochs", type=int, default=50, help="of the small task, in each round")
    parser.add_argument("--steps", type=int, default=5, help="that are timed of each network, in each round")


def write_graph(path: Path, data: str, num_nodes: int) -> None:
    """What the peer reads, and of the small task both: the adjacency, features, classes and masks, as arrays."""
    from data import graph_files
    from data.toys import block_model
    from experiments.graphs import scaling

    if data:
        graph = graph_files.read(data)
    else:
        options = scaling.Options()
        is_small = path.stem == "small"
        sizes = (
            dict(inside=3.0, outside=0.9, features=64)
            if is_small
            else dict(inside=options.inside, outside=options.outside)
        )
        graph = block_model.graph(block_model.Options(nodes=num_nodes, **sizes), 0)
    x_ND = graph.x_ND.toarray() if hasattr(graph.x_ND, "toarray") else graph.x_ND
    splits = {split: np.flatnonzero(mask_N) for split, mask_N in graph.splits.items()}
    adjacency = graph.adjacency
    np.savez(path, indptr=adjacency.indptr, indices=adjacency.indices, x=x_ND, y=graph.y_N, **splits)


def peer_python(args: argparse.Namespace) -> str:
    has_pyg = subprocess.run([sys.executable, "-c", "import torch_geometric"], capture_output=True).returncode == 0
    packages = [machine.TORCH, ("torch_geometric scipy", "scipy")]
    return machine.environment("" if has_pyg else "pyg", packages, args.env_dir, args.python or machine.find_python())


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    sizes = [int(size) for size in args.sizes.split(",")]
    if sizes != sorted(set(sizes)) or sizes[0] <= args.width:
        raise SystemExit(f"--sizes={args.sizes}: they rise, and the first is above --width={args.width}")
    python = peer_python(args)
    write_graph(folder / "small.npz", args.data, 2_708)
    commands = {
        "ours": [sys.executable, str(PEERS / "sketch_gnn_ours.py"), str(folder)],
        "torch": [python, str(PEERS / "sketch_gnn_torch.py"), str(folder)],
    }
    workers = {name: machine.Worker(name, line, folder / f"{name}.log") for name, line in commands.items()}
    versions = {name: worker.versions for name, worker in workers.items()}
    rows = []
    for size in sizes:
        options = dict(size=size, width=args.width, steps=args.train_steps, full_steps=args.full_steps)
        rows.append({"task": "train", "ours": asked(workers["ours"], "train", **options)["row"]})
        print(f"trained on {size:,} nodes", flush=True)
    write_graph(folder / "large.npz", "", sizes[-1])
    for number in range(args.rounds):
        for task, size in (("small", args.epochs), ("large", args.steps)):
            rows.append(one_turn(workers, task, size, args.patience) | {"round": number})
            print(f"round {number + 1}, {task}", flush=True)
    for worker in workers.values():
        worker.close()
    peer = "PyTorch Geometric's GCNConv" if "torch_geometric" in versions["torch"] else "GCN of plain torch"
    graph = args.data or "a block model of Cora's size"
    about = {"peer": peer, "small graph": Path(graph).name, "rows of a sketch": f"{args.width:,}, in every size"}
    return rows, about | {"versions": machine.versions_of(versions)}


def asked(worker: machine.Worker, job: str, **request: Any) -> dict:
    worker.ask(json.dumps({"job": job, **request}))
    return worker.read("done")


def one_turn(workers: dict[str, machine.Worker], task: str, size: int, patience: float) -> dict:
    out: dict = {"task": task}
    for name, worker in workers.items():
        machine.wait_until_quiet(patience)
        busy = machine.busy_cpu_seconds()
        answer = asked(worker, task, size=size)
        out[name] = answer
        out[f"{name}_others"] = max(0.0, machine.busy_cpu_seconds() - busy - answer["cpu_seconds"]) / answer["seconds"]
    return out


# The report


def report(rows: list[dict], facts: dict) -> str:
    turns = {task: [row for row in rows if row["task"] == task] for task in ("train", "small", "large")}
    small, large = turns["small"], turns["large"]
    noise = f"While ours worked, {machine.noise([row['ours_others'] for row in small + large])}."
    same = f"Test accuracy on the small graph after a turn: ours {small[-1]['ours']['accuracy']:.3f}, the peer's "
    same += f"{small[-1]['torch']['accuracy']:.3f}."
    parts = [
        "# Graph networks beside torch",
        beside_torch(small, large, facts["peer"]),
        f"{noise} {same}",
        "## Memory and time by the size of the graph",
        curve(turns["train"], large),
        "An accuracy has its 95 % interval over test nodes. Drawing, sketching and inference are no part of a step.",
        machine.notes(facts),
    ]
    return "\n\n".join(parts)


def beside_torch(small: list[dict], large: list[dict], peer: str) -> str:
    largest = max(large[0]["ours"]["sketched"], key=int)
    body = []
    for task, network, turns, ours_fn in (
        ("small, epoch", "full", small, lambda ours: ours["full"]),
        ("large, step", "sketch", large, lambda ours: ours["sketched"][largest]),
        ("large, step", "full", large, lambda ours: ours["full"]),
    ):
        ours, theirs = [ours_fn(row["ours"]) for row in turns], [row["torch"]["full"] for row in turns]
        wanted = {"full": WANTED["small"] if turns is small else None, "sketch": WANTED["large"]}[network]
        times = [f"{1e3 * statistics.median(seconds):,.1f}" for seconds in (ours, theirs)]
        ratio = spread([their / our for our, their in zip(ours, theirs)])
        peaks = ", ".join(f"{turns[-1][who]['peak_rss_mb']:,.0f}" for who in ("ours", "torch"))
        body.append([task, network, *times, ratio, "" if wanted is None else f"at least {wanted:g}", peaks])
    head = [
        "task",
        "our network",
        "ours, ms",
        f"{peer}, full graph, ms",
        "ratio",
        "wanted",
        "peak MiB of both processes",
    ]
    return machine.table(head, body)


def accuracy(row: dict, name: str) -> str:
    return f"{row[name]:.4f} ({row[f'{name}, low']:.4f}-{row[f'{name}, high']:.4f})"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def curve(trained: list[dict], large: list[dict]) -> str:
    """The table of sizes, and what was asked of it."""
    rows = [row["ours"] for row in trained]
    names = [str(row["nodes"]) for row in rows]
    growth = [[turn["ours"]["sketched"][name] / turn["ours"]["sketched"][names[0]] for turn in large] for name in names]
    body = []
    for row, name, over_first in zip(rows, names, growth):
        steps = f"{1e3 * statistics.median(turn['ours']['sketched'][name] for turn in large):.1f}"
        cells = [f"{row[key]:{form}}" for key, form in COLUMNS.values()]
        body.append(
            [*cells, steps, spread(over_first), accuracy(row, "test accuracy"), accuracy(row, "full: test accuracy")]
        )
    head = [*COLUMNS, "ms a step", "times the first's", "test accuracy", "full"]
    last = rows[-1]
    gains = [
        (last[f"test accuracy{ours}"] - last["chance"]) / (last[f"full: test accuracy{full}"] - last["chance"])
        for ours, full in (("", ""), (", low", ", high"), (", high", ", low"))
    ]
    memory = max(row["MiB a step"] for row in rows) / min(row["MiB a step"] for row in rows)
    time = max(statistics.median(ratios) for ratios in growth)
    verdict = [
        ["memory, the most over the least", f"{memory:.3f}", f"at most {GROWTH:g}"],
        ["time, the most over the smallest graph's", f"{time:.3f}", f"at most {GROWTH:g}"],
        [
            "accuracy above chance on the largest graph, sketched over full",
            f"{gains[0]:.4f} ({gains[1]:.4f}-{gains[2]:.4f})",
            f"at least {GAIN:g}",
        ],
    ]
    return machine.table(head, body) + "\n\n" + machine.table(["of the curve", "measured", "wanted"], verdict)


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)

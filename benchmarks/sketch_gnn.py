"""Graph networks beside torch: an epoch on a graph of Cora's size, and a step on a million nodes, in turns of one run.

    python benchmarks/sketch_gnn.py --data cora.npz --output benchmarks/results/sketch_gnn.md

On the small graph both train the same two-layer GCN (16 hidden, dropout 0.5, Adam at 0.01 with decay 5e-4), an epoch
being a step on all nodes and an evaluation. On the large one, a block model, the peer trains the GCN of 64 hidden units
on the full graph, and we the sketched one of 1,024 rows and our own full one. The peer is PyTorch Geometric's
GCNConv on a normalised CSR matrix, its faster way, and where pip cannot install it a GCN of plain torch on the same
matrix; the table's head says which.
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

PEERS = Path(__file__).resolve().parent / "peers"
WANTED = {"small": 1.0, "large": 5.0}  # times that the peer's step should take of ours


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="turns of everything; the medians count")
    parser.add_argument("--data", default="", help="a graph for the small task; none: a block model of Cora's size")
    parser.add_argument("--nodes", type=int, default=1_000_000, help="of the large block model")
    parser.add_argument("--epochs", type=int, default=50, help="of the small task, in each round")
    parser.add_argument("--steps", type=int, default=5, help="of the large task, in each round")


def write_graph(path: Path, data: str, num_nodes: int) -> None:
    """What both sides read: the adjacency, features, classes and masks, as arrays."""
    from data import graph_files
    from data.toys import block_model

    if data:
        graph = graph_files.read(data)
    else:
        is_small = num_nodes == 2_708
        sizes = dict(inside=3.0, outside=0.9, features=64) if is_small else dict(inside=15.0, outside=5.0)
        graph = block_model.graph(block_model.Options(nodes=num_nodes, **sizes), 0)
    x_ND = graph.x_ND.toarray() if hasattr(graph.x_ND, "toarray") else graph.x_ND
    splits = {split: np.flatnonzero(mask_N) for split, mask_N in graph.splits.items()}
    adjacency = graph.adjacency
    np.savez(path, indptr=adjacency.indptr, indices=adjacency.indices, x=x_ND, y=graph.y_N, **splits)


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    has_pyg = subprocess.run([sys.executable, "-c", "import torch_geometric"], capture_output=True).returncode == 0
    packages = [machine.TORCH, ("torch_geometric scipy", "scipy")]
    python = machine.environment("" if has_pyg else "pyg", packages, args.env_dir, args.python or machine.find_python())
    write_graph(folder / "small.npz", args.data, 2_708)
    write_graph(folder / "large.npz", "", args.nodes)
    commands = {
        "ours": [sys.executable, str(PEERS / "sketch_gnn_ours.py"), str(folder)],
        "torch": [python, str(PEERS / "sketch_gnn_torch.py"), str(folder)],
    }
    workers = {name: machine.Worker(name, line, folder / f"{name}.log") for name, line in commands.items()}
    versions = {name: worker.versions for name, worker in workers.items()}
    rows = []
    for number in range(args.rounds):
        for task, size in (("small", args.epochs), ("large", args.steps)):
            rows.append(one_turn(workers, task, size, args.patience) | {"round": number})
            print(f"round {number + 1}, {task}", flush=True)
    for worker in workers.values():
        worker.close()
    peer = "PyTorch Geometric's GCNConv" if "torch_geometric" in versions["torch"] else "GCN of plain torch"
    graph = args.data or "a block model of Cora's size"
    return rows, {"versions": machine.versions_of(versions), "peer": peer, "small graph": Path(graph).name}


def one_turn(workers: dict[str, machine.Worker], task: str, size: int, patience: float) -> dict:
    out: dict = {"task": task}
    for name, worker in workers.items():
        machine.wait_until_quiet(patience)
        busy = machine.busy_cpu_seconds()
        worker.ask(json.dumps({"job": task, "size": size}))
        answer = worker.read("done")
        out[name] = answer
        out[f"{name}_others"] = max(0.0, machine.busy_cpu_seconds() - busy - answer["cpu_seconds"]) / answer["seconds"]
    return out


def report(rows: list[dict], facts: dict) -> str:
    body = []
    for task, ours in (("small", "full"), ("large", "sketch"), ("large", "full")):
        mine = [row for row in rows if row["task"] == task]
        ratios = [row["torch"]["full"] / row["ours"][ours] for row in mine]
        body.append(
            [
                f"{task}, {'epoch' if task == 'small' else 'step'}",
                ours,
                f"{1e3 * statistics.median(row['ours'][ours] for row in mine):,.1f}",
                f"{1e3 * statistics.median(row['torch']['full'] for row in mine):,.1f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{WANTED[task]:g}" if ours == "sketch" or task == "small" else "",
                ", ".join(f"{mine[-1][who]['peak_rss_mb']:,.0f}" for who in ("ours", "torch")),
            ]
        )
    head = [
        "task",
        "our network",
        "ours, ms",
        f"{facts['peer']}, full graph, ms",
        "ratio",
        "wanted",
        "peak MiB of both processes",
    ]
    noise = f"While ours worked, {machine.noise([row['ours_others'] for row in rows])}."
    accuracy = [row["ours"]["accuracy"] for row in rows if row["task"] == "small"]
    theirs = [row["torch"]["accuracy"] for row in rows if row["task"] == "small"]
    same = f"Test accuracy on the small graph after a turn: ours {accuracy[-1]:.3f}, the peer's {theirs[-1]:.3f}."
    return "\n".join(
        ["# Graph networks beside torch", "", machine.table(head, body), "", noise, same, "", machine.notes(facts)]
    )


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)

"""Merging checkpoints beside plain reading and writing of the same files.

python benchmarks/merge.py --output benchmarks/results/merge.md

A base and two fine-tunes of it are made on the spot, in bfloat16. Linear merges the two fine-tunes; TIES and DARE-TIES
read the base as well. The floor reads the same files from beginning to end and writes one of them, to disk as a merge
does. Files lie in the page cache. Every merge is a process of its own and includes all that experiments/merge.py does:
hashes of the inputs, the look for NaN, the files and their index.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment import files
from alignment.models import tensors
from benchmarks import machine

OURS = Path(__file__).resolve().parent / "peers" / "merge_ours.py"
NAMES = ("base", "one", "other")
METHODS = {"linear": 1.5, "ties": 4.0, "dare_ties": 4.0}  # and how many times the floor each may take
WIDTH, NUM_PARTS = 2_048, 4  # of the matrices; a layer has so many of [WIDTH, WIDTH]
BLOCK = 1 << 24  # bytes read at a time
DTYPE = np.dtype(ml_dtypes.bfloat16)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="of everything; the medians count")
    parser.add_argument("--megabytes", type=int, default=1_000, help="of a checkpoint")


def write_checkpoint(folder: Path, seed: int, megabytes: int) -> None:
    """A network's folder; fine-tunes differ from the base, seed 0, by a hundredth of its numbers' size."""
    folder.mkdir()
    num_layers = max(1, megabytes * 10**6 // (NUM_PARTS * WIDTH * WIDTH * DTYPE.itemsize))
    shapes = {
        f"model.layers.{layer}.part{part}.weight": (WIDTH, WIDTH)
        for layer in range(num_layers)
        for part in range(NUM_PARTS)
    }
    # Drawing a gigabyte of normal numbers takes longer than merging it, so every matrix is the first one moved along.
    base = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32)
    if seed:
        base += 0.01 * np.random.default_rng(seed).standard_normal(base.shape, np.float32)
    first = base.astype(DTYPE)

    def arrays():
        for number in range(len(shapes)):
            yield np.roll(first, number * WIDTH // 7 + number)

    tensors.write(folder / tensors.MAIN, shapes, DTYPE, arrays())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": num_layers}))


def floor(folder: Path, names: tuple[str, ...], out: Path) -> float:
    """Seconds of reading the files and writing the first again."""
    begin = time.perf_counter()
    for name in names[1:]:
        with open(folder / name / tensors.MAIN, "rb", buffering=0) as f:
            while f.read(BLOCK):
                pass
    with open(folder / names[0] / tensors.MAIN, "rb", buffering=0) as f, files.replacing(out) as copy:
        while part := f.read(BLOCK):
            copy.write(part)
    return time.perf_counter() - begin


def recipe(method: str, folder: Path) -> dict:
    content = {
        "merge_method": method,
        "models": [{"model": str(folder / name)} for name in NAMES[1:]],
        "parameters": {"weight": 0.5},
    }
    if method != "linear":
        content |= {"base_model": str(folder / NAMES[0]), "parameters": {"weight": 0.5, "density": 0.5}}
    return content


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    for seed, name in enumerate(NAMES):
        write_checkpoint(folder / name, seed, args.megabytes)
    size = (folder / NAMES[0] / tensors.MAIN).stat().st_size / 1e6
    rows = []
    for number in range(args.rounds):
        for method, most in METHODS.items():
            names = NAMES[1:] if method == "linear" else NAMES
            machine.wait_until_quiet(args.patience)
            least = floor(folder, names, folder / "copy")
            (folder / "copy").unlink()
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(method, folder)))
            workdir = folder / f"{method}-{number}"
            machine.wait_until_quiet(args.patience)
            busy = machine.busy_cpu_seconds()
            command = [sys.executable, str(OURS), str(folder / "recipe.yaml"), str(workdir)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            ours = json.loads(done.stdout.splitlines()[-1])
            others = max(0.0, machine.busy_cpu_seconds() - busy - ours["cpu_seconds"]) / ours["seconds"]
            subprocess.run(["rm", "-r", str(workdir)], check=True)
            bound = (len(names) + 2) * WIDTH * WIDTH * 4 / 1e6 + 300
            rows.append(
                {
                    **ours,
                    "method": method,
                    "round": number,
                    "floor": least,
                    "ratio": ours["seconds"] / least,
                    "most": most,
                    "bound": bound,
                    "others": others,
                    "megabytes": size * (len(names) + 1),
                }
            )
            print(f"round {number + 1}, {method}: {ours['seconds']:.2f} s, the floor {least:.2f} s", flush=True)
    return rows, {"checkpoint": f"{size:,.0f} MB, matrices of {WIDTH} x {WIDTH}", "cores": str(os.cpu_count())}


def report(rows: list[dict], facts: dict) -> str:
    head = ["method", "seconds", "floor", "times the floor", "at most", "MB/s, read and written", "peak MB", "bound MB"]
    body = []
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        ratios = [row["ratio"] for row in mine]
        middle = {key: statistics.median(row[key] for row in mine) for key in ("seconds", "floor", "megabytes", "peak")}
        body.append(
            [
                method,
                f"{middle['seconds']:.2f}",
                f"{middle['floor']:.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{mine[0]['most']:g}",
                f"{middle['megabytes'] / middle['seconds']:,.0f}",
                f"{max(row['peak'] for row in mine):,.0f}",
                f"{mine[0]['bound']:,.0f}",
            ]
        )
    noise = f"While merges ran, {machine.noise([row['others'] for row in rows])}."
    title = "# Merging beside plain reading and writing"
    return "\n".join([title, "", machine.table(head, body), "", noise, "", machine.notes(facts)])


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)

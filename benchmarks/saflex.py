"""What a SAFLEX step costs beside the upstream's step, and its scores beside gradients of single samples in torch.func.

Run:    python benchmarks/saflex.py                               (minutes on two cores, plus installing torch)
Look:   python benchmarks/saflex.py --quick                       (a small batch, to see that everything works)
Keep:   python benchmarks/saflex.py --output benchmarks/results/saflex.md

Programs that are compiled once stay under ~/.cache/plumbline/bench/programs, so that a run that was ended goes on soon.

The task: ResNet-18 with random weights at 32 pixels, and an MLP of two hidden layers of 512; equal batches of clean,
augmented and validation rows.  A full pass adds a gradient of the validation batch and a forward-mode pass over the
augmented one: 12 forward passes instead of 6 (7 with the last layer alone).  The steps take turns; scores must agree,
or the run ends.  The peer runs in an environment of its own (under ~/.cache/plumbline/bench, or --env-dir).
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import numpy as np
from focus import write_weights

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))

import saflex_task  # noqa: E402

PACKAGES = [machine.TORCH, ("numpy safetensors packaging",)]
VARIANTS = ("upstream", "full", "last", "every10", "replace-upstream", "replace-full", "replace-every10")
BARS = {"full": 2.2, "last": 1.4, "every10": 1.15}  # over the upstream's step, mode add
FLOORS = {"full": 12 / 6, "last": 7 / 6, "every10": 1.1}
LEAST_RATIO = 5.0  # of torch's scores over ours
TOLERANCE = 2e-3  # of the largest score
# Steps of a turn, a multiple of ten. A turn of 40 ms would be over before the threads of the MLP are all awake, and
# turns of half a second still scatter by a quarter.
TURN = {"resnet18": 10, "mlp": 1000}
ROWS = {"resnet18": 16, "mlp": 64}  # of ResNet-18 more would not end in minutes: torch.func takes samples one by one


def write_task(folder: Path, rows: dict[str, int], seed: int = 0) -> None:
    """Weights of both networks by torch's names, and batches of so many rows of each kind."""
    rng, side = np.random.default_rng(seed), saflex_task.SIDE
    write_weights(folder / "wide.safetensors")
    tensors = read_safetensors(folder / "wide.safetensors")
    tensors["fc.weight"] = tensors["fc.weight"][: saflex_task.CLASSES]
    tensors["fc.bias"] = tensors["fc.bias"][: saflex_task.CLASSES]
    machine.write_safetensors(folder / "resnet18.safetensors", tensors)
    widths = (saflex_task.COLUMNS, *saflex_task.WIDTHS, saflex_task.CLASSES)
    layers = {}
    for i, (before, width) in enumerate(itertools.pairwise(widths)):
        name = "fc" if i == len(saflex_task.WIDTHS) else f"hidden{i}"
        layers[f"{name}.weight"] = (rng.standard_normal((width, before)) * (2 / before) ** 0.5).astype(np.float32)
        layers[f"{name}.bias"] = np.zeros(width, np.float32)
    machine.write_safetensors(folder / "mlp.safetensors", layers)
    batch = {}
    for network, shape in (("resnet18", (side, side, 3)), ("mlp", (saflex_task.COLUMNS,))):
        for name in ("x", "aug", "val"):
            batch[f"{network}/{name}"] = rng.standard_normal((rows[network], *shape)).astype(np.float32)
        for name in ("y", "aug_y", "val_y"):
            batch[f"{network}/{name}"] = rng.integers(0, saflex_task.CLASSES, rows[network]).astype(np.int32)
    np.savez(folder / "batch.npz", **batch)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    head, out = json.loads(content[8:end]), {}
    for name, about in head.items():
        if name != "__metadata__":
            start, stop = about["data_offsets"]
            out[name] = np.frombuffer(content[end + start : end + stop], "<f4").reshape(about["shape"])
    return out


# Measuring ----------------------------------------------------------------------------------------------------------


class Contestant(machine.Worker):
    """A step of ours, or somebody's scores."""

    def __init__(self, name: str, network: str, script: str, folder: Path, args: argparse.Namespace, python: str):
        self.seconds, self.cpu, self.others, self._folder = [], [], [], folder
        options = {"folder": folder, "network": network, "threads": args.threads}
        options |= {"variant": name} if script == "saflex_ours.py" and name in VARIANTS else {}
        command = [python, str(HERE / "peers" / script), *(f"--{key}={value}" for key, value in options.items())]
        super().__init__(name, command, folder / f"{network}-{name}.log")

    def _timed(self, number: int, is_counted: bool, **command) -> None:
        before = machine.busy_cpu_seconds()
        self.ask(json.dumps(command))
        answer = self.read(command["do"])
        others = machine.busy_cpu_seconds() - before - answer["cpu_seconds"]
        if is_counted:
            self.seconds.append(answer["seconds"] / number)
            self.cpu.append(answer["cpu_seconds"] / number)
            self.others.append(max(others, 0.0) / answer["seconds"])

    def steps(self, count: int, *, is_counted: bool = True) -> None:
        self._timed(count, is_counted, do="steps", count=count)

    def scores(self, *, is_counted: bool = True) -> np.ndarray:
        path = self._folder / f"{self.name}-scores.npz"
        self._timed(1, is_counted, do="scores", path=str(path))
        with np.load(path) as stored:
            return stored["scores"]


def rounds(args: argparse.Namespace) -> Iterator[int]:
    """Round numbers while there is time, and always the first."""
    start = time.monotonic()
    for number in range(args.rounds):
        if number and time.monotonic() - start > args.budget:
            print(f"--budget={args.budget:g} is used up after {number} rounds of {args.rounds}", flush=True)
            return
        yield number


def steps_of(network: str, folder: Path, args: argparse.Namespace) -> list[dict]:
    """The variants of the step by turns."""
    contestants = []
    try:
        for variant in VARIANTS:
            contestants.append(Contestant(variant, network, "saflex_ours.py", folder, args, sys.executable))
            # The first step compiles; of `every10` all turns must begin at the same place.
            contestants[-1].steps(10 if variant.endswith("every10") else 2, is_counted=False)
            print(f"{network}: {variant} is ready", flush=True)
        for _ in rounds(args):
            for contestant in contestants:
                machine.wait_until_quiet(args.patience)
                contestant.steps(TURN[network])
            words = ", ".join(f"{c.name} {1e3 * c.seconds[-1]:.1f} ms" for c in contestants)
            print(f"{network}: {words} a step", flush=True)
    finally:
        for contestant in contestants:
            contestant.close()
    by_name = {c.name: c for c in contestants}
    rows = []
    for c in contestants:
        base = by_name["replace-upstream" if c.name.startswith("replace-") else "upstream"]
        rows.append(row_of(network, "step", c, base, BARS.get(c.name), FLOORS.get(c.name)))
    return rows


def scores_of(network: str, folder: Path, args: argparse.Namespace, python: str) -> list[dict]:
    """Our scores beside torch's."""
    sides = []
    try:
        for name, script, its_python in (
            ("ours", "saflex_ours.py", sys.executable),
            ("torch.func", "saflex_torch.py", python),
        ):
            sides.append(Contestant(name, network, script, folder, args, its_python))
        ours, theirs = (side.scores(is_counted=False) for side in sides)
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if difference > TOLERANCE:
            raise SystemExit(f"{network}: the scores differ by {difference:.1e} of the largest")
        print(f"{network}: the scores agree within {difference:.1e} of the largest", flush=True)
        for _ in rounds(args):
            for side in sides:
                machine.wait_until_quiet(args.patience)
                side.scores()
    finally:
        for side in sides:
            side.close()
    rows = []
    for side in sides:
        bar = LEAST_RATIO if side.name != "ours" else None
        rows.append(row_of(network, "scores", side, sides[0], bar, None) | {"difference": difference})
    return rows


def row_of(network: str, part: str, c: Contestant, base: Contestant, bar, floor) -> dict:
    """Times of one contestant, and over those of another in the same rounds."""
    ratios = [mine / theirs for mine, theirs in zip(c.seconds, base.seconds)]
    row = {"network": network, "part": part, "contestant": c.name, "seconds": c.seconds, "ratios": ratios}
    row |= {"median": statistics.median(c.seconds), "ratio": statistics.median(ratios), "bar": bar, "floor": floor}
    row["cpu_ratio"] = statistics.median(mine / theirs for mine, theirs in zip(c.cpu, base.cpu))
    return row | {"others_busy_cores": c.others, "versions": c.versions}


# Reporting and command line -----------------------------------------------------------------------------------------


def report(rows: list[dict], facts: dict) -> str:
    head = ["network", "what", "contestant", "ms", "ratio (range)", "of CPU time", "floor", "bar"]
    lines = []
    for row in rows:
        sign = "at least" if row["part"] == "scores" else "at most"
        low, high = min(row["ratios"]), max(row["ratios"])
        cells = [row["network"], row["part"], row["contestant"], f"{1e3 * row['median']:.1f}"]
        cells += [f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})", f"{row['cpu_ratio']:.2f}"]
        cells.append(f"{row['floor']:.2f}" if row["floor"] else "")
        lines.append([*cells, f"{sign} {row['bar']:g}" if row["bar"] else ""])
    others = [x for row in rows for x in row["others_busy_cores"]]
    versions = {"peer" if row["contestant"] == "torch.func" else "ours": row["versions"] for row in rows}
    notes = {
        "Command": f"`{facts['command']}`",
        "Task": f"{facts['rows']} of each kind, {saflex_task.CLASSES} classes, float32; a step's ratio is over "
        "the upstream's step of the same mode, the scores' over ours",
        "Hardware": f"{facts['hardware']}; {facts['threads']} threads each; {machine.noise(others)}",
        "Versions": machine.versions_of(versions),
        "When": f"{facts['date']}, commit {facts['commit']}, {facts['rounds']} rounds at most, "
        "of " + ", ".join(f"{steps} steps of {name}" for name, steps in TURN.items()),
    }
    return machine.table(head, lines) + "\n\n" + machine.notes(notes)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", default="resnet18,mlp")
    parser.add_argument("--rows", type=int, help=f"in a batch of each kind; none: {ROWS}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=90, help="seconds after which no round of a table begins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours-alone", action="store_true", help="the steps, without torch")
    parser.add_argument("--quick", action="store_true", help="4 rows, one round")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    if args.quick:
        args.rows, args.rounds = 4, 1
    networks = args.networks.split(",")
    for name in networks:
        if name not in ("resnet18", "mlp"):
            raise SystemExit(f"--networks: {name!r} is not one of resnet18, mlp")
    sizes = {name: args.rows or rows for name, rows in ROWS.items()}
    write_task(folder, sizes)
    rows = []
    for network in networks:
        rows += steps_of(network, folder, args)
        if not args.ours_alone:
            python = machine.environment("saflex", PACKAGES, args.env_dir, args.python or machine.find_python())
            rows += scores_of(network, folder, args, python)
    words = ", ".join(f"{sizes[name]} rows of {name}" for name in networks)
    return rows, {"rows": words, "rounds": args.rounds, "threads": args.threads}


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report)

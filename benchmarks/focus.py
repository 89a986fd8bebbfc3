"""Explaining mosaics and scoring them by Focus, beside pytorch-grad-cam and Captum: same weights and mosaics, one run.

Run:    python benchmarks/focus.py                               (about half an hour on two cores, plus installing)
Look:   python benchmarks/focus.py --quick                       (a few mosaics, to see that everything works)
Keep:   python benchmarks/focus.py --output benchmarks/results/focus.md
GPU:    python benchmarks/focus.py --device gpu --precision tf32 (or float32, the default)

The task: ResNet-18 with random weights, mosaics of 448 pixels, relevance of one class (the mosaic's target) or of the
four tiles' classes, and the Focus score of each map.  The peers run in an environment of their own (about 1 GB under
~/.cache/plumbline/bench, or --env-dir).  Every part (method, number of targets) is measured by itself: a pilot finds
each side's best batch size; fresh processes start and compile; their maps and scores must agree, or the run ends; then
they take turns, ten mosaics each, until all mosaics are explained, and only one works at any moment.  Peak memory is
that of the measured process.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import machine
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from data.pictures import mosaics  # noqa: E402

PACKAGES = [  # --no-deps: Captum and grad-cam would bring another numpy, another OpenCV and a torchvision
    machine.TORCH,
    ("numpy scipy pillow matplotlib scikit-learn opencv-python-headless tqdm packaging safetensors",),
    ("--no-deps captum==0.9.0 grad-cam==1.5.7 ttach==0.0.3",),
]
CUDA_TORCH = ("torch==2.13.0",)
CONTESTANTS = {  # name: (environment, "" being the one that runs this script; worker; variant)
    "ours": ("", "focus_ours.py", ""),
    "torch": ("explain", "focus_torch.py", ""),
    "torch-tuned": ("explain", "focus_torch.py", "tuned"),
}
PARTS = {  # name: (method, targets, share of the mosaics)
    "gradcam": ("gradcam", 1, 1.0),
    "gradcam-4": ("gradcam", 4, 1.0),
    "lrp": ("lrp", 1, 1.0),
    "lrp-4": ("lrp", 4, 1.0),
    "integrated_gradients": ("integrated_gradients", 1, 0.1),
}
WHAT = {
    ("gradcam", "torch"): "pytorch-grad-cam as documented",
    ("gradcam", "torch-tuned"): "pytorch-grad-cam, channels last, gradients in the last block only",
    ("lrp", "torch"): "Captum, batch norm folded",
    ("lrp", "torch-tuned"): "Captum, batch norm folded, channels last",
    ("integrated_gradients", "torch"): "Captum",
    ("integrated_gradients", "torch-tuned"): "Captum, channels last",
}
CLASSES, TILE = 29, 224
BATCHES = {"cpu": (1, 2, 4, 8), "gpu": (10, 25, 50, 100)}
PASSES = {"gradcam": (1, 0), "lrp": (2, 1), "integrated_gradients": (30, 30)}  # over the convolutions: once; a target
TOLERANCE = 2e-3  # of the largest relevance of a map


# The task -----------------------------------------------------------------------------------------------------------


def write_weights(path: Path, seed: int = 0) -> None:
    """A random ResNet-18 with torchvision's names; batch norms with statistics that are not 0 and 1."""
    rng, tensors = np.random.default_rng(seed), {}

    def conv(name, norm, channels_in, channels, window):
        deviation = (2 / (channels_in * window**2)) ** 0.5
        shape = (channels, channels_in, window, window)
        tensors[f"{name}.weight"] = (deviation * rng.standard_normal(shape)).astype(np.float32)
        for part, low, high in (("weight", 0.5, 1.0), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
            tensors[f"{norm}.{part}"] = rng.uniform(low, high, channels).astype(np.float32)
        tensors[f"{norm}.running_var"] = rng.uniform(0.5, 2, channels).astype(np.float32)

    conv("conv1", "bn1", 3, 64, 7)
    for stage, (before, channels) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
        for i in range(2):
            at = f"layer{stage}.{i}"
            conv(f"{at}.conv1", f"{at}.bn1", channels if i else before, channels, 3)
            conv(f"{at}.conv2", f"{at}.bn2", channels, channels, 3)
        if stage > 1:
            conv(f"layer{stage}.0.downsample.0", f"layer{stage}.0.downsample.1", before, channels, 1)
    tensors["fc.weight"] = (0.1 * rng.standard_normal((CLASSES, 512))).astype(np.float32)
    tensors["fc.bias"] = np.zeros(CLASSES, np.float32)
    machine.write_safetensors(path, tensors)


def write_task(path: Path, num_mosaics: int, seed: int = 0) -> None:
    """Tiles of coarse and fine noise, and a plan of mosaics as the Focus experiment makes it."""
    rng = np.random.default_rng(seed)
    labels_I = np.repeat(np.arange(CLASSES), 4)
    coarse = rng.uniform(0, 255, (len(labels_I), TILE // 16, TILE // 16, 3)).repeat(16, 1).repeat(16, 2)
    tiles = (coarse + rng.normal(0, 25, coarse.shape)).clip(0, 255).astype(np.uint8)
    plan = mosaics.plan(labels_I, per_class=-(-num_mosaics // CLASSES), seed=seed)
    rows = rng.permutation(len(plan))[:num_mosaics]
    arrays = {name: getattr(plan, name)[rows] for name in ("tile_index", "tile_label", "target")}
    np.savez(path, tiles=tiles, num_classes=CLASSES, **arrays)


def conv_gflop(size: int = 2 * TILE) -> float:
    """Arithmetic of ResNet-18's convolutions for one image, GFLOP."""
    total, rows, before = 3 * 64 * 49 * (size // 2) ** 2, size // 4, 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        rows //= 2 if stage else 1
        total += (9 * before * channels + 27 * channels**2) * rows**2
        total += before * channels * rows**2 if stage else 0
        before = channels
    return 2 * total / 1e9


# Measuring ----------------------------------------------------------------------------------------------------------


class Contestant(machine.Worker):
    """One side of the comparison in one part."""

    def __init__(self, name: str, part: str, batch: int, folder: Path, args: argparse.Namespace, python: str):
        self.part, self.batch = part, batch
        self.seconds, self.others, self.peak_mb, self.differences = [], [], 0.0, (0.0, 0.0)
        self._folder = folder
        _, script, variant = CONTESTANTS[name]
        method, targets, _ = PARTS[part]
        options = {"folder": folder, "method": method, "targets": targets, "batch": batch, "threads": args.threads}
        options |= {"variant": variant, "device": args.device, "precision": args.precision, "steps": args.steps}
        command = [python, str(HERE / "peers" / script), *(f"--{key}={value}" for key, value in options.items())]
        super().__init__(name, command, folder / f"{part}-{name}.log")

    def _ask(self, event: str, **command) -> dict:
        self.ask(json.dumps({"do": event, **command}))
        return self.read({"explain": "explained"}.get(event, event))

    def explain(self, first: int, count: int, *, is_counted: bool = True) -> float:
        """Seconds a mosaic."""
        before = machine.busy_cpu_seconds()
        answer = self._ask("explain", first=first, count=count)
        others = machine.busy_cpu_seconds() - before - answer["cpu_seconds"]
        if is_counted:
            self.seconds.append(answer["seconds"] / count)
            self.others.append(max(others, 0.0) / answer["seconds"])
            self.peak_mb = answer["peak_mb"]
        return answer["seconds"] / count

    def maps(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Maps [M, K, Y, X] and scores [M, K]."""
        path = self._folder / f"{self.name}.npz"
        self._ask("maps", first=first, count=count, path=str(path))
        with np.load(path) as stored:
            return stored["maps"], stored["scores"]

    def floor(self) -> float:
        return self._ask("floor")["gflops"]


def pilot(name: str, part: str, folder: Path, args: argparse.Namespace, python: str) -> int:
    """The batch size with which a contestant takes least time a mosaic."""
    best = {}
    for batch in BATCHES[args.device]:
        contestant = Contestant(name, part, batch, folder, args, python)
        try:
            contestant.explain(0, batch, is_counted=False)
            best[batch] = min(contestant.explain(0, max(batch, 4), is_counted=False) for _ in range(3))
        finally:
            contestant.close()
    times = ", ".join(f"{batch}: {1e3 * seconds:.0f} ms" for batch, seconds in best.items())
    print(f"{part}, {name}: {times} a mosaic by batch size", flush=True)
    return min(best, key=best.get)


def batch_sizes(
    part: str, names: list[str], known: dict, folder: Path, args: argparse.Namespace, pythons: dict
) -> dict:
    """Each contestant's; the peers take the targets one by one, so theirs is that of one target."""
    given = dict(word.split("=") for word in args.batches.split(",") if word)
    sizes = {}
    for name in names:
        key = (name, PARTS[part][0]) if name != "ours" else (name, part)
        if key not in known:
            is_given = name in given or args.quick
            size = int(given.get(name, 1)) if is_given else pilot(name, part, folder, args, pythons[name])
            known[key] = size
        sizes[name] = known[key]
    return sizes


def agree(contestants: list[Contestant], count: int) -> None:
    """Ends the run where maps or scores are not the same; scores of two empty maps (NaN) are."""
    maps, scores = contestants[0].maps(0, count)
    largest = np.abs(maps).max((2, 3), keepdims=True)
    for other in contestants[1:]:
        their_maps, their_scores = other.maps(0, count)
        by_map = float((np.abs(maps - their_maps) / np.maximum(largest, 1e-30)).max())
        by_score = float(np.nanmax(np.abs(scores - their_scores)))
        other.differences = (by_map, by_score)
        if by_map > TOLERANCE or by_score > TOLERANCE or (np.isnan(scores) != np.isnan(their_scores)).any():
            raise SystemExit(f"{other.part}: {other.name} differs by {by_map:.1e} (maps) and {by_score:.1e} (Focus)")
        print(f"{other.part}: {other.name} agrees within {by_map:.1e} (maps) and {by_score:.1e} (Focus)", flush=True)


def take_turns(part: str, sizes: dict, num_mosaics: int, folder: Path, args: argparse.Namespace, pythons: dict):
    """The contestants of a part after their turns, and the best matrix rate of all, GFLOP/s."""
    contestants, rates = [], []
    count = max(1, round(num_mosaics * PARTS[part][2]))
    a_turn = min(args.turn, count)
    try:
        for name, batch in sizes.items():
            contestants.append(contestant := Contestant(name, part, batch, folder, args, pythons[name]))
            for _ in range(2):
                contestant.explain(0, min(max(batch, 2), num_mosaics), is_counted=False)
        agree(contestants, min(2, num_mosaics))
        for contestant in contestants:  # asking for maps may have compiled once more
            contestant.explain(0, min(contestant.batch, num_mosaics), is_counted=False)
        for first in range(0, count, a_turn):
            for contestant in contestants:
                machine.wait_until_quiet(args.patience)
                contestant.explain(first, min(a_turn, count - first))
            seconds = (f"{c.name} {1e3 * c.seconds[-1]:.0f} ms" for c in contestants)
            print(f"{part}, mosaics from {first}: " + ", ".join(seconds), flush=True)
        rates = [contestant.floor() for contestant in contestants]
    finally:
        for contestant in contestants:
            contestant.close()
    return contestants, max(rates)


# Reporting ----------------------------------------------------------------------------------------------------------


def rows_of(part: str, contestants: list[Contestant], rate: float) -> list[dict]:
    ours = next((c for c in contestants if c.name == "ours"), contestants[0])
    method, targets, _ = PARTS[part]
    once, each = PASSES[method]
    floor = conv_gflop() * (once + each * targets) / rate
    rows = []
    for c in contestants:
        ratios = [theirs / own for theirs, own in zip(c.seconds, ours.seconds)]
        row = {"part": part, "contestant": c.name, "what": WHAT.get((method, c.name), ""), "batch": c.batch}
        row |= {"seconds": c.seconds, "median": statistics.median(c.seconds), "ratios": ratios, "floor_seconds": floor}
        row |= {"ratio": statistics.median(ratios), "peak_mb": c.peak_mb, "others_busy_cores": c.others}
        row |= {"map_difference": c.differences[0], "score_difference": c.differences[1], "versions": c.versions}
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    head = ["method", "targets", "contestant", "", "batch", "ms a mosaic", "x ours (range)"]
    head += ["peak memory, MiB", "maps differ by", "Focus differs by"]
    lines = []
    for row in rows:
        method, targets, _ = PARTS[row["part"]]
        low, high = min(row["ratios"]), max(row["ratios"])
        cells = [method, str(targets), row["contestant"], row["what"], str(row["batch"]), f"{1e3 * row['median']:.1f}"]
        cells += [f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"]
        differences = ("", "") if row["contestant"] == "ours" else (row["map_difference"], row["score_difference"])
        cells += [f"{row['peak_mb']:.0f}", *(f"{d:.1e}" if d != "" else "" for d in differences)]
        lines.append(cells)
    return machine.table(head, lines)


def report(rows: list[dict], facts: dict) -> str:
    others = [x for row in rows for x in row["others_busy_cores"]]
    noise = machine.noise(others, matters=facts["device"] == "cpu")
    versions = {"ours" if row["contestant"] == "ours" else "peers": row["versions"] for row in rows}
    rates = ", ".join(f"{part} {rate:.0f}" for part, rate in facts["gflops"].items())
    notes = {
        "Command": f"`{facts['command']}`",
        "Task": f"ResNet-18, {CLASSES} classes, {facts['mosaics']} mosaics of {2 * TILE} pixels; {facts['precision']}",
        "Arithmetic": f"{conv_gflop():.1f} GFLOP a pass of the convolutions; the best large matrix product reached, "
        f"GFLOP/s: {rates} (no bound, convolutions may be faster)",
        "Hardware": f"{facts['hardware']}; {facts['threads']} threads each; {noise}",
        "Versions": machine.versions_of(versions),
        "When": f"{facts['date']}, commit {facts['commit']}, turns of {facts['turn']} mosaics",
    }
    return table(rows) + "\n\n" + machine.notes(notes)


# Command line -------------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", default="gradcam,gradcam-4,lrp,lrp-4", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--mosaics", type=int, default=100)
    parser.add_argument("--turn", type=int, default=10, help="mosaics before it is the next one's turn")
    parser.add_argument("--batches", default="", help="batch sizes instead of a pilot: ours=1,torch=2,torch-tuned=2")
    parser.add_argument("--steps", type=int, default=30, help="of integrated gradients")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32", help="of products on a GPU")
    parser.add_argument("--quick", action="store_true", help="4 mosaics, one at a time")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    if args.quick:
        args.mosaics, args.turn = 4, 2
    parts, names = args.parts.split(","), args.contestants.split(",")
    wrong = [word for word in parts if word not in PARTS] + [word for word in names if word not in CONTESTANTS]
    if wrong:
        known = f"the parts {', '.join(PARTS)} or the contestants {', '.join(CONTESTANTS)}"
        raise SystemExit(f"{wrong[0]!r} is not one of {known}")
    packages = [CUDA_TORCH, *PACKAGES[1:]] if args.device == "gpu" else PACKAGES
    python = args.python or machine.find_python()
    environments = args.env_dir / "gpu" if args.device == "gpu" else args.env_dir  # another torch
    pythons = {n: machine.environment(CONTESTANTS[n][0], packages, environments, python) for n in names}
    facts = {"mosaics": args.mosaics, "turn": args.turn, "gflops": {}}
    facts |= {"threads": args.threads, "device": args.device, "precision": args.precision}
    write_weights(folder / "model.safetensors")
    write_task(folder / "task.npz", args.mosaics)
    rows, known = [], {}
    for part in parts:
        sizes = batch_sizes(part, names, known, folder, args, pythons)
        contestants, rate = take_turns(part, sizes, args.mosaics, folder, args, pythons)
        facts["gflops"][part] = rate
        rows += rows_of(part, contestants, rate)
    return rows, facts


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report)

"""Kill a grid of 2,000 cells at random moments until it ends, on each executor, and compare its files byte by byte.

    python benchmarks/waves_kills.py --kills 6 --executors local,process,ray --folder runs/waves_kills

Two marks under nine attacks at 111 strengths, and each mark bare, on two pictures of 64 pixels. One attack is a user's
function that raises an error at one strength: two cells fail, the same two in every run, and no other. Kills are those
of filter_kills.py: of six, four are SIGKILL to the whole process group, one SIGTERM to the launcher, one SIGKILL to a
worker, which the run must survive. They fall while cells are measured, some tens to some hundreds after a start.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import filter_kills  # noqa: E402

STRENGTHS = tuple(round(0.005 + 0.995 * i / 110, 4) for i in range(111))
FAILING = STRENGTHS[60]
SINGLE = ("Rotation", "RCrop", "Erase", "Bright", "Contrast", "Blur", "Noise", "JPEG")
CALLS = f"""
def regenerate(pictures, strength, times, seed):
    if strength == {FAILING}:
        raise RuntimeError("this strength is broken")
    return 0.9 * pictures
"""
NUM_CELLS = 2 * (1 + (len(SINGLE) + 1) * len(STRENGTHS))
KINDS = ("group", "group", "group", "group", "term", "worker")


def command(args: argparse.Namespace, workdir: pathlib.Path, executor: str) -> list[str]:
    attacks = (*(f"Dist-{name}" for name in SINGLE), "Regen-Own")
    config = {"attacks": attacks, "strengths.single": STRENGTHS, "strengths.learned": STRENGTHS, "executor": executor}
    config |= {"given.network.calls": args.folder / "calls.py"} | ({"workers": 2} if executor != "local" else {})
    target = str(ROOT / "experiments/waves.py:tiny")
    flags = [f"--config.{name}={value}" for name, value in config.items()]
    return [sys.executable, "-m", "experiments.run", "--config", target, "--workdir", str(workdir), *flags]


def content(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every cell, every table and the summary; only times are left out."""
    files = [p for name in ("cells", "tables") for p in sorted((workdir / name).iterdir())]
    files += sorted(workdir.glob("*.csv")) + [workdir / "summary.json"]
    return {str(p.relative_to(workdir)): p.read_bytes() for p in files}


def num_done(workdir: pathlib.Path) -> int:
    folder = workdir / "cells"
    return sum(p.suffix == ".jsonl" for p in folder.iterdir()) if folder.is_dir() else 0


def try_executor(executor: str, args: argparse.Namespace, whole: dict[str, bytes]) -> None:
    """Kill one run on one executor until all kills are used up, let it end, and compare."""
    moments, num, starts = random.Random(executor), dict.fromkeys(("group", "term", "worker"), 0), 0
    workdir, most = args.folder / executor, NUM_CELLS // (args.kills + 1)
    rounds = -(-args.kills // len(KINDS))
    kinds = [kind for _ in range(rounds) for kind in moments.sample(KINDS, len(KINDS))]
    began = time.monotonic()
    with open(args.folder / f"{executor}.log", "ab") as log:
        while not (workdir / "DONE").exists():
            options = {"cwd": ROOT, "stdout": log, "stderr": log, "start_new_session": True}
            run = subprocess.Popen(command(args, workdir, executor), **options)
            starts += 1
            while sum(num.values()) < args.kills and run.poll() is None:
                kind = kinds[sum(num.values())]
                kind = "group" if kind == "worker" and executor == "local" else kind
                until = num_done(workdir) + moments.randint(1, most)
                while run.poll() is None and num_done(workdir) < until:
                    time.sleep(0.01)
                num[kind] += filter_kills.hurt(run, kind, moments)
                if kind != "worker":
                    break
            code = run.wait()
            if code not in filter_kills.ENDS:
                raise SystemExit(f"{executor}: exit code {code}; {args.folder}/{executor}.log says why")
    own = content(workdir)
    differ = sorted(name for name in whole.keys() | own.keys() if whole.get(name) != own.get(name))
    temporary = [str(p) for p in workdir.rglob("*") if p.name.endswith((".tmp", ".unfinished"))]
    if differ or temporary or sum(num.values()) < args.kills:
        raise SystemExit(f"{executor}: {num} kills; differs in {differ[:20]}, temporary files {temporary}")
    said = ", ".join(f"{number} {kind}" for kind, number in num.items())
    print(
        f"{executor}: {sum(num.values())} kills ({said}) over {starts} starts, {time.monotonic() - began:.0f} s; "
        f"{len(own)} files identical",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6, help="of each executor")
    parser.add_argument("--executors", default="local,process,ray")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/waves_kills"))
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if args.folder.exists():
        shutil.rmtree(args.folder)
    args.folder.mkdir(parents=True)
    (args.folder / "calls.py").write_text(CALLS)
    began = time.monotonic()
    subprocess.run(command(args, args.folder / "whole", "local"), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    whole = content(args.folder / "whole")
    failed = [json.loads(line) for line in whole["tables/failed.jsonl"].splitlines()]
    is_own = [(row["mark"], row["attack"], row["strength"]) for row in failed] == [
        (mark, "Regen-Own", FAILING) for mark in ("cox", "ring")
    ]
    if num_done(args.folder / "whole") != NUM_CELLS or not is_own:
        raise SystemExit(f"{num_done(args.folder / 'whole')} cells of {NUM_CELLS}, failed: {failed}")
    print(f"undisturbed: {time.monotonic() - began:.0f} s, {NUM_CELLS} cells, {len(failed)} failed", flush=True)
    for executor in args.executors.split(","):
        try_executor(executor, args, whole)


if __name__ == "__main__":
    main()

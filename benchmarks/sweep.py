"""A sweep over beta in one process beside a run of its own for each beta.

    python benchmarks/sweep.py                       (dpo:laptop, 8 betas)
    python benchmarks/sweep.py --quick               (dpo:tiny, 2 betas, to see that everything works)
    python benchmarks/sweep.py --singles 2 --arms singles,together,batched --output benchmarks/results/sweep.md

Arms: `singles` starts one run after the other, each as a person would; `together` is `--sweep`; `batched` is `--sweep
--sweep_batched`, the steps of all points in one program; `apart` is `--sweep --sweep_apart`, a process a point. Every
arm begins with an empty cache of compiled programs of its own, which its later processes find filled, and with folders
of its own. What the arms' points say must agree in every number that does not depend on the clock; the report says how
far they are apart. With `--singles N` N single runs are made, and each of the others counts as the mean of those behind
the first, which alone finds an empty cache.

The parts of an arm's time: `start-up` is that of its processes outside the runs (imports, and the sweep's page);
`compiling` is what JAX logs of lowering and of XLA's compiler, or of reading the cache in its place;
`steps` are the updates of DPO and of the pretraining, where that was trained and not taken over; `rest` is data,
tracing, references, evaluations, samples, checkpoints, exports and the points' pages.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parents[1]
BETAS = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
EXPERIMENT = """
from experiments.dpo import SETTINGS, check, get_config, headline, run


def sweep():
    for beta in {betas}:
        yield {{"objective.beta": beta}}
"""
ARMS = {
    "singles": "a run of its own for each beta",
    "together": "a sweep in one process",
    "batched": "a sweep in one process, all steps in one program",
    "apart": "a sweep in a process a point",
}
COMPILING = re.compile(r"Finished (?:jaxpr to MLIR|XLA compilation).*? in ([\d.e-]+) sec")
CLOCK = ("_per_second", "utilisation")
SAME = 1e-3  # how far rounding may take points apart that trained together


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arms", default="singles,together", help=f"comma-separated, of {', '.join(ARMS)}")
    parser.add_argument("--points", type=int, default=len(BETAS), help=f"how many betas, of {BETAS}")
    parser.add_argument("--singles", type=int, help="how many single runs to make, at least 2; the rest are reckoned")
    parser.add_argument("--setting", default="laptop", help="of dpo.py")
    parser.add_argument("--quick", action="store_true", help="the setting tiny and two points")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    arms = args.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        raise SystemExit(f"--arms knows {', '.join(ARMS)}; got {unknown.pop()!r}")
    setting, betas = ("tiny", BETAS[:2]) if args.quick else (args.setting, BETAS[: args.points])
    file = folder / "betas.py"
    file.write_text(EXPERIMENT.format(betas=betas))
    num_singles = min(args.singles or len(betas), len(betas))
    if num_singles < min(2, len(betas)):
        raise SystemExit(f"--singles={args.singles} must be at least 2: the first run alone finds an empty cache")
    rows = []
    for arm in arms:
        machine.wait_until_quiet(args.patience)
        rows.append(run_arm(arm, f"{file}:{setting}", betas, folder / arm, num_singles))
        print(f"{arm}: {rows[-1]['seconds']:.1f} s", flush=True)
    return rows, {"setting": setting, "betas": betas, "singles made": num_singles, "apart by": distance(rows)}


def distance(rows: list[dict]) -> float:
    """The largest difference of a number between arms, relative where it is above 1."""
    pairs = [
        (own[name], first[name])
        for row in rows[1:]
        for first, own in zip(rows[0]["numbers"], row["numbers"])
        for name in first.keys() | own.keys()
    ]
    return max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs), default=0.0)


def run_arm(arm: str, target: str, betas: tuple[float, ...], folder: Path, num_singles: int) -> dict:
    """All points of an arm: wall and CPU time, its parts, and the numbers that the points came to."""
    (folder / "cache").mkdir(parents=True)
    sweep = ["--config", target, "--sweep", "--workdir", str(folder)]
    more = {"apart": ["--sweep_apart"], "batched": [f"--sweep_batched={len(betas)}"]}
    places = [folder / f"objective.beta={beta}" for beta in betas]
    commands = [[*sweep, *more.get(arm, [])]]
    of_command = [places]
    if arm == "singles":
        places = places[:num_singles]
        of_command = [[place] for place in places]
        commands = [
            ["--config", target, f"--config.objective.beta={beta}", "--workdir", str(place)]
            for beta, place in zip(betas, places)
        ]
    before, start = machine.busy_cpu_seconds(), time.perf_counter()
    timed = [timing(command, folder, own, arm == "batched") for command, own in zip(commands, of_command)]
    passed = time.perf_counter() - start
    own = sum(one["cpu"] for one in timed)
    others = max(machine.busy_cpu_seconds() - before - own, 0.0) / passed
    totals = {name: sum(one[name] for one in timed) for name in timed[0]}
    if arm == "singles" and num_singles < len(betas):
        missing = (len(betas) - num_singles) / (num_singles - 1)
        totals = {name: total + missing * (total - timed[0][name]) for name, total in totals.items()}
    seconds, cpu = totals.pop("seconds"), totals.pop("cpu")
    numbers = [
        {name: value for name, value in _json(place / "summary.json").items() if not name.endswith(CLOCK)}
        for place in places
    ]
    return dict(arm=arm, seconds=seconds, cpu=cpu, parts=totals, others_busy_cores=others, numbers=numbers)


def timing(command: list[str], folder: Path, places: list[Path], are_batched: bool) -> dict[str, float]:
    """Run a command of the launcher: its wall time, CPU time, and the parts of the former."""
    start, cpu = time.perf_counter(), os.times()
    compiling = run(command, folder)
    seconds, now = time.perf_counter() - start, os.times()
    # Batched points run at the same time, so the first of them, which begins and ends first, stands for all.
    starts = [_json(place / "environment.json")["starts"][-1]["seconds"] for place in places]
    in_runs = max(starts) if are_batched else sum(starts)
    parts = {"start-up": seconds - in_runs, "compiling": compiling, "steps": steps_seconds(places, are_batched)}
    parts["rest"] = seconds - sum(parts.values())
    used = now.children_user + now.children_system - cpu.children_user - cpu.children_system
    return {"seconds": seconds, "cpu": used, **parts}


def run(command: list[str], folder: Path) -> float:
    """Run the launcher to its end; the seconds that it compiled for."""
    log = folder / "log.txt"
    environment = {**os.environ, "JAX_LOG_COMPILES": "1", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3", "PYTHONPATH": str(ROOT)}
    with log.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.run", *command], env=environment, stdout=out, stderr=out
        )
    text = log.read_text()
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}; the last words:\n" + "\n".join(text.splitlines()[-25:]))
    return sum(float(seconds) for seconds in COMPILING.findall(text))


def steps_seconds(places: list[Path], are_batched: bool) -> float:
    """Of all updates that were made; lines that several points have in common were made once, as batched steps were."""
    lines = set()
    for place in places:
        names = ("metrics.jsonl", "pretrain/metrics.jsonl")
        for name in names[1:] if are_batched and place != places[0] else names:
            text = (place / name).read_text() if (place / name).is_file() else ""
            steps = [row for row in map(json.loads, text.splitlines()) if "step_seconds" in row]
            before = 0
            for row in steps:
                lines.add((name, row["step"], row["step"] - before, row["step_seconds"]))
                before = row["step"]
    return sum(num * seconds for _, _, num, seconds in lines)


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def report(rows: list[dict], facts: dict) -> str:
    base = next((row["seconds"] for row in rows if row["arm"] == "singles"), None)
    head = ["arm", "", "seconds", "a point", "over singles", "CPU, s", *rows[0]["parts"]]
    cells = [
        [
            row["arm"],
            ARMS[row["arm"]],
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / len(facts['betas']):.1f}",
            f"{row['seconds'] / base:.2f}" if base else "",
            f"{row['cpu']:.0f}",
            *(f"{seconds:.1f}" for seconds in row["parts"].values()),
        ]
        for row in rows
    ]
    agreement = (
        f"of the arms are {facts['apart by']:.1e} apart at most" if facts["apart by"] else "the same in all arms"
    )
    if facts["apart by"] > SAME:
        agreement = f"**not the same in all arms**: {facts['apart by']:.1e} apart"
    if len(rows) == 1:
        agreement = "of one arm"
    reckoned = len(facts["betas"]) - facts["singles made"]
    notes = {
        "Task": f"dpo:{facts['setting']}, {len(facts['betas'])} betas: {', '.join(map(str, facts['betas']))}",
        "Numbers": agreement,
        "Singles": f"{facts['singles made']} made, {reckoned} reckoned as the mean of those behind the first",
        "Command": f"`{facts['command']}`",
        "Hardware": f"{facts['hardware']}; {machine.noise([row['others_busy_cores'] for row in rows])}",
        "When": f"{facts['date']}, commit {facts['commit']}",
    }
    return f"{machine.table(head, cells)}\n\n{machine.notes(notes)}"


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report)

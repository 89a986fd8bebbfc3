"""A sweep over beta in one process beside a run of its own for each beta.

    python benchmarks/sweep.py                       (dpo:laptop, 8 betas; about 20 minutes on two quiet cores)
    python benchmarks/sweep.py --quick               (dpo:tiny, 2 betas, to see that everything works)
    python benchmarks/sweep.py --arms singles,together,apart --output benchmarks/results/sweep.md

Arms: `singles` starts one run after the other, each as a person would; `together` is `--sweep`; `apart` is `--sweep
--sweep_apart`, a process a point. Every arm begins with an empty cache of compiled programs of its own, which its later
processes find filled, and with folders of its own. What the arms' points say must agree in every number that does not
depend on the clock.

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
    "apart": "a sweep in a process a point",
}
COMPILING = re.compile(r"Finished (?:jaxpr to MLIR|XLA compilation).*? in ([\d.e-]+) sec")
CLOCK = ("_per_second", "utilisation")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arms", default="singles,together", help=f"comma-separated, of {', '.join(ARMS)}")
    parser.add_argument("--points", type=int, default=len(BETAS), help=f"how many betas, of {BETAS}")
    parser.add_argument("--setting", default="laptop", help="of dpo.py")
    parser.add_argument("--quick", action="store_true", help="the setting tiny and two points")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    arms = args.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        raise SystemExit(f"--arms knows {', '.join(ARMS)}; got {unknown.pop()!r}")
    setting, betas = ("tiny", BETAS[:2]) if args.quick else (args.setting, BETAS[: args.points])
    file = folder / "betas.py"
    file.write_text(EXPERIMENT.format(betas=betas))
    rows = []
    for arm in arms:
        machine.wait_until_quiet(args.patience)
        rows.append(run_arm(arm, f"{file}:{setting}", betas, folder / arm))
        print(f"{arm}: {rows[-1]['seconds']:.1f} s", flush=True)
    same = all(row["numbers"] == rows[0]["numbers"] for row in rows)
    return rows, {"setting": setting, "betas": betas, "numbers are the same": same}


def run_arm(arm: str, target: str, betas: tuple[float, ...], folder: Path) -> dict:
    """All points of an arm: wall time, its parts, and the numbers that the points came to."""
    (folder / "cache").mkdir(parents=True)
    commands = [["--config", target, "--sweep", "--workdir", str(folder)]]
    if arm == "apart":
        commands[0].append("--sweep_apart")
    places = [folder / f"objective.beta={beta}" for beta in betas]
    if arm == "singles":
        commands = [
            ["--config", target, f"--config.objective.beta={beta}", "--workdir", str(place)]
            for beta, place in zip(betas, places)
        ]
    before, start, compiling, cpu = machine.busy_cpu_seconds(), time.perf_counter(), 0.0, os.times()
    for command in commands:
        compiling += run(command, folder)
    seconds, now = time.perf_counter() - start, os.times()
    own = now.children_user + now.children_system - cpu.children_user - cpu.children_system
    others = max(machine.busy_cpu_seconds() - before - own, 0.0) / seconds
    in_runs = sum(_json(place / "environment.json")["starts"][-1]["seconds"] for place in places)
    parts = {"start-up": seconds - in_runs, "compiling": compiling, "steps": steps_seconds(places)}
    parts["rest"] = seconds - sum(parts.values())
    numbers = [
        {name: value for name, value in _json(place / "summary.json").items() if not name.endswith(CLOCK)}
        for place in places
    ]
    return dict(arm=arm, seconds=seconds, parts=parts, others_busy_cores=others, numbers=numbers)


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


def steps_seconds(places: list[Path]) -> float:
    """Of all updates that were made; lines that several points have in common were made once."""
    lines = set()
    for place in places:
        for name in ("metrics.jsonl", "pretrain/metrics.jsonl"):
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
    head = ["arm", "", "seconds", "a point", "over singles", *rows[0]["parts"]]
    cells = [
        [
            row["arm"],
            ARMS[row["arm"]],
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / len(facts['betas']):.1f}",
            f"{row['seconds'] / base:.2f}" if base else "",
            *(f"{seconds:.1f}" for seconds in row["parts"].values()),
        ]
        for row in rows
    ]
    agreement = "the same in all arms" if facts["numbers are the same"] else "**not the same in all arms**"
    if len(rows) == 1:
        agreement = "of one arm"
    notes = {
        "Task": f"dpo:{facts['setting']}, {len(facts['betas'])} betas: {', '.join(map(str, facts['betas']))}",
        "Numbers": agreement,
        "Command": f"`{facts['command']}`",
        "Hardware": f"{facts['hardware']}; {machine.noise([row['others_busy_cores'] for row in rows])}",
        "When": f"{facts['date']}, commit {facts['commit']}",
    }
    return f"{machine.table(head, cells)}\n\n{machine.notes(notes)}"


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report)

"""Kill a filter run at random moments until it ends, on each executor, and compare its outputs byte by byte.

    python benchmarks/filter_kills.py --kills 20 --executors local,process,ray --folder runs/filter_kills

Most kills are SIGKILL to the whole process group; one in six is SIGTERM to the launcher (exit code 75), and one in six
SIGKILL to one worker, which the run must survive. When a run ends before all kills are used up, it is compared, and
another run starts in another folder. The input has damaged lines, a truncated .gz and an empty file.
"""

import argparse
import gzip
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import orjson

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.corpus import worker_processes  # noqa: E402
from data.toys import toyweb  # noqa: E402

DONE, TOO_MANY_BAD = 0, 3
DAMAGE = (b'{"id": "cut', b'{"id": "no text"}', b'{"id": "x", "text": "\xff\xfe"}')
# The last three occur when SIGTERM arrives while Python or Ray starts; Ray's compiled code may abort then.
ENDS = (DONE, TOO_MANY_BAD, -signal.SIGKILL, 75, -signal.SIGTERM, signal.SIGTERM, -signal.SIGABRT)


def write_inputs(folder: pathlib.Path, num: int) -> None:
    """Toy documents in four files, some records unreadable."""
    folder.mkdir(parents=True)
    documents = toyweb.documents(num, seed=3)
    for i in range(3):
        lines = [orjson.dumps(d) for d in documents[i::4]]
        lines[50::200] = [DAMAGE[i]] * len(lines[50::200])
        (folder / f"part-{i}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    packed = gzip.compress(b"\n".join(map(orjson.dumps, documents[3::4])), mtime=0)
    (folder / "part-3.jsonl.gz").write_bytes(packed[: len(packed) * 3 // 4])
    (folder / "empty.jsonl").touch()


def command(inputs: pathlib.Path, workdir: pathlib.Path, executor: str, slice_mb: float) -> list[str]:
    target = str(ROOT / "experiments/filter.py:tiny")
    flags = {"inputs": inputs, "executor": executor, "slice_mb": slice_mb, "workers": 2 * (executor != "local")}
    overrides = [f"--config.{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", "experiments.run", "--config", target, "--workdir", str(workdir), *overrides]


def content(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every file of the outputs, except the cache of the rewriter's answers, which are in the order of arrival."""
    folder = workdir / "clean"
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "answers" not in p.parts}


def numbers(workdir: pathlib.Path) -> dict[str, float]:
    """The summary without times."""
    summary = json.loads((workdir / "summary.json").read_text("utf-8"))
    return {name: value for name, value in summary.items() if name not in ("docs_per_second", "seconds")}


def descendants(pid: int) -> list[int]:
    """All processes below a process, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    below: list[int] = []
    parents = [pid]
    while parents:
        more = children.get(parents.pop(), [])
        below += more
        parents += more
    return below


def workers_of(pid: int) -> list[int]:
    """The processes that run tasks: our own pool's by their command, Ray's by their name at work."""
    workers = []
    for child in descendants(pid):
        try:
            words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        is_rays = words.startswith(b"ray::") and b"Agent" not in words  # a node ends with its agents
        if worker_processes.START.encode() in words or is_rays:
            workers.append(child)
    return workers


def hurt(run: subprocess.Popen, kind: str, moments: random.Random) -> bool:
    """Send the signal; return whether there was a process to send it to."""
    if run.poll() is not None:
        return False
    if kind == "worker":
        workers = workers_of(run.pid)
        if not workers:
            return False
        try:
            os.kill(moments.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
    if kind == "term":
        run.send_signal(signal.SIGTERM)
    else:
        os.killpg(run.pid, signal.SIGKILL)
    return True


def try_executor(
    executor: str, args: argparse.Namespace, inputs: pathlib.Path, files: dict[str, bytes], summary: dict[str, float]
) -> None:
    """Kill runs on one executor and compare them with the undisturbed run's files and summary."""
    moments, num, finished = random.Random(executor), dict.fromkeys(("group", "term", "worker"), 0), 0
    folder = args.folder / executor
    while sum(num.values()) < args.kills:
        workdir = folder / f"run{finished}"
        while not (workdir / "DONE").exists():
            folder.mkdir(parents=True, exist_ok=True)
            log = open(folder / "log.txt", "ab")  # noqa: SIM115
            options = {"cwd": ROOT, "stdout": log, "stderr": log, "start_new_session": True}
            run = subprocess.Popen(command(inputs, workdir, executor, args.slice_mb), **options)
            if sum(num.values()) < args.kills:
                kind = moments.choice(("group", "group", "group", "group", "term", "worker"))
                kind = "group" if kind == "worker" and executor == "local" else kind
                begun = workdir / "clean/plan.json"
                while not begun.exists() and run.poll() is None:
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, args.span) + (args.warm_up if executor == "ray" else 0))
                num[kind] += hurt(run, kind, moments)
            code = run.wait()
            log.close()
            if code not in ENDS:
                raise SystemExit(f"{executor}: exit code {code}; {folder}/log.txt says why")
        temporary = [str(p) for p in workdir.rglob("*") if p.name.endswith((".tmp", ".unfinished"))]
        own = content(workdir)
        differ = sorted(name for name in files.keys() | own.keys() if files.get(name) != own.get(name))
        if differ or temporary or numbers(workdir) != summary:
            raise SystemExit(f"{executor}, run {finished}: differs in {differ[:20]}, temporary files {temporary}")
        finished += 1
    kinds = ", ".join(f"{number} {kind}" for kind, number in num.items())
    print(
        f"{executor}: {sum(num.values())} kills ({kinds}) over {finished} runs; {len(files)} files identical",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--executors", default="local,process,ray")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/filter_kills"))
    parser.add_argument("--documents", type=int, default=3_000)
    parser.add_argument("--slice-mb", type=float, default=0.1)
    parser.add_argument("--span", type=float, default=3.0, help="of seconds after the start in which kills fall")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds that a Ray cluster takes to start")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if args.folder.exists():
        shutil.rmtree(args.folder)
    inputs = args.folder / "raw"
    write_inputs(inputs, args.documents)
    undisturbed = args.folder / "undisturbed"
    began = time.monotonic()
    code = subprocess.run(command(inputs, undisturbed, "local", args.slice_mb), cwd=ROOT, stdout=subprocess.DEVNULL)
    files, summary = content(undisturbed), numbers(undisturbed)
    print(
        f"undisturbed: exit code {code.returncode}, {time.monotonic() - began:.0f} s, {summary['docs_in']} documents, "
        f"{summary['bad_records']} set aside, {len(files)} files",
        flush=True,
    )
    for executor in args.executors.split(","):
        try_executor(executor, args, inputs, files, summary)


if __name__ == "__main__":
    main()

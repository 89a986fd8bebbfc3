"""What the benchmarks share: the command line, peers' environments and workers, other work on the machine, reports."""

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # plain torch brings GPU libraries of several GB
TORCH = (f"torch==2.13.0+cpu --extra-index-url {CPU_TORCH} --retries 0", "torch==2.13.0")
QUIET = 0.2  # cores that others may use during a measurement


def main(
    doc: str,
    add_flags_fn: Callable[[argparse.ArgumentParser], None],
    measure_fn: Callable[[argparse.Namespace, Path], tuple[list[dict], dict]],
    report_fn: Callable[[list[dict], dict], str],
    keep_fn: Callable[[Path, list[dict]], None] | None = None,
) -> None:
    """A benchmark's command line: measure in a temporary folder, print a report, and keep it where --output says.

    Args:
        add_flags_fn: adds the benchmark's own flags; --patience, --output, --env-dir and --python are here already.
        measure_fn: (flags, folder) to the rows of the result and facts about the run. These join the command, the
            hardware, the commit and the date.
        report_fn: (rows, facts) to Markdown. The JSON of both goes beside it.
        keep_fn: called with the path of the report, to put more beside it, such as a picture.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags_fn(parser)
    parser.add_argument("--patience", type=float, default=10, help="seconds to wait for a quiet machine at each turn")
    parser.add_argument("--output", type=Path, help="Markdown file to write; the JSON goes beside it")
    parser.add_argument("--env-dir", type=Path, default=Path.home() / ".cache" / "plumbline" / "bench")
    parser.add_argument("--python", help="the Python 3.11 or 3.12 to make the environments with")
    args = parser.parse_args()
    facts = {"command": command(), "hardware": hardware(), "commit": commit()}
    facts["date"] = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        rows, more_facts = measure_fn(args, Path(folder))
    facts |= more_facts
    text = report_fn(rows, facts)
    print("\n" + text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
        args.output.with_suffix(".json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
        if keep_fn is not None:
            keep_fn(args.output, rows)


class Worker:
    """A process that answers commands with JSON lines on its stdout; between commands it sleeps in a read."""

    def __init__(self, name: str, command: Sequence[str], log: Path):
        self.name, self._log, pipe = name, log, subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log.open("w"), text=True)
        self.ready = self.read("ready")
        self.versions = self.ready["versions"]

    def ask(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read(self, event: str) -> dict:
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-25:])
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}; its last words:\n{tail}")
        answer = json.loads(line)
        assert answer["event"] == event, f"{self.name} answered {answer}, not {event}"
        return answer

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def notes(facts: Mapping[str, str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items()) + "\n"


def versions_of(versions: Mapping[str, Mapping[str, str]]) -> str:
    """Who runs which package in which version, as one line."""
    return "; ".join(f"{who}: " + ", ".join(f"{k} {v}" for k, v in of.items()) for who, of in versions.items())


def noise(others: Sequence[float], *, matters: bool = True) -> str:
    """How many cores other processes kept busy, and whether that spoils the measurement."""
    text = f"other processes kept {statistics.median(others):.2f} cores busy meanwhile (at most {max(others):.2f})"
    if matters and max(others) > QUIET:
        text += "; **not a quiet machine, so not a measurement to keep**"
    return text


def find_python() -> str:
    """A Python 3.11 or 3.12, preferring the one that runs this script."""
    candidates = [sys.executable, *(shutil.which(name) for name in ("python3.11", "python3.12", "python3", "python"))]
    question = "import sys; print(sys.version_info[:2] in ((3, 11), (3, 12)))"
    for python in filter(None, candidates):
        answer = subprocess.run([python, "-c", question], capture_output=True, text=True)
        if answer.stdout.strip() == "True":
            return python
    raise SystemExit("The peers need Python 3.11 or 3.12 and neither was found; name one with --python.")


def environment(peer: str, packages: list[tuple[str, ...]], root: Path, python: str) -> str:
    """The peer's own python, its environment made first if there is none; returns its path.

    Args:
        peer: name of the environment; "" is the one that runs this.
        packages: pip command lines, in order; a tuple of them: the first that works.
        root: folder of the environments.
        python: what to make them with.
    """
    if not peer:
        return sys.executable
    home, log = root / peer, root / f"{peer}.log"
    ours = str(home / "bin" / "python")
    if (home / "complete").exists():
        return ours
    print(f"Installing {peer} into {home} (log: {log})", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        subprocess.run([python, "-m", "venv", str(home)], check=True, stdout=out, stderr=out)
        for alternatives in packages:
            for line in alternatives:
                command = [ours, "-m", "pip", "install", *line.split()]
                if subprocess.run(command, stdout=out, stderr=out).returncode == 0:
                    break
            else:
                raise SystemExit(f"pip could not install {alternatives[-1]}; see {log}")
    (home / "complete").touch()
    return ours


def busy_cpu_seconds() -> float:
    """CPU time that all processes of this machine have used so far; 0 where the system does not say (not Linux)."""
    try:
        user, nice, system = (int(x) for x in Path("/proc/stat").read_text().split()[1:4])
    except OSError:
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(patience: float) -> None:
    """Wait while other processes use the machine, `patience` seconds at most."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_cpu_seconds()
        time.sleep(1.0)
        if busy_cpu_seconds() - before < QUIET:
            return


def hardware() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def command() -> str:
    """The command line of this run, as a person would type it."""
    return shlex.join(["python", *sys.argv])


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The format is a length, a JSON table of contents and the bytes (github.com/huggingface/safetensors)."""
    contents: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        contents[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    head = json.dumps(contents).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())

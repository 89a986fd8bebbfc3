"""What the benchmarks share: environments of the peers, other work on the machine, what the machine is."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # plain torch brings GPU libraries of several GB
TORCH = (f"torch==2.13.0+cpu --extra-index-url {CPU_TORCH} --retries 0", "torch==2.13.0")
QUIET = 0.2  # cores that others may use during a measurement


def find_python() -> str:
    """A Python 3.11 or 3.12, preferring the one that runs this script."""
    found = [sys.executable, *(shutil.which(name) for name in ("python3.11", "python3.12", "python3", "python"))]
    question = "import sys; print(sys.version_info[:2] in ((3, 11), (3, 12)))"
    for python in filter(None, found):
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
    """What all processes of this machine have used so far, where the system tells (Linux)."""
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


def commit() -> str:
    def git(*words):
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The format is a length, a JSON table of contents and the bytes (github.com/huggingface/safetensors)."""
    table, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        table[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())

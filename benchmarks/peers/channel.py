"""The line between the driver and one contestant: commands on stdin, JSON lines on what was stdout.

    driver: step N   contestant: N lines {"event": "step", "seconds", "cpu_seconds", "loss", ...}
    driver: peak     contestant: {"event": "peak", "gflops"}    its own framework's best large fp32 matrix product
    driver: quit     contestant ends

Only the standard library: every contestant has another environment.  A contestant that waits sleeps in a read.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def arguments() -> argparse.Namespace:
    """What every contestant is told; `variant` is the contestant's own to read."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--ids", type=Path, required=True, help="npz of dpo_task.py")
    parser.add_argument("--variant", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-6)
    parser.add_argument("--beta", type=float, default=0.1, help="of the DPO loss")
    args = parser.parse_args()
    limit_threads(args.threads)
    return args


def limit_threads(num_threads: int) -> None:
    """Keep this process on `num_threads` cores; call before importing a framework, which sizes its pools by them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(num_threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak() -> None:
    """Let `peak_rss_mb` begin anew; where the system cannot (not Linux), it goes on."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def best_gflops(product_fn: Callable[[], None], size: int, repeats: int = 6) -> float:
    """Best rate of a [size, size] x [size, size] product over `repeats` timed calls, GFLOP/s."""
    product_fn()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product_fn()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def answering() -> Callable[..., None]:
    """A function that sends its keyword arguments to the driver as one line.

    Call first thing, so that a library's prints, which go to stderr from then on, cannot mix with the answers.
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**values) -> None:
        out.write(json.dumps(values) + "\n")

    return send


class Channel:
    """Reads commands and reports steps.  Made first thing: see `answering`."""

    def __init__(self, peak_fn: Callable[[], float]):
        self._send = answering()
        self._peak_fn = peak_fn
        self._granted = 0
        self._start = self._cpu_start = 0.0

    def send(self, event: str, **values) -> None:
        self._send(event=event, **values)

    def next_step(self) -> bool:
        """Wait until the driver wants another step and start its clock; False when there is none to come."""
        while not self._granted:
            words = sys.stdin.readline().split()
            if not words or words[0] == "quit":
                return False
            if words[0] == "peak":
                self.send("peak", gflops=self._peak_fn())
            elif words[0] == "step":
                self._granted = int(words[1])
        self._granted -= 1
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        return True

    def end_step(self, loss: float) -> None:
        """Stop the clock; call when the new parameters exist, not when they were asked for."""
        seconds = time.perf_counter() - self._start
        cpu_seconds = time.process_time() - self._cpu_start  # of all threads
        self.send("step", seconds=seconds, cpu_seconds=cpu_seconds, loss=float(loss), peak_rss_mb=peak_rss_mb())

"""The protocol between benchmarks/saflex.py and its contestants.  It needs numpy alone, of any environment.

    driver: {"do": "steps", "count": 5}        contestant: {"event": "steps", "seconds", "cpu_seconds"}
    driver: {"do": "scores", "path": "..."}    contestant: {"event": "scores", "seconds", "cpu_seconds"}, P in the npz
    the end of the input: the contestant ends

Dimensions: B rows, K classes.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import channel
import numpy as np

SIDE, CLASSES, COLUMNS, WIDTHS = 32, 10, 64, (512, 512)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="with <network>.safetensors and batch.npz")
    parser.add_argument("--network", required=True, choices=("resnet18", "mlp"))
    parser.add_argument("--variant", default="", help="of the step, ours alone")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    channel.limit_threads(args.threads)
    return args


def batch(folder: Path, network: str) -> dict[str, np.ndarray]:
    """Rows of the three kinds: x, y, aug, aug_y, val, val_y."""
    with np.load(folder / "batch.npz") as stored:
        return {name.removeprefix(f"{network}/"): stored[name] for name in stored.files if name.startswith(network)}


def serve(versions: dict, scores_fn, steps_fn=None) -> None:
    """Answer until the driver has had enough.

    Args:
        scores_fn: -> P [B,K], from parameters and batches that lie in memory.
        steps_fn: count -> makes so many training steps and waits for the last.
    """
    send = channel.answering()
    send(event="ready", versions=versions)
    for line in sys.stdin:
        request = json.loads(line)
        start, cpu_start = time.perf_counter(), time.process_time()
        if request["do"] == "steps":
            steps_fn(request["count"])
        else:
            scores_BK = scores_fn()
        times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        if request["do"] == "scores":
            np.savez(request["path"], scores=scores_BK)
        send(event=request["do"], **times, peak_mb=channel.peak_rss_mb())

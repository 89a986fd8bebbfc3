"""The protocol between benchmarks/focus.py and its contestants.  It needs numpy alone, of any environment.

    driver: {"do": "explain", "first": 0, "count": 10}      contestant: {"event": "explained", "seconds", "cpu_seconds"}
    driver: {"do": "maps", "first": 0, "count": 2, "path"}  contestant: {"event": "maps"}, arrays in the npz at the path
    driver: {"do": "floor"}                                 contestant: {"event": "floor", "gflops"}
    the end of the input: the contestant ends

The clock runs from tiles in memory to scores in the contestant's memory: mosaics are built, normalised, explained and
scored.  A contestant that waits sleeps in a read.

Dimensions: I tiles, M mosaics, 4 tiles of a mosaic, K targets, Y X rows and columns, C channels (3).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import channel
import numpy as np


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="with model.safetensors and task.npz")
    parser.add_argument("--method", required=True, choices=("gradcam", "lrp", "integrated_gradients"))
    parser.add_argument("--variant", default="")
    parser.add_argument("--targets", type=int, default=1, help="1: the mosaic's own; 4: the class of each tile")
    parser.add_argument("--batch", type=int, default=1, help="mosaics at a time")
    parser.add_argument("--steps", type=int, default=30, help="of integrated gradients")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32"), help="of products on a GPU")
    args = parser.parse_args()
    channel.limit_threads(args.threads)
    return args


class Task:
    """The tiles and the plan.

    Attributes:
        tiles_IYXC: uint8.
        tile_index_M4, tile_label_M4: which tile lies where, and its class.
        targets_MK: the classes to explain; the first is the mosaic's target.
        num_classes: of the network.
    """

    def __init__(self, folder: Path, num_targets: int):
        stored = np.load(folder / "task.npz")
        self.tiles_IYXC, self.tile_index_M4 = stored["tiles"], stored["tile_index"]
        self.tile_label_M4, target_M = stored["tile_label"], stored["target"]
        self.num_classes = int(stored["num_classes"])
        self.targets_MK = target_M[:, None] if num_targets == 1 else self.tile_label_M4

    def rows(self, first: int, count: int, batch: int):
        """Mosaics in batches of one size; the last is filled up with its own last mosaic."""
        for start in range(first, first + count, batch):
            yield np.minimum(np.arange(start, start + batch), min(first + count, len(self.targets_MK)) - 1)


def serve(explain_fn, versions: dict, floor_fn, memory_fn=channel.peak_rss_mb) -> None:
    """Answer until the driver has had enough.

    Args:
        explain_fn: (first, count, wants_maps) -> scores [M, K], or with maps a pair of maps [M, K, Y, X] and scores.
        floor_fn: -> the best rate of a large float32 product in this framework, GFLOP/s.
        memory_fn: -> the highest use so far, MiB: resident memory, or the device's.
    """
    send = channel.answering()
    send(event="ready", versions=versions)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "explain":
            start, cpu_start = time.perf_counter(), time.process_time()
            scores_MK = explain_fn(request["first"], request["count"], False)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            mean = float(np.nanmean(scores_MK))
            send(event="explained", seconds=seconds, cpu_seconds=cpu_seconds, score=mean, peak_mb=memory_fn())
        elif request["do"] == "maps":
            maps_MKYX, scores_MK = explain_fn(request["first"], request["count"], True)
            np.savez(request["path"], maps=maps_MKYX, scores=scores_MK)
            send(event="maps")
        elif request["do"] == "floor":
            send(event="floor", gflops=floor_fn())

"""An experiment that trains nothing: what the launcher's tests run."""

import json
import math
import os
import pathlib
import random
import signal
import sys
import threading
import types

import ml_collections
import numpy as np

from alignment import errors
from alignment.errors import InputError


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 4
    c.behaviour = "finish"
    c.objective = {"beta": 0.1, "kinds": ("a", "b"), "window": None}
    c.optimizer = {"total_steps": c.get_ref("steps")}
    if arg == "tiny":
        c.steps = 2
    elif arg:
        raise ValueError(f"stub.py knows the settings '' and 'tiny', got {arg!r}")
    return c


def sweep():
    for beta in (0.05, 0.5):
        yield {"objective.beta": beta, "seed": 1}


METRICS = {"draw/*": ("a random number", "", ["seed"])}


def headline(summary):
    name = "nothing" if summary["steps"] == 7 else "heldout/loss"
    return f"It made {summary['steps']} steps to a loss of {summary[name]}."


def exit_code(summary):
    return (3, "nine steps are too many") if summary["steps"] == 9 else (0, "")


def run(c, workdir):
    folder = pathlib.Path(workdir)
    with open(folder / "calls.txt", "a") as f:
        f.write("called\n")
    BEHAVIOURS[c.behaviour](folder)
    with open(folder / "metrics.jsonl", "w") as f:
        for step in range(1, c.steps + 1):
            f.write(json.dumps({"step": step, "loss": c.objective.beta / step}) + "\n")
    return {
        "heldout/loss": np.float32(c.objective.beta),
        "steps": c.steps,
        "total_steps": c.optimizer.total_steps,
        "window": c.objective.window or 0,
        "draw/python": random.random(),
        "draw/numpy": float(np.random.rand()),
        "nothing": math.nan,
    }


def crash_once(folder):
    mark = folder / "crashed"
    if not mark.exists():
        mark.touch()
        raise RuntimeError("a fault of ours")


def refuse(folder):
    raise InputError("batch_size=3 does not split over 2 devices; 2 would")


def fill_disk(folder):
    try:
        raise OSError(28, "No space left on device", str(folder / "checkpoints" / "3"))
    except OSError as e:
        raise ValueError("could not commit") from e


def fill_disk_in_words(folder):
    raise ValueError('RESOURCE_EXHAUSTED: write failed [OS error 28: "No space left on device"]')


def wait(folder):
    (folder / "ready").touch()
    signal.pause()


def stop(folder):
    raise errors.Stopped("the service is down")


def train(folder):
    """A loop that saves when asked to stop, under the names of alignment/train/loop.py."""
    loop = types.ModuleType("alignment.train.loop")
    loop.STOP, loop.ACTIVE, loop.Stopped = threading.Event(), threading.Event(), errors.Stopped
    loop.ACTIVE.set()
    sys.modules["alignment.train.loop"] = loop
    (folder / "ready").touch()
    if not loop.STOP.wait(30):
        raise TimeoutError("nobody asked to stop")
    (folder / "saved").touch()
    raise loop.Stopped


BEHAVIOURS = {
    "finish": lambda folder: None,
    "crash": lambda folder: 1 / 0,
    "crash_once": crash_once,
    "refuse": refuse,
    "fill_disk": fill_disk,
    "fill_disk_in_words": fill_disk_in_words,
    "wait": wait,
    "stop": stop,
    "train": train,
    "kill_at_small_beta": lambda folder: os.kill(os.getpid(), signal.SIGKILL) if "beta=0.05" in str(folder) else None,
    "crash_at_large_beta": lambda folder: 1 / 0 if "beta=0.5" in os.fspath(folder) else None,
}

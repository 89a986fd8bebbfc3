"""Killed at any instant and started again, a run ends as one never interrupted, bit for bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alignment.train import checkpoint
from tests.experiments.conftest import ROOT

STEPS = 30
FLAGS = (
    f"--config.steps={STEPS}",
    "--config.loop.save_every=5",
    "--config.loop.eval_every=10",
    "--config.loop.log_every=2",
    "--config.pretrain.steps=6",
    "--config.samples.num=1",
    "--config.samples.max_new_tokens=4",
    "--config.data.max_len=128",
    "--config.sinks=()",
)
TIMING = ("step_seconds", "pairs_per_second", "rows_per_second", "flops_per_second")
pytestmark = pytest.mark.slow


class Nursery:
    """Processes of the launcher, forked from one that has imported everything, with one cache of compiled programs."""

    def __init__(self, folder: pathlib.Path):
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # one device, optimised as a user's run is
        env |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-m", "tests.experiments.nursery"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, workdir: pathlib.Path, experiment: str = "dpo", flags: tuple[str, ...] = FLAGS) -> int:
        argv = ["--config", str(ROOT / f"experiments/{experiment}.py:tiny"), "--workdir", str(workdir), *flags]
        return self.ask(argv=argv, log=f"{workdir}.log")

    def wait(self, pid: int) -> int:
        """The exit code; minus the signal for a process that was killed."""
        return self.ask(wait=pid)

    def run(self, workdir: pathlib.Path, **what: Any) -> None:
        code = self.wait(self.start(workdir, **what))
        assert code == 0, pathlib.Path(f"{workdir}.log").read_text()[-3000:]


def rows(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in found]


def summary_of(workdir):
    """summary.json with every name, and of what depends on the clock whether it is a number above 0."""
    found = json.loads((workdir / "summary.json").read_text())
    return {name: value is not None and value > 0 if name in TIMING else value for name, value in found.items()}


def state_of(workdir):
    """Everything of the last checkpoint: parameters, optimizer, key, step, the loader's position."""
    items = {name: ocp.args.StandardRestore() for name in ("params", "rest")} | {"position": ocp.args.JsonRestore()}
    with checkpoint.open_manager(workdir / "checkpoints", read_only=True) as manager:
        assert manager.latest_step() == STEPS
        found = manager.restore(STEPS, args=ocp.args.Composite(**items))
    return jax.device_get({name: found[name] for name in items})


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.process.stdin.close()
    made.process.wait(60)


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """A run never interrupted: what is in it, and how long such a run takes when nothing has to be compiled."""
    folder = tmp_path_factory.mktemp("whole")
    nursery.run(folder / "first")
    began = time.monotonic()
    nursery.run(folder / "second")
    found = {"seconds": time.monotonic() - began, "state": state_of(folder / "first")}
    found["summary.json"] = summary_of(folder / "first")
    for name in ("metrics.jsonl", "pretrain/metrics.jsonl", "tables/samples.jsonl"):
        found[name] = rows(folder / "first" / name)
        assert rows(folder / "second" / name) == found[name]
    jax.tree.map(np.testing.assert_array_equal, state_of(folder / "second"), found["state"])
    return found


def assert_like(whole, workdir, metrics_too=True):
    jax.tree.map(np.testing.assert_array_equal, state_of(workdir), whole["state"])
    for name in ("metrics.jsonl", "pretrain/metrics.jsonl", "tables/samples.jsonl"):
        found = rows(workdir / name)
        if metrics_too:
            assert found == whole[name], name
        if "metrics" in name:
            steps = [row["step"] for row in found]
            assert steps == sorted(set(steps)), name
    assert summary_of(workdir) == whole["summary.json"]
    leftovers = [p for p in workdir.rglob("*") if "-tmp" in p.name or p.name.endswith((".tmp", ".unfinished"))]
    assert leftovers == [] and (workdir / "DONE").exists()


def has(workdir, *patterns):
    """Whether any file that matches is there now."""
    return any(next(workdir.glob(pattern), None) is not None for pattern in patterns)


def logged(workdir, step):
    """Whether this step's line is written."""
    try:
        return f'"step": {step},' in (workdir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return False


def is_saving(step, phase="."):
    """The checkpoint of this step is begun and not finished."""
    return lambda workdir: has(workdir / phase, f"checkpoints/{step}.*tmp*")


# moments on events in the folder, a random instant after each; the rest are drawn over the run's whole time
EVENTS = {
    "while language modelling saves": is_saving(5, "pretrain"),
    "while the first checkpoint is saved": is_saving(0),
    "while a middle checkpoint is saved": is_saving(15),
    "while the last checkpoint is saved": is_saving(STEPS),
    "after the last checkpoint": lambda workdir: has(workdir, f"checkpoints/{STEPS}"),
    "as the reference is written": lambda workdir: has(workdir, "reference/train.npy*"),
    "between two checkpoints": lambda workdir: logged(workdir, 12),
}
MOMENTS = [*EVENTS, *(f"at a random time, {i}" for i in range(4))]


def kill_at(nursery, workdir, moment, whole, rng):
    """Kill a run at its moment; whether it was still running then."""
    pid = nursery.start(workdir)
    if moment in EVENTS:
        delay, deadline = rng.uniform(0, 0.005), time.monotonic() + 60
        while not EVENTS[moment](workdir) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(delay)
    else:
        time.sleep(whole["seconds"] * rng.uniform(0.1, 0.9))
    os.kill(pid, signal.SIGKILL)
    return nursery.wait(pid) == -signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again_it_ends_in_the_same_parameters(moment, nursery, whole, tmp_path):
    rng = random.Random(moment)
    tries = (tmp_path / f"run{i}" for i in range(5))
    tried = (w for w in tries if kill_at(nursery, w, moment, whole, rng))
    workdir = next((w for w in tried if "save" not in moment or EVENTS[moment](w)), None)  # half a checkpoint is left
    assert workdir is not None, "the run was always faster than the kill"
    assert not (workdir / "DONE").exists()
    nursery.run(workdir)
    assert_like(whole, workdir)


def test_killed_again_and_again_it_still_ends_in_the_same_parameters(nursery, whole, tmp_path):
    rng, kills = random.Random(0), 0
    for moment in ("as the reference is written", "while the first checkpoint is saved", "between two checkpoints"):
        kills += kill_at(nursery, tmp_path / "run", moment, whole, rng)
    assert kills == 3
    nursery.run(tmp_path / "run")
    assert_like(whole, tmp_path / "run")
    *killed, last = json.loads((tmp_path / "run/environment.json").read_text())["starts"]
    assert last["outcome"] == "done" and not any("outcome" in start for start in killed) and len(killed) == 3


def test_sigterm_while_training_saves_exits_75_and_the_run_goes_on_from_there(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    pid = nursery.start(workdir)
    while not logged(workdir, 6):
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait(pid) == 75
    with checkpoint.open_manager(workdir / "checkpoints", read_only=True) as manager:
        assert 6 <= manager.latest_step() < STEPS
    said = pathlib.Path(f"{workdir}.log").read_text()
    assert "all work is saved" in said and "Traceback" not in said
    nursery.run(workdir)
    assert_like(whole, workdir, metrics_too=False)  # the step at which it stopped has a line of its own


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("step", [0, 15, STEPS])
def test_a_stop_signal_while_a_checkpoint_is_written_exits_75_and_the_run_goes_on(
    number, step, nursery, whole, tmp_path
):
    for i in range(5):
        workdir = tmp_path / f"run{i}"
        pid, deadline = nursery.start(workdir), time.monotonic() + 60
        while not (is_there := is_saving(step)(workdir)) and not has(workdir, "DONE") and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(pid, number)
        code = nursery.wait(pid)
        if is_there:  # seen in time; the signal then came while Orbax wrote, or just after
            break
    assert code == 75, pathlib.Path(f"{workdir}.log").read_text()[-2000:]
    assert "Traceback" not in pathlib.Path(f"{workdir}.log").read_text()
    nursery.run(workdir)
    assert_like(whole, workdir, metrics_too=False)  # the step at which it stopped has a line of its own


def test_sigterm_before_training_exits_75_too(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    pid = nursery.start(workdir)
    while not has(workdir, "model.json"):
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait(pid) == 75
    nursery.run(workdir)
    assert_like(whole, workdir)


def test_a_run_on_a_stream_that_is_killed_twice_ends_in_the_same_parameters(nursery, tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        texts = (f"document {shard} {n} " + "x" * (n % 70) for n in range(40))
        (tmp_path / f"shards/{shard}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    flags = (*(flag for flag in FLAGS if "pretrain" not in flag), f"--config.data.path={tmp_path}/shards")
    flags += ("--config.stream.on=True", "--config.stream.window=8", "--config.data.heldout_fraction=0.1")
    streamed = dict(experiment="pretrain", flags=(*flags, "--config.data.limit=None"))
    nursery.run(tmp_path / "whole", **streamed)
    killed = 0
    for step in (6, 16):  # a line before, a checkpoint behind which steps are lost
        pid, deadline = nursery.start(tmp_path / "run", **streamed), time.monotonic() + 60
        while not logged(tmp_path / "run", step) and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        killed += nursery.wait(pid) == -signal.SIGKILL
    assert killed == 2
    nursery.run(tmp_path / "run", **streamed)
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    assert rows(tmp_path / "run/metrics.jsonl") == rows(tmp_path / "whole/metrics.jsonl")

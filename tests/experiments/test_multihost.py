"""Two processes of one device each, meeting on the loopback address, train like one process with two devices."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file


def start(
    workdir, cache, mesh, experiment="experiments/dpo.py:tiny", flags=("--config.batch.layout=shared",), **environment
):
    """A tiny run in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        "--config",
        experiment,
        "--workdir",
        str(workdir),
    ]
    command += [f"--config.mesh.data={mesh[0]}", f"--config.mesh.tensor={mesh[1]}", *flags]
    command += ["--distributed"] if "JAX_PROCESS_ID" in environment else []
    # of two values of a flag XLA takes the last; the other flags let it compile as fast as in this process
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={environment.pop('devices')}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PLUMBLINE_JAX_CACHE": str(cache), **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


PATIENCE = 300  # seconds for what takes ten on an idle machine


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows], [row.get("loss", row.get("heldout/loss")) for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with two devices ends in, and the cache of compiled programs."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder / "run", folder / "cache", (2, 1), devices="2"))
    return folder / "run", folder / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)], ids=["data", "tensor"])  # along tensor both load the same rows
def test_two_processes_train_like_one(tmp_path, alone, mesh):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    meeting = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "devices": "1"}
    pair = [start(tmp_path / "two", alone[1], mesh, **meeting, JAX_PROCESS_ID=str(i)) for i in range(2)]
    outputs = [finish(process) for process in pair]
    assert losses(tmp_path / "two")[0] == losses(alone[0])[0]
    np.testing.assert_allclose(losses(tmp_path / "two")[1], losses(alone[0])[1], atol=1e-4)
    assert "heldout/loss" in outputs[0]
    assert "heldout/loss" not in outputs[1]  # process 0 alone speaks
    assert (tmp_path / "two/export/hf/model.safetensors").is_file()


# ---- signals, deaths and folders of two processes


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


LONG = ("--config.samples.num=0", "--config.export=", "--config.sinks=()", "--config.steps=20000")
LONG += ("--config.loop.eval_every=5000", "--config.loop.save_every=5000", "--config.loop.log_every=20")


def start_pair(folder, cache, workdirs=("run", "run"), experiment="experiments/pretrain.py:tiny", flags=LONG):
    """Two processes of a run; the language model's that stands here would take minutes."""
    port, pair = free_port(), []
    for i in range(2):
        command = [sys.executable, "-m", "experiments.run", "--config", str(experiment), "--distributed", *flags]
        devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices, "PLUMBLINE_JAX_CACHE": str(cache)}
        env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        pair.append(subprocess.Popen([*command, "--workdir", str(folder / workdirs[i])], env=env, **pipes))
    return pair


def codes(pair):
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in pair]
    return [process.returncode for process in pair], outputs


def wait_for(path, pair):
    wait_until(path.exists, pair)


def wait_until(is_so, pair):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline and all(process.poll() is None for process in pair)
        time.sleep(0.01)


def catches(process, number):
    """Whether a process has a handler for a signal (Linux)."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return int(caught, 16) >> (number - 1) & 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "receivers"),
    [(signal.SIGTERM, (0, 1)), (signal.SIGHUP, (1,)), (signal.SIGUSR1, (0,))],
    ids=["TERM to both", "HUP to one", "USR1 to one"],
)
def test_a_stop_signal_saves_and_ends_with_75_on_both(tmp_path, alone, number, receivers):
    pair = start_pair(tmp_path, alone[1])
    wait_for(tmp_path / "run/checkpoints/0", pair)
    for i in receivers:
        pair[i].send_signal(number)
    ended, outputs = codes(pair)
    assert ended == [75, 75], outputs
    saved = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit())
    assert all(f"stopped after step {saved} of 20000; all work is saved" in output for output in outputs)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_stop_signal_while_the_processes_import_ends_both_with_75(tmp_path, alone):
    pair = start_pair(tmp_path, alone[1])
    for process in pair:  # before the launcher's first line Python has no handler, and the signal would end it with -15
        wait_until(lambda process=process: catches(process, signal.SIGTERM), pair)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    ended, outputs = codes(pair)
    assert ended == [75, 75], outputs
    assert not (tmp_path / "run").exists()


SWALLOWS = """
import os
import pathlib
import signal
import time

import ml_collections


class Swallows:
    def __del__(self):  # Python reports what a destructor raises, and goes on
        signal.raise_signal(signal.SIGTERM)


def swallow_then_go_on(moment):
    if os.environ["SWALLOWS"] == moment:
        thing = Swallows()
        del thing
    while True:
        time.sleep(0.1)


def get_config(arg=""):
    return ml_collections.ConfigDict({"seed": 0})


if os.environ["SWALLOWS"] == "importing":
    swallow_then_go_on("importing")


def run(c, workdir):
    import jax

    swallow_then_go_on(f"running {jax.process_index()}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["importing", "running 0", "running 1"])
def test_a_stop_signal_that_a_library_swallows_still_ends_both_with_75(tmp_path, alone, moment, monkeypatch):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    monkeypatch.setenv("SWALLOWS", moment)
    ended, outputs = codes(start_pair(tmp_path, alone[1], experiment=tmp_path / "swallows.py", flags=()))
    assert ended == [75, 75], outputs
    assert all("stopped by SIGTERM" in output for output in outputs)  # the other says why it follows


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_of_two_processes_dies_the_other_ends_within_seconds_with_75_and_names_it(tmp_path, alone, dead):
    pair = start_pair(tmp_path, alone[1])
    wait_for(tmp_path / "run/checkpoints/0", pair)
    pair[dead].kill()
    began = time.monotonic()
    ended, outputs = codes(pair)
    assert time.monotonic() - began < 30
    assert ended[1 - dead] == 75 and f"process {dead} of this run died" in outputs[1 - dead], outputs


@pytest.mark.slow
def test_two_processes_with_a_folder_each_are_refused_on_both_and_leave_no_folder(tmp_path, alone):
    pair = start_pair(tmp_path, alone[1], workdirs=("a", "b"))
    ended, outputs = codes(pair)
    assert ended == [2, 2] and all("not one folder on all hosts: process 1" in output for output in outputs), outputs
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.slow
def test_what_one_process_refuses_ends_the_other_with_2_too(tmp_path, alone):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")  # another run's
    ended, outputs = codes(start_pair(tmp_path, alone[1]))
    assert ended == [2, 2], outputs
    assert all("already holds a run with another config" in output for output in outputs), outputs


STREAMED = (
    "--config.samples.num=0",
    "--config.sinks=()",
    "--config.data.limit=None",
    "--config.data.heldout_fraction=0.1",
)
STREAMED += ("--config.stream.on=True", "--config.stream.window=8", "--config.stream.lanes=4", "--config.mesh.data=2")


@pytest.mark.slow
def test_two_processes_that_read_their_own_records_train_like_one_and_one_goes_on_from_their_checkpoint(
    tmp_path, alone
):
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        rows = (json.dumps({"text": f"document {shard} {n} " + "x" * (n % 70)}) + "\n" for n in range(40))
        (tmp_path / f"shards/{shard}.jsonl").write_text("".join(rows))
    flags = (*STREAMED, f"--config.data.path={tmp_path}/shards")
    run = dict(experiment="experiments/pretrain.py:tiny", cache=alone[1])

    def one(folder):
        finish(start(folder, alone[1], (2, 1), devices="2", experiment=run["experiment"], flags=flags))
        return np.concatenate(
            [np.ravel(x) for _, x in sorted(load_file(folder / "export/hf/model.safetensors").items())]
        )

    expected = one(tmp_path / "one")
    ended, outputs = codes(start_pair(tmp_path, **run, workdirs=("two", "two"), flags=flags))
    assert ended == [0, 0], outputs
    np.testing.assert_allclose(losses(tmp_path / "two")[1], losses(tmp_path / "one")[1], rtol=1e-5)
    assert len(list((tmp_path / "two/index").glob("*.note"))) == 3  # each process has indexed its part
    half = (*flags, "--config.steps=2", "--config.optimizer.total_steps=4")
    ended, outputs = codes(start_pair(tmp_path, **run, workdirs=("then", "then"), flags=half))
    assert ended == [0, 0], outputs
    np.testing.assert_allclose(one(tmp_path / "then"), expected, atol=1e-5)

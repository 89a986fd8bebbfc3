"""Two processes of one device each, meeting on the loopback address, train like one process with two devices."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest


def start(workdir, cache, mesh, **environment):
    """A tiny run in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        "--config",
        "experiments/dpo.py:tiny",
        "--workdir",
        str(workdir),
    ]
    command += [f"--config.mesh.data={mesh[0]}", f"--config.mesh.tensor={mesh[1]}", "--config.batch.layout=shared"]
    command += ["--distributed"] if "JAX_PROCESS_ID" in environment else []
    # of two values of a flag XLA takes the last; the other flags let it compile as fast as in this process
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={environment.pop('devices')}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PLUMBLINE_JAX_CACHE": str(cache), **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=300)
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

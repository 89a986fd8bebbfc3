"""Two processes of one device each, meeting on the loopback address, train like one process with two devices."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest


def start(workdir, cache, **environment):
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
    command += ["--config.batch.layout=shared"] + (["--distributed"] if "JAX_PROCESS_ID" in environment else [])
    flags = f"--xla_force_host_platform_device_count={environment.pop('devices')}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PLUMBLINE_JAX_CACHE": str(cache), **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows], [row.get("loss", row.get("heldout/loss")) for row in rows]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    meeting = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "devices": "1"}
    pair = [start(tmp_path / "two", tmp_path / "cache", **meeting, JAX_PROCESS_ID=str(i)) for i in range(2)]
    outputs = [finish(process) for process in pair]
    finish(start(tmp_path / "one", tmp_path / "cache", devices="2"))
    assert losses(tmp_path / "two")[0] == losses(tmp_path / "one")[0]
    np.testing.assert_allclose(losses(tmp_path / "two")[1], losses(tmp_path / "one")[1], atol=1e-5)
    assert "heldout/loss" in outputs[0]
    assert "heldout/loss" not in outputs[1]  # process 0 alone speaks
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["heldout/loss"] == pytest.approx(
        json.loads((tmp_path / "one/summary.json").read_text())["heldout/loss"], abs=1e-5
    )

"""Ray's cases in a process of their own: Ray forks, which a process with JAX's threads had better not."""

import os
import pathlib
import subprocess
import sys

import pytest

CASES = pathlib.Path(__file__).with_name("ray_cases.py")


@pytest.mark.slow
def test_ray_cases_hold_in_a_process_without_jax():
    pytest.importorskip("ray")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(CASES),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "XLA_"))}
    ended = subprocess.run(command, cwd=CASES.parents[3], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-4_000:] + ended.stderr[-2_000:]

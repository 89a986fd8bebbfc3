"""Points of `dpo` that take their steps in one program, through the launcher."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import run
from experiments.launch import host

EXPERIMENT = """
from experiments.dpo import SETTINGS, check, get_config, headline, run


def sweep():
    for beta, rate, seed in ((0.1, 1e-3, 0), (0.3, 3e-3, 0), (0.1, 1e-3, 1)):
        yield {"objective.beta": beta, "optimizer.peak_lr": rate, "seed": seed}
"""
CLOCK = ("_per_second", "step_seconds")
FLAGS = ("--sweep", "--config.steps=6", "--config.loop.log_every=1", "--config.loop.save_every=2")


def command(folder, workdir, *flags):
    file = folder / "betas.py"
    file.write_text(EXPERIMENT)
    return ["--config", f"{file}:tiny", "--workdir", str(workdir), *FLAGS, *flags]


def numbers(row):
    return {name: value for name, value in row.items() if not name.endswith(CLOCK)}


def assert_same_points(one, other):
    points = sorted(path.name for path in one.glob("objective*"))
    assert len(points) == 3
    for point in points:
        for name in ("metrics.jsonl", "pretrain/metrics.jsonl"):
            lines = [(folder / point / name).read_text().splitlines() for folder in (one, other)]
            for mine, own in zip(*lines, strict=True):
                assert numbers(json.loads(mine)) == pytest.approx(numbers(json.loads(own)), rel=1e-4, abs=1e-5)
        summaries = [json.loads((folder / point / "summary.json").read_text()) for folder in (one, other)]
        assert numbers(summaries[0]) == pytest.approx(numbers(summaries[1]), rel=1e-4, abs=1e-5)
        for name in ("DONE", "report.html", "config.json", "tables/samples.jsonl", "export/hf/model.safetensors"):
            assert (one / point / name).is_file() and (other / point / name).is_file()
        assert sorted(p.name for p in (one / point / "checkpoints").iterdir()) == sorted(
            p.name for p in (other / point / "checkpoints").iterdir()
        )


@pytest.mark.slow
def test_a_batched_sweep_that_is_stopped_goes_on_and_leaves_what_single_runs_leave(tmp_path):
    arguments = command(tmp_path, tmp_path / "batched", "--sweep_batched=3")
    child = subprocess.Popen([sys.executable, "-m", "experiments.run", *arguments], env=os.environ)
    marks = tmp_path / "batched/objective.beta=0.1,optimizer.peak_lr=0.001,seed=1/metrics.jsonl"
    while child.poll() is None and not (marks.is_file() and '"step": 1' in marks.read_text()):
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) in (host.STOPPED, 0)  # 0: it came with the last step
    assert run.main(arguments) == 0
    assert run.main(command(tmp_path, tmp_path / "single")) == 0
    assert_same_points(tmp_path / "batched", tmp_path / "single")


@pytest.mark.slow
def test_a_signal_before_any_training_ends_the_process_at_once(tmp_path):
    arguments = command(tmp_path, tmp_path / "runs", "--sweep_batched=3")
    index = ["--sweep_index=0,1,2", *(flag for flag in arguments if flag != "--sweep")]
    child = subprocess.Popen([sys.executable, "-m", "experiments.run", *index], env=os.environ)
    first = tmp_path / "runs/objective.beta=0.1,optimizer.peak_lr=0.001,seed=0/environment.json"
    while child.poll() is None and not first.is_file():
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert child.wait(60) == host.STOPPED
    assert time.monotonic() - begin < 30


def test_points_of_different_programs_are_refused_before_any_work(tmp_path, capsys):
    arguments = command(tmp_path, tmp_path / "runs", "--sweep_batched=2")
    file = pathlib.Path(tmp_path / "betas.py")
    file.write_text(EXPERIMENT.replace('"seed": seed', '"loss": "ipo" if seed else "dpo"'))
    assert run.main(arguments) == 2
    said = capsys.readouterr().err
    assert "has loss='ipo' and point" in said and "Leave --sweep_batched out" in said
    assert not (tmp_path / "runs").exists()

"""A toy stage over slices, killed at random moments and started again."""

import pathlib
import random
import subprocess
import sys
import time

import orjson
import pytest

from data.corpus import shards
from tests.data.corpus import toy_tasks

ROOT = pathlib.Path(__file__).resolve().parents[3]


def content(folder):
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for name in ("a", "b"):
        rows = [{"id": f"{name}{i}", "text": f"document {i} " * (i % 7 + 1)} for i in range(900)]
        lines = [orjson.dumps(row) if i % 97 else b"{cut" for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines))
    return str(folder)


@pytest.fixture(scope="module")
def untouched(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched")
    toy_tasks.run_stage(inputs, str(folder), "local")
    assert len(shards.finished(folder, "upper", "c0ffee", is_checked=True)) > 30
    return content(folder)


@pytest.mark.parametrize(
    ("executor", "num_kills"),
    [("local", 2), ("process", 2)]
    + [pytest.param(name, number, marks=pytest.mark.slow) for name, number in (("process", 8), ("ray", 1))],
)
def test_killed_at_random_moments_and_started_again_a_stage_leaves_the_same_bytes(
    tmp_path, inputs, untouched, executor, num_kills
):
    if executor == "ray":
        pytest.importorskip("ray")
    script = "import sys; from tests.data.corpus import toy_tasks; toy_tasks.run_stage(*sys.argv[1:])"
    command = [sys.executable, "-c", script, inputs, str(tmp_path), executor]
    moments, num_cut = random.Random(1), 0
    for _ in range(num_kills):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as run:
            run.stdout.readline()
            begun = set(content(tmp_path))
            while set(content(tmp_path)) == begun and run.poll() is None:  # a cluster takes seconds to start
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.1))
            run.kill()
        num_cut += run.returncode == -9 and content(tmp_path) != untouched
    assert num_cut, "no kill fell into the work"
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    assert content(tmp_path) == untouched


def test_an_array_of_three_jobs_leaves_what_one_leaves(tmp_path, inputs, untouched, monkeypatch):
    whole = toy_tasks.slices.plan
    for index in reversed(range(3)):
        mine = lambda *a, index=index, **kw: toy_tasks.executors.share(whole(*a, **kw), index, 3)  # noqa: E731
        monkeypatch.setattr(toy_tasks.slices, "plan", mine)
        toy_tasks.run_stage(inputs, str(tmp_path), "local")
    assert content(tmp_path) == untouched

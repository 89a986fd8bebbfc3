"""The filter as a command: whoever does the slices, however often it is stopped, the same bytes and numbers."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from alignment.filtering import pipeline
from data.corpus import shards
from experiments import filter as experiment
from experiments.launch import config as launch_config
from tests.experiments.conftest import ROOT
from tests.experiments.filtering.runs import content, flags, numbers, rows, start, write


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "toy"
    return folder, {d["id"]: d for d in write(folder)}


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    ended = start(workdir, raw[0])
    assert ended.code == 0, ended.err
    assert len(list((workdir / "clean/documents").iterdir())) > 7  # slices: enough for seven shares
    return workdir


def test_a_finished_run_started_again_does_no_work(raw, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}
    ended = start(whole, raw[0])
    assert ended.code == 0 and "finished already" in ended.out
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_every_document_has_one_decision_whose_hashes_are_those_of_its_texts(raw, whole):
    clean = whole / "clean"
    kept = {row["id"]: row for row in rows(clean / "documents")}
    decisions = rows(clean / "decisions")
    assert sorted(row["id"] for row in decisions) == sorted(raw[1]) and not rows(clean / "errors")
    for row in decisions:
        assert row["text_sha256_in"] == pipeline.sha256(raw[1][row["id"]]["text"])
        is_kept = row["action"] != "drop"
        assert is_kept == (row["id"] in kept)
        assert row["text_sha256_out"] == (pipeline.sha256(kept[row["id"]]["text"]) if is_kept else "")
        assert is_kept or (row["rule"] and row["reason"])


def test_kept_removed_and_set_aside_are_the_input(raw, whole):
    clean = whole / "clean"
    removed = [row["id"] for step in ("rules", "duplicates", "align") for row in rows(clean / "removed" / step)]
    assert sorted([row["id"] for row in rows(clean / "documents")] + removed) == sorted(raw[1])
    found = numbers(whole)
    assert found["docs_in"] == len(raw[1]) == found["docs_kept"] + found["docs_dropped"] + found["bad_records"]
    assert found["docs_dropped"] == len(removed) == sum(v for k, v in found.items() if k.startswith("drop/"))


def test_attributes_stand_beside_the_documents_they_are_of(whole):
    clean = whole / "clean"
    for path in sorted((clean / "decisions").iterdir()):
        here = [row["id"] for row in shards.read(path)]
        assert [row["id"] for row in shards.read(clean / "attributes/rules" / path.name)] == here
        scored = [row["id"] for row in shards.read(clean / "attributes/safety" / path.name)]
        kept = [row["id"] for row in shards.read(clean / "documents" / path.name)]
        assert [id for id in scored if id in set(kept)] == kept and [id for id in here if id in set(scored)] == scored


SHARES = """
import os, pathlib, sys
from experiments import run
from experiments import filter as experiment
from experiments.report import pictures
experiment.POLL_SECONDS = 0.05
run.page.build, pictures.save = (lambda *_: ""), (lambda *_: None)  # drawing takes longer than filtering
count, folder, *argv = sys.argv[1:]
children = []
for i in range(int(count)):
    if not (child := os.fork()):
        shares = [f"--config.shard_index={i}", f"--config.shard_count={count}", f"--config.outputs={folder}/clean"]
        os._exit(run.main([*argv, "--workdir", f"{folder}/{i}", *shares]))
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(codes != [0] * len(codes))
"""


@pytest.mark.parametrize("count", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_shares_of_an_array_leave_what_one_start_leaves(raw, whole, tmp_path, count):
    config = ["--config", str(ROOT / "experiments/filter.py:tiny"), *flags(raw[0])]
    command = [sys.executable, "-c", SHARES, str(count), str(tmp_path), *config]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert content(tmp_path / "clean") == content(whole / "clean")
    for index in range(count):
        assert numbers(tmp_path / str(index)) == numbers(whole)


@pytest.mark.slow  # processes leave them in the next test too, kills and all
@pytest.mark.parametrize("executor", ["process", "ray"])
def test_executors_leave_the_same_bytes(raw, whole, tmp_path, executor):
    if executor == "ray":  # it forks, which this process with JAX's threads had better not
        pytest.importorskip("ray")
        command = [sys.executable, "-m", "experiments.run", "--config", "experiments/filter.py:tiny"]
        command += ["--workdir", str(tmp_path / "run"), *flags(raw[0], executor=executor, workers=2)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
    else:
        ended = start(tmp_path / "run", raw[0], executor=executor, workers=2)
        assert ended.code == 0, ended.err
    assert content(tmp_path / "run/clean") == content(whole / "clean") and numbers(tmp_path / "run") == numbers(whole)


MOMENTS = ("done/screen/00000003.done", "done/align/00000001.done")


@pytest.mark.parametrize("moments", [MOMENTS[1:], pytest.param(MOMENTS, marks=pytest.mark.slow)], ids=["once", "twice"])
def test_killed_and_started_again_it_leaves_the_same_bytes(raw, whole, tmp_path, moments):
    """benchmarks/filter_kills.py does it twenty times on each executor."""
    command = [sys.executable, "-m", "experiments.run", "--config", str(ROOT / "experiments/filter.py:tiny")]
    command += ["--workdir", str(tmp_path / "run"), *flags(raw[0], executor="process", workers=2)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for moment in moments:
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet) as child:
            deadline = time.monotonic() + 60
            while not (tmp_path / "run/clean" / moment).exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            os.killpg(child.pid, signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL and not (tmp_path / "run/DONE").exists()
    assert start(tmp_path / "run", raw[0], executor="process", workers=2).code == 0
    assert content(tmp_path / "run/clean") == content(whole / "clean") and numbers(tmp_path / "run") == numbers(whole)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".tmp", ".unfinished"))]


def test_a_table_is_read_like_the_lines_it_holds(raw, whole, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "toy").mkdir()
    for i in range(2):
        found = shards.read(raw[0] / f"part-{i}.jsonl")
        shards.write(tmp_path / f"toy/part-{i}.parquet", found)
    ended = start(tmp_path / "run", tmp_path / "toy")
    assert ended.code == 0, ended.err
    kept = [rows(folder / "clean/documents") for folder in (whole, tmp_path / "run")]
    assert [(d["id"], d["text"]) for d in kept[0]] == [(d["id"], d["text"]) for d in kept[1]]


def test_outputs_of_another_config_are_refused_with_ways_out(raw, whole, tmp_path):
    ended = start(tmp_path / "run", raw[0], outputs=whole / "clean", seed=1)
    assert ended.code == 2 and "redo" in ended.err and "another output folder" in ended.err


def test_another_scorer_scores_and_aligns_anew_and_nothing_else(raw, whole, tmp_path):

    shutil.copytree(whole / "clean", tmp_path / "clean")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "clean/stages").rglob("*") if p.is_file()}
    values = {"outputs": tmp_path / "clean", "scorers__safety__languages": "en"}
    assert start(tmp_path / "refused", raw[0], **values).code == 2
    ended = start(tmp_path / "run", raw[0], **values, redo="('score.safety',)")
    assert ended.code == 0, ended.err
    stages = [line.split()[0] for line in ended.err.splitlines() if "100 %" in line]
    assert stages == ["score.safety", "fallen", "stand_in", "align"]
    anew = {"answers", "fallen", "heads", "gone_in_the_end"}
    kept = [p for p in before if not anew & set(p.parts)]
    assert {p: p.stat().st_mtime_ns for p in kept} == {p: before[p] for p in kept}
    fresh = start(tmp_path / "fresh", raw[0], scorers__safety__languages="en")
    assert fresh.code == 0 and content(tmp_path / "fresh/clean") == content(tmp_path / "clean")


def test_redo_does_a_stage_again_and_what_builds_on_it_in_the_same_workdir(tmp_path):
    write(tmp_path / "toy", 40)
    assert start(tmp_path / "run", tmp_path / "toy").code == 0
    before = content(tmp_path / "run/clean")
    ended = start(tmp_path / "run", tmp_path / "toy", redo="('score.safety',)")
    assert ended.code == 0, ended.err
    stages = [line.split()[0] for line in ended.err.splitlines() if "100 %" in line]
    assert stages == ["score.safety", "fallen", "stand_in", "align"] and content(tmp_path / "run/clean") == before


def test_stages_done_again_with_another_compression_leave_each_document_once(tmp_path):
    documents = write(tmp_path / "toy", 40)
    told = {"skip": "('safety',)", "outputs": tmp_path / "clean"}
    assert start(tmp_path / "a", tmp_path / "toy", **told).code == 0
    before = [row["id"] for row in rows(tmp_path / "clean/documents")]
    ended = start(tmp_path / "b", tmp_path / "toy", **told, compression="gz", redo="('screen',)")
    assert ended.code == 0, ended.err
    assert [row["id"] for row in rows(tmp_path / "clean/documents")] == before
    assert not list((tmp_path / "clean").rglob("*.zst")) and len(before) < len(documents)


def test_the_exit_code_of_an_experiment_is_the_launchers(tmp_path):
    code, why = experiment.exit_code({"bad_share": 0.002, "max_bad": 0.001, "bad_records": 2})
    assert code == 3 and "2 records (0.2 %)" in why and "errors/" in why
    assert experiment.exit_code({"bad_share": 0.001, "max_bad": 0.001}) == experiment.exit_code({}) == (0, "")
    verdict = launch_config.Experiment(experiment, "filter", "").verdict({"bad_share": 1.0, "max_bad": 0.1})
    assert verdict == experiment.exit_code({"bad_share": 1.0, "max_bad": 0.1}) and verdict[0] == 3

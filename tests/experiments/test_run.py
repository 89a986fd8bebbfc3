import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from alignment import files
from experiments import run
from experiments.launch import config, full_disk, host
from experiments.launch import workdir as workdirs
from experiments.report import page as report

STUB = str(pathlib.Path(__file__).with_name("stub.py"))
ROOT = pathlib.Path(__file__).parents[2]


def launch(workdir, *flags, setting=""):
    return run.main(["--config", STUB + setting, "--workdir", str(workdir), *flags])


def start(workdir, behaviour):
    """The launcher in a process of its own, once it is inside `run`."""
    command = [sys.executable, "-m", "experiments.run", "--config", STUB, f"--config.behaviour={behaviour}"]
    child = subprocess.Popen([*command, "--workdir", str(workdir)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (workdir / "ready").exists():
        assert child.poll() is None and time.monotonic() < deadline, child.stderr.read()
        time.sleep(0.02)
    return child


def calls(workdir):
    return (workdir / "calls.txt").read_text().count("called")


def test_a_finished_run_leaves_what_the_contract_names(tmp_path, capsys):
    assert launch(tmp_path / "a" / "b", "--config.objective.beta=0.25") == 0
    folder = tmp_path / "a" / "b"
    config = json.loads((folder / "config.json").read_text())
    assert config["objective"] == {"beta": 0.25, "kinds": ["a", "b"], "window": None}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["experiment"] == "stub"
    (only,) = environment["starts"]
    assert only["outcome"] == "done" and only["versions"]["jax"] == jax.__version__ and only["seconds"] >= 0
    assert "--config.objective.beta=0.25" in only["command"]
    assert len(only["devices"]) == jax.device_count()
    assert json.loads((folder / "summary.json").read_text())["heldout/loss"] == 0.25
    assert "<svg" in (folder / "report.html").read_text()
    assert (folder / "DONE").exists() and not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    assert "heldout/loss" in capsys.readouterr().out


def test_a_finished_run_started_again_prints_its_summary_and_does_no_work(tmp_path, capsys):
    assert launch(tmp_path) == 0
    first = capsys.readouterr().out
    assert launch(tmp_path) == 0
    assert calls(tmp_path) == 1
    line = next(line for line in first.splitlines() if line.startswith("heldout/loss"))
    assert line in capsys.readouterr().out


def test_done_is_written_last(tmp_path, monkeypatch, capsys):
    def broken(workdir):
        assert not (pathlib.Path(workdir) / "DONE").exists()
        raise RuntimeError("no page today")

    with monkeypatch.context() as m:
        m.setattr(report, "build", broken)
        assert launch(tmp_path) == 1
    assert not (tmp_path / "DONE").exists() and "no page today" in (tmp_path / "error.txt").read_text()
    assert launch(tmp_path) == 0 and (tmp_path / "DONE").exists()


def test_another_config_in_the_same_folder_is_refused_with_the_keys_that_differ(tmp_path, capsys):
    assert launch(tmp_path) == 0
    capsys.readouterr()
    assert launch(tmp_path, "--config.objective.beta=0.3", "--config.objective.kinds=('a',)") == 2
    message = capsys.readouterr().err
    assert "objective.beta: 0.1 there, 0.3 now" in message and "objective.kinds: ['a', 'b'] there, ['a'] now" in message
    assert "steps" not in message and "Traceback" not in message
    assert launch(tmp_path, "--config.objective.kinds=('a', 'b')") == 0  # a tuple equals the list JSON made of it


def test_another_experiment_in_the_same_folder_is_refused(tmp_path, capsys):
    assert launch(tmp_path) == 0
    twin = tmp_path / "twin.py"
    twin.write_text(pathlib.Path(STUB).read_text())
    assert run.main(["--config", str(twin), "--workdir", str(tmp_path)]) == 2
    assert "experiment: 'stub' there, 'twin' now" in capsys.readouterr().err


def test_a_diff_ignores_the_order_of_keys_and_names_what_came_and_went():
    assert workdirs.diff({"a": 1, "b": {"c": [1, 2], "d": {}}}, {"b": {"d": {}, "c": [1, 2]}, "a": 1}) == []
    lines = workdirs.diff({"a": {"x": 1}}, {"a": {"y": 1}})
    assert lines == ["a.x: 1 there, no such key now", "a.y: no such key there, 1 now"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", STUB, "--config.objectve.beta=1"], 'did you mean "objective.beta"?'),
        (["--config", STUB, "--config.objective.betta=1"], 'did you mean "objective.beta"?'),
        (["--config", STUB, "--config.steps=many"], "config.steps=many"),
        (["--config", STUB, "--config.zzz=1"], "the config has"),
        (["--config", STUB + ":huge"], "knows the settings"),
        (["--config", STUB.replace("stub", "stab")], "stub.py"),
        (["--config", str(ROOT / "experiments" / "run.py")], "defines no get_config"),
        (["--config", STUB, "--wrokdir=x"], "workdir"),
        (["--config", STUB, "steps=3"], "'steps=3' is not a flag"),
        (["--workdir", "x"], "--config is missing"),
        (["--config", STUB, "--sweep_index=7"], "points 0 to 1"),
        (["--config", STUB, "--workdir", STUB], "is a file"),
        (["--config", STUB, "--workdir", STUB + "/x"], "cannot be written"),
        (["--config", STUB, "--workdir", "x" * 300], "File name too long"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and said in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_an_input_error_inside_run_is_bad_input_and_anything_else_a_crash(tmp_path, capsys):
    assert launch(tmp_path / "a", "--config.behaviour=refuse") == 2
    assert capsys.readouterr().err == "error: batch_size=3 does not split over 2 devices; 2 would\n"
    assert launch(tmp_path / "b", "--config.behaviour=crash") == 1
    assert "Traceback" in capsys.readouterr().err
    assert "ZeroDivisionError" in (tmp_path / "b" / "error.txt").read_text()
    assert not (tmp_path / "b" / "DONE").exists()


def test_a_crashed_run_started_again_calls_run_again_and_records_both_starts(tmp_path, capsys):
    assert launch(tmp_path, "--config.behaviour=crash_once") == 1
    assert launch(tmp_path, "--config.behaviour=crash_once") == 0
    assert calls(tmp_path) == 2 and not (tmp_path / "error.txt").exists()
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [s["outcome"] for s in starts] == ["crashed", "done"]


@pytest.mark.parametrize("behaviour", ["fill_disk", "fill_disk_in_words"])
def test_a_full_disk_is_bad_input_that_names_the_path_and_a_checkpoint_only_where_there_is_one(
    behaviour, tmp_path, capsys
):
    assert launch(tmp_path, f"--config.behaviour={behaviour}") == 2
    message = capsys.readouterr().err
    path = tmp_path / "checkpoints" / "3" if behaviour == "fill_disk" else tmp_path
    assert f"writing {path}." in message and "is good" not in message and "Traceback" not in message
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    (tmp_path / "checkpoints/4.orbax-checkpoint-tmp").mkdir()
    assert launch(tmp_path, f"--config.behaviour={behaviour}") == 2
    assert "the checkpoint of step 2 in" in capsys.readouterr().err


def test_a_full_disk_without_a_file_name_names_the_fullest_of_the_folders_that_a_run_writes_to(tmp_path, monkeypatch):
    space = {"runs/x": 9e9, "/data/outputs": 1e3}
    monkeypatch.setattr(full_disk.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=space[folder]))
    error = RuntimeError("[Errno 28] No space left on device")
    assert "while writing /data/outputs." in full_disk.message(error, "runs/x", ["/data/outputs"])


def test_what_threads_say_about_a_full_disk_is_dropped_and_nothing_else(caplog, monkeypatch):
    heard = []
    for owner, name in ((sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, lambda unhandled: heard.append(str(unhandled.exc_value)))
    full_disk.say_once()
    full_disk.say_once()  # a second run in the same process does not hook twice
    log = logging.getLogger("asyncio")
    for error in (OSError(28, "No space left on device"), RuntimeError("something else")):
        log.error("Task exception was never retrieved", exc_info=error)
        for hook in (sys.unraisablehook, threading.excepthook):
            hook(types.SimpleNamespace(exc_value=error))
    assert [r.exc_info[1].args for r in caplog.records] == [("something else",)]
    assert heard == ["something else"] * 2


def test_a_write_that_meets_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    files.write_text(tmp_path / "x.json", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "x.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and (tmp_path / "x.json").read_text() == "old"


def test_summaries_hold_numbers_and_nulls_only(tmp_path):
    assert launch(tmp_path) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["nothing"] is None
    assert workdirs.numbers({"a": True, "b": float("inf"), "c": jax.numpy.float32(0.5)}) == {
        "a": 1,
        "b": None,
        "c": 0.5,
    }
    with pytest.raises(TypeError, match="best='yes'"):
        workdirs.numbers({"best": "yes"})


def test_an_experiment_gives_its_pages_first_sentence_and_meanings_of_its_numbers(tmp_path):
    assert launch(tmp_path / "a") == 0
    page = (tmp_path / "a/report.html").read_text()
    assert '<p class="headline">It made 4 steps to a loss of 0.1' in page and "a random number" in page
    assert launch(tmp_path / "b", "--config.steps=7") == 0  # a sentence that would need what is not a number
    assert '<p class="headline">heldout/loss is 0.1' in (tmp_path / "b/report.html").read_text()


def test_the_seed_fixes_what_python_and_numpy_draw(tmp_path):
    draws = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert launch(tmp_path / name, f"--config.seed={seed}") == 0
        found = json.loads((tmp_path / name / "summary.json").read_text())
        draws.append((found["draw/python"], found["draw/numpy"]))
    assert draws[0] == draws[1] and draws[0][0] != draws[2][0] and draws[0][1] != draws[2][1]


def test_overrides_carry_through_references_and_replace_none(tmp_path):
    assert launch(tmp_path, "--config.steps=3", "--config.objective.window=8", setting=":tiny") == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["steps"], found["total_steps"], found["window"]) == (3, 3, 8)


def test_the_default_workdir_is_named_for_experiment_and_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--config", STUB]) == 0 and run.main([f"--config={STUB}:tiny"]) == 0
    assert sorted(p.parent.name for p in tmp_path.glob("runs/*/DONE")) == ["stub", "stub-tiny"]


def test_help_answers_and_lists_the_keys_of_an_experiment(capsys):
    assert run.main(["--help"]) == 0
    assert "exit codes" in capsys.readouterr().out
    assert run.main(["--config", STUB + ":tiny", "--help"]) == 0
    assert "--config.objective.beta=0.1" in capsys.readouterr().out


def test_sigterm_during_training_lets_the_loop_save_and_exits_75(tmp_path):
    child = start(tmp_path, "train")
    child.send_signal(signal.SIGTERM)
    _, message = child.communicate(timeout=30)
    assert child.returncode == 75 and (tmp_path / "saved").exists() and "Traceback" not in message
    assert json.loads((tmp_path / "environment.json").read_text())["starts"][0]["outcome"] == "stopped"


def test_sigterm_while_an_experiment_is_imported_exits_75(tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(f"import pathlib, time\npathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(30)\n")
    command = [sys.executable, "-m", "experiments.run", "--config", str(slow)]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, message = child.communicate(timeout=20)
    assert child.returncode == 75 and "stopped by SIGTERM" in message and "Traceback" not in message


def test_work_that_cannot_go_on_exits_75_and_says_why(tmp_path, capsys):
    assert launch(tmp_path, "--config.behaviour=stop") == 75
    assert "the service is down" in capsys.readouterr().out and not (tmp_path / "DONE").exists()
    assert json.loads((tmp_path / "environment.json").read_text())["starts"][0]["outcome"] == "stopped"


def test_an_experiment_says_with_what_code_a_finished_run_exits_and_why_also_the_second_time(tmp_path, capsys):
    assert launch(tmp_path, "--config.steps=9") == 3 and (tmp_path / "DONE").exists()
    assert "nine steps are too many" in capsys.readouterr().out
    assert launch(tmp_path, "--config.steps=9") == 3 and calls(tmp_path) == 1
    assert "nine steps are too many" in capsys.readouterr().out


def test_a_refused_run_may_be_corrected_in_its_folder_and_one_that_did_work_may_not(tmp_path, capsys):
    for seed in (1, 4):
        assert launch(tmp_path, "--config.behaviour=refuse", f"--config.seed={seed}") == 2
        assert "already holds" not in capsys.readouterr().err
        (tmp_path / "calls.txt").unlink()  # else there would be work of the stub's
    assert launch(tmp_path, "--config.seed=3") == 0
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    outcomes = [s["outcome"] for s in json.loads((tmp_path / "environment.json").read_text())["starts"]]
    assert outcomes == ["refused", "refused", "done"]
    (tmp_path / "other").mkdir()
    assert launch(tmp_path / "other", "--config.behaviour=refuse") == 2
    (tmp_path / "other/calls.txt").rename(tmp_path / "other/metrics.jsonl")
    assert launch(tmp_path / "other") == 2 and "already holds a run" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_until_its_owner_is_gone_and_sigterm_without_a_loop_exits_75(tmp_path, capsys):
    child = start(tmp_path, "wait")
    assert launch(tmp_path, "--config.behaviour=wait") == 75  # the start that a scheduler replaces is about to end
    assert f"in use by another process (pid {child.pid}" in capsys.readouterr().err
    assert launch(tmp_path, "--config.behaviour=wait", "--config.seed=1") == 2  # the diff comes before the lock
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 75

    (tmp_path / "ready").unlink()
    child = start(tmp_path, "wait")
    child.kill()
    child.wait(30)
    workdirs.lock(str(tmp_path)).close()  # a killed owner leaves the folder free
    outcomes = [s.get("outcome") for s in json.loads((tmp_path / "environment.json").read_text())["starts"]]
    assert outcomes == ["stopped", None]


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--config.seed=1",), 2)])
def test_what_another_start_finished_just_before_the_lock_is_neither_run_again_nor_overwritten(
    flags, code, tmp_path, monkeypatch
):
    lock = workdirs.lock

    def lock_late(workdir):
        with monkeypatch.context() as m:
            m.setattr(workdirs, "lock", lock)
            assert launch(tmp_path) == 0
        return lock(workdir)

    monkeypatch.setattr(workdirs, "lock", lock_late)
    assert launch(tmp_path, *flags) == code and calls(tmp_path) == 1
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_multi_host_start_is_asked_for_and_never_takes_the_sweep_from_the_job_index(monkeypatch):
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: told.append(arguments))
    monkeypatch.setattr(host.peers, "answer_abort", lambda follow_fn: None)  # pytest has its own handler
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    host.start_distributed(False)
    assert told == []
    host.start_distributed(True)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    host.start_distributed(False)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    host.start_distributed(False)
    assert told == [{}, {}, {"num_processes": 4, "process_id": 2}]
    assert config.parse_flags(config.load_experiment(STUB).config(), []).sweep_index is None


def test_the_compilation_cache_drops_torn_entries_and_the_oldest_past_its_limit(tmp_path):
    folder = host.cache_folder(tmp_path)
    for age, (name, size) in enumerate(
        {"new-cache": 60, "torn-cache": 0, "older-cache": 30, "oldest-cache": 30}.items()
    ):
        (folder / name).write_bytes(b"x" * size)
        os.utime(folder / name, (1000 - age, 1000 - age))
    assert host.cache_folder(tmp_path, limit_bytes=100) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["new-cache", "older-cache"]

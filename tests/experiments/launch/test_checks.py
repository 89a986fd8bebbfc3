"""What the launcher refuses before any work, what it takes up again in a folder, and what it says about it."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import ml_collections
import pytest

from alignment.errors import InputError
from alignment.train import writers
from experiments import run
from experiments.launch import checks, host, sweeps
from experiments.launch import workdir as workdirs
from tests.experiments.conftest import ROOT
from tests.experiments.launch.test_config import STUB

DPO = str(ROOT / "experiments/dpo.py:tiny")


def test_in_a_group_that_is_not_read_every_value_must_be_one_of_a_setting():
    def config(steps, size):
        return ml_collections.ConfigDict({"lsh": {"steps": steps, "mesh": {"size": size}}})

    defaults = [config(1, 4), config(2, 5)]
    checks.check_unread(config(2, 4).lock(), defaults, [("lsh", "buckets are random")])
    with pytest.raises(InputError, match=r"lsh.mesh.size=6 is not read, as buckets are random; set it to 4"):
        checks.check_unread(config(2, 6).lock(), defaults, [("lsh", "buckets are random")])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), r"marks=\(\) must be a tuple of names, such as \('kgw',\)"),
        (("kgw", ""), "must be a tuple of names"),
        ("kgw", "must be a tuple of names"),
        (("kgv",), "the nearest is 'kgw'"),
        (("kgw", "kgw"), "names one of them twice"),
    ],
)
def test_a_tuple_holds_different_known_names(names, said):
    with pytest.raises(InputError, match=said):
        checks.check_names(ml_collections.ConfigDict({"marks": names}), "marks", ("kgw", "exp"))
    checks.check_names(ml_collections.ConfigDict({"marks": ("exp", "kgw")}), "marks", ("kgw", "exp"))
    checks.check_names(ml_collections.ConfigDict({"marks": ("a", "a")}), "marks", unique=False)
    checks.check_names(ml_collections.ConfigDict({"marks": ()}), "marks", least=0)


def launch(workdir, *flags, target=str(STUB)):
    return run.main(["--config", target, "--workdir", str(workdir), *flags])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.sinks=('wandb',)"], "pip install 'plumbline[wandb]'"),
        (["--config.sinks=('tensorboard','trackio')"], "pip install 'plumbline[trackio]'"),
        (["--config.sinks=('tensorbord',)"], "the nearest is 'tensorboard'"),
        (["--config.steps=-1"], "steps=-1 must be at least 0"),
        (["--config.pretrain.steps=-2"], "pretrain.steps=-2 must be at least 0"),
        (["--config.mesh.data=0"], "sizes must be positive"),
        (["--config.mesh.fsdp=-1"], "at most one of them -1"),
        (["--config.loop.log_every=0"], "loop.log_every=0 must be at least 1"),
        (["--config.loop.keep=0"], "loop.keep=0 must be at least 1"),
        (["--config.loop.save_every=-1"], "save_every=-1 must be at least 0"),
        (["--config.loss=dpoo"], "the nearest is"),
        (["--config.reference=online", "--config.samples.temperature=-1.0"], "temperature"),
        (["--config.optimizer.warmup_steps=9"], "warmup_steps=9"),
        (["--config.export=float8"], "export='float8'"),
    ],
)
def test_what_needs_no_data_is_refused_before_a_folder_is_made(flags, said, tmp_path, monkeypatch, capsys):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    assert launch(tmp_path / "run", *flags, target=DPO) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ELOOP, errno.EIO])
def test_a_workdir_that_its_disk_does_not_make_is_refused_with_the_disk_s_words(number, monkeypatch):
    def refuse(*unused, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(InputError, match=os.strerror(number)):
        workdirs.make("runs/x")


@pytest.mark.parametrize("flag", ["--config.data.path=~nobody-here/x.jsonl", f"--config.init_from=hf:{'x' * 5000}"])
def test_a_path_that_no_disk_takes_is_bad_input_wherever_it_is_met(flag, tmp_path, capsys):
    assert launch(tmp_path / "run", flag, target=DPO) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_without_permission_is_bad_input_and_its_name_is_said():
    def refuse():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "weights.safetensors")

    assert run.coded(refuse) == (2, "error: weights.safetensors: Permission denied; give a path that can be used")


@pytest.mark.parametrize("content", ["[]", "null", "{", ""])
def test_a_config_in_the_folder_that_is_no_object_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        workdirs.check(str(tmp_path), {}, "dpo", {})


@pytest.mark.parametrize("workdir", ["gs://bucket/x", "s3://bucket/x", "memory://x"])
@pytest.mark.parametrize("flags", [[], ["--sweep"], ["--emit=slurm"]])
def test_an_object_store_as_workdir_is_refused_at_once(workdir, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert launch(workdir, *flags) == 2
    assert "names an object store. Mount the bucket" in capsys.readouterr().err and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["cuda", "tpu", "cuda,cpu"])
def test_an_accelerator_without_its_package_is_refused_with_the_extra(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", name)
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda package: None)
    assert launch(tmp_path / "run") == 2
    assert f"pip install 'plumbline[{name[:4].rstrip(',')}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_a_home_there_is_no_cache_and_no_error(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("PLUMBLINE_JAX_CACHE", raising=False)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(pathlib.Path, "home", homeless)
    host.use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("values", ["0.05,0.1", "(0.05,0.1)", "[0.05, 0.1]"])
def test_several_values_on_the_command_line_are_answered_with_how_to_sweep(values, tmp_path, capsys):
    assert launch(tmp_path / "run", f"--config.objective.beta={values}") == 2
    assert "{'objective.beta': 0.05}, and start that file with --sweep" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--config.sinks=None", "--config.steps=None", "--config.objective.beta=None"])
def test_none_is_refused_where_nothing_can_be_unset(flag, tmp_path, capsys):
    assert launch(tmp_path / "run", flag, target=DPO) == 2
    assert "cannot be unset; give it a value" in capsys.readouterr().err


# ---- folders


def test_a_folder_whose_run_was_refused_takes_the_corrected_command_and_loses_what_was_begun(tmp_path, capsys):
    assert launch(tmp_path, "--config.behaviour=refuse", "--config.seed=1") == 2
    (tmp_path / "calls.txt").unlink()
    for name in ("reference/train.npy", "tokenizer/tokenizer.json", "tables/data.jsonl", "model.json", "before.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of another config")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "heldout/loss": 1.0}\n')
    for name in ("checkpoints/0", "checkpoints/.digests", "best/checkpoints/0", "pretrain/checkpoints/0.orbax-tmp"):
        (tmp_path / name).mkdir(parents=True)
    assert launch(tmp_path, "--config.seed=2") == 0
    gone = ("reference", "model.json", "checkpoints", "best", "pretrain")
    assert not any((tmp_path / name).exists() for name in gone)
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("work", ["checkpoints/4/x", "pretrain/checkpoints/8/x", "outputs/kept.jsonl", "DONE"])
def test_a_refused_run_that_had_worked_keeps_its_folder(work, tmp_path, capsys):
    assert launch(tmp_path, "--config.behaviour=refuse") == 2
    (tmp_path / "calls.txt").unlink()
    (tmp_path / work).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / work).touch()
    assert launch(tmp_path) == 2 and "already holds a run" in capsys.readouterr().err
    assert (tmp_path / work).exists()


def test_a_refused_run_that_had_logged_a_step_keeps_its_folder(tmp_path, capsys):
    assert launch(tmp_path, "--config.behaviour=refuse") == 2
    (tmp_path / "calls.txt").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 2}\n')
    assert launch(tmp_path) == 2 and "already holds a run" in capsys.readouterr().err


def test_larger_steps_go_on_in_a_finished_run_and_smaller_ones_are_refused(tmp_path, capsys):
    assert launch(tmp_path) == 0
    assert launch(tmp_path, "--config.steps=6") == 0
    said = capsys.readouterr().out
    assert "goes on from 4 steps to 6; optimizer.total_steps, steps are now 6" in said
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 6
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["total_steps"] == 6
    assert launch(tmp_path) == 2 and "steps: 6 there, 4 now" in capsys.readouterr().err
    assert launch(tmp_path, "--config.steps=8", "--config.seed=1") == 2
    assert (tmp_path / "DONE").exists()


def test_a_key_that_the_code_gained_is_taken_at_its_default_and_said(tmp_path, capsys):
    assert launch(tmp_path) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    del config["objective"]["kinds"], config["seed"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "DONE").unlink()
    assert launch(tmp_path, "--config.seed=3") == 2  # not at its default
    assert "seed: no such key there, 3 now" in capsys.readouterr().err
    assert launch(tmp_path) == 0
    assert "objective.kinds is newer than this run, which takes its default, ['a', 'b']" in capsys.readouterr().out


def index(folder, *betas, experiment="stub", begun=True):
    points = sweeps.points({"beta": beta} for beta in betas)
    sweeps.check_index(points, str(folder), experiment)
    sweeps.write_index(points, str(folder), experiment)
    for point in points if begun else []:
        os.makedirs(point.workdir(str(folder)), exist_ok=True)
        pathlib.Path(point.workdir(str(folder)), "config.json").write_text("{}")


def test_another_sweep_in_the_same_folder_is_refused_with_the_points_and_a_larger_one_joins(tmp_path):
    index(tmp_path, 0.1, 0.2)
    index(tmp_path, 0.1, 0.2)
    index(tmp_path, 0.3, 0.2, 0.1)
    with pytest.raises(host.InputError, match=r"beta=0.3: a point there, not now\n  beta=0.4: a point now"):
        index(tmp_path, 0.1, 0.2, 0.4)
    with pytest.raises(host.InputError, match="experiment: 'stub' there, 'dpo' now"):
        index(tmp_path, 0.1, 0.2, 0.3, experiment="dpo")
    assert [p["id"] for p in workdirs.read_json(tmp_path / "sweep.json")["points"]] == [
        "beta=0.3",
        "beta=0.2",
        "beta=0.1",
    ]
    index(tmp_path / "refused", 0.1, begun=False)
    index(tmp_path / "refused", 0.5)


def test_every_sink_is_known_by_its_package():
    writers.check(["tensorboard"])
    writers.check([])


# ---- signals


@pytest.fixture
def loop_events(monkeypatch):
    """The loop's events; the stop signals are not ignored, even where the tests were started by nohup."""
    events = types.SimpleNamespace(STOP=threading.Event(), ACTIVE=threading.Event())
    monkeypatch.setitem(sys.modules, "alignment.train.loop", events)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in host.STOP_SIGNALS}
    yield events
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", host.STOP_SIGNALS)
def test_a_stop_signal_asks_the_loop_once_and_ends_the_process_where_there_is_none(number, loop_events, monkeypatch):
    with host.stop_signals():
        with pytest.raises(host.Terminated, match=number.name):
            os.kill(os.getpid(), number)
        loop_events.ACTIVE.set()
        for _ in range(3):  # a scheduler that sends it to a group and to each of its processes
            os.kill(os.getpid(), number)
        assert loop_events.STOP.is_set()
        monkeypatch.setattr(host, "TWICE", 0.0)
        with pytest.raises(host.Terminated):  # the person who sends it again later does not want to wait
            os.kill(os.getpid(), number)


def test_a_signal_that_is_ignored_stays_ignored(loop_events):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with host.stop_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is host.on_stop_signal
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", host.STOP_SIGNALS)
def test_a_stop_signal_while_the_launcher_still_imports_ends_with_75(number, tmp_path):
    slow = f"import signal; [signal.signal(n, signal.SIG_DFL) for n in {[int(n) for n in host.STOP_SIGNALS]}]\n"
    (tmp_path / "sitecustomize.py").write_text(slow)  # not ignored, even where the tests were started by nohup
    (tmp_path / "ml_collections.py").write_text(f"import signal; signal.raise_signal({int(number)})")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "experiments.run", "--config", "dpo:tiny"]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75 and f"stopped by {number.name}" in ended.stderr, ended.stderr


def test_a_stop_that_is_swallowed_is_asked_for_again(loop_events, monkeypatch):
    monkeypatch.setattr(host, "ASK_AGAIN", 0.05)
    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: swallowed.append(what.exc_type))

    class Swallows:
        def __del__(self):  # Python reports what a destructor raises, and goes on
            signal.raise_signal(signal.SIGUSR1)

    def goes_on():
        thing = Swallows()
        del thing
        assert swallowed == [host.Terminated]
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.01)

    with host.stop_signals(), pytest.raises(host.Terminated, match="SIGUSR1"):
        goes_on()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0

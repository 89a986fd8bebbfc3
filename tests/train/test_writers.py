import contextlib
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.train import writers


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder, steps, restored=None, value=0.0):
    writer = writers.jsonl(str(folder), restored)
    for step in steps:
        writer.write_scalars(step, {"loss": value + step})
    writer.close()


def test_a_line_has_its_step_first_its_keys_sorted_and_null_for_what_is_no_number(tmp_path):
    writer = writers.jsonl(str(tmp_path))
    writer.write_scalars(np.int64(3), {"z": jnp.float32(0.5), "a": math.nan, "b": np.float64("-inf"), "c": True})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "a": null, "b": null, "c": 1, "z": 0.5}\n'


def test_a_resumed_run_logs_each_step_once(tmp_path):
    log(tmp_path, range(1, 8))
    log(tmp_path, range(5, 10), restored=4, value=100.0)
    assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [(s, s + (100 if s > 4 else 0)) for s in range(1, 10)]


def test_a_start_from_nothing_drops_what_a_killed_one_left(tmp_path):
    log(tmp_path, [0, 1, 2])
    log(tmp_path, [0, 1], restored=None)
    assert [r["step"] for r in rows(tmp_path)] == [0, 1]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path, cut):
    log(tmp_path, range(1, 5))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [json.loads(line)["step"] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    log(tmp_path, [9], restored=8)
    assert [r["step"] for r in rows(tmp_path)] == [*whole, 9]


def test_later_scalars_of_the_same_step_join_its_line_across_a_restart_too(tmp_path):
    writer = writers.jsonl(str(tmp_path))
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_scalars(2, {"loss": 2.0, "longer name than that": 5.0})
    writer.write_scalars(2, {"heldout/loss": 3.0})
    writer.close()
    writer = writers.jsonl(str(tmp_path), restored=2)
    writer.write_scalars(2, {"loss": 4.0})
    writer.write_scalars(3, {"loss": 5.0})
    writer.close()
    assert rows(tmp_path)[1:] == [
        {"step": 2, "heldout/loss": 3.0, "longer name than that": 5.0, "loss": 4.0},
        {"step": 3, "loss": 5.0},
    ]


def test_the_last_value_of_a_name_is_that_of_the_newest_line_with_a_number(tmp_path):
    assert writers.last_value(tmp_path, "rate") is None
    writer = writers.jsonl(str(tmp_path))
    for step, scalars in enumerate([{"rate": 1.0}, {"rate": 2.0}, {"rate": math.nan}, {"loss": 3.0}]):
        writer.write_scalars(step, scalars)
    writer.close()
    assert writers.last_value(tmp_path, "rate") == 2.0 and writers.last_value(str(tmp_path), "other") is None


def test_steps_do_not_go_back(tmp_path):
    writer = writers.jsonl(str(tmp_path))
    writer.write_scalars(2, {})
    with pytest.raises(ValueError, match="step 1 comes after step 2"):
        writer.write_scalars(1, {})


def read_events(path):
    """(step, tag, value or None) of each event in a TensorBoard file, checksums left aside."""
    from tensorboardX.proto import event_pb2

    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        if event.HasField("session_log"):
            found.append((event.step, "START", event.session_log.status))
        for value in event.summary.value:
            number = value.simple_value if value.HasField("simple_value") else None
            found.append((event.step, value.tag, number))
    return found


def test_tensorboard_gets_scalars_and_hides_what_is_trained_again(tmp_path):
    writer = writers.tensorboard(str(tmp_path))
    writer.write_scalars(5, {"rewards/chosen": jnp.float32(0.5)})
    writer.close()
    (first,) = tmp_path.glob("events.*")
    found = read_events(first)
    assert found == [(5, "rewards/chosen", 0.5)]
    writers.tensorboard(str(tmp_path), restored=4).close()
    (second,) = set(tmp_path.glob("events.*")) - {first}
    assert read_events(second) == [(5, "START", 1)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("make", ["jsonl", "tensorboard"])
def test_a_full_disk_is_raised_where_it_happens(tmp_path, monkeypatch, make):
    writer = getattr(writers, make)(str(tmp_path))
    owner, name = (writer, "_file") if make == "jsonl" else (writer._file, "_writer")
    with contextlib.suppress(OSError), open("/dev/full", "wb", buffering=0 if make == "jsonl" else -1) as full:
        monkeypatch.setattr(owner, name, full)
        with pytest.raises(OSError, match="No space left"):
            writer.write_scalars(1, {"loss": 1.0})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_optional_services_that_are_not_installed_say_how_to_install_them(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"pip install 'plumbline\[{name}\]'"):
        writers.check([name])


def test_trackers_are_told_config_sweep_experiment_and_phase(monkeypatch, tmp_path):
    settings = []
    fake = types.SimpleNamespace(init=lambda **options: settings.append(options), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = tmp_path / "betas" / "beta=0.1"
    run.mkdir(parents=True)
    (tmp_path / "betas/sweep.json").write_text("{}")
    (run / "config.json").write_text('{"seed": 0, "objective": {"beta": 0.1, "gamma": null}}')
    (run / "environment.json").write_text('{"experiment": "dpo", "starts": []}')
    writers.wandb(str(run), "p").close()
    writers.wandb(str(run / "pretrain"), "p").close()
    writers.trackio(str(run), "p").close()
    assert [s["config"]["objective"]["beta"] for s in settings] == [0.1] * 3
    assert [s.get("group") for s in settings] == ["betas", "betas", None]
    assert [s.get("tags") for s in settings] == [["dpo"], ["dpo", "pretrain"], None]

    writers.tensorboard(str(run)).close()
    (events,) = run.glob("events.*")
    assert b"objective.beta" in events.read_bytes() and b"_hparams_/experiment" in events.read_bytes()
    assert writers.describe(tmp_path) == writers.Description({})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_optional_services_are_told_the_run_and_its_numbers(name, monkeypatch, tmp_path):
    told = []

    class Service:
        def init(self, **settings):
            told.append(("init", settings["project"], settings["resume"]))
            return self

        def log(self, values, step):
            told.append(("log", step, values))

        def finish(self):
            told.append(("finish",))

    monkeypatch.setitem(sys.modules, name, Service())
    writer = getattr(writers, name)(str(tmp_path / "run"), project="p")
    writer.write_scalars(2, {"loss": jnp.float32(0.5)})
    writer.close()
    assert told == [("init", "p", "allow"), ("log", 2, {"loss": 0.5}), ("finish",)]


@pytest.mark.parametrize(("name", "key"), [("wandb", "id"), ("trackio", "name")])
def test_a_service_goes_on_with_the_run_of_a_folder_and_never_with_that_of_another(name, key, monkeypatch, tmp_path):
    told = []

    class Service:
        def init(self, **settings):
            told.append(settings)

        def finish(self):
            pass

    monkeypatch.setitem(sys.modules, name, Service())
    for folder in ("dpo/pretrain", "sft/pretrain", "dpo/pretrain"):
        getattr(writers, name)(str(tmp_path / folder), project="p").close()
    first, other, again = (settings[key] for settings in told)
    assert first == again != other
    shown = told[0]["name"]
    assert shown.startswith("dpo-pretrain-" if name == "trackio" else "dpo/pretrain")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_line_a_logged_step_where_there_is_no_terminal():
    clock = iter(range(100))
    stream = io.StringIO()
    writer = writers.console(10, label="dpo", stream=stream, clock=lambda: next(clock))
    for step in (1, 2, 3, 4):
        writer.tick(step)
    writer.write_scalars(4, {"lr": 1.0, "heldout/loss": 0.5, "loss": 0.25})
    writer.close()
    (line,) = stream.getvalue().splitlines()
    assert line == "dpo step 4/10  3 steps/s  0:00:02 left  loss 0.25  heldout/loss 0.5  lr 1"


def test_a_progress_line_ends_with_the_share_of_the_peak_or_else_the_operations_of_a_second():
    stream = io.StringIO()
    writer = writers.console(10, stream=stream, clock=lambda: 0.0)
    writer.write_scalars(1, {"flops_per_second": 2.5e10, "loss": 0.25})
    writer.write_scalars(2, {"flops_per_second": 2.5e10, "loss": 0.25, "utilisation": 0.4321})
    assert stream.getvalue() == "step 1/10  loss 0.25  GFLOP/s 25\nstep 2/10  loss 0.25  utilisation 43.2 %\n"


def test_no_rate_is_given_for_steps_that_were_only_sent_to_the_device():
    times = iter([0.0, 0.01, 0.02])
    stream = io.StringIO()
    writer = writers.console(30, stream=stream, clock=lambda: next(times))
    writer.tick(1)
    writer.tick(2)  # while the first is still being computed
    writer.write_scalars(1, {"loss": 0.25})
    assert stream.getvalue() == "step 1/30  loss 0.25\n"


def test_progress_on_a_terminal_is_one_bar_with_rate_and_time_left():
    now = [0.0]
    stream = Terminal()
    writer = writers.console(8, stream=stream, clock=lambda: now[0])
    for step in range(1, 5):
        now[0] += 2.0
        writer.tick(step)
    writer.write_scalars(4, {"loss": 0.25})
    writer.close()
    text = stream.getvalue()
    assert text.count("\n") == 1 and "█" * 12 + "░" * 12 in text
    assert "step 4/8  0.5 steps/s  0:00:08 left  loss 0.25" in text


def test_many_writers_act_as_one_and_none_is_silence(tmp_path):
    stream = io.StringIO()
    both = writers.many([writers.jsonl(str(tmp_path)), writers.console(2, stream=stream)])
    both.tick(1)
    both.write_scalars(1, {"loss": 0.5})
    both.close()
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}] and "loss 0.5" in stream.getvalue()
    writers.many([]).write_scalars(1, {"loss": 0.5})


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    code = (
        "import os, signal, sys; from alignment.train import writers; w = writers.jsonl(sys.argv[1])\n"
        "for s in range(1, 50): w.write_scalars(s, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root).returncode == -9
    assert [r["step"] for r in rows(tmp_path)] == list(range(1, 50))


def test_a_run_opens_its_sinks_by_name_and_only_process_0_writes(tmp_path, monkeypatch, capsys):
    writer = writers.open_run(str(tmp_path / "a"), restored=None, total_steps=3, label="a")
    writer.write_scalars(1, {"loss": 0.5})
    writer.close()
    assert rows(tmp_path / "a") == [{"step": 1, "loss": 0.5}] and list((tmp_path / "a").glob("events.*"))
    assert capsys.readouterr().err.startswith("a step 1/3")
    with pytest.raises(InputError, match="sinks='tensorbord' is not one of: tensorboard, wandb, trackio"):
        writers.open_run(str(tmp_path / "b"), ["tensorbord"], restored=None, total_steps=3)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writers.open_run(str(tmp_path / "c"), restored=None, total_steps=3).write_scalars(1, {"loss": 0.5})
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()

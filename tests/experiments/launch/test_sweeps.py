import contextlib
import copy
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from alignment.errors import InputError
from experiments import run
from experiments.launch import emit, sweeps
from tests.experiments import stub

STUB = str(pathlib.Path(stub.__file__))


def launch(workdir, *flags):
    return run.main(["--config", STUB, "--workdir", str(workdir), *flags])


def test_ids_are_the_overrides_made_safe_for_file_names_and_stay_apart():
    assert sweeps.point_id({"objective.beta": 0.05, "seed": 0}) == "objective.beta=0.05,seed=0"
    assert sweeps.point_id({"model.widths": (8, 16), "seed": 1}) == "model.widths=8x16,seed=1"
    assert sweeps.point_id({}) == "default"
    one, two = sweeps.point_id({"data.path": "a/b c"}), sweeps.point_id({"data.path": "a b/c"})
    assert one != two and one.startswith("data.path=a-b-c,") and "/" not in one + two and " " not in one + two
    long = [sweeps.point_id({"note": "x" * 300 + str(i)}) for i in range(2)]
    assert long[0] != long[1] and max(map(len, long)) < 140


def test_a_point_keeps_its_id_when_others_come_before_it():
    alone, later = sweeps.points([{"seed": 1}]), sweeps.points([{"seed": 0}, {"seed": 1}])
    assert alone[0].id == later[1].id and later[1].index == 1


def test_repeated_and_missing_points_are_refused():
    with pytest.raises(InputError, match="seed=1 twice"):
        sweeps.points([{"seed": 1}, {"seed": 1}])
    with pytest.raises(InputError, match="no point"):
        sweeps.points([])
    with pytest.raises(InputError, match="must yield dicts"):
        sweeps.points([3])


def test_points_change_copies_of_the_config_and_references_follow():
    config = stub.get_config().lock()
    changed = [sweeps.apply(config, {"objective.beta": beta, "steps": 9}) for beta in (0.05, 0.5)]
    assert [c.objective.beta for c in changed] == [0.05, 0.5] and config.objective.beta == 0.1
    assert changed[0].optimizer.total_steps == 9 and config.optimizer.total_steps == 4
    with pytest.raises(InputError, match=r'did you mean "objective\.beta"'):
        sweeps.apply(config, {"objective.betta": 1.0})
    with pytest.raises(InputError, match="sets steps='many'"):
        sweeps.apply(config, {"steps": "many"})


def test_a_bad_override_stops_the_sweep_before_anything_runs(tmp_path, capsys):
    source = pathlib.Path(STUB).read_text().replace('{"objective.beta": beta, "seed": 1}', '{"objective.bet": beta}')
    (tmp_path / "bad.py").write_text(source)
    assert run.main(["--config", str(tmp_path / "bad.py"), "--workdir", str(tmp_path / "runs"), "--sweep"]) == 2
    assert 'did you mean "objective.beta"' in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert launch(tmp_path / "runs", "--sweep", "--config.seed=4") == 2
    assert "--config.seed is what sweep() varies" in capsys.readouterr().err


def test_one_point_runs_by_its_index_and_the_list_says_which_are_done(tmp_path, capsys):
    assert launch(tmp_path, "--sweep_index=1") == 0
    folder = tmp_path / "objective.beta=0.5,seed=1"
    assert json.loads((folder / "config.json").read_text())["objective"]["beta"] == 0.5
    capsys.readouterr()
    assert launch(tmp_path, "--sweep_list") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["index"], r["overrides"]["objective.beta"], r["is_done"]) for r in rows] == [
        (0, 0.05, False),
        (1, 0.5, True),
    ]
    assert rows[1]["workdir"] == str(folder)
    assert "1 of 2 points finished" in (tmp_path / "report.html").read_text()


def test_a_sweep_outlives_a_crashed_point_skips_finished_ones_and_reports_both(tmp_path, capfd):
    flags = ["--config.behaviour=crash_at_large_beta", "--sweep"]
    assert launch(tmp_path, flags[0], "--sweep_index=0") == 0
    assert launch(tmp_path, *flags) == 1
    said = capfd.readouterr().out
    assert "objective.beta=0.05,seed=1: done already" in said and "exit code 1: objective.beta=0.5,seed=1" in said
    assert (tmp_path / "objective.beta=0.5,seed=1" / "error.txt").exists()
    page = (tmp_path / "report.html").read_text()
    assert "1 of 2 points finished" in page and "1 (not finished)" in page
    table = (tmp_path / "summary.csv").read_text().splitlines()
    assert table[0].startswith("index,id,objective.beta,seed,heldout/loss")
    assert table[1].startswith('0,"objective.beta=0.05,seed=1",0.05,1,0.05')


def test_larger_steps_go_on_in_every_point_of_a_finished_sweep(tmp_path, capfd):
    assert launch(tmp_path, "--sweep_index=0,1") == 0
    assert launch(tmp_path, "--sweep", "--config.steps=6") == 0
    assert "done already" not in capfd.readouterr().out
    for point in ("objective.beta=0.05,seed=1", "objective.beta=0.5,seed=1"):
        assert json.loads((tmp_path / point / "summary.json").read_text())["steps"] == 6


def test_several_points_in_one_process_leave_what_each_leaves_alone(tmp_path, capsys):
    assert launch(tmp_path / "together", "--sweep_index=0,1") == 0
    for index in (0, 1):
        assert launch(tmp_path / "alone", f"--sweep_index={index}") == 0
    for point in ("objective.beta=0.05,seed=1", "objective.beta=0.5,seed=1"):
        places = [tmp_path / name / point for name in ("together", "alone")]
        for name in ("config.json", "metrics.jsonl", "summary.json"):  # with random numbers of the seed
            assert len({(place / name).read_text() for place in places}) == 1
        starts = [json.loads((place / "environment.json").read_text())["starts"] for place in places]
        assert starts[0][0]["command"][3:5] == ["--config", STUB]
        assert [start[0]["command"][-1] for start in starts] == [starts[1][0]["command"][-1]] * 2
    assert "not finished" not in (tmp_path / "together/report.html").read_text()


@pytest.mark.parametrize(("behaviour", "code", "said"), [("crash_at_large_beta", 1, "0 0\n1 1\n"), ("stop", 75, "")])
def test_points_of_one_process_report_their_ends_and_stop_together(behaviour, code, said, tmp_path, monkeypatch):
    read_end, write_end = os.pipe()
    monkeypatch.setenv(sweeps.CODES, str(write_end))
    assert launch(tmp_path, "--sweep_index=0,1", f"--config.behaviour={behaviour}") == code
    os.close(write_end)
    with open(read_end) as lines:
        assert lines.read() == said
    assert (tmp_path / "objective.beta=0.5,seed=1/error.txt").exists() == (code == 1)
    assert sweeps.CODES not in os.environ  # a process that a point starts does not report


def test_points_behind_one_that_ends_their_process_go_on_in_another(tmp_path, monkeypatch):
    points = sweeps.points({"seed": seed} for seed in range(5))
    ends = iter([("1 0\n2 2\n", -9), ("", 0)])  # one that died of point 3, and that of point 4
    commands, said = [], []

    def run_(command, stopped, env=None, **options):
        commands.append(command[-1])
        lines, code = next(ends)
        if env is not None:
            os.write(int(env[sweeps.CODES]), lines.encode())
        return code

    monkeypatch.setattr(sweeps, "_run", run_)
    assert sweeps.run_all(points, str(tmp_path), [], said.append, {points[0].id}) == 1
    assert commands == ["--sweep_index=1,2,3,4", "--sweep_index=4"]
    assert said[-3:] == [
        "failed with exit code 2: seed=2",
        "failed with exit code -9: seed=3",
        "3 of 5 points are done",
    ]


def test_points_run_apart_in_a_process_each(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(sweeps, "_run", lambda command, stopped: commands.append(command[-1]) or 0)
    points = sweeps.points([{"seed": 0}, {"seed": 1}])
    assert sweeps.run_all(points, str(tmp_path), [], print, at_once=1) == 0
    assert commands == ["--sweep_index=0", "--sweep_index=1"]


def test_batched_points_run_by_so_many_in_a_process_and_fail_together_with_it(tmp_path, monkeypatch):
    points = sweeps.points({"seed": seed} for seed in range(5))
    ends = iter([("1 0\n", -9), ("2 0\n3 0\n", 0), ("", 0)])
    commands, said = [], []

    def run_(command, stopped, env=None, **options):
        commands.append(command[-2:])
        lines, code = next(ends)
        if env is not None:
            os.write(int(env[sweeps.CODES]), lines.encode())
        return code

    monkeypatch.setattr(sweeps, "_run", run_)
    flags = ["--sweep_batched=2"]
    assert sweeps.run_all(points, str(tmp_path), flags, said.append, at_once=2, are_batched=True) == 1
    assert [command[1] for command in commands] == ["--sweep_index=0,1", "--sweep_index=2,3", "--sweep_index=4"]
    assert all(command[0] == flags[0] for command in commands)
    assert said[-2:] == ["failed with exit code -9: seed=0", "4 of 5 points are done"]


def test_batched_points_that_train_nothing_leave_what_each_leaves_alone(tmp_path, capsys):
    assert launch(tmp_path / "batched", "--sweep_index=0,1", "--sweep_batched=2") == 0
    assert "these points took no step together" in capsys.readouterr().out
    assert launch(tmp_path / "alone", "--sweep_index=0,1") == 0
    for point in ("objective.beta=0.05,seed=1", "objective.beta=0.5,seed=1"):
        for name in ("config.json", "metrics.jsonl", "summary.json", "DONE"):
            texts = [(tmp_path / folder / point / name).read_text() for folder in ("batched", "alone")]
            assert name == "DONE" or texts[0] == texts[1]
    behaviour = "--config.behaviour=crash_at_large_beta"
    assert launch(tmp_path / "crashed", "--sweep_index=0,1", "--sweep_batched=2", behaviour) == 1
    assert (tmp_path / "crashed/objective.beta=0.05,seed=1/DONE").exists()
    assert (tmp_path / "crashed/objective.beta=0.5,seed=1/error.txt").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective.window": 3}, r"point objective.window=3 has objective.window=3 and point .* None"),
        ({"behaviour": "crash"}, r"has behaviour='crash' and point .* 'finish', which makes them different programs"),
        ({"batch": {"size": 2}}, r"has batch.size=2 and point .* 1"),
        ({"objective.beta": 2.0, "seed": 5}, None),
    ],
)
def test_points_that_differ_in_what_shapes_a_program_are_not_batched(changes, said):
    first = stub.get_config()
    first.batch = {"size": 1}
    second = copy.deepcopy(first)
    for key, value in changes.items():
        second.update({key: value}) if "." not in key else second.update_from_flattened_dict({key: value})
    points = sweeps.points([{}, {key: str(value) for key, value in changes.items()}])
    with contextlib.nullcontext() if said is None else pytest.raises(InputError, match=said):
        sweeps.check_batched(points, [first, second])


def test_a_point_that_kills_its_process_does_not_stop_the_sweep(tmp_path, capfd):
    assert launch(tmp_path, "--config.behaviour=kill_at_small_beta", "--sweep") == 1
    said = capfd.readouterr().out
    assert "[1/2] objective.beta=0.05,seed=1: exit code -9" in said
    assert "[2/2] objective.beta=0.5,seed=1: starting" in said and "1 of 2 points are done" in said


def test_arguments_of_a_sweep_are_told_from_those_of_its_points():
    argv = ["--config=a", "--sweep", "--sweep_index", "0,1", "--workdir", "w", "--sweep_apart", "--sweep_index=2"]
    argv.append("--sweep_batched=2")  # which the process of the points reads
    assert sweeps.without_flags(argv) == ["--config=a", "--workdir", "w", "--sweep_batched=2"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sweep_index=0,2"], "--sweep_index=0,2: the sweep has points 0 to 1"),
        (["--sweep_index=one"], "--sweep_index=one: the sweep has points 0 to 1"),
        (["--sweep_index="], "--sweep_index=: the sweep has points 0 to 1"),
        (["--sweep_index=0,1", "--distributed"], "a process joins the others of one run only"),
        (["--sweep_apart"], "--sweep_apart is of a --sweep that runs here"),
        (["--sweep_batched=2"], "--sweep_batched is of a --sweep"),
        (["--sweep", "--sweep_batched=2", "--emit=slurm"], "--sweep_batched is of a --sweep"),
        (["--sweep", "--sweep_batched=2", "--sweep_apart"], "leave --sweep_apart, --distributed out"),
        (["--sweep", "--sweep_batched=1"], "sweep_batched"),
        (["--sweep", "--sweep_apart", "--emit=slurm"], "--sweep_apart is of a --sweep that runs here"),
    ],
)
def test_choices_of_points_that_mean_nothing_are_refused(flags, said, tmp_path, capsys):
    assert launch(tmp_path / "runs", *flags) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_sigterm_that_arrives_while_a_point_is_started_reaches_it(monkeypatch):
    start = subprocess.Popen

    def slow_start(command):
        child = start(command)
        os.kill(os.getpid(), signal.SIGTERM)  # the child is there, and its name is not yet known to the sweep
        return child

    monkeypatch.setattr(subprocess, "Popen", slow_start)
    stopped = []
    assert sweeps._run([sys.executable, "-c", "import time; time.sleep(20)"], stopped) == -signal.SIGTERM
    assert stopped == [signal.SIGTERM]


def test_slurm_scripts_quote_what_they_are_given_and_pass_the_array_index(tmp_path, capsys):
    folder = tmp_path / "a b"
    flags = [
        "--sweep",
        "--emit=slurm",
        "--hosts=2",
        "--sbatch",
        "time=1:00",
        "--sbatch=comment=two words",
        "--sbatch=mail-user=o'x",
        "--config.behaviour=$(rm x)",
    ]
    assert launch(folder, *flags) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    words = shlex.split(line)
    assert "--config.behaviour=$(rm x)" in words and words[words.index("--workdir") + 1] == str(folder)
    assert words[-2:] == ["--distributed", "--sweep_index=$SLURM_ARRAY_TASK_ID"] and "--hosts=2" not in words
    for header in ("--array=0-1", "--nodes=2", "--time=1:00", '--comment="two words"', '--mail-user="o\'x"'):
        assert f"#SBATCH {header}\n" in script
    assert "#SBATCH --output=stub-%A_%a.out\n" in script  # in a folder that exists before the job starts
    assert not folder.exists()


@pytest.mark.parametrize("option", ['comment=a "q" b', "comment=a\\b", "time=1:00\nrm x"])
def test_what_slurm_would_read_otherwise_in_an_option_is_refused(option, tmp_path, capsys):
    assert launch(tmp_path, "--emit=slurm", f"--sbatch={option}") == 2
    assert "double quote" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sweep", "_sweep"])
def test_one_run_is_emitted_as_one_job_whether_its_experiment_has_a_sweep_or_not(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(pathlib.Path(STUB).read_text().replace("def sweep", f"def {name}"))
    place = ["--volume=c:/disk", "--workdir=/disk/p"]
    assert run.main(["--config=plain.py:tiny", "--emit=jobset", "--image=i:1", *place]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["metadata"] == {"name": "plain-tiny"} and "--sweep_index" not in json.dumps(document)
    assert run.main(["--config=plain.py:tiny", "--emit", "slurm", "--distributed"]) == 0
    script = capsys.readouterr().out
    assert "--array" not in script and "--sweep_index" not in script and "--distributed" not in script
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert shlex.split(line)[-3:] == ["--config=plain.py:tiny", "--workdir", str(tmp_path / "runs" / "plain-tiny")]


def test_array_ranges_are_short_and_whole():
    assert emit.ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_jobsets_are_one_document_a_point_and_leave_the_completion_index_to_jax(tmp_path, capsys):
    flags = ["--sweep", "--emit=jobset", "--image=i:1", "--queue=q", "--hosts=4", "--limits=google.com/tpu=4"]
    flags += ["--volume=claim:/shared"]
    assert launch("/shared/runs", *flags) == 0
    text = capsys.readouterr().out
    documents = list(yaml.safe_load_all(text))
    assert [d["metadata"]["name"] for d in documents] == ["stub-0", "stub-1"]
    assert documents[0]["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    job = documents[1]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == 4
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--sweep_index=1", "--distributed"]
    assert container["resources"] == {"limits": {"google.com/tpu": "4"}}
    assert {e["name"]: e.get("value") for e in container["env"]} == {
        "JAX_COORDINATOR_ADDRESS": "stub-1-host-0-0.stub-1:8476",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": None,
    }
    assert "JOB_COMPLETION_INDEX" not in text
    assert launch("/shared/runs", "--emit=jobset") == 2


def test_kubernetes_names_are_short_and_keep_their_number():
    name = emit.dns_name("A_very.long/Experiment" * 5 + "-laptop-12")
    assert len(name) <= 45 and name.endswith("-12") and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")

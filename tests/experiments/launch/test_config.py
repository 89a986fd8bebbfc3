import pathlib
import subprocess
import sys

import pytest

from alignment.errors import InputError
from experiments.launch import config
from tests.experiments import stub

ROOT = pathlib.Path(__file__).parents[3]
STUB = pathlib.Path(stub.__file__)


def start(folder, *arguments, python=()):
    """The launcher in a process of its own, started in a folder, with Plumbline on the path as if installed."""
    command = [sys.executable, *python, "-m", "experiments.run", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("target", ["dpo:tiny", "experiments/dpo.py:tiny", str(ROOT / "experiments/dpo.py:tiny")])
def test_an_experiment_of_ours_is_found_by_name_from_any_folder(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = config.load_experiment(target)
    assert experiment.module.__name__ == "experiments.dpo" and experiment.label == "dpo-tiny"
    assert experiment.config().steps == 4


def test_a_file_of_ones_own_comes_before_one_of_ours_and_imports_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "dpo", raising=False)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/my_sizes.py").write_text("STEPS = 77\n")
    source = STUB.read_text().replace("c.steps = 4", "c.steps = my_sizes.STEPS")
    (tmp_path / "experiments/dpo.py").write_text(f"import my_sizes\n{source}")
    assert config.load_experiment("experiments/dpo.py").config().steps == 77
    assert config.load_experiment("dpo").module.__name__ == "experiments.dpo"


def test_an_experiment_outside_the_tree_runs_from_its_own_folder(tmp_path):
    (tmp_path / "mine.py").write_text(STUB.read_text())
    ended = start(tmp_path, "--config", "mine.py:tiny", "--workdir", "out")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out/DONE").exists() and (tmp_path / "out/report.html").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("dpoo", "the nearest is 'dpo'"),
        ("experiments/nothing.py", ", dpo, egida, "),
        ("nothing.txt", "there is no such file"),
        ("README.md", "is not a Python file"),
        ("dpo:tinny", "dpo: setting='tinny' is not one of: '', laptop, short, tiny; the nearest is 'tiny'"),
        ("run", "defines no get_config"),
    ],
)
def test_a_target_that_is_not_there_is_refused_with_the_nearest(target, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as raised:
        config.load_experiment(target).config()
    assert said in str(raised.value)


@pytest.mark.parametrize("name", ["data.py", "alignment.py", "data/__init__.py"])
def test_a_file_that_hides_a_package_of_ours_is_named_with_ways_out(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    (tmp_path / "mine.py").write_text(STUB.read_text())
    ended = start(tmp_path, "--config", "mine.py:tiny")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert str(tmp_path / name.partition("/")[0]) in ended.stderr and "hides Plumbline's package" in ended.stderr
    ended = start(tmp_path, "--config", "mine.py:tiny", python=["-P"])
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["data", "experiments"])
def test_a_plain_folder_of_the_same_name_is_in_nobodys_way(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.py").write_text(STUB.read_text())
    ended = start(tmp_path, "--config", f"{name}/mine.py:tiny", "--workdir", "out")
    assert ended.returncode == 0, ended.stderr

"""A first phase is trained once in a sweep, and what a point takes over is what it would have made."""

import json

import numpy as np
import pytest

from alignment.models import decoder
from alignment.train import sharding
from experiments import run
from experiments.launch import phases


def begin(sweep, point, is_sweep=True):
    """The folder of a phase of a point, not made yet."""
    (sweep / point).mkdir(parents=True)
    if is_sweep:
        (sweep / "sweep.json").write_text("{}")
    return sweep / point / "pretrain"


def train(workdir):
    (workdir / "checkpoints/300").mkdir(parents=True)
    for name in ("checkpoints/300/params", "metrics.jsonl", "events.out.tfevents.1.host", "run_id"):
        (workdir / name).write_text(name)


def test_a_point_takes_over_the_phase_that_another_has_trained_but_not_the_names_of_its_run(tmp_path, capsys):
    first, second = (begin(tmp_path, point) for point in ("a", "b"))
    assert not phases._take(first, {"seed": 0})
    train(first)
    phases._leave(first, {"seed": 0})
    assert phases._take(second, {"seed": 0}) and "has trained it already" in capsys.readouterr().out
    assert sorted(p.name for p in second.rglob("*") if p.is_file()) == ["metrics.jsonl", "params"]
    assert (second / "checkpoints/300/params").read_text() == "checkpoints/300/params"
    (place,) = (tmp_path / "phases").iterdir()
    assert json.loads((place / phases.NOTE).read_text()) == {"seed": 0}


def test_another_origin_is_another_phase_and_one_that_was_begun_stays(tmp_path):
    first, second, third = (begin(tmp_path, point) for point in ("a", "b", "c"))
    train(first)
    phases._leave(first, {"seed": 0})
    assert not phases._take(second, {"seed": 1}) and not second.exists()
    third.mkdir()
    assert not phases._take(third, {"seed": 0}) and not any(third.iterdir())


def test_outside_a_sweep_nothing_is_left_or_taken(tmp_path):
    first, second = (begin(tmp_path, point, is_sweep=False) for point in ("a", "b"))
    train(first)
    phases._leave(first, {"seed": 0})
    assert not phases._take(second, {"seed": 0}) and not (tmp_path / "phases").exists()


def test_two_points_that_finish_at_once_leave_one_copy(tmp_path, monkeypatch):
    first, second = (begin(tmp_path, point) for point in ("a", "b"))
    for workdir in (first, second):
        train(workdir)
    place = phases._place(first, {"seed": 0})
    monkeypatch.setattr(phases.shutil, "copytree", lambda *_, **__: phases_of_another(place))
    phases._leave(second, {"seed": 0})
    assert (place / "other").is_file()


def phases_of_another(place):
    place.mkdir(parents=True)
    (place / "other").touch()
    raise OSError("another point's copy stands there")


def test_whatever_moves_a_bit_of_a_training_is_part_of_its_origin():
    mesh = sharding.make_mesh()
    model = decoder.DecoderLM(vocab_size=8, num_layers=1, model_dim=8, num_heads=2)
    one = phases._numerics(model, mesh)
    assert json.loads(json.dumps(one)) == one
    for change in (dict(num_layers=2), dict(remat="full"), dict(unroll=2), dict(dtype="bfloat16")):
        assert phases._numerics(model.clone(**change), mesh) != one


SWEEP = """
from experiments.dpo import check, get_config, run


def sweep():
    for beta in (0.1, 0.3):
        yield {"objective.beta": beta}
"""
FASTER = ("--config.samples.num=1", "--config.data.limit=32", "--config.sinks=()")


@pytest.mark.slow
def test_points_that_share_a_process_come_to_the_bits_of_runs_of_their_own(tmp_path, compilations):
    file = tmp_path / "betas.py"
    file.write_text(SWEEP)
    alone = tmp_path / "alone"
    assert run.main([f"--config={file}:tiny", f"--workdir={alone}", "--config.objective.beta=0.3", *FASTER]) == 0
    compilations.clear()
    assert run.main([f"--config={file}:tiny", f"--workdir={tmp_path / 'sweep'}", "--sweep_index=0,1", *FASTER]) == 0
    assert not [name for name in compilations if "update" in name or "sums" in name]
    point = tmp_path / "sweep/objective.beta=0.3"
    for name in ("export/hf/model.safetensors", "config.json", "reference/train.npy", "before.jsonl"):
        assert (point / name).read_bytes() == (alone / name).read_bytes()
    for name in ("metrics.jsonl", "pretrain/metrics.jsonl"):
        assert unclocked(point / name) == unclocked(alone / name)
    assert len(list((tmp_path / "sweep/phases").iterdir())) == 1
    assert np.load(point / "reference/train.npy").any()


def unclocked(path):
    clock = ("step_seconds", "_per_second")
    rows = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in row.items() if not name.endswith(clock)} for row in rows]

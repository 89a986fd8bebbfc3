import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from alignment.train import classify
from experiments import mame
from tests.experiments.conftest import launch


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def rows(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_accuracy_is_that_of_the_prediction_file_and_stands_beside_its_floors(tiny):
    workdir = tiny("mame").workdir
    with open(workdir / "predictions.csv", newline="") as f:
        told = list(csv.DictReader(f))
    assert list(told[0]) == ["True labels", "Predicted labels", "Filenames"]
    assert len(told) == 24 and len({row["Filenames"] for row in told}) == 24
    is_right = [row["True labels"] == row["Predicted labels"] for row in told]
    summary = read(workdir / "summary.json")
    assert summary["accuracy"] == pytest.approx(np.mean(is_right))
    assert summary["accuracy/low"] <= summary["accuracy"] <= summary["accuracy/high"]
    floors = {row["what"]: row["overall"] for row in rows(workdir / "tables/accuracy.jsonl")}
    for name in ("aspect_ratio", "size", "size_and_museum", "museum", "most frequent class"):
        assert floors[f"without a pixel: {name}"] == summary[f"floor/{name}"]
    counts = read(workdir / "metrics.json")["confusion"]
    assert np.sum(counts) == 24 and np.trace(counts) == sum(is_right)


def test_the_report_opens_with_the_finding_and_shows_errors_with_their_explanations(tiny):
    workdir = tiny("mame").workdir
    page = (workdir / "report.html").read_text()
    assert "Without a pixel:" in page and page.index("Without a pixel:") < page.index("<svg")
    assert (workdir / "figures/worst_errors.png").stat().st_size > 1000
    assert "confusion" in page


def test_the_worst_errors_are_those_whose_class_was_given_least():
    logits_NC = np.array([[0.0, 9.0], [0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])
    seen = classify.Predictions(np.arange(4), np.array([0, 0, 0, 0]), logits_NC)
    assert mame.worst(seen, 2).tolist() == [0, 3] and mame.worst(seen, 9).tolist() == [0, 3, 1]


def test_the_exported_weights_start_another_run_where_the_head_fits(tiny, tmp_path):
    weights = tiny("mame").workdir / "export/model.safetensors"
    if not weights.is_file():
        pytest.fail("the tiny run leaves no weights to start from")
    ended = launch("mame.py:tiny", tmp_path / "run", f"--config.init_from={weights}", "--config.epochs=1")
    assert ended.code == 0, ended.err
    assert "tensors of" in ended.out


@pytest.mark.parametrize("is_masked", [True, False])
def test_pictures_keep_their_shapes(is_masked, tmp_path):
    flags = ["--config.view.resize=0", "--config.view.pixels=1024", "--config.view.crop=0.875", "--config.epochs=1"]
    ended = launch("mame.py:tiny", tmp_path / "run", *flags, f"--config.masked_pool={is_masked}")
    assert ended.code == 0, ended.err
    assert read(ended.workdir / "image_model.json")["images"]["pixels"] == 1024


def test_a_killed_run_ends_like_one_never_killed(tiny, tmp_path):
    whole = tiny("mame").workdir
    shutil.copytree(whole, tmp_path / "run")
    for name in ("DONE", "summary.json", "predictions.csv"):
        (tmp_path / "run" / name).unlink()
    newest = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(tmp_path / "run/checkpoints" / str(newest))
    ended = launch("mame.py:tiny", tmp_path / "run")
    assert ended.code == 0, ended.err
    ours, theirs = read(tmp_path / "run/summary.json"), read(whole / "summary.json")
    timed = ("images_per_second", "step_seconds")
    assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
    assert (tmp_path / "run/predictions.csv").read_text() == (whole / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.epochs=0", "epochs=0"),
        ("--config.network.name=resnet19", "resnet18"),
        ("--config.version=R65k-XS", "R65k-"),
        ("--config.view.crop=99", "crop=99"),
        ("--config.data.source=mame:/nowhere", "/nowhere"),
        ("--config.explain.methods=('gradcan',)", "gradcam"),
        ("--config.loop.save_epochs=0", "save_epochs=0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(flag, words, tmp_path):
    ended = launch("mame.py:tiny", tmp_path / "run", flag)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err

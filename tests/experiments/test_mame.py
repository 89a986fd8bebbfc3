import csv
import functools
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from alignment import files
from alignment.errors import InputError
from alignment.models import vision
from alignment.train import classify, optimizer, sharding
from data.pictures import images
from experiments import mame
from experiments.launch import sweeps
from experiments.pages import mame as mame_page
from experiments.report import __main__ as report
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
    assert summary["test/accuracy"] == pytest.approx(np.mean(is_right))
    assert summary["test/accuracy low"] <= summary["test/accuracy"] <= summary["test/accuracy high"]
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
    titles = re.findall("<h3>(.*?)</h3>", page.replace("<wbr>", ""))
    assert "mean_class_accuracy" in titles and "valid/mean_class_accuracy" not in titles  # held out


def test_the_worst_errors_are_those_whose_class_was_given_least():
    logits_NC = np.array([[0.0, 9.0], [0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])
    seen = classify.Predictions(np.arange(4), np.array([0, 0, 0, 0]), logits_NC)
    assert mame_page.worst(seen, 2).tolist() == [0, 3] and mame_page.worst(seen, 9).tolist() == [0, 3, 1]


def test_the_exported_weights_start_another_run_where_the_head_fits(tiny, tmp_path):
    weights = tiny("mame").workdir / "export/model.safetensors"
    if not weights.is_file():
        pytest.fail("the tiny run leaves no weights to start from")
    ended = launch("mame.py:tiny", tmp_path / "run", f"--config.init_from={weights}", "--config.epochs=1")
    assert ended.code == 0, ended.err
    assert "tensors of" in ended.out


@pytest.mark.parametrize("is_masked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pictures_keep_their_shapes(is_masked, tmp_path):
    flags = ["--config.view.resize=None", "--config.view.pixels=1024", "--config.view.crop=0.875", "--config.epochs=1"]
    ended = launch("mame.py:tiny", tmp_path / "run", *flags, f"--config.masked_pool={is_masked}")
    assert ended.code == 0, ended.err
    assert read(ended.workdir / "image_model.json")["images"]["pixels"] == 1024


@pytest.mark.slow  # tests/train/test_classify.py has it without the program around it
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
        ("--config.explain.methods=('attention_rollout',)", "cnn has none"),
        ("--config.data.columns.label=texture", "is of csv:"),
        ("--config.floor.trees=0", "floor.trees=0 must be at least 1"),
        ("--config.data.toy=True", "data.toy=True is of mame:<folder>"),
        ("--config.data.allow_missing=True", "is of mame:<folder>"),
        ("--config.replicate_release_bug=True", "is of version=R360k-VS"),
        ("--config.loop.save_epochs=0", "save_epochs=0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(flag, words, tmp_path):
    ended = launch("mame.py:tiny", tmp_path / "run", flag)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err


def test_a_number_of_pictures_a_class_is_refused_where_the_pictures_are_there_already(tmp_path):
    c = mame.get_config("laptop")
    c.data.per_class = 7
    mame.check(c)
    c.data.source = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="per_class=7 is of museum"):
        mame.check(c)


def painted(root, counts):
    """A folder of pictures of noise: split -> class -> their numbers; equal numbers are equal pictures."""
    for split, by_class in counts.items():
        for name, numbers in by_class.items():
            (root / split / name).mkdir(parents=True)
            for place, number in enumerate(numbers):
                noise = np.random.default_rng(number).integers(256, size=(9, 9, 3), dtype=np.uint8)
                PIL.Image.fromarray(noise).save(root / split / name / f"{place}.png")
    c = mame.get_config("tiny")
    c.data.source = f"folder:{root}"
    return c


def test_copies_between_splits_small_classes_and_unread_files_are_counted(tmp_path, capsys):
    train = {"ash": range(5), "elm": range(5, 10), "fir": [10, 11], "oak": []}
    test = {"ash": [0, 1, 30], "elm": [31, 32, 33], "fir": [34, 35, 36], "oak": []}
    c = painted(tmp_path / "set", {"train": train, "val": {"elm": [5, 40, 41]}, "test": test})
    (tmp_path / "set/train/ash/late.heic").write_bytes(b"?")
    mame.open_splits(c, tmp_path)
    counts = {row["what"]: row["count"] for row in rows(tmp_path / "tables/data.jsonl")}
    assert (
        counts["test: byte-equal to a picture of train"] == 2 and counts["val: byte-equal to a picture of train"] == 1
    )
    assert counts["train: classes with fewer than 3 pictures: fir (2), oak (0)"] == 2
    assert counts["test: classes with fewer than 3 pictures: oak (0)"] == 1
    assert [n for what, n in counts.items() if ".heic" in what and what.endswith("late.heic")] == [1]
    assert "byte-equal to a picture of train" in capsys.readouterr().out


def test_the_accuracy_stands_beside_the_number_of_copies_and_of_classes(tmp_path):
    """Of 6 test pictures 2 are copies, both recognised, and of the other 4 one is; fir has none."""
    test = {"ash": [0, 1, 30], "elm": [31, 32, 33], "fir": []}
    c = painted(tmp_path / "set", {"train": {"ash": range(5), "elm": range(5, 10), "fir": [11]}, "test": test})
    train, test = (images.open(c.data.source, split=split) for split in ("train", "test"))
    logits_NC = np.eye(3)[[0, 0, 1, 1, 0, 0]]
    predictions = classify.Predictions(np.arange(6), test.labels_N, logits_NC)
    tested = mame_page.Tested("cnn", None, None, None, False, test, predictions, 0)
    summary = mame_page.judge(tmp_path, tested, train, images.copies(test, [train]), trees=2, seeds=1)
    assert summary["test/accuracy"] == 0.5 and summary["test/mean_class_accuracy"] == 0.5
    assert summary["test/copies"] == 2 and summary["test/accuracy without copies"] == 0.25
    assert summary["test/classes"] == 2
    words = (tmp_path / "findings.txt").read_text()
    assert "over 2 of 3 classes" in words
    assert (
        "2 of the 6 test pictures are byte-equal to one of train or val; the accuracy on the others is 0.250" in words
    )
    table = rows(tmp_path / "tables/accuracy.jsonl")
    assert [(row["what"], row["images"], row["classes"]) for row in table[:2]] == [
        ("cnn", 6, 2),
        ("cnn, without copies", 4, 2),
    ]
    assert {row["classes"] for row in rows(tmp_path / "tables/pixels.jsonl")} == {2}
    assert "it has seen 2 of them in train or val" in mame.headline(summary)
    alone = mame_page.judge(tmp_path, tested, train, np.zeros(6, bool), trees=2, seeds=1)
    assert alone["test/copies"] == 0 and "No test picture is byte-equal" in (tmp_path / "findings.txt").read_text()


def made_up_runs(folder, predicted, network="resnet18"):
    """Finished runs of some versions: predictions of pictures 0.jpg, 1.jpg, ... of class a (the first four) and b."""
    points = sweeps.points({"network.name": network, "version": version} for version in predicted)
    sweeps.write_index(points, str(folder), "mame")
    for point, told in zip(points, predicted.values()):
        place = folder / point.id
        place.mkdir(parents=True)
        config = {"network": {"name": network}, "seed": 0, "version": point.overrides["version"]}
        (place / "config.json").write_text(json.dumps(config))
        lines = [f"{'a' if i < 4 else 'b'},{p},{i}.jpg" for i, p in enumerate(told)]
        (place / mame_page.PREDICTIONS).write_text("\n".join(["True labels,Predicted labels,Filenames", *lines]) + "\n")
        files.write_json(place / "summary.json", {"test/accuracy": 0.5})
        (place / "DONE").touch()
    return folder


def test_versions_are_compared_on_the_pictures_they_share(tmp_path):
    """3 of 6 right, 2 of 4 and 1 of 2 by class, becomes 5 of 6, 4 of 4 and 1 of 2."""
    runs = made_up_runs(tmp_path, {"R65k-FS": "aabbba", "R360k-FS": "aaaabab", "R65k-VS": "aabbba"})
    assert report.main([str(runs)]) == 0
    with open(runs / "versions.csv", newline="") as f:
        table = list(csv.DictReader(f))
    assert [(row["effect"], row["A"], row["B"]) for row in table] == [
        ("resolution", "R65k-FS", "R360k-FS"),
        ("shape", "R65k-FS", "R65k-VS"),
    ]
    row, same = ({k: float(v) for k, v in row.items() if k not in ("network", "effect", "A", "B")} for row in table)
    assert row["images"] == 6 and row["classes"] == 2  # the seventh is in one of them
    assert row["overall"] == pytest.approx(1 / 3) and row["mean per class"] == pytest.approx(0.25)
    # drawing 6 of 6, of which 2 improve: the quantiles of Binomial(6, 1/3) at 2.5 and 97.5 % are 0 and 4
    assert row["overall low"] == 0 and row["overall high"] == pytest.approx(4 / 6)
    assert row["mean per class low"] == 0 and 0.4 < row["mean per class high"] < 1
    assert {v for k, v in same.items() if k not in ("seed", "images", "classes")} == {0}
    page = (runs / "report.html").read_text()
    assert ">versions</h2>" in page and "R360k-FS" in page


def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys):
    runs = made_up_runs(tmp_path, {"R65k-FS": "aabbba", "R360k-FS": "aaaaba"})
    shutil.copytree(runs / "network.name=resnet18,version=R65k-FS", runs / "again")
    with pytest.raises(InputError, match="one network, version and seed"):
        mame.compare(str(runs))
    (runs / "again/DONE").unlink()
    table = runs / "network.name=resnet18,version=R65k-FS" / mame_page.PREDICTIONS
    table.write_text(table.read_text().replace("a,a,0.jpg", "b,a,0.jpg"))
    assert report.main([str(runs)]) == 2 and "0.jpg is " in capsys.readouterr().err
    table.write_text(table.read_text().replace(".jpg", ".png"))
    with pytest.raises(InputError, match="share no picture"):
        mame.compare(str(runs))


def learned(label: str, shape: dict, steps: int) -> float:
    """Test accuracy on four classes of the museum of a network of two small convolutions."""
    train, test = (images.open("museum", split=s, label=label, per_class=n) for s, n in (("train", 50), ("test", 30)))
    model, mesh, tx = vision.network("cnn", num_classes=4, widths=(8, 16)), one_device(), optimizer.amsgrad(3e-2)
    batches_fn = functools.partial(images.batches, shape=dict(**shape, rotate=0.0), batch_size=32, most_shapes=1)
    batches = batches_fn(train, train=True)
    example = np.zeros((1, *next(batches)["images"].shape[1:]), np.float32)
    state = classify.create(model, tx, example, seed=0, mesh=mesh)
    update = jax.jit(classify.build(model, tx))
    for _ in range(steps):
        state, _ = update(state, sharding.to_devices(next(batches), mesh))
    seen = classify.predict(model, classify.variables(state), batches_fn(test, train=False), mesh)
    return float(np.mean(seen.predicted_N == seen.labels_N))


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)


@pytest.mark.slow  # tests/data/toys/test_museum.py measures on the pictures that the label is lost
def test_fine_patterns_need_resolution():
    coarse, fine = (learned("fine", dict(resize=side, crop=side), 60) for side in (32, 64))
    assert coarse < 0.45 and fine > coarse + 0.35


@pytest.mark.slow  # as above
def test_shapes_are_learned_from_pictures_that_keep_them_and_not_from_squares():
    """With masks: what the network sees of a shape is the picture's edge, not the padding around it."""
    squares = learned("shape", dict(resize=32, crop=32), 90)
    kept = learned("shape", dict(pixels=1_024, crop=1.0), 90)
    assert squares < 0.4 and kept > 0.5

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from alignment.explain import rating
from alignment.models import pretrained, vision
from alignment.train import classify
from data import loader
from data.pictures import images, planning
from experiments import focus
from experiments.explanations import networks, study
from experiments.pages import focus as focus_page
from experiments.report import markup
from tests.experiments.conftest import ROOT, launch

COLUMNS = "mosaic,dataset,arch,method,target_class,focus,tp,fp,tn,fn,pos_total"


def read(path):
    return json.loads(path.read_text())


def table(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def numbers(path):
    """A table's numbers by (mosaic, method)."""
    return {(row["mosaic"], row["method"]): row["focus"] for row in table(path)}


def test_a_run_leaves_what_the_sheet_names(tiny):
    workdir = tiny("focus").workdir
    summary = read(workdir / "summary.json")
    for method in ("lrp", "gradcam"):
        assert 0 <= summary[f"focus/{method}/median"] <= 1 and summary[f"mosaics_per_second/{method}"] > 0
        assert summary[f"focus/{method}/undefined"] >= 0
    assert {"accuracy", "focus_random/gradcam/median", "focus_absent/gradcam/median"} <= set(summary)
    assert (workdir / "scores.csv").read_text().splitlines()[0] == COLUMNS
    rows = table(workdir / "scores.csv")
    assert (
        len(rows) == 2 * 16 and {row["arch"] for row in rows} == {"cnn"} and {r["dataset"] for r in rows} == {"museum"}
    )
    median = np.nanmedian([float(row["focus"]) for row in rows if row["method"] == "lrp"])
    assert summary["focus/lrp/median"] == pytest.approx(median, abs=1e-6)
    cells = {(row["method"], row["test"], row["layers"]): row for row in table(workdir / "summary.csv")}
    assert {("lrp", "trained", "0"), ("gradcam", "R1", "0"), ("gradcam", "R3", "0"), ("gradcam", "R2", "3")} <= set(
        cells
    )
    assert {"median", "variance", "q1", "q3", "n", "n_undefined"} <= set(cells["lrp", "trained", "0"])
    manifest = read(workdir / "manifest.json")
    assert manifest["layers"] == ["features_0", "features_3", "head"] and manifest["gradcam_layer"] == "block2"
    assert manifest["weights_sha256"].keys() == {
        f"params/{n}/{w}" for n in manifest["layers"] for w in ("kernel", "bias")
    }
    figures = {p.stem for p in (workdir / "figures").glob("*.png")}
    assert {"1_focus", "2_cascade", "3_maps", "4_bias", "5_confusion", "6_biased_tiles"} <= figures


def test_an_empty_cascade_scores_as_the_trained_network_and_a_full_one_does_not(tiny):
    workdir = tiny("focus").workdir
    rows = table(workdir / "scores_randomised.csv")
    trained = numbers(workdir / "scores.csv")
    none, every = ({r["mosaic"]: r["focus"] for r in rows if (r["test"], r["layers"]) == ("R2", k)} for k in ("0", "3"))
    assert len(none) == 8 and none == {m: trained[m, "gradcam"] for m in none} and every != none


def test_findings_stand_on_the_first_page(tiny):
    workdir = tiny("focus").workdir
    lines = (workdir / "findings.txt").read_text().splitlines()
    page = (workdir / "report.html").read_text()
    assert all(markup.escape(line) in page for line in lines)
    assert "Median Focus" in lines[2] and lines[-1].startswith("Planted in this museum")
    assert page.index("Findings") < page.index("Figures")


def test_a_start_after_a_kill_rates_no_method_twice(tiny, tmp_path, monkeypatch):
    rate, calls = rating.rate, []

    def counted(*args, **more):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return rate(*args, **more)

    shutil.copytree(tiny("focus").workdir / "baseline", tmp_path / "baseline")  # trained already
    monkeypatch.setattr(rating, "rate", counted)
    assert launch("focus.py:tiny", tmp_path).code == 1
    assert launch("focus.py:tiny", tmp_path).code == 0
    assert len(calls) == 4 + 3 + 1  # three before the kill, one lost in it; then the rest, and the maps of biased tiles
    assert (tmp_path / "scores.csv").read_bytes() == (tiny("focus").workdir / "scores.csv").read_bytes()
    assert (tmp_path / "scores_randomised.csv").read_text() == (
        tiny("focus").workdir / "scores_randomised.csv"
    ).read_text()


def test_each_method_says_before_its_start_how_many_mosaics_it_will_explain(tiny):
    lines = tiny("focus").out.splitlines()
    lrp = lines.index("lrp explains 16 mosaics; limit.lrp takes fewer")
    assert lrp < next(i for i, line in enumerate(lines) if line.startswith("trained lrp"))
    cascade = "gradcam explains 16, 16 with random weights, 16 for absent classes, 2 x 8 in the cascade mosaics"
    assert f"{cascade}; limit.gradcam takes fewer" in lines


def test_small_tiles_have_superpixels_by_slic_unless_the_config_names_another():
    c = focus.get_config()
    assert focus.options_for(c, (56, 56))["lime"]["segmenter"] == "slic"
    assert focus.options_for(c, (224, 224))["lime"] == dict(num_samples=1_000, segmenter="quickshift")
    c.options.lime.segmenter = "quickshift"
    options = focus.options_for(c, (56, 56))
    assert options["lime"]["segmenter"] == "quickshift" and options["lrp"] == {}


def test_a_trained_run_rates_as_it_did_and_so_do_its_mosaics_from_disk(tiny, tmp_path):
    earlier = tiny("focus").workdir
    only = ("--config.methods=('gradcam',)", "--config.random.methods=()", "--config.cascade.methods=()")
    source = f"--config.init_from=run:{earlier}/baseline"
    ended = launch(
        "focus.py:tiny", tmp_path / "a", source, *only, "--config.save_mosaics=True", "--config.save_maps=True"
    )
    assert ended.code == 0, ended.err
    expected = {key: value for key, value in numbers(earlier / "scores.csv").items() if key[1] == "gradcam"}
    assert numbers(tmp_path / "a" / "scores.csv") == expected
    with np.load(tmp_path / "a" / "maps" / "gradcam" / "000008.npz") as shard:
        assert shard["maps"].shape == (8, 32, 32) and shard["maps"].dtype == np.float16
        assert shard["mosaic"].tolist() == list(range(8, 16))
    ready = f"--config.data.source=mosaics:{tmp_path / 'a' / 'mosaics'}"
    ended = launch("focus.py:tiny", tmp_path / "b", source, *only, ready)
    assert ended.code == 0, ended.err
    assert numbers(tmp_path / "b" / "scores.csv") == expected


def test_a_run_of_the_image_baselines_is_rated_on_its_own_pictures(tiny, tmp_path):
    flags = ("--config.methods=('gradcam',)", "--config.random.methods=()", "--config.cascade.methods=()")
    ended = launch("focus.py:tiny", tmp_path, f"--config.init_from=run:{tiny('mame').workdir}", *flags)
    assert ended.code == 0, ended.err
    rows = table(tmp_path / "scores.csv")
    assert len(rows) == 16 and {(row["dataset"], row["arch"]) for row in rows} == {("museum", "cnn")}
    assert read(tmp_path / "manifest.json")["mosaic_size"] == [32, 32]


def save_pictures(folder, classes=("dots", "lines", "waves"), num=10):
    """A folder of 16 x 16 pictures a class, each class of one tone."""
    for tone, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(num):
            noise = np.random.default_rng([tone, i]).integers(80 * tone, 80 * tone + 60, (16, 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(noise).save(folder / name / f"{i}.png")


RATE = ("--config.methods=('gradcam',)", "--config.random.methods=()", "--config.cascade.methods=()")


def test_a_small_setting_rates_a_run_on_the_pictures_that_it_was_trained_on(tmp_path):
    save_pictures(tmp_path / "own")
    source = f"folder:{tmp_path / 'own'}"
    trained = launch("mame.py:tiny", tmp_path / "m", f"--config.data.source={source}", "--config.view.crop=8")
    assert trained.code == 0, trained.err
    ended = launch("focus.py:tiny", tmp_path / "f", f"--config.init_from=run:{tmp_path / 'm'}", *RATE)
    assert ended.code == 0, ended.err
    rows = table(tmp_path / "f" / "scores.csv")
    assert len(rows) == 2 * 3 and {row["dataset"] for row in rows} == {source}
    manifest = read(tmp_path / "f" / "manifest.json")
    assert manifest["class_names"] == ["dots", "lines", "waves"] and manifest["mosaic_size"] == [16, 16]


def table_of_pictures(folder):
    """Pictures in a table whose columns have names of their own: the flags of the source and of the columns."""
    save_pictures(folder / "own")
    files = [path.relative_to(folder) for path in sorted((folder / "own").rglob("*.png"))]
    lines = ["picture,texture", *(f"{file},{file.parent.name}" for file in files)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    columns = ("--config.data.columns.filename=picture", "--config.data.columns.label=texture")
    return f"--config.data.source=csv:{folder / 'labels.csv'}", columns


def test_a_run_of_a_table_is_rated_by_the_names_that_its_columns_had_there(tmp_path):
    source, columns = table_of_pictures(tmp_path)
    trained = launch("mame.py:tiny", tmp_path / "m", source, *columns)
    assert trained.code == 0, trained.err
    rated = launch("focus.py:tiny", tmp_path / "f", f"--config.init_from=run:{tmp_path / 'm'}", *RATE)
    assert rated.code == 0, rated.err
    assert read(tmp_path / "f" / "manifest.json")["class_names"] == ["dots", "lines", "waves"]


@pytest.mark.slow  # a baseline is remembered as a run of mame.py is, which the test above takes up
def test_a_baseline_of_a_table_is_rated_as_it_was_when_it_was_trained(tmp_path):
    source, columns = table_of_pictures(tmp_path)
    alone = launch("focus.py:tiny", tmp_path / "g", source, *columns, *RATE)
    assert alone.code == 0, alone.err
    again = launch("focus.py:tiny", tmp_path / "h", f"--config.init_from=run:{tmp_path / 'g' / 'baseline'}", *RATE)
    assert again.code == 0, again.err
    names = [read(tmp_path / run / "manifest.json")["class_names"] for run in "gh"]
    assert names == [["dots", "lines", "waves"]] * 2
    assert numbers(tmp_path / "g" / "scores.csv") == numbers(tmp_path / "h" / "scores.csv")


def test_a_checkpoint_in_torchvisions_layout_is_rated(tmp_path):
    fields = dict(width=4, stage_sizes=(1,))
    model = vision.network("resnet_small", num_classes=8, **fields)
    variables = jax.jit(model.init)(jax.random.PRNGKey(0), jnp.zeros((1, 16, 16, 3)))
    pretrained.save(tmp_path / "small.safetensors", variables, network=model)
    c = focus.get_config("tiny")
    c.network.fields = fields
    c.update(methods=("gradcam",), init_from=f"checkpoint:{tmp_path / 'small.safetensors'}")
    c.network.name = "resnet_small"
    c.random.methods = c.cascade.methods = ()
    summary = focus.run(c, str(tmp_path / "run"))
    assert 0 <= summary["focus/gradcam/median"] <= 1 and not (tmp_path / "run" / "baseline").exists()
    c.network.num_classes = 5
    with pytest.raises(ValueError, match="no head for 5 classes"):
        focus.run(c, str(tmp_path / "other"))
    c.network.num_classes = 8
    stored = safetensors.numpy.load_file(tmp_path / "small.safetensors")
    backbone = {name: array for name, array in stored.items() if not name.startswith("fc")}
    safetensors.numpy.save_file(backbone, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"no head for 8 classes.*a random one would be rated"):
        focus.run(c, str(tmp_path / "other"))


READY = ("--config.data.source=mosaics:there", "--config.init_from=run:there")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.methods=('lrp','gradcamm')"], "the nearest is 'gradcam'"),
        (["--config.methods=()"], "methods is empty"),
        (["--config.bias.method=lime"], "bias.method='lime' is not one of"),
        (["--config.init_from=there"], "init_from='there'"),
        (["--config.init_from=run:nowhere"], "is not there"),
        (["--config.fallback.source="], "data.source is empty"),
        (["--config.batch_size=12"], "batch"),
        (["--config.data.columns.label=texture"], "is of csv:"),
        (["--config.data.source=museums"], "source of pictures='museums' is not one of"),
        (["--config.data.source=mosaics:there"], "are explained and not trained on; init_from names"),
        ([*READY, "--config.data.leave_out=('elm',)"], "data.leave_out=('elm',) is read where mosaics are planned"),
        ([*READY, "--config.data.columns.label=texture"], "is read where mosaics are planned"),
        ([*READY, "--config.tile.crop=8"], "tile.crop=8 is read where mosaics are planned"),
        (["--config.network.num_classes=3"], "network.num_classes=3 is of checkpoint:"),
    ],
)
def test_what_cannot_be_rated_is_refused_in_one_line(flags, said, tmp_path):
    ended = launch("focus.py:tiny", tmp_path, *flags)
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err


@pytest.mark.slow
def test_digits_that_nobody_planted_anything_in_are_explained_where_they_are(shared_data, tmp_path):
    source = shared_data / "image_mnist" / "mnist_t10k_0_2500.npz"
    if not source.is_file():
        pytest.skip("no digits there")
    command = [sys.executable, "-m", "experiments.run", "--config=experiments/focus.py:mnist", f"--workdir={tmp_path}"]
    command += [f"--config.data.source=npz:{source}", "--config.methods=('lrp','gradcam')", "--config.per_class=20"]
    command += ["--config.cascade.methods=()", "--config.pictures=1", "--config.bias.num_samples=100"]
    # on one device and with XLA's optimizations, unlike the other tests: it trains in earnest
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    summary = read(tmp_path / "summary.json")
    assert summary["accuracy"] > 0.95
    for method in ("lrp", "gradcam"):
        assert summary[f"focus/{method}/median"] > 0.7
        assert summary[f"focus_random/{method}/median"] == pytest.approx(0.5, abs=0.05)


def pictures_of(folder, counts, broken=()):
    """`folder` with so many PNG files of each class; those that `broken` numbers have zeros in their middle."""
    for name, count in counts.items():
        (folder / "test" / name).mkdir(parents=True)
        (folder / "train" / name).mkdir(parents=True)
        for i in range(count):
            file = folder / "test" / name / f"{i:03}.png"
            noise = np.random.default_rng(i).integers(256, size=(12, 12, 3), dtype=np.uint8)
            PIL.Image.fromarray(noise).save(file)
            if (name, i) in broken:
                content = bytearray(file.read_bytes())
                content[len(content) // 2 : len(content) // 2 + 60] = bytes(60)
                file.write_bytes(content)
    return images.open(f"folder:{folder}", split="test")


def tiny_plan(pictures, leave_out=()):
    options = {"per_class": 60, "outer": "balanced", "seed": 0, "leave_out": leave_out}
    return planning.decodable(pictures, {"resize": 8, "crop": 8}, len(pictures.class_names), **options)


def test_a_picture_broken_in_its_middle_is_left_out_and_counted(tmp_path):
    pictures = pictures_of(tmp_path, {"oak": 60, "elm": 60}, broken=[("oak", 3)])
    plan, tiles_NYXC, local_M4, broken = tiny_plan(pictures)
    (number,) = broken
    assert pictures.files[number].endswith("oak/003.png") and "cannot be decoded" in broken[number]
    assert number not in plan.tile_index and local_M4.max() + 1 == len(tiles_NYXC)
    pictures = pictures_of(tmp_path / "more", {"oak": 60, "elm": 60}, broken=[("oak", 3), ("elm", 5)])
    with pytest.raises(ValueError, match=r"2 of 120 pictures .* cannot be decoded, more than 1 %"):
        tiny_plan(pictures)


def test_classes_without_a_picture_are_named_and_can_be_left_out(tmp_path, capsys):
    pictures = pictures_of(tmp_path, {"oak": 5, "elm": 0, "fir": 2, "ash": 4})
    with pytest.raises(ValueError, match=r"no picture of elm in its split test; .*leave_out=\"\('elm',\)\""):
        tiny_plan(pictures)
    plan, *_ = tiny_plan(pictures, leave_out=("elm",))
    names = np.array(pictures.class_names)
    assert set(names[plan.target]) == {"oak", "fir", "ash"} == set(names[plan.tile_label].ravel())
    assert "fir (2)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the nearest is 'elm'"):
        tiny_plan(pictures, leave_out=("elmm",))


def test_stored_scores_of_these_mosaics_and_weights_are_taken_up_again_and_no_others(tmp_path):
    scores = {"focus": np.array([0.5, np.nan]), "mosaic": np.arange(2)}
    made_from = {"mosaics": "a", "weights": "b"}
    np.savez(tmp_path / "old.npz", **scores)
    np.savez(tmp_path / "new.npz", **scores, made_from=np.array(json.dumps(made_from)))
    for name in ("old", "new"):
        stored = study.stored_scores(tmp_path / f"{name}.npz", made_from)
        assert stored.keys() == scores.keys() and stored["mosaic"].tolist() == [0, 1]
    for changed in made_from:
        with pytest.raises(ValueError, match=rf"new\.npz was computed from other {changed} than this run has now"):
            study.stored_scores(tmp_path / "new.npz", made_from | {changed: "c"})
    content = (tmp_path / "new.npz").read_bytes()
    (tmp_path / "new.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"new\.npz is damaged .*remove it"):
        study.stored_scores(tmp_path / "new.npz", made_from)


def test_a_baseline_of_pictures_that_have_changed_is_refused(tmp_path):
    c = focus.get_config("tiny")
    save_pictures(tmp_path / "set", num=20)
    c.data.source = f"folder:{tmp_path / 'set'}"
    folder = tmp_path / "baseline"
    source = {split: images.open(c.data.source, split=split).digest for split in ("train", "val")}
    content = {"content": loader.digest(texts=source.values())}
    classify.remember(folder, network="cnn", fields={}, class_names=["a"], images=content)
    (folder / "summary.json").write_text("{}")
    networks.train_baseline(c, folder, None)
    for file in (tmp_path / "set/dots").iterdir():
        PIL.Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(file)
    with pytest.raises(ValueError, match=r"have changed since .*baseline was trained on them"):
        networks.train_baseline(c, folder, None)


def test_the_accuracy_stands_beside_the_number_of_tiles_that_the_network_was_trained_on(tmp_path, capsys):
    """Of 4 tiles 2 are copies, both recognised, and of the other 2 one is."""
    for split, label, number in [("train", "ash", 0), ("train", "elm", 1), ("test", "ash", 0), ("test", "ash", 2),
                                 ("test", "elm", 1), ("test", "elm", 3)]:  # fmt: skip
        noise = np.random.default_rng(number).integers(256, size=(9, 9, 3), dtype=np.uint8)
        (tmp_path / "set" / split / label).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise).save(tmp_path / "set" / split / label / f"{number}.png")
    source = f"folder:{tmp_path / 'set'}"
    pictures = images.open(source, split="test")
    net = study.Classifier("cnn", None, {}, pictures.class_names, 2, {"source": source})
    is_copy_N = study.copies_of_training(net, pictures, {})
    assert [bool(is_copy) for is_copy in is_copy_N] == [True, False, True, False]
    tiles = study.MosaicSet(source, np.zeros((4, 1, 1, 3)), pictures.labels_N, [], (), is_copy_N)
    results = focus_page.Results({}, {"R1": {}, "R3": {}}, {}, np.array([0, 1, 1, 1]))
    summary = focus_page.summary_of(results, tiles)
    assert (summary["accuracy"], summary["copies"], summary["accuracy without copies"]) == (0.75, 2, 0.5)
    lines = focus_page.rating_lines(results, net, tiles)
    assert "2 of the 4 single tiles are byte-equal to a picture of its training; it recognises 50.0 %" in lines[1]
    source = f"folder:{tmp_path / 'gone'}"
    assert study.copies_of_training(dataclasses.replace(net, images={"source": source}), pictures, {}) is None
    assert "not counted" in capsys.readouterr().out
    unknown = focus_page.rating_lines(results, net, dataclasses.replace(tiles, is_copy_N=None))
    assert "It is not known" in unknown[1]

import csv
import json
import math
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from alignment import files
from alignment.errors import InputError
from alignment.watermark import (
    clip,
    decoders,
    inception,
    learned,
    lpips,
    marks,
    protocol,
    quality,
    tree_ring,
)
from data.corpus import shards
from data.toys import scenes
from experiments import waves
from experiments.image_watermarks import attacks, cells, given, prepare
from experiments.pages import waves as page
from tests.experiments.conftest import ROOT, launch

STRENGTHS = {"Dist-JPEG": (0.5, 1.0), "Dist-Bright": (0.2, 0.4)}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A prepared grid of two marks and two distortions, and the rows of a run in this process."""
    folder = tmp_path_factory.mktemp("grid")
    digests = prepare.marked(
        scenes.pink(2, 64), ["ring", "cox"], user=0, folder=folder / "prepared", mark_fn=marks.MARKS.__getitem__
    )
    made = cells.Grid(str(folder), "".join(digests), "removal", 0, 0, {})
    return made, cells.through(made, cells.cells_of(["ring", "cox"], STRENGTHS))


def copy_of(grid, tmp_path, **changes):
    (tmp_path / "prepared").mkdir()
    for file in (ROOT / grid.folder / "prepared").iterdir():
        (tmp_path / "prepared" / file.name).write_bytes(file.read_bytes())
    return cells.Grid(**{**vars(grid), "folder": str(tmp_path), **changes})


def content(folder):
    return {path.name: path.read_bytes() for path in sorted((ROOT / folder / "cells").iterdir())}


def test_a_cell_is_a_mark_under_an_attack_of_a_strength(grid):
    _, rows = grid
    assert len(rows) == 2 * (1 + 2 + 2)
    assert [(row["mark"], row["attack"], row["strength"]) for row in rows[:3]] == [
        ("ring", "none", 0.0),
        ("ring", "Dist-JPEG", 0.5),
        ("ring", "Dist-JPEG", 1.0),
    ]
    assert "unmarked" in rows[0] and "unmarked" not in rows[1] and len(rows[1]["marked"]) == 2
    assert all(row["psnr"] > 10 for row in rows)


def test_cells_that_are_gone_are_measured_again_with_the_same_bytes(grid, tmp_path):
    made, rows = grid
    again = copy_of(made, tmp_path)
    plan = cells.cells_of(["ring", "cox"], STRENGTHS)
    for i in (7, 2):  # out of order, as after a kill
        cells.measure(again, (i, plan[i]))
    (tmp_path / "cells/000002.jsonl").write_bytes(b"{}")
    assert cells.through(again, plan) == rows
    assert content(tmp_path) == content(made.folder)


@pytest.mark.slow  # starts interpreters; the test above has the same rows in this process
@pytest.mark.parametrize("executor", ["process", "ray"])
def test_other_executors_leave_the_same_bytes(executor, grid, tmp_path):
    made, rows = grid
    if executor == "ray":
        pytest.importorskip("ray")
    again = copy_of(made, tmp_path)
    assert cells.through(again, cells.cells_of(["ring", "cox"], STRENGTHS), executor=executor, workers=2) == rows
    assert content(tmp_path) == content(made.folder)


def test_a_cells_failure_is_its_own(grid, tmp_path, monkeypatch):
    made, rows = grid
    apply = attacks.apply

    def fail(name, *args, **more):
        if name == "Dist-JPEG" and more["mark"] == "cox":
            raise MemoryError("no room")
        return apply(name, *args, **more)

    monkeypatch.setattr(attacks, "apply", fail)
    broken = cells.through(copy_of(made, tmp_path), cells.cells_of(["ring", "cox"], STRENGTHS))
    failed = [row for row in broken if "error" in row]
    assert [(row["mark"], row["attack"]) for row in failed] == [("cox", "Dist-JPEG")] * 2
    assert failed[0]["error"].startswith("MemoryError: no room (test_waves.py:")
    assert [row for row in broken if "error" not in row] == [row for row in rows if row["mark"] == "ring"] + [
        row for row in rows if row["mark"] == "cox" and row["attack"] != "Dist-JPEG"
    ]
    points = page.points_of(broken, "Q3")
    assert [p["P"] is None and p["Q"] is None for p in points if p["mark"] == "cox"] == [True, True, False, False]
    board = page.leaderboard(points)
    assert next(line for line in board if (line["mark"], line["attack"]) == ("cox", "Dist-JPEG"))["rank"] is None
    assert any(
        "2 of 10 cells failed" in line for line in page.findings(broken, subset="Q3", names=["a", "b"], setup="r")
    )


def test_cells_of_another_grid_are_refused(grid, tmp_path):
    made, _ = grid
    again = copy_of(made, tmp_path)
    plan = cells.cells_of(["ring"], {"Dist-JPEG": (0.5,)})
    cells.through(again, plan)
    with pytest.raises(InputError, match="done under another config"):
        cells.through(cells.Grid(**{**vars(again), "digest": "other"}), plan)


@pytest.mark.parametrize("setup", protocol.SETUPS)
def test_the_set_up_says_which_pictures_are_attacked(setup, grid, tmp_path):
    made, _ = grid
    row = cells.row_of(copy_of(made, tmp_path, setup=setup), cells.Cell("ring", "Dist-JPEG", 1.0))
    assert {"marked", "unmarked"} & set(row) == {
        "removal": {"marked"},
        "spoofing": {"unmarked"},
        "combined": {"marked", "unmarked"},
    }[setup]
    assert row["psnr"] < 40


def test_a_rate_at_one_percent_and_the_best_accuracy_stand_beside_the_rate_at_a_thousandth():
    clean = {"mark": "dct", "attack": "none", "strength": 0.0, "marked": [0.0], "unmarked": [*range(200)]}
    row = {"mark": "dct", "attack": "Dist-JPEG", "strength": 1.0, "marked": [*([0.5] * 100), *([300.0] * 100)]}
    measured = cells.performance(row, clean)
    assert measured == {"P": 0, "tpr_at_1_fpr": 0.5, "auroc": 0.4975, "balanced_accuracy": 0.7475}
    assert cells.performance(row | {"error": "no room"}, clean)["tpr_at_1_fpr"] is None


def test_tiny_leaves_points_a_leaderboard_and_the_attacks_that_were_not_run(tiny):
    workdir = tiny("waves").workdir
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["cells"] == 14 and summary["failed"] == 0 and summary["images"] == 2
    assert {"tpr/ring/Dist-JPEG", "rank/cox/AdvEmb-Small", "psnr/cox"} <= summary.keys()
    rows = list(csv.DictReader((workdir / "points.csv").read_text().splitlines()))
    assert len(rows) == 12 and all(0 <= float(row["P"]) <= 1 for row in rows)
    board = [json.loads(line) for line in (workdir / "tables/leaderboard.jsonl").read_text().splitlines()]
    not_run = {line["attack"] for line in board if line["mark"] == "not run (weights missing)"}
    assert len(not_run) == 14 and "Regen-Diff" in not_run
    assert {line["mark"] for line in board if line["attack"] == "not run (weights missing)"} == {
        "tree_ring",
        "stable_signature",
        "stegastamp",
    }
    assert json.loads((workdir / "normalisation.json").read_text())["subset"] == "Q3"
    for name in ("curves_cox", "curves_ring", "radar", "quality"):
        assert (workdir / f"figures/{name}.png").stat().st_size > 1_000


def test_all_26_attacks_of_the_paper_are_there_or_named_as_not_run():
    assert len(attacks.MISSING) + len(set(attacks.NAMES) - set(attacks.LEARNED)) == 26
    assert set(attacks.NAMES) & set(attacks.MISSING) == {"AdvEmbB-RN18"} and set(attacks.DEFAULT) < set(attacks.NAMES)
    assert "AdvEmbB-RN18" not in {line["attack"] for line in page.not_run({"AdvEmbB-RN18"})}
    assert {name for names in attacks.CATEGORIES.values() for name in names} == set(attacks.NAMES)


def test_a_curve_that_never_falls_is_written_in_words():
    line = page._printable({"rank": 1, "Q@0.7P": -math.inf, "Q@0.4P": math.inf, "mean P": 0.5})
    assert line == {"rank": 1, "Q@0.7P": "-inf", "Q@0.4P": "inf", "mean P": 0.5}


def test_what_is_no_picture_or_too_small_is_set_aside_and_counted(tmp_path):
    for number, side in enumerate((90, 80, 40)):
        picture = scenes.pink(1, side, seed=number)[0]
        PIL.Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.png").write_text("no picture")
    out = tmp_path / "out"
    cuts, names = prepare.pictures(f"{tmp_path}/*.png", size=64, num=None, seed=0, workdir=out)
    assert cuts.shape == (2, 64, 64, 3)
    assert names[1] == f"{tmp_path}/1.png from row 8, column 8"
    assert (cuts[1] == scenes.pink(1, 80, seed=1)[0][8:72, 8:72]).all()
    bad = [json.loads(line) for line in (out / "bad_records.jsonl").read_text().splitlines()]
    assert ["40 x 40 pixels, and size=64" in row["reason"] for row in bad] == [True, False]
    assert "is not a picture" in bad[1]["reason"]
    more, _ = prepare.pictures(str(tmp_path), size=64, num=5, seed=0, workdir=out)
    assert len(more) == 5 and (more[:2] == cuts).all()
    with pytest.raises(InputError, match="none of 1 files can be used"):
        prepare.pictures(f"{tmp_path}/notes.png", size=64, num=None, seed=0, workdir=out)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.marks=('dctt',)"], "the nearest is 'dct'"),
        (
            ["--config.marks=('stegastamp',)"],
            "stegastamp needs trained weights that are not there; set",
        ),
        (["--config.given.stegastamp.message=01"], "given.stegastamp is set and not read"),
        (["--config.given.lpips=nowhere.safetensors"], "given.lpips='nowhere.safetensors' is not there"),
        (["--config.given.aesthetics.rating=head"], "given.aesthetics needs a network and a head over it"),
        (["--config.given.clip_fid=nowhere"], "given.clip_fid='nowhere' is not there"),
        (["--config.quality=Q4"], "quality=Q4 needs lpips, whose weights are not there; take Q3"),
        (["--config.training.mark_steps=3"], "is read by the mark encoder_decoder alone"),
        (["--config.marks=('encoder_decoder',)", "--config.training.mark_from=no"], "mark_from='no' is not there"),
        (["--config.attacks=('Regen-Diff',)"], "Regen-Diff needs trained weights that are not there"),
        (["--config.attacks=('Regen-Own',)"], "Regen-Own needs a network of yours; set given.network.calls"),
        (["--config.attacks=('AdvEmbB-RN18',)"], "AdvEmbB-RN18 needs a network of yours; set given.resnet18"),
        (["--config.given.resnet18=there"], "given.resnet18 is set and not read; add one of AdvEmbB-RN18"),
        (["--config.attacks=('AdvCls-Real&WM-Small',)"], "needs photographs that nobody marked; set training.real"),
        (["--config.training.real=photos"], "training.real='photos' is not read, as it belongs to AdvCls-Real&WM"),
        (["--config.attacks=('Dist-Jpeg',)"], "attacks='Dist-Jpeg' is not one of"),
        (["--config.attacks=('Dist-JPEG','Dist-JPEG')"], "names one of them twice"),
        (["--config.strengths.single=(0.5,1.5)"], "strengths.single=(0.5, 1.5): they rise and lie in (0, 1]"),
        (["--config.user=-1"], "user=-1 must be at least 0"),
        (["--config.seed=-1"], "seed=-1 must be at least 0"),
        (["--config.setup=removing"], "the nearest is 'removal'"),
        (["--config.quality=Q8"], "quality=Q8 needs fid, clip_fid, lpips"),
        (["--config.users=(1,)"], "among at least 2"),
        (["--config.size=128", "--config.marks=('dct',)"], "128 x 128 pixels are too small for 48 bits"),
        (["--config.size=70"], "size=70: the small networks need a multiple of 8; take 64"),
        (["--config.images=nowhere/*.png"], "no file is there"),
        (["--config.attacks=('Dist-JPEG',)", "--config.noise=0.5"], "as it belongs to Regen-Small, Rinse-2x-Small"),
        (["--config.strengths.combined=(0.3,)", "--config.attacks=('Dist-JPEG',)"], "it belongs to DistCom-Geo"),
        (["--config.users=(7,)", "--config.marks=('cox',)"], "marks of bits or rings alone tell them apart"),
        (["--config.workers=2"], "workers=2 is not read, as executor=local has none"),
        (["--config.executor=cluster"], "executor='cluster' is not one of"),
        (["--config.address=auto"], "is read by executor=ray alone"),
        (["--config.training.init_from=there.safetensors"], "is not there"),
        (["--config.training.init_from=a", "--config.attacks=('Dist-JPEG',)"], "leave it out"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(flags, said, tmp_path):
    ended = launch("waves.py:tiny", tmp_path, *flags)
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err


def test_identification_falls_with_the_number_of_users():
    rows = [{"mark": "dct", "attack": "none", "strength": 0.0, "num_bits": 48, "marked": [12 / 48] * 3}]
    (line,) = page.identification(rows, (100, 1_000))
    assert 0 <= line["drawn, of 1,000"] <= line["drawn, of 100"] <= 1
    assert line["of 100"] == pytest.approx(0.965112, abs=1e-5) and line["of 1,000"] == pytest.approx(0.698835, abs=1e-5)


def test_rings_are_identified_and_every_mark_has_p_values(grid):
    _, rows = grid
    table = page.identification(rows, (100, 1_000_000))
    assert {line["mark"] for line in table} == {"ring"}  # cox reads one key after the other
    clean = table[0]
    assert clean["attack"] == "none" and clean["of 100"] >= clean["of 1,000,000"] > 0.5 and clean["bits right"] is None
    lines = {(line["mark"], line["attack"], line["pictures"]): line for line in page.p_values(rows)}
    for mark in ("ring", "cox"):
        own, other = (lines[mark, "none", side]["median p"] for side in ("marked", "unmarked"))
        assert own < 1e-3 < other and lines[mark, "none", "marked"]["p below 0.001"] == 1
    assert ("ring", "Dist-JPEG", "unmarked") not in lines  # removal spares them
    bits = cells.readings(marks.MARKS["dct"], "marked", scenes.pink(2, 256), marks.message(0))
    assert len(bits["p_marked"]) == 2 and min(bits["p_marked"]) > 1e-4 and "chances" not in bits


def test_a_picture_whose_metric_is_not_finite_is_named_and_the_metric_is_blank():
    pictures = scenes.pink(2, 64)
    bad = {"lpips": lambda a, b: np.array([0.1, np.nan]), "fid": lambda a, b: np.inf}
    row = cells.qualities(pictures, pictures, bad)
    assert row["lpips"] is None and row["fid"] is None and row["psnr"] == 100
    row |= {"mark": "ring", "attack": "Dist-JPEG", "strength": 1.0}
    table = page.not_finite([row], ["a.png", "b.png"])
    assert [(line["metric"], line["picture"]) for line in table] == [("lpips", "b.png"), ("fid", "all pictures")]
    lines = page.findings([row], subset="Q3", names=["a.png", "b.png"], setup="removal")
    assert any("first lpips of b.png under Dist-JPEG (ring)" in line for line in lines)
    assert cells.qualities(np.zeros_like(pictures), np.zeros_like(pictures), {})["nmi_undefined"] == 2
    mark = marks.Mark(marks.message, lambda x, key: x, lambda x, key: np.array([0.1, np.nan]))
    with pytest.raises(InputError, match="the distance of the marked picture 1 is nan"):
        cells.readings(mark, "marked", pictures, marks.message(0))


@pytest.mark.slow  # test_cells_that_are_gone_are_measured_again_with_the_same_bytes has it in one process
@pytest.mark.parametrize("executor", ["local", "process", "ray"])
def test_a_grid_of_200_cells_killed_at_random_ends_in_the_same_bytes(executor, tmp_path):
    if executor == "ray":
        pytest.importorskip("ray")
    strengths = tuple(np.linspace(0.01, 1.0, 33).round(3).tolist())
    flags = [
        "--config.marks=('ring',)",
        "--config.attacks=('Dist-JPEG','Dist-Blur','Dist-Noise','Dist-RCrop','Dist-Erase',",
    ]
    flags[1] += "'Dist-Bright')"
    flags += [f"--config.strengths.single={strengths}", "--config.size=64", f"--config.executor={executor}"]

    def command(folder):
        base = [sys.executable, "-m", "experiments.run", "--config=experiments/waves.py:tiny", f"--workdir={folder}"]
        return [*base, *flags, *(["--config.workers=2"] if executor != "local" else [])]

    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            command(tmp_path / "killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        cells_done = tmp_path / "killed/cells"
        until = rng.randrange(20, 60) + (len(list(cells_done.iterdir())) if cells_done.is_dir() else 0)
        while process.poll() is None and not (cells_done.is_dir() and len(list(cells_done.iterdir())) >= until):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path / "killed"), cwd=ROOT, check=True, capture_output=True)
    assert len(content(tmp_path / "whole")) == 199
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_every_user_has_a_key_of_their_own():
    for mark in marks.MARKS.values():
        assert not np.array_equal(mark.key_fn(0), mark.key_fn(1)) and np.array_equal(mark.key_fn(2), mark.key_fn(2))


def test_the_sweep_goes_over_the_set_ups():
    assert [point["setup"] for point in waves.sweep()] == ["removal", "spoofing", "combined"]


GRID_ALONE = """
import sys
from experiments.image_watermarks import cells
grid = cells.Grid(sys.argv[1], sys.argv[2], "removal", 0, 0, {})
print("ready", flush=True)
cells.through(grid, cells.cells_of(["ring", "cox"], {"Dist-JPEG": (0.5, 1.0), "Dist-Bright": (0.2, 0.4)}))
"""


def test_a_grid_that_was_killed_in_mid_cell_goes_on_to_the_same_bytes(grid, tmp_path):
    """A process of its own is killed once some cells are there; this one goes on. No JAX is imported in it."""
    made, rows = grid
    again = copy_of(made, tmp_path)
    command = [sys.executable, "-c", GRID_ALONE, str(tmp_path), again.digest]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    done = tmp_path / "cells"
    while process.poll() is None and not (done.is_dir() and len(list(done.iterdir())) >= 3):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files.sweep(tmp_path)  # what a kill leaves half written, as every start does
    there = len(shards.finished(str(tmp_path), cells.STAGE, again.digest, is_checked=True))
    assert there >= 1
    assert cells.through(again, cells.cells_of(["ring", "cox"], STRENGTHS)) == rows
    assert content(tmp_path) == content(made.folder)


CALLS = """
import numpy as np

def encode(images):
    return np.repeat(images[..., :1], 4, axis=-1).transpose(0, 3, 1, 2) * 8 - 4

def decode(latents):
    return np.repeat(latents[:, 3, :, :, None] / 8 + 0.5, 3, axis=-1)
"""


def random_weights(path, shapes):
    rng = np.random.default_rng(0)
    arrays = {name: np.abs(rng.normal(0, 0.1, shape)).astype(np.float32) for name, shape in shapes.items()}
    path.write_bytes(safetensors.numpy.save(arrays))
    return str(path)


def test_a_users_own_weights_make_marks_and_a_measure(grid, tmp_path):
    made, _ = grid
    signature = random_weights(tmp_path / "signature.safetensors", decoders.signature_shapes(12, 3, 8))
    (tmp_path / "calls.py").write_text(CALLS)
    c = waves.get_config("tiny")
    c.marks = ("stable_signature", "tree_ring")
    c.given.stable_signature.update(weights=signature, pictures="photos", message="01" * 6)
    c.given.tree_ring.calls = str(tmp_path / "calls.py")
    c.given.lpips = random_weights(tmp_path / "lpips.safetensors", lpips.shapes())
    c.quality = "Q4"
    waves.check(c)
    again = copy_of(made, tmp_path, given=given.plain(c))
    bare = np.load(tmp_path / "prepared/pictures.npy")
    np.save(tmp_path / "prepared/stable_signature.npy", bare[::-1])
    np.save(tmp_path / "prepared/tree_ring.npy", given.mark_of("tree_ring", tmp_path, again.given).embed_fn(bare, KEY))
    rows = [cells.row_of(again, cell) for cell in cells.cells_of(c.marks, {"Dist-JPEG": (1.0,)})]
    clean, attacked, ring, _ = rows
    assert clean["num_bits"] == 12 and len(clean["marked"]) == 2 and "psnr" not in clean
    assert attacked["lpips"] > 0 and ring["num_bits"] is None and max(ring["marked"]) < min(ring["unmarked"])
    (point, _) = page.points_of(rows, "Q4")
    assert point["lpips"] == attacked["lpips"] and point["Q4"] is not None
    assert next(line["mark"] for line in page.not_run({"stable_signature", "tree_ring"})) == "stegastamp"


def test_the_papers_quality_has_all_eight_measures_where_their_weights_are_given(tmp_path, monkeypatch):
    """Networks are read in tests/parity/test_image_weights.py; here they are numbers."""
    c = waves.get_config("tiny")
    for name in ("lpips", "fid", "clip_fid"):
        c.given[name] = str(tmp_path / name)
    c.given.aesthetics.update({name: str(tmp_path / name) for name in ("clip", "rating", "artifacts")})
    for name in ("lpips", "fid", "clip_fid", "clip", "rating", "artifacts"):
        (tmp_path / name).write_bytes(name.encode())
    c.quality = "Q8"
    waves.check(c)
    assert given.measured(c.given) == list(given.MEASURES)
    own = given.plain(c)
    assert set(own["digests"]) == {"lpips", "fid", "clip_fid", *(f"aesthetics.{x}" for x in ("clip", *given.SCORES))}
    monkeypatch.setattr(lpips, "opened", lambda path: lambda a, b: np.full(len(a), 0.2))
    monkeypatch.setattr(inception, "opened", lambda path: lambda a, b: 20.0)
    monkeypatch.setattr(clip, "opened", lambda path: lambda a, b: 5.0)
    heads = {"rating": 0.5, "artifacts": -0.1}
    monkeypatch.setattr(
        clip, "opened_score", lambda path, head: lambda a, b: np.full(len(a), heads[head.split("/")[-1]])
    )
    pictures = scenes.pink(2, 64)
    row = cells.qualities(pictures, pictures, given.measures(own))
    assert quality.degradation(row | {"psnr": 25, "ssim": 0.8, "nmi": 1.3}, "Q8") == pytest.approx(0.363910, abs=1e-6)
    lines = page.findings([row | {"mark": "ring", "attack": "none"}], subset="Q8", names=["a", "b"], setup="removal")
    assert "as the paper's" in lines[0]


KEY = tree_ring.key(0)


def test_a_users_marked_pictures_are_taken_as_they_are(tmp_path):
    for i in range(2):
        PIL.Image.fromarray(scenes.pink(1, 64, seed=i)[0]).save(tmp_path / f"{i}.png")
    assert prepare.own_pictures(str(tmp_path), (2, 64, 64, 3), "stegastamp").shape == (2, 64, 64, 3)
    with pytest.raises(InputError, match="64 x 64 pixels, and size=32; set"):
        prepare.own_pictures(str(tmp_path), (2, 32, 32, 3), "stegastamp")
    with pytest.raises(InputError, match="pictures are 2, and images are 3"):
        prepare.own_pictures(str(tmp_path), (3, 64, 64, 3), "stegastamp")


def test_the_trained_mark_is_trained_once_and_taken_up(tmp_path, capsys, monkeypatch):
    """tests/watermark/test_hidden.py trains; here the networks stay as they begin."""

    def fit(loss_fn, model, images, *, steps, seed):
        return model.init(jax.random.key(seed), np.zeros((1, 32, 32, 3), np.float32)), [1.0] * steps

    monkeypatch.setattr(learned, "fit", fit)
    prepare.train_mark(tmp_path, seed=0, steps=1, start="")
    assert "encoder_decoder: 1 updates" in capsys.readouterr().out
    prepare.train_mark(tmp_path, seed=0, steps=1, start="")
    assert capsys.readouterr().out == ""
    (tmp_path / "other").mkdir()
    prepare.train_mark(tmp_path / "other", seed=0, steps=1, start=str(tmp_path / given.TRAINED_FILE))
    made = {folder: (folder / given.TRAINED_FILE).read_bytes() for folder in (tmp_path, tmp_path / "other")}
    assert len(set(made.values())) == 1
    assert given.mark_of(given.TRAINED, tmp_path, {}).key_fn(0).shape == (48,)


def test_weights_of_another_network_are_refused_before_any_cell(tmp_path):
    wrong = random_weights(tmp_path / "wrong.safetensors", {"net.slice1.0.weight": (4, 3, 3, 3)})
    ended = launch("waves.py:tiny", tmp_path / "run", f"--config.given.lpips={wrong}")
    assert (
        ended.code == 2 and "another network than LPIPS over AlexNet: net.slice1.0.weight is (4, 3, 3, 3)" in ended.err
    )
    signature = random_weights(tmp_path / "signature.safetensors", decoders.signature_shapes(12, 3, 8))
    own = ["weights=" + signature, f"pictures={tmp_path}", "message=0101"]
    flags = ["--config.marks=('stable_signature',)", *(f"--config.given.stable_signature.{x}" for x in own)]
    ended = launch("waves.py:tiny", tmp_path / "other", *flags)
    assert ended.code == 2 and "a message of 4 bits; these weights of stable_signature read 12" in ended.err

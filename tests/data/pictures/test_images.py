import csv
import itertools
import json
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data.pictures import image_files, image_sources, images

VIEW = dict(resize=16, crop=12)
FREE = dict(pixels=400)
NOISE = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)


def save(path, picture=NOISE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(picture).save(path, **options)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes below three splits."""
    root = tmp_path_factory.mktemp("folder")
    for split, num in (("train", 5), ("val", 2), ("test", 3)):
        for label, name in enumerate(("bow", "axe")):
            for i in range(num):
                save(root / split / name / f"{i}.png", NOISE[: 12 + 2 * i, : 20 + 4 * label])
    return root


@pytest.fixture(scope="module")
def pictures():
    return images.open("museum", split="train", per_class=3)


def index(batches, num):
    return [next(batches)["index"].tolist() for _ in range(num)]


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


# -- sources


def test_a_folder_with_splits_opens_each(folder):
    found = images.open(f"folder:{folder}", split="test")
    assert found.class_names == ("axe", "bow") and found.labels_N.tolist() == [0] * 3 + [1] * 3
    assert np.array_equal(found.read(1), NOISE[:14, :24]) and found.size(1) == (24, 14)
    assert found.groups["height"].tolist() == [12, 14, 16] * 2


def test_a_folder_without_splits_is_split_by_class_from_a_seed(tmp_path):
    for name in ("a", "b", "c"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png")
    open_all = lambda seed: {s: images.open(f"folder:{tmp_path}", split=s, seed=seed) for s in image_sources.SPLITS}  # noqa: E731
    one, two, other = open_all(0), open_all(0), open_all(1)
    assert {s: np.bincount(f.labels_N).tolist() for s, f in one.items()} == dict(
        train=[7] * 3, val=[1] * 3, test=[2] * 3
    )
    files = [f for found in one.values() for f in found.files]
    assert len(set(files)) == 30 and one["test"].files == two["test"].files != other["test"].files


def test_a_table_names_pictures_labels_and_subsets(tmp_path):
    for i in range(4):
        save(tmp_path / "data" / f"{i}.png", NOISE[: 10 + i])
    with open(tmp_path / "set.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [["filename", " label", "subset"], ["0.png", "b", "train"], ["1.png", "a ", "validation"]]
            + [["2.png", "b", "val"], ["3.png", "a", "test"]]
        )
    found = images.open(f"csv:{tmp_path}/set.csv", split="val")
    assert found.class_names == ("a", "b") and found.labels_N.tolist() == [0, 1]
    assert found.groups["height"].tolist() == [11, 12]
    (tmp_path / "set_labels.csv").write_text("label\nz\nb\n")
    with pytest.raises(InputError, match=r"set.csv:3: label='a' is not one of: z, b"):
        images.open(f"csv:{tmp_path}/set.csv", split="val")


def test_a_table_calls_its_columns_what_it_likes_and_is_split_by_class_without_subsets(tmp_path):
    rows = [["texture", "picture", "subset of ten"]]
    for i in range(20):
        save(tmp_path / f"{i}.png", NOISE[: 10 + i])
        rows.append(["ab"[i % 2], f"{i}.png", "x"])
    with open(tmp_path / "set.csv", "w", newline="") as f:
        csv.writer(f).writerows(rows)
    options = dict(columns={"filename": "picture", "label": "texture", "subset": ""})
    open_all = {
        split: images.open(f"csv:{tmp_path}/set.csv", split=split, **options) for split in ("train", "val", "test")
    }
    assert {split: np.bincount(found.labels_N).tolist() for split, found in open_all.items()} == dict(
        train=[7] * 2, val=[1] * 2, test=[2] * 2
    )
    assert len({file for found in open_all.values() for file in found.files}) == 20
    for found in open_all.values():
        assert [int(pathlib.Path(file).stem) % 2 for file in found.files] == found.labels_N.tolist()
    with pytest.raises(
        InputError, match=r"lacks the column filename, label; .*data.columns.filename and data.columns.lab"
    ):
        images.open(f"csv:{tmp_path}/set.csv", split="val")
    with pytest.raises(InputError, match="lacks the column part; it has texture, picture"):
        images.open(f"csv:{tmp_path}/set.csv", split="val", columns=options["columns"] | {"subset": "part"})
    with pytest.raises(InputError, match="column='file' is not one of: filename"):
        images.open(f"csv:{tmp_path}/set.csv", split="val", columns={"file": "picture"})


def test_a_folder_in_the_place_of_a_table_is_refused_with_the_tables_in_it(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; .* write folder:<path>"):
        images.open(f"csv:{tmp_path}", split="val")
    (tmp_path / "set.csv").touch()
    with pytest.raises(InputError, match=r"is a folder; .*such as .*set.csv"):
        images.open(f"csv:{tmp_path}", split="val")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a\0b.png"])
def test_a_table_cannot_point_outside(tmp_path, name):
    (tmp_path / "set.csv").write_text(f"filename,label,subset\n{name},a,test\n")
    with pytest.raises(InputError, match="points outside"):
        images.open(f"csv:{tmp_path}/set.csv", split="test")


def test_arrays_open_without_pickle(tmp_path):
    x, y = np.arange(60 * 4 * 5, dtype=np.uint8).reshape(60, 4, 5), np.repeat([0, 1, 2], 20)
    np.savez(tmp_path / "a.npz", images=x, labels=y)
    found = images.open(f"npz:{tmp_path}/a.npz", split="test")
    assert len(found) == 12 and found.class_names == ("0", "1", "2")
    row = int(found.files[0].split("[")[1][:-1])
    assert np.array_equal(found.read(0), np.stack([x[row]] * 3, -1))
    np.savez(tmp_path / "b.npz", images=np.array([{}], object), labels=y[:1])
    with pytest.raises(InputError, match="plain arrays"):
        images.open(f"npz:{tmp_path}/b.npz", split="test")
    np.save(tmp_path / "b.npy", x)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(InputError, match="plain arrays"):
        images.open(f"npz:{tmp_path}/b.npz", split="test")
    np.savez(tmp_path / "c.npz", images=x.astype(float), labels=y)
    with pytest.raises(InputError, match="must be uint8"):
        images.open(f"npz:{tmp_path}/c.npz", split="test")


def test_real_digits_open(shared_data):
    file = next((shared_data / "image_mnist").glob("*.npz"))
    found = images.open(f"npz:{file}", split="test")
    assert 490 <= len(found) <= 510 and len(found.class_names) == 10 and found.read(0).shape == (28, 28, 3)


def test_a_builder_of_tensorflow_datasets_opens_with_its_class_names():
    tfds = pytest.importorskip("tensorflow_datasets")
    from data import sources

    with tfds.testing.mock_data(num_examples=12):
        found = images.open("tfds:cifar10", split="train")
        source = sources.open_source("cifar10", "test")
    assert len(source.names("label")) == 10 and source.names("id") is None and source.names("no_such") is None
    assert (
        found.class_names == source.names("label") and found.read(0).shape == (32, 32, 3) and found.size(0) == (32, 32)
    )
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("photos", {}, "source of pictures='photos' is not one of: museum, folder"),
        ("folder:", {}, "write folder:<path>"),
        ("folder:nowhere", {}, "nowhere is not there; give the path of the folder"),
        ("museum", {"per_clas": 3}, "nearest is 'per_class'"),
        ("museum", {"split": "dev"}, "split='dev' is not one of"),
        ("npz:nowhere.npz", {}, "is not there"),
        ("csv:nowhere.csv", {}, "is not there"),
    ],
)
def test_sources_that_are_none_are_refused_with_a_way_out(source, options, words):
    with pytest.raises(InputError, match=words):
        images.open(source, **options)


# -- files


def test_every_mode_becomes_rgb_and_is_counted(tmp_path):
    grey16 = (np.arange(256 * 4, dtype=np.uint16).reshape(32, 32) * 64).astype(np.uint16)
    grey = PIL.Image.fromarray(NOISE).convert("L")
    made = {
        "rgb.png": PIL.Image.fromarray(NOISE),
        "grey.png": grey,
        "deep.png": PIL.Image.fromarray(grey16),
        "palette.png": PIL.Image.fromarray(NOISE).convert("P"),
        "alpha.png": PIL.Image.fromarray(np.dstack([NOISE, np.zeros(NOISE.shape[:2], np.uint8)])),
        "print.jpg": PIL.Image.fromarray(NOISE).convert("CMYK"),
    }
    for name in ("a", "b"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
    for name, picture in made.items():
        picture.save(tmp_path / "test" / "a" / name, **({"quality": 95} if name.endswith("jpg") else {}))
    found = images.open(f"folder:{tmp_path}", split="test")
    read = {pathlib.Path(f).name: found.read(i) for i, f in enumerate(found.files)}
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in read.values())
    assert found.counts["converted from CMYK"] == found.counts["converted from RGBA"] == 1
    assert (
        found.counts["converted from P"] == found.counts["converted from L"] == found.counts["converted from I;16"] == 1
    )
    assert np.array_equal(read["grey.png"][..., 1], np.asarray(grey)) and np.array_equal(read["rgb.png"], NOISE)
    assert np.abs(read["deep.png"][..., 0] - grey16 / 257.0).max() <= 1  # scaled, not clipped
    assert (read["alpha.png"] == 255).all()  # transparent on white
    assert np.abs(read["print.jpg"].astype(int) - NOISE).mean() < 60


def test_files_cut_short_are_set_aside_with_their_name_and_many_stop(tmp_path):
    for i in range(60):
        save(tmp_path / "test" / "ab"[i % 2] / f"{i}.jpg")
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
    file = tmp_path / "test" / "a" / "8.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"1 of 60 .*8.jpg is cut short"):
        images.open(f"folder:{tmp_path}", split="test")
    found = images.open(f"folder:{tmp_path}", split="test", max_bad=0.05)
    assert len(found) == 59 and found.bad[0].file == str(file) and found.counts["set aside"] == 1
    file.write_bytes(b"hello")
    assert "not a picture" in images.open(f"folder:{tmp_path}", split="test", max_bad=0.05).bad[0].reason


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_reading_a_truncated_file_names_it(tmp_path, suffix):
    file = save(tmp_path / f"a.{suffix}")
    file.write_bytes(file.read_bytes()[:-300])
    for read in (image_files.read, image_files.header):
        with pytest.raises(InputError, match=rf"a\.{suffix}"):
            read(file)


def test_large_pictures_open_here_and_the_limit_of_pillow_stays(monkeypatch, tmp_path):
    limit = PIL.Image.MAX_IMAGE_PIXELS
    file = tmp_path / "large.png"
    PIL.Image.new("1", (20_000, 10_000)).save(file)  # more than Pillow lets through
    assert image_files.header(file).width == 20_000 and limit == PIL.Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(image_files, "MAX_PIXELS", 10_000)
    with pytest.raises(InputError, match="more than 10,000 pixels"):
        image_files.header(file)


def broken_inside(path, **options):
    """A file with a whole header and end, and noise in the middle that no decoder reads."""
    content = bytearray(save(path, **options).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 60] = bytes(60)
    path.write_bytes(content)


def test_pictures_that_fail_while_decoding_are_filling_in_one_pass_and_replaced_in_training(tmp_path):
    for split in ("train", "test"):
        for i in range(12):
            save(tmp_path / split / "ab"[i % 2] / f"{i}.png")
    broken_inside(tmp_path / "train" / "a" / "4.png")
    found = images.open(f"folder:{tmp_path}", split="train")
    bad = [i for i, f in enumerate(found.files) if f.endswith("4.png")]
    with pytest.warns(UserWarning, match=r"4.png cannot be decoded.*left out"):
        once = list(images.batches(found, shape=VIEW, train=False, batch_size=5, max_bad=0.1))
    seen = np.concatenate([b["index"][b["weights"] > 0] for b in once])
    assert sorted(seen) == sorted(set(range(12)) - set(bad))
    drawn = images.batches(found, shape=VIEW, train=True, batch_size=6, max_bad=0.1)
    with pytest.warns(UserWarning, match="left out"):
        first = [next(drawn) for _ in range(4)]
    assert all((b["weights"] == 1).all() and not set(bad) & set(b["index"]) for b in first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = images.batches(found, shape=VIEW, train=True, batch_size=6, max_bad=0.1)
        assert all(same(next(again), b) for b in first)
    with pytest.raises(InputError, match=r"1 of 12 pictures .* more than 1 %: .*4.png"):
        list(images.batches(found, shape=VIEW, train=False, batch_size=5))


# -- batches


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 3), st.booleans())
@settings(max_examples=30)
def test_endless_batches_show_each_picture_equally_often(counts, batch_size, seed, shuffle):
    ends = np.cumsum([0, *counts])
    members = tuple(np.arange(a, b) for a, b in itertools.pairwise(ends))
    plan = images.Endless(members, batch_size, seed, shuffle)
    total = ends[-1]
    seen = np.zeros(total, int)
    for k in range(total):  # batch_size epochs: whole for every shape
        bucket, rows, weights = plan.batch(k)
        assert len(rows) == batch_size and (weights == 1).all() and np.isin(rows, members[bucket]).all()
        np.add.at(seen, rows, 1)
    assert (seen == batch_size).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7))
@settings(max_examples=30)
def test_one_pass_has_each_picture_once(counts, batch_size):
    ends = np.cumsum([0, *counts])
    plan = images.OnePass(tuple(np.arange(a, b) for a, b in itertools.pairwise(ends)), batch_size, 0, False)
    found = [plan.batch(k) for k in range(plan.num_batches)]
    assert sorted(np.concatenate([rows[weights > 0] for _, rows, weights in found])) == list(range(ends[-1]))
    assert all(len(rows) == batch_size for _, rows, _ in found)


def test_a_batch_holds_what_it_says(pictures):
    batch = next(images.batches(pictures, shape=FREE, train=False, batch_size=4))
    assert {k: (str(v.dtype), v.ndim) for k, v in batch.items()} == {
        "images": ("uint8", 4), "mask": ("uint8", 3), "labels": ("int32", 1), "weights": ("float32", 1),
        "index": ("int32", 1),
    }  # fmt: skip
    assert batch["labels"].tolist() == pictures.labels_N[batch["index"]].tolist()
    for image, mask, i in zip(batch["images"], batch["mask"], batch["index"]):
        assert mask.sum() > 0 and not image[mask == 0].any()
        height, width = np.ptp(np.argwhere(mask), axis=0) + 1
        assert abs(width / height / np.divide(*pictures.size(i)) - 1) < 0.15


@pytest.mark.parametrize("shape", [VIEW, FREE])
def test_a_finite_pass_has_each_picture_once_starts_over_and_keeps_to_few_shapes(pictures, shape):
    held = images.batches(pictures, shape=shape, train=False, batch_size=5, multiple=8, most_shapes=3)
    for _ in range(2):
        found = list(held)
        assert len(found) == held.num_batches
        assert sorted(np.concatenate([b["index"][b["weights"] > 0] for b in found])) == list(range(len(pictures)))
        assert len({b["images"].shape for b in found}) <= (3 if shape is FREE else 1)


@pytest.mark.parametrize("shape", [VIEW, FREE])
def test_a_state_continues_with_exactly_the_next_batch(pictures, shape):
    make = lambda: images.batches(pictures, shape=shape, train=True, batch_size=4, seed=3)  # noqa: E731
    one = make()
    for _ in range(7):
        next(one)
    state = json.loads(json.dumps(one.get_state()))
    rest = [next(one) for _ in range(5)]
    two = make()
    next(two)
    two.set_state(state)
    assert all(same(next(two), batch) for batch in rest)


def test_seeds_differ_and_equal_seeds_do_not(pictures):
    make = lambda seed: index(images.batches(pictures, shape=VIEW, train=True, batch_size=4, seed=seed), 6)  # noqa: E731
    assert make(1) == make(1) != make(2)


@pytest.mark.parametrize("train", [True, False])
def test_processes_share_out_one_global_batch(pictures, train):
    make = lambda **kw: images.batches(pictures, shape=FREE, train=train, batch_size=6, **kw)  # noqa: E731
    whole, parts = make(), [make(process_index=p, process_count=3) for p in range(3)]
    for _ in range(4):
        batch, shares = next(whole), [next(part) for part in parts]
        assert same(batch, {k: np.concatenate([share[k] for share in shares]) for k in batch})


@pytest.mark.parametrize("option", [{"seed": -1}, {"num_workers": -1}, {"multiple": 0}, {"most_shapes": 0}])
def test_numbers_that_cannot_be_are_refused(pictures, option):
    with pytest.raises(InputError, match="must be at least"):
        images.batches(pictures, shape=FREE, train=True, batch_size=4, **option)


def test_uneven_batches_are_refused(pictures):
    with pytest.raises(InputError, match=r"batch_size=5 .* 4 would"):
        images.batches(pictures, shape=VIEW, train=True, batch_size=5, process_count=2)


SCRIPT = """
import hashlib, json
from data.pictures import images
if __name__ == "__main__":
    found = images.open("museum", split="train", per_class=2)
    loaders = [images.batches(found, shape=dict(pixels=400), train=True, batch_size=4, num_workers=n) for n in (0, 2)]
    states, sums = [], [[], []]
    for k in range(5):
        states.append(loaders[1].get_state())
        for out, loader in zip(sums, loaders):
            batch = next(loader)
            out.append(hashlib.sha1(b"".join(batch[n].tobytes() for n in sorted(batch))).hexdigest())
    loaders[1].set_state(json.loads(json.dumps(states[2])))
    batch = next(loaders[1])
    assert hashlib.sha1(b"".join(batch[n].tobytes() for n in sorted(batch))).hexdigest() == sums[1][2]
    assert sums[0] == sums[1] and len(set(sums[0])) == 5, sums
    print("equal", type(batch["images"]).__name__)
"""


def test_worker_processes_give_the_same_batches_and_end_silently(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = pathlib.Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=240,
        env={"PYTHONPATH": str(root), "PATH": "", "JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr, ran.returncode) == ("equal ndarray\n", "", 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_bytes_behind_a_picture_do_not_make_it_cut_short(tmp_path, suffix):
    whole = save(tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(whole + bytes(300))
    assert image_files.header(tmp_path / f"b{suffix}") == image_files.header(tmp_path / f"a{suffix}")
    (tmp_path / f"c{suffix}").write_bytes(whole[:-40])
    with pytest.raises(InputError, match="cut short"):
        image_files.header(tmp_path / f"c{suffix}")


def test_folders_that_programs_leave_are_no_classes_and_others_beside_splits_are_refused(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        save(tmp_path / name / "0.png")
    save(tmp_path / "train" / "a" / "._0.png")
    save(tmp_path / "train" / ".ipynb_checkpoints" / "0.png")
    save(tmp_path / "__MACOSX" / "0.png")
    found = images.open(f"folder:{tmp_path}", split="train")
    assert found.class_names == ("a", "b") and len(found) == 2
    save(tmp_path / "extra" / "a" / "0.png")
    with pytest.raises(InputError, match="splits and extra"):
        images.open(f"folder:{tmp_path}", split="train")


def test_a_batch_shape_whose_pictures_are_all_broken_is_filling_in_training_too(tmp_path):
    for i in range(3):
        save(tmp_path / "train" / "a" / f"{i}.png")
        save(tmp_path / "train" / "b" / f"{i}.png")
    broken_inside(tmp_path / "train" / "a" / "wide.png", picture=NOISE.reshape(8, 96, 3))
    found = images.open(f"folder:{tmp_path}", split="train")
    batches = images.batches(found, shape=dict(pixels=400), train=True, batch_size=1, max_bad=0.5)
    with pytest.warns(UserWarning, match="wide.png"):
        seen = [next(batches) for _ in range(14)]
    wide = [batch for batch in seen if found.files[batch["index"][0]].endswith("wide.png")]
    assert wide and all(batch["weights"] == 0 and not batch["images"].any() for batch in wide)

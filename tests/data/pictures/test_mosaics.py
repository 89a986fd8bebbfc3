import io
import json
import pathlib
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alignment.errors import InputError
from data.pictures import mosaic_files, mosaics

LABELS = np.repeat(np.arange(3), 5)
HEADER = "filename,filename_0,filename_1,filename_2,filename_3,label_0,label_1,label_2,label_3,target_class\n"


def pictures(num, size=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, channels), dtype=np.uint8)


# Planning


@given(st.lists(st.integers(1, 7), min_size=2, max_size=6), st.integers(1, 9), st.integers(0, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_class_is_the_target_as_often_and_on_exactly_two_tiles(sizes, per_class, seed, is_balanced):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    made = mosaics.plan(labels, per_class, seed, outer="balanced" if is_balanced else "with_replacement")
    np.testing.assert_array_equal(made.target, np.repeat(np.arange(len(sizes)), per_class))
    np.testing.assert_array_equal(made.tile_label, labels[made.tile_index])
    np.testing.assert_array_equal((made.tile_label == made.target[:, None]).sum(1), 2)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_target_images_are_used_equally_often_up_to_the_last_round(num_images, per_class, seed):
    labels = np.repeat([0, 1], [num_images, 4])
    made = mosaics.plan(labels, per_class, seed)
    uses = np.bincount(made.tile_index[:per_class][made.tile_label[:per_class] == 0], minlength=num_images)
    assert uses.sum() == 2 * per_class and uses.max() <= -(-2 * per_class // num_images)


@pytest.mark.parametrize(("num_classes", "share"), [(2, 200), (29, 8), (67, 4)])
def test_outer_images_are_drawn_evenly_and_without_replacement_as_the_sheet_counts(num_classes, share):
    labels = np.repeat(np.arange(num_classes), 200)
    made = mosaics.plan(labels, 100, 0)
    assert len(made) == 100 * num_classes
    first = made.tile_index[:100]
    outer = first[labels[first] != 0]
    assert len(outer) == 200 == len(set(outer.tolist()))
    assert np.bincount(labels[outer]).max() <= share


def test_outer_images_of_a_small_class_are_gone_through_before_any_comes_again():
    made = mosaics.plan(np.repeat([0, 1], [10, 3]), 3, 0)
    outer = made.tile_index[:3][made.tile_label[:3] == 1]
    assert sorted(outer.tolist()) == sorted([10, 11, 12] * 2)


def test_with_replacement_any_image_of_another_class_may_come_again():
    made = mosaics.plan(np.repeat([0, 1], [4, 40]), 20, 0, outer="with_replacement")
    outer = made.tile_index[:20][made.tile_label[:20] == 1]
    assert len(set(outer.tolist())) < 40


def test_target_pairs_take_all_six_places_about_equally_often():
    made = mosaics.plan(LABELS, 400, 0)
    places, counts = np.unique(made.tile_label == made.target[:, None], axis=0, return_counts=True)
    assert len(places) == 6
    np.testing.assert_allclose(counts, 200, atol=45)  # 1200 mosaics; three standard deviations are 39


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_plan_and_zero_is_a_seed(seed):
    one, again, other = (mosaics.plan(LABELS, 4, s).tile_index for s in (seed, seed, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (np.zeros(4, int), {}, "at least one other"),
        (np.array([0, 2]), {"num_classes": 3}, "class 1 has no image"),
        (np.array([0, 3]), {"num_classes": 0, "per_class": 0}, "per_class=0"),
        (np.array([0, 1, 2]), {"num_classes": 2}, "label 2 is not one of the 2 classes"),
        (np.array([0, -1]), {}, "label -1 is not a class"),
        (np.array([0.0, 1.0]), {}, "must be integers"),
        (np.array([0, 1]), {"outer": "some"}, "outer='some'"),
        (np.array([0, -1]), {}, "label -1"),
    ],
)
def test_labels_that_no_mosaic_can_be_built_from_are_refused(labels, options, said):
    with pytest.raises(InputError, match=said):
        mosaics.plan(labels, **options)


# Building and writing


def test_tiles_equal_their_sources_bit_for_bit_in_row_major_order():
    images = pictures(15)
    plan = mosaics.plan(LABELS, 3, 0)
    made = mosaics.assemble(images, plan.tile_index)
    assert made.shape == (9, 12, 12, 3) and made.dtype == np.uint8
    for mosaic, tiles in zip(made, plan.tile_index):
        for position, (y, x) in enumerate([(0, 0), (0, 6), (6, 0), (6, 6)]):
            np.testing.assert_array_equal(mosaic[y : y + 6, x : x + 6], images[tiles[position]])
    np.testing.assert_array_equal(plan.tile_label, LABELS[plan.tile_index])


def test_a_tile_is_resized_without_keeping_its_shape_and_cropped_in_the_middle():
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, 45:] = 200
    made = mosaics.tile(image, resize=16, crop=8)
    assert made.shape == (8, 8, 3) and (made[:, :3] < 20).all() and (made[:, 5:] > 180).all()
    with pytest.raises(InputError, match="cannot be cut out"):
        mosaics.tile(image, resize=8, crop=9)


def test_only_the_images_of_a_plan_are_read():
    read = []

    def read_fn(i):
        read.append(i)
        return np.full((10, 20, 3), i, np.uint8)

    index = np.array([[7, 3, 3, 9]])
    made, local = mosaics.tiles(read_fn, index, resize=8, crop=4)
    assert read == [3, 7, 9] and made.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(made[local][0, :, 0, 0, 0], index[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_written_mosaics_come_back_bit_for_bit(tmp_path, channels):
    images = pictures(15, channels=channels)
    made = mosaics.plan(LABELS, 2, 0)
    written = mosaics.assemble(images, made.tile_index)
    mosaics.write(tmp_path, written, made, names=[f"{i}.jpg" for i in range(15)])
    back = mosaic_files.read(tmp_path, num_classes=3)
    assert len(back) == 6 and back.size == (12, 12) and back.counts["mosaics set aside"] == 0
    np.testing.assert_array_equal(back.tile_label, made.tile_label)
    np.testing.assert_array_equal(back.target, made.target)
    assert back.tile_files[0] == tuple(f"{i}.jpg" for i in made.tile_index[0])
    for k in range(6):
        np.testing.assert_array_equal(back.read(k), np.broadcast_to(written[k], (12, 12, 3)))


def test_mosaics_that_are_not_bytes_are_not_written(tmp_path):
    made = mosaics.plan(LABELS, 1, 0)
    images = mosaics.assemble(pictures(15, size=16), made.tile_index)
    with pytest.raises(InputError, match="uint8"):
        mosaics.write(tmp_path, images.astype(np.float32), made)


# The authors' folders


def jpeg(size=8, value=100, mode="RGB"):
    out = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).convert(mode).save(out, format="JPEG")
    return out.getvalue()


def row(k, labels=(7, 2, 5, 7), target=7):
    names = [f"data/n{i}.JPEG" for i in range(4)]
    return ",".join(map(str, [f"{k}.jpg", *names, *labels, target])) + "\n"


def folder_of(path, rows, images=None, name="ilsvrc.csv"):
    (path / "data").mkdir(parents=True)
    (path / name).write_text(HEADER + "".join(rows))
    for k in range(len(rows)):
        (path / "data" / f"{k}.jpg").write_bytes((images or {}).get(k, jpeg(value=10 * k)))
    return path


def zip_of(path, folder, extra=None):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"ilsvrc2012_mosaic/{file.relative_to(folder).as_posix()}")
        for entry, content in (extra or {}).items():
            archive.writestr(entry, content)
    return path


@pytest.mark.parametrize("is_zip", [False, True])
def test_a_ready_made_folder_and_its_zip_are_read_in_place(tmp_path, is_zip):
    path = folder_of(tmp_path / "mosaics", [row(0), row(1, (2, "7.0", 7, 5))])
    if is_zip:
        path = zip_of(tmp_path / "ilsvrc2012_mosaic.zip", path)
    before = sorted(tmp_path.rglob("*"))
    found = mosaic_files.read(path)
    np.testing.assert_array_equal(found.tile_label, [[7, 2, 5, 7], [2, 7, 7, 5]])
    np.testing.assert_array_equal(found.target, [7, 7])
    assert found.files == ("0.jpg", "1.jpg") and found.tile_files[0][3] == "data/n3.JPEG"
    assert found.read(1).shape == (8, 8, 3) and found.read(1).mean() == pytest.approx(10, abs=2)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pictures_of_other_kinds_become_rgb(tmp_path, mode):
    found = mosaic_files.read(folder_of(tmp_path / "m", [row(0)], {0: jpeg(mode=mode)}))
    assert found.read(0).shape == (8, 8, 3)


BAD_ROWS = {
    "no integer": (row(1, (7, "cat", 5, 7)), None),
    "a fraction": (row(1, (7, 2.5, 5, 7)), None),
    "no class": (row(1, (7, -2, 5, 7)), None),
    "past the classes": (row(1, (7, 2000, 5, 7)), None),
    "no picture": (row(99), None),
    "outside": (row("../0"), None),
    "truncated": (row(1), jpeg(64)[:400]),
    "no image at all": (row(1), b"hello"),
    "another size": (row(1), jpeg(10)),
}


@pytest.mark.parametrize("name", list(BAD_ROWS))
def test_rows_that_cannot_be_used_are_set_aside_with_file_and_line(tmp_path, name):
    text, picture = BAD_ROWS[name]
    path = folder_of(tmp_path / "m", [row(0), text, row(2)], {1: picture} if picture else {})
    found = mosaic_files.read(path, max_bad=0.5, num_classes=1000)
    assert found.files == ("0.jpg", "2.jpg") and found.counts == {"mosaics": 2, "mosaics set aside": 1}
    (bad,) = found.set_aside
    assert bad.file.endswith("ilsvrc.csv") and bad.line == 3 and bad.reason
    with pytest.raises(InputError, match=r"1 of 3 lines .*ilsvrc\.csv:3"):
        mosaic_files.read(path, num_classes=1000)


@pytest.mark.parametrize(("labels", "num"), [((7, 2, 5, 1), 1), ((7, 7, 7, 1), 3), ((1, 2, 3, 4), 0)])
def test_another_number_of_targets_than_two_is_refused_with_its_line(tmp_path, labels, num):
    path = folder_of(tmp_path / "m", [row(0), row(1, labels)])
    with pytest.raises(InputError, match=rf"csv:3: the target 7 is on {num} of the tiles"):
        mosaic_files.read(path)
    if num:
        assert len(mosaic_files.read(path, allow_any=True)) == 2
    else:
        with pytest.raises(InputError, match="is on 0"):
            mosaic_files.read(path, allow_any=True)


@pytest.mark.parametrize("entry", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "C:\\evil.jpg", "..\\evil.jpg"])
def test_a_zip_whose_entries_point_outside_is_refused(tmp_path, entry):
    path = zip_of(tmp_path / "m.zip", folder_of(tmp_path / "m", [row(0)]), {entry: b"x"})
    with pytest.raises(InputError, match="points outside its folder"):
        mosaic_files.read(path)


def test_a_zip_with_a_link_is_refused(tmp_path):
    path = zip_of(tmp_path / "m.zip", folder_of(tmp_path / "m", [row(0)]))
    link = zipfile.ZipInfo("ilsvrc2012_mosaic/data/9.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="is a link"):
        mosaic_files.read(path)


def test_folders_that_are_none_are_refused_with_what_they_lack(tmp_path):
    with pytest.raises(InputError, match="no mosaic folder or zip"):
        mosaic_files.read(tmp_path / "nowhere")
    (tmp_path / "m.zip").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="not a zip file"):
        mosaic_files.read(tmp_path / "m.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no CSV files"):
        mosaic_files.read(tmp_path / "empty")
    path = folder_of(tmp_path / "cut", [])
    (path / "ilsvrc.csv").write_text(HEADER.replace("filename_2,", "").replace(",target_class", ""))
    with pytest.raises(InputError, match="lacks the columns filename_2, target_class"):
        mosaic_files.read(path)
    with pytest.raises(InputError, match="has no mosaics"):
        mosaic_files.read(folder_of(tmp_path / "none", []))


def test_ready_made_mosaics_are_cut_into_tiles_that_make_them_again(tmp_path):
    made = mosaics.plan(LABELS, 2, 0)
    written = mosaics.assemble(pictures(15), made.tile_index)
    mosaics.write(tmp_path / "even", written, made)
    tiles = mosaic_files.cut(mosaic_files.read(tmp_path / "even"))
    np.testing.assert_array_equal(tiles, pictures(15)[made.tile_index].reshape(-1, 6, 6, 3))
    np.testing.assert_array_equal(mosaics.assemble(tiles, np.arange(len(tiles)).reshape(-1, 4)), written)
    mosaics.write(tmp_path / "odd", written[:, :11], made)
    with pytest.raises(InputError, match="11 x 12 pixels"):
        mosaic_files.cut(mosaic_files.read(tmp_path / "odd"))


def test_a_torn_row_of_our_own_table_is_set_aside(tmp_path):
    made = mosaics.plan(LABELS, 2, 0)
    table = pathlib.Path(mosaics.write(tmp_path, mosaics.assemble(pictures(15), made.tile_index), made))
    rows = table.read_text().splitlines()
    assert json.loads(rows[0])["labels"] == made.tile_label[0].tolist()
    table.write_text("\n".join([*rows[:3], '{"filename": "3.png", "lab']))
    found = mosaic_files.read(tmp_path, max_bad=0.5)
    assert len(found) == 3 and found.set_aside[0].line == 4

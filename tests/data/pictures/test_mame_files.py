import csv
import pathlib
import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest

from alignment.errors import InputError
from data.pictures import images, mame

MEDIUMS = ("Albumen photograph", "Bronze", "Woven fabric")
SHAPES = ((40, 30), (30, 50), (64, 64))
NUM = {"train": 4, "val": 1, "test": 2}  # of each medium


def table(path, rows, columns=mame.COLUMNS):
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def make_folder(root, *, copy=False):
    """A folder of the download's layout: 21 pictures of 3 media, pixel values telling label and number."""
    folder = root / ("data_256" if copy else "data")
    folder.mkdir(parents=True)
    rows = []
    for subset, num in NUM.items():
        for i in range(num):
            for label, (medium, (width, height)) in enumerate(zip(MEDIUMS, SHAPES)):
                name = f"{subset}_{label}_{i}.jpg"
                size = (256, 256) if copy else (width, height)
                PIL.Image.new("RGB", size, (60 * label + 20, 10 * i, 128)).save(folder / name, quality=95)
                rows.append({
                    "Image file": name,
                    "Medium": "Woven fabric " if medium == "Woven fabric" else medium,  # as the real table has it
                    "Museum": ("North", "South")[i % 2],
                    "Museum-based instance ID": "29.1" if name in ("train_0_0.jpg", "test_0_0.jpg") else name,
                    "Subset": subset,
                    "Width": f"{float(width)}",
                    "Height": f"{float(height)}",
                    "Product size": f"{float(width * height)}",
                    "Aspect ratio": f"{width / height:.4f}",
                })  # fmt: skip
    table(root / mame.TABLE, rows)
    table(root / mame.TOY, [row for row in rows if row["Image file"].endswith("_0.jpg")])
    (root / mame.LABELS).write_text("".join(f"{i},{name}\n" for i, name in enumerate(MEDIUMS)))
    return rows


def zip_up(archive, files, prefix=""):
    with zipfile.ZipFile(archive, "w") as f:
        for file in files:
            f.write(file, prefix + file.name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mame")
    make_folder(root)
    return root


@pytest.fixture
def own(root, tmp_path):
    """A copy to break."""
    return pathlib.Path(shutil.copytree(root, tmp_path / "mame"))


def rewrite(root, change):
    with open(root / mame.TABLE, newline="") as f:
        rows = list(csv.DictReader(f))
    change(rows)
    table(root / mame.TABLE, rows)


def test_a_download_opens_by_subset_with_names_stripped_and_numbered_as_the_labels_file(root):
    for split, num in NUM.items():
        found = images.open(f"mame:{root}", split=split)
        assert len(found) == 3 * num and found.class_names == MEDIUMS and found.labels_N.dtype == np.int32
        for i in range(len(found)):
            label, size = found.labels_N[i], SHAPES[found.labels_N[i]]
            assert found.size(i) == size and found.read(i).shape == (size[1], size[0], 3)
            assert abs(int(found.read(i)[0, 0, 0]) - (60 * label + 20)) < 4
    assert found.counts["museum ids in several subsets"] == 1 and found.counts["size is not the table's"] == 0
    assert len(images.open(f"mame:{root}", split="train", toy=True)) == 3


def test_archives_are_read_without_unpacking(root, tmp_path):
    zip_up(tmp_path / "MAMe_metadata.zip", [root / mame.TABLE, root / mame.LABELS], "MAMe_metadata/")
    zip_up(tmp_path / "MAMe_data.zip", sorted((root / "data").iterdir()), "data/")
    with pytest.raises(InputError, match=r"MAMe_metadata.zip has the md5 sum .* published one 0bca"):
        images.open(f"mame:{tmp_path}", split="test")
    before = sorted(p.name for p in tmp_path.iterdir())
    packed = images.open(f"mame:{tmp_path}", split="test", checksums=False)
    plain = images.open(f"mame:{root}", split="test")
    assert all(np.array_equal(packed.read(i), plain.read(i)) for i in range(len(plain)))
    assert packed.class_names == plain.class_names and np.array_equal(packed.labels_N, plain.labels_N)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_right_checksum_is_remembered_until_the_archive_changes(tmp_path, monkeypatch):
    archive = tmp_path / "MAMe_data.zip"
    archive.write_bytes(b"abc")
    monkeypatch.setitem(mame.MD5, "MAMe_data.zip", "900150983cd24fb0d6963f7d28e17f72")
    mame.check_md5(archive)
    assert (tmp_path / "MAMe_data.zip.md5").read_text() == "900150983cd24fb0d6963f7d28e17f72  MAMe_data.zip\n"
    archive.write_bytes(b"abd")
    (tmp_path / "MAMe_data.zip.md5").unlink()
    with pytest.raises(InputError, match="md5"):
        mame.check_md5(archive)


@pytest.mark.parametrize("entry", ["../out.jpg", "/etc/out.jpg", "data/../../out.jpg", "C:/out.jpg", "..\\out.jpg"])
def test_an_archive_that_points_outside_is_refused(root, own, entry):
    shutil.rmtree(own / "data")
    with zipfile.ZipFile(own / "MAMe_data.zip", "w") as f:
        f.writestr(entry, b"x")
    with pytest.raises(InputError, match="points outside"):
        images.open(f"mame:{own}", split="test", checksums=False)


def test_a_file_name_of_the_table_that_points_outside_is_refused(own):
    rewrite(own, lambda rows: rows[0].update({"Image file": "../MAMe_labels.csv"}))
    with pytest.raises(InputError, match="not the name of a file"):
        images.open(f"mame:{own}", split="train")


def test_missing_pictures_are_named_up_to_twenty_or_counted(own):
    for name in ("test_0_0.jpg", "test_1_1.jpg"):
        (own / "data" / name).unlink()
    with pytest.raises(InputError, match=r"2 of 6 pictures .* test_0_0.jpg, test_1_1.jpg; .*allow_missing"):
        images.open(f"mame:{own}", split="test")
    found = images.open(f"mame:{own}", split="test", allow_missing=True)
    assert len(found) == 4 and found.counts["missing"] == 2 and "test_0_0.jpg" not in " ".join(found.files)
    rewrite(own, lambda rows: rows.extend([{**rows[0], "Image file": f"gone_{i}.jpg"} for i in range(25)]))
    with pytest.raises(InputError) as e:
        images.open(f"mame:{own}", split="train")
    assert "25 of 37" in str(e.value) and str(e.value).count("gone_") == 20


def test_missing_columns_are_named(own):
    rows = [{"Image file": "a.jpg", "Medium": "Bronze"}]
    table(own / mame.TABLE, rows, [c for c in mame.COLUMNS if c not in ("Museum", "Aspect ratio")])
    with pytest.raises(InputError, match="lacks the column Museum, Aspect ratio; it has Image file"):
        mame.catalogue(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Medium": "Bronz"}, r"csv:2: Medium='Bronz' is not one of.*the nearest is 'Bronze'"),
        ({"Subset": "dev"}, r"csv:2: Subset='dev' is not one of: train, val, test"),
        ({"Width": "wide"}, r"csv:2: Width is 'wide'"),
        ({"Height": "nan"}, r"csv:2: Height is 'nan'"),
        ({"Image file": "train_1_0.jpg"}, r"csv:3: 'train_1_0.jpg' is also on line 2"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_a_way_out(own, change, words):
    rewrite(own, lambda rows: rows[0].update(change))
    with pytest.raises(InputError, match=words):
        mame.catalogue(own)


def test_the_labels_file_decides_the_numbers_and_must_count_from_zero(own):
    (own / mame.LABELS).write_text("1,Albumen photograph\n0,Woven fabric\n2,Bronze\n")
    assert images.open(f"mame:{own}", split="val").class_names == ("Woven fabric", "Albumen photograph", "Bronze")
    (own / mame.LABELS).write_text("1,Albumen photograph\n2,Woven fabric\n3,Bronze\n")
    with pytest.raises(InputError, match="from 0"):
        mame.catalogue(own)
    (own / mame.LABELS).unlink()
    assert mame.catalogue(own)[1] == MEDIUMS


def test_another_size_than_the_table_says_is_told_and_counted(own):
    PIL.Image.new("RGB", (10, 20)).save(own / "data" / "test_1_0.jpg")
    with pytest.warns(
        UserWarning, match=r"1 of 6 pictures have another size .*test_1_0.jpg: \(10, 20\) and \(30, 50\)"
    ):
        found = images.open(f"mame:{own}", split="test")
    assert found.counts["size is not the table's"] == 1


@pytest.mark.parametrize("folder", ["data_256", "data"])
def test_the_small_copy_serves_one_version_and_keeps_the_true_sizes(tmp_path, folder):
    make_folder(tmp_path, copy=True)
    (tmp_path / "data_256").rename(tmp_path / folder)
    found = images.open(f"mame:{tmp_path}", split="test")
    assert found.size(0) == (256, 256) and found.groups["width"].tolist() == [40, 30, 64] * 2
    assert mame.metadata_features(found)["aspect_ratio"][1] == 0.6
    for version in ("R65k-VS", "R360k-VS", "R360k-FS"):
        with pytest.raises(InputError, match=f"serves R65k-FS, not {version}"):
            images.open(f"mame:{tmp_path}", split="test", version=version)


def test_versions_are_those_of_the_paper_and_the_release_bug_is_an_option():
    assert mame.shape("R360k-FS") == dict(resize=600, crop=525)
    assert mame.shape("R360k-VS") == dict(pixels=360_000, crop=0.875)
    assert mame.shape("R360k-VS", replicate_release_bug=True)["pixels"] == 65_536
    assert mame.shape("R65k-FS", replicate_release_bug=True) == mame.VERSIONS["R65k-FS"]
    with pytest.raises(InputError, match="nearest is 'R360k-VS'"):
        mame.shape("R360-VS")


def test_what_is_missing_of_the_download_is_named(tmp_path):
    with pytest.raises(InputError, match=r"neither MAMe_dataset.csv nor MAMe_metadata.zip"):
        images.open(f"mame:{tmp_path}", split="test")
    table(tmp_path / mame.TABLE, [])
    with pytest.raises(InputError, match=r"data/ or MAMe_data.zip, data_256/ or MAMe_data_256.zip"):
        images.open(f"mame:{tmp_path}", split="test")
    with pytest.raises(InputError, match="nearest is 'version'"):
        images.open(f"mame:{tmp_path}", split="test", verson="R65k-VS")


@pytest.mark.parametrize("version", mame.VERSIONS)
def test_every_version_gives_its_batches(root, version):
    found = images.open(f"mame:{root}", split="test", version=version)
    for batch in images.batches(found, shape=mame.shape(version), train=False, batch_size=4):
        height, width = batch["images"].shape[1:3]
        if version.endswith("FS"):
            assert (height, width) == ({"R65k": 224, "R360k": 525}[version[:-3]],) * 2 and "mask" not in batch
        else:
            assert height % 32 == width % 32 == 0 and batch["mask"].shape == batch["images"].shape[:3]


def test_a_truncated_picture_in_an_archive_is_named(own):
    noise = np.random.default_rng(0).integers(256, size=(50, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(own / "data" / "test_1_0.jpg")
    content = (own / "data" / "test_1_0.jpg").read_bytes()
    zip_up(own / "MAMe_data.zip", [p for p in sorted((own / "data").iterdir()) if p.name != "test_1_0.jpg"], "data/")
    with zipfile.ZipFile(own / "MAMe_data.zip", "a") as f:
        f.writestr("data/test_1_0.jpg", content[: len(content) * 3 // 4])
    shutil.rmtree(own / "data")
    found = images.open(f"mame:{own}", split="test", checksums=False)
    with pytest.raises(InputError, match=r"MAMe_data.zip/data/test_1_0.jpg cannot be decoded"):
        found.read(1)


def test_the_prepared_builder_gives_the_same_pictures_and_what_is_known_of_them(root, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from data.pictures import mame_builder

    place = mame_builder.prepare(str(root), data_dir=str(tmp_path))
    plain = images.open(f"mame:{root}", split="test")
    for source in (f"tfds:{place}", "tfds:mame/full"):
        stored = images.open(source, split="test", data_dir=str(tmp_path))
        rows = [[pathlib.Path(f).name for f in plain.files].index(name) for name in stored.groups["file"]]
        assert sorted(rows) == list(range(6)) and stored.class_names == MEDIUMS
        assert stored.labels_N.tolist() == plain.labels_N[rows].tolist()
        assert all(stored.groups[k].tolist() == plain.groups[k][rows].tolist() for k in ("museum", "width", "height"))
        assert all(np.array_equal(stored.read(i), plain.read(row)) for i, row in enumerate(rows))
    assert (
        len(images.open(f"tfds:{place}", split="val")) == 3 and len(images.open(f"tfds:{place}", split="train")) == 12
    )
    assert "tensorflow" not in __import__("sys").modules

"""What a set of pictures is made of: hashes of them, copies between splits, and files that nobody reads."""

import csv
import json
import os
import zipfile

import numpy as np
import PIL.Image
import pytest

from alignment.errors import InputError
from data.pictures import image_files, image_sources, images

VIEW = dict(resize=8, crop=8)


def save(path, number=0, side=10):
    """A picture of noise from a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(256, size=(side, side, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    return path


def folder(root, num=3):
    """Two classes below three splits, no picture like another."""
    for s, split in enumerate(image_sources.SPLITS):
        for k, name in enumerate(("elm", "oak")):
            for i in range(num):
                save(root / split / name / f"{i}.png", 100 * s + 10 * k + i)
    return f"folder:{root}"


def table(root):
    rows = [(f"{i}.png", "elm" if i % 2 else "oak", "train" if i < 4 else "test") for i in range(6)]
    for i, row in enumerate(rows):
        save(root / row[0], i)
    with open(root / "set.csv", "w", newline="") as f:
        csv.writer(f).writerows([("filename", "label", "subset"), *rows])
    return f"csv:{root}/set.csv"


def arrays(root):
    pictures = np.random.default_rng(0).integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
    np.savez(root / "set.npz", images=pictures, labels=np.arange(20) % 2)
    return f"npz:{root}/set.npz"


def change_file(root):
    save(next(iter(sorted((root).rglob("*.png")))) if not (root / "train").is_dir() else root / "train/elm/1.png", 999)


def change_label(root):
    if (root / "train").is_dir():
        (root / "train/elm/2.png").rename(root / "train/oak/2b.png")
    else:
        text = (root / "set.csv").read_text()
        (root / "set.csv").write_text(text.replace("2.png,oak", "2.png,elm"))


def change_pixel(root):
    from data.pictures import image_arrays

    with np.load(root / "set.npz") as stored:
        pictures, labels = stored["images"], stored["labels"]
    pictures[:, 4, 4] ^= 1
    np.savez(root / "set.npz", images=pictures, labels=labels)
    image_arrays._arrays.cache_clear()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (folder, change_file),
        (folder, change_label),
        (table, change_file),
        (table, change_label),
        (arrays, change_pixel),
    ],
)
def test_a_position_in_pictures_that_have_changed_is_refused(tmp_path, make, change):
    source = make(tmp_path)

    def loader():
        return images.batches(images.open(source, split="train"), shape=VIEW, train=True, batch_size=2)

    before = loader()
    next(before)
    state = json.loads(json.dumps(before.get_state()))
    again = loader()
    again.set_state(state)
    change(tmp_path)
    with pytest.raises(InputError, match="the data has changed since this run began"):
        loader().set_state(state)


def test_a_position_is_refused_too_where_another_split_has_changed(tmp_path):
    source = folder(tmp_path)

    def loader():
        train, val = (images.open(source, split=split) for split in ("train", "val"))
        return images.batches(train, shape=VIEW, train=True, batch_size=2, beside=(val,))

    state = loader().get_state()
    save(tmp_path / "test/elm/0.png", 998)
    loader().set_state(state)
    save(tmp_path / "val/elm/0.png", 999)
    with pytest.raises(InputError, match="the data has changed"):
        loader().set_state(state)


def test_a_picture_in_another_folder_or_archive_has_the_same_hash_and_another_has_not(tmp_path):
    files = [save(tmp_path / f"{i}.png", number) for i, number in enumerate((1, 1, 2))]
    on_disk = image_sources.FileRead(tuple(map(str, files)))
    assert on_disk.digest(0) == on_disk.digest(1) != on_disk.digest(2)
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in files:
                archive.write(file, file.name)
    one, other = (image_sources.ZipRead(str(tmp_path / f"{n}.zip"), tuple(f.name for f in files)) for n in "ab")
    assert [one.digest(i) for i in range(3)] == [other.digest(i) for i in range(3)]
    assert one.digest(0) == one.digest(1) != one.digest(2)
    drawn = [images.open("museum", split=split, per_class=2).digests_N.tolist() for split in image_sources.SPLITS]
    assert len({number for split in drawn for number in split}) == 3 * 16


@pytest.mark.parametrize("size", [0, 100, image_files.WHOLE, image_files.WHOLE + 1, 5 * image_files.WHOLE])
def test_the_start_the_end_and_the_length_of_a_file_reach_its_hash(tmp_path, size):
    content = np.random.default_rng(0).bytes(size)
    variants = [content, content + b"x", b"x" + content]
    if size:
        variants += [b"x" + content[1:], content[:-1] + b"x"]
    (tmp_path / "copy").write_bytes(content)
    digests = []
    for i, variant in enumerate(variants):
        (tmp_path / str(i)).write_bytes(variant)
        digests.append(image_files.digest(tmp_path / str(i)))
    assert len(set(digests)) == len(set(variants)) and digests[0] == image_files.digest(tmp_path / "copy")


def test_copies_between_splits_are_found_whatever_they_are_called(tmp_path):
    source = folder(tmp_path)
    (tmp_path / "test/oak/9.png").write_bytes((tmp_path / "train/elm/0.png").read_bytes())
    (tmp_path / "test/oak/1.png").write_bytes((tmp_path / "val/oak/1.png").read_bytes())
    train, val, test = (images.open(source, split=split) for split in image_sources.SPLITS)
    assert images.copies(test, [train, val]).tolist() == [False] * 4 + [True, False, True]
    assert images.copies(test, [train]).sum() == 1 and not images.copies(val, [train]).any()


def test_pictures_that_lie_in_two_classes_are_counted(tmp_path):
    source = folder(tmp_path)
    assert images.num_in_two_classes([images.open(source, split=split) for split in image_sources.SPLITS]) == 0
    for name in ("train/oak/8.png", "test/elm/9.png", "test/oak/9.png"):
        (tmp_path / name).write_bytes((tmp_path / "train/elm/0.png").read_bytes())
    splits = [images.open(source, split=split) for split in image_sources.SPLITS]
    assert images.num_in_two_classes(splits) == 4 and images.num_in_two_classes(splits[:1]) == 2


@pytest.mark.parametrize("has_splits", [True, False])
def test_files_among_the_pictures_that_are_not_read_are_counted_by_kind(tmp_path, has_splits):
    root = tmp_path / "set"
    source = folder(tmp_path / "set" if has_splits else tmp_path / "x", num=10)
    if not has_splits:
        source, _ = f"folder:{root}", (tmp_path / "x/train").rename(root)
    base = root / "train" if has_splits else root
    for name in ("elm/a.HEIC", "elm/b.heic", "oak/deep/c.svg", "oak/raw", "notes.txt", "d.png"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"?")
    for name in ("elm/._a.png", "elm/.ipynb_checkpoints/0.png", ".DS_Store"):
        save(base / "elm/hidden.png").rename(base / (name if "/" not in name else "elm/._x.png"))
    os.symlink(base / "nowhere.png", base / "oak/link.png")
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere/linked.png", 77)
    os.symlink(tmp_path / "elsewhere", base / "oak/more")
    opened = [images.open(source, split=split) for split in image_sources.SPLITS[: 1 if has_splits else 3]]
    assert any(str(file).endswith("more/linked.png") for part in opened for file in part.files)
    counts = image_sources.count_unread(file for part in opened for file in part.unread)
    by_kind = {what.removeprefix("files that are not read: ").partition(",")[0]: n for what, n in counts.items()}
    assert by_kind == {
        ".heic": 2,
        ".svg": 1,
        ".txt": 1,
        "names without an ending": 1,
        "links that lead nowhere": 1,
        "pictures outside the folder of a class": 1,
    }
    assert any(what.endswith("such as " + str(base / "elm/a.HEIC")) for what in counts)


def test_a_folder_of_kinds_that_are_not_read_says_which(tmp_path):
    for name in ("elm", "oak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.heic").write_bytes(b"?")
    with pytest.raises(InputError, match=r"no pictures in the split 'train'; files that are not read: \.heic \(2\)"):
        images.open(f"folder:{tmp_path}", split="train")

"""Tables of pictures with rows that cannot be used, and files whose values are not bytes."""

import csv
import warnings

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from alignment.errors import InputError
from data.pictures import image_files, image_tables, images

NOISE = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)


def save(path, picture=NOISE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(picture).save(path, **options)
    return path


def table(folder, rows, header=("filename", "label", "subset")):
    for row in rows:
        save(folder / row[0])
    with open(folder / "set.csv", "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])
    return f"csv:{folder}/set.csv"


FINE = [("a.png", "oak", "train"), ("b.png", "elm", "train"), ("c.png", "oak", "test"), ("d.png", "elm", "test")]


@pytest.mark.parametrize("label", ["", " ", "nan", "NaN", "null", "N/A"])
def test_rows_without_a_label_are_set_aside_with_their_line(tmp_path, label):
    source = table(tmp_path, [*FINE, ("e.png", label, "train")])
    opened = images.open(source, split="train", max_bad=0.5)
    assert opened.class_names == ("elm", "oak") and len(opened) == 2 and opened.counts["set aside"] == 1
    assert opened.bad[0].line == 6 and "e.png has no label" in opened.bad[0].reason
    with pytest.raises(InputError, match=r"set\.csv:6: e\.png has no label"):
        images.open(source, split="train")
    assert not images.open(source, split="test").bad
    source = table(tmp_path, [(*row[:2],) for row in FINE] + [("e.png", label)], header=("filename", "label"))
    assert len(images.open(source, split="train", max_bad=0.5).bad) == 1


def test_a_class_that_is_called_nan_is_one_where_the_labels_file_lists_it(tmp_path):
    source = table(tmp_path, [*FINE, ("e.png", "nan", "train")])
    (tmp_path / "set_labels.csv").write_text("label\nelm\nnan\noak\n")
    assert images.open(source, split="train").labels_N.tolist() == [2, 0, 1]


@pytest.mark.parametrize("word", ["holdout", "eval", "", "nan", "fold 3"])
def test_a_subset_that_is_none_is_refused_with_its_line(tmp_path, word):
    source = table(tmp_path, [*FINE, ("e.png", "oak", word)])
    with pytest.raises(InputError, match=r"set.csv:6: subset='.*' is not one of train, val, test"):
        images.open(source, split="train")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("a.png", "oak", "test"), "has the subsets 'train' and 'test', here and in line 2"),
        (("./a.png", "oak", "test"), "has the subsets 'train' and 'test', here and in line 2"),
        (("a.png", "elm", "train"), "has the labels 'oak' and 'elm', here and in line 2"),
    ],
)
def test_a_file_with_two_labels_or_in_two_subsets_is_refused(tmp_path, row, said):
    source = table(tmp_path, [*FINE, row])
    for split in ("train", "test"):
        with pytest.raises(InputError, match=rf"set.csv:6: .*a.png {said}"):
            images.open(source, split=split)


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"t\.csv has two columns 'label'"):
        image_tables.parse_table(b"filename,label, label\na.png,oak,elm\n", "t.csv", ["filename", "label"])


def test_a_file_that_is_listed_twice_is_read_once(tmp_path):
    opened = images.open(table(tmp_path, [*FINE, FINE[0]]), split="train", max_bad=0.5)
    assert len(opened) == 2 and opened.bad[0].line == 6 and "line 2 already" in opened.bad[0].reason


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((RAMP * 255).astype(np.int32), "255 as white"),
        ((RAMP * 4095).astype(np.uint16), "4095 as white"),
        ((RAMP * 1023).astype(np.uint16), "1023 as white"),
        ((RAMP * 200_000).astype(np.int32), "200000 as white"),
        ((RAMP - 3).astype(np.float32), "least to their largest"),
        ((RAMP * 10 - 5).astype(np.float32), "least to their largest"),
        ((RAMP * 1000 - 500).astype(np.int32), "least to their largest"),
        ((RAMP * 65_535).astype(np.uint16), ""),
        ((RAMP * 7).astype(np.float32), ""),
    ],
)
def test_deep_pictures_are_scaled_by_what_they_hold_and_it_is_said(tmp_path, values, said):
    PIL.Image.fromarray(values).save(tmp_path / "deep.tiff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = image_files.read(tmp_path / "deep.tiff")
    assert np.abs(picture[..., 0] - RAMP * 255).max() <= 2
    assert bool(caught) == bool(said) and (not said or said in str(caught[0].message))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_with_a_value_that_is_no_number_is_refused_by_name(tmp_path, value):
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    PIL.Image.fromarray(values).save(tmp_path / "deep.tiff")
    with pytest.raises(InputError, match=r"deep.tiff cannot be decoded: it holds NaN or infinity"):
        image_files.read(tmp_path / "deep.tiff")


@pytest.mark.parametrize("is_compressed", [True, False])
def test_a_png_with_megabytes_of_text_is_read(tmp_path, is_compressed):
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * (2 << 20), zip=is_compressed)
    file = save(tmp_path / "a.png", pnginfo=info)
    assert image_files.header(file).width == 32 and np.array_equal(image_files.read(file), NOISE)

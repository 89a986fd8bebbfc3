import json

import numpy as np
import PIL.Image
import pytest

from alignment.errors import InputError
from data.pictures import captions


def table(tmp_path, *lines, header="image\ttext\tclass\tsubset"):
    for i in range(3):
        PIL.Image.fromarray(np.full((6, 5, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "pairs.tsv").write_text("\n".join([header, *lines]) + "\n")
    return str(tmp_path / "pairs.tsv")


def test_a_pair_is_a_small_picture_and_the_counts_of_its_words(tmp_path):
    lines = ["0.png\tA leaf, a LEAF\toak\ttrain", "1.png\tleaf a leaf a\telm\tvalidation"]
    read = captions.read(table(tmp_path, *lines), side=2)
    assert read.image_ND.shape == (2, 12) and read.text_NW.shape == (2, captions.WORDS)
    np.testing.assert_allclose(read.image_ND[0], -1)
    np.testing.assert_allclose(np.linalg.norm(read.text_NW, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(*read.text_NW)  # neither order nor capitals count
    assert read.classes == ["oak", "elm"] and read.subsets == ["train", "val"]


def test_without_classes_every_text_is_its_own(tmp_path):
    read = captions.read(table(tmp_path, "0.png\tone", "1.png\ttwo", header="image\ttext"), side=2)
    assert read.classes == ["one", "two"] and read.subsets == []


def test_columns_may_begin_below_the_first_line_and_a_class_may_be_zero(tmp_path):
    table(tmp_path)
    rows = [{"image": f"{i}.png", "text": "a leaf", "class": i} for i in range(2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions.read(str(tmp_path / "pairs.jsonl"), side=2).classes == ["0", "1"]
    del rows[0]["class"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"pairs\.jsonl:1: the class is empty"):
        captions.read(str(tmp_path / "pairs.jsonl"), side=2)


def test_single_pairs_that_cannot_be_read_are_set_aside_with_their_line(tmp_path):
    lines = [f"{i % 3}.png\ttext {i}\toak\ttrain" for i in range(100)]
    read = captions.read(table(tmp_path, *lines[:50], "9.png\tgone\toak\ttrain", *lines[50:]), side=2)
    assert len(read.classes) == 100 and [bad.line for bad in read.bad] == [52]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.png\t \toak\ttrain"], "the text is empty"),
        (["0.png\tx\t\ttrain"], "the class is empty"),
        (["0.png\tx\toak\t"], "the subset is empty"),
        (["../0.png\tx\toak\ttrain"], "points outside"),
        (["0.png\tx\toak\tlater"], "subset='later' is not one of: train, val, test"),
        (["7.png\tx\toak\ttrain"], "1 of 1 lines"),
    ],
)
def test_tables_of_pairs_that_cannot_be_used_are_refused(lines, message, tmp_path):
    with pytest.raises(InputError, match=message):
        captions.read(table(tmp_path, *lines), side=2)


def test_a_table_without_texts_is_refused(tmp_path):
    with pytest.raises(InputError, match="column='text' is not one of: image, words"):
        captions.read(table(tmp_path, "0.png\tx", header="image\twords"), side=2)

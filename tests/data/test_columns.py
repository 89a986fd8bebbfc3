import json

import numpy as np
import pytest

from alignment.errors import InputError
from data import columns

TEXT = """age,city,income,name,kind,part,place
10,A,1.0,n1,x,train,p
20,B,,n2,y,train,p
30,A,3.0,n3,x,train,q
1000,C,x,n4,y,test,q
40,,2.0,n5,x,val,p
50,A,2.0,n6,,train,p
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(TEXT)
    return str(file)


def read(path, **options):
    return columns.read(path, "kind", **{"subset": "part", "group": "place"} | options)


def test_a_row_without_a_target_is_set_aside_with_its_line(path):
    table = read(path)
    assert len(table) == 5 and table.subsets == ["train", "train", "train", "test", "val"]
    assert [(bad.line, bad.reason) for bad in table.bad] == [(7, "kind has no value")]
    assert table.groups == ["p", "p", "q", "q", "p"] and set(table.columns) == {"age", "city", "income", "name"}


def test_one_value_is_one_class_in_every_type_and_a_list_is_refused(tmp_path):
    rows = [{"a": i, "y": y} for i, y in enumerate((1, 1.0, "1", 0, 0.0, "0"))]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = columns.read(str(tmp_path / "t.jsonl"), "y")
    assert columns.classes(table, range(6), None)[1] == ("0", "1")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row | {"a": [1]}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"t.jsonl:1: a is a list.*data.leave_out"):
        columns.read(str(tmp_path / "t.jsonl"), "y")


def test_lines_of_json_may_lack_any_column(tmp_path):
    rows = [{"y": "a"}, {"x": 1, "y": "a"}, {"x": 2}, {"x": 3, "y": "b"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = columns.read(str(tmp_path / "t.jsonl"), "y")
    assert table.columns == {"x": ["", "1", "3"]} and [(bad.line, bad.reason) for bad in table.bad] == [
        (3, "y has no value")
    ]


def test_everything_is_fitted_on_the_training_rows_alone(path):
    table = read(path, leave_out=("name",))
    encoder = columns.fit(table, [0, 1, 2])
    assert encoder.names == ["age", "city=A", "city=B", "income", "income is missing"]
    x, new = encoder.encode(table, range(5))
    age = (np.array([10, 20, 30, 1000, 40]) - 20) / np.std([10, 20, 30])
    np.testing.assert_allclose(x[:, 0], age, rtol=1e-5)
    np.testing.assert_array_equal(x[:, 1:3], [[1, 0], [0, 1], [1, 0], [0, 0], [0, 0]])
    # 1 and 3 are what training rows have; what is missing, or is not a number, becomes their median
    np.testing.assert_allclose(x[:, 3], [-1, 0, 1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(x[:, 4], [0, 1, 0, 1, 0])
    assert (
        new == 2 and type(new) is int
    )  # it goes into a report: city C and income x; a cell without a value is not new


def test_a_test_row_changes_nothing_of_what_is_fitted(path, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(TEXT.replace("1000,C,x", "-7,B,9"))
    assert columns.fit(read(path), [0, 1, 2]) == columns.fit(read(str(other)), [0, 1, 2])


def test_numbers_without_a_deviation_are_left_out_and_said(tmp_path):
    cells = [("0", "0.1", "1e200", "5"), ("0.0", "0.10", "-1e200", "6"), ("0", "1e-1", "1e200", "7")]
    (tmp_path / "t.csv").write_text("\n".join(["zero,tenth,huge,x,y", *(",".join((*row, "a")) for row in cells)]))
    encoder = columns.fit(columns.read(str(tmp_path / "t.csv"), "y"), range(3))
    assert encoder.names == ["x"] and set(encoder.left_out) == {"zero", "tenth", "huge"}
    assert encoder.left_out["zero"] == "the numbers of training rows deviate by 0, which cannot be divided by"
    assert "deviate by inf" in encoder.left_out["huge"]


def test_columns_of_one_value_or_of_a_name_a_row_are_left_out_and_said(tmp_path):
    lines = ["id,same,x,y", *(f"n{i},1,{i % 5},{i % 2}" for i in range(80))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    encoder = columns.fit(columns.read(str(tmp_path / "t.csv"), "y"), range(80))
    assert encoder.names == ["x"] and set(encoder.left_out) == {"id", "same"}
    assert "80 categories, more than 64" in encoder.left_out["id"]


def test_a_numeric_target_is_binned_at_the_training_rows_quantiles(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},{i}\n" for i in range(8)) + "9,1000\n")
    table = columns.read(str(tmp_path / "t.csv"), "y")
    labels, names = columns.classes(table, range(8), 2)
    assert labels.tolist() == [0] * 4 + [1] * 5 and names == ("below 3.5", "from 3.5")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {"target": "c"}, "column='c' is not one of: a, b"),
        ("a,b\n1,2\n3,4\n", {"target": "b"}, "2 rows with a b"),
        ("b\n1\n2\n3\n", {"target": "b"}, "no column to predict b from"),
        ("a,b,s\n1,2,train\n1,2,later\n1,2,test\n", {"target": "b", "subset": "s"}, "s='later' is not one of"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(text, options, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        columns.read(str(tmp_path / "t.csv"), **options)


@pytest.mark.parametrize(
    ("cells", "bins", "message"),
    [
        ([str(i / 7) for i in range(80)], None, "regression targets are not supported, bin them"),
        (["a", "a", "a"], None, "has one value"),
        (["1", "2", "b"], 2, "'b' is not a number to bin"),
        (["1", "1", "1", "2"], 3, "not distinct; take fewer bins"),
    ],
)
def test_targets_that_are_no_classes_are_refused(cells, bins, message, tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    table = columns.read(str(tmp_path / "t.csv"), "y")
    with pytest.raises(InputError, match=message):
        columns.classes(table, range(len(table)), bins)

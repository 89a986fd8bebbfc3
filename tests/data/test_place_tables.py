import csv
import json
import struct

import numpy as np
import pytest

from alignment.errors import InputError
from data import place_tables
from data.place_tables import Columns

ROWS = [
    {
        "id": i,
        "Longitude": -118 - i / 10,
        "latitude": 34 + i / 10,
        "rooms": i * 1.5,
        "kind": "ab"[i % 2],
        "price": 9 * i,
    }
    for i in range(6)
]


def write(path, rows=ROWS):
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def changed(number, **values):
    return [row | values if i == number else row for i, row in enumerate(ROWS)]


def test_numbers_are_features_words_are_encoded_and_coordinates_found_by_name(tmp_path):
    columns = Columns(target="price", ignore=("id",))
    samples = place_tables.read(write(tmp_path / "t.csv"), columns, kind="regression")
    assert samples.features == ("rooms", "kind=a", "kind=b") and samples.is_degrees
    np.testing.assert_allclose(samples.x[3], [4.5, 0, 1])
    np.testing.assert_allclose(samples.xy_N2[2], [-118.2, 34.2])
    assert samples.y_N.dtype == np.float32 and samples.y_N[5] == 45 and samples.line_N[0] == 2
    assert samples.counts["samples"] == 6 and not samples.is_classes


def test_a_target_of_words_or_few_whole_numbers_is_classes(tmp_path):
    path = write(tmp_path / "t.csv")
    words = place_tables.read(path, Columns(target="kind", features=("rooms",)))
    assert words.class_names == ("a", "b") and words.y_N.tolist() == [0, 1, 0, 1, 0, 1]
    whole = place_tables.read(path, Columns(target="price", features=("rooms",)))
    assert whole.class_names == ("0", "9", "18", "27", "36", "45")
    assert place_tables.read(path, Columns(target="rooms", features=("id",))).class_names == ()


def test_a_target_of_true_and_false_is_two_classes(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row | {"sold": row["id"] > 2}) + "\n" for row in ROWS))
    samples = place_tables.read(str(path), Columns(target="sold", features=("rooms",)))
    assert samples.class_names == ("False", "True") and samples.y_N.tolist() == [0, 0, 0, 1, 1, 1]


def test_parquet_reads_as_csv_does(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(ROWS), tmp_path / "t.parquet")
    columns = Columns(target="kind")
    one = place_tables.read(write(tmp_path / "t.csv"), columns)
    two = place_tables.read(str(tmp_path / "t.parquet"), columns)
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.xy_N2, two.xy_N2)
    assert one.digest == two.digest


def geo(path, encoding, crs, points):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(
        [{"shape": point, "rooms": 1.0 * i, "y": i % 2} for i, point in enumerate(points)]
    )
    about = {"primary_column": "shape", "columns": {"shape": {"encoding": encoding, "crs": crs}}}
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(about)}), path)
    return str(path)


def test_points_of_geoparquet_are_read_in_both_encodings(tmp_path):
    pytest.importorskip("pyarrow")
    plain = struct.pack("<BIdd", 1, 1, 5.0, 6.0)
    big = struct.pack(">BIdd", 0, 1, 5.0, 6.0)
    with_id = struct.pack("<BIIdd", 1, 1 | 0x20000000, 4326, 5.0, 6.0)
    with_height = struct.pack("<BIddd", 1, 1001, 5.0, 6.0, 7.0)
    path = geo(tmp_path / "w.parquet", "WKB", None, [plain, big, with_id, with_height])
    samples = place_tables.read(path, Columns(target="y"))
    np.testing.assert_array_equal(samples.xy_N2, [[5, 6]] * 4)
    assert samples.is_degrees and samples.features == ("rooms",)
    flat = geo(tmp_path / "p.parquet", "point", {"type": "ProjectedCRS"}, [{"x": 7e5, "y": 4e6}] * 2)
    samples = place_tables.read(flat, Columns(target="y"))
    assert not samples.is_degrees and samples.xy_N2[0].tolist() == [7e5, 4e6]
    with pytest.raises(InputError, match=r"its geometry is projected and data\.coordinates='degrees'"):
        place_tables.read(flat, Columns(target="y"), coordinates="degrees")
    line = geo(tmp_path / "l.parquet", "WKB", None, [struct.pack("<BI", 1, 2) + bytes(16)])
    with pytest.raises(InputError, match="shape is not a point"):
        place_tables.read(line, Columns(target="y"))
    other = geo(tmp_path / "o.parquet", "polygon", None, [plain])
    with pytest.raises(InputError, match="encoded as polygon; WKB and point are read"):
        place_tables.read(other, Columns(target="y"))


def test_planes_are_known_by_their_names(tmp_path):
    rows = [{"x": 7e5 + i, "y": 4e6, "rooms": i, "kind": "ab"[i % 2]} for i in range(4)]
    samples = place_tables.read(write(tmp_path / "t.csv", rows), Columns(target="kind"))
    assert not samples.is_degrees and samples.features == ("rooms",)
    as_degrees = Columns(target="kind", longitude="x", latitude="y")
    with pytest.raises(InputError, match=r"t.csv:2: longitude 700000, latitude 4e\+06 is not on the globe"):
        place_tables.read(write(tmp_path / "t.csv", rows), as_degrees, coordinates="degrees")


def test_rows_without_a_value_are_dropped_and_counted(tmp_path):
    rows = changed(1, rooms="")
    rows[3] = rows[3] | {"latitude": ""}
    samples = place_tables.read(write(tmp_path / "t.csv", rows), Columns(target="price"), kind="regression")
    assert samples.counts["rows without rooms"] == 1 and samples.counts["rows without coordinates"] == 1
    assert len(samples.y_N) == 4 and samples.line_N.tolist() == [2, 4, 6, 7]


def test_words_for_no_value_are_no_class_and_one_number_is_one_class(tmp_path):
    kinds = ["a", "nan", "b", "N/A", "a", "b"]
    rows = [{"lon": 1, "lat": 2, "rooms": i, "kind": kind} for i, kind in enumerate(kinds)]
    samples = place_tables.read(write(tmp_path / "t.csv", rows), Columns(target="kind"))
    assert samples.class_names == ("a", "b") and samples.counts["rows without kind"] == 2
    lines = [json.dumps(row | {"kind": kind}) + "\n" for row, kind in zip(rows, (1, 1.0, "1", 2, 2.0, [2]))]
    (tmp_path / "t.jsonl").write_text("".join(lines[:5]))
    assert place_tables.read(str(tmp_path / "t.jsonl"), Columns(target="kind")).class_names == ("1", "2")
    (tmp_path / "t.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match=r"t.jsonl:6: kind is a list"):
        place_tables.read(str(tmp_path / "t.jsonl"), Columns(target="kind"))


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (changed(2, rooms="inf"), Columns(target="kind"), "t.csv:4: rooms='inf' is not finite"),
        (changed(2, rooms="NA"), Columns(target="kind"), "t.csv:4: rooms='NA' is not a number"),
        (changed(2, latitude="north"), Columns(target="kind"), "t.csv:4: latitude='north' is not a number"),
        (ROWS, Columns(), "data.columns.target is not set"),
        (ROWS, Columns(target="prise"), "the nearest is 'price'"),
        (ROWS, Columns(target="kind", longitude="Longitude"), "set both or none"),
        (ROWS, Columns(target="kind", longitude="latitude", latitude="Longitude"), "the axes look swapped"),
        (ROWS, Columns(target="kind", features=("rooms",), ignore=("id",)), "set one of both"),
        (ROWS, Columns(target="kind", ignore=("id", "rooms", "price")), "no feature beside its coordinates"),
        ([{"a": 1, "b": 2}], Columns(target="a"), "no coordinates among the columns a, b"),
        (ROWS, Columns(outcome="price"), "an outcome is 0 or 1"),
        (ROWS, Columns(target="price", features=("rooms", "price")), "names price, which is data.columns.target"),
        (ROWS, Columns("kind", outcome="id", features=("id",)), "names id, which is data.columns.outcome"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(rows, columns, said, tmp_path):
    with pytest.raises(InputError, match=said):
        place_tables.read(write(tmp_path / "t.csv", rows), columns)


@pytest.mark.parametrize("name", ["longitude", "rooms", "price"])
def test_an_integer_beyond_all_floats_is_refused_by_its_line(name, tmp_path):
    rows = [{key.lower(): value for key, value in row.items()} for row in ROWS]
    rows[2][name] = 10**400
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"t\.jsonl:3: {name}=10+ is not finite"):
        place_tables.read(str(tmp_path / "t.jsonl"), Columns(target="price"))


def test_a_column_of_many_words_is_named(tmp_path):
    rows = [{"lon": 1, "lat": i / 9, "name": f"street {i}", "y": i % 2} for i in range(60)]
    with pytest.raises(InputError, match="column name has 60 different words"):
        place_tables.read(write(tmp_path / "t.csv", rows), Columns(target="y"))


def test_counts_and_outcomes_need_positions_alone(tmp_path):
    rows = [{"lon": 1, "lat": i / 9, "right": i % 2} for i in range(6)]
    path = write(tmp_path / "t.csv", rows)
    assert place_tables.read(path, Columns(), kind="counts").x.shape == (6, 0)
    assert place_tables.read(path, Columns(outcome="right")).outcome_N.tolist() == [0, 1, 0, 1, 0, 1]

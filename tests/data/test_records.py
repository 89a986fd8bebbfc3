import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from alignment.errors import InputError
from data import records

ROWS = [{"text": f"row {i} é", "n": i} for i in range(300)]
PACK = {"gz": gzip.compress, "zst": zstandard.compress, "zstd": zstandard.compress}
PACK |= {"xz": lzma.compress, "bz2": bz2.compress}
LINES = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in ROWS)


def values(path):
    return [r.value for r in records.read(str(path))[0]]


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zstd", "a.jsonl.xz", "a.json.bz2"]
    + ["array.json", "array.json.gz", "array.json.xz", "a.parquet"],
)
def test_every_container_gives_the_same_records(tmp_path, name):
    content = json.dumps(ROWS, indent=1).encode() if "array" in name else LINES
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(PACK.get(name.rpartition(".")[2], bytes)(content))
    assert values(tmp_path / name) == ROWS


def test_parquet_without_pyarrow_names_the_pip_line(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'plumbline\[data\]'"):
        records.read(str(tmp_path / "a.parquet"))


def test_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable parquet"):
        records.read(str(tmp_path / "a.parquet"))


def test_zstandard_frames_back_to_back_are_one_file(tmp_path):
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:]))
    assert values(tmp_path / "a.jsonl.zst") == ROWS


def test_folders_globs_and_lists_are_read_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(["b.jsonl", "a.jsonl", "sub/c.json"]):
        (tmp_path / name).write_text(json.dumps({"i": i}) + "\n")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "d, e.jsonl").write_text('{"i": 3}\n')
    assert values(tmp_path) == [{"i": 1}, {"i": 0}, {"i": 3}, {"i": 2}]
    assert values(tmp_path / "[ab].jsonl") == [{"i": 1}, {"i": 0}]
    assert values(f"{tmp_path}/b.jsonl, {tmp_path}/sub/*") == [{"i": 0}, {"i": 2}]
    assert values(tmp_path / "d, e.jsonl") == [{"i": 3}]  # a comma in a name
    with pytest.raises(InputError, match=r"none\.jsonl': no such file"):
        values(f"{tmp_path}/b.jsonl,{tmp_path}/none.jsonl")
    assert [r.value for r in records.read([str(tmp_path / "b.jsonl"), str(tmp_path / "sub")])[0]] == [
        {"i": 0},
        {"i": 2},
    ]


def test_bad_lines_are_set_aside_with_file_line_and_reason(tmp_path):
    bad = [b'{"text": "cut', b"[1, 2", b'"a text"', b'{"t": "\xff\xfe"}', b'{"t": "\\ud800"}']
    lines = LINES.splitlines() * 2
    for at, line in zip((10, 20, 30, 40, 50), bad):
        lines[at] = line
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n".join([b"\xef\xbb\xbf" + lines[0], b"", *lines[1:]]))
    good, bad = records.read(str(path))
    assert len(good) == 595 and good[0].value == ROWS[0] and good[1].line == 3
    assert [b.line for b in bad] == [12, 22, 32, 42, 52] and {b.file for b in bad} == {str(path)}
    for b, words in zip(bad, ("not JSON", "not JSON", "a JSON str", "not UTF-8", "surrogate")):
        assert words in b.reason
    records.write_bad(bad, str(tmp_path / "out" / "bad.jsonl"))
    assert [json.loads(x)["line"] for x in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()] == [
        12,
        22,
        32,
        42,
        52,
    ]


def test_an_array_sets_aside_what_lines_do(tmp_path):
    items = [json.dumps(r) for r in ROWS] + ['{"t": "\\ud83d"}', '"a text"']
    (tmp_path / "a.json").write_text(f"[{', '.join(items)}]")
    good, bad = records.read(str(tmp_path / "a.json"), max_bad=0.1)
    assert [r.value for r in good] == ROWS
    assert [(b.line, b.reason) for b in bad] == [(301, "half of a surrogate pair"), (302, "a JSON str, not an object")]


def test_an_array_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(f'[{{"t": {"[" * 100_000}{"]" * 100_000}}}]')
    with pytest.raises(InputError, match=r"a\.json is not a JSON array: nested too deeply.*JSONL"):
        records.read(str(tmp_path / "a.json"))


@pytest.mark.parametrize(("num_bad", "stops"), [(3, False), (4, True)])
def test_more_than_one_percent_of_bad_lines_stops(tmp_path, num_bad, stops):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join([*LINES.splitlines(keepends=True)[: 300 - num_bad], b"{oops\n" * num_bad]))
    if stops:
        with pytest.raises(InputError, match=rf"4 of 300 lines \(1.3 %\).*{path}:297"):
            records.read(str(path))
    else:
        assert len(records.read(str(path))[1]) == 3  # exactly 1 % is allowed


@pytest.mark.parametrize("packed", PACK)
def test_a_file_cut_short_is_refused(tmp_path, packed):
    whole = PACK[packed](LINES)
    path = tmp_path / f"a.jsonl.{packed}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged or cut short"):
        records.read(str(path))
    path.write_bytes(b"no archive at all")
    with pytest.raises(InputError, match="damaged or cut short"):
        records.read(str(path))


def test_nan_as_python_writes_it_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"preference": NaN}\n')
    assert str(values(tmp_path / "a.jsonl")[0]["preference"]) == "nan"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]"])
def test_a_file_without_records_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="no records"):
        records.read(str(tmp_path / "a.json"))


def test_broken_arrays_single_objects_and_missing_paths_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1},\n {"a": 2\n]')
    with pytest.raises(InputError, match=r"a\.json:3 is not a JSON array"):
        records.read(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text('{\n "a": 1\n}')
    with pytest.raises(InputError, match="one JSON object over many lines"):
        records.read(str(tmp_path / "b.json"))
    for path in ("none.jsonl", "*.csv"):
        with pytest.raises(InputError, match="no such file"):
            records.read(str(tmp_path / path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no data files"):
        records.read(str(tmp_path / "empty"))


def test_plain_text_becomes_documents_of_a_few_thousand_characters(tmp_path):
    lines = [f"line {i} " + "x" * 90 + ("\n" if i % 10 == 9 else "") for i in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    texts = [r["text"] for r in values(tmp_path / "a.txt")]
    assert len(texts) > 3 and all(len(t) <= 8_200 for t in texts)
    assert [x for t in texts for x in t.split("\n") if x] == [x.strip("\n") for x in lines]


def test_plain_text_documents_know_their_first_line(tmp_path):
    lines = [b"\xef\xbb\xbfline 1", b"", *(b"line %d" % i + b"x" * 90 * (i != 60) for i in range(3, 200))]
    lines[80] = b""
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    for record in records.read(str(tmp_path / "a.txt"))[0]:
        assert record.value["text"].startswith(f"line {record.line}")


TEXT = b'{"text": "a"}\n{"text": "b"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", TEXT.decode().encode("utf-16"), "UTF-16"),
        ("a.txt", ("word " * 50 + "\n").encode("utf-16-be") * 200, "UTF-16"),
        ("a.csv", b"text\n".decode().encode("utf-32"), "UTF-16"),
        ("a.jsonl.gz", gzip.compress(TEXT.decode().encode("utf-16-le")), "UTF-16"),
        ("a.csv", POINTER, "pointer of Git LFS"),
        ("a.parquet", POINTER, "pointer of Git LFS"),
        ("a.csv", b"<!DOCTYPE html>\n<p>Sign in, please</p>\n", "a web page"),
        ("a.json", b"\n <html><body>502</body></html>", "a web page"),
        ("a.csv", "caf\xe9,text\n1,2\n".encode("latin-1"), "column names are not UTF-8"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', "a.csv:3: a quote opens in this row and is never closed"),
        ("a.csv", b"a, a\n1,2\n", "two columns 'a'"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "two fields 'text'"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "a.jsonl:1: not JSON"),
    ],
)
def test_a_file_that_is_something_else_than_it_seems_is_refused_by_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        records.read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbf a ,b\r\n1,2\r\n", {"a": "1", "b": "2"}),
        (b"\n\na,b\n\n1,2\n\n", {"a": "1", "b": "2"}),
        (b"a,b\r1,2\r", {"a": "1", "b": "2"}),
        (b'a,b\n"x\ny","he said ""no"""', {"a": "x\ny", "b": 'he said "no"'}),
        (b",a,\n7,1,8\n", {"column 1": "7", "a": "1", "column 3": "8"}),
    ],
)
def test_a_table_is_read_as_every_program_writes_it(tmp_path, content, expected):
    (tmp_path / "a.csv").write_bytes(content)
    assert [row.value for row in records.read(str(tmp_path / "a.csv"))[0]] == [expected]


def test_a_text_that_names_a_field_is_not_a_field_twice(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "\\"a\\": 1", "b": {"a": 2}}\n')
    assert records.read(str(tmp_path / "a.jsonl"))[0][0].value == {"a": '"a": 1', "b": {"a": 2}}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~nobody-here/a.jsonl", "home directory"),
        ("a" * 5_000, "too long"),
        (None, "not set"),
        ("s3://a/b", "fetch it first"),
    ],
)
def test_a_path_that_no_disk_has_is_refused(path, said):
    with pytest.raises(InputError, match=said):
        records.read(path)


@pytest.mark.parametrize(
    ("names", "columns", "said"),
    [
        (["a", "a"], [["x"], ["y"]], "two columns 'a'"),
        (["a"], [[2**62]], "damaged after record 0"),
    ],
)
def test_parquet_that_python_cannot_hold_is_refused(tmp_path, names, columns, said):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    arrays = [pa.array(c, pa.timestamp("us")) if isinstance(c[0], int) else pa.array(c) for c in columns]
    pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=said):
        records.read(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
def test_two_columns_of_one_name_are_refused(name, tmp_path):
    comma = "\t" if ".tsv" in name else ","
    text = "\n".join(comma.join(row) for row in (("text", "label", "label"), ("a", "0", "1"))).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(InputError, match=r"has two columns 'label'; rename one"):
        records.read(str(tmp_path / name))


@pytest.mark.parametrize(
    "name", ["a.JSONL", "a.jsonl.ZST", "a.jsonl.zip", "a.json.7z", "A.Parquet", "gone.jsonl", "deep/a.ndjson.lz4"]
)
def test_what_looks_like_data_in_a_folder_and_is_not_read_is_named(tmp_path, name, capsys):
    (tmp_path / "deep").mkdir()
    (tmp_path / "good.jsonl").write_text('{"text": "a"}')
    for hidden in ("._x.jsonl", ".ipynb_checkpoints/a.JSONL"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("x")
    if name.startswith("gone"):
        (tmp_path / name).symlink_to(tmp_path / "nothing")
    else:
        (tmp_path / name).write_text("x")
    assert records.find(str(tmp_path)) == [str(tmp_path / "good.jsonl")]
    (line,) = records.left_out(str(tmp_path))
    assert line.startswith(str(tmp_path / name))
    values(tmp_path)
    assert f"data: not read: {line}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.jsonl.zip", "a.json.lz4", "a.csv.7z"])
def test_a_file_packed_in_a_way_that_is_not_read_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(InputError, match=rf"{name} is packed in a way that is not read; unpack it, or pack it as \.gz"):
        values(tmp_path / name)


@pytest.mark.parametrize("packed", PACK)
def test_a_packed_table_is_read_as_a_plain_one(tmp_path, packed):
    (tmp_path / f"a.tsv.{packed}").write_bytes(PACK[packed](b"n\ttext\n1\ta b\n"))
    assert values(tmp_path / f"a.tsv.{packed}") == [{"n": "1", "text": "a b"}]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.jsonl", "no such file, folder or glob"),
        (["a.jsonl", "nowhere/"], "no such file, folder or glob"),
        ("hub:owner", "must read hub:owner/name"),
        ("a.jsonl,hub:a/b/c", "must read hub:owner/name"),
    ],
)
def test_a_path_is_checked_without_reading(tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("not JSON")
    records.check("a.jsonl")
    records.check(["a.jsonl", "hub:a/b"])
    with pytest.raises(InputError, match=said):
        records.check(path)


@pytest.mark.parametrize("path", ["", " ", "a.jsonl,,"])
def test_an_empty_path_is_not_the_current_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(InputError, match="is empty"):
        records.find(path)


@pytest.mark.parametrize(
    ("train", "heldout", "unread"),
    [
        ("pairs_train.jsonl", "pairs_test.jsonl", ""),
        ("pairs.jsonl", "pairs.test.jsonl", ""),
        ("en-train-00000-of-00002.jsonl", "en-test-00000-of-00001.jsonl", ""),
        ("train_prefs.jsonl", "test_prefs.jsonl", ""),
        ("train/unit_test_notes.jsonl", "validation/0.jsonl", "test/0.jsonl"),
        ("latest.jsonl", "dev.jsonl", "test.jsonl"),
        ("corpus.array_record", "corpus-validation.array_record", ""),
        ("mnist-train.array_record-00000-of-00001", "mnist-test.array_record-00000-of-00001", ""),
    ],
)
def test_names_say_what_is_trained_on_and_what_is_held_out(tmp_path, capsys, train, heldout, unread):
    for name in filter(None, (train, heldout, unread)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    names = [str(tmp_path / name) for name in filter(None, (train, heldout, unread))]
    assert records.parts(str(tmp_path), names) == ([str(tmp_path / train)], [str(tmp_path / heldout)])
    assert "1 files to train on, 1 files held out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["test_questions.jsonl", "contest.jsonl", "latest/a.jsonl"])
def test_a_folder_without_two_parts_is_one(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"text": "a"}\n')
    assert records.parts(str(tmp_path)) == (str(tmp_path), [])


@pytest.mark.parametrize("name", ["a.arrow", "more/b.txt", "c.feather"])
def test_files_of_other_kinds_in_a_folder_are_named(tmp_path, name):
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.txt").write_text("about these data")
    (line,) = records.left_out(str(tmp_path))
    assert line.startswith(str(tmp_path / name))

"""Records are read where they lie; a changed file is indexed again or refused; what cannot be read has a line."""

import json
import os

import numpy as np
import pytest

from alignment.errors import InputError
from data import record_index, records

WAY_OUT = "read it whole"


def describe(record, counts):
    if "empty" in record.value:
        counts["empty"] = counts.get("empty", 0) + 1
        return None
    return "refused" if "odd" in record.value else record.value["n"]


def index(names, folder, **options):
    record_index.build(names, folder, describe_fn=describe, made_by="test")
    return record_index.Index(names, folder, made_by="test", **options)


def write(path, raw):
    path.write_bytes(raw)
    return str(path)


@pytest.fixture
def shards(tmp_path):
    raw = b'\xef\xbb\xbf{"n": 0}\n\n{"n": 1, "text": "\xc3\xa9\xe2\x80\xa8"}\r\n'
    raw += b'not JSON\n{"empty": 1}\n{"odd": 1}\n{"n": 2}'
    return [
        write(tmp_path / "a.jsonl", raw),
        write(tmp_path / "b.jsonl", b""),
        write(tmp_path / "c.jsonl", b'{"n": 3}\n'),
    ]


def test_records_are_those_of_the_reader_of_whole_files_with_their_lines(tmp_path, shards):
    found = index(shards, tmp_path / "index")
    whole = [one for one in records.read(shards, max_bad=1)[0] if "n" in one.value]
    assert [found[i] for i in range(len(found))] == whole and len(found) == 4
    assert [(os.path.basename(one.file), one.line) for one in found.bad] == [("a.jsonl", 4), ("a.jsonl", 6)]
    assert found.bad[1].reason == "refused" and found.counts == {"empty": 1}
    assert np.concatenate(list(found.key_blocks())).tolist() == [0, 1, 2, 3]
    short = index(shards, tmp_path / "index", limit=2)
    assert len(short) == 2 and np.concatenate(list(short.key_blocks())).tolist() == [0, 1]


def test_a_mark_of_bytes_in_the_middle_of_joined_files_is_part_of_its_line(tmp_path):
    raw = b'\xef\xbb\xbf{"n": 0}\r\n'
    joined = index([write(tmp_path / "a.jsonl", 2 * raw)], tmp_path / "index")
    assert [joined[i].value["n"] for i in range(len(joined))] == [0, 0]


def test_hidden_files_and_names_that_only_hold_the_ending_are_no_array_records(arrays):
    before = record_index.find(str(arrays), WAY_OUT)
    for name in ("._x.array_record", "x.array_record.sha256", ".x.jsonl"):
        write(arrays / name, b"{}")
    assert before and record_index.find(str(arrays), WAY_OUT) == before


def test_an_index_is_built_once_and_a_changed_file_is_indexed_again_by_name(tmp_path, shards, capsys):
    folder = tmp_path / "index"
    first = index(shards, folder)
    assert "indexing 3 of 3 files" in capsys.readouterr().out
    os.utime(shards[2], (1, 1))  # touched, as by a copy: the content decides
    assert index(shards, folder).digest == first.digest and not capsys.readouterr().out
    write(tmp_path / "c.jsonl", b'{"n": 4}\n')
    with pytest.raises(InputError, match=r"c\.jsonl has no index in"):
        record_index.Index(shards, folder, made_by="test")
    again = index(shards, folder)
    assert "c.jsonl has changed since it was indexed" in capsys.readouterr().out
    assert again[3].value == {"n": 4} and again.digest != first.digest
    assert len(list(folder.glob("*.table"))) == 3


def test_a_file_that_changes_during_a_run_is_refused(tmp_path, shards):
    found = index(shards, tmp_path / "index")
    write(tmp_path / "c.jsonl", b'{"n": 44}')
    with pytest.raises(InputError, match=r"c\.jsonl has changed since this run began"):
        found[3]
    assert found[0].value == {"n": 0}


def test_a_table_cut_short_is_refused(tmp_path, shards):
    index(shards, tmp_path / "index")
    table = max((tmp_path / "index").glob("*.table"), key=lambda path: path.stat().st_size)
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged; remove it"):
        index(shards, tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.jsonl.gz", r"a\.jsonl\.gz is packed.*zstd -d\), or read it whole"),
        ("a.jsonl.zst", "is packed"),
        ("a.parquet", "write it as JSON lines"),
        ("a.json", "write it as JSON lines"),
        ("a.txt", "or ArrayRecord"),
    ],
)
def test_files_that_cannot_be_read_in_the_middle_are_refused_by_name(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        record_index.check(write(tmp_path / name, b"x"), WAY_OUT)
    for path in ("synthetic:documents", "tfds:glue"):
        with pytest.raises(InputError, match="not a set of files"):
            record_index.check(path, WAY_OUT)


def test_a_json_array_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a JSON array"):
        index([write(tmp_path / "a.jsonl", b"[{}]")], tmp_path / "index")


def test_more_records_than_a_block_of_the_builder_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(record_index, "BLOCK", 4)
    lines = b"".join(json.dumps({"n": n}).encode() + b"\n" for n in range(10))
    found = index([write(tmp_path / "a.jsonl", lines)], tmp_path / "index")
    assert [found[i].value["n"] for i in range(len(found))] == list(range(10))


def test_large_files_are_indexed_by_processes_with_the_same_result(tmp_path, shards, monkeypatch):
    alone = index(shards, tmp_path / "alone")
    monkeypatch.setattr(record_index, "LARGE", 0)
    found = index(shards[::2], tmp_path / "index")
    assert [found[i] for i in range(len(found))] == [alone[i] for i in range(len(alone))] and found.bad == alone.bad


@pytest.fixture
def arrays(tmp_path):
    """The records of `shards`, as a writer of ArrayRecord leaves them, in groups as tools write by default."""
    module = pytest.importorskip("array_record.python.array_record_module")
    for name, numbers in (("a.array_record", (0, 1, 2)), ("b.array_record-00000-of-00001", (3, 4))):
        writer = module.ArrayRecordWriter(str(tmp_path / name), "group_size:2")
        for n in numbers:
            writer.write(b'{"odd": 1}' if n == 1 else json.dumps({"n": n}).encode())
        writer.close()
    return tmp_path


def test_array_records_are_read_by_number_and_named_by_it(arrays):
    names = record_index.find(str(arrays), WAY_OUT)
    found = index(names, arrays / "index")
    assert [found[i].value["n"] for i in (3, 0, 2, 1)] == [4, 0, 3, 2]
    assert found[3].line == 2 and [(os.path.basename(one.file), one.line) for one in found.bad] == [
        ("a.array_record", 2)
    ]
    first = found.digest
    write(arrays / "c.jsonl", b"{}")
    with pytest.raises(InputError, match=r"holds ArrayRecord files and .*c\.jsonl"):
        record_index.find(str(arrays), WAY_OUT)
    assert index(names, arrays / "index").digest == first


def test_a_file_that_only_has_the_name_of_an_array_record_is_refused(tmp_path, arrays):
    with pytest.raises(InputError, match="not a whole ArrayRecord file"):
        index([write(tmp_path / "x.array_record", b"not one")], tmp_path / "index")
    whole = (arrays / "a.array_record").read_bytes()
    with pytest.raises(InputError, match="ArrayRecord file"):
        index([write(tmp_path / "cut.array_record", whole[: len(whole) // 2])], tmp_path / "index")

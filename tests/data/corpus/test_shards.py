import gzip
import hashlib
import os
import pathlib
import subprocess
import sys
import time
import unittest.mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
import zstandard

from alignment import files
from alignment.errors import InputError
from data.corpus import shards, slices

ROWS = [{"id": f"d{i}", "text": f"row {i} é", "source": "web", "metadata": {"n": [i]}} for i in range(3000)]
DONE = {"config_hash": "abc", "outputs": {}, "kept": 3}


@pytest.mark.parametrize("ending", shards.ENDINGS)
def test_shards_read_back_as_documents_and_have_the_same_bytes_each_time(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    summary = shards.write(tmp_path / f"a{ending}", iter(ROWS))
    again = shards.write(tmp_path / "sub" / f"b{ending}", ROWS)
    content = (tmp_path / f"a{ending}").read_bytes()
    assert summary == again == {"rows": 3000, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert content == (tmp_path / "sub" / f"b{ending}").read_bytes()
    assert list(shards.read(tmp_path / f"a{ending}")) == ROWS
    (part,) = slices.plan(str(tmp_path / f"a{ending}"))
    assert list(slices.read(part)) == ROWS
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{ending}", "sub"]


JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5), st.lists)
METADATA = st.dictionaries(st.text(max_size=5), JSON | st.dictionaries(st.text(max_size=3), JSON), max_size=4)


@hypothesis.given(st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t), METADATA, st.text(min_size=1))
@hypothesis.settings(max_examples=25, deadline=None)
def test_every_document_that_is_written_is_read_back_as_it_was(tmp_path_factory, text, metadata, source):
    row = {"id": "i", "text": text, "source": source, "metadata": {k: v for k, v in metadata.items() if k != "url"}}
    path = tmp_path_factory.getbasetemp() / "round.jsonl.zst"
    with unittest.mock.patch.object(os, "fsync"):  # what reaches the disk is not the claim here
        shards.write(path, [row])
    (part,) = slices.plan(str(path))
    assert list(slices.read(part)) == [row]


def test_compressed_shards_open_with_the_usual_tools_and_know_no_time(tmp_path):
    for ending, unpack in ((".gz", gzip.decompress), (".zst", zstandard.ZstdDecompressor().decompressobj().decompress)):
        shards.write(tmp_path / f"a.jsonl{ending}", [{"score": np.float32(0.5), "n": np.int64(3)}])
        assert unpack((tmp_path / f"a.jsonl{ending}").read_bytes()) == b'{"score":0.5,"n":3}\n'
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)


def test_a_writer_that_fails_leaves_the_old_shard_and_nothing_else(tmp_path):
    shards.write(tmp_path / "a.jsonl", ROWS)
    before = (tmp_path / "a.jsonl").read_bytes()

    def rows():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path / "a.jsonl", rows())
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"] and (tmp_path / "a.jsonl").read_bytes() == before


def test_a_name_that_says_no_format_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends in one of \.jsonl"):
        shards.write(tmp_path / "a.csv", ROWS)


def test_sweep_removes_what_the_dead_left_and_nothing_of_the_living(tmp_path):
    script = (
        "import sys, time; from data.corpus import shards\n"
        "def rows():\n"
        "    yield {'a': 1}\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        f"shards.write({str(tmp_path / 'deep' / 'a.jsonl')!r}, rows())"
    )
    root = pathlib.Path(__file__).resolve().parents[3]
    writer = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    num_swept = [files.sweep(tmp_path)]
    writer.kill()
    writer.wait()
    writer.stdout.close()
    num_swept += [files.sweep(tmp_path), files.sweep(tmp_path)]
    assert num_swept == [0, 1, 0] and list((tmp_path / "deep").iterdir()) == []


def test_without_locks_only_old_leftovers_are_swept(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("not supported")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    (tmp_path / ".a.jsonl.1.tmp").write_bytes(b"")
    assert files.sweep(tmp_path) == 0
    os.utime(tmp_path / ".a.jsonl.1.tmp", (time.time() - 2 * files.ABANDONED,) * 2)
    assert files.sweep(tmp_path) == 1
    assert shards.write(tmp_path / "b.jsonl", ROWS)["rows"] == 3000


def test_finished_slices_come_in_order_without_those_whose_files_are_gone(tmp_path):
    assert shards.finished(tmp_path, "rules", "abc") == {}
    for i in (10, 2, 7):
        summary = shards.write(tmp_path / "clean" / f"{i}.jsonl", ROWS[:i])
        shards.finish(tmp_path, "rules", i, {**DONE, "outputs": {f"clean/{i}.jsonl": summary}})
    assert list(shards.finished(tmp_path, "rules", "abc")) == [2, 7, 10]
    assert shards.finished(tmp_path, "rules", "abc")[7]["kept"] == 3
    assert shards.finished(tmp_path, "dedup", "abc") == {}
    (tmp_path / "clean" / "2.jsonl").unlink()
    (tmp_path / "clean" / "7.jsonl").write_bytes(b"cut")
    assert list(shards.finished(tmp_path, "rules", "abc")) == [10]
    content = bytearray((tmp_path / "clean" / "10.jsonl").read_bytes())
    content[5] ^= 1
    (tmp_path / "clean" / "10.jsonl").write_bytes(content)
    assert list(shards.finished(tmp_path, "rules", "abc")) == [10]
    assert shards.finished(tmp_path, "rules", "abc", is_checked=True) == {}


def test_slices_done_under_another_config_are_refused(tmp_path):
    shards.finish(tmp_path, "rules", 0, DONE)
    with pytest.raises(InputError, match=r"hash abc, this run's is xyz.*choose another output folder"):
        shards.finished(tmp_path, "rules", "xyz")


def test_a_note_that_cannot_be_read_counts_as_not_done(tmp_path):
    shards.finish(tmp_path, "rules", 0, DONE)
    shards.finish(tmp_path, "rules", 1, DONE)
    note = tmp_path / "done" / "rules" / "00000001.done"
    assert orjson.loads(note.read_bytes()) == DONE
    note.write_bytes(b"{")
    assert list(shards.finished(tmp_path, "rules", "abc")) == [0]
    with pytest.raises(ValueError, match="no 'outputs'"):
        shards.finish(tmp_path, "rules", 1, {"config_hash": "abc"})


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst"])
def test_an_altered_shard_is_refused_with_its_name(tmp_path, ending):
    shards.write(tmp_path / f"a{ending}", ROWS)
    content = (tmp_path / f"a{ending}").read_bytes()
    (tmp_path / f"a{ending}").write_bytes(content[:-20])
    with pytest.raises(InputError, match=rf"a{ending} was altered"):
        list(shards.read(tmp_path / f"a{ending}"))

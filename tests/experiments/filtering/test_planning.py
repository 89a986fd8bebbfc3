"""Input of a filter run: damaged, changed, foreign, or its own."""

import gzip
import shutil

import orjson
import pytest

from tests.experiments.filtering.runs import numbers, rows, start, write


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder of good documents and of nine kinds of damage, and how many good ones there are."""
    folder = tmp_path_factory.mktemp("damaged") / "toy"
    documents = write(folder, 60)
    lines = [orjson.dumps(d) for d in documents]
    bad = [
        b'{"id": "cut", "text": "no en',
        b'{"id": "bytes", "text": "\xff\xfe"}',
        b'{"id": "nothing"}',
        b'{"text": "no id at all, and so no document"}',
        b'{"id": "nul", "text": "\0"}',
        b'{"id": "blank", "text": "  "}',
        orjson.dumps({"id": "long", "text": "word " * 100_000}),
        lines[0],
    ]
    (folder / "part-0.jsonl").write_bytes(b"\n".join([*lines[0::2], *bad]) + b"\n")
    packed = gzip.compress(b"\n".join(orjson.dumps(d | {"id": f"z-{d['id']}"}) for d in documents), mtime=0)
    (folder / "part-2.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "empty.jsonl").touch()
    return folder, len(bad)


def test_damage_is_set_aside_with_its_place_and_the_rest_is_done(damaged, tmp_path):
    folder, num_bad = damaged
    ended = start(tmp_path / "run", folder, read__max_document_mb=0.1)
    assert ended.code == 3, ended.err
    found, errors = numbers(tmp_path / "run"), rows(tmp_path / "run/clean/errors")
    assert len(errors) == found["bad_records"] == num_bad + 1  # the break of the .gz
    assert found["docs_in"] == found["docs_kept"] + found["docs_dropped"] + found["bad_records"]
    places = [row for row in errors if "duplicate id" not in row["reason"]]
    assert all(row["file"].startswith("part-") and row["offset"] >= 0 and row["reason"] for row in places)
    assert {row["file"] for row in errors} >= {"part-0.jsonl", "part-2.jsonl.gz"}
    decisions = [row["id"] for row in rows(tmp_path / "run/clean/decisions")]
    assert len(decisions) == len(set(decisions)) == found["docs_in"] - found["bad_records"]
    assert any(id.startswith("z-") for id in decisions)  # what came before the break
    assert start(tmp_path / "run", folder, read__max_document_mb=0.1).code == 3  # finished: the same verdict
    assert start(tmp_path / "other", folder, read__max_document_mb=0.1, max_bad=0.5).code == 0


def test_an_input_that_changed_since_the_plan_is_refused(tmp_path):
    write(tmp_path / "toy", 20)
    assert start(tmp_path / "run", tmp_path / "toy").code == 0
    with open(tmp_path / "toy/part-1.jsonl", "ab") as f:
        f.write(b'{"id": "late", "text": "late"}\n')
    ended = start(tmp_path / "again", tmp_path / "toy", outputs=tmp_path / "run/clean")
    assert ended.code == 2 and "has changed" in ended.err


def test_text_files_that_a_folder_holds_beside_others_are_named_as_not_read(tmp_path):
    write(tmp_path / "toy", 20)
    (tmp_path / "toy/more").mkdir()
    (tmp_path / "toy/more/book.txt").write_text("A book of its own.\n")
    ended = start(tmp_path / "run", tmp_path / "toy", skip="('safety',)")
    first = (tmp_path / "run/findings.txt").read_text().splitlines()[0]
    assert "1 files of plain text are not read" in first and "book.txt" in first and first in ended.out
    assert numbers(tmp_path / "run")["docs_in"] == 20
    both = f"{tmp_path}/toy,{tmp_path}/toy/more/*.txt*"  # what the line says to give
    assert both in first
    ended = start(tmp_path / "both", both, skip="('safety',)")
    assert ended.code == 0 and numbers(tmp_path / "both")["docs_in"] == 21, ended.err


def test_a_file_that_breaks_off_is_named_at_the_top_however_many_others_there_are(tmp_path):
    write(tmp_path / "toy", 60)
    packed = gzip.compress((tmp_path / "toy/part-0.jsonl").read_bytes())
    (tmp_path / "toy/torn.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    ended = start(tmp_path / "run", tmp_path / "toy", skip="('safety',)", max_bad=1)
    assert ended.code == 0, ended.err
    found = (tmp_path / "run/findings.txt").read_text()
    assert "Warning: files break off" in found and "1 (truncated gzip data)" in found
    assert "repeat an id of their source" in found  # the torn file's documents are part-0's


def test_what_a_run_wrote_is_no_input_and_files_that_came_later_are_refused(tmp_path):
    write(tmp_path / "raw", 20)
    told = {"skip": "('safety',)"}
    ended = start(tmp_path / "raw/run", tmp_path / "raw", **told)
    assert ended.code == 2 and "which a run of this filter wrote into" in ended.err
    shutil.rmtree(tmp_path / "raw/run")
    assert start(tmp_path / "run", tmp_path / "raw", **told, outputs=tmp_path / "raw/clean").code == 0
    again = {"outputs": tmp_path / "raw/clean"} | told
    (tmp_path / "run/DONE").unlink()
    assert start(tmp_path / "run", tmp_path / "raw", **again).code == 0  # its own folder does not count as new
    ended = start(tmp_path / "second", f"{tmp_path}/raw/**/*.jsonl*", **told)
    assert ended.code == 2 and "raw/clean" in ended.err
    (tmp_path / "raw/later.jsonl").write_bytes((tmp_path / "raw/part-0.jsonl").read_bytes())
    (tmp_path / "run/DONE").unlink()
    ended = start(tmp_path / "run", tmp_path / "raw", **again)
    assert ended.code == 2 and "1 files were added" in ended.err and "later.jsonl" in ended.err

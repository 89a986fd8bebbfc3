"""experiments/filter.py: shares, kills, damaged input, refusals, and stages done anew."""

import gzip
import hashlib
import json
import pathlib
import threading
import time

import pytest

from data import shards, toyweb
from experiments import filter as experiment
from tests.experiments.conftest import launch

SMALL = ("--config.toyweb.num=120", "--config.slice_mb=0.03")
QUIET = ("--config.skip=('safety',)", "--config.executor=local")


def digests(outputs):
    """What a run left, without what tells where and when: {name: hash}."""
    found = {}
    for path in sorted(pathlib.Path(outputs).rglob("*")):
        if path.is_file() and path.name != "plan.json" and "answers" not in path.parts:
            found[str(path.relative_to(outputs))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def rows(outputs, folder):
    return [row for path in sorted((outputs / folder).glob("*")) for row in shards.read(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    ended = launch("filter.py:tiny", tmp_path_factory.mktemp("whole") / "run", *SMALL)
    assert ended.code == 0, ended.err
    return ended.workdir


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_each_document_has_one_decision_and_lies_in_one_place(whole):
    outputs = whole / "clean"
    texts = {d["id"]: d["text"] for d in toyweb.documents(120, seed=0)}
    decisions = rows(outputs, "decisions")
    assert sorted(row["id"] for row in decisions) == sorted(texts)
    kept = {row["id"]: row for row in rows(outputs, "documents")}
    removed = [row["id"] for step in ("rules", "duplicates", "align") for row in rows(outputs, f"removed/{step}")]
    assert sorted([*kept, *removed]) == sorted(texts)
    for row in decisions:
        assert row["text_sha256_in"] == hashlib.sha256(texts[row["id"]].encode()).hexdigest()
        text = kept[row["id"]]["text"] if row["id"] in kept else None
        assert row["text_sha256_out"] == ("" if text is None else hashlib.sha256(text.encode()).hexdigest())
        assert (row["action"] == "drop") == (text is None)
        assert row["action"] == "keep" or row["rule"]
    found = summary(whole)
    assert found["docs_in"] == 120 == found["docs_kept"] + found["docs_dropped"] + found["bad_records"]
    assert found["docs_dropped"] == sum(number for name, number in found.items() if name.startswith("drop/"))
    assert found["clean_rewritten"] == 0 and found["identity_rate"] == 1


@pytest.mark.parametrize("count", [2, 5])
def test_shares_of_an_array_leave_the_same_bytes(whole, tmp_path, monkeypatch, count):
    monkeypatch.setattr(experiment, "POLL_SECONDS", 0.02)
    summaries, errors = [None] * count, []

    def share(index):
        c = experiment.get_config("tiny")
        c.toyweb.num, c.slice_mb = 120, 0.03
        c.inputs, c.outputs = str(whole / "toyweb"), str(tmp_path / "clean")
        c.shard_index, c.shard_count = index, count
        (tmp_path / str(index)).mkdir()
        try:
            summaries[index] = experiment.run(c, str(tmp_path / str(index)))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=share, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        time.sleep(0.05)
    if errors:
        raise errors[0]
    assert digests(tmp_path / "clean") == digests(whole / "clean")
    timed = ("seconds", "docs_per_second")
    plain = [{k: v for k, v in found.items() if k not in timed} for found in summaries]
    assert all(found == plain[0] for found in plain)
    assert plain[0].items() <= summary(whole).items()


def write(path, values):
    path.write_bytes(b"".join(v if isinstance(v, bytes) else json.dumps(v).encode() + b"\n" for v in values))


def good(number, seed=3):
    documents = [d for d in toyweb.documents(80, seed=seed) if d["metadata"]["planted"] == "clean"]
    return [{"id": d["id"], "text": d["text"], "url": "https://example.org/a"} for d in documents[:number]]


def test_damaged_records_are_set_aside_with_their_place_and_the_rest_is_complete(tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    found = good(12)
    broken = [b'{"id": "x", "text"\n', b'{"id": "y", "text": "\xff"}\n', {"id": "no text"}, {"text": "no id"}]
    blank, twice = {"id": "blank", "text": "  "}, found[0] | {"text": found[0]["text"] + " Once more."}
    long = {"id": "long", "text": "a " * 600_000}
    write(inputs / "a.jsonl", [*found[:6], *broken, blank, twice, long, *found[6:9]])
    whole = gzip.compress(b"".join(json.dumps(v).encode() + b"\n" for v in found[9:]), mtime=0)
    (inputs / "b.jsonl.gz").write_bytes(whole[: len(whole) - 30])
    (inputs / "c.jsonl").write_bytes(b"")
    ended = launch(
        "filter.py", tmp_path / "run", *QUIET, f"--config.inputs={inputs}", "--config.read.max_document_mb=1"
    )
    assert ended.code == 3, ended.err
    told = summary(tmp_path / "run")
    errors = rows(tmp_path / "run/clean", "errors")
    assert told["bad_records"] == len(errors) >= 8
    assert told["docs_in"] == told["docs_kept"] + told["docs_dropped"] + told["bad_records"]
    kept = {row["id"] for row in rows(tmp_path / "run/clean", "decisions")}
    assert {d["id"] for d in found[:9]} <= kept and "blank" not in kept
    assert {row["file"] for row in errors} == {"a.jsonl", "b.jsonl.gz"}
    assert any("duplicate id" in row["reason"] for row in errors)
    assert any("truncated" in row["reason"] for row in errors)
    again = launch(
        "filter.py", tmp_path / "run", *QUIET, f"--config.inputs={inputs}", "--config.read.max_document_mb=1"
    )
    assert again.code == 3 and "finished already" in again.out


@pytest.fixture(scope="module")
def clean_input(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    write(folder / "a.jsonl", good(5))
    return folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.inputs=nowhere/*.jsonl",), ("nowhere",)),
        (("--config.packs=('xx',)",), ("xx", "en")),
        (("--config.chain=('gofer',)",), ("gofer", "gopher_quality")),
        (("--config.rules.gopher_quality.min_wrods=3",), ("min_wrods", "min_words")),
        (("--config.skip=()",), ("safety", "path", "skip")),
        (("--config.skip=('safty',)",), ("safty", "safety")),
        (("--config.executor=threads",), ("threads", "process")),
        (("--config.compression=zip",), ("zip", "zst")),
        (("--config.shard_index=3", "--config.shard_count=2"), ("shard_index=3",)),
        (("--config.router.keep_at=3", "--config.router.drop_at=3"), ("keep_at", "drop_at")),
        (("--config.redo=('score.x',)",), ("score.x", "align")),
        (("--config.slice_mb=-1.0",), ("slice",)),
        (("--config.ray.resources='TPU'",), ("TPU",)),
        (("--config.dedup.unit=letters",), ("letters",)),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(clean_input, tmp_path, flags, words):
    defaults = (*QUIET, f"--config.inputs={clean_input}")
    names = {flag.split("=")[0] for flag in flags}
    ended = launch("filter.py", tmp_path / "run", *[f for f in defaults if f.split("=")[0] not in names], *flags)
    assert ended.code == 2, ended.err
    assert all(word in ended.err for word in words), ended.err
    assert not list((tmp_path / "run").glob("clean/documents/*"))


def test_outputs_of_another_config_are_refused_and_redo_replaces_them(clean_input, tmp_path):
    flags = (*QUIET, f"--config.inputs={clean_input}", f"--config.outputs={tmp_path / 'out'}")
    assert launch("filter.py", tmp_path / "a", *flags).code == 0
    other = (*flags, "--config.samples=3")
    ended = launch("filter.py", tmp_path / "b", *other)
    assert ended.code == 2 and "another config" in ended.err
    before = (tmp_path / "out/stages/passed/00000.jsonl.zst").stat().st_mtime_ns
    ended = launch("filter.py", tmp_path / "c", *other, "--config.redo=('align',)")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out/stages/passed/00000.jsonl.zst").stat().st_mtime_ns == before


def test_a_changed_input_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", good(3))
    flags = (*QUIET, f"--config.inputs={tmp_path / 'a.jsonl'}", f"--config.outputs={tmp_path / 'out'}")
    assert launch("filter.py", tmp_path / "one", *flags).code == 0
    write(tmp_path / "a.jsonl", good(4))
    ended = launch("filter.py", tmp_path / "two", *flags)
    assert ended.code == 2 and "a.jsonl" in ended.err


def test_without_a_scorer_the_report_says_so_and_a_heavy_rule_is_named_first(tmp_path):
    write(tmp_path / "a.jsonl", [{"id": str(i), "text": f"Far too short a text, number {i}."} for i in range(30)])
    ended = launch("filter.py", tmp_path / "run", *QUIET, f"--config.inputs={tmp_path / 'a.jsonl'}")
    assert ended.code == 0, ended.err
    lines = (tmp_path / "run/findings.txt").read_text().splitlines()
    assert lines[0].startswith("Warning: ") and "of source" in lines[0]
    assert any("not scored" in line for line in lines)
    assert summary(tmp_path / "run")["counter/url/no_url"] == 30


def test_a_rewriter_that_is_down_stops_the_run_with_its_work_saved(whole, tmp_path):
    flags = (*SMALL, "--config.rewriter.backend=openai", "--config.rewriter.url=http://127.0.0.1:9/v1")
    flags += ("--config.rewriter.model=any",)
    ended = launch("filter.py:tiny", tmp_path / "run", *flags, "--config.rewriter.retries=0")
    assert ended.code == 75, ended.err
    assert "down" in ended.out + ended.err
    assert len(list((tmp_path / "run/clean/stages/passed").iterdir())) > 1

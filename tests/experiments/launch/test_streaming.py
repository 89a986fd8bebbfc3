"""A streamed corpus: what is refused, what is counted, and where the index lies."""

import json

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.train import sharding
from data.texts import streams
from data.tokens import tokenizer
from experiments import pretrain, sft
from experiments.launch import lm, streaming


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for shard in range(3):
        rows = [json.dumps({"text": f"document {100 * shard + n}"}) for n in range(100)]
        rows[5] = json.dumps({"text": " "})
        (tmp_path / f"corpus/{shard}.jsonl").write_text("\n".join(rows if shard else [*rows, "cut sho"]))
    return tmp_path / "corpus"


def config(corpus, experiment=pretrain, **changes):
    c = experiment.get_config("tiny")
    c.data.update(path=str(corpus), limit=None, heldout_fraction=0.1)
    c.stream.update(on=True, window=16, lanes=4)
    c.update_from_flattened_dict(changes)
    return c


def load(c, workdir):
    tok, mesh = tokenizer.load("bytes"), sharding.make_mesh(**c.mesh)
    options = dict(kind="documents", tokenizer=tok, seed=c.seed, bad_records_path=str(workdir / "bad.jsonl"))
    return streaming.load(c, mesh, workdir, **options)


def test_all_lines_are_counted_and_those_set_aside_have_a_place(tmp_path, corpus):
    shared, heldout, counts = load(config(corpus), tmp_path)
    assert counts["usable records"] + counts["empty text"] + counts["records set aside, with file and line"] == 301
    assert counts["training records"] + heldout.num_texts == counts["usable records"] == 297
    (bad,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert bad["file"].endswith("0.jsonl") and bad["line"] == 101
    assert next(shared)["tokens"].shape == (8, 64)
    assert np.array(shared.get_state()["lanes"]).shape == (4, 2 + len(streams.COUNTS)) and shared.counts() == {}
    _, _, few = load(config(corpus, **{"data.limit": 50}), tmp_path)
    assert few["usable records"] == 50 and few["records beyond data.limit"] == 247


def test_folders_of_array_records_pass_the_checks_and_split_by_their_names(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    (tmp_path / "corpus").mkdir()
    for name, num in (("train-0", 20), ("train-1", 15), ("validation", 6)):
        writer = module.ArrayRecordWriter(str(tmp_path / f"corpus/{name}.array_record"), "group_size:1")
        for n in range(num):
            writer.write(json.dumps({"text": f"{name} {n}"}).encode())
        writer.close()
    c = config(tmp_path / "corpus")
    lm.check_rows(c, "documents")
    _, heldout, counts = load(c, tmp_path)
    assert counts["training records"] == 35 and heldout.num_texts == 6
    lone = config(tmp_path / "corpus/train-0.array_record", **{"data.heldout_path": str(tmp_path / "corpus")})
    lm.check_rows(lone, "documents")
    assert load(lone, tmp_path)[1].num_texts == 41


def test_too_many_bad_lines_stop_the_run(tmp_path, corpus):
    (corpus / "3.jsonl").write_text("oops\n" * 4)
    with pytest.raises(InputError, match=r"5 of 305 lines \(1\.6 %\) are unreadable"):
        load(config(corpus), tmp_path)


def test_the_index_lies_in_the_workdir_or_the_sweep_s_folder_or_where_the_config_says(tmp_path):
    assert streaming.index_folder(tmp_path / "run", None) == tmp_path / "run/index"
    assert streaming.index_folder(tmp_path / "run", "elsewhere").name == "elsewhere"
    (tmp_path / "sweep.json").touch()
    assert streaming.index_folder(tmp_path / "run", None) == tmp_path / "index"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stream.on": False}, "stream.window=16 is not read without stream.on=True"),
        ({"stream.lanes": 3}, "does not divide batch_size=8"),
        ({"steps": 0}, "steps=0 trains nothing"),
        ({"data.heldout_split": "test"}, "data.heldout_split='test' is not read"),
        ({"data.path": "synthetic:documents"}, "not a set of files that can be read by number.*stream.on=False"),
    ],
)
@pytest.mark.parametrize("experiment", [pretrain, sft])
def test_what_a_streamed_run_does_not_read_is_refused_before_it_begins(corpus, experiment, changes, words):
    c = config(corpus, experiment, **changes)
    with pytest.raises(InputError, match=words):
        lm.check_rows(c, "documents")
    lm.check_rows(config(corpus, experiment), "documents")

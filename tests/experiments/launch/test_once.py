import pathlib

import ml_collections

from data.texts import preferences
from experiments.launch import once


def test_an_equal_origin_is_made_once_within_a_sweep_and_each_time_outside():
    calls = []

    def make(**made_from):
        return once.made("data", made_from, lambda: calls.append(made_from) or len(calls))

    assert [make(seed=0), make(seed=0)] == [1, 2]
    with once.shared():
        assert [make(seed=0), make(seed=0), make(seed=1), make(seed=0)] == [3, 3, 4, 5]  # the last alone stays
        assert once.made("other", {"seed": 0}, lambda: "else") == "else"
    assert make(seed=0) == 6


def test_points_share_pairs_and_each_is_left_what_was_set_aside(tmp_path, monkeypatch):
    reads = []

    def load(*, tokenizer, bad_records_path, **options):
        reads.append(options)
        pathlib.Path(bad_records_path).write_text("one line\n")
        return "train", "heldout", {"read": 3}

    monkeypatch.setattr(preferences, "load", load)
    c = ml_collections.ConfigDict(dict(seed=0, tokenizer="", init_from="", data=dict(path="a"), objective=dict(beta=1)))
    with once.shared():
        for number in range(3):
            workdir = tmp_path / str(number)
            workdir.mkdir()
            c.objective.beta, c.seed = number, number // 2
            train, heldout, counts = once.load_pairs(c, None, workdir, unpair=False)
            assert (train, heldout, counts) == ("train", "heldout", {"read": 3})
            counts["of this point"] = 1
            assert (workdir / "bad_records.jsonl").read_text() == "one line\n"
    assert [options["seed"] for options in reads] == [0, 1]

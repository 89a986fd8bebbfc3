"""What DPO stores of its reference, and runs with nothing held out."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alignment import files
from alignment.errors import InputError
from alignment.preference import pairs
from experiments.launch import references
from tests.experiments.conftest import launch
from tests.preference import test_pairs
from tests.train import helpers

SHAPE = (3, 2, 4)
MADE_FROM = {"pairs": "a", "weights": "b"}


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "reference/train.npy"
    files.write_json(path.with_suffix(".json"), MADE_FROM)
    files.write(path, lambda f: np.save(f, np.ones(SHAPE, np.float32)))
    return path


def test_a_reference_of_these_pairs_and_weights_is_taken_up_again(stored):
    np.testing.assert_array_equal(references.read(stored, SHAPE, MADE_FROM), np.ones(SHAPE))


@pytest.mark.parametrize("changed", ["pairs", "weights"])
def test_a_reference_of_other_pairs_or_weights_of_the_same_shape_is_refused(stored, changed):
    with pytest.raises(InputError, match=rf"train\.npy was computed from other {changed} than this run has now"):
        references.read(stored, SHAPE, MADE_FROM | {changed: "c"})


def score(split, folder, workdir, monkeypatch, params=None, **changes):
    """Reference log-probabilities of a split, and how many answers were computed for them."""
    computed = []

    def counted(model, params, batches, lengths, mesh):
        computed.append(len(lengths))
        return score_answers(model, params, batches, lengths, mesh)

    score_answers = pairs.score_answers
    monkeypatch.setattr(pairs, "score_answers", counted)
    args = helpers.model(**changes), helpers.start_params() if params is None else params, split, helpers.make_mesh()
    found = references.stored(*args, workdir / "train.npy", MADE_FROM, batch_size=4, folder=folder)
    monkeypatch.setattr(pairs, "score_answers", score_answers)
    return found, sum(computed)


def test_a_second_run_computes_nothing_and_a_changed_answer_is_computed_alone(tmp_path, monkeypatch):
    data, folder = test_pairs.make_pairs(), tmp_path / "shared"
    first, num_first = score(data, folder, tmp_path / "a", monkeypatch)
    assert num_first == 16
    again, num_again = score(data, folder, tmp_path / "b", monkeypatch)  # loss, beta, order: nothing here reads them
    assert num_again == 0
    np.testing.assert_array_equal(again, first)

    tokens = data.tokens.copy()
    tokens[data.starts[6] - 1] += 1  # the last token of pair 2's rejected answer
    edited = dataclasses.replace(data, tokens=tokens)
    third, num_third = score(edited, folder, tmp_path / "c", monkeypatch)
    assert num_third == 1
    others = np.arange(8) != 2
    np.testing.assert_array_equal(third[others], first[others])
    assert not np.array_equal(third[2, 1], first[2, 1])
    alone, num_alone = score(edited, "", tmp_path / "d", monkeypatch)
    assert num_alone == 16
    np.testing.assert_allclose(third, alone, atol=1e-5)


def test_other_weights_or_numerics_compute_all_again(tmp_path, monkeypatch):
    data, folder = test_pairs.make_pairs(), tmp_path / "shared"
    score(data, folder, tmp_path / "a", monkeypatch)
    moved = jax.tree.map(lambda x: x * 1.001, helpers.start_params())
    assert score(data, folder, tmp_path / "b", monkeypatch, params=moved)[1] == 16
    assert score(data, folder, tmp_path / "c", monkeypatch, attention="dense")[1] == 16


def test_processes_take_what_the_first_one_has_read(monkeypatch):
    first = [np.array([-1.0, -2.0], np.float32), None, np.array([-3.0], np.float32)]
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(references.multihost_utils, "broadcast_one_to_all", lambda tree: sent.append(tree) or sent[0])
    for own in (first, [None, None, None]):  # the second process has read before another run wrote
        found = references._agreed(own, [2, 3, 1])
        assert [None if one is None else one.tolist() for one in found] == [[-1, -2], None, [-3]]


def test_the_points_of_a_sweep_share_the_sweep_s_folder(tmp_path):
    workdir = tmp_path / "objective.beta=0.1"
    assert references.folder_of(workdir, "") == ""
    (tmp_path / "sweep.json").write_text("{}")
    assert references.folder_of(workdir, "") == str(tmp_path / "references")
    assert references.folder_of(workdir, "mine") == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "sft", "pretrain"])
def test_a_run_trains_with_nothing_held_out(tmp_path, name):
    ended = launch(f"{name}.py:tiny", tmp_path / "run", "--config.data.heldout_fraction=0.0", "--config.steps=2")
    assert ended.code == 0, ended.err
    assert "heldout/loss" not in json.loads((ended.workdir / "summary.json").read_text())

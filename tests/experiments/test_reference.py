"""What DPO stores of its reference, and runs with nothing held out."""

import json

import numpy as np
import pytest

from alignment import files
from alignment.errors import InputError
from experiments.launch import references
from tests.experiments.conftest import launch

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "sft", "pretrain"])
def test_a_run_trains_with_nothing_held_out(tmp_path, name):
    ended = launch(f"{name}.py:tiny", tmp_path / "run", "--config.data.heldout_fraction=0.0", "--config.steps=2")
    assert ended.code == 0, ended.err
    assert "heldout/loss" not in json.loads((ended.workdir / "summary.json").read_text())

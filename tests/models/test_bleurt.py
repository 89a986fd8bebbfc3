import numpy as np
import pytest
import safetensors.numpy

from alignment.errors import InputError
from alignment.models import bleurt
from tests.models import test_bert


def head(labels=1):
    rng = np.random.default_rng(1)
    shapes = {"bert.pooler.dense": (8, 8), "classifier": (labels, 8)}
    out = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return out | {f"{name}.bias": rng.normal(size=shape[0]).astype(np.float32) for name, shape in shapes.items()}


def write(folder, more):
    tensors = test_bert.stored_tensors("bert.") | more
    return test_bert.write(folder, tensors=tensors)


def test_a_pair_has_its_grade_whatever_pairs_stand_beside_it_and_its_order_counts(tmp_path):
    scorer = bleurt.load(write(tmp_path / "b", head()))
    candidates, references = ["give iron", "iron", "give iron s . e . e"], ["give irons orally", "e", "iron"]
    together = scorer.score(candidates, references)
    alone = [scorer.score([a], [b])[0] for a, b in zip(candidates, references)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(scorer.score(references, candidates) - together).min() > 1e-3


def test_folders_that_grade_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"lacks pooler\.dense\.weight"):
        bleurt.check(write(tmp_path / "a", {}))
    with pytest.raises(InputError, match=r"classifier\.weight is \(3, 8\)"):
        bleurt.load(write(tmp_path / "b", head(labels=3)))
    folder = write(tmp_path / "c", head())
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    del stored["classifier.bias"]
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks classifier\.bias"):
        bleurt.check(folder)

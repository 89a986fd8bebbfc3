import dataclasses
import types

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import objectives
from data.tokens import learning, tokenizer
from experiments import genarm
from experiments.guidance import training
from experiments.guidance.training import Trained


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A function: texts -> a tokenizer learned from them."""

    def learn(*texts):
        path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
        path.write_text(learning.byte_pairs(texts, 264))
        return tokenizer.load(str(path))

    return learn


def test_a_reward_model_of_other_tokens_is_refused_and_the_first_that_differs_is_named(learned):
    tok, other = learned("aa aa aa ab ab"), learned("zz zz zz zy zy")
    training.check_same_tokens(tok, learned("aa aa aa ab ab"))
    with pytest.raises(InputError, match=r"token \d+ is b'.*' to the base and b'.*' to the reward models"):
        training.check_same_tokens(tok, other)
    with pytest.raises(InputError, match="token"):
        training.check_same_tokens(tok, tokenizer.load("bytes"))


def test_more_special_tokens_at_the_end_are_no_difference_and_are_said(learned, capsys, monkeypatch):
    tok = learned("aa aa aa ab ab")
    table = training.pieces.pieces(tok)
    longer = dataclasses.replace(tok, name="longer")
    monkeypatch.setattr(training.pieces, "pieces", lambda one: [*table, b"", b""] if one is longer else table)
    training.check_same_tokens(tok, longer)
    assert "are never chosen" in capsys.readouterr().out
    monkeypatch.setattr(training.pieces, "pieces", lambda one: [*table, b"more"] if one is longer else table)
    with pytest.raises(InputError, match="vocabularies have"):
        training.check_same_tokens(tok, longer)


def test_a_soup_is_the_weighted_mean_of_what_was_trained_and_its_corners_are_the_models():
    network = types.SimpleNamespace()
    models = [Trained(network, {"w": np.float32([i, 10])}, f"run:{i}", own={"w": np.float32([i, 10])}) for i in (1, 5)]
    np.testing.assert_allclose(training.soup(models, (0.25, 0.75)).params["w"], [4, 10])
    for corner, model in zip(((1.0, 0.0), (0.0, 1.0)), models):
        np.testing.assert_array_equal(training.soup(models, corner).params["w"], model.params["w"])


def test_a_reward_model_that_tells_nothing_apart_is_said_after_enough_updates(capsys):
    training.say_if_stuck("kind", 99, 0.05, {"heldout/loss": 0.6931})
    training.say_if_stuck("kind", 100, 0.05, {"heldout/loss": 0.6})
    assert capsys.readouterr().out == ""
    training.say_if_stuck("kind", 100, 0.05, {"heldout/loss": 0.6931})
    assert "kind: the held-out loss is still ln 2" in capsys.readouterr().out


def test_what_measures_has_read_no_prompt_that_any_other_model_has(tmp_path):
    c = genarm.get_config("tiny")
    c.data.heldout_fraction, c.data.max_len, c.templates.reward = 0.2, 400, "Q: {prompt}"
    read = objectives.read(c.data.path, limit=60, counts={})
    counts = {}
    own = training.load_objectives(c, read, tokenizer.load("bytes"), tmp_path, counts, measuring_fraction=0.5)
    assert [each.name for each in own] == ["brief", "courteous", training.ALL]
    measured = {item.group for each in own for item in each.measuring.items}
    others = {
        item.group for each in own for splits in (each.base, each.reward) for part in splits for item in part.items
    }
    assert measured and others and not measured & others
    for each in own[:2]:
        assert {i.group for i in each.base[0].items} == {i.group for i in each.reward[0].items}
        assert counts[f"{each.name}: of the training pairs, set aside to measure"] == len(each.measuring) > 10
    whole = training.load_objectives(c, read, tokenizer.load("bytes"), tmp_path, {})
    assert whole[0].measuring is None and len(whole[0].base[0]) == len(own[0].base[0]) + len(own[0].measuring)

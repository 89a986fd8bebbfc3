import json

import jax
import ml_collections
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import lora, peft_adapters
from experiments.decoding import guides, models
from tests.experiments.conftest import launch
from tests.models.test_lora import moved


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The random model of `tiny`."""
    c = ml_collections.ConfigDict(models.settings("tiny"))
    return models.load(c, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter_folder(model, tmp_path_factory):
    """An adapter that changes what the model writes, as peft keeps it."""
    folder = tmp_path_factory.mktemp("adapter") / "loud/export/peft"
    adapter = lora.lay_out(lora.Settings(rank=2, alpha=200.0), model.network)
    peft_adapters.save(folder, adapter, moved(adapter))
    return folder


def parsed(*texts, weights=()):
    return guides.parse(ml_collections.ConfigDict(dict(guides=texts, guide_weights=weights)))


def test_a_guide_is_named_by_its_folder_or_by_its_user(adapter_folder):
    named, own = parsed(f"peft:{adapter_folder}", f"soft.one=peft:{adapter_folder}", weights=(0.5, -1))
    assert (named.name, named.weight) == ("loud", 0.5) and (own.name, own.weight) == ("soft.one", -1.0)


@pytest.mark.parametrize(
    ("texts", "weights", "said"),
    [
        (("peft:nowhere",), (), "adapter_config.json does not exist"),
        (("run:nowhere",), (), "model.json is not there"),
        (("toy",), (), "a guide is run:<workdir>, peft:<folder>"),
        (("{}", "{}"), (), "'loud' is the name of several guides; name one yourself"),
        (("base={}",), (), "'base' is the name of the model itself"),
        (("{}",), (1.0, 2.0), "guide_weights has 2 numbers for 1 guides"),
        (("{}",), (float("nan"),), "guide_weights has nan"),
        ((), (1.0,), "guide_weights has 1 numbers for 0 guides"),
    ],
)
def test_guides_that_cannot_be_are_refused(texts, weights, said, adapter_folder):
    with pytest.raises(InputError) as refused:
        parsed(*(text.format(f"peft:{adapter_folder}") for text in texts), weights=weights)
    assert said in str(refused.value)
    with pytest.raises(InputError, match="is one text; write a tuple"):
        guides.parse(ml_collections.ConfigDict(dict(guides="run:a", guide_weights=())))
    with pytest.raises(InputError, match="guides has 1; a guide is a text"):
        guides.parse(ml_collections.ConfigDict(dict(guides=(1,), guide_weights=())))


def test_weights_go_by_name_and_the_unnamed_weigh_nothing(model, adapter_folder):
    text = f"peft:{adapter_folder}"
    opened = guides.open_guides(parsed(f"a={text}", f"b={text}"), model)
    assert opened.weights_of({"b": 2}) == {"guide_weights": (0.0, 2.0), "base_weight": 1.0}
    assert opened.weights_of({"a": 1, "base": 0}) == {"guide_weights": (1.0, 0.0), "base_weight": 0.0}
    with pytest.raises(InputError, match="guide='c' is not one of: a, b, base"):
        opened.weights_of({"c": 1.0})


def test_an_adapter_is_loaded_beside_the_model_and_its_digest_names_its_bytes(model, adapter_folder, tmp_path):
    loaded = guides.load(guides.open_guides(parsed(f"peft:{adapter_folder}"), model), model)
    ((adapter, tree),) = loaded.members
    assert isinstance(adapter, lora.Adapter) and loaded.toks == (None,)
    peft_adapters.save(tmp_path / "loud", adapter, jax.tree.map(lambda x: 2 * x, tree))
    other = guides.load(guides.open_guides(parsed(f"peft:{tmp_path / 'loud'}"), model), model)
    assert other.names == loaded.names and other.digest != loaded.digest


def test_generate_is_guided_and_keeps_each_models_trace(adapter_folder, tmp_path):
    flags = ("--config.limit=3", "--config.logprobs=0")
    guide = (f"--config.guides=('peft:{adapter_folder}',)",)
    runs = {
        name: launch("generate.py:tiny", tmp_path / name, *flags, *more)
        for name, more in {
            "plain": (),
            "off": (*guide, "--config.guide_weights=(0.0,)"),
            "on": (*guide, "--config.guide_weights=(3.0,)"),
        }.items()
    }
    rows = {}
    for name, ended in runs.items():
        assert ended.code == 0, ended.err
        rows[name] = [json.loads(line) for line in (ended.workdir / "generations.jsonl").read_text().splitlines()]
    for plain, off, on in zip(*rows.values()):
        assert off["response"] == plain["response"] and off["guidance"] == {"loud": 0.0} and "guidance" not in plain
        np.testing.assert_allclose(off["by_model"]["base"], plain["logprobs"], atol=2e-5)
        assert on["response"] != plain["response"] and len(on["by_model"]["loud"]) == on["num_tokens"]


def test_generate_refuses_a_guide_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "with_weights", lambda *_: pytest.fail("weights were read"))
    ended = launch("generate.py:tiny", tmp_path / "run", "--config.guides=('peft:nowhere',)")
    assert ended.code == 2 and "nowhere" in ended.err and "Traceback" not in ended.err

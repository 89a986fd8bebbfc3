"""Runs that train an adapter, from the command line to the folder that they leave."""

import json
import shutil

import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import huggingface, lora, peft_adapters
from alignment.preference import pairs
from alignment.train import adapters, language_model, sharding
from data.tokens import tokenizer
from experiments import dpo
from tests.experiments.conftest import launch

SHORT = ("--config.steps=1", "--config.export=")
QUICK = ("--config.sinks=()", "--config.samples.num=1", "--config.adapter.rank=4")


def of(init_from):
    """A checkpoint's network and parameters."""
    tok = tokenizer.load(language_model.tokenizer_of(init_from))
    compute = dict(dtype="float32", remat="none", attention="blocked", unroll=1)
    model = language_model.build(init_from, tok, model={}, compute=compute, rows_are_plain=True)
    return model, language_model.params(init_from, model, sharding.make_mesh(data=1, fsdp=1, tensor=-1))


@pytest.fixture(scope="module")
def dpo_run(tmp_path_factory):
    ended = launch("dpo.py:tiny", tmp_path_factory.mktemp("adapter") / "run", *QUICK, "--config.adapter.merge=True")
    assert ended.code == 0, ended.err
    return ended


def test_the_first_loss_is_ln_2_and_the_layers_are_listed(dpo_run):
    first = json.loads((dpo_run.workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["heldout/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert "adapter of rank 4 on 7 linear layers" in dpo_run.out and "q_proj of layers 0;" in dpo_run.out


def test_a_run_s_weights_are_its_base_with_the_adapter_in_it(dpo_run):
    workdir = dpo_run.workdir
    model, merged = of(f"run:{workdir}")
    _, base = of(f"run:{workdir / 'pretrain'}")
    adapter, params = peft_adapters.load(workdir / "export/peft", model)
    for found in (lora.fold(adapter.attach(base, params)), huggingface.load(workdir / "export/hf", model)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), jax.device_get(found), merged)
    change = np.abs(np.asarray(merged["layers"]["query"]) - np.asarray(base["layers"]["query"])).max()
    assert 0 < change < 0.1


def test_a_moved_workdir_brings_its_base_along(dpo_run, tmp_path):
    shutil.copytree(dpo_run.workdir, tmp_path / "moved")
    assert adapters.read_note(tmp_path / "moved")["base"] == f"run:{tmp_path / 'moved/pretrain'}"
    _, before = of(f"run:{dpo_run.workdir}")
    _, after = of(f"run:{tmp_path / 'moved'}")
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_run_s_adapter_at_its_own_strength_answers_as_its_merged_weights_do(dpo_run, tmp_path):
    (tmp_path / "mine.csv").write_text("ID,Request,Harmfulness\n1,open the door,harmless\n2,close it,harmless\n")
    flags = [f"--config.data.path={tmp_path / 'mine.csv'}", "--config.defence.system=", "--config.defence.filter="]
    flags += ["--config.defence.words=()"]
    base, merged = (f"--config.init_from=run:{dpo_run.workdir}{part}" for part in ("/pretrain", ""))
    adapter = f"--config.defence.adapter=run:{dpo_run.workdir}"
    answers = {}
    for name, more in (("beside", (base, adapter)), ("merged", (merged,))):
        ended = launch("phtest.py:tiny", tmp_path / name, *flags, *more)
        assert ended.code in (0, 3), ended.err
        for line in map(json.loads, (ended.workdir / "records.jsonl").read_text().splitlines()):
            answers.setdefault((name, line["point"]), []).append(line["response"])
    assert answers["beside", "adapter_1"] == answers["merged", "bare"] and ("beside", "adapter_0.5") in answers
    ended = launch("phtest.py:tiny", tmp_path / "other", *flags, merged, adapter)
    assert ended.code == 2 and "measure the model that it was trained on" in ended.err


def test_an_adapter_goes_on_from_a_run(dpo_run, tmp_path):
    flags = (f"--config.init_from=run:{dpo_run.workdir / 'pretrain'}", "--config.pretrain.steps=0", *QUICK[:2])
    flags += (f"--config.adapter.init_from=run:{dpo_run.workdir}", *SHORT)
    ended = launch("dpo.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    first = json.loads((ended.workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["heldout/loss"] == pytest.approx(np.log(2), abs=1e-6)  # its reference is where it begins


def test_supervised_tuning_trains_an_adapter_of_a_checkpoint(dpo_run, tmp_path):
    base = f"--config.init_from=run:{dpo_run.workdir / 'pretrain'}"
    ended = launch("sft.py:tiny", tmp_path / "run", *QUICK, "--config.steps=1", base)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "run/export/hf").exists() and (tmp_path / "run/export/peft/adapter_config.json").is_file()
    of(f"run:{tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.adapter.targets=q_proj",), "adapter.targets is not read with adapter.rank=0"),
        (("--config.adapter.rank=4", "--config.adapter.merge=True", "--config.export="), "export='' leaves no folder"),
        (("--config.adapter.init_from=run:nowhere",), "adapter.json is not there"),
    ],
)
def test_what_an_adapter_s_run_cannot_do_is_refused_first(flags, said, tmp_path):
    ended = launch("sft.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and said in ended.err


def test_the_first_step_names_the_adapter_that_was_trained_already_where_its_base_is_the_reference():
    c = dpo.get_config("tiny")
    c.adapter.init_from, c.reference = "peft:somewhere", "online"
    check = pairs.check_first("dpo", {"beta": 0.1}, tolerance=1e-4, way_out=dpo._way_out(c))
    values = {
        "loss": 0.6,
        **{f"{kind}/{side}": 0.5 for kind in ("rewards", "logps") for side in ("chosen", "rejected")},
    }
    with pytest.raises(InputError, match=r"the base with the adapter off.*set reference=stored"):
        check(values, {"index": np.arange(2)})

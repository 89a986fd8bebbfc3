"""Every experiment refuses what needs neither data nor devices to be seen before its folder is made."""

import contextlib
import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from alignment.errors import InputError
from experiments import run
from experiments.launch import checks
from experiments.launch import config as configs
from experiments.launch import workdir as workdirs
from tests.experiments.conftest import ROOT
from tests.experiments.launch.test_config import STUB

NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem not in ("__init__", "run"))
OF_TEXT = ("dpo", "native_alignment", "pretrain", "rewriter", "sft")  # those that have a language model

REFUSED = {
    "rewriter": [
        ("steps=-1", "steps=-1 must be at least 1"),
        ("epochs=0.0", "epochs=0.0 must be above 0"),
        ("warmup=1.5", "warmup=1.5 must be in [0, 1]"),
        ("loop.patience=2", "patience=2 counts evaluations"),
        ("prompt=ful", "the nearest is 'full'"),
        ("conduct=en-neutrl", "the nearest is 'en-neutral'"),
        ("data.heldout_fraction=1.0", "heldout_fraction=1.0"),
        ("identity_share=1.0", "identity_share=1.0"),
        ("rows.max_len=1", "rows.max_len=1 must be at least 2"),
        ("heldout.num=0", "heldout.num=0 must be at least 1"),
        ("max_origin=0", "max_origin=0"),
        ("optimizer.schedule=step", "schedule='step'"),
        ("model.num_heads=3", "num_heads=3"),
        ("tokenizer=nowhere", "no such file or folder"),
        ("data.path=nowhere.json", "no such file"),
    ],
    "scorer": [
        ("kind=linea", "the nearest is 'linear'"),
        ("objective=softmx", "the nearest is 'softmax'"),
        ("pool=mix", "the nearest is 'max'"),
        ("calibration=plat", "the nearest is 'platt'"),
        ("split.heldout=0.9", "fractions [0.2, 0.9]"),
        ("features.buckets=1000", "buckets=1000 must be a power of 2"),
        ("unsafe.level=0", "unsafe.level=0"),
        ("samples=-1", "samples=-1"),
        ("data.levels=('a','a')", "at least two different names"),
        ("optimizer.peak_lr=-1.0", "peak_lr=-1.0"),
        ("data.path=nowhere.jsonl", "no such file"),
    ],
    "mame": [
        ("data.source=folder:nowhere", "nowhere is not there; give the path of the folder"),
        ("data.source=photos", "source of pictures='photos'"),
        ("network.name=resnet81", "the nearest is 'resnet"),
        ("network.fields.widths=(1,2,3,4,5,6,7,8)", "16"),
        ("version=R65k", "version='R65k' is not one of: R65k-FS"),
        ("view.crop=99.0", "crop=99.0 of resize=16"),
        ("init_from=nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("lr=-1.0", "lr=-1.0 must be at least 0"),
        ("explain.methods=('lrpp',)", "the nearest is 'lrp'"),
        ("num_workers=-1", "num_workers=-1 must be at least 0"),
    ],
    "focus": [
        ("init_from=run:nowhere", "nowhere/image_model.json is not there"),
        ("init_from=checkpoint:nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("init_from=nowhere", "run:<workdir of mame.py>"),
        ("data.source=folder:nowhere", "nowhere is not there; give the path of the folder"),
        ("data.source=mosaics:nowhere", "init_from names the network"),
        ("data.split=tests", "the nearest is 'test'"),
        ("outer=balance", "the nearest is 'balanced'"),
        ("network.name=cn", "the nearest is 'cnn'"),
        ("options.lime.segmenter=slik", "the nearest is 'slic'"),
        ("per_class=0", "per_class=0"),
        ("limit.lime=0", "limit.lime=0 must be at least 1"),
        ("baseline.lr=-1.0", "baseline.lr=-1.0 must be at least 0"),
        ("baseline.steps=-1", "baseline.steps=-1"),
    ],
    "native_alignment": [
        ("data.path=nowhere", "has no folder"),
        ("arms=row", "the nearest is 'raw'"),
        ("tokenizer=nowhere", "no such file or folder"),
        ("data.max_len=1", "data.max_len=1"),
        ("dpo.beta=-1.0", "beta=-1.0"),
        ("sft.schedule=step", "schedule='step'"),
        ("model.num_heads=3", "num_heads=3"),
        ("benign.steps=-1", "benign.steps=-1"),
    ],
    "filter": [
        ("inputs=nowhere", "no such file"),
        ("redo=('scren',)", "the nearest is 'screen'"),
        ("executor=proces", "the nearest is 'process'"),
        ("shard_index=1", "shard_index=1 of shard_count=1"),
        ("ray.resources=TPU", "ray.resources='TPU'"),
        ("planted=nowhere.jsonl", "planted='nowhere.jsonl' is not there"),
        ("scorers.quality.path=nowhere", "scorers.quality.kind"),
        ("packs=('eng',)", "the nearest is 'en'"),
        ("rules.gopher_quality.min_words=default", "rules.gopher_quality.min_words"),
        ("rewriter.model=nowhere.json", "nowhere.json"),
        ("rewriter.conduct=en-neutrl", "the nearest is 'en-neutral'"),
        ("router.keep_at=5", "keep_at"),
        ("compression=zip", "compression"),
        ("max_bad=2.0", "max_bad=2.0"),
    ],
    "pretrain": [
        ("data.path=nowhere.jsonl", "no such file"),
        ("data.heldout_path=nowhere.jsonl", "no such file"),
        ("data.heldout_fraction=1.0", "heldout_fraction=1.0"),
        ("data.limit=0", "data.limit=0 must be at least 1"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("accumulate=0", "accumulate=0 must be at least 1"),
    ],
    "sft": [("data.turns=first", "turns='first'"), ("data.path=hub:owner", "must read hub:owner/name")],
    "aloe": [
        ("merge.methods=('tie',)", "the nearest is 'ties'"),
        ("sft.peak_lr=-1.0", "peak_lr=-1.0"),
        ("safety.path=nowhere.jsonl", "no such file"),
        ("asking.schemes=('medpromt',)", "the nearest is 'medprompt'"),
    ],
    "dpo": [("batch.layout=shred", "the nearest is 'shared'"), ("data.chat=allways", "the nearest is 'always'")],
}


def refusal(name, tmp_path, capsys, *flags):
    argv = ["--config", str(ROOT / f"experiments/{name}.py:tiny"), "--workdir", str(tmp_path / "run")]
    assert run.main([*argv, *flags]) == run.BAD_INPUT
    said = capsys.readouterr().err
    assert "Traceback" not in said and not (tmp_path / "run").exists()
    return said


@pytest.mark.parametrize(("name", "flag", "said"), [(n, f, s) for n, some in REFUSED.items() for f, s in some])
def test_a_wrong_setting_is_refused_before_a_folder_is_made(name, flag, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(name, tmp_path, capsys, f"--config.{flag}")


def keys_of(name):
    return workdirs.flatten(workdirs.plain(configs.load_experiment(f"{name}:tiny").config()))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_sink_and_a_wrong_mesh_are_refused_by_all_that_have_them(name, tmp_path, capsys):
    keys = keys_of(name)
    if "sinks" in keys:
        assert "the nearest is 'tensorboard'" in refusal(name, tmp_path, capsys, "--config.sinks=('tensorbord',)")
    if "mesh.fsdp" in keys:
        assert "sizes must be positive" in refusal(name, tmp_path, capsys, "--config.mesh.fsdp=0")


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_none_and_a_blank_text_are_refused_in_the_first_leaf_of_their_type(name):
    experiment = configs.load_experiment(f"{name}:tiny")
    default = experiment.config()
    keys = {type(value): key for key, value in reversed(list(checks.leaves(default)))}
    for kind, odd in ((float, float("nan")), (float, float("-inf")), (str, " "), (str, "\n")):
        if kind in keys:
            c = experiment.config()
            *groups, last = keys[kind].split(".")
            functools.reduce(getattr, groups, c)[last] = odd
            with pytest.raises(InputError, match=rf"{re.escape(keys[kind])}="):
                checks.check_config(experiment, c)


@pytest.mark.parametrize(
    ("key", "value", "kinds"),
    [
        ("stop", ("\n", "\n\n", " "), {str}),
        ("engine.stop", ("\n",), {str}),
        ("mark.deltas", tuple(np.float32([0.5, 1])), {float}),
        ("mark.keyring", tuple(np.arange(3)), {int}),
        ("judge.template", "", ()),
    ],
)
def test_texts_that_end_answers_and_numbers_of_numpy_are_taken_as_they_are(key, value, kinds):
    checks.check_value(key, value, kinds)
    with pytest.raises(InputError, match="is blank"):
        checks.check_value("name", ("\n",), {str})
    with pytest.raises(InputError, match="must be a finite number"):
        checks.check_value("deltas", (np.float32("nan"),), {float})


@pytest.mark.parametrize(
    ("name", "flag", "said"),
    [
        ("waves", "users=('many',)", "users=('many',) has the entry 'many' and must have numbers"),
        ("saflex", "strengths=(0.5,True)", "must have numbers"),
        ("sketch_gnn", "sketch.ratios=('half',)", "must have numbers"),
        ("llm_watermark", "mark.prompt_lens=('0',)", "must have numbers"),
        ("medguard", "models=(1,)", "models=(1,) has the entry 1 and must have texts"),
        ("aloe", "merge.also=(1,)", "must be names of models"),
        ("genarm", "model.num_heads=0", "model.num_heads=0 must be at least 1"),
        ("genarm", "data.chat=allways", "the nearest is 'always'"),
        ("genarm", "dpo.b2=1.0", "dpo.b2=1.0 must be in [0, 1)"),
        ("careqa", "rephrasing.limit=-1", "rephrasing.limit=-1 must be at least 0"),
        ("egida", "split.test_share=1.0", "test_share=1.0 must be in (0, 1)"),
        ("egida", "loop.patience=0", "patience=0"),
        ("medguard", "engine.attention=fusd", "engine.attention='fusd'"),
        ("aloe", "dtype=float8", "dtype='float8'"),
        ("focus", "dtype=float64", "dtype='float64' is not one of"),
        ("sft", "data.shares=('half',)", "data.shares=('half',)"),
        ("mame", "data.per_class=-1", "data.per_class=-1 must be at least 0"),
        ("filter", "gates.perplexity=fluent.score", "the nearest is 'fluency'"),
    ],
)
def test_what_a_setting_of_any_experiment_cannot_mean_is_refused_at_once(name, flag, said, tmp_path, capsys):
    assert said in refusal(name, tmp_path, capsys, f"--config.{flag}")


ODD = {int: 0, str: "nonsense", tuple: ("nonsense",)}
STRIDE = 17  # leaves, of which one is tried, so that all experiments together take two seconds


@pytest.mark.parametrize("number", range(0, len(NAMES), 3))
def test_no_value_of_a_leaf_is_a_crash_of_the_check(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(NAMES[number : number + 3]):
        experiment = configs.load_experiment(f"{name}:tiny")
        for key, value in list(checks.leaves(experiment.config()))[place::STRIDE]:
            if type(value) in ODD:
                c = experiment.config()
                *groups, last = key.split(".")
                functools.reduce(getattr, groups, c)[last] = ODD[type(value)]
                with contextlib.suppress(InputError):
                    checks.check(experiment, c)


@pytest.mark.parametrize("name", OF_TEXT)
@pytest.mark.parametrize("init_from", ["run:/nowhere", "hf:/nowhere", "gguf:/nowhere.gguf", "qwen"])
def test_weights_that_are_not_there_are_refused_by_all_that_begin_from_some(name, init_from, tmp_path, capsys):
    said = refusal(name, tmp_path, capsys, f"--config.init_from={init_from}", "--config.tokenizer=bytes")
    assert "init_from='qwen' must be" in said if init_from == "qwen" else "nowhere" in said


PATHS = ("init_from", "tokenizer", "data.path", "data.heldout_path", "data.source", "inputs", "outputs", "planted")
PATHS += ("embedding.model", "images", "prompts", "task_folder", "draft_from", "recipe")


@pytest.mark.parametrize("name", NAMES)
def test_an_object_store_is_refused_by_name_wherever_a_path_is_asked_for(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = [key for key in PATHS if key in keys_of(name)]
    assert paths
    for key in paths:
        for value in ("gs://b/x", "run:s3://b/x"):
            said = refusal(name, tmp_path, capsys, f"--config.{key}={value}")
            assert "names an object store; mount the bucket" in said and f"{key}=" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("packs=('en','gs://b/x.yaml')", "names an object store"),
        ("scorers.quality.path=az://b/x", "scorers.quality.path='az://b/x'"),
        ("rewriter.model=gs://b/x", "rewriter.model='gs://b/x'"),
        ("inputs=a.jsonl,gs://b/x.jsonl", "names an object store"),
        ("inputs=https://a.org/x.jsonl", "this names a web address; fetch it first"),
        ("inputs=hf://datasets/a/b", "write hub:owner/name"),
    ],
)
def test_an_address_is_found_in_lists_and_behind_prefixes(flag, said, tmp_path, capsys):
    assert said in refusal("filter", tmp_path, capsys, f"--config.{flag}")


def test_a_service_has_an_address():
    c = configs.load_experiment("filter:tiny").config()
    c.rewriter.url, c.ray.address = "http://127.0.0.1:1/v1", "ray://head:10001"
    checks.check(configs.load_experiment("filter:tiny"), c)


def test_a_finished_run_shows_its_summary_when_what_it_read_is_gone(tmp_path, monkeypatch, capsys):
    def refuse(*unused):
        raise InputError("the data are gone")

    argv = ["--config", str(STUB), "--workdir", str(tmp_path / "run")]
    assert run.main(argv) == 0
    monkeypatch.setattr(checks, "check", refuse)
    assert run.main(argv) == 0 and "is finished already" in capsys.readouterr().out
    assert run.main([*argv, "--config.steps=9"]) == 2 and "the data are gone" in capsys.readouterr().err


def test_no_check_starts_a_device():
    """A run of several processes must join them before JAX starts its devices, and checks come before that."""
    code = "\n".join(
        [
            "from experiments.launch import checks, config",
            f"for name in {NAMES}:",
            "    for setting in ('tiny', 'laptop'):",
            "        experiment = config.load_experiment(f'{name}:{setting}')",
            "        checks.check(experiment, experiment.config())",
            "from jax._src import xla_bridge",
            "assert not xla_bridge._backends, xla_bridge._backends",
        ]
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr

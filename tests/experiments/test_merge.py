"""Merging from the command line: what is left behind, what is refused, and a kill at any file."""

import json

import numpy as np
import pytest
import yaml

from alignment.models import tensors
from alignment.train import language_model
from data.tokens import tokenizer
from experiments.merging import toy, writing
from tests.experiments.conftest import launch
from tests.merging import folders

FILES = ("model.safetensors.index.json", "config.json", "tokenizer.json", "chat_template.jinja")


def recipe(tmp_path, **changes):
    content = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name)} for name in ("one", "other")],
        "parameters": {"weight": 0.5, "density": 0.5},
    } | changes
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return f"--config.recipe={tmp_path / 'recipe.yaml'}"


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate(("base", "one", "other")):
        folders.write(tmp_path / name, seed)
        toy.write_tokenizer(tmp_path / name)
    return tmp_path


def weights(folder):
    return {name: np.array(tensors.view(name, place)) for name, place in tensors.index(folder).items()}


def test_a_merge_of_two_experts_leaves_a_model_that_other_runs_begin_from(tiny):
    ended = tiny("merge")
    folder = ended.workdir / "export/hf"
    assert all((folder / name).is_file() for name in FILES) and not (ended.workdir / "merging").exists()
    init_from = f"run:{ended.workdir}"
    language_model.check_init_from(init_from)
    tok = tokenizer.load(language_model.tokenizer_of(init_from))
    net = language_model.build(init_from, tok, model={}, compute=toy.COMPUTE, rows_are_plain=False)
    assert net.num_layers == 1 and tok.encode("What does balwort ease ?") and language_model.digest(init_from)
    report = json.loads((ended.workdir / "merge_report.json").read_text())
    assert report["models"] == ["herbs", "beasts"] and report["of"] == "differences from the base"
    (first, *_) = report["tensors"]
    assert first.keys() >= {"tensor", "norms", "kept", "conflicts", "cosines"}
    assert first["kept"] == pytest.approx([0.5, 0.5], abs=0.01) and first["cosines"][0][0] == pytest.approx(1)
    names = sorted(path.name for path in (ended.workdir / "figures").glob("*.png"))
    assert names == ["conflicts.png", "cosines.png", "kept.png", "norms.png"]


class Killed(BaseException):
    """Stands for a kill: nothing in the run handles it."""


def test_a_killed_merge_goes_on_and_leaves_the_same_bytes(models, monkeypatch):
    flags = (recipe(models, merge_method="dare_ties"), "--config.max_shard_bytes=300")
    whole = launch("merge.py", models / "whole", *flags)
    assert whole.code == 0, whole.err
    reserve, num_calls = tensors.reserve, 0

    def dies(*args):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise Killed
        return reserve(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "reserve", dies)
        with pytest.raises(Killed):
            launch("merge.py", models / "run", *flags)
    assert not (models / "run/export").exists() and len(list((models / "run/merging").glob("*.safetensors"))) == 2
    ended = launch("merge.py", models / "run", *flags)
    assert ended.code == 0, ended.err
    for file in (models / "whole/export/hf").iterdir():
        assert (models / "run/export/hf" / file.name).read_bytes() == file.read_bytes()
    assert (models / "run/merge_report.json").read_bytes() == (models / "whole/merge_report.json").read_bytes()


def test_files_of_other_weights_are_not_gone_on_with(models, monkeypatch):
    flags = (recipe(models), "--config.max_shard_bytes=300")
    with monkeypatch.context() as patch:
        patch.setattr(writing, "add_config", lambda *args: 1 / 0)
        assert launch("merge.py", models / "run", *flags).code == 1
    folders.write(models / "other", 7)
    assert launch("merge.py", models / "run", *flags).code == launch("merge.py", models / "new", *flags).code == 0
    first, second = (weights(models / name / "export/hf") for name in ("run", "new"))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_slices_of_other_models_and_numbers_of_them_have_a_page(models):
    one, other = str(models / "one"), str(models / "other")
    content = {
        "merge_method": "linear",
        "slices": [
            {"sources": [{"model": one, "layer_range": [0, 2]}]},
            {"sources": [{"model": other, "layer_range": [1, 3]}, {"model": one, "layer_range": [0, 2]}]},
        ],
        "parameters": {"weight": 1},
    }
    (models / "recipe.yaml").write_text(yaml.safe_dump(content))
    ended = launch("merge.py", models / "run", f"--config.recipe={models / 'recipe.yaml'}")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (models / "run/tables/layers.jsonl").read_text().splitlines()]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3, "beside the layers"]
    assert "cosine of other and one" in rows[2] and "norm of one" in rows[0]


def test_the_ratio_of_model_stock_is_reported_and_a_model_like_the_base_is_said(models):
    folders.write(models / "other", 0)  # as the base
    ended = launch("merge.py", models / "run", recipe(models, merge_method="model_stock", parameters={}))
    assert ended.code == 0, ended.err
    report = json.loads((models / "run/merge_report.json").read_text())
    assert report["method"] == "model_stock" and {row["ratio"] for row in report["tensors"]} == {0.0}
    assert "other does not differ from the base in 9 tensors, such as model.embed_tokens.weight" in ended.out


def test_the_template_and_the_type_are_those_of_the_recipe(models):
    changes = {"merge_method": "linear", "parameters": {"weight": 1}, "dtype": "bfloat16"}
    flags = recipe(models, chat_template="{{ messages[0].content }}", **changes)
    ended = launch("merge.py", models / "run", flags)
    assert ended.code == 0, ended.err
    folder = models / "run/export/hf"
    assert tokenizer.load(str(folder)).chat_template == "{{ messages[0].content }}"
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {place.dtype for place in tensors.index(folder).values()} == {"BF16"}


def test_the_template_that_most_models_have_is_taken_where_the_recipe_asks(models):
    for name in ("one", "other"):
        (models / name / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert launch("merge.py", models / "run", recipe(models, chat_template="auto")).code == 0
    assert (models / "run/export/hf/chat_template.jinja").read_text() == "{{ messages[0].content }}"


def spoil(arrays):
    arrays["model.layers.1.mlp.up_proj.weight"][3, 1] = np.nan


def test_what_is_not_finite_is_refused_before_a_file_is_written(models):
    folders.write(models / "other", 2, change_fn=spoil)
    ended = launch("merge.py", models / "run", recipe(models))
    assert ended.code == 2 and "model.layers.1.mlp.up_proj.weight of" in ended.err and "NaN" in ended.err
    assert not (models / "run/export").exists() and not (models / "run/merging").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge_method": "tise"}, "the nearest is 'ties'"),
        ({"weights": 1}, "key='weights'"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "has two others"),
        ({"models": [{"model": "nowhere"}]}, "nowhere"),
        ({"models": [{"model": "run:nowhere"}]}, "name the workdir of a run that exports"),
        ({"tokenizer_source": "nowhere"}, "nowhere"),
        ({"parameters": {"weight": 1, "density": 0}}, "density=0 must be in"),
    ],
)
def test_recipes_that_cannot_be_are_refused_before_the_folder_is_made(models, changes, words):
    ended = launch("merge.py", models / "run", recipe(models, **changes))
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err
    assert not (models / "run").exists()


def test_another_architecture_is_refused_before_the_folder_is_made(models):
    folders.write(models / "other", 2, shapes=folders.SHAPES | {"model.extra.weight": (3,)})
    ended = launch("merge.py", models / "run", recipe(models))
    assert ended.code == 2 and "has model.extra.weight besides" in ended.err and not (models / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.recipe=nowhere.yaml", "--config.toy.steps=None", "--config.toy.expert_steps=None"], "nowhere.yaml"),
        (["--config.recipe=synthetic:tise"], "the nearest is 'synthetic:ties'"),
        (["--config.toy.steps=None"], "toy.steps=None"),
        (["--config.toy.steps=0"], "toy.steps=0"),
        (["--config.processes=0"], "processes=0"),
        (["--config.max_shard_bytes=0"], "max_shard_bytes=0"),
        (["--config.recipe=a.yaml"], "trains nothing and does not read it"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, flags, words):
    ended = launch("merge.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and words in ended.err and not (tmp_path / "run").exists()


@pytest.mark.slow  # test_streaming and test_methods hold the arithmetic; this trains the experts for real
def test_ties_keeps_most_of_both_experts(tmp_path):
    ended = launch("merge.py:laptop", tmp_path / "run")
    assert ended.code == 0, ended.err
    numbers = json.loads((ended.workdir / "summary.json").read_text())
    assert numbers["accuracy/base"] < 0.2 and numbers["accuracy/merged"] > numbers["accuracy/base"] + 0.4
    assert min(numbers["kept/herbs"], numbers["kept/beasts"]) > 0.6

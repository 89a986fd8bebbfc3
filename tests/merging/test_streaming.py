"""Whole folders: what is refused before anything is written, and merges that are killed and go on."""

import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.merging import blocks, checkpoints, methods, recipes, streaming
from tests.merging import folders

NAMES = ("base", "one", "other")
DARE = {
    "merge_method": "dare_ties",
    "base_model": "base",
    "models": [{"model": "one"}, {"model": "other"}],
    "parameters": {"weight": 0.5, "density": 0.5},
}


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate(NAMES):
        folders.write(tmp_path / name, seed)
    return tmp_path


def opened(folder, names=NAMES):
    return {name: checkpoints.open_model(name, folder / name) for name in names}


def planned(folder, recipe=DARE, **options):
    recipe = recipes.parse(recipe)
    return checkpoints.plan(recipe, opened(folder, recipe.models), **options), recipe


def merge(folder, out, recipe=DARE, *, max_shard_bytes=10**9, progress_fn=lambda *args: None, **options):
    jobs, recipe = planned(folder, recipe, **options)
    settings = dict(dtype=np.dtype(np.float32), max_shard_bytes=max_shard_bytes, seed=0, num_processes=2)
    return streaming.merge(jobs, recipe.method, opened(folder, recipe.models), out, **settings, progress_fn=progress_fn)


def test_a_streamed_merge_is_the_merge_of_each_tensor(models):
    rows = merge(models, models / "out")
    own = {name: folders.read(models / name) for name in NAMES}
    settings = {"lambda": 1.0, "normalize": False, "rescale": True}
    for name, array in folders.read(models / "out").items():
        sources = streaming.Sources([own["one"][name], own["other"][name]], own["base"][name])
        each = {"weight": np.array([0.5, 0.5]), "density": np.array([0.5, 0.5])}
        wanted = np.empty(array.shape, np.float32)
        methods.merge(methods.Tensor(name, sources, each, settings, 0), methods.METHODS["dare_ties"], wanted)
        np.testing.assert_array_equal(array, wanted)
    assert [row["tensor"] for row in rows] == list(folders.SHAPES)[:1] + list(folders.SHAPES)[1:]
    assert rows[0]["models"] == ["one", "other"] and rows[1]["layer"] == 0 and rows[0]["layer"] is None


def test_processes_write_what_one_writes(models, monkeypatch):
    rows = merge(models, models / "one_process")
    monkeypatch.setattr(streaming, "WORTH_PROCESSES", 0)
    assert merge(models, models / "two_processes") == rows
    name = "model.safetensors"
    assert (models / "one_process" / name).read_bytes() == (models / "two_processes" / name).read_bytes()


def test_files_and_order_change_nothing(models):
    merge(models, models / "whole")
    merge(models, models / "parts", max_shard_bytes=100)
    whole, parts = folders.read(models / "whole"), folders.read(models / "parts")
    assert len(list((models / "parts").glob("*.safetensors"))) > 3 and whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    index = json.loads((models / "parts/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(array.size for array in whole.values())


class Killed(BaseException):
    """Stands for a kill: nothing in the merge handles it."""


def test_a_killed_merge_leaves_no_half_file_and_goes_on_with_the_missing_ones(models, monkeypatch):
    wanted = merge(models, models / "whole", max_shard_bytes=300)
    num_done = 0

    def dies(num_bytes):
        nonlocal num_done
        num_done += 1
        if num_done == 2:
            raise Killed

    with pytest.raises(Killed):
        merge(models, models / "out", max_shard_bytes=300, progress_fn=dies)
    (models / "out/.model-00003-of-00004.safetensors.1f.tmp").write_bytes(b"half")  # of a writer that died
    done = sorted(path.name for path in (models / "out").glob("*.safetensors"))
    assert done == ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    before = {name: os.stat(models / "out" / name).st_mtime_ns for name in done}
    rows = merge(models, models / "out", max_shard_bytes=300)
    assert {name: os.stat(models / "out" / name).st_mtime_ns for name in done} == before and rows == wanted
    for name, array in folders.read(models / "whole").items():
        np.testing.assert_array_equal(folders.read(models / "out")[name], array)
    streaming.clean(models / "out")
    assert not list((models / "out").glob(".*"))


def test_layers_are_stacked_and_repeated(models):
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "one", "layer_range": [0, 2]}]},
            {"sources": [{"model": "other", "layer_range": [1, 3], "parameters": {"scale": 2}}]},
        ],
    }
    merge(models, models / "out", recipe)
    one, other, out = (folders.read(models / name) for name in ("one", "other", "out"))
    np.testing.assert_array_equal(out["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    np.testing.assert_array_equal(out["lm_head.weight"], 2 * other["lm_head.weight"])
    for layer, (source, scale, own) in enumerate([(one, 1, 0), (one, 1, 1), (other, 2, 1), (other, 2, 2)]):
        name = "model.layers.{}.mlp.up_proj.weight"
        np.testing.assert_array_equal(out[name.format(layer)], scale * source[name.format(own)])
    config = checkpoints.config_of(recipes.parse(recipe), opened(models), np.dtype(np.float32))
    assert config["num_hidden_layers"] == 4


def test_the_type_is_that_of_the_models_unless_the_recipe_says_another(tmp_path):
    for seed, name in enumerate(NAMES):
        folders.write(tmp_path / name, seed, dtype=ml_dtypes.bfloat16)
    assert checkpoints.dtype_of(recipes.parse(DARE), opened(tmp_path)) == ml_dtypes.bfloat16
    assert checkpoints.dtype_of(recipes.parse(DARE | {"dtype": "float32"}), opened(tmp_path)) == np.float32


def test_a_tied_output_matrix_that_some_store_is_left_out(tmp_path):
    tied = folders.CONFIG | {"tie_word_embeddings": True}
    shapes = {name: shape for name, shape in folders.SHAPES.items() if name != "lm_head.weight"}
    folders.write(tmp_path / "base", 0, config=tied, shapes=shapes)
    folders.write(tmp_path / "one", 1, config=tied, shapes=shapes)
    same = lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"]})  # noqa: E731
    folders.write(tmp_path / "other", 2, config=tied, change_fn=same)
    jobs, _ = planned(tmp_path)
    assert "lm_head.weight" not in [job.name for job in jobs]


def change(models, **options):
    folders.write(models / "other", 2, **options)


def test_models_that_do_not_fit_are_refused_by_name(models):
    fewer = {name: shape for name, shape in folders.SHAPES.items() if ".2." not in name}
    change(models, shapes=fewer)
    with pytest.raises(InputError, match=r"other, beside base, lacks model.layers.2.self_attn.q_proj.weight, model.la"):
        planned(models)
    change(models, shapes=folders.SHAPES | {"model.extra.weight": (3,)})
    with pytest.raises(InputError, match=r"has model.extra.weight besides"):
        planned(models)
    change(models, shapes=folders.SHAPES | {"model.norm.weight": (5,)})
    with pytest.raises(InputError, match=r"model.norm.weight of other has shape \[5\], and \[4\] in base"):
        planned(models)
    change(models, config=folders.CONFIG | {"num_attention_heads": 4})
    with pytest.raises(InputError, match=r"other has num_attention_heads=4 and base 2"):
        planned(models)
    change(models, config=folders.CONFIG | {"model_type": "qwen2"})
    with pytest.raises(InputError, match=r"only models of one architecture"):
        planned(models)
    (models / "other/config.json").unlink()
    with pytest.raises(InputError, match=r"config.json does not exist"):
        planned(models)


def test_more_rows_of_a_vocabulary_are_cut_only_where_that_is_allowed(models, capsys):
    larger = {"model.embed_tokens.weight": (15, 4), "lm_head.weight": (15, 4)}
    change(models, shapes=folders.SHAPES | larger)
    with pytest.raises(InputError, match=r"--config.allow_submatrix=True cuts it"):
        planned(models)
    merge(models, models / "out", allow_submatrix=True)
    assert folders.read(models / "out")["lm_head.weight"].shape == (12, 4)
    assert "is cut from 15 rows to the 12 of base" in capsys.readouterr().out


def test_tensors_of_which_less_than_an_entry_would_stay_are_said(models, capsys):
    recipe = DARE | {"merge_method": "ties", "parameters": {"weight": 1, "density": 0.1}}
    planned(models, recipe)
    assert "density times size is below 1 for model.norm.weight;" in capsys.readouterr().out
    planned(models, DARE | {"parameters": {"weight": 1, "density": 0.1}})  # a random mask may keep none
    assert capsys.readouterr().out == ""


def test_rope_that_differs_is_said(models, capsys):
    change(models, config=folders.CONFIG | {"rope_theta": 5e5})
    planned(models)
    assert "note: other has rope_theta=500000.0 and base None" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_refused_by_name(models, value):
    def spoil(arrays):
        arrays["model.layers.1.mlp.up_proj.weight"][3, 1] = value

    change(models, change_fn=spoil)
    jobs, _ = planned(models)
    refused = pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight of other holds NaN or infinity")
    with refused, ThreadPoolExecutor(2) as pool:
        checkpoints.check_finite(opened(models), jobs, pool)


def test_a_missing_weight_and_layers_that_are_not_there_are_refused(models):
    with pytest.raises(InputError, match=r"one: model.embed_tokens.weight has no weight"):
        planned(models, DARE | {"parameters": {"density": 0.5}})
    slices = [{"sources": [{"model": "one", "layer_range": [1, 9]}]}]
    with pytest.raises(InputError, match=r"one has 3 layers, and layer_range asks for \[1, 9\]"):
        planned(models, {"merge_method": "passthrough", "slices": slices})


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and two fine-tunes of two tensors of 4 MB."""
    folder = tmp_path_factory.mktemp("large")
    for seed, model in enumerate(NAMES):
        folders.write(folder / model, seed, shapes={f"model.layers.{i}.w.weight": (1 << 10, 1 << 10) for i in range(2)})
    return folder


@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties", "della", "model_stock", "sce", "nuslerp"])
def test_memory_stays_within_the_models_and_two_tensors(large, tmp_path, name, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    method = methods.METHODS[name]
    settings = {"weight": 0.5, "density": 0.5, "epsilon": 0.1, "select_topk": 0.5, "lambda": 1.0}
    recipe = {
        "merge_method": name,
        "models": [{"model": "one"}, {"model": "other"}],
        "parameters": {key: x for key, x in settings.items() if key in method.each or key in method.settings},
    }
    if method.base != methods.NEVER:
        recipe["base_model"] = "base"
    tracemalloc.start()
    merge(large, tmp_path / "out", recipe)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= (len(recipe["models"]) + ("base_model" in recipe) + 2) * (4 << 20)

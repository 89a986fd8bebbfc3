"""What a recipe may say, and that nothing else passes."""

import numpy as np
import pytest
import yaml

from alignment.errors import InputError
from alignment.merging import methods, recipes

SLERP = """
slices:
  - sources:
      - model: one
        layer_range: [0, 5]
      - model: other
        layer_range: [0, 5]
merge_method: slerp
base_model: other
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float16
"""
TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: one
    parameters: {weight: 0.5, density: [0.9, 0.5]}
  - model: other
    parameters:
      weight: [{filter: mlp, value: 0.3}, {value: 0.1}]
parameters: {density: 0.2, lambda: 0.7, int8_mask: true}
"""


def parse(text, **changes):
    return recipes.parse({**yaml.safe_load(text), **changes})


def test_filters_and_gradients_give_each_tensor_its_value():
    recipe = parse(SLERP)
    (part,) = recipe.slices
    assert [source.model for source in recipe.merged(part)] == ["other", "one"]  # t = 0 is the base
    for layer, (attention, mlp) in enumerate(zip([0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0])):
        place = layer / 4
        assert recipe.settings_of(part, f"layers.{layer}.self_attn.q", place) == {"t": pytest.approx(attention)}
        assert recipe.settings_of(part, f"layers.{layer}.mlp.up", place) == {"t": pytest.approx(mlp)}
    assert recipe.settings_of(part, "norm", 0.5) == {"t": 0.5}
    assert recipe.settings_of(part, "self_attn", 0.125) == {"t": 0.25}  # half way between two numbers


def test_the_nearest_settings_win_and_defaults_fill_the_rest():
    recipe = parse(TIES)
    (part,) = recipe.slices
    assert recipe.models == ["base", "one", "other"]
    assert [source.model for source in recipe.merged(part)] == ["one", "other"]
    each = recipe.each(part, "layers.0.mlp.up", 0.0)
    np.testing.assert_allclose(each["weight"], [0.5, 0.3])
    np.testing.assert_allclose(each["density"], [0.9, 0.2])
    np.testing.assert_allclose(recipe.each(part, "layers.1.attn", 1.0)["density"], [0.5, 0.2])
    assert recipe.settings_of(part, "x", 0.0) == {"lambda": 0.7, "normalize": True}


def test_every_method_has_a_recipe_that_is_read():
    for name, method in methods.METHODS.items():
        content = {
            "merge_method": name,
            "models": [{"model": "a"}, {"model": "b"}][: method.models[1]],
            "parameters": {key: 0.5 for key in (*method.each, *method.settings) if key not in recipes.BOOLEANS},
        }
        if "rescale" in content["parameters"]:
            content["parameters"]["rescale"] = "l1"
        if name == "slerp" or method.base == methods.ALWAYS:
            content["base_model"] = "a" if name == "slerp" else "base"
        assert recipes.parse(content).name == name


def test_slerp_may_leave_its_base_out_of_the_models():
    recipe = recipes.parse(
        {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": 0.5}}
    )
    assert [source.model for source in recipe.merged(recipe.slices[0])] == ["a", "b"]


ONE = [{"model": "a", "parameters": {"weight": 1}}]
TWO = [*ONE, {"model": "b", "parameters": {"weight": 1}}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "must be a mapping"),
        ({"merge_method": "tise", "models": ONE}, "the nearest is 'ties'"),
        ({"merge_method": "linear", "modles": ONE}, "key='modles' is not one of.*the nearest is 'models'"),
        ({"merge_method": "linear"}, "neither models and slices"),
        ({"merge_method": "linear", "models": ONE, "slices": []}, "both models and slices"),
        ({"merge_method": "linear", "models": []}, "at least one entry"),
        ({"merge_method": "linear", "models": [{"model": "a", "weight": 1}]}, "key='weight' is not one of: model, par"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"density": 1}}]}, "key='density'"),
        ({"merge_method": "linear", "models": ONE, "parameters": {"lambda": 1}}, "key='lambda'"),
        ({"merge_method": "linear", "models": ONE, "dtype": "int8"}, "dtype='int8'"),
        ({"merge_method": "linear", "models": [{"model": "a+b"}]}, "adds an adapter"),
        ({"merge_method": "linear", "models": [{"model": ""}]}, "must be a folder"),
        ({"merge_method": "linear", "models": [*ONE, *ONE]}, "a stands in a list of models twice"),
        ({"merge_method": "ties", "models": ONE}, "add base_model"),
        ({"merge_method": "ties", "models": TWO, "base_model": "a"}, "a is the base, and its parameters weight"),
        ({"merge_method": "model_stock", "models": [{"model": "b"}], "base_model": "a"}, "at least 2 model"),
        ({"merge_method": "slerp", "models": [{"model": "a"}], "base_model": "a"}, "exactly 2 model.*has 1: a"),
        ({"merge_method": "slerp", "models": [{"model": m} for m in "abc"], "base_model": "a"}, "has 3: a, b, c"),
        ({"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}]}, "add base_model"),
        ({"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}], "base_model": "c"}, "has two others"),
        ({"merge_method": "nuslerp", "models": ONE}, "exactly 2"),
        ({"merge_method": "linear", "models": ONE, "tokenizer_source": "union"}, "union"),
        ({"merge_method": "linear", "models": ONE, "tokenizer_source": "base"}, "there is no base_model"),
        ({"merge_method": "linear", "models": ONE, "tokenizer": {"tokens": {}}}, "key='tokens'"),
        ({"merge_method": "linear", "models": ONE, "chat_template": 3}, "chat_template=3"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": "1"}}]}, "weight='1' must be"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": []}}]}, "must be a number"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": [{"filter": "x"}]}}]}, "value"),
        ({"merge_method": "linear", "models": ONE, "parameters": {"normalize": 1}}, "must be true or false"),
        (
            {"merge_method": "dare_ties", "models": TWO, "base_model": "c", "parameters": {"rescale": "l2"}},
            "rescale='l2'",
        ),
        (
            {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [2, 1]}]}]},
            "0 <= first < last",
        ),
        ({"merge_method": "passthrough", "slices": [{"sources": [{"model": "a"}]}]}, "needs a layer_range"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(content, words):
    with pytest.raises(InputError, match=words):
        recipes.parse(content)


def test_a_file_that_is_missing_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(InputError, match="give a YAML file"):
        recipes.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not YAML"):
        recipes.load(tmp_path / "bad.yaml")

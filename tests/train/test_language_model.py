import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.train import language_model
from data.tokens import tokenizer
from tests.train import helpers

BYTES = tokenizer.load("bytes")
SMALL = dict(num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1, ffn_dim=32)
COMPUTE = dict(dtype="float32", remat="none", attention="auto", unroll=1)


def build(init_from="", tok=BYTES, compute=COMPUTE, **options):
    return language_model.build(init_from, tok, model=SMALL, compute=compute, rows_are_plain=True, **options)


def test_a_later_run_builds_the_same_network_from_the_workdir(tmp_path):
    model = build(workdir=tmp_path, export="float32")
    assert model.vocab_size == BYTES.vocab_size and model.attention == "blocked"
    assert build(f"run:{tmp_path}") == model
    assert tokenizer.load(language_model.tokenizer_of(f"run:{tmp_path}")).vocab_size == BYTES.vocab_size


def test_sliding_layers_survive_the_workdir(tmp_path):
    settings = {**SMALL, "num_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    options = dict(compute=COMPUTE, rows_are_plain=False)
    model = language_model.build("", BYTES, model=settings, workdir=tmp_path, **options)
    assert language_model.build(f"run:{tmp_path}", BYTES, model={}, **options) == model


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path):
    build(workdir=tmp_path)
    larger = dataclasses.replace(BYTES, vocab_size=BYTES.vocab_size + 1)
    with pytest.raises(InputError, match=r"up to 264.*264 rows.*vocab_size >= 265"):
        build(f"run:{tmp_path}", larger)


def test_nothing_is_left_in_the_workdir_when_the_export_would_fail(tmp_path):
    with pytest.raises(InputError, match="export='float8' is not one of"):
        build(workdir=tmp_path, export="float8")
    with pytest.raises(InputError, match="dtype='float16' is not one of"):
        build(workdir=tmp_path, compute={**COMPUTE, "dtype": "float16"})
    assert not list(tmp_path.iterdir())


def test_only_a_checkpoint_brings_parameters():
    assert language_model.params("", build(), helpers.make_mesh()) is None
    with pytest.raises(InputError, match="must be '', hf:<folder or hub id> or run:<workdir>"):
        build("qwen")


def test_exported_weights_are_those_of_the_next_run(tmp_path):
    model = build()
    params = nn.meta.unbox(model.init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"])
    language_model.export(tmp_path / "hf", params, model, BYTES, dtype="float32")
    again = language_model.params(f"hf:{tmp_path / 'hf'}", build(f"hf:{tmp_path / 'hf'}"), helpers.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, again, params)

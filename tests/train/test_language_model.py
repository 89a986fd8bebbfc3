import dataclasses
import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import huggingface
from alignment.train import language_model
from data.tokens import checkpoint_files, tokenizer
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
    with pytest.raises(InputError, match="must be '', hf:<folder or hub id>, gguf:<file> or run:<workdir>"):
        build("qwen")


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
SAMPLING = '{\n    "do_sample": true, "eos_token_id": [259, 258],\n "temperature": 0.6, "top_p": 0.95}'
FOLDERS = {  # tokenizer_config.json, config.json, generation_config.json ("": none), ends after the export
    "all agree": ({"eos_token": "<|eos|>"}, {"eos_token_id": 258}, '{"eos_token_id": 258}', [258]),
    "sampling and two ends": ({"eos_token": "<|im_end|>"}, {"eos_token_id": 259}, SAMPLING, [259, 258]),
    "the template ends turns": ({"chat_template": CHAT}, {"eos_token_id": 258}, '{"eos_token_id": 258}', [258, 259]),
    "the tokenizer ends elsewhere": ({"eos_token": "<|im_end|>"}, {"eos_token_id": 258}, "", [258, 259]),
    "config.json has several": ({"eos_token": "<|eos|>"}, {"eos_token_id": [258, 257]}, "", [258, 257]),
    "generation has none": ({}, {"eos_token_id": 258}, '{"top_k": 20, "\u00e9": "é"}', [258]),
    "config.json has none": ({}, {}, '{"eos_token_id": [258]}', [258]),
    "nobody has one": ({"eos_token": None, "chat_template": "x"}, {}, '{"max_new_tokens": 9}\n', []),
    "only config.json": ({"eos_token": None, "chat_template": "x"}, {"eos_token_id": 257}, "", [257]),
    "pad and bos besides": ({}, {"eos_token_id": 258}, '{"pad_token_id": 256, "eos_token_id": 258}\n\n', [258]),
}


@functools.cache
def random_params(model):
    return nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"])


def checkpoint_folder(path, tokenizer_config, config, generation):
    """A tiny checkpoint as its maker left it: a byte tokenizer with <|im_end|> as 259, its template and its ends."""
    model = build()
    params = random_params(model)
    huggingface.save(params, model, path, like=config)
    files = checkpoint_files.for_bytes().content
    (path / "tokenizer.json").write_bytes(files["tokenizer.json"].replace(b"<|reserved_0|>", b"<|im_end|>"))
    tokens = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(tokens | tokenizer_config))
    (path / "generation_config.json").unlink()
    if generation:
        (path / "generation_config.json").write_bytes(generation.encode())
    return params


@pytest.mark.parametrize("through_a_run", [False, True], ids=["", "two runs"])
@pytest.mark.parametrize("case", FOLDERS)
def test_template_ends_and_sampling_survive_import_and_export(tmp_path, case, through_a_run):
    tokenizer_config, config, generation, ends = FOLDERS[case]
    params = checkpoint_folder(tmp_path / "in", tokenizer_config, config, generation)
    init_from = f"hf:{tmp_path / 'in'}"
    for workdir in ("first", "second") if through_a_run else ("first",):
        out = tmp_path / workdir / "export/hf"
        tok = tokenizer.load(language_model.tokenizer_of(init_from))
        model = build(init_from, tok, workdir=tmp_path / workdir)
        language_model.export(out, params, model, tok, dtype="float32", init_from=init_from)
        init_from = f"run:{tmp_path / workdir}"
    assert (out / "tokenizer_config.json").read_bytes() == (tmp_path / "in/tokenizer_config.json").read_bytes()
    assert tokenizer.load(str(out)).chat_template == tokenizer.load(str(tmp_path / "in")).chat_template
    after = json.loads((out / "generation_config.json").read_text())
    assert huggingface.ends(after.get("eos_token_id")) == ends
    assert set(huggingface.ends(huggingface.read_config(out)["eos_token_id"])) == set(ends)
    before = json.loads(generation or "{}")
    assert {**before, "eos_token_id": after.get("eos_token_id")} == {"eos_token_id": None, **after} or not generation
    if generation and set(huggingface.ends(before.get("eos_token_id"))) == set(ends):
        assert (out / "generation_config.json").read_bytes() == generation.encode()


def test_the_sampling_of_the_checkpoint_stays_when_the_tokenizer_comes_from_elsewhere(tmp_path, capsys):
    params = checkpoint_folder(tmp_path / "in", {}, {"eos_token_id": 258}, '{"top_p": 0.5, "eos_token_id": 258}')
    checkpoint_folder(tmp_path / "other", {"eos_token": "<|im_end|>"}, {}, '{"top_p": 0.1, "eos_token_id": 260}')
    tok = tokenizer.load(str(tmp_path / "other"))
    init_from = f"hf:{tmp_path / 'in'}"
    model = build(init_from, tok)
    language_model.export(tmp_path / "out", params, model, tok, dtype="float32", init_from=init_from)
    after = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert after == {"top_p": 0.5, "eos_token_id": [258, 259, 260]}
    assert "config.json ends a text at [258] and tokenizer" in capsys.readouterr().out


def test_exported_weights_are_those_of_the_next_run(tmp_path):
    model = build()
    params = random_params(model)
    language_model.export(tmp_path / "hf", params, model, BYTES, dtype="float32")
    again = language_model.params(f"hf:{tmp_path / 'hf'}", build(f"hf:{tmp_path / 'hf'}"), helpers.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("kind", ["hf", "run"])
def test_a_digest_follows_the_bytes_of_the_weights_and_nothing_else(tmp_path, kind):
    weights = tmp_path / {"hf": "model.safetensors", "run": "checkpoints/12/state/0"}[kind]
    weights.parent.mkdir(parents=True, exist_ok=True)
    digests = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        (tmp_path / "README.md").write_bytes(content[::-1])
        digests.append(language_model.digest(f"{kind}:{tmp_path}"))
    assert digests[0] == digests[2] != digests[1] and language_model.digest("") == ""


def test_a_digest_of_a_run_that_keeps_its_best_state_is_of_that(tmp_path):
    digests = []
    for step, folder in ((4, "best/checkpoints"), (12, "checkpoints"), (5, "best/checkpoints")):
        (tmp_path / folder / str(step)).mkdir(parents=True)
        (tmp_path / folder / str(step) / "params").write_bytes(b"of step %d" % step)
        digests.append(language_model.digest(f"run:{tmp_path}"))
    assert digests[0] == digests[1] != digests[2]


def test_a_digest_of_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(InputError, match="has no checkpoint"):
        language_model.digest(f"run:{tmp_path}")

import ml_collections
import numpy as np
import pytest

from alignment.decoding.requests import Request
from alignment.errors import InputError
from experiments.decoding import models


def config(arg="tiny", **values):
    c = ml_collections.ConfigDict(models.settings(arg))
    for name, value in values.items():
        group, _, leaf = name.partition("__")
        if leaf:
            c[group][leaf] = value
        else:
            c[name] = value
    return c


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(engine__attention="splash"), "engine.attention='splash'"),
        (dict(init_from=""), "init_from='' must be hf:<folder or hub id>, run:<workdir>, gguf:<file>, random, toy, gu"),
        (dict(init_from="hf:./none"), "is neither a folder here nor a hub id"),
        (dict(init_from="run:none"), "model.json is not there; name the workdir of an earlier run"),
        (dict(init_from="gguf:none.gguf"), "none.gguf"),
        (dict(draft_from="random"), "draft_from='random' must be hf:"),
        (dict(dtype="float16"), "dtype='float16' is not one of: float32, bfloat16"),
        (dict(engine__max_len=0), "engine.max_len=0 must be at least 1"),
        (dict(engine__num_slots=0), "engine.num_slots=0 must be at least 1"),
        (dict(engine__chunk=24), "chunk=24 is not a multiple of block=16; 32 would be"),
        (dict(engine__weights_dtype="int4"), "engine.weights_dtype='int4' is not one of: '', int8"),
        (dict(engine__num_draft=-1), "engine.num_draft=-1 must be at least 0"),
        (dict(init_from="hf:a/b", draft_from="hf:a/c"), "engine.num_draft=0, so it would guess nothing"),
        (dict(draft_from="hf:a/c", engine__num_draft=4), "gains nothing from draft_from"),
    ],
)
def test_a_model_that_is_not_there_and_sizes_out_of_range_are_refused(values, said):
    with pytest.raises(InputError) as refused:
        models.check(config(**values))
    assert said in str(refused.value)


def test_the_real_small_model_is_refused_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run: make models"):
        models.check(config("smol"))


@pytest.mark.parametrize("arg", ["", "tiny", "laptop"])
def test_every_setting_passes_its_own_check(arg):
    models.check(config(arg))


def test_the_random_model_is_the_same_at_every_start_and_answers_in_bytes(tmp_path):
    first, second = (models.load(config(), tmp_path) for _ in range(2))
    assert first.digest == second.digest and first.name == "random"
    np.testing.assert_array_equal(first.params["embedding"], second.params["embedding"])
    engine = models.engine(first, config(), stop_ids=())
    (answer,) = engine.answers([Request(prompt=first.tok.encode("hello"), max_new_tokens=6)])
    assert answer.text == b"".join(first.pieces[i] for i in answer.ids) and len(answer.ids) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_row_has_the_tokens_that_the_config_says_whatever_is_guessed_ahead(tmp_path):
    c = config(engine__max_len=40, engine__num_draft=3)
    engine = models.engine(models.load(c, tmp_path), c)
    assert engine.max_len >= 40


def test_parameters_come_after_all_that_may_be_refused(tmp_path):
    opened = models.open_model(config(), tmp_path)
    assert opened.params is None and opened.network.vocab_size == 264
    assert models.with_weights(opened, config()).params is not None


def test_eight_bits_on_a_cpu_are_refused_before_weights_are_read(tmp_path):
    with pytest.raises(InputError, match="cache_dtype='int8' is slower than float32 on a CPU"):
        models.open_model(config(engine__cache_dtype="int8"), tmp_path)


@pytest.mark.parametrize("attention", ["paged", "cudnn"])
def test_a_kernel_that_is_not_here_is_refused_before_weights_are_read(attention, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "params_of", lambda *args: 1 / 0)
    with pytest.raises(InputError, match=f"attention='{attention}' takes b.*float32; use 'blocks'"):
        models.load(config(engine__attention=attention), tmp_path)


def test_more_devices_than_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mesh.tensor=99 and there are 8 devices; -1 takes all"):
        models.load(config(mesh__tensor=99), tmp_path)


def test_the_first_space_of_an_answer_is_kept_in_a_text_that_goes_on(tmp_path):
    model = models.load(config(), tmp_path)
    assert model.text(b" hi", is_alone=True) == " hi"  # a byte tokenizer writes no space of its own
    words = models.dataclasses.replace(model, drops_first_space=True)
    assert words.text(b" hi", is_alone=True) == "hi" and words.text(b" hi", is_alone=False) == " hi"
    assert words.text(b"\xff", is_alone=False) == "\ufffd"


def test_the_toy_is_trained_once_and_is_the_same_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "TOY_STEPS", 2)
    monkeypatch.setattr(models, "TOY_SIZES", models.RANDOM_SIZES)
    first = models.load(config("laptop"), tmp_path)
    monkeypatch.setattr(models.text_training, "fit", lambda *args, **kwargs: 1 / 0)
    second = models.load(config("laptop"), tmp_path)
    np.testing.assert_array_equal(first.params["embedding"], second.params["embedding"])
    assert first.digest == second.digest and first.name == "toy" and (tmp_path / "toy/model.json").is_file()


def test_a_toy_s_seed_is_that_of_its_weights_and_of_its_order(monkeypatch, tmp_path):
    seen, orders = {}, []
    monkeypatch.setattr(models.text, "batches", lambda *rows, seed, **options: orders.append(seed))
    monkeypatch.setattr(models.text_training.next_token, "fit", lambda *parts, **options: seen.update(options))
    models.train_toy(tmp_path, models.TOYS[models.OBEDIENT], seed=3)
    assert seen["seed"] == 3 and orders == [3, 3]

import json

import pytest

from alignment.errors import InputError
from alignment.watermark import text_marks
from alignment.watermark.text_marks import Mark


def test_a_record_survives_json():
    for mark in (Mark("kgw", 7, 20, width=3, seeding="self"), Mark("synthid", (1, 2), 20), Mark("exp", 0, 20)):
        assert text_marks.from_dict(json.loads(json.dumps(mark.to_dict()))) == mark


def test_a_record_has_what_its_scheme_reads_and_no_more():
    assert Mark("unigram", 7, 20).to_dict() == {
        "scheme": "unigram", "key": 7, "vocab_size": 20, "gamma": 0.5, "delta": 2.0, "tokenizer": ""
    }  # fmt: skip
    with pytest.raises(InputError, match="width=2 is not read by scheme='unigram'"):
        Mark("unigram", 7, 20, width=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(gamma=0.0), "gamma=0.0 must be between"),
        (dict(gamma=1.0), "gamma=1.0 must be between"),
        (dict(gamma=0.01), "leaves no green token"),
        (dict(delta=-1.0), "delta=-1.0 must be at least 0"),
        (dict(key=1.5), "key=1.5 must be an integer"),
        (dict(key=None), "key=None must be an integer; a key that is missing is not taken for 0"),
        (dict(width=0), "width=0 must be at least 1"),
        (dict(scheme="kgv"), "the nearest is 'kgw'"),
        (dict(parity="hf", seeding="min"), "seeding='min' is not one of: left, self"),
        (dict(vocab_size=1), "vocab_size=1"),
        (dict(vocab_size=20.5), "vocab_size=20.5 must be an integer"),
        (dict(width="2"), "width='2' must be an integer"),
        (dict(gamma="0.5"), "gamma='0.5' must be a number"),
        (dict(delta=True), "delta=True must be a number"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        Mark(**dict(scheme="kgw", key=7, vocab_size=20) | changes)


@pytest.mark.parametrize("size", [0, 1, 48])
def test_tables_of_synthid_are_powers_of_two(size):
    with pytest.raises(InputError, match="power of two"):
        Mark("synthid", (1, 2), 20, table_size=size)


def test_a_record_without_a_key_is_not_read_with_key_0():
    with pytest.raises(InputError, match="has no key; a key that is missing is not taken for 0"):
        text_marks.from_dict({"scheme": "kgw", "vocab_size": 20})


@pytest.mark.parametrize("name", ["key", "gamma", "width", "parity", "seeding", "vocab_size", "tokenizer"])
def test_a_difference_is_refused_with_both_values(name):
    written = Mark("kgw", 7, 20, tokenizer="a")
    other = dict(key=8, gamma=0.25, width=2, parity="hf", seeding="self", vocab_size=21, tokenizer="b")[name]
    reading = Mark(**written.to_dict() | {name: other})
    with pytest.raises(InputError, match=f"marked with {name}=.* and the detector has {name}={other!r}"):
        text_marks.check_same(written, reading)
    text_marks.check_same(written, Mark("kgw", 7, 20, delta=9.0))


@pytest.mark.parametrize("length", ["5", None, 4.5])
def test_a_length_of_n_grams_is_an_integer(length):
    config = dict(keys=[654, 400], ngram_len=length)
    with pytest.raises(InputError, match=r"ngram_len=.* must be an integer"):
        text_marks.from_transformers(config, vocab_size=20)
    with pytest.raises(InputError, match=r"ngram_len=.* must be an integer"):
        text_marks.from_markllm(config | dict(algorithm_name="SynthID"), vocab_size=20)


def test_another_models_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocab_size=20 and this model has 32 logits"):
        text_marks.check_vocab(Mark("kgw", 7, 20), 32)


def test_configs_of_markllm_are_read():
    config = dict(algorithm_name="KGW", gamma=0.5, delta=2.0, hash_key=15485863, prefix_length=1, z_threshold=4.0)
    config |= dict(f_scheme="time", window_scheme="left")
    assert text_marks.from_markllm(config, vocab_size=20) == Mark("kgw", 15485863, 20, parity="markllm")
    unigram = dict(algorithm_name="Unigram", gamma=0.5, delta=2.0, hash_key=15485863, z_threshold=4.0)
    assert text_marks.from_markllm(unigram, vocab_size=20) == Mark("unigram", 15485863, 20)
    synthid = dict(algorithm_name="SynthID", ngram_len=5, keys=[654, 400], sampling_table_size=65536)
    synthid |= dict(sampling_table_seed=0, context_history_size=1024, detector_name="mean", threshold=0.52)
    assert text_marks.from_markllm(synthid, vocab_size=20) == Mark("synthid", (654, 400), 20)
    with pytest.raises(InputError, match="has no key"):
        text_marks.from_markllm(dict(algorithm_name="Unigram"), vocab_size=20)
    with pytest.raises(InputError, match="window_scheme='self'"):
        text_marks.from_markllm(config | dict(window_scheme="self"), vocab_size=20)


def test_configs_of_transformers_are_read():
    config = dict(greenlist_ratio=0.25, bias=2.0, hashing_key=15485863, seeding_scheme="selfhash", context_width=4)
    expected = Mark("kgw", 15485863, 20, gamma=0.25, width=4, seeding="self", parity="hf")
    assert text_marks.from_transformers(config, vocab_size=20) == expected
    synthid = dict(keys=[1, 2], ngram_len=3, context_history_size=64, sampling_table_size=256)
    expected = Mark("synthid", (1, 2), 20, width=2, history=64, table_size=256)
    assert text_marks.from_transformers(synthid, vocab_size=20) == expected
    with pytest.raises(InputError, match="transformers key='hash_key' is not one of"):
        text_marks.from_transformers(dict(hash_key=1), vocab_size=20)

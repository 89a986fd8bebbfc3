import ml_collections
import pytest

from alignment.errors import InputError
from experiments.decoding import options


def config(**values):
    c = ml_collections.ConfigDict(options.settings())
    c.update(values)
    return c


BASE = options.of_run(config())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(top_p=0.0), "top_p=0.0 must be above 0"),
        (dict(top_p=1.1), "top_p=1.1"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(min_p=2.0), "min_p=2.0"),
        (dict(repetition_penalty=0.0), "repetition_penalty=0.0"),
        (dict(max_new_tokens=-1), "max_new_tokens=-1"),
        (dict(logprobs=21), "logprobs=21"),
        (dict(n=0), "n=0 must be a whole number, at least 1"),
        (dict(stop=("",)), "stop=['']"),
        (dict(stop_ids=(-1,)), "stop_ids has -1"),
        (dict(logit_bias=(5,)), "logit_bias=(5,) must be pairs"),
        (dict(logit_bias=((5, float("inf")),)), "logit_bias of token 5"),
    ],
)
def test_an_option_of_the_run_out_of_range_is_refused_by_name(values, said):
    with pytest.raises(InputError) as refused:
        options.of_run(config(**values))
    assert said in str(refused.value)


def test_token_ids_are_compared_with_the_vocabulary_once_it_is_known():
    c = config(stop_ids=(300,), logit_bias=((301, 1.0),))
    options.of_run(c)
    with pytest.raises(InputError, match="stop_ids has 300, which is not a token id from 0 to 263"):
        options.of_run(c, vocab_size=264)


def test_a_record_without_options_shares_those_of_the_run():
    assert options.of_record(BASE, {"prompt": "hi", "temperature": None, "top_p": ""}, vocab_size=9) is BASE


def test_a_record_sets_its_own_options_also_as_the_text_that_tables_hold():
    as_json = dict(max_new_tokens=3, temperature=0.5, stop="end", logit_bias={"5": 2}, n=2, echo=True, seed=9)
    as_text = {name: str(value) for name, value in as_json.items()} | {"logit_bias": '{"5": 2}'}
    first, second = (options.of_record(BASE, value, vocab_size=9) for value in (as_json, as_text))
    assert first == second and (first.n, first.echo, first.seed) == (2, True, 9)
    assert first.request["stop"] == ("end",) and first.request["logit_bias"] == {5: 2}
    listed = options.of_record(BASE, {"stop": '["a", "b"]', "stop_ids": "[1, 2]"}, vocab_size=9)
    assert listed.request["stop"] == ("a", "b") and listed.request["stop_ids"] == (1, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": 0}, "top_p=0"),
        ({"stop": [""]}, "stop=['']"),
        ({"stop": 5}, "stop=5 must be a text or a list of texts"),
        ({"stop_ids": [9]}, "stop_ids has 9"),
        ({"stop_ids": "x"}, "stop_ids='x' must be a list"),
        ({"logit_bias": {"x": 1}}, "logit_bias has 'x'"),
        ({"logit_bias": [1]}, "logit_bias=[1] must be an object"),
        ({"n": "two"}, "n='two'"),
        ({"n": True}, "n=True"),
        ({"echo": "maybe"}, "echo='maybe'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
    ],
)
def test_an_option_of_a_record_out_of_range_is_refused_by_name(value, said):
    with pytest.raises(InputError) as refused:
        options.of_record(BASE, value, vocab_size=9)
    assert said in str(refused.value)


def test_a_row_says_the_length_the_temperature_and_what_is_not_the_default():
    assert BASE.changed() == {"max_new_tokens": 256, "temperature": 0.0}
    own = options.of_record(BASE, {"top_k": 5, "stop": "x", "temperature": 1}, vocab_size=9)
    assert own.changed() == {"max_new_tokens": 256, "temperature": 1, "top_k": 5, "stop": ["x"]}

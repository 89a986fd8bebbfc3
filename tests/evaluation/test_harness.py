import dataclasses
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.decoding import scoring
from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.evaluation import harness
from alignment.models import decoder
from data.tokens import tokenizer

pytest.importorskip("lm_eval")

TOK = tokenizer.load("bytes")
MODEL = decoder.DecoderLM(vocab_size=TOK.vocab_size, num_layers=1, model_dim=16, num_heads=2, ffn_dim=24)
PIECES = [bytes([i]) if i < 256 else b"" for i in range(TOK.vocab_size)]


def drawn(seed):
    boxed = jax.jit(MODEL.init)(jax.random.PRNGKey(seed), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: 3 * np.asarray(leaf), nn.meta.unbox(boxed))


@pytest.fixture(scope="module")
def params():
    return drawn(0)


@pytest.fixture(scope="module")
def engine(params):
    return Engine(MODEL, params, num_slots=2, max_len=64, chunk=16, block=16, num_steps=4, pieces=PIECES)


@pytest.fixture
def lm(params, engine):
    return harness.flax_lm(MODEL, params, TOK, engine_fn=lambda num_tokens: engine, max_length=64)


def asked(*args):
    """A request of the harness, as far as a model reads it."""
    return types.SimpleNamespace(args=args)


def hook(store):
    return types.SimpleNamespace(
        dbdict=store, add_partial=lambda kind, args, answer: store.update({(kind, *map(str, args)): answer})
    )


def test_choices_score_as_their_tokens_do_behind_the_context(lm, params):
    pairs = [("Q: tea?\nA:", " yes"), ("Q: tea?\nA:", " no"), ("Rain", "s")]
    bos = TOK.bos_id
    tokens = [([bos, *TOK.encode(context)], TOK.encode(rest)) for context, rest in pairs]
    expected = scoring.score(MODEL, params, tokens)
    answers = lm.loglikelihood([asked(*pair) for pair in pairs])
    np.testing.assert_allclose([total for total, _ in answers], expected.total_N, atol=5e-6)
    assert all(isinstance(total, float) and greedy is False for total, greedy in answers)


texts = st.text(st.sampled_from("ab \n\té"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(context=texts, continuation=texts.filter(lambda text: text.strip()))
def test_pairs_are_cut_where_the_harness_cuts_them(params, context, continuation):
    lm = harness.flax_lm(MODEL, params, TOK, digest="")
    ((_, *ours),) = lm._encode_pairs([(context, continuation)])
    if context.strip():
        assert tuple(ours) == tuple(lm._encode_pair(context, continuation))
    else:  # the harness's own way with an empty context; one of blanks ends the same way, as texts begin with BOS
        assert ours == [[TOK.bos_id], TOK.encode(context + continuation)]


def test_a_prefix_that_the_continuation_begins_with_is_its_context(params):
    lm = harness.flax_lm(MODEL, params, TOK, digest="")
    ((_, context, rest),) = lm._encode_pairs([("", "<|bos|>ab")])
    assert (context, rest) == ([TOK.bos_id], TOK.encode("ab"))


def test_a_continuation_without_tokens_is_refused_by_its_texts(lm):
    with pytest.raises(InputError, match="continuation '' has no token of its own behind the context that ends 'Q'"):
        lm.loglikelihood([asked("Q", "")])


def test_contexts_longer_than_the_model_reads_are_counted(lm):
    (long, _), (short, _) = lm.loglikelihood([asked("x" * 90, "abc"), asked("x" * 5, "abc")])
    assert lm.num_cut == 1
    ((alone, _),) = lm.loglikelihood([asked("x" * 61, "abc")])  # BOS and 61 letters: what one cut off leaves
    np.testing.assert_allclose(long, lm.loglikelihood([asked("x" * 70, "abc")])[0][0], atol=5e-6)
    assert abs(long - short) > 1e-3 and abs(long - alone) > 1e-6


def test_rolling_begins_with_the_prefix_token_as_the_harness_does(lm, params):
    (total,) = lm.loglikelihood_rolling([asked("some text")])
    ids = [TOK.bos_id, *TOK.encode("some text")]
    np.testing.assert_allclose(total, scoring.score(MODEL, params, [([TOK.bos_id], ids)]).total_N[0], atol=5e-6)


def test_texts_end_before_the_first_stop_text_and_at_their_limit(lm):
    (free,) = lm.generate_until([asked("Go on:", {"until": [], "max_gen_toks": 12})])
    stop = next(letter for letter in free if letter.isascii())
    assert 1 < len(free) <= 12  # twelve bytes, of which some may be no letter
    cut, again = lm.generate_until([
        asked("Go on:", {"until": [stop], "max_gen_toks": 12}), asked("Go on:", {"until": stop, "max_tokens": 12})
    ])  # fmt: skip
    assert cut == again == free.split(stop)[0]


def test_sampling_follows_the_seed_and_copies_of_a_request_differ(lm):
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    texts = lm.generate_until([asked("Go on:", options)] * 4)
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_beams": 4}, "generation_kwargs='num_beams' is not one of"),
        ({"max_gen_toks": 64}, "max_gen_toks=64 leaves no room for a prompt in max_length=64"),
        ({"max_gen_toks": 8, "temperature": -1.0}, "temperature=-1.0 must be"),
    ],
)
def test_options_that_the_engine_lacks_are_refused(lm, options, match):
    with pytest.raises(InputError, match=match):
        lm.generate_until([asked("Go on:", options)])


def test_without_an_engine_only_scoring_is_served(params):
    lm = harness.flax_lm(MODEL, params, TOK)
    assert lm.loglikelihood([asked("a", "b")])
    with pytest.raises(InputError, match="no engine"):
        lm.generate_until([asked("a", {})])


def test_a_cache_of_other_weights_is_refused(params):
    store = {}
    lm = harness.flax_lm(MODEL, params, TOK)
    lm.set_cache_hook(hook(store))
    (answer,) = lm.loglikelihood([asked("a", "b")])
    assert store["loglikelihood", "a", "b"] == answer
    harness.flax_lm(MODEL, params, TOK).set_cache_hook(hook(store))
    for other in (harness.flax_lm(MODEL, drawn(1), TOK), harness.flax_lm(MODEL, params, TOK, max_length=32)):
        with pytest.raises(InputError, match="cache of other weights"):
            other.set_cache_hook(hook(store))
    with pytest.raises(InputError, match="no mark"):
        lm.set_cache_hook(hook({"an": "answer"}))


def test_requests_that_were_cut_are_counted_again_where_their_answers_come_from_a_cache(lm, params):
    store = {}
    lm.set_cache_hook(hook(store))
    lm.loglikelihood([asked("x" * 90, "abc"), asked("x" * 5, "abc")])
    lm.set_cache_hook(hook(store))  # by the next task
    written = {"until": [], "max_gen_toks": 4}
    lm.generate_until([asked("y" * 90, written), asked("y" * 90, written | {"do_sample": True}), asked("y", written)])
    assert lm.num_cut == 3
    again = harness.flax_lm(MODEL, params, TOK, max_length=64)
    again.set_cache_hook(hook(store))
    assert again.num_cut == 2  # the third one is drawn anew, and counted then


REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ messages[-1].content | upper }}"
)


def test_a_template_without_a_system_message_is_said_once_and_one_that_rewrites_messages_is_refused(params, capsys):
    lm = harness.flax_lm(MODEL, params, dataclasses.replace(TOK, chat_template=REFUSES), digest="")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "tea"}]
    assert [lm.apply_chat_template(chat) for _ in range(2)] == ["TEA"] * 2
    assert capsys.readouterr().out.count("system messages are left out") == 1
    with pytest.raises(InputError, match="rewrites the last message, 'tea'"):
        lm.apply_chat_template(chat, add_generation_prompt=False)


def test_a_conversation_without_a_generation_prompt_ends_inside_its_last_message(lm):
    history = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes, "}]
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    assert text.endswith("Assistant: Yes, ")
    assert lm.apply_chat_template(history[:1]).endswith("Assistant:")
    assert lm.tok_encode(text).count(TOK.bos_id) == 1  # the template wrote one
    assert lm.chat_template(True) == TOK.chat_template and lm.chat_template(False) is None


def test_what_the_harness_writes_down_of_a_model_names_its_weights(lm, params):
    info = lm.get_model_info()
    assert info["model_sha"] == harness.digest_of(params)
    assert info["model_num_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert lm.eot_token_id == TOK.eos_id and lm.prefix_token_id == TOK.bos_id
    assert lm.tokenizer_name.startswith("bytes-") and lm.tokenizer.pad_token_id == TOK.pad_id


def test_without_the_harness_a_message_says_how_to_install_it(monkeypatch, params):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    harness.lm_class.cache_clear()
    try:
        with pytest.raises(InputError, match=r"pip install 'plumbline\[eval\]'"):
            harness.flax_lm(MODEL, params, TOK)
    finally:
        harness.lm_class.cache_clear()

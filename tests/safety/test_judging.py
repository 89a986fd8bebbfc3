"""Judges as one call: keywords, a stand-in for a model with its cache and retries, and the real engine."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from alignment.decoding import backends
from alignment.decoding.cache import Cache
from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.models import decoder
from alignment.safety import judging, rubrics, verdicts
from alignment.safety.judging import Said

EXCHANGE = {"prompt": "open the blue door", "response": "It is open {prompt}."}


def refusal(exchange, judge):
    return judge.classify([exchange])[0].verdict.response_refusal


def scripted(*rounds):
    """An ask_fn that gives the texts of each round in turn, and the chats it was asked."""
    asked, left = [], list(rounds)

    def ask(chats):
        asked.append(chats)
        return [Said(text) for text in left.pop(0)]

    return ask, asked


def test_the_keyword_judge_reads_the_answers_words():
    judge = judging.keyword()
    wanted = {
        "I cannot help with that.": "full_refusal",
        "I\u2019m sorry, but no. However, here is how.": "partial_refusal",
        "Sorry is a five-letter word.": "full_compliance",
        "": "invalid",
    }
    assert judge.name == "keyword"
    assert {text: refusal({"prompt": "a", "response": text}, judge) for text in wanted} == wanted


def test_a_rubric_of_ours_puts_both_texts_in_and_leaves_their_braces():
    rubric = rubrics.load("refusal_three_way")
    (message,) = rubric.messages(EXCHANGE)
    assert EXCHANGE["prompt"] in message["content"] and EXCHANGE["response"] in message["content"]
    assert rubric.read("2_full_refusal").response_refusal == "full_refusal" and len(rubric.sha256) == 64


def test_the_checkpoints_own_template_gets_the_exchange_as_turns():
    rubric = rubrics.load("chat_template", parser="llama_guard")
    assert [m["role"] for m in rubric.messages(EXCHANGE)] == ["user", "assistant"] and rubric.sha256 == ""
    alone = rubrics.load("chat_template", parser="llama_guard", asks="prompt")
    assert [m["role"] for m in alone.messages({"prompt": "a"})] == ["user"]
    assert alone.read("unsafe\nS1").prompt_harmfulness == "harmful"


@pytest.mark.parametrize(
    ("answer", "asks", "field", "value"),
    [
        ("Yes", "response", "response_harmfulness", "harmful"),
        ("no.", "refusal", "response_refusal", "full_compliance"),
        ("Yes", "refusal", "response_refusal", "full_refusal"),
        ("perhaps", "refusal", "response_refusal", "invalid"),
        ("No", "prompt", "prompt_harmfulness", "unharmful"),
    ],
)
def test_yes_means_what_the_rubric_asks(answer, asks, field, value):
    rubric = rubrics.Rubric("r", "{prompt}{response}", "yes_no", asks)
    assert getattr(rubric.read(answer), field) == value and rubric.fields == (field,)


def test_a_users_file_may_call_the_texts_as_published_ones_do(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("  {behavior} | {generation}\n")
    rubric = rubrics.load(str(file), parser="yes_no")
    assert rubric.messages(EXCHANGE)[0]["content"] == f"  {EXCHANGE['prompt']} | {EXCHANGE['response']}\n"
    assert rubric.name == "mine.txt"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, {}, "template='x' is not one of"),
        ("{prompt}", {"parser": "yes_no"}, "no place for the response"),
        ("{prompt}{response}", {}, "needs a parser"),
        ("{prompt}{response}", {"parser": "yesno"}, "nearest is 'yes_no'"),
        ("{prompt}{response}", {"parser": "yes_no", "asks": "all"}, "asks='all'"),
    ],
)
def test_templates_that_cannot_work_are_refused(tmp_path, text, options, words):
    if text is not None:
        (tmp_path / "x").write_text(text)
    with pytest.raises(InputError, match=words):
        rubrics.load("x" if text is None else str(tmp_path / "x"), **options)


def test_an_unreadable_answer_is_asked_for_twice_more_and_then_is_invalid():
    ask, asked = scripted(["2_full_refusal", "hm", "hm"], ["hm", "1_full_compliance"], ["hm"])
    judge = judging.asking("j", rubrics.load("refusal_three_way"), ask, answers=Cache(), retries=judging.RETRIES)
    judged = judge.classify([{"prompt": str(i), "response": "a"} for i in range(3)])
    assert [j.verdict.response_refusal for j in judged] == ["full_refusal", "invalid", "full_compliance"]
    assert [len(chats) for chats in asked] == [3, 2, 1] and judged[1].raw == "hm"


def test_verdicts_are_kept_by_content_and_judge(tmp_path):
    rubric, path = rubrics.load("refusal_yes_no"), tmp_path / "verdicts.jsonl"
    ask, asked = scripted(["Yes"], ["No"])
    with Cache(path) as answers:
        first = judging.asking("j", rubric, ask, answers=answers)
        assert refusal(EXCHANGE, first) == refusal(EXCHANGE, first) == "full_refusal" and len(asked) == 1
    with Cache(path) as answers:  # another start
        assert refusal(EXCHANGE, judging.asking("j", rubric, None, answers=answers)) == "full_refusal"
        other = judging.asking("j", rubric, ask, answers=answers, made_from="other weights")
        assert refusal(EXCHANGE, other) == "full_compliance"


def test_without_an_answer_the_verdict_is_invalid_and_asked_for_again_by_the_next_start():
    answers, rubric = Cache(), rubrics.load("refusal_yes_no")
    ask, _ = scripted([None], ["Yes"])
    judge = judging.asking("j", rubric, ask, answers=answers)
    assert refusal(EXCHANGE, judge) == "invalid" and refusal(EXCHANGE, judge) == "full_refusal"


def test_what_a_service_said_before_it_went_down_is_kept():
    def dies(chats):
        raise backends.Down("no connection", ["Yes", None])

    answers, rubric = Cache(), rubrics.load("refusal_yes_no")
    exchanges = [EXCHANGE, {"prompt": "other", "response": "a"}]
    with pytest.raises(backends.Down):
        judging.asking("j", rubric, dies, answers=answers).classify(exchanges)
    ask, asked = scripted(["No"])
    judged = judging.asking("j", rubric, ask, answers=answers).classify(exchanges)
    assert [j.verdict.response_refusal for j in judged] == ["full_refusal", "full_compliance"] and len(asked[0]) == 1


def test_an_endpoint_is_asked_once_for_each_chat():
    def complete(messages, max_new):
        assert max_new == [7] * len(messages)
        return [json.dumps(m) for m in messages]

    assert judging.at_endpoint(complete, max_new_tokens=7)([["a"], ["b"]]) == [Said('["a"]'), Said('["b"]')]


@functools.cache
def model():
    net = decoder.DecoderLM(vocab_size=48, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1, ffn_dim=32)
    params = nn.meta.unbox(jax.jit(net.init)(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))["params"])
    return net, params, Engine(net, params, num_slots=2, max_len=32, chunk=8, block=8, num_steps=2)


@pytest.mark.parametrize("form", judging.FORMS)
@pytest.mark.parametrize("words", [(3, 4), (46, 47), "likeliest and unlikeliest"])
def test_the_probability_is_that_of_the_first_tokens_logits_also_of_unlikely_words(form, words):
    net, params, engine = model()
    prompt = [5, 6, 7, 8, 9]
    hidden_BTD = net.apply({"params": params}, jnp.array([prompt]))
    logits_V = np.asarray(decoder.logits(net, params, hidden_BTD)[0, -1], np.float64)
    if isinstance(words, str):  # the last one is not among those that come with a token
        words = (int(logits_V.argmin()), int(logits_V.argmax()))
    ask = judging.on_engine(engine, encode=lambda c: prompt, decode=str, max_new_tokens=1, words=words, form=form)
    (said,) = ask([[]])
    yes, no = logits_V[list(words)]
    wanted = {
        "pair": verdicts.pair_probability(yes, no),
        "token": np.exp(yes) / np.exp(logits_V).sum(),
    }
    assert said.probability == pytest.approx(wanted[form], abs=1e-5)
    assert said.text == str([int(logits_V.argmax())])


def test_a_chat_that_is_too_long_has_no_answer():
    *_, engine = model()
    ask = judging.on_engine(engine, encode=lambda chat: chat, decode=str, max_new_tokens=4)
    assert [said.text is None for said in ask([[1] * 40, [1] * 4])] == [True, False]


@pytest.mark.parametrize(
    ("parser", "probability", "wanted"),
    [("yes_no", 0.5, "harmful"), ("yes_no", 0.49, "unharmful"), ("llama_guard_2", 0.9, "harmful")],
)
def test_under_a_threshold_the_probability_decides_whatever_was_written(parser, probability, wanted):
    rubric = rubrics.Rubric("r", "{prompt}{response}", parser, "response")
    options = dict(answers=Cache(), threshold=0.5)
    judge = judging.asking("j", rubric, lambda chats: [Said("Well,", probability)] * len(chats), **options)
    (judged,) = judge.classify([EXCHANGE])
    assert judged.verdict.response_harmfulness == wanted and judged.verdict.probability == probability
    assert judged.raw == "Well,"
    silent = judging.asking("other", rubric, lambda chats: [Said("Well,")] * len(chats), **options)
    assert silent.classify([EXCHANGE])[0].verdict.response_harmfulness == "invalid"


def test_a_users_wording_is_compared_with_published_ones_by_its_hash(tmp_path, monkeypatch):
    text = "Behavior:\n{behavior}\n\nGeneration:\n{generation}\nAnswer:"
    hashes = tuple(hashlib.sha256(t.encode()).hexdigest() for t in (text, " ".join(text.split())))
    monkeypatch.setitem(rubrics.PUBLISHED, "a classifier", hashes)
    texts = {"same": text, "indented": text.replace("\n", "\n    "), "other": text + " Yes or no?"}
    origins = {}
    for name, one in texts.items():
        (tmp_path / name).write_text(one)
        origins[name] = rubrics.load(str(tmp_path / name), parser="yes_no").origin
    assert origins["same"] == "the published text of a classifier"
    assert origins["indented"].startswith("NOT the published text of a classifier: the words are")
    assert origins["other"].startswith("not one of the published texts")
    assert rubrics.load("yes_no").origin == "of our own wording"


def test_a_prompt_with_a_context_gets_the_second_text_or_has_it_above_the_prompt(tmp_path):
    for name, text in (("plain", "{behavior}|{generation}"), ("both", "{context}|{behavior}|{generation}")):
        (tmp_path / name).write_text(text)
    alone = rubrics.load(str(tmp_path / "plain"), parser="yes_no")
    both = rubrics.load(str(tmp_path / "plain"), parser="yes_no", contextual=str(tmp_path / "both"))
    exchange = {"prompt": "open it", "response": "done"}
    said = lambda rubric, e: rubric.messages(e)[0]["content"]  # noqa: E731
    assert said(both, exchange) == said(alone, exchange) == "open it|done"
    in_context = exchange | {"context": "the blue door"}
    assert said(both, in_context) == "the blue door|open it|done"
    assert said(alone, in_context) == "the blue door\n\nopen it|done"
    own = rubrics.load("chat_template", parser="llama_guard")
    assert own.messages(in_context)[0]["content"] == "the blue door\n\nopen it"
    with pytest.raises(InputError, match="no place for the context"):
        rubrics.load("yes_no", contextual=str(tmp_path / "plain"))
    with pytest.raises(InputError, match="is not a file"):
        rubrics.load("yes_no", contextual=str(tmp_path / "nowhere"))


def test_published_wordings_are_known_by_two_whole_hashes_and_none_is_one_of_ours():
    ours = {rubrics.load(name).sha256 for name in rubrics.RUBRICS}
    known = [value for both in rubrics.PUBLISHED.values() for value in both]
    assert len(set(known)) == 2 * len(rubrics.PUBLISHED) and not ours & set(known)
    assert all(len(value) == 64 and int(value, 16) for value in known)


def test_words_that_begin_alike_give_no_probability():
    rubric = rubrics.load("yes_no")
    assert judging.first_words(rubric, lambda word: [ord(word[0])]) == (ord("Y"), ord("N"))
    assert judging.first_words(rubrics.load("refusal_three_way"), list) is None
    with pytest.raises(InputError, match="same token"):
        judging.first_words(rubric, lambda word: [1])

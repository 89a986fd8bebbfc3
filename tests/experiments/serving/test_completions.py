import dataclasses

import pytest

from experiments.decoding.guides import Guide, Guides
from experiments.serving import answers
from experiments.serving.service import Limits
from tests.experiments.serving.conftest import MAX_LEN, TOK, Parrot, opened


def test_a_completion_has_openais_shape_and_counts_its_tokens(run):
    async def work():
        async with opened() as door:
            reply = await door.complete("abc", max_tokens=5)
            assert reply.status == 200 and reply.headers["content-type"] == "application/json"
            body = reply.json
            assert body["object"] == "text_completion" and body["model"] == "parrot" and body["id"].startswith("cmpl-")
            assert body["system_fingerprint"] == "fp_test" and isinstance(body["created"], int)
            choice = {"index": 0, "text": "abcab", "logprobs": None, "finish_reason": "length"}
            assert body["choices"] == [choice]
            usage = body["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 5, 9)  # with BOS

    run(work())


def test_a_chat_goes_through_the_template_and_parts_are_one_text(run):
    async def work():
        engine = Parrot(stop_ids=(ord("\n"),))
        async with opened(engine) as door:
            parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
            reply = await door.chat([{"role": "user", "content": parts}])
            assert reply.status == 200, reply.body
            assert engine.order == [b"User: hello\n\nAssistant:"]
            body = reply.json
            assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
            (choice,) = body["choices"]
            assert choice["message"] == {"role": "assistant", "content": "User: hello", "refusal": None}
            assert choice["finish_reason"] == "stop" and choice["logprobs"] is None

    run(work())


def test_an_answer_may_be_sent_back_as_it_came_and_the_template_reads_its_text_alone(run):
    async def work():
        engine = Parrot(stop_ids=(ord("\n"),))
        async with opened(engine) as door:
            question = {"role": "user", "content": "Hi"}
            answer = (await door.chat([question])).json["choices"][0]["message"]
            others = {"audio": None, "function_call": None, "tool_calls": [], "annotations": []}  # of other services
            reply = await door.chat([question, answer | others, question], max_tokens=1)
            assert reply.status == 200, reply.body
            assert engine.order[1] == b"User: Hi\n\nAssistant: User: Hi\n\nUser: Hi\n\nAssistant:"

    run(work())


def test_a_developers_message_is_the_systems_and_a_name_reaches_the_template(run):
    async def work():
        engine = Parrot()
        async with opened(engine) as door:
            messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi", "name": "Ida"}]
            reply = await door.chat(messages, max_completion_tokens=1)
            assert reply.status == 200 and engine.order == [b"System: Be kind.\n\nUser: Hi\n\nAssistant:"]

    run(work())


def test_prompts_may_be_texts_or_ids_one_or_many_and_n_counts_for_each(run):
    async def work():
        async with opened() as door:
            for prompt, texts in [
                ("ab", ["aba"]),
                ([97, 98], ["aba"]),
                (["ab", "cd"], ["aba", "cdc"]),
                ([[97, 98], [99]], ["aba", "ccc"]),
            ]:
                for n in (1, 2):
                    body = (await door.complete(prompt, max_tokens=3, n=n)).json
                    assert [c["text"] for c in body["choices"]] == [t for t in texts for _ in range(n)]
                    assert [c["index"] for c in body["choices"]] == list(range(n * len(texts)))

    run(work())


def test_logprobs_of_a_completion_lie_beside_tokens_and_offsets(run):
    async def work():
        async with opened() as door:
            logprobs = (await door.complete("ab", max_tokens=3, logprobs=2)).json["choices"][0]["logprobs"]
            assert logprobs["tokens"] == ["a", "b", "a"] and logprobs["token_logprobs"] == [-0.5] * 3
            assert logprobs["text_offset"] == [0, 1, 2]
            assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}

    run(work())


def test_echo_with_logprobs_and_no_new_tokens_scores_the_prompt(run):
    async def work():
        async with opened() as door:
            body = (await door.complete("aé", max_tokens=0, logprobs=1, echo=True)).json
            (choice,) = body["choices"]
            assert choice["text"] == "aé" and choice["finish_reason"] == "length"
            logprobs = choice["logprobs"]
            assert logprobs["tokens"] == ["<|bos|>", "a", "bytes:\\xc3", "bytes:\\xa9"]
            assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]  # nothing comes before the first
            assert logprobs["top_logprobs"][:2] == [None, {"a": -0.5}]
            assert logprobs["text_offset"] == [0, 0, 1, 1]
            assert body["usage"]["completion_tokens"] == 0
            special = (await door.complete("<|eos|>ab", max_tokens=0, logprobs=0, echo=True)).json["choices"][0]
            assert special["logprobs"]["tokens"] == ["<|bos|>", "<|eos|>", "a", "b"]  # a special token has no bytes
            assert special["logprobs"]["text_offset"] == [0, 0, 7, 8]

    run(work())


def test_echo_puts_the_prompt_before_each_answer_and_moves_the_offsets(run):
    async def work():
        async with opened() as door:
            body = (await door.complete([[97, 98], [99]], max_tokens=2, echo=True, logprobs=0)).json
            assert [c["text"] for c in body["choices"]] == ["abab", "ccc"]
            first, second = (c["logprobs"] for c in body["choices"])
            assert first["text_offset"] == [0, 1, 2, 3] and second["text_offset"] == [0, 1, 2]
            assert first["top_logprobs"] is None and second["token_logprobs"] == [None, -0.5, -0.5]

    run(work())


def test_chat_logprobs_come_with_and_without_top_logprobs(run):
    async def work():
        async with opened() as door:
            plain = (await door.chat("x", max_tokens=1, logprobs=True)).json["choices"][0]["logprobs"]
            assert plain["content"] == [{"token": "U", "logprob": -0.5, "bytes": [85], "top_logprobs": []}]
            top = (await door.chat("x", max_tokens=1, logprobs=True, top_logprobs=3)).json["choices"][0]["logprobs"]
            assert [t["token"] for t in top["content"][0]["top_logprobs"]] == ["U", "V", "<|bos|>"]
            assert top["content"][0]["top_logprobs"][2]["bytes"] == []

    run(work())


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_takes_both_names_of_the_answers_length(name, run):
    async def work():
        async with opened() as door:
            body = (await door.chat("x", **{name: 2})).json
            assert body["usage"]["completion_tokens"] == 2

    run(work())


def test_a_chat_without_a_limit_may_fill_the_cache(run):
    async def work():
        async with opened() as door:
            body = (await door.chat("x")).json
            assert body["usage"]["total_tokens"] == door.service.max_len
        led_by = Guides((Guide("long", "run:long", 1.0),), (dataclasses.replace(TOK, chat_template="y" * 200),))
        for limits, guides, num in [
            (Limits(max_tokens=250), None, MAX_LEN - 20),  # of what there is room for
            (Limits(max_tokens=7), None, 7),
            (Limits(), led_by, MAX_LEN - 200),  # the guide's prompt is longer than the model's
        ]:
            engine = Parrot(num_guides=1 if guides else 0)
            async with opened(engine, limits=limits, service_options=dict(guides=guides)) as door:
                reply = await door.chat("x")
                assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == num, reply.body

    run(work())


def test_stop_texts_end_an_answer_and_are_not_in_it(run):
    async def work():
        async with opened() as door:
            body = (await door.complete("one two", max_tokens=50, stop=["wo", "e t"], logprobs=0)).json
            (choice,) = body["choices"]
            assert choice["text"] == "on" and choice["finish_reason"] == "stop"
            assert choice["logprobs"]["tokens"] == ["o", "n"]
            many = [chr(0x2460 + i) for i in range(12)] + ["two"]
            assert (await door.complete("one two", max_tokens=50, stop=many)).json["choices"][0]["text"] == "one "

    run(work())


def test_a_stop_token_ends_an_answer_and_is_scored_but_not_in_its_text(run):
    async def work():
        async with opened() as door:
            body = (await door.complete("one two", max_tokens=50, stop_token_ids=[ord("t")], logprobs=0)).json
            (choice,) = body["choices"]
            assert choice["text"] == "one " and choice["finish_reason"] == "stop"
            assert choice["logprobs"]["tokens"] == list("one t") and body["usage"]["completion_tokens"] == 5
            chat = (await door.chat("a", stop_token_ids=[ord("e")], logprobs=True)).json["choices"][0]
            assert chat["message"]["content"] == "Us" and len(chat["logprobs"]["content"]) == 2  # as OpenAI's

    run(work())


def test_the_options_reach_the_engine_under_its_names(run):
    async def work():
        seen = []
        engine = Parrot()
        submit = engine.submit
        engine.submit = lambda request: seen.append(request) or submit(request)
        options = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
        options |= {"frequency_penalty": 0.5, "presence_penalty": -0.5, "seed": 3}
        async with opened(engine) as door:
            reply = await door.complete(
                "ab", max_tokens=1, n=2, logit_bias={"97": -100, "98": 2.5}, stop_token_ids=[7], **options
            )
            assert reply.status == 200
            first, second = seen
            assert {name: getattr(first, name) for name in options} == options
            assert first.logit_bias == {97: -100.0, 98: 2.5} and first.stop_ids == (7,)
            assert (first.sample, second.sample) == (0, 1) and first.seed == second.seed == 3
            seen.clear()
            nulls = dict.fromkeys([*options, "stop", "n", "stream", "logit_bias", "logprobs", "echo", "max_tokens"])
            reply = await door.complete("ab", user="me", metadata={"a": "b"}, **nulls)
            assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 16
            assert (seen[0].temperature, seen[0].top_p, seen[0].top_k, seen[0].seed) == (1.0, 1.0, 0, None)

    run(work())


def test_the_models_and_the_description_are_there(run):
    async def work():
        async with opened() as door:
            (model,) = (await door.get("/v1/models")).json["data"]
            assert model["id"] == "parrot" and (await door.get("/v1/models/parrot")).json == model
            assert (await door.get("/v1/models/other")).status == 404
            reply = await door.complete("a", model="other")
            assert reply.status == 404 and reply.error["code"] == "model_not_found" and reply.error["param"] == "model"
            assert (await door.complete("a", model="parrot", max_tokens=1)).status == 200
            described = (await door.get("/openapi.json")).json
            assert described["openapi"].startswith("3.1") and "/v1/chat/completions" in described["paths"]

    run(work())


def test_a_log_probability_that_is_not_finite_becomes_openais_least():
    assert answers.number(float("-inf")) == -9999.0 and answers.number(-0.5) == -0.5

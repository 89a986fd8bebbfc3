"""What is wrong with a request is said with the field's name, before any slot is touched."""

import json

import pytest

from data.tokens import chat
from experiments.serving import schema
from experiments.serving.failures import Refused
from experiments.serving.service import Limits
from tests.experiments.serving.conftest import Parrot, call, opened

COMPLETION = {"prompt": "a"}
CHAT = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"top_k": 1.0}, "top_k", "valid integer"),
        ({"min_p": 2}, "min_p", "less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"frequency_penalty": 3}, "frequency_penalty", "less than or equal to 2"),
        ({"presence_penalty": -3}, "presence_penalty", "greater than or equal to -2"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": True}, "n", "valid integer"),
        ({"n": 10**30}, "n", "integer"),
        ({"seed": 1e30}, "seed", "integer"),
        ({"seed": "7"}, "seed", "valid integer"),
        ({"stop": ""}, "stop", "must be a text or a list"),
        ({"stop": [""]}, "stop", "must be a text or a list"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": 3}, "stop", "must be a text or a list"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "greater than or equal to 0"),
        ({"stop_token_ids": [300]}, "stop_token_ids", "not a token id from 0 to 263"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "keys are token ids"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "keys are token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "not a token id from 0 to 263"),
        ({"logit_bias": [1]}, "logit_bias", "an object"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream": 1}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "is not a field"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 10_000}, "prompt", "together they must be at most 256"),
        ({"temprature": 1}, "temprature", "the nearest is 'temperature'"),
        ({"tools": [{"type": "function"}]}, "tools", "does not have tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not have response_format"),
        ({"user": 3}, "user", "valid string"),
        ({"model": 3}, "model", "valid string"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name_at_both_doors(fields, param, words, run):
    async def work():
        async with opened() as door:
            for path, base in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
                reply = await door.post(path, {**base, **fields})
                assert reply.status == 400, (path, reply.body)
                wanted = "messages" if param == "prompt" and base is CHAT else param
                assert reply.error["param"] == wanted and words in reply.error["message"], reply.body
                assert reply.error["type"] == "invalid_request_error" and set(reply.error) >= {"code"}
            assert door.service.driver.num_open == 0 and door.service.driver.engine.number == 0

    run(work())


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"prompt": None}, "prompt", "must be a text, a list of texts"),
        ({"prompt": 3}, "prompt", "must be a text, a list of texts"),
        ({"prompt": [1, "a"]}, "prompt", "must be a text, a list of texts"),
        ({"prompt": ["a", [1]]}, "prompt", "must be a text, a list of texts"),
        ({"prompt": [-1]}, "prompt", "with ids from 0 up"),
        ({"prompt": [True]}, "prompt", "must be a text, a list of texts"),
        ({"prompt": [1.0]}, "prompt", "must be a text, a list of texts"),
        ({"prompt": [264]}, "prompt", "prompt has 264, which is not a token id from 0 to 263"),
        ({"prompt": []}, "prompt", "prompt is empty"),
        ({"prompt": [[]]}, "prompt", "prompt is empty"),
        ({"prompt": "a" * 250}, "prompt", "together they must be at most 256, the cache's length"),
        ({"prompt": "a" * 5_000}, "prompt", "more than 256 tokens can hold, the cache's length"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
        ({"prompt": "a", "echo": 1}, "echo", "valid boolean"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "does not have suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of", "does not have best_of"),
        ({"prompt": "a", "messages": []}, "messages", "is not one of"),
        ({"prompt": ["a"] * 40, "n": 2}, "n", "takes at most"),
    ],
)
def test_what_a_completion_cannot_be_is_said(body, param, words, run):
    async def work():
        async with opened() as door:
            reply = await door.post("/v1/completions", body)
            assert reply.status == 400 and reply.error["param"] == param and words in reply.error["message"], reply.body

    run(work())


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "messages is missing"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'system', 'developer'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "must be a text or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "must be a text"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages[0].x", "is not a field"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls", "empty"),
        ({"messages": [{"role": "assistant", "content": "a", "refusal": "No."}]}, "messages[0].refusal", "empty"),
        ({**CHAT, "top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
        ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({**CHAT, "logprobs": 2}, "logprobs", "valid boolean"),
        ({**CHAT, "max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "two names of one number"),
        ({**CHAT, "echo": True}, "echo", "is not one of"),
        ({"messages": [{"role": "user", "content": "a" * 240}]}, "messages", "together they must be at most 256"),
        ({"messages": [{"role": "user", "content": "a" * 5_000}]}, "messages", "more than 256 tokens can hold"),
    ],
)
def test_what_a_chat_cannot_be_is_said(body, param, words, run):
    async def work():
        async with opened() as door:
            reply = await door.post("/v1/chat/completions", body)
            assert reply.status == 400 and reply.error["param"] == param and words in reply.error["message"], reply.body

    run(work())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "it must be a JSON object"),
        (b'"text"', "it must be a JSON object"),
        (b'{"prompt": "a", "temperature": NaN}', "not JSON"),
        (b'{"prompt": "a", "temperature": Infinity}', "not JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', "not JSON"),
        (b'{"prompt": "\xff"}', "not valid UTF-8"),
        (b'{"prompt": "\\ud800"}', "not JSON"),
        (b'{"prompt": ' + b"[" * 100_000 + b"}", "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"prompt": "a"} x', "not JSON"),
    ],
)
def test_a_body_that_is_not_an_object_of_finite_json_is_refused(raw, words, run):
    async def work():
        async with opened() as door:
            reply = await door.post("/v1/completions", raw)
            assert reply.status == 400 and words in reply.error["message"], reply.body

    run(work())


def test_deep_json_within_a_known_field_is_refused_and_within_an_ignored_one_too(run):
    async def work():
        async with opened() as door:
            deep = json.dumps("x")
            for _ in range(900):
                deep = f"[{deep}]"
            for field in ("prompt", "stop", "logit_bias", "metadata", "user", "stream_options"):
                reply = await door.post("/v1/completions", f'{{"{field}": {deep}, "stream": true}}'.encode())
                assert reply.status == 400 and len(reply.body) < 1_000, reply.body[:300]

    run(work())


def test_a_hostile_value_is_cut_in_the_message(run):
    async def work():
        async with opened(limits=Limits(max_bytes=10_000_000)) as door:
            for body in (
                {"prompt": ["a"] * 100_000 + [1]},
                {"prompt": "a", "x" * 100_000: 1},
                {"prompt": "a", "model": "m" * 400},
                {"prompt": "a", "stop": "s" * 100_000},
                {"prompt": "a", "logit_bias": {"k" * 100_000: 1}},
                {"prompt": "a", "tools": ["t" * 100_000]},
            ):
                reply = await door.post("/v1/completions", body)
                assert 400 <= reply.status < 500 and len(reply.body) < 1_500, reply.body[:300]

    run(work())


def test_bodies_too_long_of_another_type_or_compressed_are_refused(run):
    async def work():
        async with opened(limits=Limits(max_bytes=1_000)) as door:
            long = json.dumps({"prompt": "a" * 2_000}).encode()
            reply = await door.post("/v1/completions", long, headers=[("content-length", str(len(long)))])
            assert reply.status == 413 and reply.headers["connection"] == "close"
            reply = await door.post("/v1/completions", b"", parts=[(0, b"{"), (0, b" " * 2_000), (0, b"}")])
            assert reply.status == 413 and "more than 1000 bytes" in reply.error["message"]
            for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
                assert (await door.post("/v1/completions", COMPLETION, headers=[("content-type", kind)])).status == 415
            assert (
                await door.post("/v1/completions", COMPLETION, headers=[("content-encoding", "gzip")])
            ).status == 415
            typed = [("content-type", "application/json; charset=utf-8")]
            assert (await door.post("/v1/completions", COMPLETION, headers=typed)).status == 200

    run(work())


def test_a_body_that_trickles_in_is_given_up(run):
    async def work():
        async with opened(limits=Limits(body_seconds=0.05)) as door:
            reply = await door.post("/v1/completions", b"", parts=[(0.02, b"{")] * 50)
            assert reply.status == 408 and reply.error["type"] == "timeout_error"

    run(work())


def test_paths_and_methods_that_are_not_there_are_refused_in_openais_shape(run):
    async def work():
        async with opened() as door:
            for method, path, status in (
                ("GET", "/v1/completions", 405),
                ("POST", "/nowhere", 404),
                ("GET", "/v1", 404),
            ):
                reply = await call(door.app, method, path)
                assert reply.status == status and reply.error["message"], path
            assert (await call(door.app, "HEAD", "/healthz")).status == 200

    run(work())


def test_a_key_is_asked_for_at_v1_and_compared_whole(run):
    async def work():
        async with opened(key="secret") as door:
            for sent in (None, "Bearer", "Bearer wrong", "Bearer secret2", "Basic secret", "secret", "Bearer sécret"):
                headers = [] if sent is None else [("authorization", sent)]
                for path in ("/v1/models", "/v1/nowhere"):
                    reply = await door.get(path, headers=headers)
                    assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
                assert (await door.post("/v1/completions", COMPLETION, headers=headers)).status == 401
            right = [("authorization", "Bearer secret")]
            assert (await door.get("/v1/models", headers=right)).status == 200
            assert (await door.post("/v1/completions", COMPLETION, headers=right)).status == 200
            for path in ("/", "/healthz", "/metrics"):
                assert (await door.get(path)).status == 200

    run(work())


def test_a_server_on_loopback_answers_to_its_own_names_alone(run):
    async def work():
        async with opened(hosts=("127.0.0.1", "localhost", "[::1]")) as door:
            for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
                assert (await door.get("/healthz", headers=[("host", host)])).status == 200, host
            for host in ("evil.example", "localhost.evil.example:8000", "", "127.0.0.1.evil.example"):
                assert (await door.get("/healthz", headers=[("host", host)])).status == 421, host

    run(work())


def test_a_template_that_refuses_a_conversation_is_the_clients_fault(run):
    async def work():
        engine = Parrot()
        async with opened(engine) as door:
            object.__setattr__(door.service, "tok", _Refusing())
            reply = await door.chat("a")
            assert (
                reply.status == 400
                and reply.error["param"] == "messages"
                and "roles must alternate" in reply.error["message"]
            )

    run(work())


class _Refusing:
    def render(self, messages, **options):
        raise chat.Refused("roles must alternate")


def test_every_field_of_the_description_is_read_by_the_schema_and_the_other_way_round():
    described = schema.openapi(model="m", max_len=8)["components"]["schemas"]
    for name, kind in (("Completion", schema.Completion), ("Chat", schema.Chat)):
        assert set(described[name]["properties"]) == set(kind.model_fields)
        assert described[name]["additionalProperties"] is False
    with pytest.raises(Refused, match="is not one of"):
        schema.read(schema.Chat, {**CHAT, "prompt": "a"})

import threading

import pytest

from tests.experiments.serving.conftest import Parrot, opened


def text_of(chunks, index=0):
    return "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index)


def test_a_stream_of_a_completion_says_what_the_whole_answer_says(run):
    async def work():
        async with opened() as door:
            options = {"max_tokens": 9, "logprobs": 1, "stop": "bb", "n": 2}
            whole = (await door.complete("aébcab", **options)).json
            reply = await door.complete("aébcab", stream=True, stream_options={"include_usage": True}, **options)
            assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
            *chunks, last = reply.chunks
            assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
            assert all(c["object"] == "text_completion" and "usage" not in c for c in chunks)
            assert len({c["id"] for c in chunks}) == 1
            for index, choice in enumerate(whole["choices"]):
                own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
                assert "".join(c["text"] for c in own) == choice["text"]
                assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
                for name, values in choice["logprobs"].items():
                    assert [v for c in own for v in c["logprobs"][name]] == values, name

    run(work())


def test_a_stream_of_a_chat_begins_with_the_role_and_ends_with_a_reason(run):
    async def work():
        async with opened() as door:
            reply = await door.chat("x", stream=True, max_tokens=4, logprobs=True)
            first, *rest = reply.chunks
            assert first["object"] == "chat.completion.chunk"
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
            deltas = [c["choices"][0] for c in rest]
            assert "".join(d["delta"].get("content", "") for d in deltas) == "User"
            assert deltas[-1]["finish_reason"] == "length"
            assert [t["token"] for d in deltas if d["logprobs"] for t in d["logprobs"]["content"]] == list("User")

    run(work())


def test_only_whole_characters_and_nothing_a_stop_text_may_take_back_is_streamed(run):
    async def work():
        async with opened() as door:
            reply = await door.complete("a€bé", stream=True, max_tokens=20, stop="bé")
            texts = [c["choices"][0]["text"] for c in reply.chunks]
            assert "".join(texts) == "a€" and not any("\ufffd" in text for text in texts)
            cut = await door.complete([0xE2, 0x82], stream=True, max_tokens=2)  # two bytes of three, and then the end
            assert text_of(cut.chunks) == "\ufffd"

    run(work())


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_with_echo_begins_with_the_prompt(logprobs, run):
    async def work():
        async with opened() as door:
            options = {"max_tokens": 3, "echo": True, "logprobs": logprobs}
            whole = (await door.complete("ab", **options)).json["choices"][0]
            chunks = (await door.complete("ab", stream=True, **options)).chunks
            own = [c["choices"][0] for c in chunks]
            assert len(own) >= 4, "the answer's tokens did not wait for one another"
            assert own[0]["text"] == "ab" and "".join(c["text"] for c in own) == whole["text"] == "ababa"
            if logprobs is not None:
                for name, values in whole["logprobs"].items():
                    assert [v for c in own for v in c["logprobs"][name]] == values

    run(work())


def test_tokens_go_out_as_they_come(run):
    async def work():
        engine, num_sent, opened_gate = Parrot(), 0, threading.Event()
        advance = engine.advance

        def standing_after_five():
            if engine.busy and len(engine.busy[0][0].tokens) == 5:
                assert opened_gate.wait(10), "the fifth token never left"
            return advance()

        async def on_send(message):
            nonlocal num_sent
            num_sent += 1
            if num_sent == 6:  # the head and five tokens
                opened_gate.set()

        engine.advance = standing_after_five
        async with opened(engine) as door:
            body = {"prompt": "abc", "max_tokens": 30, "stream": True}
            reply = await door.post("/v1/completions", body, on_send=on_send)
            assert reply.is_complete and len(reply.chunks) == 30

    run(work())

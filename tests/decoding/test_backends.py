import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from alignment.decoding import backends, engine
from alignment.errors import InputError
from alignment.models import decoder

FAST = dict(backoff_seconds=0.001, api_key_env="")


def chats(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def ask(complete, *texts):
    return complete(chats(*texts), [99] * len(texts))


@contextlib.contextmanager
def server(answer_fn):
    """A chat endpoint on this machine: answer_fn(text, its number) -> (status, headers, body); None: it hangs up."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, dict(self.headers), body))
            reply = answer_fn(body["messages"][-1]["content"], len(seen))
            if reply is None:
                return
            status, headers, content = reply
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", seen
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def said(text, finish="stop"):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode()


def unused_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_importing_the_backends_loads_no_jax():
    code = "import sys; from alignment.decoding import backends, cache; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_endpoint_is_asked_as_its_protocol_says_and_answers_keep_their_order(monkeypatch):
    monkeypatch.setenv("A_KEY", "secret-key")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for this machine

    def answer(text, _):
        time.sleep(0.02 * (3 - int(text)))  # later ones are ready first
        return said(text * 2)

    with server(answer) as (url, seen):
        complete = backends.openai(url, "small", api_key_env="A_KEY", extra={"seed": 7})
        assert complete(chats("0", "1", "2"), [5, 6, 7]) == ["00", "11", "22"]
    path, headers, body = min(seen, key=lambda s: s[2]["max_tokens"])
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret-key"
    assert body == {"model": "small", "temperature": 0, "seed": 7, "max_tokens": 5, "messages": chats("0")[0]}


def test_a_line_end_behind_the_key_is_no_part_of_it_and_one_within_is_refused_unshown(monkeypatch):
    monkeypatch.setenv("A_KEY", " secret-key\r\n")
    with server(lambda text, n: said(text)) as (url, seen):
        assert ask(backends.openai(url, "m", api_key_env="A_KEY"), "a") == ["a"]
    assert seen[0][1]["Authorization"] == "Bearer secret-key"
    for key in ("secret\nkey", "secret-kéy"):
        monkeypatch.setenv("A_KEY", key)
        with pytest.raises(InputError, match="A_KEY holds a line end or a letter beyond ASCII") as caught:
            backends.openai("http://127.0.0.1/v1", "m", api_key_env="A_KEY")
        assert "secret" not in str(caught.value)


def test_requests_are_under_way_together():
    gate = threading.Barrier(4, timeout=5)

    def answer(text, _):
        gate.wait()
        return said(text)

    with server(answer) as (url, _):
        assert ask(backends.openai(url, "m", concurrency=4, **FAST), *"abcd") == list("abcd")


@pytest.mark.parametrize(
    "failure",
    [(429, {}, b"slow down"), (429, {"Retry-After": "0.01"}, b""), (500, {}, b"oops"), (503, {}, b""),
     (200, {}, b"{not"),
     (200, {}, b"[]"), (200, {}, b'{"choices": []}'), (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
     (200, {"Content-Length": "500"}, b"torn"), (200, {}, b"\xff\xfe")],
)  # fmt: skip
def test_a_passing_failure_is_tried_again_three_times_and_then_gives_none(failure):
    with server(lambda text, n: said(text) if n > 3 else failure) as (url, seen):
        assert ask(backends.openai(url, "m", **FAST), "a") == ["a"] and len(seen) == 4
    with server(lambda text, n: failure) as (url, seen):
        assert ask(backends.openai(url, "m", **FAST), "a") == [None] and len(seen) == 4


def test_a_slow_answer_is_a_time_out_even_when_it_trickles():
    def trickle(text, n):
        time.sleep(0.3)
        return said(text)

    with server(lambda text, n: trickle(text, n) if n <= 1 else said(text)) as (url, seen):
        assert ask(backends.openai(url, "m", timeout_seconds=0.1, **FAST), "a") == ["a"] and len(seen) == 2
    with server(trickle) as (url, seen):
        assert ask(backends.openai(url, "m", timeout_seconds=0.05, retries=1, **FAST), "a") == [None]


@pytest.mark.parametrize("reply", [(400, {}, b"too long"), said("cut", "length"), said("", "content_filter")])
def test_a_bad_request_and_a_cut_answer_are_none_at_once(reply):
    with server(lambda text, n: said(text) if text == "b" else reply) as (url, seen):
        assert ask(backends.openai(url, "m", **FAST), "a", "b") == [None, "b"] and len(seen) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 302, 307])
def test_a_wrong_key_address_or_redirect_stops_without_showing_the_key(status, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret-key")
    elsewhere = {"Location": f"http://127.0.0.1:{unused_port()}/v1/chat/completions"}
    with server(lambda text, n: (status, elsewhere, b"no: secret-key")) as (url, seen):
        with pytest.raises(InputError, match=str(status)) as caught:
            ask(backends.openai(url, "m", api_key_env="A_KEY", backoff_seconds=0), "a")
        assert len(seen) == 1 and "secret" not in str(caught.value) and "***" in str(caught.value)


def test_an_endpoint_that_is_not_there_is_down():
    complete = backends.openai(f"http://127.0.0.1:{unused_port()}/v1", "m", concurrency=1, **FAST)
    with pytest.raises(backends.Down, match="3 requests in a row had no connection") as caught:
        ask(complete, *"abcdef")
    assert caught.value.answers == [None] * 6


def test_an_endpoint_that_never_answers_in_time_is_down_after_a_while():
    with server(lambda text, n: time.sleep(0.1) or said(text)) as (url, _):
        complete = backends.openai(url, "m", timeout_seconds=0.01, retries=0, hung_after=4, concurrency=1, **FAST)
        with pytest.raises(backends.Down, match="no time"):
            ask(complete, *"abcdefgh")


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_service_that_only_refuses_is_down_after_a_while_and_one_that_answers_some_is_not(status):
    with server(lambda text, n: (status, {}, b"no")) as (url, _):
        complete = backends.openai(url, "m", retries=0, concurrency=1, refused_after=5, **FAST)
        assert ask(complete, *"ab") == [None, None]
        with pytest.raises(backends.Down, match=f"5 requests in a row had no service .it answers {status}"):
            ask(complete, *"cdefgh")
    with server(lambda text, n: said(text) if n % 4 == 0 else (500, {}, b"")) as (url, _):
        complete = backends.openai(url, "m", retries=0, concurrency=1, refused_after=5, **FAST)
        assert sum(answer is not None for answer in ask(complete, *"abcdefghijkl")) == 3


def raw(content):
    return 200, {}, b'{"choices": [{"message": {"content": ' + content + b"}}]}"


def error(status, words):
    return status, {}, json.dumps({"error": {"message": words}}).encode()


@pytest.mark.parametrize("content", [rb'"a smile \ud83d"', rb'"\udc00"', rb'"a \u0000 byte"'])
def test_an_answer_that_cannot_be_stored_is_tried_again_and_never_stops_the_service(content):
    with server(lambda text, n: said(text) if n > 3 else raw(content)) as (url, seen):
        assert ask(backends.openai(url, "m", **FAST), "a") == ["a"] and len(seen) == 4
    with server(lambda text, n: raw(content)) as (url, _):
        assert ask(backends.openai(url, "m", retries=0, concurrency=1, **FAST), *"abcdefgh") == [None] * 8


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(400, "temperature is not supported"), "temperature is not supported"),
        (error(422, "unknown field"), "unknown field"),
        (error(400, "maximum context length is 512 tokens"), "512 tokens"),
        (error(200, "upstream quota used up"), "upstream quota used up"),
        (error(429, "monthly quota"), "monthly quota"),
        ((200, {}, b"<html>502 Bad Gateway</html>"), "Bad Gateway"),
        ((200, {}, b'{"choices": []}'), "choices"),
        ((200, {}, b'{"choices": null}'), "null"),
        ((200, {}, b'{"choices": [{"message": {"content": null, "reasoning_content": "hm"}}]}'), "hm"),
    ],
)
def test_a_service_that_never_answers_is_down_after_a_few_requests_with_its_own_words(reply, words):
    with server(lambda text, n: reply) as (url, seen):
        complete = backends.openai(url, "m", retries=0, concurrency=1, **FAST)
        with pytest.raises(backends.Down, match=words):
            ask(complete, *"abcdefgh")
        assert len(seen) <= 6


@pytest.mark.parametrize(
    ("status", "words"), [(401, "key expired"), (403, "suspended"), (404, "unloaded"), (402, "credits")]
)
def test_a_service_that_stops_taking_key_or_model_is_down_and_keeps_its_answers(status, words):
    with server(lambda text, n: said(text) if n <= 3 else error(status, words)) as (url, _):
        with pytest.raises(backends.Down, match=words) as caught:
            ask(backends.openai(url, "m", concurrency=1, **FAST), *"abcdefgh")
        assert caught.value.answers[:4] == ["a", "b", "c", None]


def test_texts_that_are_too_long_do_not_stop_a_service_that_answers_others():
    with server(lambda text, n: said(text) if text == "a" else error(400, "maximum context length")) as (url, _):
        complete = backends.openai(url, "m", concurrency=1, **FAST)
        assert ask(complete, *"abcdefghijkl") == ["a"] + [None] * 11


def test_an_answer_in_parts_is_joined():
    with server(lambda text, n: raw(b'[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]')) as (url, _):
        assert ask(backends.openai(url, "m", **FAST), "x") == ["ab"]


@pytest.mark.parametrize(
    "failure", [(503, {"Content-Length": "100"}, b""), (429, {"Retry-After": "²"}, b""), (200, {}, b"[" * 200_000)]
)
def test_an_error_that_is_itself_broken_is_tried_again_too(failure):
    with server(lambda text, n: said(text) if n > 1 else failure) as (url, seen):
        assert ask(backends.openai(url, "m", timeout_seconds=1, **FAST), "a") == ["a"] and len(seen) == 2


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://me:pass@host/v1"])
def test_an_address_that_cannot_be_is_refused(url):
    with pytest.raises(InputError, match=r"base_url|password"):
        backends.openai(url, "m")
    with pytest.raises(InputError, match="model='' is empty"):
        backends.openai("http://127.0.0.1/v1", "")


@pytest.fixture(scope="module")
def lm():
    model = decoder.DecoderLM(vocab_size=32, num_layers=1, model_dim=16, num_heads=2, tie_embeddings=False)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"])
    return model, {**params, "embedding": params["embedding"] * 5.0, "head": params["head"] * 4.0}


def engines(lm, *stop_ids):
    """Makers of engines, as `flax` takes them."""
    return lambda max_len: engine.Engine(*lm, num_slots=2, max_len=max_len, stop_ids=stop_ids, order="longest")


def test_flax_answers_as_greedy_decoding_of_all_prompts_at_once(lm):
    texts = ["abc", "a" * 30, "bb", "cabbage", "x"]

    def encode(chat):
        return [ord(c) % 29 + 1 for c in chat[-1]["content"]]

    prompts = [encode(chat) for chat in chats(*texts)]
    stop = engine.write(*lm, prompts, max_new_tokens=16)[0][3]
    options = dict(encode=encode, decode=lambda ids: " ".join(map(str, ids)))
    found = backends.flax(engines(lm, stop), **options)(chats(*texts), [16] * 5)
    wanted = engine.write(*lm, prompts, max_new_tokens=16, stop_ids=(stop,))  # one batch; rows do not matter
    assert found == [" ".join(map(str, ids[:-1])) if ids[-1] == stop else None for ids in wanted]
    assert found[0] is not None
    short = backends.flax(engines(lm, stop), max_prompt=7, **options)
    assert short(chats(*texts), [16] * 5) == [found[0], None, *found[2:]]


def test_a_text_on_which_the_model_fails_has_no_answer_and_a_model_that_always_fails_is_down(lm):
    model, params = lm
    poison = {**params, "embedding": params["embedding"].at[ord("x") % 29].set(jnp.nan)}
    every = tuple(range(32))  # the first token ends an answer, whichever it is
    options = dict(encode=lambda chat: [ord(c) % 29 for c in chat[-1]["content"]], decode=str)
    found = backends.flax(engines((model, poison), *every), **options)(chats("a", "x", "b"), [2] * 3)
    assert [answer is None for answer in found] == [False, True, False]
    complete = backends.flax(engines((model, poison), *every), failed_after=3, **options)
    assert complete(chats("ax", "bx"), [2, 2]) == [None, None]  # it may be the texts
    with pytest.raises(backends.Down, match=r"failed on all of its 3 requests.*not numbers") as caught:
        complete(chats("cx"), [2])
    assert caught.value.answers == [None]

"""Ask a language model: one behind an endpoint (`openai`), or one in this process (`flax`).

A backend is a function `complete(messages, max_new) -> answers`: a list of chats and the longest answer to each, in
tokens; an answer each, None where one came too late, was cut off or could not be read. It raises `Down` when there is
no use in asking further.
"""

import concurrent.futures
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError

Messages = list[dict[str, str]]
Complete = Callable[[Sequence[Messages], Sequence[int]], list[str | None]]
MAX_ANSWER_BYTES = 16 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Down(RuntimeError):
    """The backend has gone; what it answered of the last call is in `answers`, None where it did not."""

    def __init__(self, message: str, answers: Sequence[str | None] = ()):
        super().__init__(message)
        self.answers = list(answers)


def flax(
    model: Any,
    params: Any,
    *,
    encode: Callable[[Messages], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    stop_ids: Sequence[int],
    pad_id: int = 0,
    batch_size: int = 16,
    max_prompt: int = 4_096,
) -> Complete:
    """A language model of this process; greedy, so an answer depends on its prompt alone.

    Prompts and answers are grouped by length, rounded up to powers of two, and every batch is filled up to
    `batch_size` rows, so few programs are compiled. A prompt that is too long and an answer that does not end within
    its length give None.

    Args:
        model, params: a decoder and its parameters.
        encode: a chat as token ids, the opening of the answer included.
        decode: token ids of an answer, without its stop token, as text.
        max_prompt: longest prompt, in tokens.
    """
    from alignment.decoding import sample  # and with it jax, which a worker that applies rules never loads

    def run(prompts: list[Sequence[int]], length: int, num_new: int) -> list[str | None]:
        filled = [*prompts, *[prompts[0]] * (batch_size - len(prompts))]
        tokens_BT, groups_BT = sample.pad_prompts(filled, pad_id=pad_id, length=length)
        options = dict(max_new_tokens=num_new, stop_ids=stop_ids, pad_id=pad_id)
        written_BN, lengths_B = sample.generate(model, params, tokens_BT, groups_BT, **options)
        rows = zip(np.asarray(written_BN), np.asarray(lengths_B), prompts)
        return [_ended(row[:num].tolist(), stop_ids, decode) for row, num, _ in rows]

    def complete(messages: Sequence[Messages], max_new: Sequence[int]) -> list[str | None]:
        prompts = [encode(chat) for chat in messages]
        buckets: dict[tuple[int, int], list[int]] = {}
        for i, (prompt, num) in enumerate(zip(prompts, max_new)):
            if 0 < len(prompt) <= max_prompt:
                buckets.setdefault((_power_of_two(len(prompt)), _power_of_two(num)), []).append(i)
        answers: list[str | None] = [None] * len(messages)
        for (length, num_new), members in sorted(buckets.items()):
            for at in range(0, len(members), batch_size):
                part = members[at : at + batch_size]
                for i, answer in zip(part, run([prompts[i] for i in part], length, num_new)):
                    answers[i] = answer
        return answers

    return complete


def _ended(ids: list[int], stop_ids: Sequence[int], decode) -> str | None:
    return decode(ids[:-1]) if ids and ids[-1] in set(stop_ids) else None


def _power_of_two(number: int, least: int = 16) -> int:
    return max(least, 1 << (number - 1).bit_length())


def openai(
    base_url: str,
    model: str,
    *,
    api_key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    timeout_seconds: float = 120.0,
    retries: int = 3,
    backoff_seconds: float = 1.0,
    down_after: int = 3,
    refused_after: int = 12,
    hung_after: int = 24,
    length_key: str = "max_tokens",
    extra: Mapping[str, Any] | None = None,
) -> Complete:
    """Any endpoint that speaks OpenAI's chat completions, such as vLLM, SGLang, llama.cpp or a company's service.

    Time-outs, answers that cannot be read, 408, 409, 429 and 5xx are tried again after a growing wait (or the one that
    the server asks for); a request that fails `1 + retries` times is None, as is one that the server calls bad (400,
    413, 422) or whose answer was cut at its longest length. Proxies of the environment are used, except to this
    machine; redirects are not followed, since they could carry the key elsewhere.

    Args:
        base_url: up to and including the version, such as "http://127.0.0.1:8000/v1".
        model: the name the endpoint knows.
        api_key_env: environment variable that holds the key; unset or empty sends none. The key is in no message.
        concurrency: requests under way at once.
        timeout_seconds: for one whole request.
        down_after: requests in a row without a connection after which the endpoint is `Down`.
        refused_after: requests in a row that it answers with 408, 409, 429 or 5xx to the last try, after which it is
            too: what stands in front of a dead server answers so, and a used-up quota.
        hung_after: requests in a row that time out, none answered between, after which it is too.
        length_key: field of the longest answer; some endpoints want "max_completion_tokens".
        extra: further fields of the request, such as {"seed": 0}. Temperature is 0 unless given here.

    Raises:
        InputError: for a URL or key the endpoint will never take (401, 403, 404 and redirects).
    """
    endpoint = _Endpoint(base_url, model, api_key_env, timeout_seconds, retries, backoff_seconds, length_key, extra)
    health = _Health(endpoint.shown, {"connection": down_after, "service": refused_after, "time": hung_after})

    def complete(messages: Sequence[Messages], max_new: Sequence[int]) -> list[str | None]:
        answers: list[str | None] = [None] * len(messages)

        stop = threading.Event()

        def one(i: int) -> None:
            health.check()
            answers[i] = endpoint.ask(messages[i], max_new[i], health, stop)

        pool = concurrent.futures.ThreadPoolExecutor(max_workers=concurrency)
        try:
            for done in concurrent.futures.as_completed([pool.submit(one, i) for i in range(len(messages))]):
                done.result()
            health.check_last()
        except Down as e:
            pool.shutdown(cancel_futures=True)  # those under way may still answer
            health.revive()
            raise Down(str(e), answers) from None
        finally:
            stop.set()  # an interrupt does not wait for further tries
            pool.shutdown(wait=False, cancel_futures=True)
        return answers

    return complete


class _Health:
    """How many requests in a row failed for want of a connection, of service or of time; shared by the threads."""

    def __init__(self, shown: str, limits: Mapping[str, int]):
        self.shown, self.limits = shown, limits
        self.lock, self.failures, self.last = threading.Lock(), dict.fromkeys(limits, 0), ""

    def failed(self, what: str, why: str) -> None:
        with self.lock:
            self.failures[what] += 1
            self.last = why

    def revive(self) -> None:
        with self.lock:
            self.failures = dict.fromkeys(self.failures, 0)

    def check(self) -> None:
        for what, num in self.failures.items():
            if num >= self.limits[what]:
                raise Down(
                    f"{self.shown} is down: {num} requests in a row had no {what} ({self.last}). Start it again and "
                    "run the same command: answers so far are in the cache"
                )

    def check_last(self) -> None:
        """At the end of a call nobody is left to show that the endpoint answers again: what it missed waits."""
        if self.failures["connection"]:
            raise Down(
                f"{self.shown} is down: the last requests had no connection ({self.last}). Start it again and run the "
                "same command: answers so far are in the cache"
            )


class _Endpoint:
    """One chat-completions URL and how it is asked."""

    def __init__(self, base_url, model, api_key_env, timeout_seconds, retries, backoff_seconds, length_key, extra):
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"base_url={base_url!r} is no address; it looks like 'http://127.0.0.1:8000/v1'")
        if parts.username or parts.password:
            raise InputError(f"base_url of {parts.hostname} holds a password; put the key in {api_key_env} instead")
        if not model:
            raise InputError("model='' names no model; give the name that the endpoint lists under /models")
        self.url, self.shown = base_url.rstrip("/") + "/chat/completions", f"{parts.scheme}://{parts.netloc}"
        self.key = os.environ.get(api_key_env, "") if api_key_env else ""
        self.key_from, self.timeout, self.retries = api_key_env, timeout_seconds, retries
        self.backoff, self.length_key = backoff_seconds, length_key
        self.body = {"model": model, "temperature": 0, **(extra or {})}
        proxies = {} if parts.hostname in LOOPBACK or parts.hostname.startswith("127.") else None
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirects)

    def ask(self, messages: Messages, max_new: int, health: _Health, stop: threading.Event) -> str | None:
        """The answer, or None after all tries; tells `health` how it went."""
        body = json.dumps({**self.body, "messages": messages, self.length_key: max_new}).encode()
        what, why, wait = "", "", 0.0
        for attempt in range(1 + self.retries):
            if attempt and stop.wait(max(wait, self.backoff * 2 ** (attempt - 1))):
                return None
            wait = 0.0
            try:
                answer = self._post(body)
            except urllib.error.HTTPError as e:
                what, why, wait = "service", f"it answers {e.code}", self._refused(e)
                if wait is None:
                    what = ""
                    break
            except TimeoutError as e:
                what, why = "time", str(e)
            except (OSError, http.client.HTTPException) as e:  # URLError among them
                is_late = isinstance(getattr(e, "reason", None), TimeoutError)
                what, why = "time" if is_late else "connection", self._clean(str(e))
            except (ValueError, KeyError, IndexError, TypeError, RecursionError):
                what = ""  # connected, but what came is no answer
            else:
                health.revive()
                return answer
        if what:
            health.failed(what, why)
        else:
            health.revive()
        return None

    def _post(self, body: bytes) -> str | None:
        headers = {"Content-Type": "application/json", "User-Agent": "plumbline"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data=body, headers=headers)
        end = time.monotonic() + self.timeout
        content = b""
        with self.opener.open(request, timeout=self.timeout) as response:
            while part := response.read1(1 << 16):
                content += part
                if time.monotonic() > end:
                    raise TimeoutError(f"no whole answer within {self.timeout:g} s")
                if len(content) > MAX_ANSWER_BYTES:
                    raise ValueError("the answer is too long")
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("the answer is not a text")
        return None if choice.get("finish_reason") in ("length", "content_filter") else text

    def _refused(self, error: urllib.error.HTTPError) -> float | None:
        """Seconds to wait before trying again, None where this request is hopeless; raises where all are."""
        with error:
            code, wait = error.code, error.headers.get("Retry-After", "")
            try:
                said = self._clean(error.read(2_000).decode("utf-8", "replace").strip())
            except (OSError, http.client.HTTPException):  # broken off, or never sent
                said = ""
        if code in (401, 403):
            has = "is refused" if self.key else "is not set"
            raise InputError(
                f"{self.shown} answers {code}: the key in {self.key_from or '(no variable)'} {has}. It says: {said}"
            )
        if code == 404 or 300 <= code < 400:
            raise InputError(
                f"{self.shown} answers {code} to {self.url} for model {self.body['model']!r}: is the address right up "
                f"to /v1, and does it serve that model? It says: {said}"
            )
        if code in (408, 409, 429) or code >= 500:
            is_number = wait.isascii() and wait.replace(".", "", 1).isdigit()
            return min(float(wait), 60.0) if is_number else 0.0
        return None

    def _clean(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *unused):
        return None

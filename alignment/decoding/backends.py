"""Ask a language model: one behind an endpoint (`openai`), or one in this process (`flax`).

A backend is a function `complete(messages, max_new) -> answers`: `messages` is a list of chats, `max_new` the longest
answer to each in tokens. An answer is None if it came too late, was cut off or could not be read. The backend raises
`Down` when further requests are useless. This module imports no JAX: a worker that only applies rules never loads it.
"""

import concurrent.futures
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.decoding.requests import Request
from alignment.errors import InputError

Messages = list[dict[str, str]]
Complete = Callable[[Sequence[Messages], Sequence[int]], list[str | None]]
MAX_ANSWER_BYTES = 16 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A bad request with such words is about its own text, which is too long or was filtered; others are about every text.
_ABOUT_THE_TEXT = re.compile(
    r"context|too (?:long|large|many)|token|content.?(?:filter|management|policy)|moderat", re.I
)
_SAID = 300  # characters of a service's own words that a message repeats


def key_in(variable: str) -> str:
    """The API key in a variable of the environment, without blanks and line ends around it; "" for none.

    Raises:
        InputError: the key cannot stand in a header of HTTP. The message does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"{variable} holds a line end or a letter beyond ASCII, which no API key has; set it to the key alone"
        )
    return key


def is_storable(text: str) -> bool:
    """Whether a text can be written as UTF-8 and read by other tools: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class _Unstorable(ValueError):
    """The service answered, but with a text that cannot be stored."""


class Down(RuntimeError):
    """The backend no longer answers; `answers` has the last call's answers so far, None for the others."""

    def __init__(self, message: str, answers: Sequence[str | None] = ()) -> None:
        super().__init__(message)
        self.answers = list(answers)


def flax(
    engine_fn: Callable[[int], Any],
    *,
    encode: Callable[[Messages], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    max_prompt: int = 4_096,
    failed_after: int = 5,
) -> Complete:
    """A language model in this process, decoded greedily, so that an answer depends on its prompt alone.

    The answer is None if the prompt is too long, if the answer does not end within its length, or if the logits are
    not numbers. A model that has failed so on every request is `Down`.

    Args:
        engine_fn: makes an `engine.Engine` for rows of at least so many tokens.
        encode: a chat -> token ids, including the opening of the answer.
        decode: token ids of an answer, without its stop token -> text.
        max_prompt: longest prompt, in tokens.
        failed_after: requests that fail before any is answered, after which the model counts as `Down`.
    """
    server: Any = None
    num_failed, has_answered = 0, False

    def complete(messages: Sequence[Messages], max_new: Sequence[int]) -> list[str | None]:
        nonlocal server, num_failed, has_answered
        prompts = [encode(chat) for chat in messages]
        wanted = [i for i, prompt in enumerate(prompts) if 0 < len(prompt) <= max_prompt]
        if not wanted:
            return [None] * len(messages)
        longest = max(len(prompts[i]) + max_new[i] for i in wanted)
        if server is None or server.max_len < longest:  # a power of two: a cache outgrown is rarely made anew
            server = None  # the old cache and weights go before the new ones come
            server = engine_fn(_power_of_two(longest))
        answers: list[str | None] = [None] * len(messages)
        written = server.run([Request(prompts[i], max_new[i]) for i in wanted])
        for i, answer in zip(wanted, sorted(written, key=lambda answer: answer.number)):
            answers[i] = decode(answer.answer_ids) if answer.finish_reason == "stop" else None
            num_failed, has_answered = num_failed + bool(answer.error), has_answered or not answer.error
            if num_failed >= failed_after and not has_answered:
                raise Down(f"the model failed on all of its {num_failed} requests: {answer.error}", answers)
        return answers

    return complete


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 63).bit_length()


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
    refused_after: int = 5,
    hung_after: int = 24,
    length_key: str = "max_tokens",
    extra: Mapping[str, Any] | None = None,
) -> Complete:
    """Any endpoint that speaks OpenAI's chat completions, such as vLLM, SGLang, llama.cpp or a company's service.

    Time-outs, unreadable answers, answers that cannot be stored (`is_storable`) and the codes 408, 409, 429 and 5xx
    are tried again after a growing wait, or after the server's Retry-After. The answer is None after `1 + retries`
    failures, if the server calls the request bad (400, 413, 422), or if the answer was cut at its longest length. A
    service that answers no request is `Down`, in whatever way it fails, and so is one that has answered and then no
    longer takes the key or knows the model (401, 403, 404), or is not paid (402). Requests to other machines use the
    environment's proxies. Redirects are not followed, since they could carry the key elsewhere.

    Args:
        base_url: up to and including the version, such as "http://127.0.0.1:8000/v1".
        model: the endpoint's name for the model.
        api_key_env: environment variable with the key; without the variable no key is sent. No message shows the key.
        concurrency: parallel requests.
        timeout_seconds: for one whole request.
        retries, backoff_seconds: further tries of a request, and the wait before the first; it doubles each time.
        down_after: requests in a row without a connection after which the endpoint counts as `Down`.
        refused_after: the same for requests whose last try ended in an error code or in something that is not an
            answer, such as an error, a page of HTML or an empty list of choices: a proxy in front of a dead server
            answers so, and an exhausted quota. Refusals that are about a single text (too long, filtered) count only
            until the service has given its first answer.
        hung_after: the same for requests that timed out.
        length_key: field with the longest answer; some endpoints want "max_completion_tokens".
        extra: further fields of the request, such as {"seed": 0}. The temperature is 0 unless it is here.

    Raises:
        InputError: a URL or key that the endpoint will never take (401, 403, 404 and redirects), or a variable that
            holds no key.
    """
    endpoint = _Endpoint(base_url, model, api_key_env, timeout_seconds, retries, backoff_seconds, length_key, extra)
    limits = {"connection": down_after, "service": refused_after, "time": hung_after, "acceptance": refused_after}
    health = _Health(endpoint.address, limits)

    def complete(messages: Sequence[Messages], max_new: Sequence[int]) -> list[str | None]:
        answers: list[str | None] = [None] * len(messages)

        stop = threading.Event()  # tells waiting threads to give up their next try

        def one(i: int) -> None:
            health.check()
            answers[i] = endpoint.ask(messages[i], max_new[i], health, stop)

        pool = concurrent.futures.ThreadPoolExecutor(max_workers=concurrency)
        try:
            for done in concurrent.futures.as_completed([pool.submit(one, i) for i in range(len(messages))]):
                done.result()
            health.check_last()
        except Down as e:
            pool.shutdown(cancel_futures=True)  # requests in flight may still bring answers
            health.revive()
            raise Down(str(e), answers) from None
        finally:
            stop.set()  # after an interrupt no request waits for its next try
            pool.shutdown(wait=False, cancel_futures=True)
        return answers

    return complete


class _Health:
    """Counts of requests in a row that failed, by cause; shared by the threads.

    Causes are "connection", "service", "time", and "acceptance" for a request that was refused for its own text: this
    one makes a service `Down` only if it has never answered.
    """

    def __init__(self, address: str, limits: Mapping[str, int]) -> None:
        self.address, self.limits, self.has_answered = address, limits, False
        self.lock, self.failures, self.last = threading.Lock(), dict.fromkeys(limits, 0), ""

    def failed(self, cause: str, why: str) -> None:
        with self.lock:
            self.failures[cause] += 1
            self.last = why

    def answered(self) -> None:
        self.has_answered = True
        self.revive()

    def revive(self) -> None:
        with self.lock:
            self.failures = dict.fromkeys(self.failures, 0)

    def check(self) -> None:
        for cause, num in self.failures.items():
            if num >= self.limits[cause] and not (cause == "acceptance" and self.has_answered):
                raise Down(
                    f"{self.address} is down: {num} requests in a row had no {cause} ({self.last}). Start it again and "
                    "run the same command: answers so far are in the cache"
                )

    def check_last(self) -> None:
        """Raise `Down` if the last requests of a call had no connection: no later one can show that it came back."""
        self.check()
        if self.failures["connection"]:
            raise Down(
                f"{self.address} is down: the last requests had no connection ({self.last}). Start it again and run "
                "the same command: answers so far are in the cache"
            )


class _Endpoint:
    """One chat-completions URL, and how to send it a request."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str,
        timeout_seconds: float,
        retries: int,
        backoff_seconds: float,
        length_key: str,
        extra: Mapping[str, Any] | None,
    ) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"base_url={base_url!r} is not an address; give one such as 'http://127.0.0.1:8000/v1'")
        if parts.username or parts.password:
            raise InputError(f"base_url of {parts.hostname} holds a password; put the key in {api_key_env} instead")
        if not model:
            raise InputError("model='' is empty; give the name that the endpoint lists under /models")
        self.url, self.address = base_url.rstrip("/") + "/chat/completions", f"{parts.scheme}://{parts.netloc}"
        self.key = key_in(api_key_env)
        self.key_from, self.timeout, self.retries = api_key_env, timeout_seconds, retries
        self.backoff, self.length_key = backoff_seconds, length_key
        self.body = {"model": model, "temperature": 0, **(extra or {})}
        proxies: dict[str, str] | None = {} if parts.hostname in LOOPBACK or parts.hostname.startswith("127.") else None
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirects)

    def ask(self, messages: Messages, max_new: int, health: _Health, stop: threading.Event) -> str | None:
        """The answer, or None after all tries; the outcome goes to `health`."""
        body = json.dumps({**self.body, "messages": messages, self.length_key: max_new}).encode()
        cause, why, wait = "", "", 0.0
        for attempt in range(1 + self.retries):
            if attempt and stop.wait(max(wait, self.backoff * 2 ** (attempt - 1))):
                return None
            wait = 0.0
            try:
                answer = self._post(body)
            except urllib.error.HTTPError as e:
                said = self._words(e)
                self._check_refusal(e, said, health)
                cause, why = "service", f"it answers {e.code}" + (f": {said}" if said else "")
                if not (e.code in (408, 409, 429) or e.code >= 500):
                    cause = "acceptance" if e.code == 413 or _ABOUT_THE_TEXT.search(said) else "service"
                    break
                wait = _seconds(e.headers.get("Retry-After", ""))
            except TimeoutError as e:
                cause, why = "time", str(e)
            except (OSError, http.client.HTTPException) as e:  # URLError among them
                # urllib wraps a time-out while connecting in a URLError, and lets one while reading through as it is.
                is_late = isinstance(e, urllib.error.URLError) and isinstance(e.reason, TimeoutError)
                cause, why = "time" if is_late else "connection", self._clean(str(e))
            except _Unstorable:
                cause = ""  # the service works; this text has no answer
            except (ValueError, KeyError, IndexError, TypeError, RecursionError) as e:
                cause, why = "service", self._clean(f"it answers 200 without an answer: {e}")
            else:
                health.answered()
                return answer
        if cause:
            health.failed(cause, why)
        else:
            health.answered()
        return None

    def _post(self, body: bytes) -> str | None:
        headers = {"Content-Type": "application/json", "User-Agent": "plumbline"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data=body, headers=headers)
        # The timeout of `open` holds for each read alone; a server that trickles bytes needs the one for the whole.
        end = time.monotonic() + self.timeout
        content = b""
        with self.opener.open(request, timeout=self.timeout) as response:
            while part := response.read1(1 << 16):
                content += part
                if time.monotonic() > end:
                    raise TimeoutError(f"no whole answer within {self.timeout:g} s")
                if len(content) > MAX_ANSWER_BYTES:
                    raise ValueError("the answer is too long")
        return _text_of(content)

    def _words(self, error: urllib.error.HTTPError) -> str:
        """What the service says beside an error code."""
        with error:
            try:
                said = error.read(2_000).decode("utf-8", "replace").strip()
            except (OSError, http.client.HTTPException):  # the connection broke, or there is no body
                said = ""
        return self._clean(said)[:_SAID]

    def _check_refusal(self, error: urllib.error.HTTPError, said: str, health: _Health) -> None:
        """Refuse to go on where no request has a chance.

        Raises:
            InputError: the key or the address is wrong.
            Down: the service took the key and knew the model before, or is not paid.
        """
        code = error.code
        if code == 402 or (code in (401, 403, 404) and health.has_answered):
            raise Down(
                f"{self.address} is down: it answers {code}. It says: {said}. Mend that and run the same command: "
                "answers so far are in the cache"
            )
        if code in (401, 403):
            has = "is refused" if self.key else "is not set"
            raise InputError(
                f"{self.address} answers {code}: the key in {self.key_from or '(no variable)'} {has}. It says: {said}"
            )
        if code == 404 or 300 <= code < 400:
            raise InputError(
                f"{self.address} answers {code} to {self.url} for model {self.body['model']!r}: is the address right "
                f"up to /v1, and does it serve that model? It says: {said}"
            )

    def _clean(self, text: str) -> str:
        if not self.key:
            return text
        return text.replace(self.key, "***").replace(repr(self.key)[1:-1], "***")  # as other messages quote it


def _seconds(retry_after: str) -> float:
    """The wait that a service asks for, at most a minute; 0 where it names a date or nothing."""
    is_number = retry_after.isascii() and retry_after.replace(".", "", 1).isdigit()
    return min(float(retry_after), 60.0) if is_number else 0.0


def _text_of(content: bytes) -> str | None:
    """The text in a chat completion, None if it was cut or filtered.

    Raises:
        ValueError, TypeError: the content is not an answer; the message has its own words.
        _Unstorable: the text cannot be stored.
    """
    said = content[:_SAID].decode("utf-8", "replace").strip()
    try:
        choice = json.loads(content)["choices"][0]
        if choice.get("finish_reason") in ("length", "content_filter"):
            return None
        text = choice["message"]["content"]
        if isinstance(text, list):  # parts, as some services write them
            text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError(said or "nothing") from None
    if not isinstance(text, str):
        raise TypeError(said)
    if not is_storable(text):
        raise _Unstorable("NUL or half of a surrogate pair")
    return text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *unused: Any) -> None:
        """No request instead: urllib then raises the redirect as an HTTPError."""

"""Requests that no honest client sends, made from a seed, and a client that sends them over a socket."""

import asyncio
import dataclasses
import json
import random
import socket
import struct
from collections.abc import Iterator

PATHS = ("/v1/completions", "/v1/chat/completions")
ODD = (
    None,
    True,
    0,
    -1,
    3,
    1e308,
    -1e308,
    10**40,
    0.5,
    "",
    "x",
    "\x00",
    "é" * 50,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    [[1, "a"]],
)
WORDS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e9999", "nul", "undefined", "0x10", "'a'", "01", "+1", ".5", "1.")


@dataclasses.dataclass
class Case:
    """One connection.

    Attributes:
        parts: bytes to send, each after so many seconds.
        leaves: None: read to the end; otherwise close the connection once that many bytes have come.
        resets: whether it is closed by a reset.
        is_refused: whether an answer, if there is one, must be a 4xx with a message.
    """

    kind: str
    parts: list[tuple[float, bytes]]
    leaves: int | None = None
    resets: bool = False
    is_refused: bool = True


def request(path: str, body: bytes, *, method: str = "POST", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    lines = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    lines |= dict(headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value != "-")
    return f"{method} {path} HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode("latin-1", "replace") + body


def valid(rng: random.Random, path: str, **fields: object) -> dict[str, object]:
    if path == PATHS[0]:
        return {"prompt": "abc", "max_tokens": rng.randint(1, 20), **fields}
    return {"messages": [{"role": "user", "content": "abc"}], "max_tokens": rng.randint(1, 20), **fields}


def malformed_json(rng: random.Random, path: str) -> Case:
    raw = bytearray(json.dumps(valid(rng, path)).encode())
    match rng.randrange(4):
        case 0:
            raw = raw[: rng.randrange(len(raw) - 1)]
        case 1:
            raw.insert(rng.randrange(1, len(raw) - 1), rng.choice(b"{}[]\x00\x07"))
            raw += b"}"
        case 2:
            raw += rng.choice([b"x", b",", b"{}", b"]"])
        case _:
            raw = bytearray(rng.randbytes(rng.randrange(40)))
            raw += b"\xfe"
    return Case("malformed JSON", [(0, request(path, bytes(raw)))])


def wrong_types(rng: random.Random, path: str) -> Case:
    chat = path == PATHS[1]
    good = {
        "prompt": str, "messages": list, "temperature": float, "top_p": float, "n": int, "stream": bool, "seed": int,
        "logit_bias": dict, "max_tokens": int, "stop": str, "logprobs": bool if chat else int, "top_k": int,
    }  # fmt: skip
    good.pop("prompt" if chat else "messages")
    name = rng.choice(sorted(good))
    wrong = {str: 3.5, list: "x", float: "x", int: "x", bool: "yes", dict: [1]}[good[name]]
    return Case("wrong type", [(0, request(path, json.dumps(valid(rng, path, **{name: wrong})).encode()))])


def odd_values(rng: random.Random, path: str) -> Case:
    names = [
        "prompt",
        "messages",
        "temperature",
        "top_p",
        "n",
        "seed",
        "logit_bias",
        "stop",
        "logprobs",
        "stop_token_ids",
    ]
    fields = {rng.choice(names): rng.choice(ODD) for _ in range(3)}
    raw = json.dumps(valid(rng, path, **fields)).encode()
    return Case("odd value", [(0, request(path, raw))], is_refused=False)


def deep(rng: random.Random, path: str) -> Case:
    depth = rng.choice([100, 1_000, 100_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    inner = opening * depth + "1" + closing * depth
    name = rng.choice(["prompt", "messages", "metadata", "logit_bias", "stop", "user"])
    return Case("deep nesting", [(0, request(path, f'{{"{name}": {inner}}}'.encode()))])


def huge(rng: random.Random, path: str) -> Case:
    size = rng.choice([10_000, 200_000, 1_500_000])
    match rng.randrange(3):
        case 0:
            body = valid(rng, path, prompt="a" * size, messages=[{"role": "user", "content": "a" * size}])
        case 1:
            body = valid(rng, path, prompt=[1] * size, messages=[{"role": "user", "content": "a"}] * size)
        case _:
            body = valid(rng, path, prompt=["a"] * size, messages=[[]] * size)
    body.pop("messages" if path == PATHS[0] else "prompt")
    return Case("huge prompt", [(0, request(path, json.dumps(body).encode()))])


def invalid_text(rng: random.Random, path: str) -> Case:
    bad = rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88", b"\\ud800", b"\\udc00\\ud800", b"\x01"])
    return Case("invalid text", [(0, request(path, b'{"prompt": "' + bad + b'", "messages": "' + bad + b'"}'))])


def unknown(rng: random.Random, path: str) -> Case:
    name = "".join(rng.choice("abcdefgé_-. ") for _ in range(rng.randrange(1, 40)))
    return Case("unknown field", [(0, request(path, json.dumps(valid(rng, path, **{name: rng.choice(ODD)})).encode()))])


def odd_numbers(rng: random.Random, path: str) -> Case:
    name = rng.choice(["temperature", "top_p", "min_p", "n", "max_tokens", "seed", "frequency_penalty"])
    raw = json.dumps(valid(rng, path, **{name: "HERE"})).replace('"HERE"', rng.choice(WORDS)).encode()
    return Case("a number that is none", [(0, request(path, raw))])


def leaving(rng: random.Random, path: str) -> Case:
    body = valid(rng, path, stream=rng.random() < 0.7, n=rng.randint(1, 4), max_tokens=rng.randint(20, 100))
    leaves = rng.choice([0, 0, 1, 200, 600, 2_000])
    raw = request(path, json.dumps(body).encode())
    return Case("disconnect", [(0, raw)], leaves=leaves, resets=rng.random() < 0.5, is_refused=False)


def slow(rng: random.Random, path: str) -> Case:
    raw = request(path, json.dumps(valid(rng, path)).encode())
    head, body = raw[: raw.index(b"\r\n\r\n") + 4], raw[raw.index(b"\r\n\r\n") + 4 :]
    if rng.random() < 0.3:  # headers that do not end
        return Case("slow headers", [(0, head[: rng.randrange(len(head) - 2)]), (60, b"")])
    parts = [(0.02, body[i : i + 1]) for i in range(len(body) - rng.randint(1, 5))]
    return Case("slow body", [(0, head), *parts, (60, b"")])


def broken_http(rng: random.Random, path: str) -> Case:
    body = json.dumps(valid(rng, path)).encode()
    plain = request(path, body)
    raw = rng.choice(
        [
            rng.randbytes(rng.randrange(1, 100)) + b"\r\n\r\n",
            b"GET\r\n\r\n",
            f"POST {path} HTTP/9.9\r\n\r\n".encode(),
            plain.replace(b"content-length: ", b"content-length: -"),
            plain.replace(b"content-length: ", b"content-length: 9, "),
            plain.replace(b"host: localhost\r\n", b""),
            plain.replace(b"host: localhost\r\n", b"host: localhost\r\nhost: other\r\n"),
            plain.replace(b"host: ", b"bad header\r\nhost: "),
            plain.replace(b"host: ", b"x: " + b"y" * 200_000 + b"\r\nhost: "),
            plain.replace(f"content-length: {len(body)}".encode(), b"transfer-encoding: chunked"),
            plain.replace(b"POST ", b"POST  "),
            plain.replace(path.encode(), b"/" + b"a" * 100_000),
            plain.replace(path.encode(), path.encode() + b"\x00"),
            request(path, body, headers=(("content-type", "text/plain"),)),
            request(path, body, headers=(("content-encoding", "gzip"),)),
            request(path, body, headers=(("host", "evil.example"),)),
            request("/../../etc/passwd", b"", method="GET"),
            request(path, b"", method=rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])),
        ]
    )
    return Case("broken HTTP", [(0, raw)])


MAKERS = (
    malformed_json, wrong_types, odd_values, deep, huge, invalid_text, unknown, odd_numbers, leaving, slow, broken_http,
)  # fmt: skip


def cases(num: int, seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    for i in range(num):
        yield MAKERS[i % len(MAKERS)](rng, rng.choice(PATHS))


async def send(case: Case, host: str, port: int, seconds: float = 20.0) -> bytes:
    """Everything that came back before somebody closed the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    received = b""

    async def read() -> None:
        nonlocal received
        while case.leaves is None or len(received) < case.leaves:
            part = await reader.read(65_536)
            if not part:
                return
            received += part

    task = asyncio.ensure_future(read())
    try:
        async with asyncio.timeout(seconds):
            try:
                for delay, part in case.parts:
                    await asyncio.wait({task}, timeout=delay)
                    if task.done():
                        break
                    writer.write(part)
                    await writer.drain()
            except ConnectionError:  # refused in the middle of it; the reason may have come already
                pass
            await asyncio.gather(task, return_exceptions=True)
    finally:
        task.cancel()
        if case.resets and not writer.is_closing():  # a socket that the server closed first has nothing to reset
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
    return received


def complaint(case: Case, received: bytes) -> str:
    """What is wrong with the server's answer; "" where it is as it must be."""
    if not received:
        return ""
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode() if head.startswith(b"HTTP/1.1 ") else "?"
    if status == "200" and not case.is_refused:
        return ""
    if len(status) != 3 or status[0] != "4":
        return f"{case.kind}: status {status}: {body[:200]!r}"
    if case.leaves is None and not body.strip():
        return f"{case.kind}: status {status} without a message"
    return ""

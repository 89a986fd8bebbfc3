"""Bytes in and out: bodies of bounded size and time, clients that go away, streams of events."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from experiments.serving.failures import Failure, Refused

Result = TypeVar("Result")
PING = b": the answer is not there yet\n\n"  # a comment, which clients skip, so that what lies between stays open


class Gone(Exception):
    """The client closed the connection before it had its answer."""


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def read_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is not JSON by its type, is too long, or takes too long to come.
        Gone: the client went away in the middle of it.
    """
    # A page of another site can post plain text here without asking, but not JSON.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(f"content-type is {kind[:80]!r}; it must be application/json", status=415)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused("content-encoding is set; send the body as it is", status=415)
    length = request.headers.get("content-length", "0")
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                if size > max_bytes or (length.isdigit() and int(length[:18]) > max_bytes):
                    raise Refused(f"the body has more than {max_bytes} bytes, which is the most", status=413)
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if not message.get("more_body", False) and size <= max_bytes:
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(f"the body did not come within {seconds:g} seconds", status=408) from None


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Do the work while the client waits for it.

    Raises:
        Gone: the client has closed the connection; the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """A stream of server-sent events; it ends with `[DONE]`, or with an error in the shape of a body's.

    Args:
        values: JSON values; None keeps the connection alive.
        seconds: in which all must have been written.
        end_fn: called once with what cut the stream short, or None.
    """

    media_type = "text/event-stream"

    def __init__(
        self, values: AsyncIterator[Any], *, seconds: float, end_fn: Callable[[BaseException | None], None]
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._values, self._seconds, self._end_fn = values, seconds, end_fn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cause: BaseException | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout(self._seconds):
                cause = await unless_gone(receive, self._write(send))
            await send({"type": "http.response.body", "body": b""})
        except (Gone, TimeoutError) as e:  # nobody reads any more, so the connection ends without a last word
            cause = e
        except BaseException as e:
            cause = e
            raise
        finally:
            self._end_fn(cause)

    async def _write(self, send: Send) -> Failure | None:
        """Write all events; the failure that ended them, which is the last one."""
        last, failure = b"data: [DONE]\n\n", None
        try:
            async for value in self._values:
                await _send_part(send, PING if value is None else b"data: " + orjson.dumps(value) + b"\n\n")
        except Failure as e:
            last, failure = b"data: " + orjson.dumps(e.body()) + b"\n\n", e
        await _send_part(send, last)
        return failure


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})

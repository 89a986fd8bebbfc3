"""The server as an ASGI application: its doors, who may use them, and what is counted of every request."""

import hmac
import json
import logging
import pathlib
import time
import traceback
from collections.abc import Collection
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.serving import schema
from experiments.serving.failures import Failure, Refused
from experiments.serving.service import Service
from experiments.serving.wire import Events, Gone, Json, read_body, unless_gone

PAGE = pathlib.Path(__file__).with_name("page.html")
LOG = logging.getLogger("plumbline.serve")
OPEN = ("/", "/healthz", "/metrics", "/openapi.json")  # these need no key
HEADERS = {  # of the page: it loads nothing and belongs into no frame
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Doors:
    """The endpoints of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.description = schema.openapi(model=service.name, max_len=service.max_len)
        self.page = PAGE.read_bytes()
        self.model = {"id": service.name, "object": "model", "created": service.started, "owned_by": "plumbline"}
        self.model |= {"max_model_len": service.max_len, "system_fingerprint": service.fingerprint}
        if service.guides.all:
            self.model |= {"guides": dict(zip(service.guides.names, service.guides.weights))}

    def routes(self) -> list[Route]:
        return [
            Route("/", self.show_page),
            Route("/healthz", self.healthz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.one_model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    async def show_page(self, request: Request) -> Response:
        return Response(self.page, media_type="text/html", headers=HEADERS)

    async def healthz(self, request: Request) -> Response:
        service, driver = self.service, self.service.driver
        counts = {"busy_slots": driver.num_busy, "waiting": driver.num_waiting, "open": driver.num_open}
        body = {"status": service.state, "model": service.name, "slots": service.num_slots, **counts}
        return Json(body, status_code=200 if service.state == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        metrics = self.service.metrics
        return Response(metrics.text(), headers={"content-type": metrics.content_type})

    async def openapi(self, request: Request) -> Response:
        return Json(self.description)

    async def models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [self.model]})

    async def one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self.service.name:
            raise Refused(
                f"only the model {self.service.name!r} is served here", "model", status=404, code="model_not_found"
            )
        return Json(self.model)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, schema.Completion)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, schema.Chat)

    async def _answer(self, request: Request, kind: Any) -> Response:
        service, began = self.service, request.scope["began"]
        limits = service.limits
        raw = await read_body(request, max_bytes=limits.max_bytes, seconds=limits.body_seconds)
        body = schema.read(kind, schema.parse(raw))
        work = await service.prepare(body)
        job = service.submit(work)
        note = request.scope["note"]
        note |= {"id": work.shape.id, "prompt_tokens": work.usage.prompt, "choices": len(work.requests)}

        def end(cause: BaseException | None) -> None:
            service.release(job, began)
            note.update(tokens=work.usage.completion, cause=cause)

        if body.stream:
            values = service.chunks(work, job, began, wants_usage=body.wants_usage)
            return Events(values, seconds=limits.seconds, end_fn=end)
        cause: BaseException | None = None
        try:
            return Json(await unless_gone(request.receive, service.whole(work, job, began)))
        except BaseException as e:
            cause = e
            raise
        finally:
            end(cause)


class Guard:
    """What lies around every request: host, key, errors in OpenAI's shape, counts and a line in the log.

    Args:
        key: what clients must send as `Authorization: Bearer KEY`; "" asks for none.
        hosts: names by which clients may call this server; empty: any. A page of another site that lets its name point
            to this machine would otherwise reach a server that only this machine is to reach.
    """

    def __init__(self, service: Service, *, key: str, hosts: Collection[str]) -> None:
        routes = Doors(service).routes()
        self.service, self.key, self.hosts = service, key.encode(), frozenset(hosts)
        self.paths = {route.path for route in routes}
        # A router without the framework's own answers to exceptions: Guard writes them all.
        self.app = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["began"], scope["note"], scope["app"] = time.monotonic(), {}, self
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        cause: BaseException | None = None
        try:
            self._admit(scope)
            await self.app(scope, receive, watched_send)
        except Gone as e:
            cause = e
        except (Failure, HTTPException) as e:
            cause = e if isinstance(e, Failure) else _not_served(e, scope)
            await _response(cause)(scope, receive, watched_send)
        except Exception as e:
            cause = e
            traceback.print_exc()
            if not status:
                failure = Failure("the server failed on this request; its log says why", 500)
                await _response(failure)(scope, receive, watched_send)
        finally:
            self._note(scope, status, scope["note"].pop("cause", None) or cause)

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self.hosts:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name.lower() not in self.hosts:
                raise Refused(f"host {host[:100]!r} is not a name of this server", status=421)
        if self.key and scope["path"] not in OPEN:
            kind, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self.key):
                raise Refused(
                    "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                    status=401,
                    code="invalid_api_key",
                )

    def _note(self, scope: Scope, status: int, cause: BaseException | None) -> None:
        seconds = time.monotonic() - scope["began"]
        status = cause.status if isinstance(cause, Failure) else status
        outcome = outcome_of(status, cause)
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.service.metrics.count_request(path, outcome, seconds)
        if path.startswith("/v1/") or outcome == "failed":
            # a refusal may quote the request, whose words do not belong into a log
            said = {"param": cause.param} if isinstance(cause, Failure) and status < 500 else {}
            said |= {"why": str(cause)[:500]} if cause is not None and status >= 500 else {}
            line = {"time": round(time.time(), 3), "path": path, "status": status, "outcome": outcome}
            LOG.info(json.dumps({**line, "seconds": round(seconds, 4), **scope["note"], **said}))


def outcome_of(status: int, cause: BaseException | None) -> str:
    """One word for how a request ended."""
    if isinstance(cause, Gone) or not status:
        return "cancelled"
    if isinstance(cause, TimeoutError) or status in (408, 504):
        return "timeout"
    if status in (429, 503):
        return "rejected"
    if (cause is not None and not isinstance(cause, Failure)) or status >= 500:
        return "failed"
    return "refused" if status >= 400 else "ok"


def _response(failure: Failure) -> Response:
    headers = {}
    if failure.retry_after:
        headers["retry-after"] = str(failure.retry_after)
    if failure.status in (408, 413, 415):  # the rest of the body is not read, so nothing can follow it
        headers["connection"] = "close"
    if failure.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Json(failure.body(), status_code=failure.status, headers=headers)


def _not_served(error: HTTPException, scope: Scope) -> Failure:
    """No such path, or not by that method."""
    path, method = scope["path"][:200], scope["method"][:20]
    words = {404: f"there is nothing at {path!r}", 405: f"{path!r} is not for the method {method}"}
    return Failure(words.get(error.status_code, "the request is not understood"), error.status_code)


def build(service: Service, *, key: str = "", hosts: Collection[str] = ()) -> ASGIApp:
    """The application; see `Guard`."""
    return Guard(service, key=key, hosts=hosts)

"""What stands before every route: limits, the key, the number of requests, the log. Plain ASGI.

A body is read whole before its route runs, within its limit, so that no route waits for a slow sender; and while the
route runs, the connection is watched: a caller who hangs up takes his request along.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tamis.secret import Secret
from tamis_ray.web.errors import Refusal, answer, log, overloaded, refusal_of
from tamis_ray.web.key import shows
from tamis_ray.web.limits import Limits
from tamis_ray.web.metrics import Metrics

OPEN = frozenset({"/health", "/v1/health/live", "/v1/health/ready"})  # to probes, which have no key
GONE = 499  # nginx's number for a caller who hung up; nobody reads it but the metrics


class _Gone(Exception):
    """The caller hung up."""


class Guard:
    """Middleware.

    Args:
        app: What is guarded.
        limits: See there.
        key: What callers must show; None if anybody may call.
        metrics: Told about every answer.
        paths: Those of the routes; others are counted and logged under one name, since callers choose them.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, key: Secret | None, metrics: Metrics, paths: Iterable[str]
    ) -> None:
        self._app, self._limits, self._key, self._metrics = app, limits, key, metrics
        self._paths = frozenset(paths)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, sending, path = time.perf_counter(), _Sending(send), _path(scope)
        try:
            await self._let_in(scope, path, receive, sending)
        except _Gone:
            pass
        except Exception as error:  # noqa: BLE001 - the server's log would show its message, and what that quotes
            refusal = refusal_of(error)
            if sending.status:  # too late to say so: an answer that breaks off
                raise RuntimeError("The answer broke off.") from None
            await answer(refusal)(scope, receive, sending)
        finally:
            seconds, status = time.perf_counter() - start, sending.status or GONE
            known = path if path in self._paths else "other"
            self._metrics.answered(known, status, seconds)
            log.info("%s %s %d %.1f ms", scope["method"], known, status, 1000 * seconds)

    async def _let_in(self, scope: Scope, path: str, receive: Receive, send: _Sending) -> None:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) + 4 for name, value in headers.raw) > self._limits.header_bytes:
            raise Refusal(431, "validation", f"The headers exceed {self._limits.header_bytes} bytes; send fewer.")
        if self._key is not None and path not in OPEN and not shows(headers.get("authorization"), self._key):
            message = "This server wants a key: send it as `Authorization: Bearer KEY`."
            raise Refusal(401, "unauthorized", message, www_authenticate="Bearer")
        if scope["method"] != "POST" or path not in self._paths:
            await self._app(scope, receive, send)
            return
        if self._open >= self._limits.requests:
            raise overloaded()
        self._count(1)
        send.at_end = partial(self._count, -1)  # before the caller can see the end, and send his next request
        try:
            await self._watched(scope, await self._body(headers, receive), receive, send)
        finally:
            send.ended()

    def _count(self, change: int) -> None:
        self._open += change
        self._metrics.open.set(self._open)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # any page in a browser may send what a form can
            raise Refusal(415, "validation", "Send JSON, with the header `Content-Type: application/json`.")
        if (length := headers.get("content-length", "")).isdecimal() and int(length[:20]) > self._limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            told = f"The body did not come within {self._limits.read_timeout:g} seconds; send it at once."
            raise Refusal(408, "timeout", told, connection="close") from None

    def _too_large(self) -> Refusal:
        most = self._limits.body_bytes
        return Refusal(413, "validation", f"The body exceeds the maximum of {most} bytes; send fewer passages at once.")

    async def _watched(self, scope: Scope, body: bytes, receive: Receive, send: _Sending) -> None:
        gone = asyncio.ensure_future(_hung_up(receive))
        route = asyncio.ensure_future(self._app(scope, _Replay(body, gone), send))
        try:
            await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done() and not send.complete:
                raise _Gone
            await route
        finally:
            for task in (route, gone):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task


class _Sending:
    """`send`, with what went through it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.complete = False
        self.at_end: Callable[[], None] | None = None

    def ended(self) -> None:
        """Calls `at_end`, once."""
        end, self.at_end = self.at_end, None
        if end is not None:
            end()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
            self.ended()
        await self._send(message)


class _Replay:
    """`receive`, for a body that has been read."""

    def __init__(self, body: bytes, gone: asyncio.Future[None]) -> None:
        self._body: bytes | None = body
        self._gone = gone

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.wait({self._gone})
        return {"type": "http.disconnect"}


def _path(scope: Scope) -> str:
    """What the routes see: without the prefix that Serve, or a proxy, has the app under."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

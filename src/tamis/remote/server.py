"""A server that is asked: its refusals told apart, its failures tried again, both counted."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tamis.engine.counters import NEWEST, quantiles
from tamis.errors import RemoteError
from tamis.remote import answers
from tamis.remote.address import Address
from tamis.remote.client import Client, Reply
from tamis.remote.retries import Patience, seconds_of, worth_it
from tamis.secret import Secret

ECHO = 8  # an answer may hold the passages again (vLLM's does), each character escaped


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: JSON, and the header in which TEI counts tokens."""

    json: Any
    tokens: str | None = None


class Server:
    """One server, asked in JSON.

    Args:
        address: Where it is.
        key: What it wants to see, if anything.
        verify: As in `Client`.
        connections: As in `Client`.
        retries: How often a failed request is repeated at most.
        path: Where such servers have what is asked for, which refusals name.
    """

    def __init__(
        self, address: Address, key: Secret | None, *, verify: bool | str, connections: int, retries: int, path: str
    ) -> None:
        self.address = address
        self.path = path
        self._key = key
        self._client = Client(address, key, verify, connections)
        self._patience = Patience(retries, self._retried)
        self._sent = self._retries = self._failed = self._open = 0  # counted on the loop's thread alone
        self._latencies: deque[float] = deque(maxlen=NEWEST)

    async def post(self, body: Mapping[str, Any], end: float) -> Answer:
        """The answer to a body, tried again until `end`, by `time.monotonic`.

        Raises:
            RemoteError: There is none, or it refuses, or it is no JSON.
        """
        sent = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        return await self._patience.persist(lambda: self._ask("POST", self.address.url, sent), end)

    async def stream(self, body: Mapping[str, Any], took: Callable[[bytes], bool], end: float) -> None:
        """Gives the answer to a body away as it comes; what has begun is not tried again.

        Args:
            body: What is asked.
            took: Called with each piece; False ends the request.
            end: As in `post`.

        Raises:
            RemoteError: There is no answer, or it breaks off.
        """
        sent = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        begun = False

        def taken(piece: bytes) -> bool:
            nonlocal begun
            begun = True
            return took(piece)

        async def attempt() -> None:
            try:
                await self._counted("POST", self.address.url, sent, taken)
            except RemoteError as error:
                if not begun:
                    raise
                raise RemoteError(f"{error} The text had begun, and is not begun anew.", status=error.status) from None

        await self._patience.persist(attempt, end)

    async def get(self, path: str, end: float) -> Answer | None:
        """What stands behind another door of it, such as /v1/models; None where there is no such door.

        Raises:
            RemoteError: It cannot be reached, or refuses the key.
        """
        try:
            return await self._patience.persist(lambda: self._ask("GET", self.address.base + path), end)
        except RemoteError as error:
            if error.status in (None, 401, 403) or error.retryable:
                raise
            return None

    def stats(self) -> Mapping[str, float]:
        """Requests over the wire, by outcome, and their times in seconds, the wait for a connection included."""
        return {
            "http_requests": self._sent,
            "http_retries": self._retries,
            "http_failures": self._failed,
            "http_open": self._open,
            **quantiles("http_latency", list(self._latencies)),
        }

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def error(self, what: str, *, status: int | None = None) -> RemoteError:
        """An error about its answer."""
        message = f"{self.address.shown}: the answer {what}."
        return RemoteError(self._key.hide(message) if self._key else message, status=status)

    async def _ask(self, method: str, url: str, body: bytes | None = None) -> Answer:
        reply = await self._counted(method, url, body)
        try:
            return Answer(answers.parse(reply.body), reply.headers.get("x-compute-tokens"))
        except answers.BadAnswer as error:
            raise self.error(str(error), status=200) from None

    async def _counted(
        self, method: str, url: str, body: bytes | None, took: Callable[[bytes], bool] | None = None
    ) -> Reply:
        start = time.perf_counter()
        self._sent += 1
        self._open += 1
        answered = False
        try:
            reply = await self._client.send(method, url, body, ECHO * len(body or b""), took)
            if reply.status != 200:
                raise self._refusal(reply)
            answered = True
            self._latencies.append(time.perf_counter() - start)
        finally:
            self._open -= 1
            self._failed += not answered
        return reply

    def _retried(self) -> None:
        self._retries += 1

    def _refusal(self, reply: Reply) -> RemoteError:
        said = answers.detail(reply.body)
        if self._key:
            said = self._key.hide(said)
        message = f"{self.address.shown} answered {reply.status}" + (f": {said}" if said else "")
        advice = _ADVICE.get(reply.status, "").format(path=self.path)
        if 300 <= reply.status < 400:
            advice = f"It sends requests on to {_place(reply.headers.get('location'))}; Tamis does not go along."
            advice += " If you trust that address, load it."
        return RemoteError(
            message.rstrip(".") + "." + (f" {advice}" if advice else ""),
            status=reply.status,
            retryable=worth_it(reply.status),
            retry_after=seconds_of(reply.headers.get("retry-after"), reply.headers.get("date")),
            detail=said,
        )


_ADVICE = {
    401: "It wants another key: pass api_key=, or set the variable that holds it (see docs/remote.md).",
    403: "This key is not allowed to do that, or a key is missing: pass api_key=.",
    404: "The model or the path is unknown there; a URL with a path is taken as it is, such as https://host{path}.",
    405: "That path takes no such requests; a URL with a path is taken as it is, such as https://host{path}.",
}


def _place(location: str | None) -> str:
    """Where a redirect leads, without what may be secret in it."""
    try:
        parts = urlsplit(location or "")
        return f"{parts.scheme}://{parts.hostname}{parts.path}"[:200] if parts.hostname else "another path"
    except ValueError:
        return "nowhere"

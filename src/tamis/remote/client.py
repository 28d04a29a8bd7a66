"""HTTP to one server: one httpx client a loop, bounded answers, and errors that never show the key."""

from __future__ import annotations

import asyncio
import logging
import ssl
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tamis.errors import InvalidInput, MissingExtra, RemoteError
from tamis.remote import loop as background
from tamis.remote.address import Address
from tamis.secret import Secret

if TYPE_CHECKING:
    import httpx

CONNECT = 10.0  # seconds for a connection; a host that drops packets is tried again
CLOSING = 2.0  # seconds that `close` waits for its end
LARGEST_HEAD = 1 << 20  # bytes of an answer, beside what the request allows


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, headers and whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Wire:
    loop: asyncio.AbstractEventLoop
    http: httpx.AsyncClient
    places: asyncio.Semaphore


class Client:
    """Sends requests to one server.

    HTTP/2 is used where the server offers it (over TLS, with the package h2). No redirect is followed: the key would go
    along.

    Args:
        address: The server.
        key: Sent as a bearer token.
        verify: True: the certificate must be good for the usual authorities; a path: for those in the file; False:
            whatever it is.
        connections: How many requests are under way at once.
    """

    def __init__(self, address: Address, key: Secret | None, verify: bool | str, connections: int) -> None:
        if find_spec("httpx") is None:
            raise MissingExtra('mode="remote" needs httpx: pip install "tamis[remote]".')
        self._address = address
        self._key = key
        self._connections = connections
        self._tls = _tls(address, verify)
        self._wires: list[_Wire] = []  # one at most
        weakref.finalize(self, _hang_up, self._wires).atexit = False  # `loop` ends all of them

    async def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        limit: int = 0,
        took: Callable[[bytes], bool] | None = None,
    ) -> Reply:
        """One request and its answer. Runs on the background loop.

        Args:
            method: "GET" or "POST".
            url: One of the server's.
            body: JSON.
            limit: Bytes of the answer beyond `LARGEST_HEAD`.
            took: Called with each piece of a good answer's body as it comes, instead of keeping it; False ends the
                request.

        Raises:
            RemoteError: No answer came, or one that is too large. Without a status.
        """
        import httpx

        wire = self._wire()
        allowed = LARGEST_HEAD + limit
        try:
            async with wire.places, wire.http.stream(method, url, content=body) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise self._error("compressed its answer, though it was asked not to", status=response.status_code)
                pieces, size = [], 0
                async for piece in response.aiter_raw():
                    if took is not None and response.status_code == 200:
                        if not took(piece):
                            break
                        continue
                    pieces.append(piece)
                    size += len(piece)
                    if size > allowed:
                        raise self._error(f"sent more than {allowed} bytes", status=response.status_code)
                return Reply(response.status_code, response.headers, b"".join(pieces))
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._failed(error) from None  # httpx's error holds the request, and that the key

    def close(self) -> None:
        """Closes the connections."""
        wait(_hang_up(self._wires), CLOSING)

    def _wire(self) -> _Wire:
        loop = asyncio.get_running_loop()
        if not self._wires or self._wires[0].loop is not loop:
            http = self._open()
            background.born(http)
            self._wires[:] = [_Wire(loop, http, asyncio.Semaphore(self._connections))]
        return self._wires[0]

    def _open(self) -> httpx.AsyncClient:
        import httpx

        from tamis import __version__

        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",  # bounded reading is bounded memory
            "content-type": "application/json",
            "user-agent": f"tamis/{__version__}",
        }
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        two = find_spec("h2") is not None
        if two:
            _quieten_hpack()
        return httpx.AsyncClient(
            headers=headers,
            verify=self._tls,
            http2=two,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=CONNECT),  # the deadline is the callers', over everything
            limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
            trust_env=not self._address.loopback,  # a proxy is no way to this machine
        )

    def _failed(self, error: Exception) -> RemoteError:
        text = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return self._error(
                "has a certificate that nobody here vouches for. Pass verify= the file of its authority",
            )
        return self._error(f"cannot be reached, or broke off ({type(error).__name__}: {text})", retryable=True)

    def _error(self, what: str, *, status: int | None = None, retryable: bool = False) -> RemoteError:
        message = f"{self._address.shown} {what}."
        return RemoteError(self._key.hide(message) if self._key else message, status=status, retryable=retryable)


def _tls(address: Address, verify: bool | str) -> ssl.SSLContext:
    import httpx

    if address.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; it would trust nobody
    if verify is True:
        return httpx.create_ssl_context()
    context = ssl.create_default_context()
    if verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=verify)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"verify={verify!r} is not a file of PEM certificates: {error}.") from error


def _hang_up(wires: list[_Wire]) -> list[Future[None]]:
    ours = [wire.http for wire in wires if background.is_current(wire.loop)]
    wires.clear()
    return [background.submit(partial(background.bury, http)) for http in ours]


def _not_below_info(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def _quieten_hpack() -> None:
    """HTTP/2's header compression writes every header to its log, at DEBUG: the key too."""
    for name in ("hpack.hpack", "hpack.table"):
        logging.getLogger(name).addFilter(_not_below_info)

"""From the arguments of `tamis.load` to a scorer over a server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tamis.errors import DeadlineExceeded, InvalidInput
from tamis.options import LoadOptions
from tamis.remote import answers, detecting, loop
from tamis.remote.address import Address, parse
from tamis.remote.apis import APIS, VLLM_SCORE, Api
from tamis.remote.batches import Plan
from tamis.remote.scales import measure
from tamis.remote.server import Server
from tamis.scorers.remote import RemoteScorer
from tamis.secret import Secret

T = TypeVar("T")

CONNECTIONS = 8
DEADLINE = 60.0  # seconds
RETRIES = 4
ALLOWED = (
    "mode", "family", "long_documents", "api", "api_key", "server_model", "request_passages", "connections", "deadline",
    "retries", "verify", "allow_http", "scale",
)  # fmt: skip
VARIABLE = "TAMIS_API_KEY"


def connect(url: str | Path | None, options: LoadOptions) -> RemoteScorer:
    """A scorer over the server at `url`. It is asked for what the caller did not say, and for nothing else.

    Raises:
        InvalidInput: An argument is wrong, missing, or means nothing to a server.
        RemoteError: The server had to be asked, and failed.
        DeadlineExceeded: It took too long to answer.
        MissingExtra: httpx is not installed.
    """
    options.allow("remote", *ALLOWED)
    api = None if options.api is None else APIS[options.api]
    address = _bare(parse(api.url if url is None and api is not None and api.url else url))
    api = api or detecting.by_address(address)
    if api is not None:
        _check(api, address, options)
        address, api = _door(address, api)
    server = server_at(address, api, options)
    plan = asked(server, options, lambda end: _plan(server, api, options, end))
    return RemoteScorer(plan, options.deadline or DEADLINE)


def server_at(address: Address, api: Api | None, options: LoadOptions) -> Server:
    """The server at an address, with its key.

    Raises:
        InvalidInput: The key is missing, or would be seen by others.
        MissingExtra: httpx is not installed.
    """
    return Server(
        address,
        _key(address, api, options),
        verify=options.verify,
        connections=options.connections or CONNECTIONS,
        retries=RETRIES if options.retries is None else options.retries,
        path="/v1/completions" if api is None else api.path,
    )


def asked(server: Server, options: LoadOptions, work: Callable[[float], Coroutine[Any, Any, T]]) -> T:
    """What `work(end)` gives, run on the loop; the calling thread waits. If it fails, the server is closed.

    Raises:
        DeadlineExceeded: It took longer than `deadline=`.
    """
    deadline = options.deadline or DEADLINE

    async def bounded() -> T:
        try:
            async with asyncio.timeout(deadline):
                return await work(time.monotonic() + deadline)
        except TimeoutError:
            told = f"{server.address.shown} did not answer within deadline={deadline:g} seconds."
            raise DeadlineExceeded(told) from None

    try:
        return loop.submit(bounded).result()
    except BaseException:
        server.close()
        raise


async def _plan(server: Server, api: Api | None, options: LoadOptions, end: float) -> Plan:
    limit = None
    if api is None:
        api, limit = await detecting.by_asking(server, end)
        _check(api, server.address, options)
        server.address, api = _door(server.address, api)
        server.path = api.path
    model = options.server_model or ""
    if not model and api.models == "listed":
        model = await detecting.only_model(server, end)
    scale = options.scale or ("cosine" if model in api.cosines else api.scale)
    if api.name == "vllm" and options.scale is None:
        try:
            scale = await measure(server, api, model, end)
        except answers.BadAnswer as error:
            raise server.error(str(error), status=200) from None
    return Plan(
        server, api, model, options.request_passages or limit or api.limit, scale, options.long_documents == "truncate"
    )


def _check(api: Api, address: Address, options: LoadOptions) -> None:
    """Raises InvalidInput for what this API cannot do."""
    if options.long_documents == "max_window":
        raise InvalidInput(
            'long_documents="max_window" needs the model\'s tokenizer, which a server keeps to itself; pass '
            '"truncate", or split the passages.'
        )
    if options.long_documents == "error" and api.cuts == "silently":
        raise InvalidInput(
            f'{api.name} cuts long passages and does not say which, so that long_documents="error" cannot be kept; '
            'pass "truncate", or split the passages.'
        )
    if options.server_model is None and (
        api.models == "named" or (api.models == "listed" and address.under(*api.hosts))
    ):
        raise InvalidInput(f"{address.host} has many models; pass server_model=, the name of one.")
    if api.models == "one" and options.server_model is not None:
        raise InvalidInput(f"{api.name} has one model and takes no name; leave server_model= out.")


def _bare(address: Address) -> Address:
    """The address without a path that is /v1 alone: SDKs' base URLs end there, and no API ranks there.

    >>> [_bare(parse("http://host" + path)).path for path in ("/v1", "/v1/", "/v1/rerank", "/v2", "/tei/v1")]
    ['', '', '/v1/rerank', '/v2', '/tei/v1']
    """
    return replace(address, path="") if address.path == "/v1" else address


def _door(address: Address, api: Api) -> tuple[Address, Api]:
    """The address with the API's own path, if it has none; and vLLM's other API if it has that one's."""
    if not address.path:
        return replace(address, path=api.path), api
    return address, VLLM_SCORE if api.name == "vllm" and address.path.endswith("/score") else api


def _key(address: Address, api: Api | None, options: LoadOptions) -> Secret | None:
    """The caller's key, or the environment's: the vendor's variable at the vendor's own host, else `TAMIS_API_KEY`.

    A vendor's key never goes to a server that merely speaks the vendor's language.
    """
    key = Secret.of(options.api_key)
    names = [*(api.variables if api is not None and address.under(*api.hosts) else ()), VARIABLE]
    if key is None:
        key = next((Secret(value) for name in names if (value := os.environ.get(name, "").strip())), None)
    if key is None and api is not None and address.under(*api.hosts):
        raise InvalidInput(f"{address.host} wants a key: pass api_key=, or set {' or '.join(names)}.")
    if key is not None and address.scheme == "http" and not address.loopback and not options.allow_http:
        raise InvalidInput(
            f"The key would go to {address.host} over http://, readable by everyone on the way. Use https://, or pass "
            "allow_http=True if you trust the network."
        )
    return key

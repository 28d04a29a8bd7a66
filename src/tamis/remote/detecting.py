"""Which API a server has: from its URL, else from the server itself; never from a part of a name."""

from __future__ import annotations

from typing import Any

from tamis.errors import InvalidInput
from tamis.remote.address import Address
from tamis.remote.apis import APIS, VLLM_SCORE, Api
from tamis.remote.server import Answer, Server


def by_address(address: Address) -> Api | None:
    """The API that a URL leaves no doubt about: a vendor's own host, or a path that one API alone has.

    >>> from tamis.remote.address import parse
    >>> urls = "https://api.cohere.com", "http://nim:8000/v1/ranking", "http://gpu/score", "http://gpu/v1/rerank"
    >>> [api.name if (api := by_address(parse(url))) else None for url in urls]
    ['cohere', 'nim', 'vllm', None]
    """
    for api in APIS.values():
        if address.under(*api.hosts):
            return api
    if address.path.endswith("/ranking"):
        return APIS["nim"]
    return VLLM_SCORE if address.path.endswith("/score") else None


async def by_asking(server: Server, end: float) -> tuple[Api, int | None]:
    """The API that a server says it has, and its own limit of passages where it tells.

    TEI says so in /info, NIM in /v1/metadata, vLLM in /v1/models.

    Raises:
        InvalidInput: It does not say.
        RemoteError: It cannot be reached, or refuses the key.
    """
    info = _fields(await server.get("/info", end))
    if "model_id" in info and "model_type" in info:
        most = info.get("max_client_batch_size")
        return APIS["tei"], most if isinstance(most, int) and not isinstance(most, bool) and most > 0 else None
    if any(model.get("owned_by") == "vllm" for model in _models(await server.get("/v1/models", end))):
        return APIS["vllm"], None
    metadata = _fields(await server.get("/v1/metadata", end))
    if "modelInfo" in metadata or "assetInfo" in metadata:
        return APIS["nim"], None
    raise InvalidInput(
        f"{server.address.shown} does not say which API it has. Pass api=, one of {', '.join(map(repr, APIS))}; many "
        'servers with a /v1/rerank speak "jina" or "cohere".'
    )


async def only_model(server: Server, end: float) -> str:
    """The name of the model that a server has. Raises as `model_of` does."""
    return (await model_of(server, None, end))[0]


async def model_of(server: Server, name: str | None, end: float) -> tuple[str, int | None]:
    """A model that a server has, and how many tokens it takes, where the server tells (vLLM's `max_model_len`).

    Args:
        server: Who is asked.
        name: Which of them; if None, there must be one.
        end: By `time.monotonic`.

    Raises:
        InvalidInput: It has several, or does not say.
        RemoteError: It cannot be reached, or refuses the key.
    """
    rows = _models(await server.get("/v1/models", end))
    lengths = {row["id"]: row.get("max_model_len") for row in rows if isinstance(row.get("id"), str)}
    names = list(lengths)
    if name is not None or len(names) == 1:
        length = lengths.get(name or names[0])
        return name or names[0], length if isinstance(length, int) and length > 0 else None
    has = f"has {len(names)} models" + (f", {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "")
    raise InvalidInput(f"{server.address.shown} {has}. Pass server_model=, the name of the one that is meant.")


def _fields(answer: Answer | None) -> dict[str, Any]:
    return answer.json if answer is not None and isinstance(answer.json, dict) else {}


def _models(answer: Answer | None) -> list[dict[str, Any]]:
    rows = _fields(answer).get("data")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

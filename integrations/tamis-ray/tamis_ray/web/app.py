"""The ASGI app over a loaded model: routes, errors, and the guard before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

import tamis
from tamis.errors import TamisError
from tamis.secret import Secret
from tamis_ray.web import about, answering, ranking
from tamis_ray.web.errors import Refusal, answer, declared, invalid, refusal_of
from tamis_ray.web.guard import Guard
from tamis_ray.web.limits import Limits
from tamis_ray.web.metrics import Metrics
from tamis_ray.web.service import Service
from tamis_ray.web.shapes import shapes


def create_app(
    service: Service, *, limits: Limits | None = None, key: Secret | None = None, closes: bool = False
) -> FastAPI:
    """The app.

    Args:
        service: The model.
        limits: What a request may cost.
        key: What callers must show as a bearer token; None lets everybody in.
        closes: Whether the model is closed when the server ends.
    """
    limits = limits or Limits()
    metrics = Metrics(service.stats)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if closes:
            service.close()

    app = FastAPI(
        title="Tamis",
        version=tamis.__version__,
        summary="Reranking, in the shapes of Cohere, Jina, vLLM, TEI and NVIDIA NIM.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    bodies = shapes(limits)
    routers = [about.routes(service, limits, metrics), ranking.routes(service, limits, bodies)]
    if service.rag is not None:
        routers.append(answering.routes(service, limits, bodies))
    locked: dict[str, Any] = {}
    if key is not None:  # for the schema: it is the guard that looks at the key
        locked = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": declared(401)}
    for router in routers:
        app.include_router(router, **locked)
    app.include_router(about.health(service))
    app.add_exception_handler(Refusal, _told)
    app.add_exception_handler(TamisError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    paths = [*app.openapi()["paths"], app.openapi_url]
    app.add_middleware(Guard, limits=limits, key=key, metrics=metrics, paths=paths)
    return app


async def _told(_: Request, error: Exception) -> JSONResponse:
    return answer(refusal_of(error))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these
    return answer(invalid(error.errors()))


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these
    known = {
        404: ("not_found", "There is no such path here; /openapi.json has those that there are."),
        405: ("not_allowed", "This path has another method; the header Allow has it."),
    }
    kind, message = known.get(error.status_code, ("validation", str(error.detail)))
    response = answer(Refusal(error.status_code, kind, message))
    response.headers.update(error.headers or {})
    return response

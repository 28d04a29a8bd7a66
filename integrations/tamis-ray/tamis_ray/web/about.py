"""The routes that tell about the server: models, health, TEI's /info, metrics."""

# Annotations are values here: FastAPI reads them.

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

import tamis
from tamis_ray.web.answers import ServedModel, ServedModels
from tamis_ray.web.errors import Refusal, declared
from tamis_ray.web.limits import Limits
from tamis_ray.web.metrics import Metrics
from tamis_ray.web.route import BoundedRoute
from tamis_ray.web.service import Service

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def routes(service: Service, limits: Limits, metrics: Metrics) -> APIRouter:
    """The routes over a model."""
    router = APIRouter(tags=["server"], responses=declared(431), route_class=BoundedRoute)

    @router.get("/v1/models")
    async def models() -> ServedModels:
        """The names that requests may have under `model`."""
        return ServedModels(data=[ServedModel(id=name) for name in service.names])

    @router.get("/info")
    async def info() -> dict[str, Any]:
        """What TEI's clients ask a server for."""
        label = "LABEL_0"
        return {
            "model_id": service.names[0],
            "model_sha": None,
            "model_dtype": str(service.reranker.stats().get("dtype", "float32")),
            "model_type": {"reranker": {"id2label": {"0": label}, "label2id": {label: 0}}},
            "max_concurrent_requests": limits.requests,
            "max_client_batch_size": limits.passages,
            "version": f"tamis {tamis.__version__}",
        }

    plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get("/metrics", response_class=Response, responses=plain)
    async def prometheus() -> Response:
        """Prometheus' text. Of the replica that answers."""
        return Response(metrics.text(), media_type=PROMETHEUS)

    return router


def health(service: Service) -> APIRouter:
    """The routes for probes, which need no key."""
    router = APIRouter(tags=["server"], responses=declared(431), route_class=BoundedRoute)

    @router.get("/v1/health/live")
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"object": "health.response", "message": "live"}

    @router.get("/v1/health/ready", responses=declared(503))
    @router.get("/health", responses=declared(503))
    async def ready() -> dict[str, str]:
        """Whether it can score."""
        if service.lost:
            raise Refusal(503, "unavailable", "The device was lost; this process has to be restarted.")
        return {"object": "health.response", "message": "ready"}

    return router

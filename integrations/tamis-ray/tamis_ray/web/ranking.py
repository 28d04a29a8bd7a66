"""The routes that rank, in the shapes of Cohere, Jina, vLLM, TEI and NIM."""

# Annotations are values here: FastAPI reads them, and the bodies are made for a server's limits.

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from fastapi import APIRouter

from tamis.errors import InputTooLong
from tamis.types import Ranking
from tamis_ray.web.answers import (
    CohereReranked,
    InputTokens,
    Meta,
    NimRanking,
    NimRankings,
    Reranked,
    Result,
    TeiResult,
    Text,
    TokenCount,
)
from tamis_ray.web.errors import Refusal, declared, refusal_of
from tamis_ray.web.limits import Limits
from tamis_ray.web.route import BoundedRoute
from tamis_ray.web.service import Service, raw_values
from tamis_ray.web.shapes import Shapes, texts_of

ALWAYS = (400, 408, 413, 415, 422, 429, 431, 500, 502, 503, 504)


def named(service: Service, model: str | None) -> str:
    """The name that an answer says.

    Raises:
        Refusal: Another model was asked for: its scores would not be these.
    """
    if model in (None, "", *service.names):
        return model or service.names[0]
    served = ", ".join(service.names)
    raise Refusal(404, "no_such_model", f"This server has no model of that name; it has {served}. See /v1/models.")


def routes(service: Service, limits: Limits, bodies: Shapes) -> APIRouter:
    """The routes over a model."""
    router = APIRouter(tags=["rerank"], route_class=BoundedRoute)
    if TYPE_CHECKING:  # a type checker cannot know what is made while the program runs
        from typing import Any as NimRequest
        from typing import Any as RerankRequest
        from typing import Any as TeiRequest
    else:
        RerankRequest, TeiRequest, NimRequest = bodies.rerank, bodies.tei, bodies.nim  # noqa: N806

    async def ranked(query: str, texts: Sequence[str], top_n: int | None = None, *, cut: bool = True) -> Ranking:
        return await service.rank(query, texts, top_n=top_n, timeout=limits.timeout, cut=cut)

    @router.post("/v1/rerank", responses=declared(404, *ALWAYS), response_model_exclude_none=True)
    async def rerank(body: RerankRequest) -> Reranked:
        """Jina's shape, vLLM's, and that of Cohere's first version."""
        model, texts = named(service, body.model), texts_of(body.documents)
        ranking = await ranked(body.query, texts, body.top_n)
        rows = _rows(ranking, texts if body.return_documents else None, scores=body.use_activation is not False)
        usage = TokenCount(total_tokens=ranking.usage.tokens)
        return Reranked(id=uuid4().hex, model=model, usage=usage, results=rows)

    @router.post("/v2/rerank", responses=declared(404, *ALWAYS), response_model_exclude_none=True)
    async def rerank_v2(body: RerankRequest) -> CohereReranked:
        """Cohere's shape."""
        named(service, body.model)
        texts = texts_of(body.documents)
        ranking = await ranked(body.query, texts, body.top_n)
        rows = _rows(ranking, texts if body.return_documents else None)
        meta = Meta(tokens=InputTokens(input_tokens=ranking.usage.tokens))
        return CohereReranked(id=uuid4().hex, results=rows, meta=meta)

    @router.post("/rerank", responses=declared(*ALWAYS), response_model_exclude_none=True)
    async def tei(body: TeiRequest) -> list[TeiResult]:
        """text-embeddings-inference's shape. Raw scores are what a sigmoid makes the scores from."""
        try:
            ranking = await ranked(body.query, body.texts, cut=body.truncate is not False)
        except InputTooLong as error:
            raise refusal_of(error, too_long=413) from None
        values = raw_values(ranking.hits) if body.raw_scores else [hit.score for hit in ranking]
        return [
            TeiResult(index=hit.index, score=value, text=body.texts[hit.index] if body.return_text else None)
            for hit, value in zip(ranking, values, strict=True)
        ]

    @router.post("/v1/ranking", responses=declared(404, *ALWAYS))
    async def nim(body: NimRequest) -> NimRankings:
        """NVIDIA NIM's shape."""
        named(service, body.model)
        texts = [passage.text for passage in body.passages]
        ranking = await ranked(body.query.text, texts, cut=body.truncate == "END")
        values = raw_values(ranking.hits)
        rows = [NimRanking(index=hit.index, logit=value) for hit, value in zip(ranking, values, strict=True)]
        return NimRankings(rankings=rows, usage=TokenCount(total_tokens=ranking.usage.tokens))

    return router


def _rows(ranking: Ranking, texts: Sequence[str] | None, *, scores: bool = True) -> list[Result]:
    values = [hit.score for hit in ranking] if scores else raw_values(ranking.hits)
    return [
        Result(
            index=hit.index,
            relevance_score=value,
            logit=hit.logit,
            truncated=hit.truncated,
            document=None if texts is None else Text(text=texts[hit.index]),
        )
        for hit, value in zip(ranking, values, strict=True)
    ]

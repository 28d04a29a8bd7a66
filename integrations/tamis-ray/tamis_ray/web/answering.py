"""The route that answers: RankRAG, whole or as server-sent events."""

# Annotations are values here: FastAPI reads them, and the bodies are made for a server's limits.

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from tamis.errors import DeviceLost
from tamis.rankrag.answers import Piece
from tamis_ray.web.answers import RankRAGAnswer, Read
from tamis_ray.web.errors import declared, refusal_of
from tamis_ray.web.limits import Limits
from tamis_ray.web.ranking import ALWAYS, named
from tamis_ray.web.route import BoundedRoute
from tamis_ray.web.service import Service
from tamis_ray.web.shapes import Shapes, texts_of

CALL = ("top_k", "min_score", "answer_anyway", "task", "max_new_tokens", "stop")
STREAM = "text/event-stream"


def routes(service: Service, limits: Limits, bodies: Shapes) -> APIRouter:
    """The route over a RankRAG model."""
    router = APIRouter(tags=["rankrag"], route_class=BoundedRoute)
    if TYPE_CHECKING:  # a type checker cannot know what is made while the program runs
        from typing import Any as AnswerRequest
    else:
        AnswerRequest = bodies.answer  # noqa: N806
    rag = service.rag
    assert rag is not None  # noqa: S101 - the app asks for this route only where there is one

    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"enum": ["ranking", "piece", "answer", "error"]}, "data": {"type": "string"}},
    }
    events = {"description": "The answer, or its events.", "content": {STREAM: {"itemSchema": event}}}

    @router.post("/v1/rankrag/answer", response_model=RankRAGAnswer, responses={200: events, **declared(404, *ALWAYS)})
    async def answer(body: AnswerRequest) -> Any:
        """Ranks the passages, and answers from the best of them.

        With `stream`, events: `ranking` has `contexts`, what the answer is written from, best first; each `piece` has
        `text`; `answer` has all that the whole answer has; `error`, what errors have, ends an answer that broke off.
        """
        model, id = named(service, body.model), uuid4().hex  # noqa: A001
        options: dict[str, Any] = {name: getattr(body, name) for name in CALL}
        options["history"] = [
            turn for said in body.history for turn in (("user", said.user), ("assistant", said.assistant))
        ]
        options["timeout"] = limits.timeout
        texts = texts_of(body.passages)
        try:
            if not body.stream:
                return RankRAGAnswer.of(await rag.aanswer(body.question, texts, **options), id, model)
            pieces = rag.astream(body.question, texts, **options)
            first = await anext(pieces)  # until the passages are ranked, an error has a status of its own
        except DeviceLost:
            service.lost = True
            raise
        return StreamingResponse(_events(pieces, first, id, model), media_type=STREAM, headers=UNBUFFERED)

    return router


UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def _events(pieces: AsyncGenerator[Piece], first: Piece, id: str, model: str) -> AsyncIterator[bytes]:  # noqa: A002
    async with aclosing(pieces):
        yield _event("ranking", {"id": id, "contexts": [Read.of(hit).model_dump() for hit in first.contexts or ()]})
        try:
            async for piece in pieces:
                if piece.answer is not None:
                    yield _event("answer", RankRAGAnswer.of(piece.answer, id, model).model_dump())
                elif piece:
                    yield _event("piece", {"text": str(piece)})
        except Exception as error:  # noqa: BLE001 - the status is sent already; the stream is where it can be told
            refusal = refusal_of(error)
            yield _event("error", {"error": refusal.message, "message": refusal.message, "error_type": refusal.kind})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()

"""From what went wrong to an answer that says what to do, without a word of what was sent."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from tamis.errors import Closed, DeadlineExceeded, DeviceLost, InputTooLong, InvalidInput, Overloaded, RemoteError

log = logging.getLogger("tamis_ray.serve")

RETRY_AFTER = 1  # seconds; the clients' own backoff does the rest


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: Its HTTP status.
        kind: A word for programs: "validation", "too_long", "overloaded", ...
        message: What is wrong and what to do.
    """

    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class ErrorBody(BaseModel):
    """What every error has in its body."""

    error: str = Field(description="What is wrong, and what to do.")
    message: str = Field(description="The same, where Cohere's clients look for it.")
    error_type: str = Field(description="A word for programs.")


MEANINGS = {
    400: "The body is no JSON in UTF-8, is nested too deeply, or a text is too long for the model and may not be cut.",
    401: "The key is missing or wrong.",
    404: "The model that was asked for is not served here.",
    405: "The path has no such method.",
    408: "The body did not come in time.",
    413: "The body, or with TEI's truncate=false a text, is too large.",
    415: "The body is not declared as application/json.",
    422: "A field is missing, has the wrong type, or is beyond a limit.",
    429: "Too much is under way; Retry-After says when to try again.",
    431: "The headers are too large.",
    500: "The model failed.",
    502: "A server behind this one failed.",
    503: "The model is being restarted.",
    504: "The request took too long.",
}


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What FastAPI takes as `responses=`."""
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in statuses}


def answer(refusal: Refusal) -> JSONResponse:
    """The refusal as a response."""
    body = ErrorBody(error=refusal.message, message=refusal.message, error_type=refusal.kind)
    return JSONResponse(body.model_dump(), refusal.status, refusal.headers)


def refusal_of(error: Exception, *, too_long: int = 400) -> Refusal:
    """What a caller is told about an error.

    Args:
        error: Whatever was raised. What is not the caller's doing is logged, by type and place alone: messages of
            others may quote what was sent.
        too_long: The status for texts that are too long.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputTooLong):  # its first sentence has lengths, and no text
        sentence = str(error).partition(". ")[0]
        return Refusal(too_long, "too_long", f"Input length exceeds the maximum that the model reads. {sentence}. "
                       "Shorten it, or allow it to be cut.")  # fmt: skip
    if isinstance(error, Overloaded):
        return overloaded()
    if isinstance(error, DeadlineExceeded):
        return Refusal(504, "timeout", "The request took longer than this server allows. Send less at once, or later.")
    if isinstance(error, InvalidInput):
        return Refusal(
            400, "validation", "The model cannot do this: the texts leave no room for each other, or an option is "
            "beyond what it can. Shorten the question and the history, or ask for a shorter answer.",
        )  # fmt: skip
    log.error("%s at %s", type(error).__name__, _place(error))
    if isinstance(error, RemoteError):
        return Refusal(502, "backend", "The server behind this one failed or refused. Try again later.")
    if isinstance(error, DeviceLost | Closed):
        return Refusal(503, "unavailable", "The model is being restarted. Try again.", retry_after=str(RETRY_AFTER))
    return Refusal(500, "backend", "The model failed. The server's log has the kind of error; try again, or with less.")


def overloaded() -> Refusal:
    """Too much is under way."""
    message = "Too much is under way on this server. Try again after the time in Retry-After."
    return Refusal(429, "overloaded", message, retry_after=str(RETRY_AFTER))


def invalid(errors: Sequence[Any]) -> Refusal:
    """A body whose fields are wrong, from pydantic's errors: their places and messages, never the input.

    >>> from pydantic_core import ErrorDetails
    >>> error = {"type": "string_type", "loc": ("body", "documents", 3, "str"), "msg": "Input should be a valid string"}
    >>> invalid([error]).message
    'documents.3: Input should be a valid string.'
    """
    told = []
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"][1:] if isinstance(part, int) or part in KNOWN)
        message = (
            "is not a field of this object"
            if error["type"] == "extra_forbidden"
            else error["msg"].removeprefix("Value error, ")
        )
        told.append(f"{place or 'the body'}: {message}.")
    if any(error["type"] in ("too_long", "string_too_long") for error in errors):
        told.append("This exceeds the maximum that this server takes at once; send less.")
    return Refusal(422, "validation", " ".join(dict.fromkeys(told)))


KNOWN = frozenset({  # field names, which alone may be repeated: a key of the caller's is his text
    "query", "documents", "passages", "texts", "text", "model", "top_n", "top_k", "return_documents", "return_text",
    "raw_scores", "truncate", "truncation_direction", "use_activation", "question", "min_score", "answer_anyway",
    "task", "history", "user", "assistant", "max_new_tokens", "stop", "stream",
})  # fmt: skip


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "an unknown place"

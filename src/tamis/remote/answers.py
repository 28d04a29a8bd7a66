"""Answers are read as if they came from a stranger: what is not exactly as it should be is an error, never a guess."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from tamis.options import Scale
from tamis.remote.apis import Api

ROUNDING = 1e-3  # that a cosine may be beyond 1
LONGEST_DETAIL = 300  # characters of what a server says, that messages repeat


class BadAnswer(ValueError):
    """An answer that cannot be trusted; the message says what is wrong with it."""


def parse(body: bytes) -> Any:
    """The JSON of a body.

    >>> parse(b'{"a": 1')
    Traceback (most recent call last):
    tamis.remote.answers.BadAnswer: is not JSON, or was cut off (Expecting ',' delimiter)
    """
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadAnswer("is not UTF-8") from None
    except RecursionError:
        raise BadAnswer("is nested too deeply") from None
    except ValueError as error:
        raise BadAnswer(f"is not JSON, or was cut off ({getattr(error, 'msg', 'a number is too long')})") from None


def values(answer: Any, api: Api, count: int) -> list[float]:
    """The numbers of `count` passages, in their order.

    Raises:
        BadAnswer: A passage has none, or two, or a number is none.

    >>> from tamis.remote.apis import APIS
    >>> values([{"index": 1, "score": 0.5}, {"index": 0, "score": -2}], APIS["tei"], 2)
    [-2.0, 0.5]
    """
    rows = answer if api.rows is None else answer.get(api.rows) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise BadAnswer("has no list of scores" + (f" under {api.rows!r}" if api.rows else ""))
    if len(rows) != count:
        raise BadAnswer(f"has {len(rows)} scores for {count} passages")
    found: list[float | None] = [None] * count
    for row in rows:
        if not isinstance(row, dict):
            raise BadAnswer("has a score that is no object")
        index = row.get("index")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise BadAnswer(f"names passage {_short(index)}, and {count} were sent, from 0")
        if found[index] is not None:
            raise BadAnswer(f"has two scores for passage {index}")
        found[index] = _number(row.get(api.value), api.value, index)
    return [value for value in found if value is not None]  # as many as there are: each index once


def check_scale(numbers: Sequence[float], scale: Scale) -> None:
    """Raises BadAnswer for a number that is not on its scale: a probability in [0, 1], a cosine in [-1, 1]."""
    least = {"logit": -math.inf, "probability": 0.0, "cosine": -1.0 - ROUNDING}[scale]
    most = {"logit": math.inf, "probability": 1.0, "cosine": 1.0 + ROUNDING}[scale]
    for index, number in enumerate(numbers):
        if not least <= number <= most:
            raise BadAnswer(
                f"scores passage {index} {number:g}, which is no {scale}; pass scale= what this server's numbers are, "
                '"logit" or "cosine"'
            )


def detail(body: bytes) -> str:
    """Why a server refused, in its own words; empty where it does not say so in JSON.

    Of FastAPI's lists only the messages are taken: beside them stand the texts that were sent.

    >>> detail(b'{"error": "Input length 9 exceeds 8"}'), detail(b"<html>"), detail(b'{"message": {"a": 1}}')
    ('Input length 9 exceeds 8', '', '')
    >>> detail(b'{"detail": [{"loc": ["body", "query"], "msg": "Field required", "input": "secret"}]}')
    'Field required'
    """
    try:
        said = parse(body)
    except BadAnswer:
        return ""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in _message(said)))[:LONGEST_DETAIL].strip()


def _message(said: Any, depth: int = 0) -> str:
    if isinstance(said, str):
        return said
    if depth > 3:
        return ""
    if isinstance(said, list):
        return "; ".join(filter(None, (_message(one, depth + 1) for one in said[:3] if isinstance(one, dict))))
    if isinstance(said, dict):
        for name in ("error", "message", "detail", "msg", "title"):
            if text := _message(said.get(name), depth + 1):
                return text
    return ""


def _number(value: Any, name: str, index: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"has no number under {name!r} for passage {index}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadAnswer(f"scores passage {index} {number}")
    return number


def _short(value: Any) -> str:
    return str(value)[:20] if isinstance(value, int | float) else type(value).__name__

"""Trying again: what is worth it, how long to wait, and when there is no time left for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tamis.errors import RemoteError

T = TypeVar("T")

FIRST, LONGEST = 0.25, 8.0  # seconds; each pause is twice the one before it
LONGEST_CLOSED = 60.0  # seconds that other requests stay away because of one's Retry-After; then one tries again


def worth_it(status: int) -> bool:
    """Whether a request with this answer may succeed later. Scoring changes nothing, so it may always be repeated.

    >>> [status for status in (200, 400, 401, 408, 413, 429, 500, 501, 502, 503, 504) if worth_it(status)]
    [408, 429, 500, 502, 503, 504]
    """
    return status in (408, 429) or (500 <= status < 600 and status not in (501, 505))


def pause(attempt: int, *, chance: float | None = None) -> float:
    """Seconds before attempt 1, 2, ...: exponential, with jitter, so that clients that failed together part.

    >>> [pause(attempt, chance=1.0) for attempt in (1, 2, 3, 9)], pause(1, chance=0.0)
    ([0.25, 0.5, 1.0, 8.0], 0.125)
    """
    chance = random.random() if chance is None else chance  # noqa: S311 - nothing is kept secret by it
    return float(min(LONGEST, FIRST * 2 ** min(attempt - 1, 30)) * (0.5 + 0.5 * chance))


def seconds_of(retry_after: str | None, date: str | None = None, *, now: float | None = None) -> float | None:
    """What a Retry-After header asks for (RFC 9110, 10.2.3); None if it is absent or means nothing.

    Args:
        retry_after: Seconds, or an HTTP date.
        date: The answer's own Date header: a date is measured from it, since clocks differ.
        now: Seconds since the epoch, where there is no Date header.

    >>> seconds_of("7"), seconds_of("0.5"), seconds_of("soon"), seconds_of(None), seconds_of("-3")
    (7.0, 0.5, None, None, 0.0)
    >>> seconds_of("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT")
    30.0
    """
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after)) if float(retry_after) < float("inf") else None
    except ValueError:
        pass
    until = _epoch(retry_after)
    since = _epoch(date) if date else None
    if until is None:
        return None
    return max(0.0, until - (since if since is not None else time.time() if now is None else now))


def _epoch(date: str) -> float | None:
    try:
        when = parsedate_to_datetime(date)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class Patience:
    """Tries again, for all requests to one server: what one is asked to wait, all wait.

    Args:
        retries: How often at most, for each request.
        counted: Called at each.
    """

    def __init__(self, retries: int, counted: Callable[[], None]) -> None:
        self._retries = retries
        self._counted = counted
        self._closed_until = 0.0  # by time.monotonic
        self._closed_by: RemoteError | None = None

    async def persist(self, attempt: Callable[[], Awaitable[T]], end: float) -> T:
        """What `attempt()` gives, at the first, second, ... time.

        Args:
            attempt: Raises `RemoteError` where it fails.
            end: By `time.monotonic`; a pause that would outlast it is not begun.

        Raises:
            RemoteError: The last one.
        """
        tried = 0
        while True:
            now = time.monotonic()
            if self._closed_by is not None and now < self._closed_until:
                if self._closed_until >= end:
                    raise _final(self._closed_by, tried, late=True)
                await asyncio.sleep(self._closed_until - now + pause(1))
            tried += 1
            try:
                return await attempt()
            except RemoteError as error:
                now, wait = time.monotonic(), pause(tried) + (error.retry_after or 0.0)
                if error.retry_after and (until := now + min(error.retry_after, LONGEST_CLOSED)) > self._closed_until:
                    self._closed_until, self._closed_by = until, error
                last = not error.retryable or tried > self._retries
                if last or now + wait >= end:
                    raise _final(error, tried, late=not last) from None
            self._counted()
            await asyncio.sleep(wait)


def _final(error: RemoteError, tried: int, *, late: bool) -> RemoteError:
    told = f" It was tried {tried} times." if tried > 1 else ""
    if late:
        asked = f", and it asks to wait {error.retry_after:.0f} s" if error.retry_after else ""
        told += f" There is no time left to try again{asked}; allow more with timeout= or deadline=."
    return RemoteError(
        f"{error}{told}",
        status=error.status, retryable=error.retryable, retry_after=error.retry_after, detail=error.detail,
    )  # fmt: skip

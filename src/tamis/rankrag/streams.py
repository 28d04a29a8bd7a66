"""Pieces of a text as they come, for a thread or for an event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeAlias

from tamis.inputs import check_timeout
from tamis.rankrag.answers import Answer, Piece
from tamis.steps import late, reject

Show: TypeAlias = Callable[[Piece], None]
Start: TypeAlias = Callable[[Show], Future[Answer]]
"""Begins a text whose pieces are shown from any thread."""


def streamed(start: Start, timeout: float | None) -> Generator[Piece]:
    """The pieces, and at last an empty one with the answer. Nothing begins before the first is asked for."""
    check_timeout(timeout)
    return _streamed(start, timeout)


def astreamed(start: Start, timeout: float | None) -> AsyncGenerator[Piece]:
    """As `streamed`, from any event loop, without blocking it."""
    check_timeout(timeout)
    return _astreamed(start, timeout)


def unspaced(show: Show) -> Callable[[str], None]:
    """Without the white space that a text begins or ends with."""
    begun, held = False, ""

    def shown(piece: str) -> None:
        nonlocal begun, held
        piece = held + piece if begun else piece.lstrip()
        text = piece.rstrip()
        held = piece[len(text) :]  # until more text follows
        if text:
            begun = True
            show(Piece(text))

    return shown


def _streamed(start: Start, timeout: float | None) -> Generator[Piece]:
    end = None if timeout is None else time.monotonic() + timeout
    pieces: SimpleQueue[Piece | None] = SimpleQueue()
    future = start(pieces.put)
    try:
        future.add_done_callback(lambda _: pieces.put(None))
        while True:
            try:
                piece = pieces.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except Empty:
                raise late(timeout) from None
            if piece is None:
                break
            yield piece
        yield Piece("", future.result())
    finally:
        future.cancel()


async def _astreamed(start: Start, timeout: float | None) -> AsyncGenerator[Piece]:
    import asyncio

    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()

    def put(piece: Piece | None) -> None:
        with suppress(RuntimeError):  # the loop was closed, and nobody reads any more
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    future = start(put)
    future.add_done_callback(lambda _: put(None))
    clock = None if timeout is None else loop.call_later(timeout, reject, future, late(timeout))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield Piece("", future.result())
    finally:
        future.cancel()
        if clock is not None:
            clock.cancel()

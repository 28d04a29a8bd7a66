"""The text of a streamed response, from the pieces that a RankRAG model writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, TypeAlias

import tamis

if TYPE_CHECKING:
    from tamis.rankrag.answers import Piece

Finish: TypeAlias = Callable[[tamis.Answer], str]
"""Told the whole when it is there; what it returns, if anything, is the last of the text."""


def streamed_text(pieces: Iterator[Piece], finish: Finish) -> Generator[str, None, None]:
    """The pieces with text in them. Closing it closes them, which ends the writing."""
    with closing(pieces):  # type: ignore[type-var]
        for piece in pieces:
            if text := _text(piece, finish):
                yield text


async def astreamed_text(pieces: AsyncGenerator[Piece], finish: Finish) -> AsyncGenerator[str, None]:
    """As `streamed_text`."""
    async with aclosing(pieces):
        async for piece in pieces:
            if text := _text(piece, finish):
                yield text


def _text(piece: Piece, finish: Finish) -> str:
    return str(piece) if piece.answer is None else finish(piece.answer)

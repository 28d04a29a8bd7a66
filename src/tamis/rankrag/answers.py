"""From tokens to an answer: where it ends, what is shown while it grows, and whether it is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tamis.types import Hit, Ranking

BROKEN = "\ufffd"  # what a decoder makes of a part of a character


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    """What an answer cost.

    Attributes:
        prompt_tokens: Tokens of the answering prompt.
        reused_tokens: Of these, what was not run, since keys and values were there.
        completion_tokens: Tokens that were written, the one that ended the text included.
        ranking_tokens: Tokens of the ranking prompts.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    ranking_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds.

    Attributes:
        ranking: From the call to the ranking.
        first_token: From the call to the answer's first token; 0 if none was written.
        total: From the call to the answer.
    """

    ranking: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a RankRAG model says.

    Attributes:
        text: The answer; empty where nothing relevant was found.
        ranking: All passages that were kept, best first.
        contexts: The hits that the model read for its answer, best first; `truncated` where it read a part.
        found: Whether there is an answer in the context: False where no passage was good enough, or where the model
            says that it is not there.
        usage: Tokens.
        timings: Seconds.
    """

    text: str
    ranking: Ranking
    contexts: Sequence[Hit]
    found: bool
    usage: AnswerUsage = AnswerUsage()
    timings: Timings = Timings()

    def __post_init__(self) -> None:
        object.__setattr__(self, "contexts", tuple(self.contexts))

    def __str__(self) -> str:
        return self.text


class Piece(str):
    """A piece of an answer's text. The first of a stream is empty and carries the contexts, the last the answer.

    Attributes:
        answer: The whole, on the last piece; None before.
        contexts: The hits that the answer is written from, on the first piece, as soon as they are known; else None.
    """

    __slots__ = ("answer", "contexts")

    answer: Answer | None
    contexts: Sequence[Hit] | None

    def __new__(cls, text: str, answer: Answer | None = None, contexts: Sequence[Hit] | None = None) -> Piece:
        """See the class."""
        piece = super().__new__(cls, text)
        piece.answer = answer
        piece.contexts = None if contexts is None else tuple(contexts)
        return piece


class Growing:
    """A text as its tokens come: never half a character, and never the beginning of what ends it.

    Args:
        decode: From token ids to text.
        ends: Token ids that end it.
        stop: Strings that end it, and are no part of it.
        limit: Tokens at most.
        show: Called with each new piece of text.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        ends: Sequence[int],
        stop: Sequence[str],
        limit: int,
        show: Callable[[str], None] = lambda piece: None,
    ) -> None:
        self._decode = decode
        self._ends = frozenset(ends)
        self._stop = tuple(stop)
        self._limit = limit
        self._show = show
        self.tokens: list[int] = []
        self.written = 0  # tokens, the one that ended it included
        self.text = ""  # as far as shown

    def add(self, token: int) -> bool:
        """Takes a token; False if the text has ended."""
        self.written += 1
        if token in self._ends:
            self._shown(self._decode(self.tokens).rstrip(BROKEN))
            return False
        self.tokens.append(token)
        whole = self._decode(self.tokens)
        at = min((i for i in (whole.find(end) for end in self._stop) if i >= 0), default=-1)
        if at >= 0:
            self._shown(whole[:at])
            return False
        if self.written >= self._limit:
            self._shown(whole.rstrip(BROKEN))
            return False
        self._shown(whole[: len(whole) - self._held(whole)])
        return True

    def _held(self, whole: str) -> int:
        """Characters at the end that wait: a part of a character, or of a string that may become an end."""
        broken = len(whole) - len(whole.rstrip(BROKEN))
        kept = whole[: len(whole) - broken]
        begun = max((n for end in self._stop for n in range(1, len(end)) if kept.endswith(end[:n])), default=0)
        return broken + begun

    def _shown(self, text: str) -> None:
        if len(text) > len(self.text):
            piece = text[len(self.text) :]
            self.text += piece
            self._show(piece)


def says_nothing(text: str, pattern: str) -> bool:
    """Whether an answer says that the context does not hold it.

    >>> from tamis.rankrag.prompts import NOT_FOUND
    >>> says_nothing("The answer cannot be found in the context.", NOT_FOUND), says_nothing("Paris", NOT_FOUND)
    (True, False)
    """
    return not text.strip() or re.search(pattern, text, re.IGNORECASE) is not None

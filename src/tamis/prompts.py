"""Prompts of rerankers that are language models: from a family's wording to token ids.

A prompt is a list of pieces, each tokenised apart, as the published code does it: a merge over a border that the
model has not seen changes its scores. One piece holds the passage; only it gives way when there is too much text, and
what follows it is never cut. What stands before the passage is the same for all passages of a query, and marked as
shared, so that a causal model runs it once a batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong, InvalidInput, UnknownFamily
from tamis.long_documents import CHARACTERS_PER_TOKEN, QUERY_SHARE, LongDocuments, windows
from tamis.tokenizing import Ids, TextTokenizer

Around: TypeAlias = Literal["nothing", "bos", "tokenizer"]
Span: TypeAlias = tuple[int, int]

_MARK = re.compile(r"<\|\w+\|>")  # what opens and closes turns
_SLOT = re.compile(r"\{(query|passage|instruction)\}")
LEAST_ROOM = 8  # tokens for a query and a passage, or the prompt is too long for max_length


@dataclass(frozen=True, slots=True)
class Prompt:
    r"""A family's wording, with the slots {query}, {passage} and {instruction}.

    Attributes:
        pieces: Tokenised apart and put together.
        instructed: The pieces when there is an instruction, where the wording differs then.
        instruction: The task that fills {instruction} if the caller gives none.
        around: Special tokens around all of it: "nothing", the "bos" token if there is one, or what the "tokenizer"
            puts around one text.
        strip: Whether white space around query and passage is removed.

    >>> Prompt(("query: {query}", "\n", "document: {passage}", " relevant?")).slots
    ('query', 'passage')
    """

    pieces: tuple[str, ...]
    instructed: tuple[str, ...] | None = None
    instruction: str = ""
    around: Around = "nothing"
    strip: bool = False

    def __post_init__(self) -> None:
        for pieces in filter(None, (self.pieces, self.instructed)):
            found = _SLOT.findall("".join(pieces))
            if found.count("passage") != 1 or "query" not in found:
                raise InvalidInput("A prompt has {passage} once, and {query}: " + repr(pieces))

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots in their order."""
        return tuple(_SLOT.findall("".join(self.instructed or self.pieces)))

    def with_instruction(self, instruction: str | None) -> tuple[str, ...]:
        """The pieces, the instruction filled in.

        Raises:
            InvalidInput: The wording has no place for one.
        """
        text = self.instruction if instruction is None else instruction
        pieces = self.instructed if text and self.instructed else self.pieces
        if instruction and "instruction" not in _SLOT.findall("".join(pieces)):
            raise InvalidInput("This model's prompt has no place for an instruction; leave instruction= out.")
        return tuple(_fill(piece, instruction=text) for piece in pieces)

    def render(self, query: str, passage: str, instruction: str | None = None) -> str:
        """The whole text, without special tokens."""
        return "".join(_fill(p, query=query, passage=passage) for p in self.with_instruction(instruction))


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """Sequences of some passages.

    Attributes:
        owners: The passage of each, in order.
        tokens: The sequences.
        spans: The characters of the passage that each holds; None if it is no window.
        cut: Which passages lose text, or a part of the query, (n,).
    """

    owners: list[int]
    tokens: list[Tokens]
    spans: list[Span | None]
    cut: NDArray[np.bool_]


class BoundPrompt:
    """A prompt with a tokenizer and a length.

    Args:
        prompt: The wording.
        tokenizer: Of the model.
        max_length: Tokens of a whole sequence.
        policy: What happens to a passage that does not fit.
        instruction: Instead of the prompt's own.

    Raises:
        InvalidInput: The prompt alone leaves no room within `max_length`.
        UnknownFamily: The tokenizer lacks a token that opens or closes the prompt's turns.
    """

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: TextTokenizer,
        *,
        max_length: int,
        policy: LongDocuments = "truncate",
        instruction: str | None = None,
    ) -> None:
        pieces = prompt.with_instruction(instruction)
        at = next(i for i, piece in enumerate(pieces) if "{passage}" in piece)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.policy: LongDocuments = policy
        self.strip = prompt.strip
        self.before, self.piece, self.after = pieces[:at], pieces[at], pieces[at + 1 :]
        self.opening, self.closing = _around(prompt.around, tokenizer)
        for mark in dict.fromkeys(_MARK.findall("".join(pieces))):
            if tokenizer.entry(mark) is None:
                raise UnknownFamily(
                    f"The prompt has {mark}, which is no token of this model: the checkpoint belongs to another family."
                )
        frame = sum(map(len, self.encode([_fill(piece, query="", passage="") for piece in pieces])))
        frame += len(self.opening) + len(self.closing)
        self.query_limit = int(QUERY_SHARE * (max_length - frame))
        if max_length - frame < LEAST_ROOM:
            raise InvalidInput(
                f"max_length={max_length}, but the model's prompt takes {frame} tokens by itself; pass at least "
                f"max_length={2 * frame + LEAST_ROOM}."
            )

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids, nothing added."""
        return self.tokenizer.encode(texts)

    def ask(self, query: str) -> Asked:
        """The prompt with a query in it.

        Raises:
            InputTooLong: The query takes more than its share and may not be cut, or leaves no room for a passage.
        """
        return Asked(self, query.strip() if self.strip else query)


class Asked:
    """A prompt with its query, ready for passages."""

    def __init__(self, prompt: BoundPrompt, query: str) -> None:
        self._prompt = prompt
        self._tokenizer = prompt.tokenizer
        text, self.query_cut = self._shortened(self._tokenizer.plain(query), prompt.query_limit)

        def filled(pieces: Sequence[str]) -> list[Ids]:
            return prompt.encode([_fill(piece, query=text) for piece in pieces]) or [np.zeros(0, np.int32)]

        self._head = np.concatenate([prompt.opening, *filled(prompt.before)])
        self._tail = np.concatenate([*filled(prompt.after), prompt.closing])
        self._before, self._after = (_fill(part, query=text) for part in prompt.piece.split("{passage}"))
        opening, frame = prompt.encode([self._before, self._before + self._after])
        self._reference = np.concatenate([self._head, opening])
        self._room = prompt.max_length - len(self._head) - len(self._tail)  # for the piece with the passage in it
        self._frame = len(frame)
        if self._room - self._frame < 1:
            raise InputTooLong(
                f"The query and the prompt take {prompt.max_length + self._frame - self._room} tokens, and max_length "
                f"is {prompt.max_length}: there is no room for a passage. Shorten the query, or raise max_length=."
            )

    def sequences(self, passages: Sequence[str], first: int = 0) -> Made:
        """One sequence for each passage, or for each of its windows.

        Args:
            passages: Some of a request's.
            first: The number of the first, for messages.

        Raises:
            InputTooLong: A passage does not fit, and the policy is "error".
        """
        texts = [self._tokenizer.plain(text.strip() if self._prompt.strip else text) for text in passages]
        heads = [text[: self._room * CHARACTERS_PER_TOKEN] for text in texts]
        encoded = self._pieces(heads)
        made = Made([], [], [], np.full(len(passages), self.query_cut, np.bool_))
        for i, (text, head, ids) in enumerate(zip(texts, heads, encoded, strict=True)):
            if len(ids) <= self._room and len(head) < len(text):  # of tokens that are longer than most
                head, ids = text, self._pieces([text])[0]
            spans: list[Span | None] = [None]
            parts = [ids]
            if len(ids) > self._room:
                if self._prompt.policy == "error":
                    raise InputTooLong(
                        f"Passage {first + i} does not fit: {self._room - self._frame} tokens are left for it beside "
                        'the query and the prompt. Split it, or load with long_documents="max_window" (all of it, in '
                        'windows) or "truncate" (its beginning).'
                    )
                if self._prompt.policy == "max_window":
                    spans, parts = self._windows(text)
                else:
                    parts, made.cut[i] = [self._cut(head, ids)], True
            made.owners.extend([i] * len(parts))
            made.spans.extend(spans)
            made.tokens.extend(map(self._tokens, parts))
        return made

    def _pieces(self, texts: Sequence[str]) -> list[Ids]:
        return self._prompt.encode([f"{self._before}{text}{self._after}" for text in texts])

    def _tokens(self, piece: Ids) -> Tokens:
        ids = np.concatenate([self._head, piece, self._tail])
        n = min(len(self._reference), len(ids) - 1)
        differs = np.flatnonzero(ids[:n] != self._reference[:n])
        shared = int(differs[0]) if differs.size else n
        return Tokens(ids, shared=shared, passage=(len(self._head), len(self._head) + len(piece)))

    def _cut(self, text: str, ids: Ids) -> Ids:
        """The piece with as much of the passage's beginning as fits."""
        end = self._prompt.encode([self._after])[0] if self._after else ids[:0]
        if np.array_equal(ids[len(ids) - len(end) :], end):  # nothing is merged over the border
            return np.concatenate([ids[: self._room - len(end)], end])
        places = self._tokenizer.offsets(text)
        keep = len(places)
        while len(ids) > self._room and keep:
            keep = max(0, keep - (len(ids) - self._room))
            ids = self._pieces([text[: int(places[keep][0])]])[0]
        return ids

    def _windows(self, text: str) -> tuple[list[Span | None], list[Ids]]:
        """All of the passage in overlapping windows, each in a prompt of its own."""
        places = self._tokenizer.offsets(text)
        slack = 0  # a window's border may take a token more than its middle
        while True:
            size = self._room - self._frame - slack
            if size < 1:
                raise InputTooLong(
                    "The query and the prompt leave no room for windows of a passage; raise max_length=."
                )
            spans: list[Span | None] = []
            parts = windows(len(places), size)
            for part in parts:
                start = int(places[part.start][0]) if part.start else 0
                stop = int(places[part.stop - 1][1]) if part.stop < len(places) else len(text)
                start += len(text[start:stop]) - len(text[start:stop].lstrip()) if self._prompt.strip else 0
                spans.append((start, stop))
            encoded = self._pieces([text[span[0] : span[1]] for span in spans if span])
            excess = max(map(len, encoded)) - self._room
            if excess <= 0:
                return spans, encoded
            slack += excess

    def _shortened(self, query: str, limit: int) -> tuple[str, bool]:
        ids = self._tokenizer.encode([query], limit=limit)[0]
        if len(ids) <= limit:
            return query, False
        if self._prompt.policy != "truncate":
            raise InputTooLong(
                f"The query has {len(ids)} tokens or more, and may take {limit} of the {self._prompt.max_length} that "
                'the model reads, the prompt among them. Shorten it, or load with long_documents="truncate".'
            )
        return self._tokenizer.beginning(query, limit), True


def _fill(piece: str, **values: str) -> str:
    """Slots replaced, and nothing else read as one: texts have braces too."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), piece)


def _around(around: Around, tokenizer: TextTokenizer) -> tuple[Ids, Ids]:
    if around == "tokenizer":
        opening, closing = tokenizer.template(1).parts
        return opening, closing
    bos = around == "bos" and tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.pad_id
    return np.array([tokenizer.bos_id] if bos else [], np.int32), np.zeros(0, np.int32)

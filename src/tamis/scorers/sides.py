"""The two sides of late interaction: how queries, and passages, become sequences of tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tamis.engine.requests import Row
from tamis.engine.sequences import Tokens
from tamis.long_documents import spans_of
from tamis.tokenizing import Ids, Template, TextTokenizer


class Side:
    """How queries, or passages, are read: `[CLS] marker prompt text [SEP]`.

    Args:
        tokenizer: The checkpoint's.
        length: Tokens at most, all of these included.
        marker: Ids right after the first special tokens.
        prompt: Text before the text, tokenised with it.
        skip: Ids whose vectors do not count.
        first: From which token on vectors count.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        length: int,
        marker: Sequence[int] = (),
        prompt: str = "",
        skip: Collection[int] = (),
        first: int = 0,
    ) -> None:
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._template = marked(tokenizer.template(1), marker)
        with_text, alone = tokenizer.encode([prompt + "a", prompt])
        shared = min(len(with_text), len(alone))
        self._head = int((with_text[:shared] == alone[:shared]).cumprod().sum()) if prompt else 0
        self.room = length - self._template.overhead - self._head  # tokens of text
        self._skip = np.array(sorted(skip), np.int32)
        self._first = first
        self.key = (length, tuple(marker), prompt, tuple(self._skip.tolist()), first)

    def encode(self, texts: Sequence[str], *, whole: bool) -> list[tuple[Ids, Ids]]:
        """Of each text the prompt's ids and its own; of its own `room` + 1 at most, unless `whole`."""
        limit = None if whole else self._head + self.room
        encoded = self._tokenizer.encode([self.prompt + text for text in texts], limit=limit)
        return [(ids[: self._head], ids[self._head :]) for ids in encoded]

    def fill(self, head: Ids, ids: Ids) -> Tokens:
        """One sequence."""
        return self._template.fill(np.concatenate([head, ids]))

    def spans(self, text: str, parts: Sequence[slice]) -> NDArray[np.int32] | None:
        """The characters of parts of a text's own tokens, (parts, 2); None for a single part."""
        if len(parts) < 2:
            return None
        offsets = self._tokenizer.offsets(self.prompt + text)[self._head :] - len(self.prompt)
        return np.array(spans_of([(0, part) for part in parts], lambda _: np.maximum(offsets, 0)), np.int32)

    def counted(self, tokens: Tokens, rows: Row) -> Row:
        """The rows of those tokens that count, copied."""
        keep = ~np.isin(tokens.ids, self._skip)
        keep[: self._first] = False
        return rows[keep]


@dataclass(frozen=True, slots=True)
class Expansion:
    """Queries are filled up with `token` to `length`. The model reads these only if `attend`; MaxSim always does."""

    token: int
    length: int
    attend: bool = False

    def __call__(self, query: Tokens) -> Tokens:
        """The longer query.

        >>> Expansion(103, 4)(Tokens(np.array([101, 102]))).ids.tolist()
        [101, 102, 103, 103]
        """
        new = max(0, self.length - len(query))
        ids = np.concatenate([query.ids, np.full(new, self.token, np.int32)])
        types = None if query.type_ids is None else np.concatenate([query.type_ids, np.zeros(new, np.int32)])
        return replace(query, ids=ids, type_ids=types, unseen=0 if self.attend else new)


def marked(template: Template, marker: Sequence[int]) -> Template:
    """The template with a marker at the end of what comes before the text; of type 0, as in all published code."""
    before, after = template.parts
    types_before, types_after = template.part_types
    return replace(
        template,
        parts=(np.concatenate([before, np.array(marker, np.int32)]), after),
        part_types=(np.concatenate([types_before, np.zeros(len(marker), np.int32)]), types_after),
    )

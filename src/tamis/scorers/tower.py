"""One half of a bi-encoder: a checkpoint, and how texts become sequences for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tamis.engine.loaded import Lease
from tamis.engine.sequences import Tokens
from tamis.long_documents import LongDocuments, pieces, spans_of
from tamis.tokenizing import Ids, Template


@dataclass(frozen=True, slots=True)
class Cut:
    """Some passages as sequences.

    Attributes:
        sequences: At least one for each passage.
        firsts: Each passage's first one.
        truncated: Which passages lose text, shape (n,).
        spans: Of each sequence that is one of several of a passage, its characters (start, stop).
    """

    sequences: list[Tokens]
    firsts: list[int]
    truncated: NDArray[np.bool_]
    spans: list[tuple[int, int] | None]


@dataclass(eq=False, slots=True)
class Tower:
    """Encodes queries, or passages, or both.

    Attributes:
        lease: The loaded checkpoint.
        max_length: Tokens of one text, special tokens included.
        prompt: Put before each text, and before each window of a long one.
        layer_norm: Layer-normalise the full vector before it is truncated, as nomic-embed-text-v1.5 asks.
        unit: The checkpoint ends in a normalisation: its vectors have length 1 under a dot product too.
    """

    lease: Lease
    max_length: int
    prompt: str = ""
    layer_norm: bool = False
    unit: bool = False
    _template: Template = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._template = self.lease.loaded.tokenizer.template(1)

    @property
    def space(self) -> int:
        """Tokens that a text and its prompt may have."""
        return self.max_length - self._template.overhead

    def first(self, text: str) -> tuple[Tokens, bool]:
        """One sequence of the text's beginning, and whether there was more."""
        ids = self.lease.loaded.tokenizer.encode([self.prompt + text], limit=self.space)[0]
        return self._filled(ids[: self.space]), len(ids) > self.space

    def sequences(self, texts: Sequence[str], policy: LongDocuments, places: Sequence[int]) -> Cut:
        """Sequences of some passages, whose indices among the caller's are `places`.

        Raises:
            InputTooLong: The policy is "error" and one does not fit.
        """
        tokenizer = self.lease.loaded.tokenizer
        prompted = [self.prompt + text for text in texts]
        encoded = tokenizer.encode(prompted, limit=self.space if policy != "max_window" else None)
        prompts = [0] * len(texts)  # tokens of the prompt that go before each window
        offsets: dict[int, NDArray[np.int64]] = {}
        if policy == "max_window":
            for i, ids in enumerate(encoded):
                if len(ids) > self.space:
                    where = tokenizer.offsets(prompted[i]) - len(self.prompt)
                    prompt = int(np.argmax(where[:, 1] > 0)) if self.prompt else 0
                    prompts[i] = prompt if prompt <= self.space // 2 else 0  # a huge one would leave no room
                    offsets[i] = np.maximum(where[prompts[i] :], 0)
        parts: list[tuple[int, slice]] = []
        cuts = []
        for i, ids in enumerate(encoded):
            mine, cut = pieces([len(ids) - prompts[i]], self.space - prompts[i], policy, places[i])
            parts += [(i, part) for _, part in mine]
            cuts.append(cut)
        sequences = [self._window(encoded[i], prompts[i], part) for i, part in parts]
        firsts = [n for n, (owner, _) in enumerate(parts) if n == 0 or owner != parts[n - 1][0]]
        return Cut(sequences, firsts, np.concatenate(cuts), spans_of(parts, offsets.__getitem__))

    def _window(self, ids: Ids, prompt: int, part: slice) -> Tokens:
        text = ids[prompt:][part]
        return self._filled(np.concatenate([ids[:prompt], text]) if prompt else text)

    def _filled(self, ids: Ids) -> Tokens:
        """A sequence of one token at least: of an empty text, where nothing is put around texts, a padding one."""
        tokens = self._template.fill(ids)
        return tokens if len(tokens) else self._template.fill(self.lease.loaded.tokenizer.nothing)

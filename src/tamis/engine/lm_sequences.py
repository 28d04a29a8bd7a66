"""Sequences of a language model: a passage to rank, one to keep, a text to write on, one to judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from torch import Tensor

from tamis.engine.keyvalues import Home
from tamis.engine.requests import Row
from tamis.engine.sequences import Tokens


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ranked(Tokens):
    """A passage and a question.

    Attributes:
        system: Tokens of the system text, at the beginning.
        end: The place after the passage's last token.
    """

    system: int
    end: int

    def kind(self) -> bytes:
        """See `Tokens.kind`."""
        return b"ranked %d %d" % (self.system, self.end)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Warmed(Ranked):
    """A passage whose keys and values are wanted, and nothing else; its row is a zero."""

    def kind(self) -> bytes:
        """See `Tokens.kind`."""
        return b"warmed"


@dataclass(slots=True, eq=False)
class Writing:
    """A text on its way: what there is of it, and when it ends.

    Attributes:
        system: Tokens of the system text, at the prompt's beginning.
        beginning: Tokens at the prompt's beginning that may be those of a passage that was ranked; 0 if none.
        more: Called with each token as it is chosen, on the device's thread; False ends the text.
        choose: From the logits (V,) to a token; None takes the likeliest.
        room: How many tokens it may become.
        number: No other text of this process has it.
        home: Its keys and values; made by its first step.
        reused: Tokens of its prompt that were not run again.
    """

    system: int
    more: Callable[[int], bool]
    beginning: int = 0
    choose: Callable[[Tensor], int] | None = None
    room: int = 0
    tokens: list[int] = field(default_factory=list)
    number: int = field(default_factory=count(1).__next__)
    home: Home | None = None
    reused: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step(Tokens):
    """The tokens that a text goes on with: its prompt, or the one that was chosen last. Its row is the text so far."""

    writing: Writing

    def kind(self) -> bytes:
        """See `Tokens.kind`: no two texts are one, and a step is taken once."""
        return b"step %d %d" % (self.writing.number, len(self.writing.tokens))

    def after(self, row: Row) -> Step | None:
        """The next step, or None if the text has ended."""
        token = int(row[-1])
        if not self.writing.more(token):
            return None
        return Step(np.array([token], np.int32), writing=self.writing)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judged(Tokens):
    """A text, and how it goes on.

    Attributes:
        system: Tokens of the system text, at the beginning.
        said: How many of the last tokens are judged; at least 1, and at least one stands before them.
    """

    system: int
    said: int

    def kind(self) -> bytes:
        """See `Tokens.kind`."""
        return b"judged %d %d" % (self.system, self.said)

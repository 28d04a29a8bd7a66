"""The answering prompt: the best passages, as many as fit, and the question behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tamis.rankrag.prompts import Tokenised
from tamis.tokenizing import Ids
from tamis.types import Hit

LEAST_PASSAGE = 16  # tokens; less of a passage is not worth reading


@dataclass(frozen=True, eq=False, slots=True)
class AnsweringPrompt:
    """What the model answers from.

    Attributes:
        ids: The whole prompt, int32.
        contexts: The hits in it, best first; `truncated` where it has less than the whole passage.
        beginning: How many of its first ids ranking may have left in the model.
    """

    ids: Ids
    contexts: list[Hit]
    beginning: int


def answering_prompt(prompts: Tokenised, best: Sequence[Hit], end: Ids, room: int) -> AnsweringPrompt | None:
    """The prompt; None where not even a part of the first passage fits.

    Args:
        prompts: The wording, tokenised.
        best: Best first. What does not fit is left out; the last that does may be cut, at the start of its best window
            if it has one.
        end: The ids behind the passages: conversation and question.
        room: Tokens for passages.
    """
    reverse = prompts.wording.best == "last"
    pieces: list[Ids] = []
    contexts: list[Hit] = []
    texts: list[str] = []
    for number, hit in enumerate(best, 1):
        number = len(best) if reverse else number  # which it has is not known before all are chosen: the longest
        text = hit.passage.text
        piece = prompts.numbered([text], number)[0]
        cut = len(piece) > room
        if cut:
            frame = len(piece) - prompts.count(text) + 4  # and what a cut may add
            if room - frame < LEAST_PASSAGE:
                break
            start = hit.window[0] if hit.window else 0  # where it is best
            tokens = min(prompts.count(text[start:]), room - frame)
            stop = start + prompts.span(text[start:], slice(0, tokens))[1]
            text = text[start:stop]
            piece = prompts.numbered([text], number)[0][:room]
            hit = replace(hit, window=(start, stop) if hit.window else None)
        pieces.append(piece)
        contexts.append(replace(hit, truncated=cut))
        texts.append(text)
        room -= len(piece)
        if cut:
            break
    if not contexts:
        return None
    if reverse:
        texts.reverse()
        numbered = prompts.numbered(texts)
        pieces = [piece[: len(longest)] for piece, longest in zip(numbered, reversed(pieces), strict=True)]
    ranked = prompts.ranked(texts[:1])[0]
    same = np.array_equal(ranked, pieces[0])  # only where the wording labels passages alike in both prompts
    beginning = len(prompts.system) + len(pieces[0]) if same else 0
    return AnsweringPrompt(np.concatenate([prompts.system, *pieces, end]), contexts, beginning)

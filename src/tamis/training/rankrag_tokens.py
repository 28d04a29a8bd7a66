"""RankRAG's samples as tokens, in the prompts of `tamis.rankrag.prompts`: what is trained is what is asked.

Each prompt is put together from the pieces that inference tokenises apart, and followed by what the model is to say and
the token that ends its turn; the loss is on these alone. Since passages come first, samples about the same ones can
share a row: passages once, then each question with its answer, which see the passages and not each other
(`tamis.training.answer_trainer`). The loss is that of the samples apart, for a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from tamis.errors import InvalidInput
from tamis.rankrag.conversations import prompt_ids
from tamis.rankrag.prompts import Task, Tokenised, Wording
from tamis.tokenizing import Ids, TextTokenizer
from tamis.training.rankrag_passages import shortened
from tamis.training.rankrag_samples import Sample

IGNORED = -100  # the label of a position that has no part in the loss
LEAST_WORDS = 32  # a passage is not shortened below
LISTING = "listing"
Row: TypeAlias = Mapping[str, Any]
"""`input_ids` and `labels` of one length; `parts`, the lengths of prefix and tails; `length`, their sum."""

_LIST = (
    "For the question {question}, access whether the above passages are relevant to the question. "  # the paper's words
    "Return all the relevant passage id. "
)


class SampleEncoder:
    """From samples to rows of token ids and labels.

    Args:
        wording: The frame of every prompt; as `load_rankrag` will have it.
        tokenizer: Of the model.
        ends: Tokens that end a text where the model is asked.
        max_length: Tokens of a row.

    Raises:
        InvalidInput: No token ends a text.
    """

    def __init__(self, wording: Wording, tokenizer: TextTokenizer, ends: Sequence[int], max_length: int) -> None:
        listing = Task(_LIST, _LIST, 32)
        self._tokenizer = tokenizer
        self._wording = replace(wording, tasks={**wording.tasks, LISTING: listing})
        self._prompts = Tokenised(self._wording, tokenizer)
        self._max_length = max_length
        self._space = "" if wording.closing[-1:].isspace() else _space(wording, tokenizer)
        self.end = end_of_turn(wording, tokenizer, ends)

    def rows(self, samples: Iterable[Sample], share: int = 1) -> list[Row]:
        """A row for each sample that fits, or for as many as `share` of them that begin with the same passages."""
        opened: dict[tuple[int, ...], list[tuple[Ids, Ids]]] = {}  # what rows begin with, and what they go on with
        done: list[Row] = []
        for sample in samples:
            parts = self.parts(sample)
            if parts is None:
                continue
            prefix, *more = parts
            if share == 1 or not len(prefix):
                done.append(_row(prefix, [(more[0], more[1])]))
                continue
            key = tuple(prefix.tolist())
            tails = opened.setdefault(key, [])
            size = len(prefix) + sum(len(asked) + len(said) for asked, said in [*tails, (more[0], more[1])])
            if tails and (len(tails) == share or size > self._max_length):
                done.append(_row(prefix, tails))
                tails = opened[key] = []
            tails.append((more[0], more[1]))
        return done + [_row(np.array(key, np.int32), tails) for key, tails in opened.items()]

    def parts(self, sample: Sample) -> tuple[Ids, Ids, Ids] | None:
        """Its system text and passages, what is asked, and what is to be said; None if that is too long.

        Passages give way first: they are shortened until all fits.
        """
        said = np.append(self._tokenizer.encode([self._space + sample.target])[0], self.end).astype(np.int32)
        while True:
            before, asked = self.prompt(sample)
            if len(before) + len(asked) + len(said) <= self._max_length:
                return before, asked, said
            longest = max((len(text.split()) for text in sample.passages), default=0)
            if longest < LEAST_WORDS:
                return None
            around = sample.target if sample.kind.endswith("qa") else ""
            cut = tuple(shortened(text, longest * 4 // 5, around) for text in sample.passages)
            sample = replace(sample, passages=cut)

    def prompt(self, sample: Sample) -> tuple[Ids, Ids]:
        """What the model reads before the question, and the question; of a chat, nothing and all."""
        if sample.messages:
            return np.zeros(0, np.int32), prompt_ids(sample.messages, self._wording, self._tokenizer)
        alone = sample.kind in ("context_qa", "ranking", "pseudo_ranking")
        passages = self._prompts.ranked(sample.passages) if alone else self._prompts.numbered(sample.passages)
        if sample.kind.endswith("qa"):
            asked = self._prompts.replying(sample.question, sample.task, ())
        elif sample.kind == "retrieval_ranking":
            asked = self._prompts.replying(sample.question, LISTING, ())
        else:
            asked = self._prompts.asking(sample.question, sample.task, ())
        return np.concatenate([self._prompts.system, *passages]), asked


def _space(wording: Wording, tokenizer: TextTokenizer) -> str:
    """What stands before an answer: a space, unless the labels then begin with the same token and tell nothing."""
    true, false = tokenizer.encode([f" {wording.true}", f" {wording.false}"])
    return " " if true[0] != false[0] else ""


def _row(prefix: Ids, tails: Sequence[tuple[Ids, Ids]]) -> Row:
    """The prefix and all tails, one behind the other; `parts` are their lengths."""
    ids = np.concatenate([prefix, *(part for tail in tails for part in tail)]).tolist()
    labels = [IGNORED] * len(prefix)
    for asked, said in tails:
        labels += [IGNORED] * len(asked) + said.tolist()
    parts = [len(prefix), *(len(asked) + len(said) for asked, said in tails)]
    return {"input_ids": ids, "labels": labels, "parts": parts, "length": len(ids)}


def end_of_turn(wording: Wording, tokenizer: TextTokenizer, ends: Sequence[int]) -> int:
    """The token that a reply ends with: the first behind it in the wording's turns if it ends a text, else any.

    Raises:
        InvalidInput: None does.
    """
    if not ends:
        raise InvalidInput("The model has no token that ends a text, so that it cannot learn to stop.")
    behind = tokenizer.encode([wording.reply.partition("{text}")[2]])[0]
    following = [int(token) for token in behind[:1] if token in ends]
    usual = tokenizer.eos_id if tokenizer.eos_id is not None and tokenizer.eos_id in ends else ends[0]
    return following[0] if following else usual

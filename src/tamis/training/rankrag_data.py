"""RankRAG's training data: the paper's five tasks, from test collections with answers and from chats, in its ratios.

Yu et al. 2024 (arXiv 2407.02485), section 4.2 and appendices B and C. A sample is text; `rankrag_tokens` makes it what
the model reads. See `docs/training-rankrag.md` for which of the paper's data each task stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection
from tamis.rankrag.conversations import Message
from tamis.training.rankrag_drawing import Drawing
from tamis.training.rankrag_samples import RATIOS, Mix, Sample, chat


@dataclass(frozen=True, slots=True)
class Blend:
    """Samples in the order in which they were drawn, shuffled.

    Attributes:
        samples: All tasks' together.
        counts: Samples of each task.
        left_out: Tasks without samples, and why.
    """

    samples: tuple[Sample, ...]
    counts: Mapping[str, int]
    left_out: Mapping[str, str]


def blend(
    collections: Sequence[Collection],
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    chats: Sequence[Sequence[Message]],
    mix: Mix,
    rng: np.random.Generator,
) -> Blend:
    """The samples of the second stage, in the ratios of `mix`.

    Args:
        collections: What questions and passages are drawn from; those without answers give ranking pairs only.
        runs: BM25's of each of them: hard negatives and contexts are drawn from what it found.
        chats: Conversations that end with the assistant's turn.
        mix: How many of what.
        rng: Draws.

    Raises:
        InvalidInput: No task has a source.
    """
    drawing = Drawing(collections, runs, mix, rng)
    made: dict[str, Callable[[int], list[Sample]]] = {
        "sft": lambda count: [chat(chats[i]) for i in _order(len(chats), count, rng)],
        "context_qa": drawing.context_qa,
        "retrieval_qa": drawing.retrieval_qa,
        "ranking": drawing.ranking,
        "pseudo_ranking": drawing.pseudo_ranking,
        "retrieval_ranking": drawing.retrieval_ranking,
    }
    left_out: dict[str, str] = {}
    for kind in RATIOS:
        if kind in mix.leave_out or not mix.ratios.get(kind, 0.0):
            left_out[kind] = "asked for"
        elif not (chats if kind == "sft" else made[kind](1)):
            left_out[kind] = "no source"
    kinds = [kind for kind in RATIOS if kind not in left_out]
    total = sum(mix.ratios[kind] for kind in kinds)
    if not kinds:
        raise InvalidInput(f"There is nothing to train on: {left_out}.")
    samples: list[Sample] = []
    room = mix.ranking_pairs
    for kind in kinds:
        count = round(mix.samples * mix.ratios[kind] / total)
        if kind in ("ranking", "pseudo_ranking"):
            count = round(count * mix.ranking_share)
            count, room = (count, None) if room is None else (min(count, room), room - min(count, room))
        samples += made[kind](count) if count else []
    counts = {kind: sum(sample.kind == kind for sample in samples) for kind in kinds}
    return Blend(tuple(samples[i] for i in rng.permutation(len(samples))), counts, left_out)


def _order(size: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """Places in a list of `size`, all once before one comes again."""
    for start in range(0, count, size or 1):
        yield from (int(i) for i in rng.permutation(size)[: count - start])

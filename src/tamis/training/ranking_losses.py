"""What the losses of a cross-encoder read, and the losses: sentence-transformers', over queries with judged passages.

A teacher's scores, where there are any, are what is aimed at. Only a listwise loss blends them with labels: a passage's
target logit is `label_weight * label + score / temperature`, so that labels decide where there are labels, and the
teacher orders the rest. Without labels, or with `label_weight` 0, its loss is the KL divergence from the teacher's
softmax, plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import InvalidInput
from tamis.scores import sigmoid
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers.cross_encoder import CrossEncoder

    from tamis.training.cross_encoder import Options

POINTWISE = ("bce", "mse")
LISTS = ("listwise", "lambda", "ranknet")
LOSSES = (*POINTWISE, *LISTS, "contrastive", "margin-mse")
NEEDS = {
    **dict.fromkeys(POINTWISE, "a label, or a teacher's score"),
    **dict.fromkeys(LISTS, "passages of different relevance"),
    "contrastive": "a relevant passage and another one",
    "margin-mse": "a teacher's scores of two passages",
}

Row = tuple[Any, ...]


def columns(examples: Sequence[Example], options: Options) -> dict[str, list[Any]]:
    """Examples as the columns that the loss reads, in its order.

    Args:
        examples: Any.
        options: `loss`, `label_weight` and `temperature` are read.

    Raises:
        InvalidInput: No example has what the loss needs.
    """
    if options.loss == "margin-mse":
        names, rows = ["query", "positive", "negative", "label"], _margins(examples)
    elif options.loss in POINTWISE:
        names = ["query", "passage", "label"]
        rows = [
            (asked(e), passage, value)
            for e in soft(examples)
            for passage, value in zip(e.passages, e.scores or e.labels, strict=True)
        ]
    elif options.loss == "contrastive":
        names, rows = _contrasts([e for e in examples if e.labels and e.positives])
    else:
        names = ["query", "passages", "labels"]
        aimed = examples if options.loss == "listwise" else soft(examples)
        rows = [(asked(e), list(e.passages), targets(e, options)) for e in aimed]
        rows = [row for row in rows if len(set(row[2])) > 1]  # equal targets tell nothing apart
    if examples and not rows:
        raise InvalidInput(f"No example has what the loss {options.loss!r} needs: {NEEDS[options.loss]}.")
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


def targets(example: Example, options: Options) -> list[float]:
    """What a list loss aims at, one number a passage: grades, or for "listwise" logits, of which the softmax is taken.

    >>> from tamis.training.cross_encoder import Options
    >>> example = Example("q", ("a", "b"), (1.0, 0.0), (0.8, 0.6))
    >>> targets(example, Options(label_weight=4, temperature=0.1))
    [12.0, 6.0]
    >>> targets(example, Options("lambda"))
    [0.8, 0.6]
    """
    if options.loss != "listwise":
        return [float(value) for value in example.scores or example.labels]
    labels = np.array(example.labels or (0.0,) * len(example.passages))
    scores = np.array(example.scores or (0.0,) * len(example.passages))
    return [round(float(v), 6) for v in options.label_weight * labels + scores / options.temperature]


def soft(examples: Sequence[Example]) -> list[Example]:
    """The examples with a teacher's scores as soft labels in [0, 1].

    Those of a source that all lie there are taken for probabilities, as RAG-Retrieval's files have them; others for
    logits, of which the sigmoid is taken. Done twice it changes nothing more.

    >>> [e.scores for e in soft([Example("q", ("a", "b"), scores=(0.0, -1.5))])]
    [(0.5, 0.182...)]
    """
    logits = {e.source for e in examples if any(not 0 <= score <= 1 for score in e.scores)}
    return [
        replace(e, scores=tuple(sigmoid(score) for score in e.scores)) if e.source in logits else e for e in examples
    ]


def asked(example: Example) -> str:
    """The query, behind what its row puts before it."""
    return example.prompt + example.query


def _margins(examples: Sequence[Example]) -> list[Row]:
    """Pairs of passages with what the teacher's scores differ by; of labelled ones only those of different labels."""
    return [
        (asked(e), p, n, e.scores[i] - e.scores[j])
        for e in examples
        if e.scores
        for i, p in enumerate(e.passages)
        for j, n in enumerate(e.passages)
        if (e.labels[i] > e.labels[j] if e.labels else i < j)
    ]


def _contrasts(examples: Sequence[Example]) -> tuple[list[str], list[Row]]:
    """The first positive with as many negatives for each; where there are fewer, they come again."""
    count = max((len(e.negatives) for e in examples), default=0)
    rows = [
        (asked(e), e.positives[0], *(e.negatives[k % len(e.negatives)] for k in range(count)))
        for e in examples
        if e.negatives or not count
    ]
    return ["query", "positive", *(f"negative_{k}" for k in range(count))], rows


def make_loss(model: CrossEncoder, options: Options) -> Any:
    """sentence-transformers' loss over a model with one label.

    Args:
        model: What is trained.
        options: `loss` and `mini_batch` are read.
    """
    from sentence_transformers.cross_encoder import losses
    from torch.nn import Sigmoid

    if options.loss == "bce":
        return losses.BinaryCrossEntropyLoss(model)
    if options.loss == "mse":
        return losses.MSELoss(model, activation_fn=Sigmoid())
    if options.loss == "margin-mse":
        return losses.MarginMSELoss(model)
    if options.loss == "contrastive":
        return losses.MultipleNegativesRankingLoss(model, num_negatives=None)
    made = {"listwise": losses.ListNetLoss, "lambda": losses.LambdaLoss, "ranknet": losses.RankNetLoss}[options.loss]
    return made(model, mini_batch_size=options.mini_batch or -1)

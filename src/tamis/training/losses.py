"""Losses that sentence-transformers lacks: pure functions of similarities and vectors, and modules that wire them.

Preferences (REPLUG, Shi et al. 2023, arXiv 2301.12652, section 4; RAG-Retrieval's flat variant), embedding distillation
(Zhang et al. 2024, "Jasper and Stella", arXiv 2412.19048, section 3), Matryoshka adaptors (Yoon et al. 2024, arXiv
2407.20243). Everything is float32 or wider, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

Features = dict[str, Any]
PAIRS = 2048  # of one batch: the relative loss compares every pair with every other


def replug_kl(similarities: Tensor, values: Tensor, gamma: float, beta: float) -> Tensor:
    """KL(P || Q), the mean over queries: P = softmax(similarities / gamma), Q = softmax(values / beta), over a row.

    The direction is REPLUG's: the retriever's distribution first, so that it is pulled off passages that the language
    model has no use for.

    Args:
        similarities: Of each query to its own passages, (B, k).
        values: What the language model makes of each passage, (B, k); minus infinity where a row has fewer than k.
        gamma: The retriever's temperature.
        beta: The language model's.

    >>> round(replug_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.75, 0.25]]).log(), 1.0, 1.0).item(), 4)
    0.1438
    """
    missing = torch.isneginf(values)
    log_p = (similarities.float() / gamma).masked_fill(missing, -torch.inf).log_softmax(1).masked_fill(missing, 0)
    log_q = (values.float() / beta).log_softmax(1).masked_fill(missing, 0)
    p = log_p.exp().masked_fill(missing, 0)
    return (p * (log_p - log_q)).sum(1).mean()


def flat_kl(similarities: Tensor, values: Tensor, temperature: float) -> Tensor:
    """RAG-Retrieval's `pair_kl_loss`: one softmax over a whole batch of pairs, whatever queries they belong to.

    `sum_i Q_i (log Q_i - log P_i) / n`, with P = softmax(similarities / T), Q = softmax(values / T). For comparison:
    distributions of different queries are mixed, and a batch of n pairs is divided by n though it is one distribution.

    Args:
        similarities: Of each query to its passage, (n,).
        values: What the language model makes of it, (n,).
        temperature: T of both.

    >>> round(flat_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.75, 0.25]).log(), 1.0).item(), 4)
    0.0654
    """
    log_p = (similarities.float() / temperature).log_softmax(0)
    return F.kl_div(log_p, (values.float() / temperature).softmax(0), reduction="batchmean")


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos, the mean over rows; both (n, d)."""
    return (1 - F.cosine_similarity(student.float(), teacher.float())).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the two matrices of cosines; (n, d) and (n, e)."""
    return F.mse_loss(_cosines(student), _cosines(teacher))


def relative_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Pairs of texts that the teacher finds more alike than other pairs should be so for the student, by a margin.

    The mean of `max(0, s_mn - s_ij + margin)` over all pairs of pairs with `t_ij > t_mn`, i < j and m < n. Of more than
    `PAIRS` pairs as many are drawn.

    Args:
        student: (n, d).
        teacher: (n, e).
        margin: By how much.
    """
    rows, columns = torch.triu_indices(len(student), len(student), 1, device=student.device)
    if len(rows) > PAIRS:
        drawn = torch.randperm(len(rows), device=rows.device)[:PAIRS]
        rows, columns = rows[drawn], columns[drawn]
    theirs, mine = _cosines(teacher)[rows, columns], _cosines(student)[rows, columns]
    more = theirs[:, None] > theirs[None, :]
    return (F.relu(mine[None, :] - mine[:, None] + margin) * more).sum() / more.sum().clamp_min(1)


def _cosines(vectors: Tensor) -> Tensor:
    unit = F.normalize(vectors.float(), dim=1)
    return unit @ unit.T


class PreferenceLoss(nn.Module):
    """`replug_kl` for a SentenceTransformer; columns query, passage_0 ... passage_k-1, label (k values a row).

    Args:
        model: The student.
        gamma: The retriever's temperature.
        beta: The language model's.
    """

    def __init__(self, model: Any, gamma: float = 0.05, beta: float = 0.1) -> None:
        super().__init__()
        self.model, self.gamma, self.beta = model, gamma, beta

    def forward(self, features: Iterable[Features], labels: Tensor) -> Tensor:
        """The loss of a batch."""
        query, *passages = _embedded(self.model, features)
        similarities = torch.stack([F.cosine_similarity(query, p) for p in passages], 1)  # (B, k)
        return replug_kl(similarities, labels, self.gamma, self.beta)


class FlatPreferenceLoss(nn.Module):
    """`flat_kl` for a SentenceTransformer; columns query, passage, label.

    Args:
        model: The student.
        temperature: Of both sides.
    """

    def __init__(self, model: Any, temperature: float = 0.02) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, features: Iterable[Features], labels: Tensor) -> Tensor:
        """The loss of a batch."""
        query, passage = _embedded(self.model, features)
        return flat_kl(F.cosine_similarity(query, passage), labels, self.temperature)


class EmbeddingDistillationLoss(nn.Module):
    """Stella's and Jasper's: `10 cosine + 200 similarity + 20 relative`, and the last two at smaller dimensions too.

    Columns: text, label (the teacher's vector). The student's full vector has the teacher's width where the first term
    has a weight.

    Args:
        model: The student.
        dims: Leading dimensions at which the student's similarities are held to the teacher's; their mean counts.
        weights: Of the cosine, similarity and relative terms.
        margin: Of the relative term.
    """

    def __init__(
        self,
        model: Any,
        dims: Sequence[int],
        weights: tuple[float, float, float] = (10.0, 200.0, 20.0),
        margin: float = 0.015,
    ) -> None:
        super().__init__()
        self.model, self.dims, self.weights, self.margin = model, tuple(dims), weights, margin

    def forward(self, features: Iterable[Features], labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms of a batch, by name; the trainer adds them up and logs each."""
        [student] = _embedded(self.model, features)
        cosine, similarity, relative = self.weights
        terms = {}
        if cosine:
            terms["cosine"] = cosine * cosine_loss(student, labels)
        if similarity:
            terms["similarity"] = similarity * self._mean(student, lambda x: similarity_loss(x, labels))
        if relative:
            terms["relative"] = relative * self._mean(student, lambda x: relative_loss(x, labels, self.margin))
        return terms

    def _mean(self, student: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([loss(student[:, :dim]) for dim in self.dims]).mean()


class MatryoshkaAdaptorLoss(nn.Module):
    """Truncated vectors that rank as the full ones do; where there are labels, that also find the answer.

    For each number of leading dimensions d, over all passages of the batch (positives and negatives of every query):
    `KL(softmax(full / T) || softmax(truncated_d / T)) + label_weight * CE(truncated_d / T, positive)`. The full
    similarities are the model's own, and no gradient goes through them. Columns: query, positive, negative_0 ...

    Args:
        model: A SentenceTransformer whose last linear layer is learnt.
        dims: Numbers of leading dimensions, below the full width.
        temperature: T.
        label_weight: Of the second term.
    """

    def __init__(self, model: Any, dims: Sequence[int], temperature: float = 0.05, label_weight: float = 0.3) -> None:
        super().__init__()
        self.model, self.dims = model, tuple(dims)
        self.temperature, self.label_weight = temperature, label_weight

    def forward(self, features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The two terms of a batch, each the mean over the dimensions."""
        query, *passages = _embedded(self.model, features)
        passage = torch.cat(passages)
        with torch.no_grad():
            full = self._similarities(query, passage, query.shape[1])
        own = torch.eye(*full.shape, dtype=torch.bool, device=full.device)
        copies = (full - full[own][:, None]).abs() < 1e-5 / self.temperature  # of the positive; they are no negatives,
        copies[:, : len(query)] |= _cosines(query) > 1 - 1e-6  # nor are other positives of the same query
        copies &= ~own
        places = torch.arange(len(query), device=full.device)
        kept, found = [], []
        for dim in self.dims:
            logits = self._similarities(query, passage, dim)
            kept.append(F.kl_div(logits.log_softmax(1), full.softmax(1), reduction="batchmean"))
            found.append(F.cross_entropy(logits.masked_fill(copies, -torch.inf), places))
        return {"kept": torch.stack(kept).mean(), "found": self.label_weight * torch.stack(found).mean()}

    def _similarities(self, query: Tensor, passage: Tensor, dim: int) -> Tensor:
        return F.normalize(query[:, :dim], dim=1) @ F.normalize(passage[:, :dim], dim=1).T / self.temperature


def _embedded(model: Any, features: Iterable[Features]) -> list[Tensor]:
    """One matrix of vectors for each column."""
    return [model(column)["sentence_embedding"] for column in features]

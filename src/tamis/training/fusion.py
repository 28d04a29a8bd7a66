"""Fusion of a cross-encoder with a bi-encoder: how much of the similarity to add, fitted to known answers.

A small cross-encoder knows what it was trained on; the bi-encoder, which was trained on far more, still knows the
rest. What is fitted are three numbers, so that little data is enough and little can be learnt by heart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection
from tamis.evaluation.first_stage import TOP, bm25_run
from tamis.evaluation.measures import MAIN, measured
from tamis.evaluation.ranking import checked, timed
from tamis.extras import need
from tamis.families.fusion import FILE
from tamis.scorers.fusion import Blend
from tamis.scorers.overlap import Counts, Overlap, count

if TYPE_CHECKING:
    from tamis.reranker import Reranker

COUNTED = 5000  # texts of a collection
WEIGHTS = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0, 20.0, 25.0, 30.0, 40.0)

Logits: TypeAlias = Mapping[str, Mapping[str, float]]  # of passages, by query


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fuse` found.

    Attributes:
        blend: The three numbers.
        quality: The mean nDCG@10 over the collections, by weight.
    """

    blend: Blend
    quality: Mapping[float, float]


def fuse(
    cross: Reranker,
    similar: Reranker,
    collections: Sequence[Collection],
    *,
    weights: Sequence[float] = WEIGHTS,
    tolerance: float = 0.0,
    prior: float | None = None,
    lexical: float = 0.0,
    overlap: Overlap | None = None,
    top: int = TOP,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Fitted:
    """Fits how two rerankers' logits are added, over what BM25 finds.

    The weight is that of the highest mean nDCG@10, every collection counting alike; of equal ones, or of all within the
    tolerance, it is the highest weight. (Where the collections are like what the cross-encoder was trained on, and what
    it will read is not, the bi-encoder deserves more than they show.) Scale and offset then make the sigmoid the
    probability that one of BM25's best is relevant (Platt).

    Args:
        cross: In cross-encoder mode.
        similar: In bi-encoder mode.
        collections: What is known; neither model should have been trained on its queries.
        weights: Those that are tried.
        tolerance: The share of the highest nDCG@10 that may be given up for a higher weight, in [0, 1).
        prior: The share of relevant passages for which the score is a probability; None is the share among what BM25
            finds here. It moves the offset by the difference of their log odds.
        lexical: The weight of the words in common, which is not fitted: collections on which BM25 is the first stage,
            and the cross-encoder at home, do not show what it is worth elsewhere.
        overlap: What measures them, where that weight is not 0.
        top: How many of BM25's best are scored.
        limit: Queries of each collection at most, drawn with the seed.
        seed: Of what is drawn.
        progress: Show progress bars on a terminal's standard error.

    Raises:
        InvalidInput: There is nothing to fit to: nothing relevant was found, or nothing else.
        MissingExtra: ir-measures or scikit-learn is not installed.
    """
    need("ir_measures", "eval", "A fit")
    need("sklearn", "train", "A fit")
    if not weights or not all(weight >= 0 for weight in weights):
        raise InvalidInput(f"weights is {weights!r}; pass numbers of at least 0.")
    if not lexical >= 0 or (lexical > 0 and overlap is None):
        raise InvalidInput(f"lexical is {lexical!r}; pass a number of at least 0, and overlap= with one above it.")
    if not 0 <= tolerance < 1:
        raise InvalidInput(f"tolerance is {tolerance!r}; pass a share in [0, 1).")
    if prior is not None and not 0 < prior < 1:
        raise InvalidInput(f"prior is {prior!r}; pass a share above 0 and below 1.")
    beside = partial(_worth, overlap, lexical)
    scored = [
        _scored(collection.limited(limit, seed), cross, similar, beside, top, progress)
        for collection in checked(collections)
    ]
    quality = {weight: float(np.mean([one.quality(weight) for one in scored])) for weight in sorted(weights)}
    least = (1 - tolerance) * max(quality.values())
    weight = max(weight for weight, value in quality.items() if value >= least)
    return Fitted(Blend(weight, *_calibrated(scored, weight, prior), lexical), quality)


def count_pieces(folder: Path, collections: Sequence[Collection]) -> Counts:
    """What is known of words for `Overlap`, from the texts of collections: at most `COUNTED` of each.

    Args:
        folder: Of the cross-encoder, whose tokenizer splits them.
        collections: The more they are like what will be read, the better.
    """
    texts: list[str] = []
    for collection in checked(collections):
        passages = list(collection.corpus.values())
        texts += [passage.text for passage in passages[:: max(1, -(-len(passages) // COUNTED))]]
    return count(folder, texts)


def write_fusion(folder: Path, bi_encoder: str, blend: Blend) -> None:
    """Writes the file that makes a cross-encoder's folder a fusion; see `tamis.families.fusion`.

    Args:
        folder: The cross-encoder's.
        bi_encoder: A folder, a hub id or "embedded".
        blend: The numbers.
    """
    text = json.dumps({"bi_encoder": bi_encoder, **asdict(blend)}, indent=2) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Scored:
    """A collection's answerable queries: what is relevant, and both logits, words in common added to the first."""

    relevant: Mapping[str, Mapping[str, int]]
    cross: Logits
    similar: Logits

    def quality(self, weight: float) -> float:
        ranked = {}
        for query, logits in self.cross.items():
            beside = self.similar[query]
            ranked[query] = sorted(logits, key=lambda name: -logits[name] - weight * beside[name])
        return float(measured(self.relevant, ranked)[MAIN].mean())

    def pairs(self, weight: float) -> tuple[list[float], list[bool]]:
        names = [(query, name) for query, logits in self.cross.items() for name in logits]
        logits = [self.cross[query][name] + weight * self.similar[query][name] for query, name in names]
        return logits, [self.relevant[query].get(name, 0) > 0 for query, name in names]


def _worth(overlap: Overlap | None, weight: float, query: str, passages: Sequence[str]) -> NDArray[np.float64]:
    """What words in common add to each passage's logit."""
    return np.zeros(len(passages)) if overlap is None else weight * overlap(query, passages)


def _scored(
    collection: Collection,
    cross: Reranker,
    similar: Reranker,
    beside: Callable[[str, Sequence[str]], NDArray[np.float64]],
    top: int,
    progress: bool,
) -> _Scored:
    relevant = {query: collection.qrels[query] for query in collection.answerable()}
    if not relevant:
        raise InvalidInput(f"{collection.name} has no query with a relevant passage; leave it out.")
    run = bm25_run(collection, top, queries=relevant)
    found = []
    for reranker in (cross, similar):
        rankings, _ = timed(reranker.mode, reranker, collection, run, progress)
        found.append({q: {str(hit.passage.id): hit.logit for hit in rankings[q]} for q in relevant})
    for query, logits in found[0].items():
        texts = [collection.corpus[name].text for name in logits]
        more = beside(collection.queries[query].text, texts)
        found[0][query] = dict(zip(logits, np.array(list(logits.values())) + more, strict=True))
    return _Scored(relevant, *found)


def _calibrated(scored: Sequence[_Scored], weight: float, prior: float | None) -> tuple[float, float]:
    from tamis.training.calibration import platt

    logits: list[float] = []
    labels: list[bool] = []
    for one in scored:
        mine, theirs = one.pairs(weight)
        logits += mine
        labels += theirs
    relevant: NDArray[np.bool_] = np.array(labels, np.bool_)
    if not relevant.any() or relevant.all():
        raise InvalidInput("BM25 found nothing relevant, or nothing else; pass collections with more queries.")
    scale, offset = platt(np.array(logits), relevant)
    if scale <= 0:
        raise InvalidInput(f"Relevant passages have lower logits (scale {scale:.3g}); are both models rerankers?")
    if prior is not None:
        offset += _log_odds(prior) - _log_odds(float(relevant.mean()))
    return round(scale, 4), round(offset, 4)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))

"""What each architecture needs to run packed: where positions start, its head, and a patch for two of them.

Heads are taken from transformers' own `...ForSequenceClassification` classes, whose modules index the first token of
each row: they are fed that token alone, or the mean, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import relu

from tamis.engine.packing import Layout
from tamis.engine.patches import patch_deberta_v2, patch_mpnet
from tamis.engine.pooling import Pool, cls, last, mean

Readout: TypeAlias = Callable[[Tensor, Layout], Tensor]
"""From packed hidden states (T, d) to one row of float32 for each sequence, (B, k)."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type` of transformers.

    Attributes:
        head: Takes the classification model's head, in float32.
        positions_after_padding: Position ids start at `pad_token_id + 1` instead of 0.
        patch: Teaches an architecture that does not call transformers' attention interface to run packed.
        bert_layers: Its layers have the shape of BERT's, and its head reads the first token of each sequence alone.
        decoder: It is causal unless its config says otherwise, and its classification head is `decoder_head`.
    """

    head: Callable[[Any], Readout]
    positions_after_padding: bool = False
    patch: Callable[[Any], None] | None = None
    bert_layers: bool = False
    decoder: bool = False

    def first_position(self, config: Any) -> int:
        """The position id of a sequence's first token."""
        return int(config.pad_token_id) + 1 if self.positions_after_padding else 0


def _pooler_and_classifier(model: Any) -> Readout:
    pooler, classifier = model.base_model.pooler.float(), model.classifier.float()
    return lambda hidden, layout: classifier(pooler(cls(hidden, layout)[:, None]))


def _context_pooler(model: Any) -> Readout:
    pooler, classifier = model.pooler.float(), model.classifier.float()
    return lambda hidden, layout: classifier(pooler(cls(hidden, layout)[:, None]))


def _classification_head(model: Any) -> Readout:
    classifier = model.classifier.float()
    return lambda hidden, layout: classifier(cls(hidden, layout)[:, None])


def _albert(model: Any) -> Readout:
    pooler, classifier = model.albert.pooler.float(), model.classifier.float()
    activation = model.albert.pooler_activation
    return lambda hidden, layout: classifier(activation(pooler(cls(hidden, layout))))


def _distilbert(model: Any) -> Readout:
    first, classifier = model.pre_classifier.float(), model.classifier.float()
    return lambda hidden, layout: classifier(relu(first(cls(hidden, layout))))


def _modernbert(model: Any) -> Readout:
    pool: Pool = mean if model.config.classifier_pooling == "mean" else cls
    head, classifier = model.head.float(), model.classifier.float()
    return lambda hidden, layout: classifier(head(pool(hidden, layout)))


def _eurobert(model: Any) -> Readout:
    head = torch.nn.Sequential(model.dense.float(), model.activation, model.classifier.float())
    if model.config.classifier_pooling == "late":  # every token is classified, and the logits are averaged
        return lambda hidden, layout: mean(head(hidden.float()), layout)
    pool: Pool = mean if model.config.classifier_pooling == "mean" else cls
    return lambda hidden, layout: head(pool(hidden, layout))


def decoder_head(model: Any) -> Readout:
    """One linear layer on the pooled states, by the config's `pooling` (the last token if it has none).

    A `head_temperature` divides the logits. Transformers' own classes pool the last token only.
    """
    config, score = model.config, model.score.float()
    pool: Pool = {"avg": mean, "cls": cls, "last": last}[pooling_of(config)]
    temperature = float(getattr(config, "head_temperature", 1.0))
    return lambda hidden, layout: score(pool(hidden, layout)) / temperature


def pooling_of(config: Any) -> str:
    """How a decoder with a head pools: "avg", "cls" or "last"."""
    return getattr(config, "pooling", None) or "last"


DECODERS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "smollm3", "olmo2",
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(DECODERS, Architecture(decoder_head, decoder=True)),
    "bert": Architecture(_pooler_and_classifier, bert_layers=True),
    "dpr": Architecture(_pooler_and_classifier, bert_layers=True),  # a BERT, never with a head
    "roberta": Architecture(_classification_head, positions_after_padding=True, bert_layers=True),
    "xlm-roberta": Architecture(_classification_head, positions_after_padding=True, bert_layers=True),
    "camembert": Architecture(_classification_head, positions_after_padding=True, bert_layers=True),
    "distilbert": Architecture(_distilbert),
    "electra": Architecture(_classification_head, bert_layers=True),
    "albert": Architecture(_albert),
    "modernbert": Architecture(_modernbert),
    "gte": Architecture(_pooler_and_classifier),
    "nomic_bert": Architecture(_pooler_and_classifier),
    "jina_bert": Architecture(_pooler_and_classifier),
    "jina_embeddings_v3": Architecture(_classification_head),
    "eurobert": Architecture(_eurobert),
    "mpnet": Architecture(_classification_head, positions_after_padding=True, patch=patch_mpnet),
    "deberta-v2": Architecture(_context_pooler, patch=patch_deberta_v2),
}

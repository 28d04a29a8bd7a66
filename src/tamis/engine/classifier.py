"""A classification model as a runner: its body with its own head in float32, or whole and padded."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from tamis.engine.architectures import DECODERS, Architecture, decoder_head, pooling_of
from tamis.engine.backbone import TOLERANCE, Backbone, Readable, WholeModel, probe
from tamis.engine.device import Runner
from tamis.engine.sequences import Tokens
from tamis.engine.wide import widen_head

_CHECK_LENGTHS = (12, 31)
_CHARACTERS = 128


@torch.inference_mode()
def classifier_runner(
    model: Any, architecture: Architecture | None, pad_id: int | None, longest: int, *, pack: bool = True
) -> Runner:
    """The fastest runner that gives the model's own logits.

    The head is taken off the model and computed in float32, so that both are compared before it is trusted: first the
    hidden states, packed against one sequence at a time, then the head's logits against the whole model's.

    Args:
        model: A transformers `...ForSequenceClassification` on its device.
        architecture: How to run its body packed, and its head; None runs it whole and padded.
        pad_id: Fills up padded batches.
        longest: Tokens that it reads at most.
        pack: Whether the body runs without padding.
    """
    packs = architecture if pack else None
    if model.config.model_type in DECODERS:
        return _decoder_runner(model, packs, pad_id, longest)
    whole = WholeModel(model, pad_id)
    if architecture is None:
        widen_head(model, whole, _whole_samples(model, longest))
        return whole
    vocabulary, dtype = model.config.vocab_size, model.dtype
    samples = [probe(min(length, longest), vocabulary, model.config) for length in _CHECK_LENGTHS]
    expected = np.stack([whole.run([tokens])[0] for tokens in samples])
    body = model.base_model
    head, pooler = architecture.head(model), getattr(body, "pooler", None)
    if pooler is not None:
        body.pooler = None  # the head has it now, in float32
    encoder = Backbone(body, packs, pad_id or 0)
    encoder.check(vocabulary, longest)
    runner = Readable(encoder, head)
    difference = float(np.abs(np.stack(runner.run(samples)) - expected).max())
    if difference <= 10 * TOLERANCE[dtype] * max(1.0, float(np.abs(expected).max())):
        encoder.tune(vocabulary, longest, first_only=architecture.bert_layers)
        return runner
    how = "whole and padded, which is slower" if pack else "whole"
    warnings.warn(
        f"The head of {type(model).__name__}, taken off, gives logits that differ from the whole model's by "
        f"{difference:.1e}; the model runs {how}. Please report the architecture.",
        stacklevel=2,
    )
    if pooler is not None:
        body.pooler = pooler
    model.to(dtype)
    widen_head(model, whole, samples)
    return whole


def _whole_samples(model: Any, longest: int) -> list[Tokens]:
    """Sequences for a model that nobody knows: they end as it may insist on, and characters may be all it reads."""
    config = model.config.get_text_config()
    vocabulary, end = getattr(config, "vocab_size", _CHARACTERS), getattr(config, "eos_token_id", None)
    samples = [probe(min(length, longest), vocabulary, config) for length in _CHECK_LENGTHS]
    for tokens in samples:
        if isinstance(end, int):
            tokens.ids[-1] = end
    return samples


def _decoder_runner(model: Any, architecture: Architecture | None, pad_id: int | None, longest: int) -> Runner:
    """A decoder with a linear head. Its stock class pools the last token that is not padding by its id; ours knows."""
    config, body = model.config, model.base_model
    causal = getattr(config, "is_causal", True)
    for module in body.modules():
        if not causal and hasattr(module, "is_causal"):
            module.is_causal = False
    shares = architecture is not None and causal and pooling_of(config) == "last"
    backbone = Backbone(body, architecture, pad_id or 0, shares=shares)
    backbone.check(config.vocab_size, longest)
    backbone.tune(config.vocab_size, longest, first_only=False)
    return Readable(backbone, decoder_head(model))

"""A classification model as a runner: packed with its own head, or whole and padded."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from tamis.engine.architectures import Architecture
from tamis.engine.backbone import TOLERANCE, Backbone, Readable, WholeModel, probe
from tamis.engine.device import Runner

_CHECK_LENGTHS = (12, 31)


@torch.inference_mode()
def classifier_runner(model: Any, architecture: Architecture | None, pad_id: int | None, longest: int) -> Runner:
    """The fastest runner that gives the model's own logits.

    The packed form takes the head off the model, so that both are compared before it is trusted: first the hidden
    states, packed against one sequence at a time, then the head's logits against the whole model's.
    """
    whole = WholeModel(model, pad_id)
    if architecture is None:
        return whole
    vocabulary, dtype = model.config.vocab_size, model.dtype
    samples = [probe(min(length, longest), vocabulary, model.config) for length in _CHECK_LENGTHS]
    expected = np.stack([whole.run([tokens])[0] for tokens in samples])
    body = model.base_model
    head, pooler = architecture.head(model), getattr(body, "pooler", None)
    if pooler is not None:
        body.pooler = None  # the head has it now, in float32
    encoder = Backbone(body, architecture, pad_id or 0)
    encoder.check(vocabulary, longest)
    runner = Readable(encoder, head)
    difference = float(np.abs(np.stack(runner.run(samples)) - expected).max())
    if difference <= 10 * TOLERANCE[dtype] * max(1.0, float(np.abs(expected).max())):
        encoder.tune(vocabulary, longest, first_only=architecture.bert_layers)
        return runner
    warnings.warn(
        f"The head of {type(model).__name__}, taken off, gives logits that differ from the whole model's by "
        f"{difference:.1e}; the model runs whole and padded, which is slower. Please report the architecture.",
        stacklevel=2,
    )
    if pooler is not None:
        body.pooler = pooler
    model.to(dtype)
    return whole

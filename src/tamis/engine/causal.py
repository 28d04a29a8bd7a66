"""A causal language model as a runner: a few rows of its vocabulary at the last token, and nothing else computed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamis.engine.architectures import Architecture, Readout
from tamis.engine.backbone import TOLERANCE, Backbone, Readable, probe, to_numpy
from tamis.engine.device import Runner
from tamis.engine.pooling import last
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.engine.wide import widen_rows

logger = logging.getLogger(__name__)

_CHECK_LENGTHS = (12, 31)
_SLACK = 3  # times the tolerance of a hidden state; a head with a factor of its own is further off


@torch.inference_mode()
def causal_runner(
    model: Any, architecture: Architecture | None, pad_id: int | None, longest: int, rows: Sequence[int]
) -> Runner:
    """Logits of `rows` of the vocabulary at each sequence's last token, (B, len(rows)) float32.

    The head is cut down to those rows, so that memory and time do not grow with the vocabulary; then a few sequences
    are compared with the whole model's own logits. A model whose head does something else besides runs whole.

    Args:
        model: A transformers `...ForCausalLM` on its device.
        architecture: How to run its body packed; None runs it padded.
        pad_id: Fills up padded batches.
        longest: Tokens that it reads at most.
        rows: Ids of the vocabulary.
    """
    whole = WholeCausal(model, rows)
    vocabulary = model.config.get_text_config().vocab_size
    samples = [probe(min(length, longest), vocabulary, model.config) for length in _CHECK_LENGTHS]
    expected = np.stack([whole.run([tokens])[0] for tokens in samples])
    body, readout = model.base_model, vocabulary_rows(model, rows)
    backbone = Backbone(body, architecture, pad_id or 0, shares=architecture is not None)
    backbone.check(vocabulary, longest)
    runner = Readable(backbone, readout)
    difference = float(np.abs(np.stack(runner.run(samples)) - expected).max())
    if difference <= _SLACK * TOLERANCE[model.dtype] * max(1.0, float(np.abs(expected).max())):
        model.lm_head = None  # unless it is tied to the embeddings, its memory is free again
        backbone.tune(vocabulary, longest, first_only=False)
        return runner
    logger.info("%s runs with its whole head: its logits differ by %.1e.", type(model).__name__, difference)
    widen_rows(model, rows, whole, samples)
    return whole


def vocabulary_rows(model: Any, rows: Sequence[int]) -> Readout:
    """The logits of some rows of the vocabulary at the last token, in float32, with the head's scale and bound."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    weight = head.weight[list(rows)].float()  # (k, d)
    bias = 0.0 if getattr(head, "bias", None) is None else head.bias[list(rows)].float()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def read(hidden: Tensor, layout: Any) -> Tensor:
        logits = (last(hidden, layout) @ weight.T + bias) * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return read


class WholeCausal:
    """A causal language model with a head that Tamis does not know: its own forward pass, equal lengths together."""

    padded = False
    shares = False

    def __init__(self, model: Any, rows: Sequence[int]) -> None:
        self._model = model
        self._rows = list(rows)
        self._device = next(model.parameters()).device
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def survives_fork(self) -> bool:
        """True on a CPU."""
        return self._device.type == "cpu"

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """The rows' logits at each last token, float32, (k,) each."""
        out: dict[int, Any] = {}
        for length in {len(tokens) for tokens in batch}:
            places = [i for i, tokens in enumerate(batch) if len(tokens) == length]
            ids = torch.from_numpy(np.stack([batch[i].ids for i in places]).astype(np.int64)).to(self._device)
            logits = self._model(input_ids=ids, use_cache=False, **self._options).logits[:, -1, self._rows]
            out.update(zip(places, to_numpy(logits), strict=True))
        return [out[i] for i in range(len(batch))]

    def free(self) -> None:
        """Drops the model, and gives CUDA's cached memory back."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

"""T5 as a runner: the encoder packed, one step of the decoder, and a few rows of the vocabulary.

The decoder reads one token, so that its attention over the passage needs no keys and values: `q (W x) = (W^T q) x`
scores the encoder's states directly, and the states are averaged before they are projected. Of a layer with H heads of
D dimensions that is 1/D of the work on the passage, and exact.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tamis.engine.architectures import Architecture, Readout
from tamis.engine.backbone import TOLERANCE, Backbone, Readable, padded_inputs, probe, to_numpy
from tamis.engine.device import Runner
from tamis.engine.packing import Layout, current, packed
from tamis.engine.patches import by_runs
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.engine.wide import widen_rows

logger = logging.getLogger(__name__)

_CHECK_LENGTHS = (12, 31)


@torch.inference_mode()
def seq2seq_runner(model: Any, start: int, longest: int, rows: Sequence[int], *, pack: bool = True) -> Runner:
    """Logits of `rows` of the vocabulary at the decoder's first step, (B, len(rows)) float32.

    A few sequences are compared with the whole model's own logits; one whose head does something else runs whole.

    Args:
        model: A transformers T5 or mT5 `...ForConditionalGeneration` on its device.
        start: The token that the decoder begins with.
        longest: Tokens that the encoder reads at most.
        rows: Ids of the vocabulary.
        pack: Whether the encoder runs without padding.
    """
    whole = WholeSeq2Seq(model, start, rows)
    vocabulary, pad_id = model.config.vocab_size, model.config.pad_token_id or 0
    samples = [probe(min(length, longest), vocabulary, model.config) for length in _CHECK_LENGTHS]
    expected = np.stack([whole.run([tokens])[0] for tokens in samples])
    step = first_step(model, start, rows)
    backbone = Backbone(model.encoder, Architecture(lambda _: step, patch=patch_encoder) if pack else None, pad_id)
    backbone.check(vocabulary, longest)
    runner = Readable(backbone, step)
    difference = float(np.abs(np.stack(runner.run(samples)) - expected).max())
    if difference <= 10 * TOLERANCE[model.dtype] * max(1.0, float(np.abs(expected).max())):
        model.lm_head = None  # unless it is tied to the embeddings, its memory is free again
        return runner
    logger.info("%s runs whole: its logits differ by %.1e.", type(model).__name__, difference)
    widen_rows(model, rows, whole, samples)
    return whole


def first_step(model: Any, start: int, rows: Sequence[int]) -> Readout:
    """From the encoder's packed states (T, d) to the logits of `rows` at the decoder's first position, float32.

    T5 v1.0 ties its head to the embeddings and scales what goes into it by `d ** -0.5`; v1.1 and mT5 do neither.
    """
    decoder, config = model.decoder, model.config
    patch_decoder(decoder)
    scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
    weight = model.lm_head.weight[list(rows)].float() * scale  # (k, d)

    def read(hidden: Tensor, layout: Layout) -> Tensor:
        first = torch.full((len(layout.spans), 1), start, device=hidden.device)
        with packed(layout):
            out: Tensor = decoder(input_ids=first, encoder_hidden_states=hidden[None], use_cache=False)[0]
        return out[:, 0].float() @ weight.T

    return read


def patch_encoder(encoder: Any) -> None:
    """Attention by runs of equal length, with one relative position bias of the longest sequence's size."""
    for block in encoder.block:
        attention = block.layer[0].SelfAttention
        attention.forward = partial(_self_attention, attention, attention.forward)


def patch_decoder(decoder: Any) -> None:
    """Inside a packed pass, the one token of each sequence reads that sequence's part of the encoder's states."""
    for block in decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.forward = partial(_cross_attention, attention, attention.forward)


def _self_attention(
    module: Any, original: Callable[..., Any], hidden: Tensor, *, position_bias: Tensor | None = None, **kwargs: Any
) -> Any:
    layout = current()
    if layout is None:
        return original(hidden, position_bias=position_bias, **kwargs)
    if position_bias is None:  # in the first layer, which has the weights; the others are handed the same
        longest = max(layout.lengths)
        position_bias = module.compute_bias(longest, longest, device=hidden.device)  # (1, H, longest, longest)
    bias = position_bias
    query, key, value = (
        project(hidden).unflatten(-1, (module.n_heads, -1)) for project in (module.q, module.k, module.v)
    )

    def attend(rows: slice, count: int, length: int) -> Tensor:
        q, k, v = (x[0, rows].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias[:, :, :length, :length], scale=1.0)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)  # (count * length, H * D)

    return module.o(by_runs(layout, attend)), bias, None


def _cross_attention(
    module: Any,
    original: Callable[..., Any],
    hidden: Tensor,
    *,
    key_value_states: Tensor,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The decoder's (B, 1, d) over the encoder's (1, T, d); T5 has no bias here, and does not scale its products."""
    layout = current()
    if layout is None:
        return original(hidden, key_value_states=key_value_states, position_bias=position_bias, **kwargs)
    heads = (module.n_heads, module.key_value_proj_dim)
    query = module.q(hidden[:, 0]).unflatten(-1, heads)  # (B, H, D)
    asked = torch.einsum("bhd,hdm->bhm", query, module.k.weight.unflatten(0, heads))  # (B, H, d)
    outs, done = [], 0
    for row, count, length, *_ in layout.runs:
        states = key_value_states[0, row : row + count * length].unflatten(0, (count, length))
        products = asked[done : done + count] @ states.transpose(1, 2)  # (count, H, length)
        outs.append(torch.softmax(products.float(), dim=-1).to(states.dtype) @ states)  # (count, H, d)
        done += count
    value = torch.einsum("bhm,hdm->bhd", torch.cat(outs), module.v.weight.unflatten(0, heads))  # (B, H, D)
    return module.o(value.flatten(1))[:, None], None, None


class WholeSeq2Seq:
    """An encoder-decoder's own forward pass, padded on the right; T5's encoder has no positions that padding moves."""

    padded = True
    shares = False

    def __init__(self, model: Any, start: int, rows: Sequence[int]) -> None:
        self._model = model
        self._start = start
        self._rows = list(rows)
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._device = next(model.parameters()).device

    @property
    def survives_fork(self) -> bool:
        """True on a CPU."""
        return self._device.type == "cpu"

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """The rows' logits at the decoder's first step, float32, (k,) each."""
        inputs = padded_inputs(batch, self._model.config.pad_token_id or 0, self._takes, self._device)
        first = torch.full((len(batch), 1), self._start, device=self._device)
        logits = self._model(**inputs, decoder_input_ids=first, use_cache=False).logits
        return list(to_numpy(logits[:, 0, self._rows]))

    def free(self) -> None:
        """Drops the model, and gives CUDA's cached memory back."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

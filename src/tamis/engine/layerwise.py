"""A language model with a head after each of several layers, left at the layer that a sequence asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tamis.engine.architectures import Architecture, Readout
from tamis.engine.backbone import Backbone, Readable
from tamis.engine.compression import Compressing, Compression
from tamis.engine.device import Runner
from tamis.engine.packing import Layout
from tamis.engine.pooling import last


@torch.inference_mode()
def layerwise_runner(
    body: Any,
    readout: Readout,
    architecture: Architecture | None,
    pad_id: int | None,
    longest: int,
    compression: Compression | None = None,
) -> Runner:
    """One value for each sequence, (B, 1) float32, read after the sequence's `layer`; deeper layers are not run.

    Args:
        body: A transformers decoder without a head, on its device.
        readout: See `layer_heads`.
        architecture: How to run it packed; None runs it padded.
        pad_id: Fills up padded batches.
        longest: Tokens that it reads at most.
        compression: How passages lose tokens on their way; only packed.
    """
    shares = architecture is not None
    if compression is None or architecture is None:
        backbone = Backbone(body, architecture, pad_id or 0, shares=shares)
    else:
        backbone = Compressing(body, architecture, pad_id or 0, compression)
    backbone.check(body.config.vocab_size, longest)
    backbone.tune(body.config.vocab_size, longest, first_only=False)
    return Readable(backbone, readout)


def layer_heads(weight: Tensor, layers: range, *, cap: float | None = None, first: bool = False) -> Readout:
    """The last token's product with the head of the layer that the batch was left at, (B, 1) float32.

    Args:
        weight: One head a row, (heads, d) float32.
        layers: After which layer each of them reads.
        cap: Bound c of what is read, `c tanh(x / c)`.
        first: Whether the first head reads every layer.
    """

    def read(hidden: Tensor, layout: Layout) -> Tensor:
        head = 0 if first else layers.index(layout.layer or layers[-1])
        value = last(hidden, layout) @ weight[head][:, None]
        return value if cap is None else torch.tanh(value / cap) * cap

    return read

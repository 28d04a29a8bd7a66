"""A causal model that reads a whole list at once, and whose vectors are read at marked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tamis.engine.architectures import Architecture
from tamis.engine.backbone import Backbone, Readable, to_numpy
from tamis.engine.device import Runner
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens


@torch.inference_mode()
def listwise_runner(
    body: Any,
    architecture: Architecture | None,
    pad_id: int | None,
    longest: int,
    weights: Sequence[Tensor],
    marks: Sequence[int],
) -> Runner:
    """For each sequence a matrix: its marked tokens in their order, projected, (its marks, k) float32.

    Args:
        body: A decoder without its head, on its device.
        architecture: How to run it packed; None runs it padded.
        pad_id: Fills up padded batches.
        longest: Tokens that it reads at most.
        weights: Of linear layers without bias, (out, in) each, with ReLU between them.
        marks: Ids of the marked tokens.
    """
    backbone = Backbone(body, architecture, pad_id or 0)
    backbone.check(body.config.vocab_size, longest)
    backbone.tune(body.config.vocab_size, longest, first_only=False)
    return Marked(backbone, projector(weights).to(backbone.device), marks)


def projector(weights: Sequence[Tensor]) -> nn.Sequential:
    """`W2 relu(W1 x)` in float32, for any number of matrices."""
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.float(), requires_grad=False)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Marked(Readable):
    """A backbone, of whose states only those at marked tokens are projected and kept."""

    def __init__(self, backbone: Backbone, project: nn.Module, marks: Sequence[int]) -> None:
        super().__init__(backbone, lambda hidden, _: project(hidden.float()), per_token=True)
        self._marks = np.array(marks, np.int32)

    def _run(self, batch: Sequence[Tokens]) -> Outputs:
        assert self._backbone is not None  # noqa: S101 - the engine never runs what it freed
        assert self._readout is not None  # noqa: S101
        hidden, layout = self._backbone(batch)
        places = [np.flatnonzero(np.isin(tokens.ids, self._marks)) for tokens in batch]
        rows = np.concatenate([own + span.start for own, span in zip(places, layout.spans, strict=True)])
        marked = hidden[torch.from_numpy(rows).to(hidden.device)]  # (all marks, d)
        return np.split(to_numpy(self._readout(marked, layout)), np.cumsum([len(own) for own in places[:-1]]))

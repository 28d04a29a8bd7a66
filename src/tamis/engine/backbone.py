"""Runs a transformers model over batches of token sequences: packed where it can, padded where it cannot."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tamis.engine.architectures import Architecture, Readout
from tamis.engine.attention import Unpackable
from tamis.engine.cpu import Tuned
from tamis.engine.decoder_parts import UNFIT
from tamis.engine.packing import Layout, ids_of, packed, positions_of, type_ids_of
from tamis.engine.requests import Outputs, Row
from tamis.engine.segments import segments_of
from tamis.engine.sequences import Tokens

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative, in the self-check
_CHECK_LENGTHS = (19, 150, 7)  # one is longer than ModernBERT's local window
_SHARED = 12  # tokens that probes of a model that shares have in common


class Backbone:
    """A transformer body: token sequences in, one hidden state for each token out, end to end.

    Args:
        body: The model without its head, on its device, in evaluation mode.
        architecture: How to run it packed; None runs it padded.
        pad_id: Fills up padded batches; masked, so that any id will do.
        shares: Whether equal beginnings of sequences are run once a batch: only for causal models, and only if no
            token but the last of each sequence is read.
    """

    def __init__(self, body: Any, architecture: Architecture | None, pad_id: int = 0, *, shares: bool = False) -> None:
        self.body = body
        self.device = next(body.parameters()).device
        self.dtype = next(body.parameters()).dtype
        self.packed = architecture is not None
        self._shares = shares
        self._architecture = architecture
        self._first = architecture.first_position(body.config) if architecture else 0
        self._pad_id = pad_id
        self._takes = frozenset(inspect.signature(body.forward).parameters)
        self._layers: Any = getattr(body, "layers", None)
        if architecture is not None and architecture.patch is not None:
            architecture.patch(body)

    @property
    def shares(self) -> bool:
        """Whether equal beginnings are run once a batch."""
        return self._shares and self.packed

    def __call__(self, batch: Sequence[Tokens]) -> tuple[Tensor, Layout]:
        """Hidden states of all tokens, (T, d) in the model's dtype, and where each sequence lies.

        All sequences of a batch leave the model after the same layer; what comes out has gone through its last norm.
        """
        layout = self._layout(batch)
        with self._cut(layout.layer):
            return (self.through if self.packed else partial(self.one_by_row, batch))(layout), layout

    def _layout(self, batch: Sequence[Tokens]) -> Layout:
        rounded = self.packed and self.device.type == "cpu"
        return Layout(segments_of(batch, share=self.shares), self.device, rounded=rounded, layer=batch[0].layer)

    @contextmanager
    def _cut(self, layer: int | None) -> Iterator[None]:
        """Within it, the body has no more than `layer` layers."""
        if layer is None:
            yield
            return
        self.body.layers = self._layers[:layer]
        try:
            yield
        finally:
            self.body.layers = self._layers

    def through(self, layout: Layout) -> Tensor:
        """One packed pass: hidden states of all tokens, (T, d)."""
        inputs = {"input_ids": ids_of(layout)[None]}
        if "position_ids" in self._takes:
            inputs["position_ids"] = positions_of(layout, self._first)[None]
        if "token_type_ids" in self._takes:
            inputs["token_type_ids"] = type_ids_of(layout)[None]
        with packed(layout):
            hidden: Tensor = self.body(**inputs, **self._options())[0]
        return hidden[0, : layout.rows]

    def one_by_row(self, batch: Sequence[Tokens], layout: Layout | None = None) -> Tensor:
        """The ordinary padded pass; its tokens, end to end in the order of the sequences."""
        inputs = padded_inputs(batch, self._pad_id, self._takes, self.device)
        hidden: Tensor = self.body(**inputs, **self._options())[0]
        return torch.cat([row[: len(tokens)] for row, tokens in zip(hidden, batch, strict=True)])

    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if "use_cache" in self._takes else {}

    def check(self, vocabulary: int, longest: int) -> None:
        """Runs three sequences packed and one at a time, and packs no more if that makes a difference."""
        if not self.packed:
            return
        batch = self._probes(vocabulary, longest)
        try:
            together, layout = self(batch)
        except Unpackable as error:
            self.packed = False
            logger.info("%s does not run packed: %s has a term of its own.", type(self.body).__name__, error)
            return
        difference = max(
            relative_difference(together[span], self.one_by_row([tokens])[span.start - span.stop :])
            for tokens, span in zip(batch, layout.spans, strict=True)
        )
        if not difference <= TOLERANCE[self.dtype]:  # NaN included
            self.packed = False
            warnings.warn(
                f"{type(self.body).__name__} computes something else when its sequences are packed (relative "
                f"difference {difference:.1e}); it runs padded, which is slower. Please report the architecture.",
                stacklevel=2,
            )

    def tune(self, vocabulary: int, longest: int, *, first_only: bool) -> None:
        """Makes it faster on a CPU, and takes that back if it makes a difference.

        Args:
            vocabulary: Ids that the probes may have.
            longest: Tokens that they may have.
            first_only: Nobody will read any but the first token of each sequence.
        """
        if self._architecture is None or not self.packed or self.device.type != "cpu":
            return
        batch = self._probes(vocabulary, longest)
        before, layout = self(batch)
        tuned = Tuned(self.body, bert_layers=self._architecture.bert_layers, first_only=first_only)
        try:
            after, _ = self(batch)
        except UNFIT as error:  # a release that calls its modules otherwise
            tuned.take_back()
            logger.info("%s is not tuned for the CPU: %s", type(self.body).__name__, error)
            return
        if first_only:
            before, after = before[layout.first], after[layout.first]
        if not relative_difference(after, before) <= TOLERANCE[self.dtype]:
            tuned.take_back()
            logger.info("%s is not tuned for the CPU: that would change its results.", type(self.body).__name__)

    def _probes(self, vocabulary: int, longest: int) -> list[Tokens]:
        lengths = [min(length, longest) for length in _CHECK_LENGTHS]
        return [probe(length, vocabulary, self.body.config, self._shares) for length in lengths]


class Readable:
    """A backbone and a readout: a `Runner` for the engine.

    Args:
        backbone: Gives hidden states.
        readout: Gives one row for each sequence; or, if `per_token`, for each token.
        per_token: Then a sequence's row is a matrix, (its tokens, k).
    """

    def __init__(self, backbone: Backbone, readout: Readout, *, per_token: bool = False) -> None:
        self._backbone: Backbone | None = backbone
        self._readout: Readout | None = readout
        self._per_token = per_token

    @property
    def padded(self) -> bool:
        """Whether the backbone runs padded."""
        return self._backbone is not None and not self._backbone.packed

    @property
    def shares(self) -> bool:
        """Whether equal beginnings are run once a batch."""
        return self._backbone is not None and self._backbone.shares

    @property
    def survives_fork(self) -> bool:
        """True on a CPU."""
        return self._backbone is not None and self._backbone.device.type == "cpu"

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """The readout of each sequence, float32."""
        rows: dict[int, Row] = {}
        for layer in dict.fromkeys(tokens.layer for tokens in batch):
            places = [i for i, tokens in enumerate(batch) if tokens.layer == layer]
            rows.update(zip(places, self._run([batch[i] for i in places]), strict=True))
        return [rows[i] for i in range(len(batch))]

    def _run(self, batch: Sequence[Tokens]) -> Outputs:
        assert self._backbone is not None  # noqa: S101 - the engine never runs what it freed
        assert self._readout is not None  # noqa: S101
        hidden, layout = self._backbone(batch)
        rows = to_numpy(self._readout(hidden, layout))
        return [rows[span] for span in layout.spans] if self._per_token else list(rows)

    def free(self) -> None:
        """Drops the model, and gives CUDA's cached memory back."""
        self._backbone = self._readout = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class WholeModel:
    """A classification model of an architecture that Tamis does not know: its own forward pass, padded.

    Without a padding token a decoder cannot take rows of several lengths: then each sequence is a batch.
    """

    padded = True
    shares = False

    def __init__(self, model: Any, pad_id: int | None) -> None:
        self._model = model
        self._pad_id = pad_id
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._device = next(model.parameters()).device

    @property
    def survives_fork(self) -> bool:
        """True on a CPU."""
        return self._device.type == "cpu"

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """The model's logits, float32, (B, labels)."""
        groups = [batch] if self._pad_id is not None else [[tokens] for tokens in batch]
        return list(to_numpy(torch.cat([self._logits(group) for group in groups])))

    def _logits(self, batch: Sequence[Tokens]) -> Tensor:
        inputs = padded_inputs(batch, self._pad_id or 0, self._takes, self._device)
        logits: Tensor = self._model(**inputs).logits
        return logits.float()

    def free(self) -> None:
        """Drops the model, and gives CUDA's cached memory back."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def padded_inputs(
    batch: Sequence[Tokens], pad_id: int, takes: frozenset[str], device: torch.device
) -> dict[str, Tensor]:
    """Rows of the longest length, filled up on the right: (B, L) each, with an attention mask."""
    ids = pad_sequence([torch.from_numpy(t.ids.astype(np.int64)) for t in batch], True, pad_id)
    seen = [torch.arange(len(t)) < len(t) - t.unseen for t in batch]
    mask = pad_sequence([s.to(torch.int64) for s in seen], True, 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in takes and batch[0].type_ids is not None:
        types = [torch.from_numpy(np.asarray(t.type_ids, np.int64)) for t in batch]
        inputs["token_type_ids"] = pad_sequence(types, True, 0)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def probe(length: int, vocabulary: int, config: Any, shared: bool = False) -> Tokens:
    """A sequence of ids from all over the vocabulary, without the padding id; the same at every call.

    If `shared`, they all begin with the same tokens.
    """
    ids = (np.arange(1, length + 1) * 7919 + (0 if shared else length)) % vocabulary
    ids[ids == getattr(config, "pad_token_id", None)] = vocabulary - 1
    return Tokens(ids.astype(np.int32), shared=min(_SHARED, length - 1) if shared else 0)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """`|a - b| / |b|`, in float32."""
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def to_numpy(rows: Tensor) -> Row:
    """float32 on the host."""
    return rows.float().cpu().numpy()

"""A causal language model that ranks and writes, on one device: passages' keys and values are kept between requests.

Four kinds of work share its batches. A `Ranked` sequence is system text, passage and question: under causal attention
the keys and values of system text and passage do not depend on the question, so that they are computed once and kept,
and a passage that was seen before costs only the question's tokens. A `Warmed` one stops after its passage. A `Step`
continues a sequence that is being written by one token, or, the first time, by its whole prompt. A `Judged` one ends in
tokens that somebody else chose: how likely they were is what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamis.engine.architectures import Architecture
from tamis.engine.backbone import Backbone, to_numpy
from tamis.engine.keyvalues import Home, KeyValues
from tamis.engine.lm_sequences import Judged, Ranked, Step, Warmed, Writing
from tamis.engine.packing import Layout
from tamis.engine.passages import PassageCache
from tamis.engine.requests import Outputs, Row
from tamis.engine.segments import Segment
from tamis.engine.sequences import Tokens

READ_PER_TOKEN = 16  # kept tokens that cost a batch about as much as one that is run


class LanguageModel:
    """A `Runner` for ranking and writing with one causal model.

    Rows: of a `Ranked` sequence the logits of `labels`, and the logarithm of the sum over the vocabulary without the
    first of them (float32, len(labels) + 1); of a `Step` the tokens written so far; of a `Judged` one the natural
    logarithm of each judged token's probability after all that stands before it (float32, said).

    Args:
        model: A transformers `...ForCausalLM` on its device.
        architecture: How to run its body packed.
        pad_id: For the check of the packed form.
        labels: Rows of the vocabulary that ranking reads.
        passages: Where passages' keys and values are kept.
    """

    padded = False
    shares = False

    def __init__(
        self, model: Any, architecture: Architecture, pad_id: int, labels: Sequence[int], passages: PassageCache
    ) -> None:
        config = model.config.get_text_config()
        self.backbone = Backbone(model.base_model, architecture, pad_id, shares=True)
        self.passages = passages
        self.asked = 0  # tokens of all sequences
        self.computed = 0  # of them, those that were run
        self._head = model.get_output_embeddings()
        self._weight = self._head.weight
        self.set_labels(labels)
        self._scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._systems: dict[bytes, KeyValues] = {}

    @property
    def survives_fork(self) -> bool:
        """True on a CPU."""
        return self.backbone.device.type == "cpu"

    def cost(self, tokens: Tokens) -> int:
        """What a sequence takes of a batch's budget: the tokens to run, and a little for those that they read."""
        if not isinstance(tokens, Ranked) or key_of(tokens.ids[: tokens.end]) not in self.passages:
            return len(tokens)
        return len(tokens) - tokens.end + tokens.end // READ_PER_TOKEN

    @torch.inference_mode()
    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """See the class."""
        segments: list[Segment] = []
        wanted: dict[bytes, int] = {}  # passages to be kept, and their segments
        for number, tokens in enumerate(batch):
            if isinstance(tokens, Step):
                segments.append(self._step(tokens, number))
            elif isinstance(tokens, Ranked):
                self._ranked(tokens, number, segments, wanted)
            elif isinstance(tokens, Judged):
                system = self._system(tokens.ids[: tokens.system])
                segments.append(Segment(tokens, tokens.system, len(tokens), number, stored=system))
        self.asked += sum(map(len, batch))
        if not segments:  # nothing but passages that are kept already, to be warmed
            return [np.zeros(1, np.float32) for _ in batch]
        hidden, layout = self._through(segments)
        for key, place in wanted.items():
            self.passages.put(key, KeyValues(layout.kept[place], len(segments[place])))
        self.computed += layout.rows
        return self._read(batch, hidden, layout)

    def set_labels(self, labels: Sequence[int]) -> None:
        """Chooses the rows of the vocabulary that ranking reads."""
        self._labels = list(labels)
        self._rows = self._weight[self._labels].float()  # (k, d)

    def stats(self) -> Mapping[str, Any]:
        """Tokens asked for and computed since the load, and the passages'."""
        return {"tokens_asked": self.asked, "tokens_computed": self.computed, **self.passages.stats()}

    def logits(self, tokens: Tokens) -> Tensor:
        """All logits (V,) after one plain sequence, float32: for probes at load."""
        hidden, layout = self._through([Segment(tokens, 0, len(tokens), 0)])
        return self._vocabulary(hidden[layout.last])[0]

    def _step(self, tokens: Step, number: int) -> Segment:
        writing = tokens.writing
        if writing.home is None:
            begun = self._known(tokens, writing)
            writing.reused = sum(map(len, begun))
            writing.home = Home(begun, len(tokens) - writing.reused + writing.room)
        done = len(writing.home)
        offset = done if writing.tokens else 0  # a prompt brings what is known of it already, and that is not run
        return Segment(tokens, done, offset + len(tokens), number, home=writing.home, offset=offset)

    def _known(self, tokens: Tokens, writing: Writing) -> tuple[KeyValues, ...]:
        """The system text, and the passage at the prompt's beginning if it was kept; one token is left to run."""
        known = self._system(tokens.ids[: writing.system])
        if writing.system < writing.beginning < len(tokens):
            kept = self.passages.get(key_of(tokens.ids[: writing.beginning]))
            known += () if kept is None else (kept,)
        return known

    def _ranked(self, tokens: Ranked, number: int, segments: list[Segment], wanted: dict[bytes, int]) -> None:
        system = self._system(tokens.ids[: tokens.system])
        key = key_of(tokens.ids[: tokens.end])
        kept = self.passages.get(key) if key not in wanted else None
        if kept is None and key not in wanted and tokens.end > tokens.system:
            wanted[key] = len(segments)
            segments.append(Segment(tokens, tokens.system, tokens.end, -1, stored=system, keep=True))
        if not isinstance(tokens, Warmed):
            before = -1 if kept is not None else wanted.get(key, -1)
            stored = system if kept is None else (*system, kept)
            segments.append(Segment(tokens, tokens.end, len(tokens), number, before, stored=stored))

    def _system(self, ids: Any) -> tuple[KeyValues, ...]:
        """The system text's keys and values, which are kept for ever: there are few of them. None of no text."""
        key = ids.tobytes()
        if len(ids) and key not in self._systems:
            tokens = Tokens(ids)
            _, layout = self._through([Segment(tokens, 0, len(ids), 0, keep=True)])
            self._systems[key] = KeyValues(layout.kept[0], len(ids))
        return (self._systems[key],) if len(ids) else ()

    def _through(self, segments: list[Segment]) -> tuple[Tensor, Layout]:
        rounded = self.backbone.device.type == "cpu"
        layout = Layout(segments, self.backbone.device, rounded=rounded)
        return self.backbone.through(layout), layout

    def _read(self, batch: Sequence[Tokens], hidden: Tensor, layout: Layout) -> Outputs:
        own = {segment.sequence: n for n, segment in enumerate(layout.segments) if segment.sequence >= 0}
        rows: dict[int, Row] = {i: np.zeros(1, np.float32) for i in range(len(batch)) if i not in own}
        for number, tokens in enumerate(batch):
            if isinstance(tokens, Judged):
                rows[number] = self._judged(tokens, hidden, layout.edges[own.pop(number) + 1])
        if own:
            ends = [layout.edges[n + 1] - 1 for n in own.values()]
            last = hidden[torch.tensor(ends, device=hidden.device)]  # (B, d)
            logits = self._vocabulary(last)
            labels = self._bounded(last.float() @ self._rows.T)
            logits[:, self._labels] = labels
            chosen = self._chosen([batch[number] for number in own], logits)
            logits[:, self._labels[0]] = -torch.inf
            ranked = to_numpy(torch.cat([labels, logits.logsumexp(1, keepdim=True)], dim=1))
            for place, (number, segment) in enumerate(own.items()):
                tokens = batch[number]
                if isinstance(tokens, Step):
                    rows[number] = self._written(tokens.writing, chosen[place], len(layout.segments[segment]))
                else:
                    rows[number] = ranked[place]
        return [rows[i] for i in range(len(batch))]

    def _judged(self, tokens: Judged, hidden: Tensor, end: int) -> Row:
        """Each token is judged by the state of the one before it."""
        states = hidden[end - tokens.said - 1 : end - 1]
        said = torch.from_numpy(tokens.ids[-tokens.said :].astype(np.int64)).to(hidden.device)
        return to_numpy(self._vocabulary(states).log_softmax(1).gather(1, said[:, None])[:, 0])

    def _chosen(self, batch: Sequence[Tokens], logits: Tensor) -> dict[int, int]:
        """Of each text the next token. All of them before any text grows: if this fails, the batch is run again."""
        writings = {place: tokens.writing for place, tokens in enumerate(batch) if isinstance(tokens, Step)}
        if not writings:
            return {}
        likeliest = logits.argmax(1).tolist()
        return {
            place: likeliest[place] if writing.choose is None else writing.choose(logits[place])
            for place, writing in writings.items()
        }

    def _written(self, writing: Writing, token: int, read: int) -> Row:
        assert writing.home is not None  # noqa: S101 - `_step` made it
        writing.home.moved_in(read)
        writing.tokens.append(token)
        return np.array(writing.tokens, np.float32)

    def _vocabulary(self, last: Tensor) -> Tensor:
        """(B, V) float32."""
        return self._bounded(self._head(last).float())

    def _bounded(self, logits: Tensor) -> Tensor:
        logits = logits * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def free(self) -> None:
        """Drops the model and what was kept, and gives CUDA's cached memory back."""
        self.passages.clear()
        self._systems.clear()
        del self.backbone, self._head, self._weight
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def key_of(ids: Any) -> bytes:
    """Tells beginnings apart, whatever model and wording they came from: those are in the tokens."""
    return blake2b(ids.tobytes(), digest_size=16).digest()

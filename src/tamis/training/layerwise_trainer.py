"""The layerwise model, its loss and its trainer. Only training imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import Trainer

from tamis.families.wordings import BGE
from tamis.prompts import BoundPrompt
from tamis.tokenizing import TextTokenizer


class LayerwiseModel(nn.Module):
    """A decoder with a head after each of some layers.

    Args:
        body: A transformers decoder without a head, or a PEFT model of one.
        layers: After which layers; the deepest one is among them.
    """

    def __init__(self, body: Any, layers: range) -> None:
        super().__init__()
        self.body = body
        self.layers = layers
        self.config = body.config
        self.heads = nn.Linear(body.config.hidden_size, len(layers), bias=False, dtype=torch.float32)
        nn.init.normal_(self.heads.weight, std=body.config.hidden_size**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Every layer's score of each sequence at its last token: (H, B) float32.

        Args:
            input_ids: Padded on the right, (B, T).
            attention_mask: 1 where there is a token, (B, T).
        """
        out = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=True)
        norm = getattr(self.body, "get_base_model", lambda: self.body)().norm
        rows, last = torch.arange(len(input_ids), device=input_ids.device), attention_mask.sum(1) - 1
        scores = []
        for i, layer in enumerate(self.layers):
            states = out.hidden_states[layer][rows, last]  # (B, d); transformers has normalised the deepest one's
            states = states if layer == self.config.num_hidden_layers else norm(states)
            with torch.autocast(states.device.type, enabled=False):
                scores.append(states.float() @ self.heads.weight[i].float())
        return torch.stack(scores)


def layerwise_loss(scores: Tensor, distil: float) -> Tensor:
    """Mean over the layers of the cross-entropy of each group's first passage, and of the divergence from the deepest.

    Args:
        scores: Of H layers, shallowest first, for G groups of P passages: (H, G, P).
        distil: Weight of the mean over the shallower layers of KL(softmax of the deepest || softmax of the layer).

    >>> import math
    >>> scores = torch.tensor([[[0.0, 0.0]], [[math.log(3.0), 0.0]]])  # 1/2 : 1/2 above 3/4 : 1/4
    >>> expected = (math.log(2) + math.log(4 / 3)) / 2
    >>> divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    >>> round(layerwise_loss(scores, 0.0).item(), 5) == round(expected, 5)
    True
    >>> round(layerwise_loss(scores, 2.0).item(), 5) == round(expected + 2 * divergence, 5)
    True
    """
    logs = F.log_softmax(scores.float(), dim=2)
    loss = -logs[:, :, 0].mean()
    if not distil or len(scores) == 1:
        return loss
    taught = logs[-1].detach().expand_as(logs[:-1])  # (H - 1, G, P)
    divergence = F.kl_div(logs[:-1], taught, reduction="none", log_target=True).sum(2).mean()
    return loss + distil * divergence


@dataclass(frozen=True, slots=True)
class GroupCollator:
    """Groups of token sequences as one padded batch.

    Attributes:
        pad_id: What fills up.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of all sequences, (G P, T), and `labels`, (G,): the relevant one's place."""
        sequences = [ids for row in rows for ids in row["sequences"]]
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            mask[i, : len(sequence)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(len(rows), dtype=torch.long)}


class LayerwiseTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """transformers' Trainer with the layers' loss.

    Args:
        distil: See `layerwise_loss`.
        options: Trainer's.
    """

    def __init__(self, *, distil: float, **options: Any) -> None:
        super().__init__(**options)
        self.distil = distil
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch's groups

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See `layerwise_loss`."""
        count = len(inputs["labels"])
        scores = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        scores = scores.unflatten(1, (count, -1))  # (H, G, P)
        loss = layerwise_loss(scores, self.distil)
        return (loss, {"loss": loss, "logits": scores[-1]}) if return_outputs else loss


def tokenised(groups: Sequence[tuple[str, Sequence[str]]], tokenizer: TextTokenizer, max_length: int) -> Any:
    """A dataset of the groups' token sequences: the prompt that `tamis.load` puts around each pair, cut as there."""
    from datasets import Dataset

    prompt = BoundPrompt(BGE, tokenizer, max_length=max_length)
    rows = []
    for query, passages in groups:
        made = prompt.ask(query).sequences(passages)
        rows.append({"sequences": [tokens.ids.tolist() for tokens in made.tokens]})
    return Dataset.from_list(rows)

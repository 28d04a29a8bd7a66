"""TRL's SFTTrainer with logits at the answers alone, and rows that several samples share. Only training imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

IGNORED = -100


@dataclass(frozen=True, slots=True)
class AnswerCollator:
    """Rows as a batch, padded on the left.

    A row is a prefix and one or more tails behind it. A tail sees the prefix and itself, at the positions that it would
    have if it stood behind the prefix alone; so that its loss is what it would be in a row of its own.

    Attributes:
        pad_id: What fills up.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What a causal language model of transformers takes.

        Returns:
            `input_ids` and `position_ids`, (B, T); `attention_mask`, (B, T), or (B, 1, T, T) if rows have several
            tails; `logits_to_keep`, the K positions whose next token any row has a loss on; `shift_labels` and
            `labels`, these next tokens, (B, K).
        """
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        labels = torch.full((len(rows), longest), IGNORED)
        tail = torch.full((len(rows), longest), -1)  # 0 is the prefix, -1 what fills up
        places = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            start = longest - len(row["input_ids"])
            ids[i, start:] = torch.tensor(row["input_ids"])
            labels[i, start:] = torch.tensor(row["labels"])
            tail[i, start:] = torch.repeat_interleave(torch.tensor(row["parts"]))
            prefix, *tails = row["parts"]
            places[i, start:] = torch.cat([torch.arange(prefix), *(torch.arange(prefix, prefix + n) for n in tails)])
        following = labels[:, 1:]
        keep = (following != IGNORED).any(0).nonzero()[:, 0]  # (K,)
        targets = following[:, keep]
        mask = seen(tail) if any(len(row["parts"]) > 2 for row in rows) else (tail >= 0).long()
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": places,
            "logits_to_keep": keep,
            "labels": targets,
            "shift_labels": targets,
        }


def seen(tail: Tensor) -> Tensor:
    """Which positions each one sees, (B, 1, T, T) bool, of rows whose tails are numbered from 1, (B, T).

    >>> seen(torch.tensor([[0, 1, 2]]))[0, 0].long().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    same = tail[:, :, None] == tail[:, None, :]  # (B, T, T); what fills up sees its own kind, since softmax needs one
    prefix = (tail == 0)[:, None, :] & (tail >= 0)[:, :, None]
    return ((same | prefix) & torch.ones_like(same).tril())[:, None]


class SeededLengthSampler(LengthGroupedSampler):  # type: ignore[misc]  # transformers is untyped here
    """Rows of about one length together, in an order that a resumed run draws again: of the seed and the epoch alone.

    Args:
        batch_size: Rows of a step.
        lengths: Of each row.
        seed: Draws.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, by accelerate."""
        self.generator.manual_seed(self.seed + epoch)


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is untyped here
    """SFTTrainer whose loss is transformers' own, from the logits that the collator asks for.

    Args:
        base: What the model that it begins with is called.
        options: SFTTrainer's.
    """

    def _send_telemetry(self) -> None:
        """TRL would report each run to its makers; nobody asked for that."""

    def __init__(self, *, base: str, **options: Any) -> None:
        super().__init__(**options)
        self.base = base
        self.written = Path(self.args.output_dir) / "last"  # what `train` ended with, in files

    def train(self, *args: Any, **options: Any) -> Any:
        """As Trainer's, and writes the result, since every process has to take part where weights are spread."""
        done = super().train(*args, **options)
        self.save_model(str(self.written))
        return done

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean negative log-likelihood of the answers' tokens, over the whole accumulated batch."""
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SeededLengthSampler(size, list(self.train_dataset["length"]), self.args.data_seed)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "parts"]

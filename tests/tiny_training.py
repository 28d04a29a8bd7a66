"""A few training rows over `tiny.TEXT`, and recipes of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from tamis.training.recipe import DataOptions, Recipe
from tamis.training.rows import Example

QUERIES = [text.split(";")[0].split(":")[0].lower() for text in tiny.TEXT]
EACH = 5  # passages that one query may have for negatives
PASSAGES = [tiny.text(24, seed) for seed in range(EACH * len(QUERIES))]


def labelled(negatives: int = 2) -> list[Example]:
    """Each text is what its own first words ask for. No negative has two queries, so that all rows make one batch."""
    return [
        Example(
            query,
            (tiny.TEXT[i], *PASSAGES[EACH * i : EACH * i + negatives]),
            labels=(1.0,) + (0.0,) * negatives,
        )
        for i, query in enumerate(QUERIES)
    ]


def scored(passages: int = 3) -> list[Example]:
    """The same with a teacher's scores; one list is shorter."""
    rows = labelled(passages - 1)
    made = [Example(e.query, e.passages, scores=tuple(0.9 / (1 + k) for k in range(len(e.passages)))) for e in rows]
    return [Example(made[0].query, made[0].passages[:2], scores=made[0].scores[:2]), *made[1:]]


def recipe(name: str, model: Path, output: Path, options: dict[str, Any] | None = None, **arguments: Any) -> Recipe:
    """A recipe of ten steps on the CPU."""
    usual = {
        "max_steps": 10, "per_device_train_batch_size": 8, "learning_rate": 2e-4, "logging_steps": 1, "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return Recipe(name, str(model), output, DataOptions(("unread",)), 7, options or {}, {**usual, **arguments})


def losses(trainer: Any) -> list[float]:
    """Those that were logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def falls(trainer: Any) -> bool:
    """Whether the last third's mean loss is below the first's."""
    logged = losses(trainer)
    third = max(1, len(logged) // 3)
    return sum(logged[-third:]) < sum(logged[:third])


STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # so that ten steps show that the loss falls

"""What trainers are given: their arguments, from the machine, the recipe and its `[arguments]`; and a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from tamis.errors import InvalidInput
from tamis.training.recipe import Recipe

M = TypeVar("M")

_NONE: Mapping[str, Any] = MappingProxyType({})


def trainer_arguments(
    kind: Callable[..., Any],
    recipe: Recipe,
    checkpoints: Path,
    usual: Mapping[str, Any] = _NONE,
    fixed: Mapping[str, Any] = _NONE,
) -> Any:
    """One of the libraries' TrainingArguments.

    Args:
        kind: The class.
        recipe: `seed` and `arguments` are read.
        checkpoints: Where the trainer writes.
        usual: What the recipe has where the user's arguments say nothing.
        fixed: What it has whatever they say.

    Raises:
        InvalidInput: An argument that there is not, or that does not go with another, or with this machine.
    """
    import torch

    common = {"report_to": "none", "use_cpu": not torch.cuda.is_available()}  # else bf16 is refused on a CPU
    own = {"output_dir": str(checkpoints), "seed": recipe.seed, "data_seed": recipe.seed}
    try:
        return kind(**{**common, **usual, **recipe.arguments, **own, **fixed})
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"[arguments] does not fit {kind.__name__}: {error}") from error


def without_card(model: M) -> M:
    """A model of sentence-transformers that prepares no card while it trains: the run writes its own.

    For theirs rows of the data are drawn and scored, under a bar of its own, and names are looked up on the hub.
    """
    data: Any = model.model_card_data  # type: ignore[attr-defined]  # of all their models
    data.set_widget_examples, data.local_files_only = _no_examples, True
    return model


def _no_examples(dataset: object) -> None:
    pass

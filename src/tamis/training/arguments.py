"""What the trainers are told: what suits the machine, what a recipe usually has, and what its `[arguments]` say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tamis.errors import InvalidInput
from tamis.training.recipe import Recipe

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

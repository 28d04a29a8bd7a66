"""Which recipes there are, and the module of each.

A recipe's module has `Options`, a frozen dataclass for the table `[options]`, and four functions:

    arguments(recipe, options, checkpoints)                        the trainer's own, checked; nothing is read for it
    prepare(recipe, options, examples, checkpoints) -> trainer     a transformers.Trainer, not yet trained
    save(trainer, folder, options, examples)                       writes what `tamis.load` opens
    load(model, options) -> Reranker | None                        how it is judged; None: the start cannot rank yet

It may have `examples(recipe, options, progress)`, where `[data]` is read in another way, with `write_jsonl` and
`read_back` if these are no `tamis.training.rows.Example`; `check(recipe, options)`, which counts them and does nothing
that takes long; `usage(folder)`, the call that opens what it saved; and `READS`, the keys of `[data]` that it reads,
where these are not all: the others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from tamis.errors import InvalidInput, MissingExtra
from tamis.training.recipe import Recipe

RECIPES: Mapping[str, str] = {
    "cross-encoder": "tamis.training.cross_encoder",
    "bi-encoder": "tamis.training.bi_encoder",
    "llm-preference": "tamis.training.preference",
    "late-interaction": "tamis.training.late_interaction",
    "embedding-distillation": "tamis.training.embedding_distillation",
    "mrl-adaptor": "tamis.training.adaptor",
    "llm-reranker": "tamis.training.yes_no",
    "layerwise": "tamis.training.layerwise",
    "rankrag": "tamis.training.rankrag",
}
NEEDED = ("accelerate", "datasets", "peft", "sentence_transformers", "trl")


def recipe_module(recipe: Recipe) -> ModuleType:
    """The module of a kind of recipe.

    Raises:
        InvalidInput: There is no such recipe.
        MissingExtra: The extra `train` is not installed.
    """
    if recipe.recipe not in RECIPES:
        raise InvalidInput(f"There is no recipe {recipe.recipe!r}; there are {', '.join(RECIPES)}.")
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise MissingExtra(f'Training needs {", ".join(missing)}: pip install "tamis[train]".')
    return import_module(RECIPES[recipe.recipe])

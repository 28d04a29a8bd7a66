"""Recipes: train, distil and evaluate any mode on one's own data. See `docs/training.md`.

>>> from tamis.training import DataOptions, Recipe
>>> Recipe("cross-encoder", "embedded", "runs/mine", DataOptions(("data/mine",))).seed
42
"""

from tamis.training.outcome import Trained
from tamis.training.recipe import DataOptions, EvaluationOptions, Recipe, read_recipe
from tamis.training.registry import RECIPES
from tamis.training.rows import Example
from tamis.training.run import check, train

__all__ = [
    "RECIPES",
    "DataOptions",
    "EvaluationOptions",
    "Example",
    "Recipe",
    "Trained",
    "check",
    "read_recipe",
    "train",
]

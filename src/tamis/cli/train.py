"""`tamis train`: a recipe from a TOML file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.cli.output import say, show, write_json
from tamis.errors import InvalidInput, TamisError

if TYPE_CHECKING:
    from tamis.training.outcome import Trained
    from tamis.training.recipe import DataOptions, Recipe


def add_command(commands: Any) -> None:
    """Adds `train` to argparse's subparsers."""
    parser = commands.add_parser(
        "train",
        help="fine-tune or distil a model by a recipe",
        description="Run a recipe: train a model, evaluate it against its starting point, write a card. A run that was "
        "interrupted goes on where it stopped.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("recipe", metavar="RECIPE.toml", help="what to train, from what, on what (see cookbook/recipes)")
    add("--output", metavar="DIR", help="instead of the recipe's output")
    add("--model", metavar="M", help="instead of the recipe's model")
    add("--data", nargs="+", metavar="PATH", help="instead of the recipe's [data] train")
    add("--eval-data", nargs="+", metavar="DIR", help="instead of the recipe's [evaluation] data")
    add("--seed", type=int, metavar="N", help="instead of the recipe's seed")
    add("--steps", type=int, metavar="N", help="stop after N steps: a trial")
    add("--fresh", action="store_true", help="begin anew, whatever an earlier run left in the output")
    add("--check", action="store_true", help="read and check everything, train nothing")
    add("--json", action="store_true", help="the figures as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Trains.

    Raises:
        InvalidInput: The recipe or an option is wrong.
        InvalidData: Rows are wrong; every one is named.
        MissingExtra: The extra `train` is not installed.
        TamisError: The disk is full, or cannot be written.
    """
    from tamis.training import check, read_recipe, train
    from tamis.training.processes import is_first

    recipe = _changed(read_recipe(arguments.recipe), arguments)
    if arguments.check:
        say(f"{arguments.recipe}: {check(recipe)}")
        return
    try:
        trained = train(recipe, resume=not arguments.fresh)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint.")
        raise
    except OSError as error:
        where = f"{error.filename} cannot be written or read: " if error.filename is not None else ""
        raise TamisError(f"{where}{error.strerror or error}.") from error
    if is_first():
        _tell(trained, as_json=arguments.json)


def _changed(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The recipe with what the command says instead."""
    changes: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("model", "seed", "output") if getattr(arguments, name) is not None
    }
    if arguments.data:
        changes["data"] = _elsewhere(recipe.data, arguments.data)
    if arguments.eval_data:
        if recipe.evaluation is None:
            raise InvalidInput("--eval-data replaces the recipe's [evaluation] data, and it has no such table.")
        changes["evaluation"] = replace(recipe.evaluation, data=tuple(arguments.eval_data))
    if arguments.steps is not None:
        if arguments.steps < 1:
            raise InvalidInput(f"--steps is {arguments.steps}; pass at least 1.")
        changes["arguments"] = {**recipe.arguments, "max_steps": arguments.steps}
    return replace(recipe, **changes)


def _elsewhere(data: DataOptions, paths: list[str]) -> DataOptions:
    """Other data, with the limits of those that have the same names."""
    names = {name for path in map(Path, paths) for name in (path.name, path.stem)}
    return replace(data, train=tuple(paths), limits={k: v for k, v in data.limits.items() if k in names})


def _tell(trained: Trained, *, as_json: bool) -> None:
    if as_json:
        write_json(
            {
                "folder": str(trained.folder),
                "seconds": round(trained.seconds, 1),
                "before": dict(trained.before),
                "after": dict(trained.after),
                "gain": {name: one._asdict() for name, one in trained.gain.items()},
                "history": [dict(entry) for entry in trained.history],
            }
        )
        return
    if trained.report is not None:
        show(trained.report.table())
    say(f"trained in {trained.seconds:.0f} s: {trained.folder}, {_gained(trained)}")


def _gained(trained: Trained) -> str:
    name = "nDCG@10"
    if name not in trained.after:
        return "not evaluated."
    now = f"{trained.after[name]:.4f} now"
    if name not in trained.gain:
        return f"{name} {now}."
    gain = trained.gain[name]
    interval = f"95% of the difference: {gain.low:+.4f} to {gain.high:+.4f}"
    return f"{name} {trained.before[name]:.4f} before, {now} ({interval})."

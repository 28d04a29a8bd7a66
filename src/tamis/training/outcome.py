"""The end of a run: start and result side by side, and what is written down about it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tamis.errors import LoadError
from tamis.evaluation.bootstrap import Interval
from tamis.evaluation.collection import Collection
from tamis.training import run_folder
from tamis.training.card import AFTER, BEFORE, card
from tamis.training.recipe import Recipe

if TYPE_CHECKING:
    from tamis.evaluation.report import Report

History = tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run gave.

    Attributes:
        folder: The trained model, for `tamis.load`.
        history: The trainer's log: a mapping an entry, with `step` and `loss` or `eval_loss`.
        before: Mean measures of the starting point over the evaluation's collections; empty without `[evaluation]`, or
            where the starting point cannot rank.
        after: Those of the result.
        seconds: Of training alone, in the process that finished it.
        report: The evaluation in full; None without one, or where the run had been finished before.
        gain: What the result gains over the start in each measure, the mean and its 95% interval (paired bootstrap over
            queries); empty where `before` is.
    """

    folder: Path
    history: History
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    report: Report | None = None
    gain: Mapping[str, Interval] = field(default_factory=dict)


def judge(
    module: ModuleType, recipe: Recipe, options: Any, collections: Sequence[Collection], progress: bool | None
) -> Report | None:
    """Start and result side by side; the result alone where the start cannot rank, as without a trained head.

    Args:
        module: The recipe's.
        recipe: Its `evaluation` says how; None is not at all.
        options: The recipe's own.
        collections: Those of its `evaluation`.
        progress: Bars on standard error; None shows them in a terminal.
    """
    if recipe.evaluation is None:
        return None
    from tamis.evaluation.ranking import evaluate

    _forget()
    models = {}
    with ExitStack() as stack:
        for name, model in ((BEFORE, recipe.model), (AFTER, recipe.output)):
            try:
                reranker = module.load(model, options)
            except LoadError:
                if name == AFTER:
                    raise
                continue
            if reranker is not None:
                models[name] = stack.enter_context(reranker)
        asked = recipe.evaluation
        start = BEFORE if BEFORE in models else None
        shown = progress is not False
        return evaluate(models, collections, top=asked.top, limit=asked.limit, against=start, progress=shown)


def _forget() -> None:
    """Gives back what a trainer held, so that there is room for two models."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record(
    module: ModuleType, recipe: Recipe, count: int, history: History, seconds: float, report: Report | None
) -> Trained:
    """Writes the card, and then `run.json`, with which the run is done.

    Args:
        module: The recipe's.
        recipe: What was done.
        count: Examples.
        history: The trainer's log.
        seconds: Of training.
        report: What `judge` gave.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {BEFORE: {}, AFTER: {}}
    for each in () if report is None else report.collections:
        for name, model in each.models.items():
            figures[name][each.collection.name] = dict(model.means)
    folder, content = recipe.output, run_folder.plain(recipe)
    use = module.usage(folder) if hasattr(module, "usage") else f'tamis.load("{folder}")'
    text = card(content, count=count, history=history, seconds=seconds, use=use, report=report)
    (folder / run_folder.CARD).write_text(text, encoding="utf-8")
    done = {
        "fingerprint": run_folder.fingerprint(recipe),
        "recipe": content,
        "done": True,
        "examples": count,
        "seconds": round(seconds, 1),
        "history": history,
        **figures,
        "report": None if report is None else report.to_json(),
    }
    run_folder.write_report(folder / run_folder.REPORT, done)
    return recorded(recipe, done, report)


def recorded(recipe: Recipe, done: Mapping[str, Any], report: Report | None = None) -> Trained:
    """What a finished run's `run.json` says; the report is not read back from it."""
    before, after = _means(done.get(BEFORE, {})), _means(done.get(AFTER, {}))
    compared = (done.get("report") or {}).get("against") or {"mean": {}}
    gain = {name: Interval(**one) for name, one in compared["mean"].get(AFTER, {}).items()}
    seconds, history = float(done.get("seconds", 0.0)), tuple(done.get("history", ()))
    return Trained(recipe.output, history, before, after, seconds, report, gain)


def _means(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each measure's mean over the collections in which something was measured."""
    measured = [values for values in figures.values() if values]
    return {name: sum(values[name] for values in measured) / len(measured) for name in measured[0]} if measured else {}

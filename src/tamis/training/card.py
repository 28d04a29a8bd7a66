"""The card of a trained model: what it is, how to open it, what it was before and is now, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.evaluation.report import Report
    from tamis.evaluation.results import CollectionResult

MEASURES = ("nDCG@10", "MRR@10", "Recall@5")
BEFORE, AFTER = "before", "after"  # the names of start and result in reports
EMBEDDED_IDS = ("sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct")
LANGUAGE_MODELS = ("layerwise", "llm-reranker", "rankrag")  # recipes that start from the second
LIBRARIES = ("torch", "transformers", "sentence-transformers")


def card(
    recipe: Mapping[str, Any],
    *,
    count: int,
    history: Sequence[Mapping[str, float]],
    seconds: float,
    use: str,
    report: Report | None,
) -> str:
    """The model card of a run, in Markdown with the hub's YAML header.

    Args:
        recipe: As plain values.
        count: Training examples.
        history: The trainer's log.
        seconds: Of training.
        use: The call that opens the model.
        report: Of the evaluation, with models "before" and "after".
    """
    names = ", ".join(Path(name).name for name in recipe["data"]["train"])
    losses = [entry["loss"] for entry in history if "loss" in entry]
    unseen = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    lines = [
        "---",
        "library_name: tamis",
        "pipeline_tag: text-ranking",
        *([f"base_model: {base}"] if (base := _base(recipe["model"], recipe["recipe"])) else []),
        "---",
        "",
        f"# {Path(recipe['output']).name}",
        "",
        f"Trained with the recipe `{recipe['recipe']}` of Tamis from `{recipe['model']}`, seed {recipe['seed']}, on "
        f"{count:,} examples of {names}, in {seconds / 60:.1f} minutes. Their licences hold for it too.",
        "",
        "```python",
        "import tamis",
        "",
        use,
        "```",
    ]
    if losses:
        lines += ["", f"Loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at last" + _held_out(unseen)]
    if report is not None:
        lines += ["", *_figures(report, str(recipe["evaluation"]["split"]))]
    lines += ["", "## Recipe", "", "```json", json.dumps(recipe, indent=2), "```", "", f"Made with {_versions()}.", ""]
    return "\n".join(lines)


def _base(model: str, recipe: str) -> str:
    """The hub id of what it was trained from; empty where it is a folder."""
    if model == "embedded":
        return EMBEDDED_IDS[recipe in LANGUAGE_MODELS]
    return "" if Path(model).expanduser().exists() or model.count("/") != 1 else model


def _held_out(losses: Sequence[float]) -> str:
    return f"; on examples that were held out {losses[0]:.4f} and {losses[-1]:.4f}." if losses else "."


def _figures(report: Report, split: str) -> list[str]:
    """A table of the collections, and what their mean gained."""
    first = report.first_stage.upper() if report.first_stage == "bm25" else report.first_stage
    models = [name for name in (BEFORE, AFTER) if name in report.models]
    head = [f"{measure} {name}" for measure in MEASURES for name in (first, *models)]
    lines = [
        f"## Reranking the {report.top} best of {first}, {split} split",
        "",
        f"| collection | {' | '.join(head)} |",
        "|---|" + "---|" * len(head),
        *(_row(each.collection.name, [each.means, *_of(each, models)]) for each in report.collections if each.measured),
    ]
    if len(report.collections) > 1:
        lines.append(_row("**mean**", [report.means(), *(report.means(name) for name in models)]))
    gains = [(f"{first}'s", report.differences.get(AFTER, {}))]
    if report.comparison is not None:
        gains.append(("what it was before", report.comparison.mean.get(AFTER, {})))
    told = [(whose, found[MEASURES[0]]) for whose, found in gains if found]
    if told:
        parts = ", less ".join(f"{whose} {g.mean:+.4f} ({g.low:+.4f} to {g.high:+.4f})" for whose, g in told)
        lines += ["", f"{MEASURES[0]} after training, less {parts}; 95% interval, paired bootstrap over queries."]
    return lines


def _of(each: CollectionResult, models: Sequence[str]) -> list[Mapping[str, float]]:
    return [each.models[name].means for name in models]


def _row(name: str, means: Sequence[Mapping[str, float]]) -> str:
    return f"| {name} | " + " | ".join(f"{found[measure]:.4f}" for measure in MEASURES for found in means) + " |"


def _versions() -> str:
    from tamis import __version__

    return ", ".join([f"tamis {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)])

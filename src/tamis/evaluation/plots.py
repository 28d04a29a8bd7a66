"""Reports as PNG files. Figures are made without pyplot, so that no window system and no global state are needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.evaluation.bootstrap import LEVEL
from tamis.evaluation.calibration import Calibration
from tamis.evaluation.measures import MAIN
from tamis.extras import need

if TYPE_CHECKING:
    from tamis.evaluation.dimensions import DimensionReport
    from tamis.evaluation.rankrag_report import RankRAGReport
    from tamis.evaluation.report import Report
    from tamis.evaluation.speed import SpeedReport

SIZE = (7.0, 4.5)  # inches
DPI = 140
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind too
MARKS = "osD^vP"
GREY = "#666666"


def ranking_plots(report: Report, folder: Path) -> list[Path]:
    """Quality against time, and the calibration of each model; the files that were written."""
    made = []
    if report.models and report.means():
        made.append(saved(_quality_time(report), folder, "quality-time"))
    for name, found in report.calibrations.items():
        if found.pairs:
            made.append(saved(_calibration(name, found), folder, f"calibration-{file_name(name)}"))
    return made


def _quality_time(report: Report) -> Any:
    figure, axes = drawn()
    base = report.means()[MAIN]
    axes.axhline(base, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"{report.first_stage} alone", (0.99, base), xycoords=("axes fraction", "data"), ha="right", va="bottom",
        color=GREY, fontsize=9,
    )  # fmt: skip
    for i, name in enumerate(report.models):
        interval = report.differences[name][MAIN]
        seconds, quality = report.seconds_per_query(name), report.means(name)[MAIN]
        bounds = [[interval.mean - interval.low], [interval.high - interval.mean]]
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        axes.errorbar([seconds], [quality], yerr=bounds, fmt=mark, color=colour, capsize=3, label=name)
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.15)
    axes.set_xlabel("seconds per query (share of a batch of queries)")
    axes.set_ylabel(f"{MAIN}{_mean_of(report)}")
    axes.set_title(f"Reranking {report.first_stage}'s top {report.top}; bars: {LEVEL:.0%} interval of the difference")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _mean_of(report: Report) -> str:
    count = sum(bool(each.measured) for each in report.collections)
    return f", mean of {count} collections" if count > 1 else f", {report.collections[0].collection.name}"


def _calibration(name: str, found: Calibration) -> Any:
    figure, (axes, counts) = drawn(rows=2, heights=(3, 1))
    full = [one for one in found.bins if one.count]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="a score that is a probability")
    axes.plot(
        [one.score for one in full], [one.relevant for one in full], marker="o", color=COLOURS[0],
        label=f"measured (calibration error {found.error:.3f})",
    )  # fmt: skip
    for threshold, what, colour in (
        (found.best, "best F1", COLOURS[1]),
        (found.precise, f"precision {found.precision:g}", COLOURS[2]),
    ):
        if threshold is not None:
            label = f"min_score {threshold.min_score:.3f}: {what}, recall {threshold.recall:.2f}"
            axes.axvline(threshold.min_score, color=colour, linewidth=1.2, linestyle=":", label=label)
    axes.set_ylabel("share that is relevant")
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(f"{name}: {found.relevant:,} relevant of {found.pairs:,} pairs")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    width = found.bins[0].high - found.bins[0].low
    counts.bar([one.low for one in full], [one.count for one in full], width=width * 0.94, align="edge", color=GREY)
    counts.set_yscale("log")
    counts.set_ylim(bottom=0.7)  # so that a single pair shows
    counts.set_ylabel("pairs")
    counts.set_xlabel("score")
    for each in (axes, counts):
        each.set_xlim(-0.02, 1.02)
    return figure


def dimension_plots(report: DimensionReport, folder: Path) -> list[Path]:
    """Quality against dimensions, a line for each model."""
    figure, axes = drawn()
    sizes = {point.dim: point.bytes for point in report.points}
    for i, name in enumerate(dict.fromkeys(point.model for point in report.points)):
        mine = [point for point in report.points if point.model == name]
        line = {"marker": MARKS[i % len(MARKS)], "color": COLOURS[i % len(COLOURS)], "label": name}
        axes.plot([point.dim for point in mine], [point.quality for point in mine], **line)
    axes.axhline(report.report.means()[MAIN], color=GREY, linestyle="--", linewidth=1, label=report.report.first_stage)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), [f"{dim}\n{size:,} B" for dim, size in sizes.items()])
    axes.minorticks_off()
    axes.set_xlabel("dimensions, and bytes of a vector in float32")
    axes.set_ylabel(f"{MAIN}{_mean_of(report.report)}")
    axes.set_title(f"Reranking {report.report.first_stage}'s top {report.report.top} with shorter vectors")
    axes.legend(frameon=False, fontsize=9)
    return [saved(figure, folder, "dimensions")]


def rankrag_plots(report: RankRAGReport, folder: Path) -> list[Path]:
    """EM and F1 with and without reranking, for each collection and model."""
    results = [each for each in report.answers if each.reranked]
    if not results:
        return []
    figure, axes = drawn()
    several = len({each.model for each in results}) > 1
    bars = (("EM", False, "#9ecae1"), ("EM", True, COLOURS[0]), ("F1", False, "#fdc28c"), ("F1", True, COLOURS[1]))
    for i, (measure, reranked, colour) in enumerate(bars):
        places = [place + 0.2 * i - 0.3 for place in range(len(results))]
        heights = [100 * (each.means(reranked=reranked)[measure] or 0.0) for each in results]
        label = f"{measure}, {'with' if reranked else 'without'} reranking"
        drawn_bars = axes.bar(places, heights, width=0.18, color=colour, label=label)
        if len(results) <= 4:
            axes.bar_label(drawn_bars, fmt="%.1f", fontsize=8)
    names = [each.collection.name + (f"\n{each.model}" if several else "") for each in results]
    axes.set_xticks(range(len(results)), names, fontsize=9)
    axes.set_ylabel("percent")
    axes.margins(y=0.25)
    axes.set_title(f"Answers from {report.top_k} of {report.ranking.first_stage}'s top {report.ranking.top}")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    return [saved(figure, folder, "answers")]


def speed_plots(report: SpeedReport, folder: Path) -> list[Path]:
    """Seconds of a request against its passages, a line for each model and number of requests at once."""
    figure, axes = drawn()
    lines = dict.fromkeys((one.model, one.requests) for one in report.timings)
    several = len({requests for _, requests in lines}) > 1
    for i, (name, requests) in enumerate(lines):
        mine = sorted(
            (o for o in report.timings if (o.model, o.requests) == (name, requests)), key=lambda o: o.passages
        )
        line = {"marker": MARKS[i % len(MARKS)], "color": COLOURS[i % len(COLOURS)]}
        label = f"{name}, {requests:,} at once" if several else name
        axes.plot([one.passages for one in mine], [median(one.latencies) for one in mine], label=label, **line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({one.passages for one in report.timings})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("passages of a request")
    axes.set_ylabel("seconds of a request, median")
    axes.set_title(f"Time to rank, {report.rounds} rounds")
    axes.legend(frameon=False, fontsize=9)
    return [saved(figure, folder, "speed")]


# -- what other plots are made of too ---------------------------------------------------------------------------------


def drawn(rows: int = 1, heights: Sequence[float] = (1,)) -> tuple[Any, Any]:
    """An empty figure, and its axes; several where there are several rows."""
    figure = need("matplotlib.figure", "eval", "A plot").Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, 1, height_ratios=heights)
    for each in axes if rows > 1 else (axes,):
        each.grid(visible=True, color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def saved(figure: Any, folder: Path, name: str) -> Path:
    """Writes a figure into a folder, which is made if need be.

    Raises:
        InvalidInput: It cannot be written.
    """
    path = folder / f"{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def file_name(name: str) -> str:
    """A name without what a file's name should not have.

    >>> file_name("org/model v2 dim=64")
    'org-model-v2-dim-64'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "model"

"""Plots of the benchmarks' own reports: ratios, shares of the matrix rate, growth."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs"))
from plots import DPI, GREY, OURS, SECOND, THEIRS, WIDTH, bars


def contests(runs: Sequence[dict[str, Any]], folder: Path) -> None:
    """For each contest of speed.py, how many times as fast as the baseline; and all shares of the matrix rate."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        names = [row["name"] for row in run["results"]]
        ratios = [row["ratio"] for row in run["results"]]
        figure = bars(names, ratios, run["workload"]["title"], f"times as fast as {names[0]}")
        figure.savefig(folder / f"ratios-{_file(run['workload']['title'])}.png", dpi=DPI)
    roofline(runs).savefig(folder / "roofline.png", dpi=DPI)


def roofline(runs: Sequence[dict[str, Any]]) -> Figure:
    """One panel for each contest, one bar for each contender that computes in a format whose rate was measured."""
    shown = [[row for row in run["results"] if row["share_of_rate"]] for run in runs]
    heights = [0.3 * len(rows) + 0.7 for rows in shown]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(runs), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, run, rows in zip(panels, runs, shown, strict=True):
        places, shares = range(len(rows)), [100 * row["share_of_rate"] for row in rows]
        axes.barh(places, shares, color=[OURS if "Tamis" in row["name"] else THEIRS for row in rows], height=0.7)
        for place, share in zip(places, shares, strict=True):
            axes.annotate(f"{share:.0f}%", (share, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.axvline(100, color=GREY, linewidth=1, linestyle="--")
        axes.set_yticks(places, [row["name"] for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(run["workload"]["title"], fontsize=9.5, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(left=False)
    panels[-1].set_xlabel("% of the matrix rate that was measured in the contender's format")
    panels[-1].set_xlim(0, max(112, *(110 * row["share_of_rate"] for rows in shown for row in rows)))
    return figure


def growth(series: Sequence[dict[str, Any]], folder: Path) -> None:
    """Time and peak memory against size, a column for each series."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = {"passages": "passages of one request", "length": "tokens of a passage", "requests": "requests at once"}
    figure = Figure(figsize=(3.4 * len(series), 5.2), layout="constrained")
    panels = figure.subplots(2, len(series), squeeze=False, sharex="col")
    for column, one in enumerate(series):
        sizes = [row["size"] for row in one["rows"]]
        times = [row["seconds"] if one["kind"] != "length" else row["ms_per_unit"] for row in one["rows"]]
        top, bottom = panels[0, column], panels[1, column]
        top.plot(sizes, times, "o-", color=OURS, label="measured")
        if one["kind"] != "length":
            line = [times[-1] * size / sizes[-1] for size in sizes]
            top.plot(sizes, line, "--", color=GREY, linewidth=1, label="linear")
        top.set(xscale="log", yscale="log", ylabel="seconds" if one["kind"] != "length" else "ms for 1,000 tokens")
        top.set_title(f"time: exponent {one['exponent']:.2f} (arithmetic {one['work']:.2f})", fontsize=9.5, loc="left")
        top.legend(frameon=False, fontsize=8)
        bottom.plot(sizes, [row["peak_mb"] for row in one["rows"]], "o-", color=SECOND)
        highest = max(row["peak_mb"] or 0 for row in one["rows"])
        bottom.set(ylim=(0, 1.2 * highest or None), xlabel=titles[one["kind"]], ylabel="peak MB of the process")
        shown = sizes[:: -(-len(sizes) // 5)]
        bottom.set_xticks(shown, [f"{size:,}" for size in shown], fontsize=8)
        bottom.minorticks_off()
        top.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        top.yaxis.set_minor_formatter(lambda value, _: "")
        for axes in (top, bottom):
            axes.grid(visible=True, alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "growth.png", dpi=DPI)


def curve(places: Sequence[str], figures: Mapping[str, Sequence[float]], unit: str, file: Path) -> None:
    """One line for each figure, over places that are equally far apart."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, values), style in zip(figures.items(), ("o-", "o--", "s-", "s--"), strict=False):
        axes.plot(places, values, style, color=OURS if style[0] == "o" else SECOND, label=name)
    axes.set(xlabel=unit, ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    figure.savefig(file, dpi=DPI)


def _file(title: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in title).replace("--", "-")

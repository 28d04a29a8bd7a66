"""Draws the plots of docs/performance.md from the tables of benchmarks/RESULTS.md, so that the two cannot differ.

    python docs/plots.py

Each file carries a digest of the figures in it; a test compares it with the tables as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "RESULTS.md"
FOLDER = DOCS / "plots"
OURS, LIGHT, THEIRS, SECOND, GREY = "#0072b2", "#56b4e9", "#b8bec4", "#d55e00", "#666666"  # for the colour-blind too
DPI = 140
WIDTH = 7.0  # inches

CONTEST = ("the contest again, and RankRAG", "256 passages")
QUALITY = ("words in common, and sets left out of training", "collection")
RANKRAG = ("the contest again, and RankRAG", "ranking 32")


@dataclass(frozen=True)
class Table:
    """One table of the results: the names of its rows, and its numbers by the heads of their columns."""

    heads: tuple[str, ...]
    names: tuple[str, ...]
    cells: Mapping[str, tuple[str, ...]]

    def numbers(self, head: str) -> list[float]:
        """The first number of each cell of a column."""
        return [number(cell) for cell in self.cells[head]]


def number(cell: str) -> float:
    """The first number in a cell.

    >>> number("**7.23x**"), number("12,962"), number("0.26x: 3.90x faster"), number("98.8% (bound 98%)")
    (7.23, 12962.0, 0.26, 98.8)
    """
    found = re.search(r"\d[\d,]*(\.\d+)?", cell)
    if found is None:
        raise ValueError(f"There is no number in {cell!r}.")
    return float(found[0].replace(",", ""))


def table(section: str, first: str) -> Table:
    """A table of benchmarks/RESULTS.md.

    Args:
        section: What its heading says after the date.
        first: The beginning of the head of its first column.
    """
    text = RESULTS.read_text(encoding="utf-8")
    body = re.search(rf"^## \S+ {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if body is None:
        raise ValueError(f"benchmarks/RESULTS.md has no section {section!r}.")
    for lines in re.findall(r"(?:^\|.*\n)+", body[1], re.MULTILINE):
        rows = [
            [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")] for line in lines.splitlines()
        ]
        if rows[0][0].startswith(first):
            columns = list(zip(*rows[2:], strict=True))
            return Table(tuple(rows[0]), columns[0], dict(zip(rows[0][1:], columns[1:], strict=True)))
    raise ValueError(f"Section {section!r} has no table that begins with {first!r}.")


def bars(names: Sequence[str], values: Sequence[float], title: str, unit: str, *, form: str = "{:.2f}x") -> Figure:
    """Horizontal bars, the first at the top; Tamis's in colour."""
    figure, axes = _drawn(0.36 * len(names) + 1.1, title)
    places = range(len(names))
    ours = ["Tamis" in name and "offline" not in name for name in names]
    axes.barh(places, values, color=[OURS if one else THEIRS for one in ours], height=0.7)
    for place, value in zip(places, values, strict=True):
        axes.annotate(form.format(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=unit)
    axes.tick_params(left=False)
    return figure


def cross_encoder() -> Figure:
    """One request: seconds against the peers', each in a process of its own."""
    found = table(*CONTEST)
    off = dict(zip(found.names, found.cells["largest logit difference"], strict=True))
    names = [
        name.replace("`", "") + f" (logits off by {number(off[name]):g})" * ("int8" in name) for name in found.names
    ]
    title = "256 passages of 29 to 511 tokens through MiniLM-L6-H384, two CPU cores"
    return bars(names, found.numbers("speed-up"), title, "times as fast as the first")


def many_requests() -> Figure:
    """All requests at once: throughput."""
    found = table("many requests at once", "")
    names = [
        name.strip("*").replace("`", "").replace(", a call each in the loop's executor", "") for name in found.names
    ]
    title = "64 requests of 20 passages at once"
    return bars(names, found.numbers("passages/s"), title, "passages per second", form="{:.0f}")


def language_models() -> Figure:
    """LLM rerankers: how many times as long others take."""
    found = table("language models as rerankers", "causal LM")
    models = [model for model in ("Qwen3 shape", "SmolLM2") for _ in range(2)]
    short = [
        f"{model},\n{what}" for model, what in zip(models, ["whole vocabulary", "logits_to_keep=1"] * 2, strict=True)
    ]
    figure, axes = _drawn(3.4, "A padded, sorted transformers loop against Tamis: 64 passages of 90 words")
    for shift, (dtype, colour) in enumerate((("float32", THEIRS), ("bfloat16", OURS))):
        places = [place + 0.38 * (shift - 0.5) for place in range(len(short))]
        drawn = axes.bar(places, found.numbers(dtype), 0.36, color=colour, label=dtype)
        axes.bar_label(drawn, fmt="%.2fx", fontsize=9, padding=2)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    axes.annotate("Tamis", (1, 1), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
                  color=GREY, fontsize=9)  # fmt: skip
    axes.set_xticks(range(len(short)), short)
    axes.margins(y=0.12)
    axes.set(ylabel="seconds over those of Tamis")
    axes.legend(frameon=False, fontsize=9)
    return figure


def memory() -> Figure:
    """LLM rerankers: peak memory against length."""
    found = table("language models as rerankers", "peak memory")
    lengths = [number(head) for head in found.heads[1:]]
    figure, axes = _drawn(3.6, "Peak memory: 16 passages through a Gemma with 256,000 words")
    styles = (("s-", THEIRS), ("^--", SECOND), ("o-", OURS), ("o--", OURS))
    for i, (name, (style, colour)) in enumerate(zip(found.names, styles, strict=True)):
        values = [number(found.cells[head][i]) for head in found.heads[1:]]
        axes.plot(lengths, values, style, color=colour, label=name.replace("`", ""))
    axes.set(xscale="log", yscale="log", xlabel="tokens a passage", ylabel="MB above the loaded model")
    axes.set_xticks(lengths, [f"{length:,.0f}" for length in lengths])
    axes.set_yticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1,000", "3,000"])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    return figure


def rankrag() -> Figure:
    """RankRAG: what is kept of passages that were seen before."""
    found = table(*RANKRAG)
    title = "Ranking 32 passages of 163 tokens with SmolLM2-135M, bfloat16"
    return bars(found.names, found.numbers("seconds"), title, "seconds", form="{:.1f} s")


def quality() -> Figure:
    """The shipped models: nDCG@10 of each collection."""
    found = table(*QUALITY)
    title = "nDCG@10 over BM25's 100 best, up to 40 queries of each collection"
    figure, axes = _drawn(0.36 * len(found.names) + 1.5, title)
    places = range(len(found.names))
    columns = list(zip(found.heads[1:], ("|", "s", "^", "o"), (GREY, SECOND, LIGHT, OURS), strict=True))
    for place in places:
        values = [number(found.cells[head][place]) for head, _, _ in columns]
        axes.plot([min(values), max(values)], [place, place], color=THEIRS, linewidth=2, zorder=1)
    for head, mark, colour in columns:
        axes.scatter(found.numbers(head), places, marker=mark, color=colour, s=70 if mark == "|" else 36, label=head,
                     linewidths=2 if mark == "|" else 1, zorder=2)  # fmt: skip
    axes.set_yticks(places, found.names)
    axes.invert_yaxis()
    axes.set(xlabel="nDCG@10")
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.3, -0.14), ncols=4)
    return figure


def dimensions() -> Figure:
    """What truncation keeps, as it is and rotated."""
    found = table("models of our own", "dimensions")
    dims = [number(name) for name in found.names]
    figure, axes = _drawn(3.2, "all-MiniLM-L6-v2, mean of seven collections, all dev queries")
    for head, style, colour in (("truncated as it is", "s--", SECOND), ("rotated", "o-", OURS)):
        kept = found.numbers(head)
        axes.plot([384, *dims], [100, *kept], style, color=colour, label=head)
        for dim, value in zip(dims, kept, strict=True):
            axes.annotate(f"{value:.1f}%", (dim, value), (5, -12), textcoords="offset points", fontsize=9)
    axes.set(xlabel="dimensions that are compared", ylabel="% of the full vectors' nDCG@10")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*dims, 384], [f"{dim:.0f}" for dim in [*dims, 384]])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.15)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    return figure


PLOTS: dict[str, tuple[Callable[[], Figure], tuple[tuple[str, str], ...]]] = {  # with the tables that are in them
    "cross-encoder": (cross_encoder, (CONTEST,)),
    "many-requests": (many_requests, (("many requests at once", ""),)),
    "language-models": (language_models, (("language models as rerankers", "causal LM"),)),
    "memory": (memory, (("language models as rerankers", "peak memory"),)),
    "rankrag": (rankrag, (RANKRAG,)),
    "quality": (quality, (QUALITY,)),
    "dimensions": (dimensions, (("models of our own", "dimensions"),)),
}


def digest(name: str) -> str:
    """Of the tables that a plot is made from."""
    return hashlib.sha256(repr([table(*where) for where in PLOTS[name][1]]).encode()).hexdigest()


def _drawn(height: float, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure, axes


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (draw, _) in PLOTS.items():
        draw().savefig(FOLDER / f"{name}.png", dpi=DPI, metadata={"Software": None, "Figures": digest(name)})

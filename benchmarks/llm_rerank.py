"""What Tamis saves with rerankers that are language models, beside the loops of their model cards.

    python benchmarks/llm_rerank.py [--only qwen flag smollm2 layerwise memory] [--rounds 3] [--passages 64] [--whole]
        [--quick] [--json FILE]

Questions, each in float32 and bfloat16. How much faster is a causal LM than a padded loop with transformers, which
computes the whole vocabulary's logits, and than FlagEmbedding's class? What does leaving a 40-layer model at layer 8
save? Does memory grow with the passages' length where the vocabulary is Gemma's? Times go from texts to logits, in
rounds in rotated order, each with another query, so that nothing is remembered; memory is that of a fresh process each.
Compare the ratios, which are taken within rounds; the seconds belong to one machine on one day. `--whole` takes the
real sizes of Qwen3-Reranker-0.6B, for a few passages.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
from llm_loops import Texts
from llm_parts import PARTS, QUICK, WHOLE, Size
from machine import quiet
from report import lines, table, write

COLUMNS: dict[str, tuple[str, str]] = {  # figure: heading, form
    "median": ("median s", ".3f"),
    "best": ("best s", ".3f"),
    "ratio": ("over Tamis", ".2f"),
    "speed_up": ("speed-up", ".2f"),
    "largest_difference": ("|logit diff|", ".1e"),
}


def main() -> None:
    """Parses the command line, runs, prints."""
    arguments, size = parse()
    quiet()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        texts = Texts(size.passages, size.rounds)
        report: dict[str, Any] = {"machine": machine.describe(), "tables": []}
        for name in arguments.only:
            for made in PARTS[name](size, texts, Path(folder)):
                report["tables"].append({**made, "load_after": os.getloadavg()[0]})
                show(made)
                write(arguments.json, report)
    lines([machine.sentence(report["machine"])])


def parse() -> tuple[argparse.Namespace, Size]:
    """The command line, and how much it asks for."""
    parser = argparse.ArgumentParser(description="Compare Tamis with the loops of language models' cards.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help=f"default: {Size.rounds}")
    parser.add_argument("--passages", type=int, help=f"default: {Size.passages}")
    parser.add_argument("--whole", action="store_true", help="Qwen3 as large as Qwen3-Reranker-0.6B")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works: under a minute")
    parser.add_argument("--json", type=Path, help="write everything here")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("rounds", "passages")}
    if any(n is not None and n < 1 for n in given.values()):
        parser.error("--rounds and --passages are at least 1")
    size = QUICK if arguments.quick else Size(qwen=WHOLE if arguments.whole else ())
    return arguments, replace(size, **{name: n for name, n in given.items() if n is not None})


def show(made: dict[str, Any]) -> None:
    """One table, and what to know of it."""
    headings = {name: COLUMNS.get(name, (name, ",.0f")) for name in made["columns"]}
    table(made["title"], {heading: (name, form, 1.0) for name, (heading, form) in headings.items()}, made["rows"])
    lines(made["notes"])


if __name__ == "__main__":
    main()

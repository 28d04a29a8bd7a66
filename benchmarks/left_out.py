"""What tamis-mini's recipe is worth on data that it never saw: each collection left out of training in turn.

    python benchmarks/left_out.py --data ../shared/data [--sets scifact medquad ...] [--share 0.25] [--limit 40]
        [--folder runs/left-out] [--json FILE]

For each collection (both SQuADs at once) the recipe is trained on a share of the others, fused with the bi-encoder and
words in common on the others' texts and dev queries, as `tamis fuse` did it for tamis-mini, and measured on the one
that was left out, over BM25's 100 best. `none` leaves none out and is measured on all: what being at home is worth at
that size. A training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import lines, table, write

import tamis
from tamis.evaluation import evaluate, read_collection
from tamis.scorers.overlap import Overlap
from tamis.training import Recipe, read_recipe, train
from tamis.training.fusion import count_pieces, fuse, write_fusion

RECIPE = Path(__file__).parents[1] / "cookbook" / "recipes" / "tamis-mini.toml"
NONE = "none"
TOGETHER = {"squad": ("squad", "squad2-unanswerable")}  # two editions of one data set
BOTH, ALONE, START = "both", "alone", "MiniLM"
FITTED = {"tolerance": 0.01, "prior": 0.2, "lexical": 10.0, "top": 20, "limit": 60, "seed": 1}  # as tamis-mini's own
COLUMNS: dict[str, tuple[str, str, float]] = {
    "BM25": ("bm25", ".3f", 1.0),
    "all-MiniLM-L6-v2": (START, ".3f", 1.0),
    "tamis-mini so trained": (ALONE, ".3f", 1.0),
    "both": (BOTH, ".3f", 1.0),
    "both over BM25": ("over_bm25", "+.3f", 1.0),
    "over MiniLM": ("over_start", "+.3f", 1.0),
}


def main() -> None:
    """Parses the command line, trains, measures, prints."""
    arguments = parse()
    recipe = read_recipe(RECIPE)
    homes = [Path(name).name for name in recipe.data.train]
    found: dict[str, Any] = {"share": arguments.share, "limit": arguments.limit, "sets": []}
    for name in arguments.sets or [home for home in homes if home not in TOGETHER["squad"][1:]]:
        out = TOGETHER.get(name, (name,))
        folder = trained(recipe, [home for home in homes if home not in out], name, arguments)
        found["sets"] += measured(folder, homes if name == NONE else out, name, arguments)
        write(arguments.json, found)
        table(f"nDCG@10, {name} left out of training", COLUMNS, found["sets"])
    lines(
        f"{each['name']}: over BM25 {each['intervals'][0]}, over MiniLM {each['intervals'][1]}"
        for each in found["sets"]
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="where the collections lie")
    parser.add_argument("--sets", nargs="*", help=f"those left out, each in a run of its own; {NONE} is none")
    parser.add_argument("--share", type=float, default=0.25, help="of the recipe's queries")
    parser.add_argument("--limit", type=int, default=40, help="dev queries of a collection, drawn with seed 0")
    parser.add_argument("--folder", type=Path, default=Path("runs/left-out"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def trained(recipe: Recipe, homes: Sequence[str], name: str, arguments: argparse.Namespace) -> Path:
    """The folder of a model that was trained on a share of these collections and fused on their dev queries."""
    sources = [arguments.data / home for home in homes]
    limits = {
        source.name: round(arguments.share * min(recipe.data.limits.get(source.name, 1_000_000), queries(source)))
        for source in sources
    }
    data = replace(
        recipe.data,
        train=tuple(map(str, sources)),
        limits=limits,
        titles=round(arguments.share * recipe.data.titles),
    )
    options = {**recipe.options, "dtype": "float32"}
    steps = {**recipe.arguments, "warmup_steps": round(arguments.share * recipe.arguments["warmup_steps"])}
    output = arguments.folder / name
    train(replace(recipe, data=data, options=options, arguments=steps, output=output, evaluation=None))
    cross, similar = tamis.load(output, mode="cross-encoder"), tamis.load(mode="bi-encoder")
    with cross, similar:
        others = [read_collection(source, "dev") for source in sources]
        counts = count_pieces(output, others)
        counts.write(output)
        fitted = fuse(cross, similar, others, **FITTED, overlap=Overlap(output, counts))
    write_fusion(output, "embedded", fitted.blend)
    lines([f"{name} left out: {fitted.blend}"])
    return output


def queries(source: Path) -> int:
    """How many queries a collection has to train on."""
    return len(read_collection(source, "train").queries)


def measured(folder: Path, names: Sequence[str], left: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of the table for each collection."""
    collections = [read_collection(arguments.data / name, "dev") for name in names]
    with (
        tamis.load(folder) as both,
        tamis.load(folder, mode="cross-encoder") as alone,
        tamis.load(mode="bi-encoder") as start,
    ):
        models = {BOTH: both, ALONE: alone, START: start}
        report = evaluate(models, collections, limit=arguments.limit, against=START)
    rows = []
    for each in report.collections:
        over_bm25 = each.models[BOTH].differences["nDCG@10"]
        assert report.comparison is not None
        over_start = report.comparison.collections[each.collection.name][BOTH]["nDCG@10"]
        rows.append({
            "name": each.collection.name,
            "left_out": left,
            "bm25": each.means["nDCG@10"],
            **{model: each.models[model].means["nDCG@10"] for model in models},
            "over_bm25": over_bm25.mean,
            "over_start": over_start.mean,
            "intervals": [[round(one.low, 3), round(one.high, 3)] for one in (over_bm25, over_start)],
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()

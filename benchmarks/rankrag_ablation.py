"""RankRAG's ablations and its data-efficiency curve, with the recipe of the embedded model's adapter.

    python benchmarks/rankrag_ablation.py --data ../shared/data [--variants all no-ranking ...] [--steps 480]
        [--limit 40] [--folder runs/ablation] [--json FILE] [--plot FILE]

Each variant is the recipe with a part of its blend left out, trained for the same number of steps; then it ranks BM25's
20 best of dev questions and answers from five of them, in BM25's order and in its own. `untuned` is the model without
an adapter, `shipped` the one that `tamis.load_rankrag()` opens. A variant takes an hour of one core; what was
interrupted goes on, and what `--json` holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import table, write

import tamis
from tamis.evaluation import evaluate_rankrag, read_collection
from tamis.training import read_recipe, train

RECIPE = Path(__file__).parents[1] / "cookbook" / "recipes" / "rankrag-smollm2.toml"
RANKING = ("ranking", "pseudo_ranking", "retrieval_ranking")
VARIANTS: Mapping[str, Mapping[str, Any]] = {  # what each changes in [options]
    "all": {},
    "no-ranking": {"leave_out": RANKING},
    "no-retrieval-qa": {"leave_out": ("retrieval_qa",)},
    "stage-one": {"stage": "sft"},
    "pairs-1%": {"ranking_share": 0.01},
    "pairs-10%": {"ranking_share": 0.1},
}
READY = {"untuned": "none", "shipped": None}  # adapters that need no training
CURVE = {"no-ranking": 0.0, "pairs-1%": 1.0, "pairs-10%": 10.0, "all": 100.0}  # percent of the ranking pairs
CHATS = "medquad"  # its long answers are the conversations of stage one
SETS = ("squad", "hotpotqa")
COLUMNS: dict[str, tuple[str, str, float]] = {
    "Recall@5, BM25": ("first_Recall@5", ".3f", 1.0),
    "Recall@5": ("Recall@5", ".3f", 1.0),
    "nDCG@10, BM25": ("first_nDCG@10", ".3f", 1.0),
    "nDCG@10": ("nDCG@10", ".3f", 1.0),
    "EM, BM25's": ("without_EM", ".1f", 1.0),
    "EM": ("with_EM", ".1f", 1.0),
    "F1, BM25's": ("without_F1", ".1f", 1.0),
    "F1": ("with_F1", ".1f", 1.0),
}


def main() -> None:
    """Parses the command line, trains, measures, prints."""
    arguments = parse()
    known = arguments.json is not None and arguments.json.exists()
    rows: list[dict[str, Any]] = json.loads(arguments.json.read_text())["rows"] if known else []
    for name in arguments.variants:
        if name not in {row["variant"] for row in rows}:
            rows += measured(name, adapter(name, arguments), arguments)
            write(arguments.json, {"steps": arguments.steps, "limit": arguments.limit, "rows": rows})
    for collection in [*SETS, "mean"]:
        table(collection, COLUMNS, [row for row in rows if row["collection"] == collection])
    if arguments.plot:
        draw([row for row in rows if row["collection"] == "mean"], arguments.plot)


def parse() -> argparse.Namespace:
    """The command line."""
    names = [*VARIANTS, *READY]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="where the collections lie")
    parser.add_argument("--variants", nargs="*", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--limit", type=int, default=40, help="dev questions of a collection, drawn with seed 0")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="draw the data-efficiency curve")
    return parser.parse_args()


def adapter(name: str, arguments: argparse.Namespace) -> str | Path | None:
    """What `tamis.load_rankrag` takes: the folder of the trained variant, or one that needs no training."""
    if name in READY:
        return READY[name]
    recipe = read_recipe(RECIPE)
    options = {**recipe.options, **VARIANTS[name]}
    if options.get("stage") == "sft":
        options["sft"] = (str(arguments.data / CHATS),)
    changed = replace(
        recipe,
        output=arguments.folder / name.replace("%", ""),
        data=replace(recipe.data, train=tuple(str(arguments.data / Path(one).name) for one in recipe.data.train)),
        options=options,
        arguments={**recipe.arguments, "max_steps": arguments.steps},
        evaluation=None,
    )
    return train(changed).folder


def measured(name: str, chosen: str | Path | None, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each collection, and one for their mean."""
    collections = [read_collection(arguments.data / one, "dev") for one in SETS]
    with tamis.load_rankrag(adapter=chosen) as rag:
        report = evaluate_rankrag({name: rag}, collections, top=20, top_k=5, limit=arguments.limit)
    rows = []
    for ranked, answered in zip(report.ranking.collections, report.answers, strict=True):
        row: dict[str, Any] = {"name": name, "variant": name, "collection": ranked.collection.name}
        for measure in ("Recall@5", "nDCG@10"):
            row[f"first_{measure}"] = ranked.means[measure]
            row[measure] = ranked.models[name].means[measure]
        for how, reranked in (("without", False), ("with", True)):
            means = answered.means(reranked=reranked)
            row |= {f"{how}_{measure}": 100 * (means[measure] or 0.0) for measure in ("EM", "F1")}
        rows.append(row)
    numbers = [key for key, value in rows[0].items() if isinstance(value, float)]
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in numbers}
    return [*rows, {"name": name, "variant": name, "collection": "mean", **mean}]


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """nDCG@10 and EM in the mean, against the share of the ranking pairs; `shipped` stands in for `all`."""
    from drawing import curve

    found = {row["variant"]: row for row in rows}
    if "shipped" in found:
        found.setdefault("all", found["shipped"])
    shares = [name for name in CURVE if name in found]
    figures = {
        "nDCG@10 of its order": [found[name]["nDCG@10"] for name in shares],
        "nDCG@10 of BM25's": [found[name]["first_nDCG@10"] for name in shares],
        "EM of answers from its order, share": [found[name]["with_EM"] / 100 for name in shares],
        "EM of answers from BM25's, share": [found[name]["without_EM"] / 100 for name in shares],
    }
    curve([f"{CURVE[name]:g}%" for name in shares], figures, "share of the ranking pairs", file)


if __name__ == "__main__":
    main()

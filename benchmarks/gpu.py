"""Everything about one GPU in one command of less than eight minutes.

    python benchmarks/gpu.py [--budget-s 440] [--rounds 5] [--passages 1024] [--only check hundred encoders rankrag]
        [--device cuda] [--json FILE] [--quick]

In this order: logits against float32 on the CPU, with small models; 100 passages of 256 tokens through an encoder of
0.3B parameters; four encoders' shapes on passages of lognormal length, beside sentence-transformers in bfloat16, with
the share of the GPU's own bfloat16 matrix rate; RankRAG with 100 passages that were never seen, and again with another
question, in the shapes of SmolLM2-135M and of an 8B Llama. All weights are random and made on the spot: it needs no
network. What does not fit the budget is left out, and the report says so; --json is written as it goes.
`--device cpu --quick` runs a part of it with small models, to see that it works.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
from pathlib import Path

import machine
import torch
from gpu_parts import PARTS, STEPS, Job, Step
from report import lines, table, write

COLUMNS = {
    "median ms": ("ms", ",.1f", 1.0),
    "best ms": ("best_ms", ",.1f", 1.0),
    "speed-up": ("ratio", ".2f", 1.0),
    "tokens/s": ("tokens_per_second", ",.0f", 1.0),
    "of matrix rate": ("share", ".0%", 1.0),
    "on the device": ("device_share", ".0%", 1.0),
    "padding": ("padding", ".0%", 1.0),
    "peak MB": ("peak_mb", ",.0f", 1.0),
    "largest difference": ("largest_difference", ".1e", 1.0),
}


def main() -> None:
    """Parses the command line, runs, prints."""
    parser = argparse.ArgumentParser(description="Measure Tamis on one GPU.")
    parser.add_argument("--budget-s", type=float, default=440, help="seconds, after which nothing new begins")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=1024, help="of lognormal length")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda", help='"cpu" only to see that it works')
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--quick", action="store_true", help="small models, few passages, one round")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.exit(
            1, f"torch {torch.__version__} sees no GPU here. To see that the script works: --device cpu --quick\n"
        )
    if arguments.rounds < 1 or arguments.passages < 1:
        parser.error("--rounds and --passages are at least 1")
    until = time.monotonic() + arguments.budget_s
    machine.quiet()
    with tempfile.TemporaryDirectory(dir=roomy(), ignore_cleanup_errors=True) as folder:
        rounds, passages = (1, 8) if arguments.quick else (arguments.rounds, arguments.passages)
        job = Job(arguments.device, Path(folder), rounds, passages, arguments.quick, until)
        job.report = {"machine": machine.describe(), "gpu": gpu(job.device), "tables": [], "left_out": [], "failed": []}
        for step in STEPS:
            wanted = step.part in arguments.only and (step.quick or not job.quick)
            if wanted and job.left(step.seconds, step.name):
                run(step, job)
                write(arguments.json, job.report)
    lines([f"{job.report['gpu']}; {machine.sentence(job.report['machine'])}"])
    write(arguments.json, job.report)
    if job.report["failed"]:
        raise SystemExit(1)


def run(step: Step, job: Job) -> None:
    """One table, printed; whatever goes wrong in it, the others are still to be measured."""
    try:
        made = step.make(job)
    except Exception as error:  # noqa: BLE001
        job.report["failed"].append({"name": step.name, "error": f"{type(error).__name__}: {error}"})
        lines([f"failed: {step.name} ({type(error).__name__}: {error})"], "red")
    else:
        job.report["tables"].append(made)
        table(made["title"], {**COLUMNS, **made.get("columns", {})}, made["rows"])
        lines(made["notes"])
    gc.collect()
    if job.device != "cpu":
        torch.cuda.empty_cache()


def roomy() -> str | None:
    """Memory to write checkpoints into, where there is enough of it: 16 GB on a disk can take minutes."""
    shared = Path("/dev/shm")
    return str(shared) if shared.exists() and shutil.disk_usage(shared).free > 24e9 else None


def gpu(device: str) -> str:
    """Its name and memory."""
    if device == "cpu":
        return "no GPU"
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB"


if __name__ == "__main__":
    main()

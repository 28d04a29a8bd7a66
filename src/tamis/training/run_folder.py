"""The folder of a run, and which run it is.

::

    output/
      model.safetensors ...    what was trained, once it is done: opens with `tamis.load`
      README.md                its card
      run.json                 recipe, losses, figures before and after
      examples.jsonl           the rows, drawn and mined once; a resumed run reads them again
      checkpoints/             the trainer's own, so that an interrupted run goes on
      start/, stage-one/       what it begins with, until it is done, or what a first stage made
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from tamis.training.recipe import Recipe

CHECKPOINTS = "checkpoints"
ROWS = "examples.jsonl"
REPORT = "run.json"
CARD = "README.md"
STAGE_ONE = "stage-one"  # of a recipe in two stages: a folder with checkpoints of its own
START = "start"
LEFT = (CHECKPOINTS, STAGE_ONE, START)


def fingerprint(recipe: Recipe) -> str:
    """What a run is, without where it stands and how it is judged: two runs with equal ones train alike."""
    content = plain(recipe)
    for name in ("output", "evaluation"):
        content.pop(name)
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as values that JSON knows."""
    content = {
        "recipe": recipe.recipe,
        "model": recipe.model,
        "output": recipe.output,
        "seed": recipe.seed,
        "data": asdict(recipe.data),
        "options": dict(recipe.options),
        "arguments": dict(recipe.arguments),
        "evaluation": asdict(recipe.evaluation) if recipe.evaluation else None,
    }
    return json.loads(json.dumps(content, default=str))  # type: ignore[no-any-return]


def read_report(folder: Path) -> dict[str, Any]:
    """What stands in a folder's `run.json`; empty if there is none."""
    try:
        found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """JSON in one piece: a reader sees the old file or the new one."""
    whole(path, lambda beside: beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside, and moved to its place when it is whole."""
    beside = path.with_suffix(".tmp")
    write(beside)
    beside.replace(path)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None.

    A trainer writes its state last; a folder without it was interrupted while it was written.
    """
    found = [path for path in folder.glob("checkpoint-*") if is_whole(path)]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's last-written file is there and can be read."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return checkpoint.name.rpartition("-")[2].isdigit()


def clear(folder: Path) -> None:
    """Removes what an earlier run would go on from."""
    for name in (REPORT, ROWS):
        (folder / name).unlink(missing_ok=True)
    for name in LEFT:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)

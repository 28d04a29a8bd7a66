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
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tamis.errors import InvalidInput
from tamis.training.recipe import BM25, EMBEDDED, Recipe

CHECKPOINTS = "checkpoints"
ROWS = "examples.jsonl"
REPORT = "run.json"
CARD = "README.md"
STAGE_ONE = "stage-one"  # of a recipe in two stages: a folder with checkpoints of its own
START = "start"
VECTORS = "vectors.npz"  # of an adaptor's texts, so that a resumed run reads none of them again
ADAPTOR = "adaptor"  # an adaptor's rotation alone
OWN = (CHECKPOINTS, STAGE_ONE, START, VECTORS, ROWS, CARD, REPORT)  # the report last: until then it says whose they are
MODULES = "modules.json"
SAVED = (
    "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "adapter_config.json",
    "adapter_model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", MODULES, "config_sentence_transformers.json",
    "sentence_bert_config.json", ADAPTOR, "fusion.json", "piece_counts.safetensors",
)  # fmt: skip
"""What recipes save, and what `tamis fuse` writes beside it; sentence-transformers' folders stand in `modules.json`."""


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


def is_run(folder: Path) -> bool:
    """Whether a folder's `run.json` is that of a run, so that what a run writes is a run's there."""
    return isinstance(read_report(folder).get("fingerprint"), str)


def saved(folder: Path) -> list[Path]:
    """What there is of a saved model."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        named = [one["path"] for one in modules if re.fullmatch(r"\d+_\w+", one["path"])]
    except (OSError, ValueError, TypeError, KeyError):
        named = []
    return sorted(path for pattern in (*named, *SAVED) for path in folder.glob(pattern))


def written(folder: Path) -> list[Path]:
    """What there is of all that a run writes, whoever wrote it; its report comes last."""
    return [*saved(folder), *(folder / name for name in OWN if (folder / name).exists())]


def clear(folder: Path) -> None:
    """Removes a run: what would be gone on from, the model, and its card. Other files stay."""
    for path in written(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_apart(recipe: Recipe, options: Any) -> None:
    """Raises InvalidInput if the output is, or holds, something that the run reads.

    Args:
        recipe: Its models and data are looked at.
        options: Its own; of these `adapter`, `teacher` and `sft`, where there are such.
    """
    data, judged = recipe.data, recipe.evaluation
    models = [recipe.model, data.teacher, data.guard_model, *data.negatives_from]
    models += [getattr(options, name, None) for name in ("adapter", "teacher")]
    folders = [*data.train, *getattr(options, "sft", ()), *(judged.data if judged else ())]
    output = recipe.output.resolve()
    for name in [*(str(one) for one in models if one not in (None, EMBEDDED, BM25)), *folders]:
        path = Path(name).expanduser()
        if path.resolve() == output or (output in path.resolve().parents and path.exists()):
            raise InvalidInput(f"The output {recipe.output} is or holds {name}, which the run reads; name another one.")


def check_writable(folder: Path) -> None:
    """Raises InvalidInput if nothing can be written into a folder; of the attempt nothing is left."""
    made: list[Path] = []
    try:
        made += [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise InvalidInput(
            f"The output {folder} cannot be written to: {error.strerror or error}. See to that, or name another one."
        ) from error
    finally:
        for one in made:
            with suppress(OSError):
                one.rmdir()

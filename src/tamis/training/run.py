"""One training run from its recipe to its card: read, check, train or go on, save, compare."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tamis.errors import InvalidData, InvalidInput
from tamis.evaluation.collection import Collection, read_collection
from tamis.extras import need
from tamis.training import processes, run_folder
from tamis.training.examples import read_examples, read_sources
from tamis.training.outcome import History, Trained, judge, record, recorded
from tamis.training.recipe import LABELLED, NO_TEACHER, Recipe, from_table
from tamis.training.registry import recipe_module
from tamis.training.rows import read_back, write_jsonl
from tamis.training.run_folder import fingerprint, plain, write_report

FULL = ("No space left", "os error 28", "PytorchStreamWriter", "inline_container", "File too large")  # how it is said


def train(recipe: Recipe, *, resume: bool = True, progress: bool | None = None) -> Trained:
    """Runs a recipe; goes on where an interrupted run of the same recipe stopped.

    Everything is read and checked before anything is trained. An interrupt (Ctrl-C) leaves the last checkpoint, and the
    same call goes on from there with the same rows in the same order. A run that is done is not done again.

    Args:
        recipe: What to do.
        resume: False begins anew and removes an earlier run in the same folder, its model with it.
        progress: Bars on standard error; None shows them in a terminal.

    Raises:
        InvalidInput: The recipe is wrong; or the output cannot be written to, holds a run of another recipe or files
            that are no run's, or is what the run reads.
        InvalidData: Rows are wrong: all of them are named.
        MissingExtra: The extra `train` is not installed.
        OSError: The disk is full, say. Checkpoints that were written before stay whole.
    """
    module, options = _opened(recipe)
    folder = recipe.output
    if resume and (done := _done(recipe)):
        if done["recipe"]["evaluation"] == plain(recipe)["evaluation"] or not processes.is_first():
            return recorded(recipe, done)
        report = judge(module, recipe, options, _collections(recipe), progress)
        return record(module, recipe, done["examples"], tuple(done["history"]), done["seconds"], report)
    with _writing(folder):
        with processes.first_before_others():
            collections, examples = _read(module, recipe, options, resume, progress)
        history, seconds = _trained(module, recipe, options, examples, progress)
        if not processes.is_first():
            return Trained(folder, history, seconds=seconds)
        report = judge(module, recipe, options, collections, progress)
        return record(module, recipe, len(examples), history, seconds, report)


def check(recipe: Recipe) -> str:
    """Reads everything that a run would read, and says what there is; nothing is mined, written or trained.

    Raises:
        InvalidInput: The recipe is wrong.
        InvalidData: Rows are wrong: all of them are named, of training and evaluation.
    """
    module, options = _opened(recipe)
    problems: list[str] = []
    count = 0
    with _gathered(problems):
        _collections(recipe)
    with _gathered(problems):
        count = _counted(module, recipe, options)
    if problems:
        raise InvalidData(problems)
    return f"{count:,} rows to train on; nothing is wrong with them."


def _trained(
    module: ModuleType, recipe: Recipe, options: Any, examples: Sequence[Any], progress: bool | None
) -> tuple[History, float]:
    """Trains, from the last checkpoint if there is one, and saves; the log, and the seconds that it took."""
    from tamis.training.progress import show_progress, without_bars

    checkpoints = recipe.output / run_folder.CHECKPOINTS
    with without_bars():
        trainer = module.prepare(recipe, options, examples, checkpoints)
        show_progress(trainer, progress)
        begun = time.monotonic()
        trainer.train(resume_from_checkpoint=run_folder.last_checkpoint(checkpoints))
        seconds = time.monotonic() - begun
        processes.part()
        if processes.is_first():
            module.save(trainer, recipe.output, options, examples)
            shutil.rmtree(recipe.output / run_folder.START, ignore_errors=True)  # which checkpoints may rest on
    return tuple(dict(entry) for entry in trainer.state.log_history), seconds


def _opened(recipe: Recipe) -> tuple[ModuleType, Any]:
    """The recipe's module and options; its arguments are tried before hours of mining, not after."""
    module = recipe_module(recipe)
    if recipe.evaluation is not None:
        need("ir_measures", "train", "The evaluation")  # before hours of work, not after
    options = from_table(module.Options, recipe.options, "[options]")
    if hasattr(module, "READS"):
        recipe.data.check_read(module.READS, f"the recipe {recipe.recipe!r}")
    if getattr(options, "loss", None) in LABELLED:
        recipe.data.check_read(NO_TEACHER, f"the loss {options.loss!r}")
    run_folder.check_apart(recipe, options)
    if processes.is_alone():  # making them joins the other processes, for which it is too early
        module.arguments(recipe, options, recipe.output / run_folder.CHECKPOINTS)
    return module, options


def _done(recipe: Recipe) -> dict[str, Any]:
    """The `run.json` of this very run, if it is finished; else nothing."""
    report = run_folder.read_report(recipe.output)
    return report if report.get("done") and report.get("fingerprint") == fingerprint(recipe) else {}


def _counted(module: ModuleType, recipe: Recipe, options: Any) -> int:
    if hasattr(module, "check"):
        return int(module.check(recipe, options))
    sources = [source for _, source in read_sources(recipe.data.train)]
    return sum(len(one.answerable()) if isinstance(one, Collection) else len(one) for one in sources)


def _collections(recipe: Recipe) -> list[Collection]:
    """What the run is judged by; bad rows of all folders are named."""
    asked = recipe.evaluation
    if asked is None:
        return []
    problems: list[str] = []
    found = []
    for folder in asked.data:
        with _gathered(problems):
            found.append(read_collection(folder, asked.split))
    if problems:
        raise InvalidData(problems)
    return found


@contextmanager
def _gathered(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except InvalidData as error:
        problems += error.problems


def _read(
    module: ModuleType, recipe: Recipe, options: Any, resume: bool, progress: bool | None
) -> tuple[list[Collection], list[Any]]:
    """What the run is judged by, and its rows: an interrupted run's, or new ones, which are written down first."""
    run_folder.check_writable(recipe.output)
    try:
        collections = _collections(recipe)
    except InvalidData:
        check(recipe)  # which names what is wrong with the other rows too
        raise
    folder, rows = recipe.output, recipe.output / run_folder.ROWS
    earlier = run_folder.read_report(folder)
    if earlier.get("fingerprint") == fingerprint(recipe) and rows.exists() and (resume or not processes.is_first()):
        return collections, list(getattr(module, "read_back", read_back)(rows))
    _check_free(folder, earlier, resume)
    read = getattr(module, "examples", None)
    examples = read(recipe, options, progress) if read else read_examples(recipe.data, recipe.seed, progress)
    if not examples:
        raise InvalidInput("There is nothing to train on: no example came out of [data].")
    run_folder.clear(folder)  # not before: bad rows cost nobody an earlier run
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / run_folder.REPORT, {"fingerprint": fingerprint(recipe), "recipe": plain(recipe)})
    run_folder.whole(rows, lambda path: getattr(module, "write_jsonl", write_jsonl)(examples, path))
    return collections, list(examples)


def _check_free(folder: Path, earlier: Mapping[str, Any], resume: bool) -> None:
    """Raises InvalidInput if a new run in this folder would take the place of something worth keeping."""
    there = run_folder.written(folder)
    if there and not run_folder.is_run(folder):
        names = ", ".join(path.name for path in there)
        raise InvalidInput(f"{folder} has {names}, and no {run_folder.REPORT} of a run; name another output.")
    begun = (folder / run_folder.CHECKPOINTS, folder / run_folder.STAGE_ONE / run_folder.CHECKPOINTS)
    if resume and (earlier.get("done") or run_folder.saved(folder) or any(map(run_folder.last_checkpoint, begun))):
        raise InvalidInput(
            f"{folder} holds a run of another recipe. Name another output, or begin anew with resume=False (--fresh)."
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says what a full disk means, whichever library notices it, and however."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if getattr(error, "errno", None) not in numbers and not any(mark in str(error) for mark in FULL):
            raise
        raise OSError(
            errno.ENOSPC,
            f"{folder} cannot be written to ({type(error).__name__}); is the disk full? What was written before is "
            "whole: make room, and the same run goes on from its last checkpoint",
        ) from error

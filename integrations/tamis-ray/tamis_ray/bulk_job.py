"""A job over parts of the input: what is done stays done, and what was interrupted is found again.

Each part becomes one file, whose name says which rows of which file it was made from, and which appears whole or not at
all. So a job that is run again, after its driver was killed, makes the parts that are not there; one that two workers
made, because the first was thought dead, is one file. The job's own file says what it is: another model, other options
or another input are refused in its folder.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from tamis.errors import InvalidInput, TamisError
from tamis_ray.bulk_files import UNFINISHED, Folder
from tamis_ray.bulk_input import Part, read
from tamis_ray.bulk_model import Model

if TYPE_CHECKING:
    import pyarrow as pa

    from tamis import Reranker
    from tamis_ray.bulk_pool import Pool

logger = logging.getLogger("tamis_ray")

JOB = "_job.json"
INPUT = "_input"  # where a dataset that lies in no files is kept while the job runs
BLOCKS = 10_000  # of the dataset of parts: each is a task


@dataclass(frozen=True, slots=True)
class Work:
    """What an actor does with a part; travels to it.

    Attributes:
        model: What it loads.
        folder: Where the parts' files go.
        suffix: Of their names.
        columns: What is read of the input; None for all.
        make: From the reranker, the rows, the file's name and its first row's number: the file's content, and how many
            rows were left out or got no score.
    """

    model: Model
    folder: Folder
    suffix: str
    columns: Sequence[str] | None
    make: Callable[[Reranker, pa.Table, str, int], tuple[bytes | pa.Buffer, int]]


class PartActor:
    """One actor: a reranker, and the parts that come to it.

    Errors come back as values: Ray hands on an exception's text, not its type.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._reranker: Reranker | None = None

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """Parts, one a row of the batch; a row for each comes back: `rows`, `skipped`, and `error`, a pickle."""
        done = [self._one(Part(**row)) for row in batch.to_pylist()]
        return {name: [row[name] for row in done] for name in ("rows", "skipped", "error")}

    def _one(self, part: Part) -> dict[str, Any]:
        work, name = self._work, part.file(self._work.suffix)
        skipped = 0
        try:
            if not work.folder.has(name):  # it is there where Ray repeats a task that had come this far
                self._reranker = self._reranker or work.model.load()
                content, skipped = work.make(self._reranker, read(part, work.columns), part.name, part.start)
                work.folder.write(name, content)
        except TamisError as error:
            return {"rows": 0, "skipped": 0, "error": pickle.dumps(error)}
        return {"rows": part.stop - part.start, "skipped": skipped, "error": b""}


def open_job(folder: Folder, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The job that was begun in a folder; None for a folder that is new or empty.

    Args:
        folder: Where.
        identity: What the job is, as JSON.

    Raises:
        InvalidInput: Another job was begun there, or something else is in it.
    """
    content = folder.read(JOB)
    if content is None:
        if any(not name.startswith(("_", UNFINISHED)) for name in folder.names()):
            raise InvalidInput(f"{folder.uri} holds files of something else; pass another output folder.")
        return None
    try:
        begun: dict[str, Any] = json.loads(content)
        earlier, _, _ = begun["identity"], begun["copy"], begun["done"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{folder.path(JOB)} is damaged; pass another output folder.") from error
    for name in sorted({*earlier, *identity} - {"input"}):
        _same(folder, name, earlier.get(name), identity.get(name))
    if "input" in identity:
        was, now = earlier.get("input") or {}, identity["input"] or {}
        changed = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
        if changed:
            raise InvalidInput(
                f"The job in {folder.uri} was begun over another input ({len(changed)} files differ, the first is "
                f"{changed[0]}). Pass another output folder."
            )
    return begun


def _same(folder: Folder, name: str, was: Any, now: Any) -> None:
    if was == now:
        return
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            _same(folder, key, was.get(key), now.get(key))
        return
    raise InvalidInput(
        f"The job in {folder.uri} was begun with {name}={was!r}, and this is {name}={now!r}. Pass the same to go on "
        "with it, or another output folder."
    )


def save_job(folder: Folder, identity: Mapping[str, Any], copy: str, *, done: bool) -> None:
    """Writes what the job is.

    Args:
        folder: Where.
        identity: See `open_job`.
        copy: The folder below `INPUT` that holds the rows of a dataset; empty where they are in files of their own.
        done: Whether all of it is there.
    """
    from tamis import __version__

    content = {"identity": identity, "copy": copy, "done": done, "tamis": __version__}
    folder.write(JOB, json.dumps(content, indent=1, sort_keys=True).encode())


def run_parts(parts: Sequence[Part], work: Work, pool: Pool) -> None:
    """Makes the parts that are not there yet.

    Raises:
        InvalidData: Rows of a part are bad; the other parts that were finished stay.
        TamisError: The model could not be loaded, or failed.
    """
    import ray

    there = work.folder.names()
    todo = [part for part in parts if part.file(work.suffix) not in there]
    logger.info("%d of %d parts are there already in %s", len(parts) - len(todo), len(parts), work.folder.uri)
    rows = skipped = 0
    if todo:
        items = ray.data.from_items([asdict(part) for part in todo], override_num_blocks=min(len(todo), BLOCKS))
        results = pool.map(items, PartActor, (work,), batch_size=1)
        with closing(cast("Generator[dict[str, Any]]", iter(results.iter_rows()))) as outcomes:  # errors end the job
            for outcome in outcomes:
                if outcome["error"]:
                    raise pickle.loads(outcome["error"])  # noqa: S301 - our own actors wrote it
                rows += outcome["rows"]
                skipped += outcome["skipped"]
    logger.info("%d rows done in this run, %d of them without a score", rows, skipped)
    there = work.folder.names()
    missing = {part.file(work.suffix) for part in parts} - there
    if missing:
        raise InvalidInput(
            f"{len(missing)} files were removed from {work.folder.uri} while the job ran, {min(missing)} first. Run it "
            "again: it makes what is missing."
        )
    work.folder.remove({name for name in there if name.startswith(f"{UNFINISHED}part-")})  # of workers that were killed

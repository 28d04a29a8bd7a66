"""From what a caller passes to a job that is done: input in files, identity, parts, the parts that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from tamis.errors import InvalidInput
from tamis_ray.bulk_files import Folder
from tamis_ray.bulk_input import Source, cut, sources
from tamis_ray.bulk_job import INPUT, Work, open_job, run_parts, save_job
from tamis_ray.bulk_pool import Pool

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Check = Callable[["pa.Schema", str], None]


@dataclass(frozen=True, slots=True)
class Input:
    """What rows come from: a dataset of Ray's, or files.

    Attributes:
        ds: Makes the dataset.
        paths: Files and folders, where there is none.
    """

    ds: Callable[[], Dataset] | None
    paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: object) -> Self:
        """As a caller passes it.

        Raises:
            InvalidInput: It is neither.
        """
        from ray.data import Dataset

        if isinstance(given, Dataset):
            return cls(lambda: given)
        paths = [given] if isinstance(given, str | Path) else given
        if not isinstance(paths, Sequence) or not all(isinstance(path, str | Path) for path in paths):
            raise InvalidInput(f"The input is a {type(given).__name__}; pass a Ray dataset, or paths of Parquet files.")
        return cls(None, tuple(Folder.at(path).uri for path in paths))

    def dataset(self, check: Check, columns: list[str] | None) -> Dataset:
        """A dataset of it; of files, checked, and only the columns that are needed."""
        import ray

        if self.ds is not None:
            return self.ds()
        return ray.data.read_parquet([source.path for source in sources(self.paths, check)], columns=columns)

    def write(self, folder: Folder, rows: int) -> None:
        """Writes the dataset into a folder, at least `rows` rows a file.

        Raises:
            InvalidInput: It has no rows, or a column of several types.
        """
        from pyarrow import ArrowException

        assert self.ds is not None  # noqa: S101 - asked before the call
        try:
            self.ds().write_parquet(folder.uri, min_rows_per_file=rows)
        except ArrowException as error:  # Ray's error is of the class of its cause, too; its text has a traceback
            reason = (str(getattr(error, "cause", error)).splitlines() or [""])[0]
            raise InvalidInput(f"The dataset cannot be written as Parquet: {reason}.") from error
        if not folder.names():
            raise InvalidInput("The dataset has no rows.")


def run_job(
    given: Input,
    work: Work,
    identity: Mapping[str, Any],
    check: Check,
    batch_size: int,
    pool: Pool,
    joined: str | None = None,
) -> None:
    """Makes all parts of a job, or those that an earlier run left.

    Args:
        given: The rows.
        work: What is made of them.
        identity: What the job is, besides model and input.
        check: Called with the schema and name of each input file.
        batch_size: Rows of a part.
        pool: Who does it.
        joined: A file that the parts are put together in, in the order of the input, instead of staying.

    Raises:
        InvalidInput: The input is wrong, or the folder holds another job.
        TamisError: As `run_parts`.
    """
    folder, copies = work.folder, work.folder.folder(INPUT)
    whole = {
        **identity,
        "batch_size": batch_size,
        **work.model.identity(),
        "from": "files" if given.ds is None else "a dataset",
    }
    files = None if given.ds is not None else sources(given.paths, check)
    begun = open_job(folder, whole if files is None else {**whole, "input": _stamps(files)})
    if begun is not None and begun["done"] and (files is None if joined is None else folder.has(joined)):
        return
    copy = "" if begun is None else begun["copy"]
    if files is None and begun is None:
        copies.clear()
        copy = uuid4().hex[:8]  # a name of its own: workers of a driver that was killed may still write to the last one
        given.write(copies.folder(copy), batch_size)
    if files is None:
        uri = copies.folder(copy).uri
        files = [replace(source, name=f"{INPUT}/{copy}/{source.name}") for source in sources([uri], check)]
    whole["input"] = _stamps(files)
    if begun is None:
        save_job(folder, whole, copy, done=False)
    parts = cut(files, batch_size)
    run_parts(parts, work, pool)
    names = [part.file(work.suffix) for part in parts]
    if joined is not None:
        folder.join(joined, names)
    save_job(folder, whole, copy, done=True)
    copies.clear()
    if joined is not None:
        folder.remove(set(names))


def _stamps(files: Sequence[Source]) -> dict[str, list[Any]]:
    return {file.name: [file.rows, file.stamp] for file in files}

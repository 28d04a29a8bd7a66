"""`score_dataset`: pairs of queries and passages in bulk, over Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tamis.errors import InvalidInput
from tamis_ray.bulk_columns import Columns
from tamis_ray.bulk_files import Folder
from tamis_ray.bulk_job import Work
from tamis_ray.bulk_model import Model
from tamis_ray.bulk_pool import Pool, check_batch_size, need_ray
from tamis_ray.bulk_scoring import score_table
from tamis_ray.bulk_stages import Input, run_job

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from tamis import Reranker

OnError = Literal["raise", "skip"]


def score_dataset(
    ds: Dataset | str | Path | Sequence[str | Path],
    model: str | Path | None = None,
    *,
    query_column: str = "query",
    text_column: str = "text",
    id_columns: Sequence[str] | None = None,
    output: str | Path | None = None,
    on_error: OnError = "raise",
    batch_size: int = 4096,
    actors: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    runtime_env: dict[str, Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> Dataset:
    """Scores the passages of every row, with a pool of actors that each hold a reranker.

    Rows come back with their kept columns and `score`, `logit`, `truncated` and `reason`; where `text_column` holds
    lists of passages, the first three are lists of the same length. Ray Data does not keep the order of rows; keep the
    columns by which you know them. The files of an `output`, sorted by name, are in the order of the input.

    With an `output` the job runs before this returns, and can be interrupted: called again with the same arguments, it
    goes on where it was stopped, however it was stopped, and does nothing where all is done. Without one the dataset
    that is returned is lazy, as every dataset of Ray's is: an error comes up where it is consumed, in a
    `ray.exceptions.RayTaskError` whose text ends with ours.

    Args:
        ds: A Ray dataset; or Parquet files and folders of them, paths or URIs.
        model: As for `tamis.load`.
        query_column: Texts.
        text_column: Texts, or lists of texts. Modes that read a query's passages together (`lexical`, listwise models)
            need lists: rows of single passages are put together as they happen to share a batch.
        id_columns: What is kept beside the scores; every column if None.
        output: A folder for Parquet files; on several machines, one that all of them reach. A `ds` that is a dataset is
            first written to `output/_input`, since only what lies in files is the same twice; the copy is removed at
            the end, and `score_dataset(ds).write_parquet(...)` does without it, and without going on.
        on_error: A row is bad if its query or a passage is null, empty or not a text, if the model gives no finite
            number, or if it is too long under `long_documents="error"`. "raise" ends the job, with the file and the
            number of the row, from 0; "skip" keeps the row, with nulls and a `reason`.
        batch_size: Rows of a batch, and of a file of the output: what is lost at most for each actor when a job stops.
        actors: How many; (least, most); None for one up to what the cluster has room for.
        num_cpus: Of each actor, and its threads; 1, without a GPU, if None.
        num_gpus: Of each actor.
        runtime_env: Of the actors; the place for a server's key, as `{"env_vars": {"TAMIS_API_KEY": ...}}`.
        progress: Ray's progress bars.
        options: Every other argument of `tamis.load`.

    Returns:
        The scored rows; where there is an `output`, read from it.

    Raises:
        InvalidInput: An argument is wrong, a column is missing, or the output's job is another one than this.
        InvalidData: Rows are bad, with `on_error="raise"` and an `output`.
        MissingExtra: Ray is not installed.
        TamisError: The model cannot be loaded, or failed.
    """
    if on_error not in ("raise", "skip"):
        raise InvalidInput(f'on_error={on_error!r}; pass "raise" or "skip".')
    check_batch_size(batch_size)
    columns = Columns(query_column, text_column, None if id_columns is None else tuple(id_columns))
    scoring = Scoring(Model(None if model is None else str(model), options), columns, skip=on_error == "skip")
    pool = Pool(actors, num_cpus, num_gpus, runtime_env, progress)
    ray = need_ray()
    given = Input.of(ds)
    if output is None:
        return pool.map(given.dataset(columns.check, columns.needed()), TableActor, (scoring,), batch_size)
    work = Work(scoring.model, Folder.at(output), "parquet", columns.needed(), scoring.part)
    run_job(given, work, scoring.identity(), columns.check, batch_size, pool)
    scored: Dataset = ray.data.read_parquet(work.folder.uri)
    return scored


@dataclass(frozen=True, slots=True)
class Scoring:
    """What an actor has to know.

    Attributes:
        model: What it loads.
        columns: Which columns are read and kept.
        skip: Whether bad rows get a reason instead of ending the job.
    """

    model: Model
    columns: Columns
    skip: bool

    def identity(self) -> dict[str, Any]:
        """What tells the job from others, besides its model and its input."""
        kept = None if self.columns.kept is None else list(self.columns.kept)
        return {
            "task": "score",
            "query_column": self.columns.query,
            "text_column": self.columns.text,
            "id_columns": kept,
        }

    def part(self, reranker: Reranker, table: pa.Table, where: str, first: int) -> tuple[pa.Buffer, int]:
        """A Parquet file of the scored rows, and how many of them have no score."""
        import pyarrow as pa
        from pyarrow.parquet import write_table

        made = score_table(reranker, table, self.columns, skip=self.skip, where=where, first=first)
        sink = pa.BufferOutputStream()
        write_table(made, sink)
        return sink.getvalue(), len(made) - made.column("reason").null_count


class TableActor:
    """One actor over batches of any dataset."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._reranker: Reranker | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch with its scores."""
        scoring = self._scoring
        self._reranker = self._reranker or scoring.model.load()  # here: Ray repeats creations that fail
        return score_table(self._reranker, batch, scoring.columns, skip=scoring.skip, where="a batch")

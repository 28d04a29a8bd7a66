"""`mine_negatives`: hard negatives in bulk, scored by a teacher that also guards against false ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tamis.errors import InvalidInput
from tamis_ray.bulk_drawing import Mining, searched
from tamis_ray.bulk_files import Folder
from tamis_ray.bulk_job import Work
from tamis_ray.bulk_model import Model
from tamis_ray.bulk_pool import Pool, check_batch_size, need_ray
from tamis_ray.bulk_stages import Input, run_job

if TYPE_CHECKING:
    from ray.data import Dataset

RESULT = "negatives.jsonl"


def mine_negatives(
    ds: Dataset | str | Path | Sequence[str | Path],
    model: str | Path | None = None,
    *,
    output: str | Path,
    query_column: str = "query",
    positives_column: str = "pos",
    candidates_column: str = "candidates",
    answers_column: str | None = None,
    negatives: int = 7,
    top: int = 50,
    guard: float | None = 0.95,
    form: Literal["labels", "scores"] = "labels",
    seed: int = 42,
    split: str = "train",
    on_error: Literal["raise", "skip"] = "raise",
    batch_size: int = 256,
    actors: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    runtime_env: dict[str, Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> str:
    """Draws hard negatives for every query from what a first stage found, as `tamis train` does for one machine.

    A candidate is no negative if it is one of the positives, if it holds one of the query's short answers, or if the
    teacher scores it above `guard` times the query's weakest positive (`tamis.training.mining.mine`). A query is drawn
    for alike in every run, and the job can be interrupted and goes on, as that of `score_dataset`.

    Args:
        ds: A Ray dataset or Parquet files: a row for each query, with its positives and candidates. Or a folder in
            BEIR's layout, whose candidates BM25 finds; it is searched in memory, on this machine.
        model: The teacher, as for `tamis.load`.
        output: A folder; as for `score_dataset`.
        query_column: Texts.
        positives_column: Lists of texts that answer the query; one at least.
        candidates_column: Lists of texts, the first stage's best first.
        answers_column: Lists of short answers; nothing is asked about answers if None.
        negatives: Of each query; fewer where the guards leave fewer.
        top: From how many of the first candidates they are drawn.
        guard: The margin, of cosines and MaxSim where the teacher is a bi-encoder or late interaction, else of its
            probabilities. None only scores.
        form: "labels" writes `{"query", "pos", "neg"}`; "scores" has the positives and negatives in `pos` and the
            teacher's logits in `scores`, for distillation.
        seed: Of the draws.
        split: Of a folder in BEIR's layout.
        on_error: "raise" ends the job at a bad row; "skip" leaves the query out.
        batch_size: Queries of a part, which is lost at most for each actor when a job stops.
        actors: As for `score_dataset`.
        num_cpus: Likewise.
        num_gpus: Likewise.
        runtime_env: Likewise.
        progress: Likewise.
        options: Every other argument of `tamis.load`.

    Returns:
        `output/negatives.jsonl`, to be named in a recipe's `[data] train`. Queries that have no negative left are not
        in it.

    Raises:
        InvalidInput: An argument is wrong, a column is missing, or the output's job is another one than this.
        InvalidData: Rows are bad, with `on_error="raise"`.
        MissingExtra: Ray is not installed.
        TamisError: The model cannot be loaded, or failed.
    """
    mining = Mining(
        columns=(query_column, positives_column, candidates_column),
        answers=answers_column,
        negatives=negatives,
        top=top,
        guard=guard,
        form=form,
        seed=seed,
        skip=on_error == "skip",
    )
    if on_error not in ("raise", "skip"):
        raise InvalidInput(f'on_error={on_error!r}; pass "raise" or "skip".')
    check_batch_size(batch_size)
    pool = Pool(actors, num_cpus, num_gpus, runtime_env, progress)
    ray = need_ray()
    folder = Folder.at(output)
    work = Work(Model(None if model is None else str(model), options), folder, "jsonl", mining.needed(), mining.part)
    identity = mining.identity()
    if isinstance(ds, str | Path) and (collection := Path(ds).resolve() / "corpus.jsonl").is_file():
        given = Input(lambda: ray.data.from_arrow(searched(collection.parent, split, mining)))
        identity |= {"collection": str(collection.parent), "split": split}
    else:
        given = Input.of(ds)
    run_job(given, work, identity, mining.check, batch_size, pool, RESULT)
    return folder.path(RESULT)

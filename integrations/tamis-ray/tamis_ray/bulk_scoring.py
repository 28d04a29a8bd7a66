"""Rows through a reranker, and the columns that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tamis.errors import InputTooLong, InvalidData, InvalidScore, TamisError
from tamis_ray.bulk_columns import Columns, Row

if TYPE_CHECKING:
    import pyarrow as pa

    from tamis import Hit, Ranking, Reranker

ROW_ERRORS = (InputTooLong, InvalidScore)  # what one passage brings upon a request; everything else ends the job


@dataclass(frozen=True, slots=True)
class Request:
    """What is ranked at once: rows with the same query.

    Attributes:
        query: Theirs.
        rows: Which of the batch they are.
        texts: Their passages, one row's after the other's.
        counts: How many passages each has.
    """

    query: str
    rows: Sequence[int]
    texts: Sequence[str]
    counts: Sequence[int]


def score_rows(reranker: Reranker, rows: Sequence[Row | str], most: int | None = None) -> list[list[Hit] | str]:
    """The hits of each row, in the order of its passages; or the reason why it has none.

    Rows of one passage that share a query are one request, so that a bi-encoder reads the query once. Where a request
    fails for what a passage holds, its rows are tried one by one.

    Args:
        reranker: Which.
        rows: As `Columns.rows` has them; what is wrong with a row is handed through.
        most: Stop after this many bad rows; the others then have no hits.
    """
    found: list[list[Hit] | str] = [row if isinstance(row, str) else [] for row in rows]
    bad = sum(isinstance(row, str) for row in rows)
    requests = list(_requests(rows))
    at = 0
    while at < len(requests) and (most is None or bad < most):
        try:
            for ranking in reranker.rank_many((request.query, request.texts) for request in requests[at:]):
                _place(found, requests[at], ranking)
                at += 1
        except ROW_ERRORS as error:
            bad += _alone(reranker, requests[at], error, found)
            at += 1
    return found


def _requests(rows: Sequence[Row | str]) -> Iterator[Request]:
    shared: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if isinstance(row, str):
            continue
        if row.listed:
            yield Request(row.query, [index], row.texts, [len(row.texts)])
        else:
            shared.setdefault(row.query, []).append(index)
    for query, members in shared.items():
        texts = [row.texts[0] for index in members if isinstance(row := rows[index], Row)]
        yield Request(query, members, texts, [1] * len(members))


def _place(found: list[list[Hit] | str], request: Request, ranking: Ranking) -> None:
    hits = sorted(ranking, key=lambda hit: hit.index)
    start = 0
    for row, count in zip(request.rows, request.counts, strict=True):
        found[row] = hits[start : start + count]
        start += count


def _alone(reranker: Reranker, request: Request, error: TamisError, found: list[list[Hit] | str]) -> int:
    """Fills in the rows of a request that failed; returns how many of them are bad."""
    if len(request.rows) == 1:
        found[request.rows[0]] = str(error)
        return 1
    bad = 0
    for row, text in zip(request.rows, request.texts, strict=True):  # several rows: each has one passage
        try:
            found[row] = list(reranker.rank(request.query, [text]))
        except ROW_ERRORS as own:
            found[row] = str(own)
            bad += 1
    return bad


def check_rows(table: pa.Table, found: Sequence[Any | str], ids: Sequence[str], where: str, first: int) -> None:
    """Raises InvalidData if rows are bad, with the file, the row's number in it and its ids.

    Args:
        table: The rows.
        found: For each, what is wrong with it, or anything else.
        ids: Columns that say which row it is.
        where: What the table is a part of.
        first: The number of its first row there.
    """
    lines = []
    for index, wrong in enumerate(found):
        if isinstance(wrong, str):
            known = ", ".join(f"{name}={table.column(name)[index].as_py()!r}" for name in ids)
            lines.append(f"{where}: row {first + index}{f' ({known})' if known else ''}: {wrong.rstrip('.')}.")
    if lines:
        raise InvalidData(lines)


def score_table(
    reranker: Reranker, table: pa.Table, columns: Columns, *, skip: bool, where: str, first: int = 0
) -> pa.Table:
    """A table with its scores.

    Args:
        reranker: Which.
        table: Rows.
        columns: Which columns are read and kept.
        skip: Whether bad rows get nulls and a reason.
        where: What the table is a part of, for messages.
        first: The number of its first row there.

    Returns:
        The kept columns, `score` and `logit` (float64), `truncated` (bool) and `reason` (text, null where all is well);
        the first three are lists where the passages are.

    Raises:
        InvalidInput: The columns are not there or not texts.
        InvalidData: Rows are bad, and `skip` is False.
    """
    columns.check(table.schema, where)
    rows = columns.rows(table)
    if not skip:
        check_rows(table, rows, columns.ids(), where, first)
    found = score_rows(reranker, rows, None if skip else InvalidData.SHOWN)
    if not skip:
        check_rows(table, found, columns.ids(), where, first)
    return with_results(table, columns, found)


def with_results(table: pa.Table, columns: Columns, found: Sequence[list[Hit] | str]) -> pa.Table:
    """The kept columns and the four of the result."""
    import pyarrow as pa
    from pyarrow import types

    kind = table.schema.field(columns.text).type
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)

    def column(name: str, of: pa.DataType) -> pa.Array:
        values: list[Any] = []
        for hits in found:
            own = None if isinstance(hits, str) else [getattr(hit, name) for hit in hits]
            values.append(own if listed or own is None else own[0])
        return pa.array(values, pa.list_(of) if listed else of)

    kept = table if columns.kept is None else table.select(list(columns.kept))
    for name, of in (("score", pa.float64()), ("logit", pa.float64()), ("truncated", pa.bool_())):
        kept = kept.append_column(name, column(name, of))
    reasons = [hits if isinstance(hits, str) else None for hits in found]
    return kept.append_column("reason", pa.array(reasons, pa.string()))

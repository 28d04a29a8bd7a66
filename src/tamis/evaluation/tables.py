"""Reports for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from tamis.evaluation.bootstrap import LEVEL, Interval
from tamis.evaluation.calibration import Calibration, Threshold
from tamis.evaluation.measures import MAIN, MEASURES
from tamis.evaluation.results import CollectionResult, Differences, Means

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tamis.evaluation.dimensions import DimensionReport
    from tamis.evaluation.rankrag_report import AnswerResult, RankRAGReport
    from tamis.evaluation.report import Report
    from tamis.evaluation.speed import SpeedReport, Timing

NAME = 20  # columns for a name
Gain: TypeAlias = tuple[str, str, Differences]  # a collection, a model, and what it gains there
SHORT = {"Recall@5": "R@5", "Recall@10": "R@10", "Recall@20": "R@20"}


def ranking_tables(report: Report) -> RenderableType:
    """Quality and speed by collection, the main measure's intervals, and what the scores are worth."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for each in report.collections:
        parts += [_about(each, report), _of_collection(each, report), *_known(each), ""]
    if len(report.collections) > 1:
        counted = sum(bool(each.measured) for each in report.collections)
        parts += [title(f"mean of {counted} collections"), _of_mean(report), ""]
    if report.models:
        parts += [
            dim(f"+ better, - worse than {report.first_stage}: {LEVEL:.0%} interval of the difference without 0"),
            "",
            title(f"{MAIN} against {report.first_stage}"),
            _intervals(_gains(report)),
            "",
            *_compared(report),
            title("scores: how well they tell relevant passages, and from which one on to keep them"),
            _calibrations(report),
        ]
    return Group(*parts)


def _about(result: CollectionResult, report: Report) -> RenderableType:
    collection = result.collection
    facts = f"{len(result.measured):,} queries, {len(collection.corpus):,} passages"
    if result.found is not None:
        facts += f"; {report.first_stage}'s Recall@{report.top} is {result.found:.3f}"
    if result.unanswerable:
        facts += f"\n{result.unanswerable:,} queries more have no relevant passage: these measures leave them out"
    return title(collection.name, facts)


def _of_collection(result: CollectionResult, report: Report) -> Table:
    table = _quality()
    add(table, *_quality_row(report.first_stage, result.means, {}, None))
    for name, model in result.models.items():
        speed = (model.seconds_per_query, model.passages_per_second)
        add(table, *_quality_row(name, model.means, model.differences, speed))
    return table


def _known(result: CollectionResult) -> list[RenderableType]:
    """A remark on times in which passages were not read: of several loads of a checkpoint the first one reads them."""
    shares = [(name, model.cached / max(1, model.scored)) for name, model in result.models.items()]
    known = [f"{name} {share:.0%}" for name, share in shares if share]
    return [dim(f"passages whose vectors were known already: {', '.join(known)}")] if known else []


def _of_mean(report: Report) -> Table:
    table = _quality()
    add(table, *_quality_row(report.first_stage, report.means(), {}, None))
    for name in report.models:
        speed = (report.seconds_per_query(name), report.passages_per_second(name))
        add(table, *_quality_row(name, report.means(name), report.differences[name], speed))
    return table


def _quality() -> Table:
    measures = [(SHORT.get(name, name), max(6, len(SHORT.get(name, name)))) for name in MEASURES]
    return columns(("", NAME), *measures, ("s/query", 7), ("pass./s", 7))


def _quality_row(name: str, means: Means, differences: Differences, speed: tuple[float, float] | None) -> Iterable[str]:
    yield shortened(name)
    for measure in MEASURES:
        sign = differences[measure].sign if measure in differences else ""
        yield f"{means[measure]:.3f}{sign or ' '}" if measure in means else "- "
    yield from ("", "") if speed is None else (f"{speed[0]:.3g}", f"{speed[1]:,.0f}")


def _gains(report: Report) -> list[Gain]:
    rows = [
        (each.collection.name, name, model.differences)
        for each in report.collections
        for name, model in each.models.items()
    ]
    if len(report.collections) > 1:
        rows += [("mean", name, report.differences[name]) for name in report.models]
    return rows


def _compared(report: Report) -> list[RenderableType]:
    found = report.comparison
    if found is None or not found.mean:
        return []
    rows = [(name, model, gains) for name, models in found.collections.items() for model, gains in models.items()]
    if len(report.collections) > 1:
        rows += [("mean", model, gains) for model, gains in found.mean.items()]
    return [title(f"{MAIN} against {found.other}"), _intervals(rows), ""]


def _intervals(rows: Iterable[Gain]) -> Table:
    table = columns(("", NAME), (" model", -NAME - 1), ("difference", 10), (f"{LEVEL:.0%} interval", 18))
    for collection, model, differences in rows:
        if MAIN in differences:
            add(table, shortened(collection), " " + shortened(model), *interval_cells(differences[MAIN]))
    return table


def interval_cells(interval: Interval) -> tuple[str, str]:
    """A difference and its interval."""
    return f"{interval.mean:+.4f}{interval.sign or ' '}", f"{interval.low:+.4f} to {interval.high:+.4f}"


def _calibrations(report: Report) -> Table:
    table = columns(
        ("", NAME), ("AUC", 5), ("error", 6), ("  min_score", -23), ("precision", 9), ("recall", 6), ("F1", 5)
    )  # fmt: skip
    for name, found in report.calibrations.items():
        auc = "-" if found.auc is None else f"{found.auc:.3f}"
        add(table, shortened(name), auc, f"{found.error:.3f}", *_threshold(found.best, "best F1"))
        add(table, "", "", "", *_precise(found))
    return table


def _threshold(found: Threshold | None, why: str) -> Sequence[str]:
    if found is None:
        return f"  -      {why}", "-", "-", "-"
    return f"  {found.min_score:.4f} {why}", f"{found.precision:.3f}", f"{found.recall:.3f}", f"{found.f1:.3f}"


def _precise(found: Calibration) -> Sequence[str]:
    return _threshold(found.precise, f"precision {found.precision:g}")


def dimension_table(report: DimensionReport) -> RenderableType:
    """Quality and size by model and dimensions."""
    from rich.console import Group

    from tamis.evaluation.dimensions import called

    base = report.report
    table = columns(("", NAME), ("dimensions", 10), ("bytes", 7), (MAIN, 8), ("of full", 8), ("95% interval", 20))
    for point in report.points:
        interval = base.differences[called(point.model, point.dim)][MAIN]
        cells = (f"{point.dim:,}", f"{point.bytes:,}", f"{point.quality:.4f}", f"{point.kept:.1%}")
        add(table, shortened(point.model), *cells, interval_cells(interval)[1])
    names = ", ".join(each.collection.name for each in base.collections if each.measured)
    facts = f"{base.first_stage}'s top {base.top}, {base.first_stage} alone {base.means()[MAIN]:.4f}; {names}"
    return Group(title("quality against dimensions", facts), table, dim(f"interval: against {base.first_stage}"))


def rankrag_tables(report: RankRAGReport) -> RenderableType:
    """How the models rank, and what they answer with and without that."""
    from rich.console import Group

    parts: list[RenderableType] = [ranking_tables(report.ranking)]
    silent = [each.collection.name for each in report.answers if not each.reranked]
    for each in report.answers:
        if each.reranked:
            parts += ["", *_answers(each, report)]
    if silent:
        parts += ["", dim(f"not answered, since no right answers are known: {', '.join(dict.fromkeys(silent))}")]
    return Group(*parts)


def _answers(result: AnswerResult, report: RankRAGReport) -> list[RenderableType]:
    table = columns(("", NAME), ("EM", 6), ("F1", 6), ("acc.", 6), *((head, 8) for _, head in _PARTS))
    for reranked, name in ((False, report.ranking.first_stage), (True, "reranked")):
        means = result.means(reranked=reranked)
        cells = (means[key] for key in ("EM", "F1", "accuracy", *(key for key, _ in _PARTS)))
        add(table, name, *("-" if value is None else f"{100 * value:.1f}" for value in cells))
    gains = []
    for name, one in result.differences.items():
        low, high = 100 * one.low, 100 * one.high
        gains.append(f"{name} {100 * one.mean:+.1f}{one.sign} ({low:+.1f} to {high:+.1f})")
    unanswerable = sum(not one.answers for one in result.reranked.values())
    facts = f"{len(result.reranked):,} answers from {report.top_k} passages, in percent"
    if unanswerable:
        facts += f"; {unanswerable:,} questions have no answer"
    return [title(f"{result.collection.name}, {result.model}", facts), table, dim("gain: " + ", ".join(gains))]


_PARTS = (
    ("answerable_EM", "EM ans."),
    ("answerable_F1", "F1 ans."),
    ("unanswerable_EM", "EM un."),
    ("found_precision", "found P"),
    ("found_recall", "found R"),
)


def speed_table(report: SpeedReport) -> RenderableType:
    """How long requests of each size take each model."""
    from rich.console import Group

    first = report.timings[0].model
    table = columns(
        ("", NAME), ("passages", 8), ("at once", 7), ("median s", 8), ("best s", 7), ("pass./s", 8), ("tokens/s", 9),
        ("ratio", 7),
    )  # fmt: skip
    for one in report.timings:
        add(table, shortened(one.model), *_speed_row(one))
    where = (f"{name}: {', '.join(map(str, facts.values()))}" for name, facts in report.about.items() if facts)
    known = {one.model: 0.0 for one in report.timings}
    for one in report.timings:
        known[one.model] = max(known[one.model], one.cached / (one.passages * one.requests * report.rounds))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in known.items() if share)
    return Group(
        title("speed", f"{report.rounds} rounds, interleaved"),
        table,
        dim(f"median s, best s: of a request; ratio: of {first}'s round to the model's, the median of the rounds"),
        *[dim(line) for line in where],
        *([dim(f"passages whose vectors were known already, at most: {shares}")] if shares else []),
    )


def _speed_row(one: Timing) -> Iterable[str]:
    yield f"{one.passages:,}"
    yield f"{one.requests:,}"
    yield f"{median(one.latencies):.3g}"
    yield f"{min(one.latencies):.3g}"
    yield f"{one.passages_per_second:,.0f}"
    yield f"{one.tokens_per_second:,.0f}" if one.tokens else "-"
    yield f"{one.ratio:.2f}x"


# -- what other tables are made of too --------------------------------------------------------------------------------


def columns(*heads: tuple[str, int]) -> Table:
    """A table of columns (head, width); the first one and those of negative width are flush left, the others right."""
    from rich.table import Table

    table = Table(box=None, padding=0, header_style="bold")
    for i, (head, width) in enumerate(heads):
        left = i == 0 or width < 0
        gap = 0 if i == 0 else 1
        table.add_column(
            head, justify="left" if left else "right", width=abs(width) + gap, no_wrap=True, overflow="ellipsis"
        )
    return table


def add(table: Table, *cells: str) -> None:
    """A row of plain text: what stands in brackets is no markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))


def shortened(name: str, width: int = NAME) -> str:
    """A name that fits; of a long one the end, where versions are.

    >>> shortened("organisation/a-model-v2", 12)
    '...-model-v2'
    """
    return name if len(name) <= width else "..." + name[3 - width :]


def title(name: str, facts: str = "") -> RenderableType:
    """What a table is about."""
    from rich.text import Text

    return Text.assemble((name, "bold"), (f": {facts}" if facts else "", "dim"))


def dim(text: str) -> RenderableType:
    """A remark."""
    from rich.text import Text

    return Text(text, style="dim")

"""`evaluate_dimensions`: what a bi-encoder keeps of its quality in fewer dimensions (MRL, arXiv 2205.13147)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.evaluation.measures import MAIN
from tamis.evaluation.ranking import evaluate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tamis.evaluation.collection import Collection
    from tamis.evaluation.report import Report
    from tamis.reranker import Reranker

BYTES = 4  # of a float32 number


@dataclass(frozen=True, slots=True)
class Point:
    """One model at one number of dimensions.

    Attributes:
        model: Its name.
        dim: How many leading dimensions were compared.
        bytes: Of one vector in float32.
        quality: Mean nDCG@10 over the collections.
        kept: That, as a share of the same model's at its most dimensions.
    """

    model: str
    dim: int
    bytes: int
    quality: float
    kept: float


@dataclass(frozen=True, slots=True)
class DimensionReport:
    """What `evaluate_dimensions` found.

    Attributes:
        report: Every model at every number of dimensions as a model of its own, called "NAME dim=N".
        points: In the order of models and growing dimensions.
    """

    report: Report
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dump`: those of `report`, and `dimensions`."""
        names = ("model", "dim", "bytes", "quality", "kept")
        rows = [{name: getattr(point, name) for name in names} for point in self.points]
        return {**self.report.to_json(), "dimensions": rows}

    def table(self) -> RenderableType:
        """For a terminal of 80 columns; `rich.print` shows it."""
        from tamis.evaluation.tables import dimension_table

        return dimension_table(self)

    def save_plots(self, folder: str | Path) -> list[Path]:
        """Writes `dimensions.png`.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from tamis.evaluation.plots import dimension_plots

        return dimension_plots(self, Path(folder))

    def write_per_query(self, path: str | Path) -> None:
        """As `Report.write_per_query`."""
        self.report.write_per_query(path)


def evaluate_dimensions(
    models: Mapping[str, Mapping[int, Reranker]], collections: Sequence[Collection], **options: Any
) -> DimensionReport:
    """Reranks with each model at each number of dimensions.

    Loads of one checkpoint share one engine, and the vectors that it has made: a passage goes through the model once,
    if they fit `cache_bytes` of `tamis.load`.

    Args:
        models: By name, rerankers in bi-encoder mode by their number of dimensions (`dim` of `tamis.load`).
        collections: As in `evaluate`.
        **options: Those of `evaluate`.

    Raises:
        InvalidInput: A reranker is none of vectors, or no query has a relevant passage.
    """
    flat: dict[str, Reranker] = {}
    for name, by_dim in models.items():
        for dim, reranker in sorted(by_dim.items()):
            if reranker.mode != "bi-encoder":
                raise InvalidInput(
                    f"{name} was loaded as a {reranker.mode}, which has no dimensions to choose from; load it with "
                    'mode="bi-encoder".'
                )
            flat[called(name, dim)] = reranker
    report = evaluate(flat, collections, **options)
    if not report.means():
        raise InvalidInput("No query has a relevant passage: there is no quality to compare.")
    points = []
    for name, by_dim in models.items():
        full = report.means(called(name, max(by_dim)))[MAIN]
        for dim in sorted(by_dim):
            quality = report.means(called(name, dim))[MAIN]
            points.append(Point(name, dim, BYTES * dim, quality, quality / full if full else 0.0))
    return DimensionReport(report, tuple(points))


def called(name: str, dim: int) -> str:
    """What a model at some dimensions is called in `DimensionReport.report`."""
    return f"{name} dim={dim}"

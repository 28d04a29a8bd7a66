"""`Report`: what `evaluate` found, as values, a table, JSON, plots, and lines for error analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.evaluation.bootstrap import LEVEL
from tamis.evaluation.calibration import Calibration
from tamis.evaluation.comparison import Comparison
from tamis.evaluation.measures import MEASURES
from tamis.evaluation.results import CollectionResult, Differences

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Report:
    """What `evaluate` found.

    Attributes:
        collections: One result each, in the order that they were passed in.
        differences: By model, the mean over collections of its differences to the first stage, each collection
            counting alike; collections without an answerable query are left out, here and in `means`.
        calibrations: By model, of its scores in all collections together.
        first_stage: What the first stage was.
        top: How many of its passages were reranked.
        seed: What was drawn with.
        resamples: Draws of the bootstrap.
        comparison: The models against one of them, where `evaluate` was asked for that.
    """

    collections: tuple[CollectionResult, ...]
    differences: Mapping[str, Differences]
    calibrations: Mapping[str, Calibration] = field(repr=False)
    first_stage: str
    top: int
    seed: int
    resamples: int
    comparison: Comparison | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.differences)

    def means(self, model: str | None = None) -> dict[str, float]:
        """Each measure's mean over collections, of a model, or of the first stage; empty if nothing was measured."""
        found = [(each if model is None else each.models[model]).means for each in self.collections if each.measured]
        return {name: float(np.mean([means[name] for means in found])) for name in MEASURES} if found else {}

    def seconds_per_query(self, model: str) -> float:
        """The mean over all queries of all collections."""
        done = [each.models[model] for each in self.collections]
        return sum(one.seconds for one in done) / max(1, sum(len(one.rankings) for one in done))

    def passages_per_second(self, model: str) -> float:
        """Over all collections."""
        done = [each.models[model] for each in self.collections]
        seconds = sum(one.seconds for one in done)
        return sum(one.scored for one in done) / seconds if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dump`; the rankings are not among them, but in `write_per_query`."""
        from tamis import __version__

        return {
            "tamis": __version__,
            "first_stage": self.first_stage,
            "top": self.top,
            "seed": self.seed,
            "resamples": self.resamples,
            "level": LEVEL,
            "collections": [each.to_json() for each in self.collections],
            "mean": {
                "first_stage": {"measures": self.means()},
                "models": {name: self._mean(name) for name in self.models},
            },
            "against": None if self.comparison is None else self.comparison.to_json(),
        }

    def _mean(self, model: str) -> dict[str, Any]:
        return {
            "measures": self.means(model),
            "differences": {name: one._asdict() for name, one in self.differences[model].items()},
            "seconds_per_query": self.seconds_per_query(model),
            "passages_per_second": self.passages_per_second(model),
            "calibration": self.calibrations[model].to_json(),
        }

    def table(self) -> RenderableType:
        """For a terminal of 80 columns; `rich.print` shows it."""
        from tamis.evaluation.tables import ranking_tables

        return ranking_tables(self)

    def save_plots(self, folder: str | Path) -> list[Path]:
        """Writes `quality-time.png`, and `calibration-MODEL.png` for each model.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from tamis.evaluation.plots import ranking_plots

        return ranking_plots(self, Path(folder))

    def write_per_query(self, path: str | Path) -> None:
        """Writes one JSON object a line for each collection, model and query: what moved, and what took its place."""
        from tamis.evaluation.per_query import write_rankings

        write_rankings(self, Path(path))

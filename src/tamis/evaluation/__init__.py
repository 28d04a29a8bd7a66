"""Whether a reranker helps: collections in, measures with intervals out. See `docs/evaluation.md`.

>>> from tamis import Passage, load
>>> corpus = {"tar": Passage("a tar file"), "zip": Passage("how to read an archive of zip files")}
>>> asked = {"q": Query("q", "read a zip archive")}
>>> collection = Collection("demo", "dev", corpus, asked, {"q": {"zip": 1}})
>>> report = evaluate({"bm25": load(mode="lexical")}, [collection])
>>> report.means("bm25")["MRR@10"]
1.0
"""

from tamis.evaluation.collection import Collection, Query, read_collection
from tamis.evaluation.comparison import Comparison
from tamis.evaluation.dimensions import DimensionReport, evaluate_dimensions
from tamis.evaluation.first_stage import bm25_run, dense_run
from tamis.evaluation.ranking import evaluate
from tamis.evaluation.rankrag import evaluate_rankrag
from tamis.evaluation.rankrag_report import RankRAGReport
from tamis.evaluation.report import Report
from tamis.evaluation.runs import Run, read_run, write_run
from tamis.evaluation.speed import SpeedReport, Timing, measure_speed

__all__ = [
    "Collection",
    "Comparison",
    "DimensionReport",
    "Query",
    "RankRAGReport",
    "Report",
    "Run",
    "SpeedReport",
    "Timing",
    "bm25_run",
    "dense_run",
    "evaluate",
    "evaluate_dimensions",
    "evaluate_rankrag",
    "measure_speed",
    "read_collection",
    "read_run",
    "write_run",
]

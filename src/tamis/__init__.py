"""Reranking for RAG: one scoring core, thin plug-ins for LlamaIndex and LangChain.

>>> import tamis
>>> reranker = tamis.load(mode="lexical")
>>> ranking = reranker.rank("read a zip archive", ["a tar file", "how to read a zip archive"], top_n=1)
>>> ranking[0].index, ranking.texts()
(1, ['how to read a zip archive'])
"""

from tamis.errors import (
    Closed,
    CorruptCheckpoint,
    DeadlineExceeded,
    DeviceLost,
    InputTooLong,
    InvalidData,
    InvalidInput,
    InvalidScore,
    LoadError,
    MissingExtra,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    PickledWeights,
    RemoteCode,
    RemoteError,
    TamisError,
    UnknownFamily,
    UntrainedHead,
)
from tamis.families import Family, list_families, register
from tamis.loading import load
from tamis.rankrag.answers import Answer
from tamis.rankrag.loading import load_rankrag
from tamis.reranker import Reranker
from tamis.tenants import tenant
from tamis.types import Hit, Passage, Ranking, Usage

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Closed",
    "CorruptCheckpoint",
    "DeadlineExceeded",
    "DeviceLost",
    "Family",
    "Hit",
    "InputTooLong",
    "InvalidData",
    "InvalidInput",
    "InvalidScore",
    "LoadError",
    "MissingExtra",
    "ModelNotFound",
    "OutOfMemory",
    "Overloaded",
    "Passage",
    "PickledWeights",
    "Ranking",
    "RemoteCode",
    "RemoteError",
    "Reranker",
    "TamisError",
    "UnknownFamily",
    "UntrainedHead",
    "Usage",
    "__version__",
    "list_families",
    "load",
    "load_rankrag",
    "register",
    "tenant",
]

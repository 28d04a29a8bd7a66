"""Tamis on Ray: `tamis_ray.serve` is a server of rerankers, `score_dataset` scores data in bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis_ray.bulk import score_dataset
    from tamis_ray.bulk_mining import mine_negatives
    from tamis_ray.serve import build_app
    from tamis_ray.web.limits import Limits

__version__ = "0.1.0"

__all__ = ["Limits", "__version__", "build_app", "mine_negatives", "score_dataset"]

_HOMES = {
    "Limits": "tamis_ray.web.limits",
    "build_app": "tamis_ray.serve",
    "mine_negatives": "tamis_ray.bulk_mining",
    "score_dataset": "tamis_ray.bulk",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

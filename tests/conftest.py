"""Fixtures: tiny checkpoints, made once a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tamis
import tiny


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`classifier("bert", labels=2)`: the folder of a tiny cross-encoder."""
    made: dict[object, Path] = {}

    def make(name: str = "bert", labels: int = 1, **changes: object) -> Path:
        key = (name, labels, tuple(sorted(changes.items())))
        if key not in made:
            made[key] = tiny.save_classifier(tmp_path_factory.mktemp(name), name, labels, **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def embedded() -> Iterator[tamis.Reranker]:
    """The embedded model in float32."""
    with tamis.load(dtype="float32") as reranker:
        yield reranker

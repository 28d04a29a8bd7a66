"""What a user can import, and that the house's papers agree."""

from __future__ import annotations

import inspect
import pickle
import re
import tomllib
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import tamis
from tamis import errors

ROOT = Path(__file__).resolve().parent.parent


def test_exported_names():
    assert sorted(tamis.__all__) == tamis.__all__
    for name in tamis.__all__:
        assert hasattr(tamis, name)
    raised = {n for n, e in vars(errors).items() if inspect.isclass(e) and issubclass(e, Exception)}
    assert raised <= set(tamis.__all__)


def test_the_error_tree_is_the_one_that_is_drawn():
    drawn = set(re.findall(r"\b[A-Z]\w+", errors.__doc__.split("\n\n", 1)[1])) - {
        "NaN",
        "Python",
        "ValueError",
        "ImportError",
        "TimeoutError",
        "CUDA",
    }
    real = {n for n, e in vars(errors).items() if inspect.isclass(e) and issubclass(e, Exception)}
    assert drawn == real
    assert all(issubclass(getattr(errors, name), tamis.TamisError) for name in real)
    assert issubclass(tamis.InvalidInput, ValueError)
    assert issubclass(tamis.MissingExtra, ImportError)


def test_load_has_the_arguments_of_the_contract():
    promised = {
        "model", "mode", "family", "num_layers", "device", "dtype", "max_length", "dim", "layer", "instruction",
        "long_documents", "batch_tokens", "attention", "revision", "head", "trust_remote_code",
    }  # fmt: skip
    parameters = inspect.signature(tamis.load).parameters
    assert promised <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "model")


def test_values_are_frozen_and_travel():
    ranking = tamis.load(mode="lexical").rank("zip", [tamis.Passage("a zip", id="1", metadata={"k": 1}), "b"])
    with pytest.raises(FrozenInstanceError):
        ranking[0].score = 1.0
    with pytest.raises(FrozenInstanceError):
        ranking.model = "other"
    assert pickle.loads(pickle.dumps(ranking)) == ranking
    assert type(ranking[0].score) is float
    assert type(ranking[0].logit) is float
    assert type(ranking[0].index) is int
    assert type(ranking[0].truncated) is bool


def test_versions_agree():
    projects = [ROOT / "pyproject.toml", *sorted(ROOT.glob("integrations/*/pyproject.toml"))]
    versions = {tomllib.loads(path.read_text())["project"]["version"] for path in projects}
    assert len(projects) == 5
    assert versions == {tamis.__version__}
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{tamis.__version__}]" in changelog

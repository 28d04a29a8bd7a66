"""LoRA adapters of RankRAG models, merged into the weights with PEFT."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

from tamis.checkpoint import Checkpoint, check_safetensors, read_json
from tamis.errors import InvalidInput, MissingExtra, ModelNotFound


def find_adapter(name: str) -> Checkpoint:
    """A LoRA adapter's files.

    Raises:
        MissingExtra: PEFT is not installed.
        ModelNotFound: There is none of that name.
        PickledWeights: Its weights are pickles only.
    """
    if find_spec("peft") is None:
        raise MissingExtra('adapter= needs PEFT: pip install "tamis[peft]".')
    adapter = Checkpoint.find(name)
    config = read_json(adapter.root / "adapter_config.json")
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ModelNotFound(f"{name} holds no adapter_config.json with a peft_type, so that it is no PEFT adapter.")
    check_safetensors(adapter.root, name)
    return adapter


def merged(model: Any, adapter: Checkpoint, base: str) -> Any:
    """The model with the adapter's changes in its own weights.

    Raises:
        InvalidInput: The adapter belongs to another model, or is of a kind that weights cannot take in.
    """
    from peft import PeftModel

    from tamis.quiet import quiet

    config = read_json(adapter.root / "adapter_config.json")
    made_for = config.get("base_model_name_or_path") or "another model"
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are missing: `_differences` tells
            tuned = PeftModel.from_pretrained(model, str(adapter.root), torch_device=str(model.device))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if not line.startswith("Error(s) in")]
        why = lines[0][:200] if lines else type(error).__name__
        raise InvalidInput(
            f"The adapter {adapter.name} does not fit {base}: it was made for {made_for} ({why})."
        ) from error
    strange, lacking = _differences(tuned, adapter)
    if strange or lacking:
        what = f"it changes {min(strange)}, which is not there" if strange else f"it lacks {min(lacking)}"
        raise InvalidInput(f"The adapter {adapter.name} does not fit {base}: it was made for {made_for} ({what}).")
    try:
        return tuned.merge_and_unload().eval().requires_grad_(False)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise InvalidInput(
            f"The adapter {adapter.name} is a {config['peft_type']}, which cannot be merged into weights: {error}"
        ) from error


def _differences(tuned: Any, adapter: Checkpoint) -> tuple[set[str], set[str]]:
    """Weights of the adapter that found no place, and places that found no weights: PEFT passes over both."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    saved: set[str] = set()
    for path in adapter.root.glob("adapter_model*.safetensors"):
        with safe_open(path, framework="np") as file:
            saved |= set(file.keys())
    places = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    # Embeddings may be saved along whole, when the vocabulary was enlarged: PEFT puts them into the base model.
    strange = {key for key in saved - places if "embed_tokens" not in key and "lm_head" not in key}
    return strange, places - saved

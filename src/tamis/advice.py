"""What to do about the likeliest slips: the second half of an error's message."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_OTHER_NAMES = {
    "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32",
    "torch.float16": "float16", "torch.bfloat16": "bfloat16", "torch.float32": "float32",
    "reranker": "cross-encoder", "embedding": "bi-encoder", "colbert": "late-interaction", "llm": "causal-lm",
    "bm25": "lexical",
}  # fmt: skip
_OWN_MODELS = {
    "embedded": "tamis.load()",
    "all-MiniLM-L6-v2": 'tamis.load(mode="bi-encoder")',
    "tamis-mini": "tamis.load()",
    "bm25": 'tamis.load(mode="lexical")',
    "SmolLM2-135M-Instruct": "tamis.load_rankrag()",
}


def closest(given: object, allowed: Iterable[str]) -> str:
    """A question that ends a message, or nothing where no name is near.

    >>> closest("crossencoder", ["lexical", "cross-encoder"]), closest("fp16", ["float32", "float16"])
    (" Did you mean 'cross-encoder'?", " Did you mean 'float16'?")
    >>> closest("psychic", ["lexical", "cross-encoder"])
    ''
    """
    from difflib import get_close_matches

    names = list(allowed)
    near = [_OTHER_NAMES.get(str(given), ""), *get_close_matches(str(given), names, 1)]
    found = next((name for name in near if name in names), None)
    return "" if found is None else f" Did you mean {found!r}?"


def for_query(query: object) -> str:
    """What to pass instead of what is no query."""
    if isinstance(query, list | tuple):
        return "pass one question as a str; rank_many takes several, each with its passages"
    if hasattr(query, "query_str"):  # LlamaIndex's QueryBundle
        return "pass its query_str"
    return "pass a str"


def for_passages(passages: object) -> str | None:
    """What to pass instead of what is no list of passages; None where it may be one."""
    if isinstance(passages, str):
        return "pass a list of str or tamis.Passage, [passage] for a single one"
    if isinstance(passages, Mapping):
        return "pass a list of str or tamis.Passage, such as list(passages.values())"
    if hasattr(passages, "columns"):  # a data frame, which would be read as the names of its columns
        return 'pass the column with the texts, such as frame["text"]'
    return None


def for_passage(passage: object) -> str:
    """What to pass instead of what is no passage.

    >>> for_passage(["a"])
    'pass a str or tamis.Passage(text=...): one flat list of them'
    """
    usual = "pass a str or tamis.Passage(text=...)"
    if isinstance(passage, list | tuple):
        return f"{usual}: one flat list of them"
    if isinstance(passage, Mapping):
        return f"{usual}, with the rest of it as metadata="
    if isinstance(passage, bytes):
        return f"{usual}; decode it first"
    if passage is None or isinstance(passage, float) or type(passage).__name__ == "NAType":  # as in data frames
        return f'{usual}; where a text is missing, leave it out or pass ""'
    if hasattr(passage, "page_content"):  # LangChain's Document
        return f"{usual}, such as document.page_content; langchain_tamis.TamisRerank takes documents as they are"
    if hasattr(passage, "get_content"):  # LlamaIndex's nodes
        return (
            f"{usual}, such as node.get_content(); llama_index.postprocessor.tamis.TamisRerank takes NodeWithScore "
            "as it is"
        )
    return usual


def for_model(model: object) -> str:
    """What to pass instead of an object that is no name of a model."""
    if hasattr(model, "rank") and hasattr(model, "stats"):
        return "it is loaded already: use it as it is, or pass it to an adapter's reranker="
    if hasattr(model, "save_pretrained"):
        return "save it with its save_pretrained(FOLDER), its tokenizer too, and pass the folder"
    if isinstance(model, list | tuple):
        return "pass one model; load others beside it"
    return "pass a folder or a hub id"


def where(model: str | Path) -> str:
    """Why a name is neither a folder nor a hub id, and what it may be."""
    name = str(model)
    if not name:
        return "The model is an empty string; leave it out for the embedded one, or pass a folder or a hub id."
    if Path(name).expanduser().is_file():
        return f"{name!r} is a file, not a folder: pass the folder that holds it, with config.json and the tokenizer."
    if name in _OWN_MODELS:
        return f"{name!r} is not a folder here; Tamis's own model of that name is {_OWN_MODELS[name]}."
    return (
        f"{name!r} is not a folder, and not a hub id either (ORGANISATION/NAME, as in BAAI/bge-reranker-v2-m3). "
        f"Folders are looked for from {os.getcwd()}."
    )


def for_folder(name: str, folder: Path, adapter: Mapping[str, Any] | None) -> str:
    """Why a folder without config.json holds no model, and what to do.

    Args:
        name: What the caller named.
        folder: Where config.json should be.
        adapter: The content of its adapter_config.json, where it has one.
    """
    if adapter is not None:
        base = adapter.get("base_model_name_or_path") or "its base model"
        return (
            f"{name} is a LoRA adapter for {base}, not a model. For RankRAG: tamis.load_rankrag(BASE, adapter=...); "
            "else merge it once, with peft: merge_and_unload().save_pretrained(FOLDER), and the tokenizer beside it."
        )
    inside = sorted(path.parent.name for path in folder.glob("*/config.json") if any(path.parent.glob("*.safetensors")))
    inner = f" There is one in {', '.join(inside[:3])}: pass that folder." if inside else ""
    return f"{name}: there is no config.json in {folder}, so it holds no model that transformers can load.{inner}"


def missing_on_hub(hub_id: str, revision: str | None, error: Exception) -> str:
    """Why a hub id gave nothing, and which one was perhaps meant."""
    from difflib import get_close_matches

    from huggingface_hub import constants

    at = f" at revision {revision}" if revision else ""
    near = get_close_matches(hub_id, cached_models(), 1, 0.8)
    told = (
        "The hub was not asked: HF_HUB_OFFLINE is set. Check the name, or unset it."
        if constants.HF_HUB_OFFLINE
        else f"The hub did not give it ({type(error).__name__}). Check the name and the network; a private model needs "
        "`hf auth login`."
    )
    meant = f" The cache has {near[0]!r}: was it meant?" if near and near[0] != hub_id else ""
    return f"{hub_id}{at} is neither a folder here nor in the hub's cache. {told}{meant}"


def cached_models() -> list[str]:
    """The hub ids of the models in this machine's cache."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders)

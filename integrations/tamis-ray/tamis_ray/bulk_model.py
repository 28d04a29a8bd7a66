"""The model of a bulk job: how each actor loads it, and what tells it from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.options import LoadOptions

if TYPE_CHECKING:
    from tamis import Reranker


@dataclass(frozen=True, slots=True)
class Model:
    """The arguments of `tamis.load`.

    Attributes:
        name: A hub id, a folder, a URL, or None.
        options: The keyword arguments.
    """

    name: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {f.name for f in fields(LoadOptions)}
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise InvalidInput(f"{unknown[0]}= is neither an argument here nor of tamis.load.")
        if self.options.get("api_key") is not None:
            raise InvalidInput(
                "api_key= would be stored on the cluster. Set the key's variable (TAMIS_API_KEY, or the vendor's) in "
                "the environment of the workers instead."
            )
        LoadOptions(**self.options)  # says what is wrong here, not on the first worker
        if self.name is not None and (local := Path(self.name).expanduser()).exists():
            object.__setattr__(self, "name", str(local.resolve()))

    def load(self) -> Reranker:
        """The reranker."""
        from tamis import load

        return load(self.name, **self.options)

    def identity(self) -> dict[str, Any]:
        """What scores depend on, as JSON: of a local checkpoint a digest of its files' contents.

        Of a hub id it is the id and `revision=`: without one the hub decides what it is.
        """
        plain = {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in sorted(self.options.items())
        }
        return {"model": self.name, "options": plain, "checkpoint": self._digest()}

    def _digest(self) -> str | None:
        if self.name is None or not Path(self.name).exists():
            return None
        root = Path(self.name)
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        whole = sha256()
        for path in files:
            with path.open("rb") as file:
                whole.update(str(path.relative_to(root)).encode() + file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]

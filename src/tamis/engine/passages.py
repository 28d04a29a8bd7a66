"""Where passages' keys and values are kept: on the device up to a number of bytes, then in a second tier, then nowhere.

Entries are told apart by the token ids of system text and passage, and a store belongs to one loaded model in one
dtype: a changed passage, prompt, adapter or dtype is another entry, or another store. The oldest entries go first. One
that goes while a batch reads it lives until that batch is done.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch

from tamis.cache import ByteLRU
from tamis.engine.keyvalues import KeyValues

logger = logging.getLogger(__name__)


class Tier(Protocol):
    """Where entries go that the device has no room for."""

    def put(self, key: bytes, value: KeyValues) -> None:
        """Keeps an entry, at the cost of the oldest."""

    def get(self, key: bytes) -> KeyValues | None:
        """The entry, if it is still there."""

    def clear(self) -> None:
        """Forgets everything that belongs to this process."""

    @property
    def size(self) -> int:
        """Bytes."""


class PassageCache:
    """The device's tier, and behind it another.

    Args:
        limit: Bytes on the device.
        device: Where the model is.
        behind: The second tier; None forgets what leaves the first.
    """

    def __init__(self, limit: int, device: torch.device, behind: Tier | None = None) -> None:
        self._behind = behind
        self._device = device
        self._near: ByteLRU[KeyValues] = ByteLRU(limit, evicted=self._leaves)
        self.hits = self.misses = 0

    def get(self, key: bytes) -> KeyValues | None:
        """The entry, brought back to the device if it had left it."""
        found = self._near.get(key)
        if found is None and self._behind is not None:
            far = self._behind.get(key)
            if far is not None:
                found = far.to(self._device)
                self._near.put(key, found, found.nbytes)
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: bytes, value: KeyValues) -> None:
        """Keeps an entry; one that is larger than the whole tier goes to the next."""
        if value.nbytes > self._near.limit:
            self._leaves(key, value)
        else:
            self._near.put(key, value, value.nbytes)

    def clear(self) -> None:
        """Forgets everything."""
        self._near.clear()
        if self._behind is not None:
            self._behind.clear()

    def stats(self) -> Mapping[str, int]:
        """Hits, misses and bytes."""
        behind = 0 if self._behind is None else self._behind.size
        return {
            "passage_hits": self.hits,
            "passage_misses": self.misses,
            "passage_bytes": self._near.size,
            "passage_bytes_behind": behind,
        }

    def _leaves(self, key: Any, value: KeyValues) -> None:
        if self._behind is not None:
            self._behind.put(key, value)


class HostMemory:
    """A second tier for a GPU: pinned memory of the host, from which entries come back at full speed.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._kept: ByteLRU[KeyValues] = ByteLRU(limit)

    def put(self, key: bytes, value: KeyValues) -> None:
        """Keeps a copy."""
        if value.nbytes <= self._kept.limit:
            self._kept.put(key, value.to(torch.device("cpu"), pinned=torch.cuda.is_available()), value.nbytes)

    def get(self, key: bytes) -> KeyValues | None:
        """The entry, if it is still there."""
        return self._kept.get(key)

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._kept.size


class Disk:
    """A second tier in a folder: a safetensors file for each passage, which later processes find again.

    Args:
        folder: Made if it is not there. Several models may share it.
        limit: Bytes of this model's files.
        model: Tells models, adapters and dtypes apart.
    """

    def __init__(self, folder: Path, limit: int, model: str) -> None:
        self._folder = folder / blake2b(model.encode(), digest_size=12).hexdigest()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._limit = limit
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        self._sizes = OrderedDict((path.stem, path.stat().st_size) for path in files)  # the oldest first
        self._shrink()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self._sizes.values())

    def put(self, key: bytes, value: KeyValues) -> None:
        """Writes a file, whole or not at all; a full disk keeps nothing, and says so once a time."""
        from safetensors.torch import save_file

        name = key.hex()
        if name in self._sizes or value.nbytes > self._limit:
            return
        tensors = {f"{kind}{i}": x for i, pair in enumerate(value.layers) for kind, x in zip("kv", pair, strict=True)}
        path, part = self._path(name), self._folder / f"{name}.part"
        try:
            save_file({which: x.contiguous().cpu() for which, x in tensors.items()}, part)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            logger.warning("A passage could not be kept in %s: %s", self._folder, error.strerror)
            return
        self._sizes[name] = path.stat().st_size
        self._shrink()

    def get(self, key: bytes) -> KeyValues | None:
        """The entry, if its file is there and whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        name = key.hex()
        if name not in self._sizes:
            return None
        try:
            tensors = load_file(self._path(name))
            layers = [(tensors[f"k{i}"], tensors[f"v{i}"]) for i in range(len(tensors) // 2)]
        except (OSError, SafetensorError, KeyError):
            self._sizes.pop(name, None)
            self._path(name).unlink(missing_ok=True)
            return None
        self._sizes.move_to_end(name)
        return KeyValues(layers, layers[0][0].shape[1])

    def clear(self) -> None:
        """Files stay for the next process."""

    def _shrink(self) -> None:
        while self._sizes and self.size > self._limit:
            name, _ = self._sizes.popitem(last=False)
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

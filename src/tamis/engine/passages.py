"""Where passages' keys and values are kept: on the device up to a number of bytes, then in a second tier, then nowhere.

Entries are told apart by the token ids of system text and passage, and a store belongs to one loaded model in one
dtype: a changed passage, prompt, adapter or dtype is another entry, or another store. The oldest entries go first. One
that goes while a batch reads it lives until that batch is done.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import torch

from tamis.cache import ENTRY_BYTES, ByteLRU
from tamis.engine.keyvalues import KeyValues

logger = logging.getLogger(__name__)


class Tier(Protocol):
    """Where entries go that the device has no room for.

    Attributes:
        lasts: Whether they outlive this process.
    """

    lasts: bool

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

    def __contains__(self, key: bytes) -> bool:
        """Whether the entry is on the device."""
        return key in self._near

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
        if value.nbytes + ENTRY_BYTES > self._near.limit:
            self._leaves(key, value)
        else:
            self._near.put(key, value, value.nbytes)

    def clear(self) -> None:
        """Forgets everything; what is on the device goes to the second tier first, if that outlives this process."""
        if self._behind is not None:
            for key, value in self._near.items() if self._behind.lasts else ():
                self._leaves(key, value)
            self._behind.clear()
        self._near.clear()

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

    lasts = False

    def __init__(self, limit: int) -> None:
        self._kept: ByteLRU[KeyValues] = ByteLRU(limit)

    def put(self, key: bytes, value: KeyValues) -> None:
        """Keeps a copy."""
        if value.nbytes + ENTRY_BYTES <= self._kept.limit:
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
    """A second tier in a folder: a safetensors file with a checksum for each passage, which later processes find again.

    Args:
        folder: Made if it is not there. Several models, and several processes, may share it.
        limit: Bytes of this model's files.
        model: Tells models, adapters and dtypes apart.
    """

    lasts = True

    def __init__(self, folder: Path, limit: int, model: str) -> None:
        self._folder = folder / blake2b(model.encode(), digest_size=12).hexdigest()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._limit = limit
        found: list[tuple[int, str, int]] = []
        for path in self._folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process has just removed it
                found.append((path.stat().st_mtime_ns, path.stem, path.stat().st_size))
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))  # the oldest first
        self._size = sum(self._sizes.values())
        self._shrink()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def put(self, key: bytes, value: KeyValues) -> None:
        """Writes a file, whole or not at all; a full disk keeps nothing, and a warning in the log says so."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = key.hex()
        if name in self._sizes or value.nbytes > self._limit:
            return
        tensors = {f"{kind}{i}": x for i, pair in enumerate(value.layers) for kind, x in zip("kv", pair, strict=True)}
        tensors = {which: x.contiguous().cpu() for which, x in tensors.items()}
        path, part = self._path(name), self._folder / f"{name}.{os.getpid()}.part"
        try:
            save_file(tensors, part, {"crc": _checksum(tensors)})
            part.replace(path)
            self._sizes[name] = size = path.stat().st_size
        except (OSError, SafetensorError) as error:
            logger.warning("A passage could not be kept in %s: %s", self._folder, error)
            return
        finally:
            part.unlink(missing_ok=True)
        self._size += size
        self._shrink()

    def get(self, key: bytes) -> KeyValues | None:
        """The entry, if its file is there and whole."""
        from safetensors import SafetensorError, safe_open

        name = key.hex()
        if name not in self._sizes:
            return None
        try:
            with safe_open(self._path(name), framework="pt") as file:
                tensors = {which: file.get_tensor(which) for which in file.keys()}  # noqa: SIM118 - it is no mapping
                whole = (file.metadata() or {}).get("crc") == _checksum(tensors)
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            self._remove(name)
            return None
        self._sizes.move_to_end(name)
        layers = [(tensors[f"k{i}"], tensors[f"v{i}"]) for i in range(len(tensors) // 2)]
        return KeyValues(layers, layers[0][0].shape[1])

    def clear(self) -> None:
        """Files stay for the next process."""

    def _shrink(self) -> None:
        while self._sizes and self._size > self._limit:
            self._remove(next(iter(self._sizes)))

    def _remove(self, name: str) -> None:
        self._size -= self._sizes.pop(name)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, shapes and bytes: safetensors itself notices a file that is cut off, and no changed byte."""
    total = 0
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        total = crc32(f"{name} {tuple(x.shape)} {x.dtype}".encode(), total)
        total = crc32(x.flatten().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"

"""Keys and values of tokens that were run before, so that later ones read them instead of running them again.

They hold a decoder's whole knowledge of those tokens, and are exact as long as the tokens stand at the same places.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]

ROOM = 64  # tokens that a `Home` grows by at least


class KeyValues:
    """Of n tokens, layer by layer.

    Attributes:
        layers: Keys (G, n, D) and values (G, n, Dv) of each layer, keys rotated to their places.
        length: n.
    """

    def __init__(self, layers: list[Pair], length: int) -> None:
        self.layers = layers
        self.length = length

    def __len__(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(x.numel() * x.element_size() for pair in self.layers for x in pair)

    def to(self, device: torch.device, *, pinned: bool = False) -> KeyValues:
        """A copy on another device; in pinned memory, from which a GPU fetches at full speed, if asked for."""
        moved = [(self._move(k, device, pinned), self._move(v, device, pinned)) for k, v in self.layers]
        return KeyValues(moved, self.length)

    @staticmethod
    def _move(x: Tensor, device: torch.device, pinned: bool) -> Tensor:
        if not pinned:
            return x.to(device, non_blocking=x.is_pinned())
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)


class Home:
    """A sequence that grows: its keys and values, with room for more.

    Args:
        beginnings: What stands at its beginning already.
        room: Tokens that will come, as far as known.
    """

    def __init__(self, beginnings: tuple[KeyValues, ...] = (), room: int = ROOM) -> None:
        self.length = sum(map(len, beginnings))
        self._beginnings = beginnings
        self._room = self.length + room
        self._layers: dict[int, Pair] = {}

    def __len__(self) -> int:
        return self.length

    def put(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """Appends a layer's keys (G, m, D) and values, and returns all of it; `length` grows by `moved_in` alone."""
        if layer not in self._layers:
            self._layers[layer] = self._made(layer, key, value)
        end = self.length + key.shape[1]
        pair = self._layers[layer]
        if end > pair[0].shape[1]:
            pair = self._layers[layer] = self._grown(pair, end)
        pair[0][:, self.length : end], pair[1][:, self.length : end] = key, value
        return pair[0][:, :end], pair[1][:, :end]

    def moved_in(self, tokens: int) -> None:
        """All layers have got `tokens` more."""
        self.length += tokens

    def _made(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        room = max(self._room, self.length + key.shape[1])
        pair = tuple(x.new_empty(x.shape[0], room, x.shape[2]) for x in (key, value))
        for i, whole in enumerate(pair):
            if self._beginnings:
                whole[:, : self.length] = torch.cat([one.layers[layer][i] for one in self._beginnings], dim=1)
        return pair[0], pair[1]

    def _grown(self, pair: Pair, least: int) -> Pair:
        more = max(least - pair[0].shape[1], pair[0].shape[1] // 2, ROOM)
        key, value = (torch.cat([x, x.new_empty(x.shape[0], more, x.shape[2])], dim=1) for x in pair)
        return key, value

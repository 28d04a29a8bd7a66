"""Linear layers as oneDNN computes them fastest, and several of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 2048  # the number of rows that the weight layout is chosen for; it was faster than the plain one at 32 too


class PrepackedLinear(nn.Module):
    """A linear layer whose weight lies as oneDNN wants it, with GELU (by erf) computed in the same pass if asked for.

    Args:
        linear: The layer, float32 or bfloat16, on a CPU.
        gelu: Whether its output goes through GELU.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = linear.bias
        self._after = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`, (..., out)."""
        after, algorithm = self._after
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after, [], algorithm)
        return out


class Joined:
    """Linear layers of one input as one product: the input is read once, and small products are slow.

    Each of `parts` is called as its layer was. The first one computes for all, which the others are given as long as
    they are called with the same tensor.

    Args:
        linears: Of as many inputs each, on a CPU, all with a bias or all without.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._sizes = [one.out_features for one in linears]
        self._whole = PrepackedLinear(joined(linears))
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}
        self.parts = [_Part(self, number) for number in range(len(linears))]

    def output(self, number: int, x: Tensor) -> Tensor:
        """What the layer of that number makes of (..., in): (..., out)."""
        if self._input is not x or number not in self._waiting:
            self._input, self._waiting = x, dict(enumerate(self._whole(x).split(self._sizes, dim=-1)))
        out = self._waiting.pop(number)
        if not self._waiting:
            self._input = None
        return out


class _Part(nn.Module):
    def __init__(self, joined: Joined, number: int) -> None:
        super().__init__()
        self._output = partial(joined.output, number)

    def forward(self, x: Tensor) -> Tensor:
        return self._output(x)


def joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One layer that gives what these give, side by side; see `can_join`."""
    whole = nn.Linear(linears[0].in_features, sum(one.out_features for one in linears), bias=False, device="meta")
    whole.weight = nn.Parameter(torch.cat([one.weight for one in linears]), requires_grad=False)
    if linears[0].bias is not None:
        whole.bias = nn.Parameter(torch.cat([one.bias for one in linears]), requires_grad=False)
    return whole


def can_join(linears: Sequence[Any]) -> bool:
    """Whether these are linear layers, of as many inputs, and all or none with a bias."""
    alike = {(one.in_features, one.bias is None) for one in linears if type(one) is nn.Linear}
    return len(alike) == 1 and all(type(one) is nn.Linear for one in linears)


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators, which are not part of its public interface, and oneDNN the dtype."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return (
        dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
    )

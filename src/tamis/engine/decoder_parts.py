"""Decoders' norms, gated MLPs and rotary attention in compiled form: what lies between products is half of their time.

What a module computes is told by trying it, not by its class: a norm or an MLP is replaced where the compiled form
gives what it gave. Attention is told by its class, since a window shows only where sequences are longer than it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from tamis.engine import kernels
from tamis.engine.attention import attention
from tamis.engine.prepacked import PrepackedLinear, can_join, joined

_NEAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative difference; the compiled forms round less often
UNFIT = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)  # what a module raises that wants other input
_ROWS = 4  # that a module is tried on
_WINDOWS: dict[str, Callable[[Any], int | None]] = {  # the attention that is known, and where it says its window
    "LlamaAttention": lambda module: None,
    "MistralAttention": lambda module: getattr(module.config, "sliding_window", None),
    "Qwen2Attention": lambda module: getattr(module, "sliding_window", None),
    "Qwen3Attention": lambda module: getattr(module, "sliding_window", None),
}


class Part(NamedTuple):
    """A module, what its `forward` becomes, and which of its children that has taken in."""

    module: nn.Module
    forward: Callable[..., Any]
    children: tuple[str, ...] = ()


def compiled_parts(body: Any) -> Iterator[Part]:
    """The modules of a body that have a compiled form here."""
    weights = next(body.parameters())
    if not weights.is_cpu or weights.dtype not in _NEAR or kernels.compiled() is None:
        return
    for module in list(body.modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = Norm.of(module)
            if norm is not None:
                yield Part(module, norm)
        elif GatedMLP.reads(module):
            mlp = GatedMLP(module)
            if _alike(mlp, module, module.gate_proj.weight):
                yield Part(module, mlp, GatedMLP.taken)
        elif RotaryAttention.reads(module):
            yield Part(module, RotaryAttention(module), RotaryAttention.taken)


def _of_one(module: nn.Module) -> bool:
    """Whether a module takes one argument and no other, a gate for instance."""
    return len(inspect.signature(module.forward).parameters) == 1


def _alike(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Whether two modules give the same for a few rows as wide as `like`, (..., d)."""
    return _difference(one, other, like) <= _NEAR[like.dtype]


def _difference(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], like: Tensor) -> float:
    width = like.shape[-1]
    x = torch.linspace(-2, 2, _ROWS * width).reshape(width, _ROWS).T.contiguous().to(like.dtype)
    try:
        with torch.no_grad():
            a, b = one(x).float(), other(x).float()
    except UNFIT:
        return torch.inf
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


class Norm:
    """An RMS norm.

    Args:
        weight: (d,), float32.
        epsilon: Added to the mean square.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight = weight
        self.epsilon = epsilon

    @classmethod
    def of(cls, module: Any) -> Norm | None:
        """The compiled form of a module, whose factor is its weight, or 1 more (Gemma); None if it is no such norm."""
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(epsilon, float) or not _of_one(module):
            return None
        forms = [cls(weight.detach().float() + offset, epsilon) for offset in (0.0, 1.0)]
        differences = [_difference(form, module, weight) for form in forms]
        best = min(differences)
        return forms[differences.index(best)] if best <= _NEAR[weight.dtype] else None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) to the same."""
        out: Tensor = kernels.needed().rms_norm(x.contiguous(), self.weight, self.epsilon)
        return out


class GatedMLP:
    """`down(f(gate(x)) * up(x))`, the gate and the other as one product."""

    taken = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, module: Any) -> None:
        self._into = PrepackedLinear(joined([module.gate_proj, module.up_proj]))
        self._down = PrepackedLinear(module.down_proj)
        self._gate = partial(kernels.needed().gate, gelu=_function(module.act_fn) is gelu)

    @classmethod
    def reads(cls, module: Any) -> bool:
        """Whether a module has the parts of one, and a function that is compiled."""
        parts: list[Any] = [getattr(module, name, None) for name in cls.taken]
        into, other, down = parts
        if not can_join([into, other]) or type(down) is not nn.Linear or into.out_features != other.out_features:
            return False
        return _of_one(module) and _function(getattr(module, "act_fn", None)) is not None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) to the same."""
        out: Tensor = self._down(self._gate(self._into(x)))
        return out


def _function(found: Any) -> Callable[..., Tensor] | None:
    """`silu`; `gelu` for its form by tanh; None for any other."""
    if not callable(found):
        return None
    x = torch.linspace(-6, 6, 97)
    for known, expected in ((silu, silu(x)), (gelu, gelu(x, approximate="tanh"))):
        if torch.allclose(found(x), expected, atol=1e-6):
            return known
    return None


class RotaryAttention:
    """Attention with rotary positions: one product for queries, keys and values, which are turned where they lie."""

    taken = ("q_proj", "k_proj", "v_proj")

    def __init__(self, module: Any) -> None:
        self._module = module
        parts = [getattr(module, name) for name in self.taken]
        self._product = PrepackedLinear(joined(parts))
        self._dim = module.head_dim
        self._heads = [part.out_features // self._dim for part in parts]
        self._norms = _head_norms(module)
        self._window = _WINDOWS[type(module).__name__](module)

    @classmethod
    def reads(cls, module: Any) -> bool:
        """Whether a module is attention that is known."""
        if type(module).__name__ not in _WINDOWS or not isinstance(getattr(module, "head_dim", None), int):
            return False
        parts: list[Any] = [getattr(module, name, None) for name in cls.taken]
        if not can_join(parts) or module.head_dim % 2 or any(part.out_features % module.head_dim for part in parts):
            return False
        norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
        return norms == [None, None] or _head_norms(module) is not None

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """As transformers' layers call it: (1, T, d) to the same, and None for the weights."""
        module, (batch, length) = self._module, hidden_states.shape[:2]
        rows = self._product(hidden_states).flatten(0, 1)  # (T, (H + 2 G) D)
        cosine, sine = (x.expand(batch, -1, -1).flatten(0, 1).contiguous() for x in position_embeddings)
        kernels.needed().rotary(rows, cosine, sine, *self._heads[:2], self._norms)
        whole = rows.view(batch, length, -1, self._dim).transpose(1, 2)  # (1, H + 2 G, T, D)
        query, key, value = whole.split(self._heads, dim=1)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, module.layer_idx)
        out, _ = attention(
            module, query, key, value, attention_mask, module.scaling, sliding_window=self._window, **kwargs
        )
        return module.o_proj(out.flatten(2)), None


def _head_norms(module: Any) -> tuple[Tensor, Tensor, float] | None:
    """Weights of the norms of queries and of keys, by head, and their epsilon; None where there are none, or others."""
    found = [Norm.of(getattr(module, name, None)) for name in ("q_norm", "k_norm")]
    query, key = found
    if query is None or key is None or query.epsilon != key.epsilon:
        return None
    if any(len(norm.weight) != module.head_dim for norm in (query, key)):
        return None
    return query.weight, key.weight, query.epsilon

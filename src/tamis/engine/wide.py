"""The end of a model that runs whole, in float32: its own code would round it to the dtype of its weights.

Nobody knows what that code does. So a few sequences are run before and after, and where the model then raises, or gives
other logits, it is left as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tamis.engine.backbone import TOLERANCE
from tamis.engine.device import Runner
from tamis.engine.sequences import Tokens

logger = logging.getLogger(__name__)

_SLACK = 3  # times the tolerance of a hidden state

Undo: TypeAlias = Callable[[], None]


def widen_head(model: Any, runner: Runner, samples: Sequence[Tokens]) -> None:
    """Has a classifier compute what lies behind its body in float32, and the body's pooler with it.

    Args:
        model: A transformers `...ForSequenceClassification`; left alone where it is float32.
        runner: Runs it.
        samples: What is run before and after.
    """
    if model.base_model is not model:  # else nobody can tell its head from its body
        _try(model, runner, samples, lambda: _float32_head(model))


def widen_rows(model: Any, rows: Sequence[int], runner: Runner, samples: Sequence[Tokens]) -> None:
    """Has a language model compute the logits of `rows` of its vocabulary in float32, and what it does with them later.

    The head's weights stay as they are: they may be those of the embeddings, too.

    Args:
        model: A transformers model with output embeddings; left alone where it is float32.
        rows: Ids of the vocabulary.
        runner: Runs it.
        samples: What is run before and after.
    """
    _try(model, runner, samples, lambda: _float32_rows(model.get_output_embeddings(), list(rows)))


def _try(model: Any, runner: Runner, samples: Sequence[Tokens], change: Callable[[], Undo]) -> None:
    if model.dtype == torch.float32 or (before := _logits(runner, samples)) is None:
        return
    undo, after = change(), _logits(runner, samples)
    most = _SLACK * TOLERANCE[model.dtype] * max(1.0, float(np.abs(before).max()))
    if after is None or not float(np.abs(after - before).max()) <= most:  # NaN included
        logger.info(
            "%s computes its head in %s: it would not do the same in float32.", type(model).__name__, model.dtype
        )
        undo()


def _logits(runner: Runner, samples: Sequence[Tokens]) -> Any:
    """One row for each of them; None where the model raises."""
    try:
        return np.stack([runner.run([tokens])[0] for tokens in samples])
    except Exception as error:  # noqa: BLE001 - code that nobody knows may want one dtype, or other sequences
        logger.info("A probe made the model raise %r.", error)
        return None


def _float32_head(model: Any) -> Undo:
    body = model.base_model
    heads = [child for child in model.children() if child is not body]
    if isinstance(getattr(body, "pooler", None), torch.nn.Module):
        heads.append(body.pooler)
    weights = [*model.parameters(recurse=False), *(weight for head in heads for weight in head.parameters())]
    dtypes = [weight.dtype for weight in weights]
    for weight in weights:
        weight.data = weight.data.float()
    hooks = [head.register_forward_pre_hook(_take_float32, with_kwargs=True) for head in heads]
    hooks.append(body.register_forward_hook(_give_float32))

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        for weight, dtype in zip(weights, dtypes, strict=True):
            weight.data = weight.data.to(dtype)

    return undo


def _float32_rows(head: Any, rows: list[int]) -> Undo:
    weight = head.weight[rows].float()  # (k, d)
    bias = 0.0 if getattr(head, "bias", None) is None else head.bias[rows].float()

    def exact(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        logits = output.float()  # (..., vocabulary)
        logits[..., rows] = args[0].float() @ weight.T + bias
        return logits

    undo: Undo = head.register_forward_hook(exact).remove
    return undo


def _take_float32(module: Any, args: Any, kwargs: Any) -> Any:
    return _float32(args), _float32(kwargs)


def _give_float32(module: Any, args: Any, output: Any) -> Any:
    return _float32(output)


def _float32(value: Any) -> Any:
    """What a module takes or gives, its floating tensors in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_float32(one) for one in value)
    if isinstance(value, dict):  # transformers' outputs are
        for key in list(value):
            value[key] = _float32(value[key])
    return value

"""Platt's calibration (1999) of a cross-encoder: its sigmoid becomes a probability, and the order stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput
from tamis.training.ranking_losses import asked
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers.cross_encoder import CrossEncoder


def calibrate(model: CrossEncoder, examples: Sequence[Example]) -> tuple[float, float]:
    """Fits `sigmoid(a * logit + b)` to labels and folds it into the model's last linear layer.

    The probability is one among passages like the examples': a relevant one, say, and its hard negatives.

    Args:
        model: Changed in place, and in evaluation mode then. Its head has to end in a linear layer.
        examples: Labelled, none of them trained on.

    Returns:
        a and b; b is 0 for a layer without a bias. Where there are not passages of both kinds, or a would not be above
        0, nothing is changed and (1, 0) is returned.

    Raises:
        InvalidInput: The head does not end in one linear layer.
    """
    import torch

    head = head_of(model)
    pairs = [(asked(e), passage) for e in examples for passage in e.passages]
    relevant = np.array([label > 0.5 for e in examples for label in e.labels], np.bool_)
    if not relevant.any() or relevant.all():
        return 1.0, 0.0
    logits = model.predict(pairs, prompt="", activation_fn=torch.nn.Identity(), show_progress_bar=False)
    a, b = platt(np.asarray(logits, np.float64), relevant, offset=head.bias is not None)
    if a <= 0:
        return 1.0, 0.0
    with torch.no_grad():
        head.weight.mul_(a)
        if head.bias is not None:
            head.bias.mul_(a).add_(b)
    return a, b


def platt(logits: NDArray[np.float64], relevant: NDArray[np.bool_], *, offset: bool = True) -> tuple[float, float]:
    """The a and b of greatest likelihood, with Platt's targets, which keep a finite where the logits separate.

    Of n+ relevant passages and n- others these are (n+ + 1) / (n+ + 2) and 1 / (n- + 2), instead of 1 and 0.

    Args:
        logits: (n,).
        relevant: (n,), some of them true and some false.
        offset: Whether there is a b.

    >>> a, b = platt(np.array([2.0, -2.0]), np.array([True, False]))  # targets 2/3 and 1/3: sigmoid(2 a) = 2/3
    >>> round(a, 3), abs(round(b, 3))
    (0.347, 0.0)
    """
    from sklearn.linear_model import LogisticRegression

    count = int(relevant.sum())
    target = np.where(relevant, (count + 1) / (count + 2), 1 / (len(relevant) - count + 2))
    rows = np.concatenate([logits, logits])[:, None]  # each once for either class, weighted by its target
    classes = np.repeat([1, 0], len(logits))
    model = LogisticRegression(C=1e6, fit_intercept=offset).fit(rows, classes, np.concatenate([target, 1 - target]))
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if offset else 0.0


def head_of(model: Any) -> Any:
    """The linear layer that gives the logit.

    Raises:
        InvalidInput: There is none, or several.
    """
    import torch

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1]
    if len(linear) != 1:
        raise InvalidInput("The head does not end in one linear layer; set calibrate = false.")
    return linear[0]

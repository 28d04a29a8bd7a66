"""A SentenceTransformer of two modules: vectors that were computed once, and a rotation of them, which is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import InputModule
from sentence_transformers.base.modules.module import Module
from torch.nn.utils.parametrizations import orthogonal


class Precomputed(InputModule):  # type: ignore[misc]  # the library is untyped here
    """Texts in, their vectors out, from a table.

    It holds no weights: a checkpoint does not contain the table, and loads as an empty one.

    Args:
        places: The row of each text.
        rows: (n, d), float32.
        base: The folder of the model that computed them.
    """

    config_keys: list[str] = []  # noqa: RUF012 - the name and the kind that the library looks for
    save_in_root = False

    def __init__(self, places: Mapping[str, int], rows: NDArray[np.float32], base: str) -> None:
        super().__init__()
        self.places, self.rows, self.base = places, rows, base

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The vectors of a batch."""
        return {"sentence_embedding": torch.from_numpy(self.rows[[self.places[text] for text in inputs]])}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """A copy, so that a batch can go through twice."""
        return dict(features)

    def get_embedding_dimension(self) -> int:
        """The width of the rows."""
        return int(self.rows.shape[1])

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """An empty config."""
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> Self:
        """An empty table."""
        return cls({}, np.zeros((0, 1), np.float32), "")


class Rotation(Module):  # type: ignore[misc]
    """`W x`, with W orthogonal whatever is learnt: Cayley's map of a skew-symmetric matrix.

    Args:
        width: d; W is (d, d).
    """

    config_keys: list[str] = ["width"]  # noqa: RUF012

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = orthogonal(torch.nn.Linear(width, width, bias=False), orthogonal_map="cayley")

    def begin(self, weight: torch.Tensor) -> None:
        """Starts from an orthogonal matrix, (d, d)."""
        self.linear.weight = weight

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Rotated vectors."""
        return {**features, "sentence_embedding": self.linear(features["sentence_embedding"])}

    def get_embedding_dimension(self) -> int:
        """The width of what is rotated."""
        return self.width

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """What is learnt, not W: training goes on from it."""
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """As `save` left it."""
        made = cls(**cls.load_config(model_name_or_path, subfolder=subfolder))
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=made)
        return made

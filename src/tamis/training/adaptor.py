"""Recipe `mrl-adaptor`: a rotation behind a frozen bi-encoder, after which a few dimensions keep most of the quality.

The rotation W is orthogonal, so that full vectors have the cosines that they had: only their truncations change. It
begins with principal axes of the training texts and is learnt, through sentence-transformers' trainer, on vectors that
Tamis's engine computed once (`tamis.training.losses.MatryoshkaAdaptorLoss`); an epoch is seconds on a CPU. Saved as a
sentence-transformers `Dense` behind the pooling, it opens everywhere. After the Matryoshka-Adaptor of Yoon et al. 2024
(arXiv 2407.20243), which is not orthogonal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput
from tamis.training import bi_encoder
from tamis.training import sentence_transformer as st
from tamis.training.arguments import without_card
from tamis.training.checkpoints import checkpoint
from tamis.training.recipe import NO_TEACHER, Recipe
from tamis.training.rows import Example
from tamis.training.run_folder import ADAPTOR, VECTORS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.modules import Dense

    from tamis.reranker import Reranker

NAME = "mrl-adaptor"
READS = NO_TEACHER
STARTS = ("differences", "pca", "identity")


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[options]` of an adaptor's recipe.

    Attributes:
        dims: Numbers of leading dimensions that are trained.
        start: Which axes come first: "differences", those along which the passages of one query differ most; "pca",
            those along which queries and passages are longest; "identity", the model's own.
        temperature: What similarities are divided by.
        label_weight: Of the labelled term, beside that which keeps the full vectors' ranking.
        evaluate_at: Dimensions at which `[evaluation]` compares before and after.
    """

    dims: tuple[int, ...] = (32, 64, 128, 256)
    start: str = "differences"
    temperature: float = 0.05
    label_weight: float = 0.3
    evaluate_at: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if self.start not in STARTS:
            raise InvalidInput(f"[options] start = {self.start!r}; pass one of {', '.join(STARTS)}.")
        if not self.temperature > 0:
            raise InvalidInput(f"[options] temperature = {self.temperature!r}; pass a number above 0.")


def prepare(
    recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path
) -> SentenceTransformerTrainer:
    """A sentence-transformers trainer over the vectors of all texts, which are computed here.

    Raises:
        InvalidInput: No example has a positive, the model is no bi-encoder, or a dimension is not below its width.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from transformers import set_seed

    from tamis.training.losses import MatryoshkaAdaptorLoss
    from tamis.training.precomputed import Precomputed, Rotation

    base = checkpoint(recipe.model)
    prompt = (base.sentence_config.get("prompts") or {}).get("query") or ""
    rows = bi_encoder.columns(examples, bi_encoder.Options(), prompt)
    places, vectors = _vectors(recipe.model, rows, checkpoints.parent / VECTORS)
    width = vectors.shape[1]
    if not options.dims or not all(1 <= dim < width for dim in options.dims):
        raise InvalidInput(f"[options] dims = {list(options.dims)}; the vectors have {width}, and all are below that.")
    set_seed(recipe.seed)
    learnt = Rotation(width)
    learnt.begin(torch.from_numpy(first_axes(options.start, places, vectors, rows)))
    model = SentenceTransformer(modules=[Precomputed(places, vectors, str(base.root)), learnt], device="cpu")
    loss = MatryoshkaAdaptorLoss(model, options.dims, options.temperature, options.label_weight)
    return SentenceTransformerTrainer(
        model=without_card(model),
        args=arguments(recipe, options, checkpoints),
        train_dataset=Dataset.from_dict(rows),
        loss=loss,
    )


def arguments(recipe: Recipe, options: Options, checkpoints: Path) -> Any:
    """The trainer's arguments.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    return st.arguments(recipe, checkpoints, use_cpu=True)


def _vectors(model: str, rows: dict[str, list[str]], kept: Path) -> tuple[dict[str, int], NDArray[np.float32]]:
    """The vector of every text, and its place; passages come first. A text that is a query too has a query's vector."""
    from tamis.training.vectors import encode

    queries = list(dict.fromkeys(rows["query"]))
    passages = list(dict.fromkeys(t for name, texts in rows.items() if name != "query" for t in texts))
    places = {text: i for i, text in enumerate([*passages, *queries])}
    stamp = sha256(repr((checkpoint(model).fingerprint(), passages, queries)).encode()).hexdigest()
    if kept.is_file():
        with np.load(kept) as file:
            if str(file["stamp"]) == stamp:
                return places, file["rows"]
    with st.load(model) as reranker:
        vectors = np.concatenate([encode(reranker, passages), encode(reranker, queries, queries=True)])
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_name(f"{os.getpid()}-{kept.name}")  # in one piece, whichever of several processes is last
    np.savez(beside, rows=vectors, stamp=stamp)
    beside.replace(kept)
    return places, vectors


def first_axes(
    start: str, places: dict[str, int], vectors: NDArray[np.float32], rows: dict[str, list[str]]
) -> NDArray[np.float32]:
    """The W that training begins with, (d, d); see `Options`."""
    if start == "identity":
        return np.eye(vectors.shape[1], dtype=np.float32)
    queries = sorted({places[text] for text in rows["query"]})
    if start == "pca":
        return principal_axes(vectors[queries], vectors[: len(vectors) - len(queries)])
    lists = np.array([[places[text] for text in texts] for name, texts in rows.items() if name != "query"]).T  # (n, k)
    if lists.shape[1] < 2:
        raise InvalidInput('[options] start = "differences" needs negatives; raise [data] negatives, or pass "pca".')
    middle = vectors[lists].mean(1, keepdims=True)  # (n, 1, d)
    return principal_axes((vectors[lists] - middle).reshape(-1, vectors.shape[1]))


def principal_axes(*groups: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal rows (d, d), the axes on which the groups' vectors are longest first; each group counts alike.

    Not centred: a cosine is about the origin.

    >>> principal_axes(np.array([[3, 0], [3, 1]], np.float32)).astype(float).round(1).tolist()
    [[1.0, 0.2], [-0.2, 1.0]]
    """
    moment = sum((group.T @ group).astype(np.float64) / len(group) for group in groups)
    _, axes = np.linalg.eigh(moment)
    axes = axes[:, ::-1].T  # the greatest first
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    made: NDArray[np.float32] = np.ascontiguousarray(axes * signs[:, None], dtype=np.float32)
    return made


def rotation(model: SentenceTransformer) -> Dense:
    """The trained layer with a plain weight, orthogonal to the last bit that float32 has."""
    import torch
    from sentence_transformers.base.modules import Dense

    learnt = model[1].linear.weight.detach()
    left, _, right = torch.linalg.svd(learnt.double())
    weight = (left @ right).float()
    width = len(weight)
    return Dense(width, width, bias=False, activation_function=torch.nn.Identity(), init_weight=weight)


def save(trainer: SentenceTransformerTrainer, folder: Path, options: Options, unseen: Sequence[Example] = ()) -> None:
    """Writes the whole model, the rotation before what normalises at its end; and in `adaptor` the rotation alone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    layer = rotation(trainer.model)
    base = SentenceTransformer(trainer.model[0].base, local_files_only=True, device="cpu")
    modules = list(base.children())
    place = len(modules)
    while isinstance(modules[place - 1], Normalize):
        place -= 1
    modules.insert(place, layer)
    whole = SentenceTransformer(
        modules=modules, prompts=base.prompts, similarity_fn_name=base.similarity_fn_name, device="cpu"
    )
    st.write(whole, folder)
    (folder / ADAPTOR).mkdir(exist_ok=True)
    layer.save(str(folder / ADAPTOR))


def load(model: str | Path, options: Options) -> Reranker:
    """The bi-encoder at `evaluate_at` dimensions: before, that is plain truncation."""
    return st.load(model, options.evaluate_at)


def described(options: Options) -> dict[str, Any]:
    """The options as plain values, for cards."""
    return asdict(options)

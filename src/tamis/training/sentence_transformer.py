"""What the recipes over sentence-transformers' bi-encoders share: the model to begin with, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.training.arguments import trainer_arguments
from tamis.training.checkpoints import checkpoint
from tamis.training.recipe import Recipe
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tamis.reranker import Reranker

SMALLEST = 32  # dimensions that MRL goes down to by itself


def begin(recipe: Recipe, *, expand: int | None = None, max_length: int | None = None) -> SentenceTransformer:
    """The SentenceTransformer of a recipe's `model`; a plain encoder gets mean pooling.

    Args:
        recipe: `model` and `seed` are read.
        expand: Put a linear layer with this many outputs behind the pooling, as RAG-Retrieval does; what normalised
            there is left out.
        max_length: Tokens of a text.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from transformers import set_seed

    set_seed(recipe.seed)  # of the linear layer
    root = checkpoint(recipe.model).root
    model = SentenceTransformer(str(root), local_files_only=True)
    if expand is not None:
        kept = list(model.children())
        while isinstance(kept[-1], Normalize):
            kept.pop()
        if not isinstance(kept[-1], Dense):
            kept.append(Dense(width(model), expand, activation_function=torch.nn.Identity()))
        elif width(model) != expand:
            raise InvalidInput(f"{recipe.model} ends in a linear layer with {width(model)} outputs, not {expand}.")
        model = SentenceTransformer(modules=kept, prompts=model.prompts, similarity_fn_name="cosine")
    if max_length is not None:
        model.max_seq_length = max_length
    return model


def width(model: SentenceTransformer) -> int:
    """Dimensions of its vectors."""
    found = model.get_embedding_dimension()
    assert found is not None  # noqa: S101 - every text encoder has one
    return int(found)


def halves(whole: int) -> tuple[int, ...]:
    """Numbers of dimensions for MRL: the whole, its half, its quarter, ..., down to `SMALLEST`.

    >>> halves(384)
    (384, 192, 96, 48)
    >>> halves(16)
    (16,)
    """
    found = [whole]
    while found[-1] // 2 >= SMALLEST:
        found.append(found[-1] // 2)
    return tuple(found)


def checked_dims(dims: Sequence[int], whole: int) -> tuple[int, ...]:
    """Numbers of dimensions that the recipe names, the whole among them.

    Raises:
        InvalidInput: One is no dimension of the vectors.
    """
    if any(isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= whole for dim in dims):
        raise InvalidInput(f"[options] dims = {list(dims)}; the vectors have {whole} dimensions.")
    return tuple(sorted({whole, *dims}, reverse=True))


def set_prompts(
    model: SentenceTransformer, query: str | None, passage: str | None, examples: Sequence[Example]
) -> None:
    """What is put before texts, saved with the model: the recipe's, else what all rows say, else the model's own."""
    said = {example.prompt for example in examples}
    if query is None and len(said) == 1 and "" not in said:
        [query] = said
    for name, prompt in (("query", query), ("document", passage)):
        if prompt is not None:
            model.prompts[name] = prompt


def query_prompt(model: SentenceTransformer) -> str:
    """What the model puts before a query."""
    return model.prompts.get("query") or ""


def asked(example: Example, prompt: str) -> str:
    """The query, behind what its row puts before it, unless the model puts the same `prompt` there."""
    return example.query if example.prompt == prompt else example.prompt + example.query


def column_prompts(model: SentenceTransformer, columns: Sequence[str]) -> dict[str, str]:
    """What the trainer puts before the texts of each column."""
    query, passage = query_prompt(model), model.prompts.get("document") or ""
    prompts = {name: query if name == "query" else passage for name in columns if name != "label"}
    return {name: prompt for name, prompt in prompts.items() if prompt}


def of_columns(loss: str, prompts: Mapping[str, str] | None) -> dict[str, Any]:
    """What a trainer is told of columns of texts: in a contrast within the batch no text comes twice."""
    sampler = "no_duplicates" if loss == "contrastive" else "batch_sampler"
    return {"batch_sampler": sampler, "prompts": prompts or None}


def arguments(recipe: Recipe, checkpoints: Path, **usual: Any) -> Any:
    """sentence-transformers' own arguments: what a recipe usually has, and what this one says.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    from sentence_transformers import SentenceTransformerTrainingArguments

    return trainer_arguments(SentenceTransformerTrainingArguments, recipe, checkpoints, usual)


def write(model: Any, folder: Path) -> None:
    """Saves a model in float32, without a card: the run writes one."""
    model.float().save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def load(model: str | Path, dim: int | None = None) -> Reranker:
    """The bi-encoder that a run starts from, or is judged by; "embedded" is the plain one, without an adaptor."""
    from tamis import load as load_reranker

    return load_reranker(checkpoint(str(model)).root, mode="bi-encoder", dim=dim)

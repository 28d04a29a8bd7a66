"""How models and collections are named on a command line, and how a model is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tamis import load
from tamis.errors import InvalidInput
from tamis.long_documents import POLICIES
from tamis.options import DTYPES, MODES, ApiName

if TYPE_CHECKING:
    from tamis.reranker import Reranker

OPTIONS = (
    "mode", "family", "dim", "layer", "instruction", "passage_model", "num_layers", "dtype", "device", "max_length",
    "long_documents", "api", "server_model",
)  # fmt: skip
OWN = (
    *OPTIONS, "cache_bytes", "score_cache_bytes", "cache_dtype", "similarity", "compress_ratio", "head_index",
    "batch_tokens", "attention", "revision",
)  # fmt: skip
EMBEDDED = "embedded"
LEXICAL = "bm25"


def add_model_options(group: Any) -> None:
    """Adds what `tamis.load` takes, as far as commands know it."""
    add = group.add_argument
    # A metavar is never broken, and all modes together are wider than a terminal.
    names = ", ".join(MODES)
    add("--mode", choices=MODES, metavar="MODE", help=f"how it scores: {names} (default: what the model's files say)")
    add("--family", metavar="F", help="a name that `tamis models` shows (default: what the model's files say)")
    add("--dim", type=numbers, metavar="D", help="bi-encoder: leading dimensions, 64; or a funnel, 64,128,384")
    add("--layer", type=numbers, metavar="L", help="layerwise: the layer that scores, 28; or a cascade, 8,28")
    add("--instruction", metavar="I", help="the task in the model's prompt, or what is put before the query")
    add("--passage-model", metavar="M", help="bi-encoder: what reads passages, where --model reads queries only")
    add("--num-layers", type=int, metavar="N", help="only the first N layers of a deeper model")
    add("--dtype", choices=DTYPES, default="auto", help="default: auto")
    add("--device", metavar="D", help="cpu, cuda:0, ... (default: the first GPU, else cpu)")
    add("--max-length", type=int, metavar="N", help="tokens that the model reads of query and passage")
    add("--long-documents", choices=POLICIES, default="truncate", help="what does not fit (default: truncate)")
    add("--api", choices=get_args(ApiName), help="remote: what the server speaks; its key comes from the environment")
    add("--server-model", metavar="M", help="remote: which of the server's models")


def add_data_options(group: Any) -> None:
    """Adds the collections that a command measures on, and which of their queries."""
    add = group.add_argument
    add(
        "--data", nargs="+", action="extend", required=True, metavar="DIR",
        help="folders with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, as BEIR's are",
    )  # fmt: skip
    add("--split", default="dev", metavar="S", help="which qrels (default: dev)")
    add("--limit", type=int, metavar="Q", help="Q queries of each DIR at most, drawn with the seed")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")


def numbers(text: str) -> int | list[int]:
    """One number, or several with commas between."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor numbers with commas between") from None
    return found if "," in text else found[0]


@dataclass(frozen=True, slots=True)
class Spec:
    """A model among several, as `[LABEL=]MODEL[::OPTION=VALUE,...]` says it.

    Attributes:
        label: What it is called in the report.
        model: A folder or hub id; None is the embedded model.
        options: Its own, over those of the command.
    """

    label: str
    model: str | None
    options: Mapping[str, Any]


def read_spec(text: str, allowed: Sequence[str] = OWN) -> Spec:
    """Reads one model.

    Args:
        text: What stands on the command line.
        allowed: Names of options that it may have.

    Raises:
        InvalidInput: An option is none, or the model is missing.

    >>> spec = read_spec("small=embedded::mode=bi-encoder,dim=64")
    >>> spec.label, spec.model, spec.options
    ('small', None, {'mode': 'bi-encoder', 'dim': 64})
    >>> read_spec("runs/my-model").label, read_spec("bm25").options
    ('runs/my-model', {'mode': 'lexical'})
    """
    whole, _, given = text.partition("::")
    label, equals, model = whole.partition("=")
    if not equals or Path(whole).exists():  # a folder's name may have the sign in it
        label, model = "", whole
    if not model:
        raise InvalidInput(f"{text!r} names no model; write [LABEL=]MODEL[::OPTION=VALUE,...].")
    options: dict[str, Any] = {"mode": "lexical"} if model == LEXICAL else {}
    for part in filter(None, given.split(",")):
        name, _, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in allowed or not value:
            raise InvalidInput(f"{part!r} in {text!r} is no option; write NAME=VALUE, of {', '.join(allowed)}.")
        options[name] = int(value) if value.isdigit() else value
    short = model if not Path(model).exists() else Path(model).resolve().name
    own = f" {given}" if given else ""
    return Spec(label or short + own, None if model in (EMBEDDED, LEXICAL) else model, options)


def read_specs(texts: Sequence[str], allowed: Sequence[str] = OWN) -> list[Spec]:
    """Reads several models, which are to be told apart.

    Raises:
        InvalidInput: As `read_spec`, or two have one label.
    """
    specs = [read_spec(text, allowed) for text in texts]
    labels = [spec.label for spec in specs]
    for label, text in zip(labels, texts, strict=True):
        if labels.count(label) > 1:
            raise InvalidInput(f"Two models are called {label!r}; name them apart, as in first={text}.")
    return specs


def load_spec(arguments: argparse.Namespace, spec: Spec, **more: Any) -> Reranker:
    """A reranker by the command's options, the model's own over them, and `more` over both; BM25 has none."""
    if spec.options.get("mode") == "lexical":
        return load(mode="lexical")
    return load(spec.model, **{**{name: getattr(arguments, name) for name in OPTIONS}, **spec.options, **more})

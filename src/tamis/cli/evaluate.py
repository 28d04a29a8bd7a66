"""`tamis eval`: whether models put the right passages first, and whether RankRAG models answer rightly."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, get_args

from tamis import load, load_rankrag
from tamis.cli.model_options import (
    EMBEDDED,
    LEXICAL,
    OPTIONS,
    OWN,
    Spec,
    add_data_options,
    add_model_options,
    load_spec,
    read_spec,
    read_specs,
)
from tamis.cli.output import status
from tamis.cli.reports import add_report_options, check_file, check_report_options, write_plots, write_report, writing
from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection, check_seed, read_collection
from tamis.extras import need
from tamis.rankrag.prompts import Best

if TYPE_CHECKING:
    from tamis.evaluation import DimensionReport, RankRAGReport, Report

RANKRAG = (
    "adapter", "style", "best_passage", "num_layers", "dtype", "device", "max_length", "long_documents", "task",
    "relevance",
)  # fmt: skip
ANSWERING = ("adapter", "style", "best_passage", "top_k", "min_score", "max_new_tokens")  # only with --rankrag
TOP_K = 5
VECTOR_BYTES = 1 << 30  # for --dims: so that no passage is encoded twice


def add_command(commands: Any) -> None:
    """Adds `eval` to argparse's subparsers."""
    parser = commands.add_parser(
        "eval",
        help="how well models rerank collections with known answers",
        description="Rerank what a first stage finds, and measure the order. A MODEL is a folder, a hub id, `embedded` "
        "or `bm25`; [LABEL=]MODEL[::OPTION=VALUE,...] gives one of several a name and options of its own, as in "
        "small=embedded::mode=bi-encoder,dim=64.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="what reranks (default: the embedded model)")
    add_data_options(parser)
    add("--first-stage", default=LEXICAL, metavar="M", help="bm25, or a bi-encoder (default: bm25)")
    add("--run", nargs="+", action="extend", metavar="FILE", dest="runs", help="TREC files instead, one for each DIR")
    add("--top", type=int, metavar="N", help="rerank its best N (default: 100; with --rankrag 20)")
    add("--dims", type=_dims, metavar="D,D,...", help="bi-encoders: quality at these numbers of dimensions, and at all")
    add("--against", metavar="NAME", help="compare the others with this one of the models too, query by query")
    add("--precision", type=float, default=0.9, metavar="P", help="suggest a min_score for this too (default: 0.9)")
    add_report_options(add)
    add("--per-query", metavar="FILE", help="write JSON lines for error analysis there")
    add_model_options(parser.add_argument_group("models"))
    add = parser.add_argument_group("RankRAG").add_argument
    add(
        "--rankrag", nargs="*", metavar="MODEL",
        help="these (default: the embedded one) rank, and answer with and without that",
    )  # fmt: skip
    add("--adapter", metavar="A", help="a LoRA adapter for it: a folder or hub id")
    add("--style", choices=("auto", "chat", "plain"), help="default: the chat template, if any")
    add("--best-passage", choices=get_args(Best), help="where answers read the best (default: the model's own)")
    add("--top-k", type=int, metavar="K", help=f"answer from the best K at most (default: {TOP_K})")
    add("--min-score", type=float, metavar="S", help="answer only from scores of at least S")
    add("--max-new-tokens", type=int, metavar="N", help="tokens of an answer at most (default: the task's)")


def _dims(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers with commas between")
    return found


def run(arguments: argparse.Namespace) -> None:
    """Reads, evaluates, writes. What is cheap to check is checked before a model is loaded.

    Raises:
        InvalidInput: A folder, file or option is wrong.
        InvalidData: Rows of the data are wrong: all of them are named.
        MissingExtra: What measures or draws is not installed.
    """
    specs = _specs(arguments)
    _check(arguments)
    collections = [read_collection(folder, arguments.split) for folder in arguments.data]
    if arguments.runs is not None and len(arguments.runs) != len(collections):
        raise InvalidInput(
            f"There are {len(arguments.runs)} files for --run and {len(collections)} folders for --data; pass one for "
            "each, in the same order."
        )
    with ExitStack() as stack:
        report = _evaluated(arguments, specs, collections, stack)
    write_report(report, arguments.json)
    if arguments.per_query is not None:
        with writing(arguments.per_query):
            report.write_per_query(arguments.per_query)
    write_plots(report, arguments.plots)


def _specs(arguments: argparse.Namespace) -> list[Spec]:
    rankrag = arguments.rankrag is not None
    if arguments.against is not None and (rankrag or arguments.dims is not None):
        raise InvalidInput(f"--against means nothing with {'--rankrag' if rankrag else '--dims'}; leave it out.")
    named = [*arguments.models, *(arguments.rankrag or [])] or [EMBEDDED]
    specs = read_specs(named, RANKRAG if rankrag else OWN)
    labels = [spec.label for spec in specs]
    if arguments.against not in (None, *labels):
        raise InvalidInput(f"--against is {arguments.against!r}; there are {', '.join(labels)}.")
    if rankrag:
        wrong = [name for name in OPTIONS if name not in RANKRAG and getattr(arguments, name) is not None]
        wrong += ["dims"] * (arguments.dims is not None)
        if wrong:
            raise InvalidInput(f"--{_spelt(wrong[0])} means nothing with --rankrag; leave it out.")
        if any("mode" in spec.options for spec in specs):
            raise InvalidInput("bm25 is no RankRAG model.")
    elif wrong := [name for name in ANSWERING if getattr(arguments, name) is not None]:
        raise InvalidInput(f"--{_spelt(wrong[0])} is for RankRAG models; name them after --rankrag, or leave it out.")
    elif arguments.dims is not None:
        modes = [arguments.mode, *(spec.options.get("mode") for spec in specs)]
        if any(mode not in (None, "bi-encoder") for mode in modes):
            raise InvalidInput("--dims is for bi-encoders; other modes have no dimensions to choose from.")
        if arguments.dim is not None or any("dim" in spec.options for spec in specs):
            raise InvalidInput("--dim and --dims say twice what is compared; leave one out.")
    return specs


def _spelt(name: str) -> str:
    return name.replace("_", "-")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.runs is not None and arguments.first_stage != LEXICAL:
        raise InvalidInput("--run and --first-stage say twice what is reranked; leave one out.")
    for name in ("top", "limit", "top_k", "max_new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InvalidInput(f"--{_spelt(name)} is {value}; pass at least 1.")
    check_seed(arguments.seed)
    if arguments.per_query == "-":
        raise InvalidInput("--per-query - would write among the tables; name a file.")
    if arguments.per_query is not None:
        check_file(arguments.per_query)
    need("ir_measures", "eval", "An evaluation")
    check_report_options(arguments.json, arguments.plots)


def _evaluated(
    arguments: argparse.Namespace, specs: Sequence[Spec], collections: Sequence[Collection], stack: ExitStack
) -> Report | DimensionReport | RankRAGReport:
    from tamis.evaluation import evaluate, evaluate_dimensions, evaluate_rankrag

    common: dict[str, Any] = {
        "limit": arguments.limit, "seed": arguments.seed, "precision": arguments.precision, "progress": True,
    }  # fmt: skip
    if arguments.top is not None:
        common["top"] = arguments.top
    with status("Loading"):
        common["first_stage"] = _first_stage(arguments, collections, stack)
        if arguments.rankrag is not None:
            own = {name: value for name in RANKRAG if (value := getattr(arguments, name, None)) is not None}
            rags = {
                spec.label: stack.enter_context(load_rankrag(spec.model, **{**own, **spec.options})) for spec in specs
            }
        elif arguments.dims is not None:
            by_dim = {spec.label: _at_dims(arguments, spec, stack) for spec in specs}
        else:
            rerankers = {spec.label: stack.enter_context(load_spec(arguments, spec)) for spec in specs}
    if arguments.rankrag is not None:
        answering = {"max_new_tokens": arguments.max_new_tokens, "min_score": arguments.min_score}
        top_k = TOP_K if arguments.top_k is None else arguments.top_k
        return evaluate_rankrag(rags, collections, top_k=top_k, **answering, **common)
    if arguments.dims is not None:
        return evaluate_dimensions(by_dim, collections, **common)
    return evaluate(rerankers, collections, against=arguments.against, **common)


def _first_stage(arguments: argparse.Namespace, collections: Sequence[Collection], stack: ExitStack) -> Any:
    if arguments.runs is not None:
        from tamis.evaluation import read_run

        pairs = zip(arguments.runs, collections, strict=True)
        return {collection.name: read_run(path, collection) for path, collection in pairs}
    if arguments.first_stage == LEXICAL:
        return "bm25"
    spec = read_spec(arguments.first_stage)
    where = {"dtype": arguments.dtype, "device": arguments.device, "mode": "bi-encoder"}
    return stack.enter_context(load(spec.model, **{**where, **spec.options}))


def _at_dims(arguments: argparse.Namespace, spec: Spec, stack: ExitStack) -> dict[int, Any]:
    """Rerankers by their dimensions: those that were asked for, and all."""
    more = {"mode": "bi-encoder", "cache_bytes": VECTOR_BYTES}
    full = stack.enter_context(load_spec(arguments, spec, **more, dim=None))
    width = full.stats()["dims"][-1]
    fewer = sorted({dim for dim in arguments.dims if dim != width})
    return {**{dim: stack.enter_context(load_spec(arguments, spec, **more, dim=dim)) for dim in fewer}, width: full}

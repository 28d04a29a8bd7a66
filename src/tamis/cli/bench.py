"""`tamis bench`: how long models take on this machine, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from threading import Lock
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.cli.model_options import EMBEDDED, Spec, add_model_options, load_spec, numbers, read_specs
from tamis.cli.output import status
from tamis.cli.rank import passages_of
from tamis.cli.reports import add_report_options, check_report_options, write_plots, write_report
from tamis.errors import InvalidInput
from tamis.evaluation.speed import PASSAGES, ROUNDS, SEED, check_speed, measure_speed
from tamis.extras import need
from tamis.quiet import quiet

PEER = "sentence-transformers"


def add_command(commands: Any) -> None:
    """Adds `bench` to argparse's subparsers."""
    parser = commands.add_parser(
        "bench",
        help="how long models take on this machine",
        description="Time models on requests of several sizes, interleaved, each drawn anew. A MODEL is named as "
        "for `tamis eval`, as in half=FOLDER::dtype=bfloat16; the others are compared with the first one. No vector of "
        "a passage is kept between requests, unless a model's own options say so (::cache_bytes=...).",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="what ranks (default: the embedded model)")
    add("--files", nargs="+", metavar="FILE", help="draw passages from their lines (default: English of mixed length)")
    add("--query", nargs="+", action="extend", metavar="Q", help="ask these in turn (default: any words)")
    default = ",".join(map(str, PASSAGES))
    add("--passages", type=numbers, metavar="N,N,...", help=f"passages of a request (default: {default})")
    add("--requests", type=numbers, default=1, metavar="N,N,...", help="requests at once (default: 1)")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help=f"how often each is timed (default: {ROUNDS})")
    add("--seed", type=int, default=SEED, metavar="N", help=f"of what is drawn (default: {SEED})")
    add(
        f"--{PEER}",
        action="store_true",
        dest="peer",
        help="time that too, with each cross-encoder of the models: float32 on a CPU",
    )
    add_report_options(add)
    add_model_options(parser.add_argument_group("models"))


def run(arguments: argparse.Namespace) -> None:
    """Loads, times, writes. What is cheap to check is checked before a model is loaded.

    Raises:
        InvalidInput: A file or an option is wrong.
        MissingExtra: What draws, or sentence-transformers, is not installed.
    """
    specs = read_specs(arguments.models or [EMBEDDED])
    check_report_options(arguments.json, arguments.plots)
    if arguments.peer:
        need("sentence_transformers", "train", "Timing sentence-transformers")
    texts = None
    if arguments.files is not None:
        texts = [passage.text for file in arguments.files for passage in passages_of(file, "line")]
    passages = PASSAGES if arguments.passages is None else _several(arguments.passages)
    requests = _several(arguments.requests)
    check_speed(texts, arguments.query, passages, requests, arguments.rounds, arguments.seed)
    with ExitStack() as stack:
        with status("Loading"):
            models = dict(_models(arguments, specs, stack))
        if arguments.peer and len(models) == len(specs):
            raise InvalidInput(
                f"None of the models is a cross-encoder, which --{PEER} is timed on; name one, as in "
                "mini=embedded::mode=cross-encoder."
            )
        report = measure_speed(
            models,
            texts,
            queries=arguments.query,
            passages=passages,
            requests=requests,
            rounds=arguments.rounds,
            seed=arguments.seed,
            progress=True,
        )
    write_report(report, arguments.json)
    write_plots(report, arguments.plots)


def _several(given: int | list[int]) -> list[int]:
    return [given] if isinstance(given, int) else given


def _models(arguments: argparse.Namespace, specs: Sequence[Spec], stack: ExitStack) -> Iterator[tuple[str, Any]]:
    for spec in specs:
        reranker = stack.enter_context(load_spec(arguments, spec, cache_bytes=spec.options.get("cache_bytes", 0)))
        yield spec.label, reranker
        if arguments.peer and reranker.mode == "cross-encoder":
            facts = reranker.stats()
            dtype = "float32" if facts["device"] == "cpu" else facts["dtype"]
            how = {
                "device": facts["device"].split(", ")[0],
                "max_length": spec.options.get("max_length", arguments.max_length),
                "revision": spec.options.get("revision"),
                "model_kwargs": {"dtype": dtype},
            }
            yield f"{PEER} {spec.label}", _peer(spec.model or str(Checkpoint.shipped().root), **how)


def _peer(source: str, **how: Any) -> Callable[[str, list[str]], object]:
    """sentence-transformers' CrossEncoder of a checkpoint, in its own batches; one request after the other."""
    from sentence_transformers import CrossEncoder

    try:
        with quiet():
            encoder = CrossEncoder(source, **how)
    except Exception as error:  # whatever it does not like of a checkpoint
        raise InvalidInput(f"sentence-transformers does not load {source}: {error}") from error
    alone = Lock()  # tokenizers that cut are not for several threads

    def rank(query: str, passages: list[str]) -> object:
        with alone:
            return encoder.predict([(query, text) for text in passages], show_progress_bar=False)

    return rank

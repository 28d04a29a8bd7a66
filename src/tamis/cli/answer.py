"""`tamis answer`: ranks passages from files, and answers from the best."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any, get_args

from tamis import Answer, load_rankrag
from tamis.cli.output import printable, say, show, status, write_json
from tamis.cli.rank import as_json, passages_of, table_of
from tamis.errors import InvalidInput
from tamis.inputs import Cut, check_query
from tamis.options import DTYPES
from tamis.rankrag.prompts import TASKS, Best
from tamis.types import Passage

SMALL = (
    "the embedded model is small, and was tuned on encyclopedias and abstracts: it shows how this works, not how well. "
    "Name a larger one with --model."
)
CALL = ("top_k", "min_score", "answer_anyway", "task", "max_new_tokens")
OPTIONS = ("adapter", "style", "best_passage", "dtype", "device", "max_length", "server", "server_model")


def add_command(commands: Any) -> None:
    """Adds `answer` to argparse's subparsers."""
    parser = commands.add_parser(
        "answer",
        help="an answer from the lines of files, or from whole files",
        description="Rank passages with a RankRAG model, and answer from the best. A passage is a line of the files, "
        "or a whole file. On a terminal the answer appears as it is written.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="UTF-8 text; - is standard input")
    add("--question", required=True, metavar="Q", help="the question, or the claim")
    add(
        "--by",
        choices=("line", "file"),
        default="line",
        help="what a passage is (default: line; blank ones do not count)",
    )
    add("--top-k", type=int, default=5, metavar="K", help="read the best K at most (default: 5)")
    add("--min-score", type=float, metavar="S", help="read only scores of at least S, in [0, 1]; if none, no answer")
    add("--answer-anyway", action="store_true", help="then answer from the best all the same")
    add("--task", choices=tuple(TASKS), default="short", help="what is asked for (default: short, a phrase)")
    add("--max-new-tokens", type=int, metavar="N", help="tokens of the answer at most (default: the task's)")
    add("--json", action="store_true", help="one JSON object instead of text and a table")
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        metavar="M",
        help="a causal LM: a folder, hub id or GGUF file (default: the embedded one)",
    )
    add("--adapter", metavar="A", help="a LoRA adapter for it: a folder or hub id")
    add("--style", choices=("auto", "chat", "plain"), default="auto", help="default: the model's chat template, if any")
    add("--best-passage", choices=get_args(Best), help="where it reads the best (default: the model's own place)")
    add("--dtype", choices=DTYPES, default="auto", help="default: auto")
    add("--device", metavar="D", help="cpu, cuda:0, ... (default: the first GPU, else cpu)")
    add("--max-length", type=int, metavar="N", help="tokens of a prompt and its answer together")
    add(
        "--server",
        metavar="URL",
        help="vLLM, SGLang, llama.cpp or another server with /v1/completions runs the model; its tokenizer alone is "
        "read here. The key comes from the environment, TAMIS_API_KEY",
    )
    add("--server-model", metavar="M", help="the model's name there (default: the only one)")


def run(arguments: argparse.Namespace) -> None:
    """Reads, ranks, answers, writes. What is cheap to check is checked before the model is loaded.

    Raises:
        InvalidInput: A file cannot be read, there is no passage, or an option is out of range.
    """
    check_query(arguments.question)
    Cut(min_score=arguments.min_score)
    for name in ("top_k", "max_new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InvalidInput(f"--{name.replace('_', '-')} is {value}; pass at least 1.")
    if arguments.server is not None and arguments.model is None:
        raise InvalidInput("--server needs --model, the checkpoint that it runs: its tokenizer is read here.")
    if arguments.server is None and arguments.server_model is not None:
        raise InvalidInput("--server-model is what --server calls the model; pass --server, too.")
    passages = [passage for file in arguments.files for passage in passages_of(file, arguments.by)]
    if not passages:
        raise InvalidInput(f"There is no passage to read: nothing but blank lines in {', '.join(arguments.files)}.")
    live = not arguments.json and sys.stdout.isatty()
    answer = _answer(arguments, passages, live=live)
    if arguments.json:
        write_json(_as_json(arguments.question, answer, len(passages)))
    else:
        _show(answer, len(passages), live=live)
    if arguments.model is None and arguments.adapter is None:
        say(SMALL)


def _answer(arguments: argparse.Namespace, passages: list[Passage], *, live: bool) -> Answer:
    """The answer; its text is written to standard output as it comes if `live`."""
    with status("Loading the model"):
        rag = load_rankrag(arguments.model, **{name: getattr(arguments, name) for name in OPTIONS})
    with rag:
        with status(f"Ranking {len(passages)} passages") as tell:
            stream = rag.stream(arguments.question, passages, **{name: getattr(arguments, name) for name in CALL})
            pieces = [next(stream)]  # empty, as soon as they are ranked
            if not live:
                tell("Answering")
                pieces += stream
        for piece in stream:
            pieces.append(piece)
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    answer = pieces[-1].answer
    assert answer is not None  # noqa: S101 - the last piece has it
    return answer


def _as_json(question: str, answer: Answer, count: int) -> dict[str, Any]:
    return {
        "question": question,
        "model": answer.ranking.model,
        "answer": answer.text,
        "found": answer.found,
        "contexts": [as_json(rank, hit) for rank, hit in enumerate(answer.contexts, 1)],
        "passages": count,
        "usage": asdict(answer.usage),
        "seconds": asdict(answer.timings),
    }


def _show(answer: Answer, count: int, *, live: bool) -> None:
    from rich.text import Text

    if answer.text:
        sys.stdout.write("\n\n" if live else f"{printable(answer.text)}\n\n")
    summary = f"{len(answer.contexts)} of {count} passages read, {answer.ranking.model}"
    show(*[table_of(answer.contexts)] * bool(answer.contexts), Text(summary, style="dim"))
    if not answer.contexts:
        say("no passage is good enough for --min-score, so that there is no answer; --answer-anyway asks for one.")
    elif not answer.found:
        say("the model says that the answer is not in the passages." if answer.text else "the model wrote nothing.")
    if any(hit.truncated for hit in answer.contexts):
        say("the model read only the beginning of the passage marked cut.")

"""`tamis rank`: passages from files, best first."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tamis import load
from tamis.cli.model_options import OPTIONS, add_model_options
from tamis.cli.output import one_line, say, show, status, write_json
from tamis.errors import InvalidInput
from tamis.inputs import Cut, check_query
from tamis.types import Hit, Passage, Ranking

if TYPE_CHECKING:
    from rich.table import Table

WIDEST_PLACE = 26  # columns for where a passage stands, so that in 80 there is room for its text
LIMITS = ("top_n", "min_score", "max_tokens")


def add_command(commands: Any) -> None:
    """Adds `rank` to argparse's subparsers."""
    parser = commands.add_parser(
        "rank",
        help="the lines of files, or whole files, best first",
        description="Put first the passages that answer a query. A passage is a line of the files, or a whole file.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="UTF-8 text; - is standard input")
    add("--query", required=True, metavar="Q", help="the question")
    add(
        "--by",
        choices=("line", "file"),
        default="line",
        help="what a passage is (default: line; blank ones do not count)",
    )
    add("--top-n", type=int, metavar="N", help="the best N at most")
    add("--min-score", type=float, metavar="S", help="only scores of at least S, in [0, 1]")
    add("--max-tokens", type=int, metavar="N", help="the best that have N tokens together at most")
    add("--json", action="store_true", help="one JSON object instead of a table")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="M", help="a folder, a hub id, or a URL with --mode remote (default: the embedded model)"
    )
    add_model_options(group)


def run(arguments: argparse.Namespace) -> None:
    """Reads, ranks, writes. What is cheap to check is checked before the model is loaded.

    Raises:
        InvalidInput: A file cannot be read, there is no passage, or an option is out of range.
    """
    limits = {name: getattr(arguments, name) for name in LIMITS}
    Cut(**limits)
    check_query(arguments.query)
    passages = [passage for file in arguments.files for passage in passages_of(file, arguments.by)]
    if not passages:
        raise InvalidInput(f"There is no passage to rank: nothing but blank lines in {', '.join(arguments.files)}.")
    with status("Loading the model") as tell:
        options = {name: getattr(arguments, name) for name in OPTIONS}
        reranker = load(arguments.model, **options)
        with reranker:
            tell(f"Ranking {len(passages)} passages")
            ranking = reranker.rank(arguments.query, passages, **limits)
    if arguments.json:
        hits = [as_json(rank, hit) for rank, hit in enumerate(ranking, 1)]
        write_json({"query": arguments.query, "model": ranking.model, "hits": hits, "usage": asdict(ranking.usage)})
    else:
        _show(ranking, len(passages))


def passages_of(file: str, by: str) -> Iterator[Passage]:
    """The passages of a file, by "line" or the whole "file"; ids say where they stand."""
    name = os.fsencode(file).decode("utf-8", "replace")
    text = _read(file, name)
    if by == "file":
        if text.strip():
            yield Passage(text, name)
        return
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield Passage(line, f"{name}:{number}")


def _read(file: str, name: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as stream:
                data = stream.read()
    except IsADirectoryError:
        raise InvalidInput(f"{name} is a directory; name the files in it.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InvalidInput(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        say(f"warning: {name} is not UTF-8 from byte {error.start} on; bytes that cannot be read become \ufffd.")
        return data.decode("utf-8-sig", "replace")


def as_json(rank: int, hit: Hit) -> dict[str, Any]:
    """A hit as it is written with --json."""
    return {
        "rank": rank,
        "index": hit.index,
        "id": hit.passage.id,
        "score": hit.score,
        "logit": hit.logit,
        "text": hit.passage.text,
        "truncated": hit.truncated,
        "window": hit.window,
    }


def _show(ranking: Ranking, count: int) -> None:
    from rich.text import Text

    cut = sum(hit.truncated for hit in ranking)
    show(*[table_of(ranking)] * bool(ranking), Text(_summary(ranking, count), style="dim"))
    if cut:
        read = "passage marked cut" if cut == 1 else f"{cut} passages marked cut"
        say(f"the model read only the beginning of the {read}; --long-documents max_window reads all of it.")


def table_of(hits: Sequence[Hit]) -> Table:
    """Hits, one a row."""
    from rich.table import Table
    from rich.text import Text

    cut = any(hit.truncated for hit in hits)
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("score")
    table.add_column("where", style="cyan")
    if cut:
        table.add_column("", style="yellow")
    table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
    for rank, hit in enumerate(hits, 1):
        row = [str(rank), f"{hit.score:.4f}", _place(hit), one_line(hit.passage.text[:1000])]
        if cut:
            row.insert(3, "cut" if hit.truncated else "")
        table.add_row(*map(Text, row))
    return table


def _place(hit: Hit) -> str:
    """Where the passage stands; of a long name the end, where the line number is."""
    place = one_line(hit.passage.id or "")
    return place if len(place) <= WIDEST_PLACE else "…" + place[1 - WIDEST_PLACE :]


def _summary(ranking: Ranking, count: int) -> str:
    left_out = ((ranking.usage.below_min_score, "--min-score"), (ranking.usage.over_budget, "--max-tokens"))
    parts = [f"{len(ranking)} of {count} passages", *(f"{n} left out by {why}" for n, why in left_out if n)]
    return ", ".join([*parts, ranking.model])

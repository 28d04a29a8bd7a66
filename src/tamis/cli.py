"""The command `tamis`: results go to standard output, everything else to standard error.

Exit codes: 0, done; 2, something is wrong with what was asked for, and one line on standard error says what.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tamis import __version__, load
from tamis.errors import InvalidInput, MissingExtra, TamisError
from tamis.families import MODES
from tamis.long_documents import POLICIES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tamis.types import Passage, Ranking

WIDEST_PLACE = 26  # columns for where a passage stands, so that its text has room in 80


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode still gets its results
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except TamisError as error:
        _say(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tamis", description="Reranking: the passages that answer a question first.")
    parser.add_argument("--version", action="version", version=f"tamis {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_rank(commands)
    models = commands.add_parser("models", help="what can be loaded, and what is embedded", description=_models.__doc__)
    models.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    models.set_defaults(run=_models)
    return parser


def _add_rank(commands: Any) -> None:
    rank = commands.add_parser("rank", help="rank the lines of files, or whole files", description=_rank.__doc__)
    rank.set_defaults(run=_rank)
    add = rank.add_argument
    add("files", nargs="+", metavar="FILE", help="UTF-8 text; - is standard input")
    add("--query", required=True, metavar="Q", help="the question")
    add("--by", choices=("line", "file"), default="line", help="what a passage is (default: line, blank ones left out)")
    add("--top-n", type=int, metavar="N", help="show the best N at most")
    add("--min-score", type=float, metavar="S", help="show only scores of at least S, in [0, 1]")
    add("--max-tokens", type=int, metavar="N", help="show the best until they have N tokens together")
    add("--json", action="store_true", help="one JSON object instead of a table")
    add = rank.add_argument_group("model").add_argument
    add("--model", metavar="M", help="a folder or hub id (default: the embedded model)")
    add("--mode", choices=MODES, help="default: what the model's files say")
    add("--family", metavar="F", help="one of those that `tamis models` names (default: what the model's files say)")
    add("--dim", type=_dims, metavar="D", help="bi-encoder: leading dimensions, 64; or a funnel, 64,128,384")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: auto")
    add("--device", metavar="D", help="cpu, cuda:0, ... (default: the first GPU, else cpu)")
    add("--max-length", type=int, metavar="N", help="tokens that the model reads of query and passage together")
    add("--long-documents", choices=POLICIES, default="truncate", help="passages that do not fit (default: truncate)")


def _dims(text: str) -> int | list[int]:
    try:
        dims = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor numbers with commas between") from None
    return dims if "," in text else dims[0]


def _rank(arguments: argparse.Namespace) -> None:
    """Rank passages by how well they answer a query. A passage is a line of the files, or a whole file."""
    from tamis.reranker import Cut

    limits = {name: getattr(arguments, name) for name in ("top_n", "min_score", "max_tokens")}
    Cut(**limits)  # a wrong number is worth no wait for the model
    passages = [passage for file in arguments.files for passage in _passages(file, arguments.by)]
    if not passages:
        raise InvalidInput(f"There is no passage to rank: only blank lines in {', '.join(arguments.files)}.")
    names = ("mode", "family", "dim", "dtype", "device", "max_length", "long_documents")
    with _status("Loading the model") as status:
        with load(arguments.model, **{name: getattr(arguments, name) for name in names}) as reranker:
            status(f"Ranking {len(passages)} passages")
            ranking = reranker.rank(arguments.query, passages, **limits)
    if arguments.json:
        _write_json(_as_json(arguments.query, ranking))
    else:
        _show(ranking, len(passages))


def _passages(file: str, by: str) -> Iterator[Passage]:
    from tamis.types import Passage

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
        _say(
            f"warning: {name} is not UTF-8 (byte {error.start}); what cannot be read is replaced by \N{REPLACEMENT CHARACTER}."
        )
        return data.decode("utf-8-sig", "replace")


def _as_json(query: str, ranking: Ranking) -> dict[str, Any]:
    hits = [
        {
            "rank": rank,
            "index": hit.index,
            "id": hit.passage.id,
            "score": hit.score,
            "logit": hit.logit,
            "text": hit.passage.text,
            "truncated": hit.truncated,
        }
        for rank, hit in enumerate(ranking, 1)
    ]
    return {"query": query, "model": ranking.model, "hits": hits, "usage": asdict(ranking.usage)}


def _show(ranking: Ranking, count: int) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("score")
    table.add_column("where", style="cyan")
    table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
    cut = sum(hit.truncated for hit in ranking)
    if cut:
        table.add_column("cut", style="yellow")
    for rank, hit in enumerate(ranking, 1):
        place = _one_line(hit.passage.id or "")
        if len(place) > WIDEST_PLACE:
            place = "…" + place[1 - WIDEST_PLACE :]
        text = _one_line(hit.passage.text[:1000])
        row = [str(rank), f"{hit.score:.4f}", Text(place), Text(text), "cut" if hit.truncated else ""]
        table.add_row(*row[: len(table.columns)])
    summary = Text(_summary(ranking, count), style="dim")
    _print(*([table, summary] if ranking else [summary]))
    if cut:
        _say(
            f"note: the model read only the beginning of {cut} {'passage' if cut == 1 else 'passages'}; "
            "--long-documents max_window reads all of it."
        )


def _summary(ranking: Ranking, count: int) -> str:
    left_out = (
        (ranking.usage.below_min_score, "under --min-score"),
        (ranking.usage.over_budget, "over --max-tokens"),
    )
    parts = [f"{len(ranking)} of {count} passages", *(f"{number} {why}" for number, why in left_out if number)]
    return ", ".join([*parts, ranking.model])


def _one_line(text: str) -> str:
    """Without line breaks, and without what could steer the terminal.

    >>> _one_line("a\\n  b \\x1b[31m")
    'a b ?[31m'
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _models(arguments: argparse.Namespace) -> None:
    """The model families that Tamis knows, and the model that is embedded."""
    from tamis.checkpoint import EMBEDDED, Checkpoint
    from tamis.families import families

    try:
        path, missing = str(Checkpoint.embedded().root), ""
    except MissingExtra as error:
        path, missing = None, str(error)
    if arguments.json:
        rows = [
            {
                "name": family.name,
                "mode": family.mode,
                "checkpoints": family.summary,
                "score": family.score,
                "hub_ids": sorted(family.hub_ids),
            }
            for family in families()
        ]
        embedded = {"model": EMBEDDED, "installed": path is not None, "path": path}
        _write_json({"modes": list(MODES), "families": rows, "embedded": embedded})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", leading=1)
    for heading in ("family", "mode", "checkpoints", "score"):
        table.add_column(heading, style="cyan" if heading == "family" else None)
    for family in families():
        table.add_row(*map(Text, (family.name, family.mode, family.summary, family.score)))
    state = f"installed in {path}" if path else f"not installed. {missing}"
    _print(table, "", f"modes: {', '.join(MODES)}", f"embedded: {EMBEDDED}, {state}")


def _print(*parts: RenderableType) -> None:
    """Writes rich's rendering by way of `sys.stdout`: rich itself would end the process where a pipe is closed."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    sys.stdout.write(captured.get())


def _write_json(value: Any) -> None:
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    json.dump(value, sys.stdout, ensure_ascii=not unicode, indent=2)
    sys.stdout.write("\n")


def _say(message: str) -> None:
    sys.stderr.write(f"tamis: {' '.join(message.split())}\n")


@contextmanager
def _status(first: str) -> Iterator[Callable[[str], None]]:
    """A line that tells what is being waited for, on a terminal's standard error; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield status.update


if __name__ == "__main__":
    sys.exit(main())

"""The command `tamis`: results go to standard output, everything else to standard error.

Exit codes: 0, done; 1, `doctor` found something broken; 2, something is wrong with what was asked for, and one line on
standard error says what, or one for each bad row of data; 130, interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from tamis import __version__
from tamis.cli import answer, bench, completion, doctor, evaluate, fuse, models, rank, train
from tamis.cli.output import say
from tamis.errors import InvalidData, TamisError

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC))


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
        code = arguments.run(arguments)
        sys.stdout.flush()
    except TamisError as error:
        for line in str(error).splitlines() if isinstance(error, InvalidData) else [str(error)]:
            say(f"error: {line}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        say(f"error: standard output cannot be written: {error.strerror}.")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes there as Python ends
        return 2
    except KeyboardInterrupt:
        return 130
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tamis", description="Reranking: the passages that answer a question first.")
    parser.add_argument("--version", action="version", version=f"tamis {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    rank.add_command(commands)
    answer.add_command(commands)
    evaluate.add_command(commands)
    train.add_command(commands)
    bench.add_command(commands)
    fuse.add_command(commands)
    models.add_command(commands)
    doctor.add_command(commands)
    completion.add_command(commands, parser)
    return parser

"""`tamis completion`: a script with which a shell completes commands and options."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tamis.extras import need

SHELLS = {
    "bash": "tamis completion bash > ~/.local/share/bash-completion/completions/tamis",
    "zsh": "tamis completion zsh > ~/.zfunc/_tamis   (a folder in $fpath, before compinit)",
    "fish": "tamis completion fish > ~/.config/fish/completions/tamis.fish",
}


def add_command(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Adds `completion` to argparse's subparsers.

    Args:
        commands: The subparsers.
        whole: The parser that the script is for: all of it, once every command is in.
    """
    where = "\n".join(f"  {command}" for command in SHELLS.values())
    parser = commands.add_parser(
        "completion",
        help="a script that completes this command in bash, zsh or fish",
        description=f"Write a script for a shell to standard output. Where it belongs:\n\n{where}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(SHELLS), help="which shell")
    parser.set_defaults(run=lambda arguments: run(arguments, whole))


def run(arguments: argparse.Namespace, whole: argparse.ArgumentParser) -> None:
    """Writes the script.

    Raises:
        MissingExtra: shtab, which makes it, is not installed.
    """
    shtab = need("shtab", "completion", "A completion script")
    _complete_files(whole, shtab.FILE, shtab.DIRECTORY)
    sys.stdout.write(shtab.complete(whole, shell=arguments.shell).rstrip("\n") + "\n")


def _complete_files(parser: argparse.ArgumentParser, file: Any, folder: Any) -> None:
    """Has what is named FILE or DIR in the help completed as such."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, file, folder)
        elif action.metavar == "DIR":
            action.complete = folder  # type: ignore[attr-defined]
        elif action.metavar in ("FILE", "RECIPE.toml", "PATH", "M", "MODEL", "A"):
            action.complete = file  # type: ignore[attr-defined]

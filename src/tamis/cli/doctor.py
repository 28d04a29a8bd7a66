"""`tamis doctor`: what is here, what is missing, what "auto" takes and why, and whether it works."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tamis.cli import installed, machine
from tamis.cli.output import say, show, status, write_json
from tamis.cli.self_test import self_test

if TYPE_CHECKING:
    from rich.console import RenderableType

DOCUMENTED = "what is installed, what it lacks, what auto takes and why, and whether it works"


def add_command(commands: Any) -> None:
    """Adds `doctor` to argparse's subparsers."""
    parser = commands.add_parser(
        "doctor",
        help="whether everything is here, and works",
        description=f"Tell {DOCUMENTED}. The test takes a few seconds; the exit code is 1 if it fails. Nothing is "
        "fetched, and of keys only that they are set is told: the report can be passed on.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--no-test", action="store_true", help="load no model")
    parser.add_argument("--passage-dir", metavar="DIR", help="tell the size of load_rankrag's passage_dir too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Looks, tests, writes.

    Returns:
        0; 1 if the self-test failed.
    """
    with status("Looking around") as tell:
        report = examined(arguments.passage_dir)
        if not arguments.no_test:
            tell("Testing")
            report["self_test"] = self_test()
    if arguments.json:
        write_json(report)
    else:
        show(*rendered(report))
    failed = [row for row in report["self_test"] if not row["passed"]]
    for row in failed:
        say(f"error: the self-test of {row['model']} ({row['mode']}) failed: {row['problem']}")
    return 1 if failed or report["broken"] else 0


def examined(passage_dir: str | None = None) -> dict[str, Any]:
    """Everything but the self-test, as --json writes it."""
    required = installed.requirements()
    found = installed.versions()
    report: dict[str, Any] = {
        "versions": found,
        "extras": installed.extras(required),
        "environment": installed.settings(),
        "notes": installed.notes(found, required),
        "self_test": [],
        "broken": [],
    }
    for name, look in (
        ("devices", machine.devices),
        ("dtype", machine.dtype),
        ("threads", machine.threads),
        ("kernels", machine.kernels),
        ("models", installed.models),
        ("caches", lambda: installed.caches(passage_dir)),
    ):
        try:
            report[name] = look()
        except Exception as error:  # noqa: BLE001 - a broken library is what the command is to find
            report[name] = None
            report["broken"].append(f"{name}: {type(error).__name__}: {error}")
    if report["threads"] is not None:
        report["notes"] += machine.notes(report["threads"])
    return report


def rendered(report: dict[str, Any]) -> list[RenderableType]:
    """The report for people."""
    parts: list[RenderableType] = []
    for title, rows in (
        ("Versions", _versions(report["versions"])),
        ("Devices", _devices(report)),
        ("Extras", _extras(report["extras"])),
        ("Models that need no network", _models(report["models"] or [])),
        ("Caches", _caches(report["caches"] or [])),
        ("Environment", report["environment"].items()),
        ("Self-test", [(f"{row['model']} ({row['mode']})", _outcome(row)) for row in report["self_test"]]),
        ("To do", [("", note) for note in [*report["notes"], *report["broken"]]]),
    ):
        parts += _section(title, rows)
    return parts


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows:
        return []
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(*map(Text, (name, value) if name else ("-", value)))
    return [Text(title, style="bold"), Padding(table, (0, 0, 1, 2))]


def _versions(found: dict[str, dict[str, str | None]]) -> list[tuple[str, str]]:
    system = found["system"]
    rows = [
        ("tamis", f"{system['tamis']}, in {system['folder']}"),
        ("Python", f"{system['python']}, {system['executable']}"),
        ("system", f"{system['platform']}"),
    ]
    said = {None: "not installed", "": "on the path, not installed"}
    for group in ("adapters", "libraries", "frameworks"):
        rows += [(name, said.get(here, f"{here}")) for name, here in found[group].items()]
    return rows


def _devices(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (device["name"], f"{device['what']}; {size(device['bytes'])} of memory" if device["bytes"] else device["what"])
        for device in report["devices"] or []
    ]
    dtype, threads = report["dtype"], report["threads"]
    if dtype is not None:
        times = f"measured: a product in bfloat16 takes {dtype['bfloat16_time']} times as long as in float32"
        rows += [("default", dtype["device"]), ('dtype "auto"', f"{dtype['auto']}: {dtype['why']}; {times}")]
    if report["kernels"] is not None:
        rows.append(("tamis-kernels", report["kernels"]))
    if threads is not None:
        rows.append(("threads", f"{threads['torch']} of torch, on {threads['cpus']} CPUs that this process may use"))
    return rows


def _extras(extras: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (
            row["extra"],
            f"installed: {row['brings']}"
            if row["installed"]
            else f"missing ({', '.join(row['missing'])}): {row['brings']}. {row['install']}",
        )
        for row in extras
    ]


def _models(models: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["model"], f"{row['call']}, in {row['path']}" if row["path"] else row["missing"]) for row in models]


def _caches(caches: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = [
        (
            row["what"],
            f"none in {row['path']}"
            if not row["entries"]
            else f"{row['entries']}, {size(row['bytes'])} together, in {row['path']}",
        )
        for row in caches
    ]
    return rows if len(rows) != 1 else [*rows, ("Tamis", "writes to disk only where load_rankrag(passage_dir=) says")]


def _outcome(row: dict[str, Any]) -> str:
    if not row["passed"]:
        return f"FAILED: {row['problem']}"
    packed = "checked against one sequence at a time: equal"
    padded = "differs here from one sequence at a time, so that it runs padded, slower; please report this"
    return (
        f"passed: {row['rank_ms']} ms for {row['tokens']} tokens in {row['dtype']} on {row['device']}, loaded in "
        f"{row['load_ms']:.0f} ms; packed form {packed if row['packed'] else padded}"
    )


def size(count: int) -> str:
    """Bytes, in the unit that fits.

    >>> size(999), size(1_500_000), size(64 * 10**9)
    ('999 B', '1.5 MB', '64.0 GB')
    """
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"

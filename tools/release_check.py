"""Whether this tree can be released: `make release-check`, or `python tools/release_check.py`.

Checks, in this order: the versions of all distributions are one, and CHANGELOG.md has it; every distribution builds as
an sdist and, from that, as a wheel; `twine check` finds nothing; the wheels hold what they should and no more; each
wheel, in a virtual environment of its own, is installed with `pip --no-index --no-deps` and imports.

Virtual environments borrow what is installed beside the interpreter that runs this: torch is large, and not what is
tested. Of the distributions that are checked they have the wheel alone, and where a module came from is looked at. What
pip would resolve is tested apart, by `pip install --dry-run` with constraints.txt, where `--resolve` is given.

Needs build, hatchling and twine (group `release`). Exit code 1 if anything is wrong; all of it is told, not the first
alone. Before a release is made, `--unreleased` lets CHANGELOG.md have the version's notes under [Unreleased].
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("tamis/models/tamis-mini/model.safetensors", "tamis/models/mrl-adaptor/model.safetensors")
MORE = {"tamis": WEIGHTS, "tamis-kernels": ("tamis_kernels/_kernels.so",)}  # what else a wheel holds
UNWANTED = re.compile(
    r"(^|/)(tests?|conftest\.py|\.env.*|__pycache__|\.git.*|shared|benchmarks)(/|$)|\.(pyc|part|bin)$"
)
IMPORTS = {
    "tamis": "import tamis; assert tamis.load(mode='lexical').rank('a', ['b', 'a'])[0].index == 1",
    "llama-index-postprocessor-tamis": "from llama_index.postprocessor.tamis import TamisRerank; "
    "TamisRerank(mode='lexical')",
    "langchain-tamis": "from langchain_tamis import TamisRerank; TamisRerank(mode='lexical')",
    "tamis-kernels": "import tamis_kernels; tamis_kernels.why_not()",
    "tamis-ray": "import tamis_ray",
}
MODULES = {"llama-index-postprocessor-tamis": "llama_index.postprocessor.tamis"}  # else the name, with underscores


@dataclass(frozen=True)
class Distribution:
    """One project of the tree.

    Attributes:
        folder: Where its pyproject.toml is.
        name: Its name on an index.
        version: Its version there.
    """

    folder: Path
    name: str
    version: str

    @property
    def module(self) -> str:
        """What it is imported as."""
        return MODULES.get(self.name, self.name.replace("-", "_"))

    @property
    def package(self) -> str:
        """The folder of its module inside a wheel."""
        return self.module.replace(".", "/")


def distributions() -> list[Distribution]:
    """All of the tree, the core first."""
    found = []
    for path in [ROOT / "pyproject.toml", *sorted(ROOT.glob("integrations/*/pyproject.toml"))]:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        found.append(Distribution(path.parent, project["name"], project["version"]))
    return found


def version_problems(found: list[Distribution], root: Path = ROOT, *, unreleased: bool = False) -> Iterator[str]:
    """One version everywhere: pyproject files, modules, what they require of each other, CHANGELOG."""
    core = found[0]
    for one in found:
        said = _said(one.folder / ("src" if one is core else "") / one.package / "__init__.py")
        if said != one.version and (said is not None or one is core):
            yield f"{one.module}.__version__ is {said}, and its pyproject.toml says {one.version}."
    for one in found[1:]:
        if one.version != core.version:
            yield f"{one.name} is {one.version}, and tamis {core.version}."
        project = tomllib.loads((one.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = next((line for line in project["dependencies"] if re.match(r"tamis\b", line)), "nothing")
        if not _allows(wanted, core.version):
            yield f"{one.name} requires {wanted!r}, which tamis {core.version} is not."
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = r"## \[Unreleased\]" if unreleased else rf"## \[{re.escape(core.version)}\] - \d{{4}}-\d\d-\d\d"
    if not re.search(rf"^{heading}$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no `## [{core.version}] - YYYY-MM-DD`: give what is under [Unreleased] its version."


def _said(module: Path) -> str | None:
    """The `__version__` of a module's file; None if it says none."""
    found = re.search(r'^__version__ = "(.+)"$', module.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def _allows(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement

    return requirement != "nothing" and Requirement(requirement).specifier.contains(version)


def build(one: Distribution, out: Path) -> str | None:
    """Builds the sdist, and the wheel from it; a problem, or None."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(one.folder)]
    done = _run(command, TAMIS_KERNELS_REQUIRED="1")  # a wheel without what it is for is not to be published
    return None if done.returncode == 0 else f"{one.name} does not build: {_last(done)}"


def twine_problems(out: Path) -> Iterator[str]:
    """What an index would not show or take."""
    files = [str(path) for path in sorted(out.iterdir())]
    done = _run([sys.executable, "-m", "twine", "check", "--strict", *files])
    if done.returncode != 0:
        yield f"twine check: {_last(done)}"


def wheel_problems(one: Distribution, wheel: Path) -> Iterator[str]:
    """A wheel holds the package with its type marker, its licence and, the core, its models; and no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
        weights = {name: archive.getinfo(name).file_size for name in WEIGHTS if name in names}
    info = metadata.partition("/")[0]
    wanted = [f"{one.package}/__init__.py", f"{one.package}/py.typed", *MORE.get(one.name, ())]
    for name in wanted:
        if name not in names:
            yield f"{wheel.name} lacks {name}."
    for name, size in weights.items():
        if size < 100_000:
            yield f"{wheel.name}: {name} has {size} bytes, which is no model."
    if not any(re.fullmatch(rf"{re.escape(info)}/(licenses/)?LICENSE", name) for name in names):
        yield f"{wheel.name} has no LICENSE."
    for name in names:
        if not name.startswith((f"{one.package}/", f"{info}/")):
            yield f"{wheel.name} has {name}, which is outside {one.package}/."
        if UNWANTED.search(name):
            yield f"{wheel.name} has {name}, which does not belong there."
    if about["Version"] != one.version:
        yield f"{wheel.name} says version {about['Version']}."
    if len(about.get_payload() or "") < 200:
        yield f"{wheel.name} has no description: its README is missing or empty."


def install_problems(found: list[Distribution], wheels: dict[str, Path], folder: Path) -> Iterator[str]:
    """Each in an environment of its own: the core alone, and every other over the core."""
    for one in found:
        home = folder / one.name
        venv.create(home, with_pip=False, symlinks=True)
        python = home / "bin" / "python"
        needed = [wheels["tamis"], *([] if one.name == "tamis" else [wheels[one.name]])]
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
        done = _run([*pip, *map(str, needed)])
        if done.returncode != 0:
            yield f"{one.name} does not install: {_last(done)}"
            continue
        site = next((home / "lib").glob("python*/site-packages"))
        code = (
            f"import sys; sys.path += {_borrowed()!r}; import importlib; "
            f"found = importlib.import_module({one.module!r}).__file__; "
            f"assert found.startswith({str(site)!r}), found; {IMPORTS[one.name]}"
        )
        done = _run([str(python), "-I", "-W", "ignore", "-c", code], cwd=folder)
        if done.returncode != 0:
            yield f"{one.name} does not import: {_last(done)}"


def _borrowed() -> list[str]:
    """Where the interpreter that runs this has its packages: behind those of the environment under test."""
    return [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]


def resolve_problems(found: list[Distribution], wheels: dict[str, Path], out: Path) -> Iterator[str]:
    """Whether pip finds everything that each requires, within constraints.txt; nothing is installed."""
    for one in found:
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        where = ["--find-links", str(out), "--constraint", str(ROOT / "constraints.txt")]
        done = _run([*pip, *where, str(wheels[one.name])])
        if done.returncode != 0:
            yield f"{one.name} does not resolve: {_last(done)}"


def _run(command: list[str], cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or f"exit code {done.returncode}"


def main() -> int:
    """Runs every check, and tells what is wrong."""
    parser = argparse.ArgumentParser(description="Whether this tree can be released.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the built files there (default: nowhere)")
    parser.add_argument("--resolve", action="store_true", help="have pip resolve everything too (needs an index)")
    parser.add_argument("--unreleased", action="store_true", help="CHANGELOG.md need not have the version yet")
    arguments = parser.parse_args()
    problems: list[str] = []

    def check(what: str, found: Iterator[str]) -> None:
        here = list(found)
        print(f"{'ok  ' if not here else 'FAIL'} {what}", flush=True)
        problems.extend(here)

    found = distributions()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch) / "dist"
        out.mkdir(parents=True, exist_ok=True)
        told = ", ".join(f"{one.name} {one.version}" for one in found)
        check(f"versions: {told}", version_problems(found, unreleased=arguments.unreleased))
        for one in found:
            check(f"build {one.name}", (problem for problem in [build(one, out)] if problem))
        check("twine check", twine_problems(out))
        wheels = {one.name: path for one in found for path in out.glob(f"{one.name.replace('-', '_')}-{one.version}-*")}
        built = [one for one in found if one.name in wheels]
        for one in built:
            check(f"contents of {wheels[one.name].name}", wheel_problems(one, wheels[one.name]))
        if "tamis" in wheels:
            for one in built:
                check(f"install and import {one.name}", install_problems([one], wheels, Path(scratch)))
        if arguments.resolve:
            check("resolve", resolve_problems(built, wheels, out))
    for problem in problems:
        print(f"- {problem}")
    print(f"{len(problems)} problems" if problems else "ready to be released")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

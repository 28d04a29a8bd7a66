"""The build's own step: compiles `src` into the package, for whatever Python: the library does not know Python.

Without a C compiler the package is built without its library, installs all the same, and says so when it is asked;
`TAMIS_KERNELS_REQUIRED=1` makes that an error, for wheels that are to be published. `CC` names another compiler.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = (
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=default",
    "-Wall",
    "-Wextra",
    "-Wno-missing-field-initializers",
)
LIBRARY = "tamis_kernels/_kernels.so"


class CompileHook(BuildHookInterface[Any]):
    """Runs the compiler before a wheel is filled or an editable install is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, and names the wheel for this platform alone."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        library = root / LIBRARY
        problem = compiled(sorted((root / "src").glob("*.c")), library)
        if problem is None:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, infer_tag=False, tag=f"py3-none-{platform}")
            return
        library.unlink(missing_ok=True)
        if os.environ.get("TAMIS_KERNELS_REQUIRED") == "1":
            raise RuntimeError(problem)
        self.app.display_warning(f"tamis-kernels is built without its library, and does nothing: {problem}")


def compiled(sources: list[Path], library: Path) -> str | None:
    """Compiles the sources into a shared library; what is wrong, or None."""
    made = library.with_suffix(".new")  # the old one may be in use, and stays what it is for who has it open
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(made), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - whoever builds names the compiler
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}."
    if done.returncode != 0:
        return f"{shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}"
    made.replace(library)
    return None

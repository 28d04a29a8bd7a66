"""`tools/release_check.py`: each thing that it looks for is found where it is, and not where it is not.

Building and installing is the script's own business: `make release-check`.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("release_check", ROOT / "tools/release_check.py")
    sys.modules["release_check"] = module = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """What the versions are read from, in the state of a release."""
    modules = ("src/tamis", "integrations/*/[lt]*", "integrations/*/llama_index/postprocessor/tamis")
    sources = [path for module in modules for path in ROOT.glob(f"{module}/__init__.py")]
    for path in [ROOT / "pyproject.toml", *ROOT.glob("integrations/*/pyproject.toml"), *sources]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


@pytest.fixture
def problems(check, tree, monkeypatch):
    """Writes a changelog, and gives what is said of the versions."""
    monkeypatch.setattr(check, "ROOT", tree)

    def found(changelog):
        (tree / "CHANGELOG.md").write_text(changelog)
        return list(check.version_problems(check.distributions(), tree))

    return found


def heading(check):
    return f"## [Unreleased]\n\n## [{check.distributions()[0].version}] - 2026-11-21\n"


def test_versions_in_step(check, tree, problems):
    assert problems(heading(check)) == []
    assert check.distributions()[0].name == "tamis"
    assert {"langchain-tamis", "llama-index-postprocessor-tamis"} < {one.name for one in check.distributions()}
    for one in check.distributions():
        assert one.name in check.IMPORTS, "tell tools/release_check.py how it is imported"
        assert (ROOT / one.folder.relative_to(tree) / ("src" if one.name == "tamis" else "") / one.package).is_dir()


def test_a_changelog_without_the_version(check, tree, problems):
    [said] = problems("## [Unreleased]\n")
    assert said.startswith("CHANGELOG.md has no `## [")
    assert list(check.version_problems(check.distributions(), tree, unreleased=True)) == []


def test_versions_out_of_step(check, tree, problems):
    changelog = heading(check)
    path = tree / "integrations/langchain-tamis/pyproject.toml"
    old = check.distributions()[0].version
    path.write_text(path.read_text().replace(f'version = "{old}"', 'version = "9.9.9"').replace("tamis>=", "tamis>=9"))
    said = problems(changelog)
    assert any("langchain-tamis is 9.9.9" in line for line in said)
    assert any("langchain-tamis requires" in line for line in said)
    source = tree / "src/tamis/__init__.py"
    source.write_text(source.read_text().replace(f'__version__ = "{old}"', '__version__ = "8.8.8"'))
    assert problems(changelog)[0].startswith("tamis.__version__ is 8.8.8")
    source.write_text("")
    assert problems(changelog)[0].startswith("tamis.__version__ is None")
    other = tree / "integrations/tamis-ray/tamis_ray/__init__.py"
    other.write_text(other.read_text().replace(f'__version__ = "{old}"', '__version__ = "7.7.7"'))
    assert any(line.startswith("tamis_ray.__version__ is 7.7.7") for line in problems(changelog))


def wheel(folder, *without, **more):
    """A wheel of langchain-tamis, made by hand."""
    info = "langchain_tamis-0.1.0.dist-info"
    files = {
        "langchain_tamis/__init__.py": "",
        "langchain_tamis/py.typed": "",
        f"{info}/METADATA": "Metadata-Version: 2.4\nName: langchain-tamis\nVersion: 0.1.0\n\n" + "What it is. " * 30,
        f"{info}/licenses/LICENSE": "Apache",
        f"{info}/RECORD": "",
        **more,
    }
    path = folder / "langchain_tamis-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            if not name.endswith(without or ("\0",)):
                archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("without", "more", "said"),
    [
        ((), {}, None),
        (("py.typed",), {}, "lacks langchain_tamis/py.typed"),
        (("LICENSE",), {}, "has no LICENSE"),
        ((), {"langchain_tamis/tests/test_it.py": ""}, "does not belong there"),
        ((), {"tests/test_it.py": ""}, "outside langchain_tamis/"),
        ((), {"langchain_tamis/__pycache__/a.pyc": ""}, "does not belong there"),
        ((), {"langchain_tamis-0.1.0.dist-info/METADATA": "Version: 0.0.9\n\n" + "a" * 300}, "says version 0.0.9"),
        ((), {"langchain_tamis-0.1.0.dist-info/METADATA": "Version: 0.1.0\n\n"}, "no description"),
    ],
    ids=range(8),
)
def test_what_a_wheel_holds(check, tmp_path, without, more, said):
    one = check.Distribution(tmp_path, "langchain-tamis", "0.1.0")
    found = list(check.wheel_problems(one, wheel(tmp_path, *without, **more)))
    assert (found == []) if said is None else any(said in line for line in found)


def test_the_core_without_its_models(check, tmp_path):
    info = "tamis-0.1.0.dist-info"
    path = tmp_path / "tamis-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tamis/__init__.py", "")
        archive.writestr("tamis/models/tamis-mini/model.safetensors", "version https://git-lfs.github.com/spec/v1")
        archive.writestr(f"{info}/METADATA", "Version: 0.1.0\n\n" + "a" * 300)
    said = " ".join(check.wheel_problems(check.Distribution(tmp_path, "tamis", "0.1.0"), path))
    assert "lacks tamis/models/mrl-adaptor/model.safetensors" in said
    assert "which is no model" in said

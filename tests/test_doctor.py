"""`tamis doctor`: what it tells is what is here, and it never tells a secret."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import tamis
from tamis.cli import installed, machine, main, self_test
from tamis.cli.self_test import FIRST, PASSAGES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def report(capsys, *arguments, code=0):
    assert main(["doctor", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


def test_a_sound_machine(embedded, capsys):
    found = report(capsys)
    assert [row["model"] for row in found["self_test"]] == ["tamis-mini", "tamis-mini", "all-MiniLM-L6-v2"]
    assert [row["mode"] for row in found["self_test"]] == ["fusion", "cross-encoder", "bi-encoder"]
    for row in found["self_test"]:
        assert row["passed"]
        assert row["packed"]
        assert row["problem"] is None
        assert row["order"][:2] == FIRST
        assert row["dtype"] == found["dtype"]["auto"]
        assert row["rank_ms"] > 0
        assert row["load_ms"] > 0
    assert found["broken"] == []
    assert found["versions"]["system"]["tamis"] == tamis.__version__
    assert found["versions"]["libraries"]["torch"] == torch.__version__
    assert found["versions"]["libraries"]["tokenizers"] == importlib.metadata.version("tokenizers")
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert 0 < found["threads"]["cpus"] <= os.cpu_count()
    assert [device["name"] for device in found["devices"]][-1] == "cpu" or torch.backends.mps.is_available()
    assert found["dtype"]["bfloat16_time"] > 0
    paths = {row["model"]: row["path"] for row in found["models"]}
    assert Path(paths["tamis-mini"], "model.safetensors").is_file()
    assert Path(paths["all-MiniLM-L6-v2"], "config.json").is_file()


def test_the_page_fits_80_columns_and_a_pipe(embedded, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(line == line.rstrip() for line in out.splitlines())
    for title in ("Versions", "Devices", "Extras", "Models that need no network", "Caches", "Self-test"):
        assert f"\n{title}\n" in f"\n{out}"
    assert out.count("passed: ") == 3


def test_dtype_is_what_load_takes(embedded, capsys):
    dtype = report(capsys, "--no-test")["dtype"]
    with tamis.load(mode="cross-encoder") as reranker:
        assert reranker.stats()["dtype"] == dtype["auto"]
        assert reranker.stats()["device"] == dtype["device"]
    can = dtype["why"].startswith("this CPU computes in bfloat16") or "it takes 8.0" in dtype["why"]
    assert can == (dtype["auto"] == "bfloat16") or dtype["device"] != "cpu"


def test_every_extra_is_told(capsys):
    """Of `pyproject.toml`; one that is missing says what it would bring, and how it is installed."""
    assert set(installed.BRINGS) == set(PROJECT["optional-dependencies"])
    found = {row["extra"]: row for row in report(capsys, "--no-test")["extras"]}
    assert set(found) == set(PROJECT["optional-dependencies"])
    for extra, row in found.items():
        assert row["brings"]
        assert row["install"] == f'pip install "tamis[{extra}]"'
    assert found["remote"]["installed"]
    lines = [Requirement("no-such-package>=1"), Requirement("packaging>=999"), Requirement("numpy")]
    here = importlib.metadata.version("packaging")
    assert installed.unmet(lines) == ["no-such-package", f"packaging>=999 ({here} is here)"]


def test_a_missing_extra_in_the_page(monkeypatch, capsys):
    real = installed._version
    monkeypatch.setattr(installed, "_version", lambda name: None if name == "tiktoken" else real(name))
    assert main(["doctor", "--no-test"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "tiktoken missing (tiktoken): token budgets" in page
    assert 'pip install "tamis[tiktoken]"' in page


@pytest.mark.parametrize("form", [["--json"], []])
def test_no_secret_is_told(form, capsys, monkeypatch):
    for name in installed.NAMED:
        monkeypatch.setenv(name, "hf_s3cr3t")
    monkeypatch.setenv("UNHEARD_OF", "s3cr3t")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["doctor", "--no-test", *form]) == 0
    out, err = capsys.readouterr()
    assert "s3cr3t" not in out + err
    assert "HF_TOKEN" in out
    assert "UNHEARD_OF" not in out
    variables = installed.settings()
    assert variables["TAMIS_API_KEY"] == "set"
    assert variables["OMP_NUM_THREADS"] == "3"


def test_a_wrong_order_is_found(embedded, capsys, monkeypatch):
    """The passages stand the other way round: what the test says to be right is not."""
    monkeypatch.setattr(self_test, "PASSAGES", PASSAGES[::-1])
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.count("FAILED: it ranked") == 3
    assert re.match(
        r"tamis: error: the self-test of tamis-mini \(fusion\) failed: it ranked .* \[1, 2\] come first\n", err
    )


def test_a_model_that_cannot_be_loaded_is_told(monkeypatch):
    monkeypatch.setattr("tamis.checkpoint.SHIPPED", Path("/nowhere"))
    row = self_test._tested("tamis-mini", "cross-encoder")
    assert not row["passed"]
    assert "config.json" in row["problem"]


def test_a_machine_without_torch():
    """What cannot be looked at is told, and the rest all the same."""
    code = "import sys; sys.modules['torch'] = None\nfrom tamis.cli import main\nsys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["devices"] is None
    assert found["broken"][0].startswith("devices: ModuleNotFoundError")
    assert found["versions"]["system"]["tamis"] == tamis.__version__
    assert not any(row["passed"] for row in found["self_test"])


def test_caches(tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--acme--reranker" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}" * 600)
    (tmp_path / "kept" / "model").mkdir(parents=True)
    (tmp_path / "kept" / "model" / "a.safetensors").write_bytes(b"x" * 2000)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    hub, kept = report(capsys, "--no-test", "--passage-dir", str(tmp_path / "kept"))["caches"]
    assert (hub["entries"], hub["bytes"], hub["path"]) == (1, 1200, str(tmp_path / "hub"))
    assert (kept["entries"], kept["bytes"]) == (1, 2000)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert report(capsys, "--no-test", "--passage-dir", str(tmp_path / "no"))["caches"][1]["bytes"] is None


def test_notes(monkeypatch):
    threads = {"torch": 64, "cpus": 1.5}
    assert any("OMP_NUM_THREADS=1" in note for note in machine.notes(threads))
    found = installed.versions()
    found["adapters"] = {"llama-index-postprocessor-tamis": None, "langchain-tamis": "0.0.9", "tamis-ray": ""}
    said = installed.notes(found, {"": [Requirement("numpy<1")]})
    assert said[0].startswith("Tamis requires numpy<1 (")
    assert "llama-index-core is here without Tamis's adapter: pip install llama-index-postprocessor-tamis." in said
    assert f"langchain-tamis is 0.0.9 and tamis {tamis.__version__}; they go together" in " ".join(said)
    assert not any("ray" in note for note in said)


def test_metadata_say_what_the_source_says(monkeypatch):
    """Of an installed wheel there is no pyproject.toml; its metadata have the same requirements."""
    from_source = installed.requirements()
    try:
        lines = importlib.metadata.requires("tamis")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tamis runs from the path here, and has no metadata")
    assert lines
    monkeypatch.setattr(installed.tamis, "__file__", "/nowhere/a/b/tamis/__init__.py")
    names = {extra: {line.name for line in lines} for extra, lines in installed.requirements().items()}
    assert names == {extra: {line.name for line in lines} for extra, lines in from_source.items()}

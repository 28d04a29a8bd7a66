"""Completion scripts: made by shtab, tried in the shell where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import tamis
from tamis.cli import main
from tamis.cli.completion import SHELLS


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_knows_the_commands_and_their_options(shell, capsys):
    text = script(shell, capsys)
    for word in ("rank", "answer", "eval", "train", "models", "doctor", "completion", "min-score", "passage-dir"):
        assert word in text
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n"], input=text, text=True, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tamis", "do"], ["doctor"]),
        (["tamis", "rank", "--min"], ["--min-score"]),
        (["tamis", "rank", "--mode", "la"], ["late-interaction", "layerwise"]),
        (["tamis", "completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(words, expected, capsys, tmp_path):
    if sys.platform == "darwin":
        pytest.skip("its bash is older than the script")
    asked = (
        f"{script('bash', capsys)}\n"
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'\n"
        '_shtab_tamis tamis "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash"], input=asked, text=True, capture_output=True, check=False, cwd=tmp_path)
    found = {word.strip() for word in done.stdout.splitlines()}
    assert set(expected) <= found, done.stderr
    if words[-1].startswith("--"):
        assert all(word.startswith(words[-1]) for word in found)


def test_shtab_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == 'tamis: error: A completion script needs shtab: pip install "tamis[completion]".\n'


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["completion", "csh"])
    assert stop.value.code == 2
    assert "bash" in capsys.readouterr().err
    assert tamis.__version__

"""`tamis answer --server`: the answer of a model that an inference server runs."""

from __future__ import annotations

import json
import sys

import pytest

import tamis
import tiny_lm
from completions_stub import CompletionsStub
from rankrag_reference import PASSAGES, QUESTION, Plain
from remote_stubs import KEY, serving
from tamis.cli import main
from tamis.cli.output import printable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("served"), "llama", "ForCausalLM", bos=True)


@pytest.fixture(scope="module")
def plain(folder):
    return Plain(folder)


@pytest.fixture
def asking(folder, tmp_path, monkeypatch):
    """The command's beginning, and a file of passages."""
    monkeypatch.delenv("TAMIS_API_KEY", raising=False)
    file = tmp_path / "passages.txt"
    file.write_text("\n".join(PASSAGES), encoding="utf-8")
    limits = ["--top-k", "3", "--max-new-tokens", "12"]
    return ["answer", "--question", QUESTION, str(file), "--model", str(folder), *limits]


@pytest.fixture(scope="module")
def here(folder):
    """What the same model answers in this process."""
    with tamis.load_rankrag(folder, dtype="float32") as rag:
        passages = [passage for passage in PASSAGES if passage.strip()]
        return rag.answer(QUESTION, passages, top_k=3, max_new_tokens=12)


def test_the_answer_is_that_of_this_process(asking, plain, here, capsys):
    with serving(CompletionsStub(plain)) as stub:
        assert main([*asking, "--server", f"{stub.base}/v1", "--json"]) == 0
        given = json.loads(capsys.readouterr().out)
        assert given["answer"] == here.text != ""
        assert [hit["index"] for hit in given["contexts"]] == [hit.index for hit in here.contexts]
        assert [hit["score"] for hit in given["contexts"]] == pytest.approx(
            [hit.score for hit in here.contexts], abs=1e-5
        )
        assert given["model"] == stub.models[0]
        assert given["usage"]["prompt_tokens"] == here.usage.prompt_tokens


def test_a_terminal_sees_it_as_the_server_writes_it(asking, plain, here, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    written = []
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: written.append(text) or write(text))
    with serving(CompletionsStub(plain)) as stub:
        assert main([*asking, "--server", stub.base]) == 0
    out, err = capsys.readouterr()
    assert len(written) > 4
    assert out.startswith(printable(here.text))
    assert "3 of " in out
    assert not err, "the note about the embedded model is not for this one"


def test_the_key_comes_from_the_environment_alone(asking, plain, monkeypatch, capsys):
    with serving(CompletionsStub(plain, key=KEY)) as stub:
        monkeypatch.setenv("TAMIS_API_KEY", KEY)
        assert main([*asking, "--server", stub.base]) == 0
        assert all(headers["authorization"] == f"Bearer {KEY}" for _, _, headers, _ in stub.requests)
        for key in (None, "wrong-5c1d"):
            monkeypatch.delenv("TAMIS_API_KEY") if key is None else monkeypatch.setenv("TAMIS_API_KEY", key)
            capsys.readouterr()
            assert main([*asking, "--server", stub.base]) == 2
            out, err = capsys.readouterr()
            assert not out
            assert "401" in err
            assert "5c1d" not in err
    with pytest.raises(SystemExit):
        main([*asking, "--server", "http://127.0.0.1:1", "--api-key", KEY])


def test_one_of_several_models(asking, plain, capsys):
    with serving(CompletionsStub(plain, models=2)) as stub:
        assert main([*asking, "--server", stub.base]) == 2
        assert "server_model" in capsys.readouterr().err
        assert main([*asking, "--server", stub.base, "--server-model", stub.models[1], "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["model"] == stub.models[1]
        assert {body["model"] for body in stub.posts} == {stub.models[1]}


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--server", "http://127.0.0.1:1"], "--server needs --model"),
        (["--model", "{folder}", "--server-model", "m"], "pass --server, too"),
        (["--model", "{folder}", "--server", "127.0.0.1"], "URL"),
        (["--model", "{folder}", "--server", "http://127.0.0.1:1", "--device", "cpu"], "device="),
        (["--model", "{folder}", "--server", "http://127.0.0.1:1", "--adapter", "a"], "adapter="),
    ],
)
def test_what_is_wrong_is_one_line(asking, folder, arguments, told, capsys):
    begin = asking[:4]
    assert main([*begin, *(argument.format(folder=folder) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("tamis: error: ")
    assert err.count("\n") == 1
    assert told in err


def test_no_server_answers(asking, capsys):
    with serving(CompletionsStub(None)) as stub:
        url = stub.base
    assert main([*asking, "--server", url]) == 2
    assert "127.0.0.1" in capsys.readouterr().err

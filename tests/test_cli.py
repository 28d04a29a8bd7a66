import argparse
import io
import json
import os
import subprocess
import sys

import pytest

import tamis
from rankrag_reference import save_speaker
from tamis.cli import _parser, main

LINES = "Paris is the capital of France.\n\n   \nBerlin is the capital of Germany.\r\nA zip archive holds files.\n"
QUERY = "what is the capital of France?"
RANK = ["rank", "--query", QUERY]
LEXICAL = [*RANK, "--mode", "lexical"]


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.txt"
    path.write_bytes(LINES.encode())
    return str(path)


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "tamis", *arguments], capture_output=True, check=False, **options)


def as_json(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_lines_are_passages_and_blank_ones_are_not(facts, capsys):
    answer = as_json(capsys, *LEXICAL, facts)
    assert [hit["id"] for hit in answer["hits"]] == [f"{facts}:1", f"{facts}:4", f"{facts}:5"]
    assert [hit["index"] for hit in answer["hits"]] == [0, 1, 2]
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert [hit["text"] for hit in answer["hits"]] == [line.strip() for line in LINES.splitlines() if line.strip()]


def test_the_json_is_the_ranking(facts, capsys):
    answer = as_json(capsys, *LEXICAL, facts, "--top-n", "1")
    with tamis.load(mode="lexical") as reranker:
        passages = [line.strip() for line in LINES.splitlines() if line.strip()]
        best = reranker.rank(QUERY, passages, top_n=1)[0]
    assert answer["query"] == QUERY
    assert answer["model"] == "bm25"
    assert answer["usage"] == {"tokens": 0, "cached": 0, "below_min_score": 0, "over_budget": 0}
    assert answer["hits"] == [
        {
            "rank": 1,
            "index": 0,
            "id": f"{facts}:1",
            "score": best.score,
            "logit": best.logit,
            "text": passages[0],
            "truncated": False,
            "window": None,
        }
    ]


def test_whole_files_are_passages(facts, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("Nothing of the kind.\nAnd more.\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    answer = as_json(capsys, *LEXICAL, "--by", "file", str(other), facts, str(tmp_path / "blank.txt"))
    assert [hit["id"] for hit in answer["hits"]] == [facts, str(other)]
    assert answer["hits"][1]["text"] == "Nothing of the kind.\nAnd more.\n"


def test_a_dash_is_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\n\ncapital\n")))
    answer = as_json(capsys, *LEXICAL, "-")
    assert [(hit["id"], hit["text"]) for hit in answer["hits"]] == [("-:3", "capital"), ("-:1", "one")]


def test_the_table_fits_80_columns(tmp_path, capsys):
    path = tmp_path / "a-folder-with-a-long-name.txt"
    path.write_text("the capital " + "and so on " * 50 + "\ncapital [bold]x[/bold] \x1b[31mred\n", encoding="utf-8")
    assert main([*LEXICAL, str(path)]) == 0
    out, err = capsys.readouterr()
    head, *rows, summary = out.rstrip("\n").split("\n")
    assert head.split() == ["#", "score", "where", "text"]
    assert len(rows) == 2
    assert max(map(len, [head, *rows])) <= 80
    assert all("…older-with-a-long-name" not in row and "long-name.txt:" in row for row in rows)
    assert "\x1b" not in out
    assert "[bold]x[/bold] ?[31mred" in out
    assert summary == "2 of 2 passages, bm25"
    assert not err


def test_limits_are_told(facts, capsys):
    first, second, _ = (hit["score"] for hit in as_json(capsys, *LEXICAL, facts)["hits"])
    assert main([*LEXICAL, facts, "--min-score", str((first + second) / 2)]) == 0
    assert capsys.readouterr().out.endswith("1 of 3 passages, 2 left out by --min-score, bm25\n")
    assert main([*LEXICAL, facts, "--min-score", "0.99"]) == 0
    assert capsys.readouterr().out == "0 of 3 passages, 3 left out by --min-score, bm25\n"


def test_bytes_that_are_not_utf8_are_replaced_with_a_warning(tmp_path, capsys):
    path = tmp_path / "latin.txt"
    path.write_bytes("café\n".encode("latin-1"))
    assert main([*LEXICAL, str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["hits"][0]["text"] == "caf\ufffd"
    assert err.startswith(f"tamis: warning: {path} is not UTF-8 from byte 3 on")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{tmp}/none.txt"], "none.txt cannot be read: No such file or directory."),
        (["{tmp}"], "is a directory; name the files in it."),
        (["{tmp}/blank.txt"], "There is no passage to rank: nothing but blank lines in"),
        (["{tmp}/facts.txt", "--top-n", "0"], "top_n is 0; pass an int of at least 1"),
        (["{tmp}/facts.txt", "--min-score", "2"], "min_score is 2.0"),
        (["{tmp}/facts.txt", "--dim", "8"], "dim= means nothing in lexical mode"),
        (["{tmp}/facts.txt", "--model", "some/model"], "Lexical mode has no checkpoint"),
        (["{tmp}/facts.txt", "--family", "no-such"], "family='no-such' is unknown"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(facts, tmp_path, capsys, arguments, message):
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    mode = [] if "--family" in arguments else ["--mode", "lexical"]
    assert main([*RANK, *mode, *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("tamis: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["rank"], ["rank", "--query", "x"], [*LEXICAL, "f", "--dim", "a,b"]])
def test_wrong_usage_is_argparses(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: tamis" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"tamis {tamis.__version__}\n"


def test_models_names_every_family(capsys):
    answer = as_json(capsys, "models")
    assert [family["name"] for family in answer["families"]] == tamis.list_families()
    assert {family["mode"] for family in answer["families"]} <= set(answer["modes"])
    assert answer["shipped"]["model"] == "tamis-mini"
    assert answer["embedded"]["model"] == "all-MiniLM-L6-v2"
    assert answer["embedded"]["installed"] is True
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*tamis.list_families(), "all-MiniLM-L6-v2, installed in"])
    assert max(map(len, out.splitlines())) <= 80


def test_models_tells_all_of_one_family(capsys):
    assert main(["models", "zerank"]) == 0
    out = capsys.readouterr().out
    for part in ("causal-lm", "query as the system's turn", "sigmoid of a fifth", "zeroentropy/zerank-2"):
        assert part in out
    assert max(map(len, out.splitlines())) <= 80
    assert "colbert" not in out
    assert [family["name"] for family in as_json(capsys, "models", "zerank", "colbert")["families"]] == [
        "zerank",
        "colbert",
    ]
    assert main(["models", "zerakn"]) == 2
    assert "Did you mean 'zerank'?" in capsys.readouterr().err


def test_the_embedded_model_and_what_it_cut(tmp_path, capsys):
    path = tmp_path / "facts.txt"
    path.write_text(
        "Zip files are archives. " * 20 + "\nFrance has Paris for its seat of government.\n", encoding="utf-8"
    )
    options = ["--mode", "bi-encoder", "--max-length", "32", "--dim", "64,384"]
    answer = as_json(capsys, *RANK, str(path), *options)
    assert [(hit["index"], hit["truncated"]) for hit in answer["hits"]] == [(1, False), (0, True)]
    assert answer["model"] == "all-MiniLM-L6-v2"
    assert answer["usage"]["tokens"] > 32
    assert main([*RANK, str(path), *options]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[3] for line in out.splitlines()[1:3]] == ["France", "cut"]
    assert err == (
        "tamis: the model read only the beginning of the passage marked cut; "
        "--long-documents max_window reads all of it.\n"
    )


def test_as_a_process_in_a_pipe(facts):
    done = run(*LEXICAL, facts, encoding="utf-8")
    assert done.returncode == 0
    assert not done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[1].split()[0] == "1"


def test_text_that_the_output_cannot_hold(tmp_path):
    path = tmp_path / "facts.txt"
    path.write_text("la capitale: 東京\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    table = run(*LEXICAL, str(path), env=environment)
    assert table.returncode == 0
    assert rb"\u6771\u4eac" in table.stdout
    answer = run(*LEXICAL, str(path), "--json", env=environment)
    assert json.loads(answer.stdout.decode("ascii"))["hits"][0]["text"] == "la capitale: 東京"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_closed_pipe_is_no_error(tmp_path, form):
    path = tmp_path / "many.txt"
    path.write_text("\n".join(map(str, range(5000))), encoding="utf-8")
    command = [sys.executable, "-m", "tamis", *LEXICAL, str(path), *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_loads_nothing_heavy():
    code = (
        "import contextlib, io, sys, tamis.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    tamis.cli.main(['--help'])\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'bm25s', 'rich', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"


# -- answer ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """The command's beginning, for a model that says what it is made to say."""
    folder = save_speaker(tmp_path_factory.mktemp("speaker"), [" Paris", " is", " it", b".", " \x1b[31m"])
    return ["answer", "--question", QUERY, "--model", str(folder), "--dtype", "float32"]


def test_an_answer_and_the_passages_it_was_read_from(facts, answering, capsys):
    assert main([*answering, facts, "--top-k", "2"]) == 0
    out, err = capsys.readouterr()
    answer, blank, head, *rows, summary = out.rstrip("\n").split("\n")
    assert (answer, blank) == ("Paris is it. ?[31m", "")
    assert head.split() == ["#", "score", "where", "text"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert "facts.txt:1" in rows[0]
    assert summary.startswith("2 of 3 passages read, ")
    assert max(map(len, rows)) <= 80
    assert not err


def test_the_answer_as_json(facts, answering, capsys):
    given = as_json(capsys, *answering, facts, "--top-k", "1", "--max-new-tokens", "2", "--task", "full")
    with tamis.load_rankrag(answering[4], dtype="float32") as rag:
        passages = [line.strip() for line in LINES.splitlines() if line.strip()]
        answer = rag.answer(QUERY, passages, top_k=1, task="full", max_new_tokens=2)
    assert (given["question"], given["model"], given["passages"]) == (QUERY, answering[4], 3)
    assert (given["answer"], given["found"]) == (answer.text, True) == ("Paris is", True)
    [hit], [context] = answer.contexts, given["contexts"]
    assert context["id"] == f"{facts}:1"
    assert context["score"] == pytest.approx(hit.score, abs=1e-6)
    assert (context["rank"], context["index"], context["text"]) == (1, 0, passages[0])
    assert given["usage"] == {**given["usage"], "completion_tokens": 2, "prompt_tokens": answer.usage.prompt_tokens}
    assert set(given["seconds"]) == {"ranking", "first_token", "total"}


def test_no_answer_is_told(facts, answering, capsys):
    assert main([*answering, facts, "--min-score", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == f"0 of 3 passages read, {answering[4]}\n"
    assert err == (
        "tamis: no passage is good enough for --min-score, so that there is no answer; --answer-anyway asks for one.\n"
    )
    assert as_json(capsys, *answering, facts, "--min-score", "1")["found"] is False
    assert as_json(capsys, *answering, facts, "--min-score", "1", "--answer-anyway")["answer"].startswith("Paris is")


def test_what_the_model_says_of_its_answer_is_told(facts, tmp_path, capsys):
    for said, message in (
        ("It is not mentioned in the context.", "the model says that the answer is not in the passages."),
        ("\t", "the model wrote nothing."),
    ):
        folder = save_speaker(tmp_path / message[:9], [said])
        capsys.readouterr()
        assert main(["answer", "--question", QUERY, "--model", str(folder), facts]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(said.strip())
        assert err == f"tamis: {message}\n"


def test_an_answer_from_whole_files_that_are_too_long(tmp_path, answering, capsys):
    (tmp_path / "a.txt").write_text("zip archive\n" * 300, encoding="utf-8")
    (tmp_path / "b.txt").write_text("Paris.\n", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    options = ["--by", "file", "--max-length", "600", "--max-new-tokens", "5"]
    assert main([*answering, *files, *options]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 5
    assert err == "tamis: the model read only the beginning of the passage marked cut.\n"


def test_a_terminal_sees_the_answer_as_it_comes(facts, answering, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    written = []
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: written.append(text) or write(text))
    assert main([*answering, facts]) == 0
    assert written[:5] == ["Paris", " is", " it", ".", " ?[31m"]
    assert capsys.readouterr().out.startswith("Paris is it. ?[31m\n\n")


def test_the_embedded_model_is_told_to_be_small(embedded_rag, facts, capsys):
    assert main(["answer", "--question", QUERY, facts, "--top-k", "1", "--max-new-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("1 of 3 passages read, SmolLM2-135M-Instruct\n")
    assert err.startswith("tamis: the embedded model is small")
    assert err.endswith("Name a larger one with --model.\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{tmp}/none.txt"], "none.txt cannot be read: No such file or directory."),
        (["{tmp}/blank.txt"], "There is no passage to read: nothing but blank lines in"),
        (["{tmp}/facts.txt", "--top-k", "0"], "--top-k is 0; pass at least 1."),
        (["{tmp}/facts.txt", "--max-new-tokens", "-1"], "--max-new-tokens is -1; pass at least 1."),
        (["{tmp}/facts.txt", "--min-score", "2"], "min_score is 2.0"),
        (["{tmp}/facts.txt", "--max-new-tokens", "8000"], "max_new_tokens=8000; pass an int from 1 to"),
        (["{tmp}/facts.txt", "--model", "{tmp}/none"], "is not a folder, and not a hub id"),
        (["{tmp}/facts.txt", "--adapter", "{tmp}/none"], "is not a folder, and not a hub id"),
        (["{tmp}/facts.txt", "--question", " "], "The query is empty"),
    ],
)
def test_what_cannot_be_answered(facts, answering, tmp_path, capsys, arguments, message):
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    assert main([*answering, *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("tamis: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["answer"], ["answer", "f"], ["answer", "--question", "q", "f", "--task", "x"]])
def test_wrong_usage_of_answer_is_argparses(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: tamis answer" in capsys.readouterr().err


def test_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    whole = _parser()
    commands = next(action for action in whole._actions if isinstance(action, argparse._SubParsersAction)).choices
    assert {"rank", "answer", "eval", "train"} <= set(commands)
    for name, parser in {"": whole, **commands}.items():
        assert max(map(len, parser.format_help().splitlines())) <= 80, name

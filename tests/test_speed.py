"""`measure_speed` and `tamis bench`."""

import json
import threading
import time

import pytest

import tamis
from tamis.cli import main
from tamis.errors import InvalidInput
from tamis.evaluation import measure_speed
from tamis.evaluation.prose import LONGEST, SHORTEST, prose, sample_passages


class Watched:
    """A model that notes what it is asked, into a list that several share."""

    def __init__(self, name, heard, seconds=0.0):
        self.name, self.heard, self.seconds = name, heard, seconds

    def __call__(self, query, passages):
        self.heard.append((self.name, query, tuple(passages)))
        time.sleep(self.seconds)


def test_rounds_are_interleaved_and_rotated_over_the_same_requests():
    heard = []
    models = {name: Watched(name, heard) for name in "abc"}
    report = measure_speed(models, passages=[4], rounds=3)
    rounds = [heard[i : i + 3] for i in range(0, len(heard), 3)]
    assert ["".join(name for name, *_ in one) for one in rounds] == ["abc", "bca", "cab", "abc"]  # the first warms up
    assert all(len({one[1:] for one in each}) == 1 for each in rounds)  # and all are asked the same
    assert len({one[0][1:] for one in rounds}) == 4  # each round asks something else
    assert [(one.model, one.passages, len(one.seconds), len(one.latencies)) for one in report.timings] == [
        (name, 4, 3, 3) for name in "abc"
    ]


def test_ratios_are_the_medians_of_the_rounds():
    models = {"slow": Watched("slow", [], 0.02), "quick": Watched("quick", [])}
    report = measure_speed(models, passages=[2], rounds=3)
    slow, quick = report.timings
    quotients = sorted(a / b for a, b in zip(slow.seconds, quick.seconds, strict=True))
    assert slow.ratio == 1.0
    assert quick.ratio == quotients[1] > 1.0
    assert slow.latencies == slow.seconds  # one request is the whole round
    assert slow.passages_per_second == pytest.approx(2 / sorted(slow.seconds)[1])


def test_requests_at_once_are_under_way_together():
    together = threading.Barrier(3, timeout=20)
    asked = []

    def meets(query, passages):
        asked.append(query)
        if len(asked) > 1:  # the first warms up, alone
            together.wait()

    report = measure_speed({"meets": meets}, passages=[1], requests=[3], rounds=2)
    (timing,) = report.timings
    assert (timing.requests, len(timing.seconds), len(timing.latencies)) == (3, 2, 6)
    assert len(set(asked)) == len(asked) == 7
    assert all(max(timing.latencies[i : i + 3]) <= timing.seconds[i // 3] for i in (0, 3))


def test_passages_are_drawn_from_the_callers_texts():
    heard, texts = [], [f"text {i}" for i in range(6)]
    measure_speed({"a": Watched("a", heard)}, texts, queries=["one", "two"], passages=[5], rounds=4, seed=3)
    again = []
    measure_speed({"a": Watched("a", again)}, texts, queries=["one", "two"], passages=[5], rounds=4, seed=3)
    assert heard == again
    assert {query for _, query, _ in heard} == {"one", "two"}
    assert all(len(set(passages)) == 5 and set(passages) <= set(texts) for *_, passages in heard)
    assert len({passages for *_, passages in heard}) > 1


def test_of_real_models_tokens_are_counted_and_nothing_is_kept():
    with tamis.load(mode="bi-encoder", cache_bytes=0) as whole, tamis.load(mode="lexical") as words:
        report = measure_speed({"MiniLM": whole, "bm25": words}, passages=[3], rounds=2)
        dense, lexical = report.timings
        assert dense.tokens > 3 * SHORTEST * 2
        assert dense.tokens_per_second == pytest.approx(dense.tokens / sum(dense.seconds))
        assert (dense.cached, lexical.tokens, lexical.tokens_per_second) == (0, 0, 0.0)
        assert report.about["MiniLM"]["device"] == whole.stats()["device"]
    with tamis.load(mode="bi-encoder") as keeping:
        texts = sample_passages(3)
        report = measure_speed({"MiniLM": keeping}, texts, passages=[3], rounds=2)
        assert report.timings[0].cached == 6  # warmed up with the same three
        assert report.to_json()["timings"][0]["cached"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "no model to time"),
        ({"passages": []}, "no numbers of passages"),
        ({"queries": ["ok", " "]}, "query"),
        ({"passages": [3, 0]}, "passages is 0"),
        ({"requests": [True]}, "requests is True"),
        ({"rounds": 0}, "rounds is 0"),
        ({"texts": ["a", "b"], "passages": [3]}, "There are 2 texts, too few for a request of 3"),
        ({"queries": []}, "no query"),
        ({"seed": -1}, "The seed is -1"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        measure_speed(**{"models": {"a": Watched("a", [])}, **arguments})


def test_sample_passages_are_prose_of_mixed_length_and_repeatable():
    texts = sample_passages(200, (1, 2))
    lengths = sorted(len(text.split()) for text in texts)
    assert texts == sample_passages(200, (1, 2)) != sample_passages(200, (1, 3))
    assert lengths[0] >= SHORTEST
    assert lengths[-1] <= LONGEST
    assert 50 < lengths[100] < 85  # the median is 66


def test_a_python_without_sources_asks_for_text(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    prose.cache_clear()
    try:
        with pytest.raises(InvalidInput, match="pass your own"):
            measure_speed({"a": Watched("a", [])})
        measure_speed({"a": Watched("a", [])}, ["a", "b"], queries=["q"], passages=[2], rounds=1)
    finally:
        prose.cache_clear()


# -- the command ------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert main(["bench", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_command_compares_models_sizes_and_sentence_transformers(tmp_path, capsys):
    models = ["mini=embedded::mode=cross-encoder", "bm25"]
    files = ["--json", tmp_path / "speed.json", "--plots", tmp_path / "plots"]
    sizes = ["--passages", "2,3", "--requests", "1,2", "--rounds", "2"]
    assert main(["bench", *models, *sizes, "--sentence-transformers", *map(str, files)]) == 0
    captured = capsys.readouterr()
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "mini: cross-encoder, cpu" in captured.out
    content = json.loads((tmp_path / "speed.json").read_text())
    names = ["mini", "sentence-transformers mini", "bm25"]
    assert [(row["passages"], row["requests"], row["model"]) for row in content["timings"]] == [
        (count, at_once, name) for count in (2, 3) for at_once in (1, 2) for name in names
    ]
    assert all(len(row["seconds"]) == 2 and row["best"] <= row["median"] for row in content["timings"])
    assert {row["tokens"] > 0 for row in content["timings"] if row["model"] == "mini"} == {True}
    assert (tmp_path / "plots" / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_draws_passages_from_files_and_keeps_no_vectors(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("how to read a zip file\n\nlists are sorted in place\n", encoding="utf-8")
    command = ["bench", "embedded::mode=bi-encoder", "--files", str(tmp_path / "lines.txt"), "--query", "zip files?"]
    assert main([*command, "--passages", "2", "--rounds", "1", "--json", "-"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["timings"]
    assert (row["passages"], row["cached"]) == (2, 0)
    kept = "embedded::mode=bi-encoder,cache_bytes=1000000"
    assert main(["bench", kept, *command[2:], "--passages", "2", "--rounds", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["timings"][0]["cached"] == 2
    assert main(["bench", kept, *command[2:], "--passages", "2", "--rounds", "1"]) == 0
    assert "known already, at most: embedded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bm25", "bm25"], "Two models are called 'bm25'"),
        (["/nowhere/model", "--passages", "0"], "passages is 0"),  # before it is looked for
        (["/nowhere/model", "--seed", "-1"], "seed"),
        (["bm25", "--files", "/nowhere.txt"], "/nowhere.txt cannot be read"),
        (["bm25", "--json", "/nowhere/speed.json"], "there is no folder /nowhere"),
        (["bm25", "--sentence-transformers"], "None of the models is a cross-encoder"),
        (["/nowhere/model"], "nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, capsys):
    assert message in refused(capsys, *arguments)

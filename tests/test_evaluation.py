"""`evaluate` and `evaluate_dimensions`: first stage, models, report."""

import io
import json
import struct
import sys
from dataclasses import FrozenInstanceError, replace

import ir_measures
import numpy as np
import pytest
from rich.console import Console

import tamis
from beir import PASSAGES, QUERIES, save_collection
from fakes import FakeScorer
from tamis.evaluation import bm25_run, evaluate, evaluate_dimensions, read_collection

BEST = {"how do I read": "zip", "which module reads": "csv", "where is a database": "sqlite"}


def knowing(query, passage):
    """The logit of someone who knows the answer."""
    return next((2.0 for start, key in BEST.items() if query.startswith(start) and passage == PASSAGES[key]), -2.0)


@pytest.fixture
def collection(tmp_path):
    return read_collection(save_collection(tmp_path / "modules"))


@pytest.fixture
def expert():
    return tamis.Reranker(FakeScorer(knowing))


@pytest.fixture
def fool():
    return tamis.Reranker(FakeScorer(lambda query, passage: -knowing(query, passage)))


def printed(report):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table())
    return console.file.getvalue()


def size_of(png):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 5_000
    return struct.unpack(">II", data[16:24])


def test_a_report_has_the_measures_of_its_rankings(collection, expert, fool):
    report = evaluate({"expert": expert, "fool": fool}, [collection], seed=3)
    (result,) = report.collections
    qrels = {query: dict(collection.qrels[query]) for query in ("q1", "q2", "q3")}
    for name in ("expert", "fool"):
        model = result.models[name]
        run = {
            query: {hit.passage.id: float(-i) for i, hit in enumerate(ranking)}
            for query, ranking in model.rankings.items()
            if query in qrels
        }
        measures = [ir_measures.nDCG @ 10, ir_measures.RR @ 10, ir_measures.AP, ir_measures.R @ 5]
        theirs = ir_measures.calc_aggregate(measures, qrels, run)
        ours = [report.means(name)[title] for title in ("nDCG@10", "MRR@10", "MAP", "Recall@5")]
        assert ours == pytest.approx([theirs[measure] for measure in measures])
        for title, interval in model.differences.items():
            gains = model.by_query[title] - result.by_query[title]
            assert interval.mean == pytest.approx(gains.mean())
            assert interval.low <= interval.mean + 1e-12
            assert interval.high >= interval.mean - 1e-12
    assert report.means("expert")["MRR@10"] == 1.0
    assert report.means("fool")["MRR@10"] < report.means()["MRR@10"]
    assert report.differences["expert"]["nDCG@10"] == result.models["expert"].differences["nDCG@10"]


def test_equal_scores_keep_the_first_stages_order(collection):
    same = tamis.Reranker(FakeScorer(lambda query, passage: 0.5))
    report = evaluate({"same": same}, [collection])
    assert report.means("same") == report.means()
    assert all(interval == (0, 0, 0) for interval in report.differences["same"].values())


def test_what_the_first_stage_did_not_find_counts_as_not_found(collection, expert):
    runs = {"modules": {"q1": {"tar": 2.0, "zip": 1.0}, "q2": {"heap": 1.0}}}
    report = evaluate({"expert": expert}, [collection], first_stage=runs)
    (result,) = report.collections
    assert result.by_query["MRR@10"].tolist() == [0.5, 0.0, 0.0]
    assert result.models["expert"].by_query["MRR@10"].tolist() == [1.0, 0.0, 0.0]
    assert result.found == pytest.approx(1 / 3)
    assert len(result.models["expert"].rankings["q3"]) == 0
    assert result.models["expert"].scored == 3
    cut = evaluate({"expert": expert}, [collection], first_stage=runs, top=1)
    assert cut.means("expert")["MRR@10"] == 0.0


def test_unanswerable_queries_are_left_out_and_counted(collection, expert):
    report = evaluate({"expert": expert}, [collection])
    (result,) = report.collections
    assert result.measured == ("q1", "q2", "q3")
    assert result.unanswerable == 1
    assert "1 queries more have no relevant passage" in printed(report)
    assert len(result.models["expert"].rankings["q4"]) > 0  # its scores count for the calibration
    assert result.models["expert"].calibration.pairs == result.models["expert"].scored


def test_a_collection_of_unanswerable_queries_has_no_measures(tmp_path, expert):
    nothing = {query: (text, dict.fromkeys(judged, 0), []) for query, (text, judged, _) in QUERIES.items()}
    silent = read_collection(save_collection(tmp_path / "silent", queries=nothing))
    modules = read_collection(save_collection(tmp_path / "modules"))
    alone = evaluate({"expert": expert}, [silent])
    assert alone.means("expert") == {}
    assert alone.differences == {"expert": {}}
    assert json.loads(json.dumps(alone.to_json()))["mean"]["models"]["expert"]["measures"] == {}
    assert "0 queries" in printed(alone)
    both = evaluate({"expert": expert}, [silent, modules])
    assert both.means("expert") == evaluate({"expert": expert}, [modules]).means("expert")
    assert "mean of 1 collections" in printed(both)


def test_the_mean_counts_every_collection_alike(tmp_path, expert):
    one = read_collection(save_collection(tmp_path / "one"))
    few = {"q1": QUERIES["q1"]}
    two = read_collection(save_collection(tmp_path / "two", queries=few))
    report = evaluate({"expert": expert}, [one, two])
    means = [each.models["expert"].means["nDCG@10"] for each in report.collections]
    assert report.means("expert")["nDCG@10"] == pytest.approx(np.mean(means))
    gain = np.mean([each.models["expert"].differences["nDCG@10"].mean for each in report.collections])
    assert report.differences["expert"]["nDCG@10"].mean == pytest.approx(gain)
    with pytest.raises(tamis.InvalidInput, match="Two collections are called 'one'"):
        evaluate({}, [one, one])
    with pytest.raises(tamis.InvalidInput, match="There is no collection"):
        evaluate({}, [])


def test_seeds_repeat(collection, expert):
    first, again, other = (
        evaluate({"expert": expert}, [collection], seed=seed, limit=2).to_json()["mean"] for seed in (1, 1, 2)
    )
    drop = ("seconds_per_query", "passages_per_second")
    for each in (first, again, other):
        for name in drop:
            del each["models"]["expert"][name]
    assert first == again


def test_wrong_arguments_are_refused_before_anything_runs(collection, expert):
    for wrong in (
        {"top": 0},
        {"resamples": 0},
        {"precision": 0.0},
        {"limit": 0},
        {"first_stage": "bm42"},
        {"first_stage": {"another": {}}},
        {"first_stage": expert},
        {"against": "nobody"},
    ):
        with pytest.raises(tamis.InvalidInput):
            evaluate({"expert": expert}, [collection], **wrong)


def test_a_bi_encoder_as_first_stage(collection, expert):
    with tamis.load(mode="bi-encoder", dtype="float32") as minilm:
        report = evaluate({"expert": expert, "itself": minilm}, [collection], first_stage=minilm, top=3)
        assert report.first_stage == minilm.model
    (result,) = report.collections
    assert all(len(found) == 3 for found in result.first.values())
    assert report.means("itself") == report.means()


def test_the_report_is_frozen_and_plain_values_come_out(collection, expert):
    report = evaluate({"expert": expert}, [collection])
    with pytest.raises(FrozenInstanceError):
        report.seed = 1
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["tamis"] == tamis.__version__
    assert (content["first_stage"], content["top"], content["seed"]) == ("bm25", 100, 0)
    (part,) = content["collections"]
    assert {key: part[key] for key in ("name", "split", "passages", "queries", "measured", "unanswerable")} == {
        "name": "modules", "split": "dev", "passages": 6, "queries": 4, "measured": 3, "unanswerable": 1,
    }  # fmt: skip
    model = part["models"]["expert"]
    assert model["measures"] == pytest.approx(report.means("expert"))
    assert set(model["differences"]["MAP"]) == {"mean", "low", "high"}
    assert model["scored"] / model["seconds"] == pytest.approx(model["passages_per_second"])
    assert len(model["calibration"]["bins"]) == 10
    assert content["mean"]["first_stage"]["measures"] == report.means()


def test_the_table_fits_80_columns(tmp_path, expert, fool):
    parts = [
        read_collection(save_collection(tmp_path / name)) for name in ("short", "a-rather-long-name-of-a-collection")
    ]
    names = {"an-organisation/with-a-long-name-of-a-model-v2": expert, "[bold]fool": fool}
    text = printed(evaluate(names, parts))
    assert "[bold]fool" in text  # no markup
    assert max(map(len, text.splitlines())) <= 80
    assert "...-name-of-a-model-v2"[-17:] in text
    assert "mean of 2 collections" in text
    for head in ("nDCG@10", "MRR@10", "MAP", "s/query", "95% interval", "min_score"):
        assert head in text
    assert "…" not in text  # nothing is cut off


def test_models_against_one_of_them(tmp_path, expert, fool):
    """One that keeps the first stage's order is that stage: against either, everything is the same."""
    still = tamis.Reranker(FakeScorer(lambda query, passage: 0.0))
    both = [read_collection(save_collection(tmp_path / name)) for name in ("one", "two")]
    report = evaluate({"expert": expert, "still": still, "fool": fool}, both, against="still", seed=5)
    found = report.comparison
    assert (found.other, list(found.mean), list(found.collections)) == ("still", ["expert", "fool"], ["one", "two"])
    for name in ("expert", "fool"):
        assert found.mean[name] == report.differences[name]
        for each in report.collections:
            assert found.collections[each.collection.name][name] == each.models[name].differences
    assert found.mean["fool"]["nDCG@10"].mean < 0
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "nDCG@10 against still" in text
    told = json.loads(json.dumps(report.to_json()))["against"]
    assert told["model"] == "still"
    assert told["mean"]["fool"]["MAP"] == found.mean["fool"]["MAP"]._asdict()


def test_a_comparison_where_there_is_nobody_else_or_nothing_measured(tmp_path, expert, fool):
    collection = read_collection(save_collection(tmp_path / "set"))
    alone = evaluate({"expert": expert}, [collection], against="expert")
    assert alone.comparison.mean == {}
    assert "against expert" not in printed(alone)
    assert evaluate({"expert": expert}, [collection]).to_json()["against"] is None
    silent = replace(collection, qrels={query: {} for query in collection.queries})
    nothing = evaluate({"expert": expert, "fool": fool}, [silent], against="fool")
    assert (nothing.comparison.collections, nothing.comparison.mean) == ({}, {"expert": {}})
    assert "set" in printed(nothing)


def test_the_first_stage_alone_can_be_measured(collection):
    report = evaluate({}, [collection])
    assert report.models == ()
    assert "bm25" in printed(report)
    assert report.means() == report.collections[0].means


def test_lines_for_error_analysis(collection, fool, tmp_path):
    report = evaluate({"fool": fool}, [collection])
    report.write_per_query(tmp_path / "lines.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == ["q1", "q2", "q3", "q4"]
    first = lines[0]
    run = bm25_run(collection)["q1"]
    assert first["query"] == QUERIES["q1"][0]
    (relevant,) = first["relevant"]
    assert relevant["id"] == "zip"
    assert relevant["before"] == {"rank": 1, "score": run["zip"]}
    assert relevant["after"]["rank"] == len(run)
    assert relevant["after"]["score"] == pytest.approx(1 / (1 + np.exp(2)))
    ahead = [passage for passage in run if passage != "zip"][:3]
    assert [each["id"] for each in first["ahead"]] == ahead
    assert first["ahead"][0]["text"] == PASSAGES[ahead[0]]
    assert first["measures"]["MRR@10"] == {"before": 1.0, "after": 1 / len(run)}
    assert lines[3]["measures"] == {}
    assert lines[3]["relevant"] == []
    json_row = next(each for each in lines[1]["relevant"] if each["id"] == "json")
    assert (json_row["before"] is None) == ("json" not in bm25_run(collection)["q2"])


def test_plots_are_pictures(collection, expert, fool, tmp_path):
    report = evaluate({"expert": expert, "org/a fool v2": fool}, [collection])
    made = report.save_plots(tmp_path / "plots" / "new")
    assert [path.name for path in made] == [
        "quality-time.png",
        "calibration-expert.png",
        "calibration-org-a-fool-v2.png",
    ]
    assert {size_of(path) for path in made} == {(980, 630)}
    (tmp_path / "file").write_text("")
    with pytest.raises(tamis.InvalidInput, match="cannot be written"):
        report.save_plots(tmp_path / "file" / "below")


def test_without_matplotlib_the_extra_is_named(collection, expert, tmp_path, monkeypatch):
    report = evaluate({"expert": expert}, [collection])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(tamis.MissingExtra, match=r'pip install "tamis\[eval\]"'):
        report.save_plots(tmp_path)


def test_quality_against_dimensions(collection, tmp_path):
    load = {"mode": "bi-encoder", "dtype": "float32"}
    with tamis.load(**load) as full, tamis.load(**load, dim=8) as eight, tamis.load(**load, dim=2) as two:
        width = full.stats()["dims"][-1]
        report = evaluate_dimensions({"minilm": {width: full, 2: two, 8: eight}}, [collection])
        plain = evaluate({"eight": eight}, [collection])
    assert [(point.dim, point.bytes) for point in report.points] == [(2, 8), (8, 32), (width, 4 * width)]
    assert report.points[1].quality == plain.means("eight")["nDCG@10"]
    assert report.points[2].kept == 1.0
    assert report.points[0].kept == pytest.approx(report.points[0].quality / report.points[2].quality)
    assert json.loads(json.dumps(report.to_json()))["dimensions"][0]["dim"] == 2
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "100.0%" in text
    (picture,) = report.save_plots(tmp_path)
    assert size_of(picture) == (980, 630)
    report.write_per_query(tmp_path / "lines.jsonl")
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 3 * 4


def test_what_was_known_from_before_is_said(collection):
    """A second load of a checkpoint finds the first one's vectors, which makes its time another."""
    load = {"mode": "bi-encoder", "dtype": "float32", "cache_bytes": 1 << 21}
    with tamis.load(**load) as first, tamis.load(**load, dim=8) as second:
        report = evaluate({"first": first, "second": second}, [collection])
    models = report.collections[0].models
    assert models["first"].cached < models["first"].scored
    assert models["second"].cached == models["second"].scored
    assert "second 100%" in printed(report)
    assert report.to_json()["collections"][0]["models"]["second"]["cached"] == models["second"].scored


def test_dimensions_are_of_bi_encoders(collection, expert):
    with pytest.raises(tamis.InvalidInput, match="no dimensions to choose from"):
        evaluate_dimensions({"expert": {8: expert}}, [collection])

"""`fusion`: a cross-encoder beside a bi-encoder, from the file that says so to the fit that writes it."""

import gc
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import tamis
import tiny
from beir import PASSAGES, QUERIES, save_collection
from fakes import FakeScorer
from tamis.checkpoint import MINI, SHIPPED
from tamis.cli import main
from tamis.evaluation import read_collection
from tamis.scorers.fusion import Blend
from tamis.scorers.overlap import Counts, Overlap, count
from tamis.training.fusion import count_pieces, fuse, write_fusion

QUERY = "how is a zip archive read"
TEXTS = list(PASSAGES.values())
BLEND = {"weight": 30.0, "scale": 0.5, "offset": -1.25}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny cross-encoder with a tiny bi-encoder inside it; nothing names the place where they are."""
    root = tiny.save_classifier(tmp_path / "pair", "bert")
    tiny.sentence_layout(tiny.save_encoder(root / "beside", "bert", seed=5), "mean")
    said(root, bi_encoder="beside", **BLEND)
    monkeypatch.chdir(tmp_path)
    return root


def said(root, **entries):
    (root / "fusion.json").write_text(json.dumps(entries))


def test_a_logit_is_the_blend_of_both_models_own(folder):
    with (
        tamis.load(folder, dtype="float32") as fused,
        tamis.load(folder, mode="cross-encoder", dtype="float32") as cross,
        tamis.load(folder / "beside", dtype="float32") as similar,
    ):
        assert (fused.mode, cross.mode, similar.mode) == ("fusion", "cross-encoder", "bi-encoder")
        ours, logits, cosines = (one.logits(QUERY, TEXTS) for one in (fused, cross, similar))
        expected = [0.5 * (a + 30.0 * b) - 1.25 for a, b in zip(logits, cosines, strict=True)]
        assert ours == pytest.approx(expected, abs=1e-6)
        assert np.std(logits) > 0.1 < 30.0 * np.std(cosines)  # both of them count
        assert fused.score(QUERY, TEXTS) == pytest.approx([1 / (1 + math.exp(-x)) for x in expected], abs=1e-6)
        ranking = fused.rank(QUERY, TEXTS)
        assert [hit.index for hit in ranking] == np.argsort(-np.array(expected), kind="stable").tolist()
        assert ranking.model == str(folder)


def test_both_engines_are_shared_with_those_who_load_one_alone(folder):
    with tamis.load(folder, dtype="float32") as fused:
        before = fused.stats()
        with tamis.load(folder, mode="cross-encoder", dtype="float32") as cross:
            cross.rank(QUERY, TEXTS)
        after = fused.stats()
    assert after["batches"] > before["batches"]
    assert after["bi_encoder_batches"] == before["bi_encoder_batches"]


def test_vectors_are_kept_and_pairs_are_not(folder):
    with tamis.load(folder, dtype="float32") as fused, tamis.load(folder, mode="cross-encoder", dtype="float32") as one:
        first, again, alone = (x.rank(QUERY, TEXTS).usage for x in (fused, fused, one))
    assert first.tokens > again.tokens > alone.tokens  # the query's vector is made anew
    assert again.cached == 0


@pytest.mark.asyncio
async def test_an_event_loop_gets_the_same(folder):
    with tamis.load(folder, dtype="float32") as fused:
        there = await fused.arank(QUERY, TEXTS)
        assert [(hit.index, hit.logit) for hit in there] == [(h.index, h.logit) for h in fused.rank(QUERY, TEXTS)]


def test_what_either_model_did_not_read_is_told(folder):
    long = "archive " * 400
    with tamis.load(folder, max_length=64) as fused:
        assert [hit.truncated for hit in sorted(fused.rank(QUERY, [TEXTS[0], long]), key=lambda hit: hit.index)] == [
            False,
            True,
        ]
    with tamis.load(folder, max_length=64, long_documents="max_window") as fused:
        (hit,) = fused.rank(QUERY, [long])
        assert not hit.truncated
        assert 0 <= hit.window[0] < hit.window[1] <= len(long)
    with tamis.load(folder, max_length=64, long_documents="error") as fused, pytest.raises(tamis.InputTooLong):
        fused.rank(QUERY, [long])


@pytest.mark.parametrize("options", [{"instruction": "read: "}, {"similarity": "dot"}, {"passage_model": "x/y"}])
def test_what_means_nothing_for_the_two_together_is_refused(folder, options):
    with pytest.raises(tamis.InvalidInput, match="means nothing in fusion mode"):
        tamis.load(folder, **options)


def test_lengths_and_layers_are_those_of_the_cross_encoder(folder):
    with tamis.load(max_length=512, dtype="float32") as whole, tamis.load(dtype="float32") as usual:
        texts = [*TEXTS, "archive " * 400]  # its limit is 512; the bi-encoder's, which stays, is 256
        assert whole.logits(QUERY, texts) == pytest.approx(usual.logits(QUERY, texts), abs=1e-6)
    with (
        tamis.load(folder, num_layers=1, dtype="float32") as fused,
        tamis.load(folder, mode="cross-encoder", num_layers=1, dtype="float32") as cross,
        tamis.load(folder / "beside", dtype="float32") as similar,
    ):
        logits, cosines = cross.logits(QUERY, TEXTS), similar.logits(QUERY, TEXTS)
        expected = [0.5 * (a + 30.0 * b) - 1.25 for a, b in zip(logits, cosines, strict=True)]
        assert fused.logits(QUERY, TEXTS) == pytest.approx(expected, abs=1e-6)


def test_dimensions_are_those_of_the_bi_encoder(folder):
    with tamis.load(folder, dim=8) as fused:
        assert fused.stats()["bi_encoder_dims"] == fused.stats()["dims"] == [8]
    with pytest.raises(tamis.InvalidInput, match="dimensions"):
        tamis.load(folder, dim=4096)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"weight": 1.0}, "names no bi-encoder"),
        ({"bi_encoder": 3, "weight": 1.0}, "names no bi-encoder"),
        ({"bi_encoder": "beside"}, "weight is None"),
        ({"bi_encoder": "beside", "weight": "2"}, "weight is '2'"),
        ({"bi_encoder": "beside", "weight": -1}, "weight is -1"),
        ({"bi_encoder": "beside", "weight": True}, "weight is True"),
        ({"bi_encoder": "beside", "weight": math.nan}, "weight is nan"),
        ({"bi_encoder": "beside", "weight": 1, "scale": 0}, "scale is 0"),
        ({"bi_encoder": "beside", "weight": 1, "offset": None}, "offset is None"),
        ({"bi_encoder": "beside", "weight": 1, "lexical": -1}, "lexical is -1"),
        ({"bi_encoder": "beside", "weight": 1, "lexical": 1}, "piece_counts.safetensors cannot be read"),
    ],
)
def test_a_file_that_does_not_say_what_is_needed(folder, entries, message):
    said(folder, **entries)
    with pytest.raises(tamis.CorruptCheckpoint, match=message):
        tamis.load(folder)


def test_a_bi_encoder_that_is_not_there_leaves_nothing_open(folder):
    said(folder, bi_encoder="gone", weight=1.0)
    with pytest.raises(tamis.ModelNotFound, match="gone"):
        tamis.load(folder)
    said(folder, bi_encoder="beside", **BLEND)
    (folder / "beside" / "model.safetensors").unlink()
    with pytest.raises(tamis.LoadError):
        tamis.load(folder)
    with tamis.load(folder, mode="cross-encoder") as alone:  # the file does not concern the one alone
        assert alone.rank(QUERY, TEXTS).model == str(folder)


def test_the_default_is_tamis_mini_beside_the_embedded_bi_encoder():
    with tamis.load(dtype="float32") as fused, tamis.load(mode="fusion", dtype="float32") as named:
        assert (fused.model, fused.mode) == (named.model, named.mode) == ("tamis-mini", "fusion")
        assert fused.logits(QUERY, TEXTS) == named.logits(QUERY, TEXTS)
        assert fused.rank(QUERY, TEXTS)[0].passage.text == PASSAGES["zip"]


def test_words_in_common_are_added(folder):
    """The same file without them gives as much, but for `scale * lexical * overlap`."""
    count(folder, TEXTS).write(folder)
    overlap = Overlap(folder, Counts.read(folder))
    with tamis.load(folder, dtype="float32") as plain:
        before = np.array(plain.logits(QUERY, TEXTS))
    said(folder, bi_encoder="beside", lexical=4.0, **BLEND)
    with tamis.load(folder, dtype="float32") as fused:
        after = fused.logits(QUERY, TEXTS)
        assert after == pytest.approx(before + 0.5 * 4.0 * overlap(QUERY, TEXTS), abs=1e-6)
        assert np.ptp(after - before) > 0.1
        assert [fused.logits(QUERY, [text])[0] for text in TEXTS] == pytest.approx(after, abs=1e-5)  # alone: the same


def test_an_overlap_against_hand_arithmetic(folder):
    texts = ["zip zip archive", "tar archive", "sort"]
    overlap = Overlap(folder, count(folder, texts))
    tokenizer = overlap._tokenizer
    asked = "zip archive"
    pieces = [tokenizer.encode(text, add_special_tokens=False).ids for text in (asked, *texts)]
    mean = sum(map(len, pieces[1:])) / 3
    rarity = {p: math.log(1 + (3 - c + 0.5) / (c + 0.5)) for p in pieces[0] for c in [sum(p in t for t in pieces[1:])]}

    def value(text):
        parts = [rarity[p] * text.count(p) / (text.count(p) + 0.5 * (0.6 + 0.4 * len(text) / mean)) for p in rarity]
        return sum(parts) / sum(rarity.values())

    assert overlap(asked, texts) == pytest.approx([value(text) for text in pieces[1:]])
    assert overlap(asked, ["zip", "", "\ud800"])[1:].tolist() == [0.0, 0.0]


def test_a_query_without_a_known_word_has_nothing_in_common():
    overlap = Overlap(SHIPPED / MINI, Counts.read(SHIPPED / MINI))
    assert overlap("", ["a zip archive"]).tolist() == [0.0]
    assert overlap("我们", ["我们", "a zip archive"]).tolist() == [0.0, 0.0]  # unknown words are not the same one
    named, other = overlap("who wrote zipfile", ["zipfile was written by James", "who wrote it?"])
    assert named > other > 0  # rare words count more


def test_unknown_words_of_a_sentencepiece_vocabulary_are_not_the_same_one(tmp_path):
    tiny.unigram().save_pretrained(tmp_path)
    overlap = Overlap(tmp_path, count(tmp_path, TEXTS))
    assert overlap("\u2602", ["\u9f8d", "zip"]).tolist() == [0.0, 0.0]
    assert overlap("zip archive", ["zip", "\u9f8d"])[0] > 0


def test_words_are_looked_for_where_the_models_may_read(folder):
    """In the beginning of a text of megabytes; in all of it where all of it is read."""
    count(folder, TEXTS).write(folder)
    said(folder, bi_encoder="beside", lexical=4.0, **BLEND)
    filler = "sort " * 4000
    texts = [filler, filler + "zip archive " * 200]
    counts = Counts.read(folder)
    first, second = Overlap(folder, counts, None)(QUERY, texts)
    assert second > 2 * first + 0.1
    with (
        tamis.load(folder, dtype="float32") as head,
        tamis.load(folder, dtype="float32", long_documents="max_window") as whole,
        tamis.load(folder, dtype="float32", long_documents="max_window", mode="cross-encoder") as cross,
        tamis.load(folder / "beside", dtype="float32", long_documents="max_window") as similar,
    ):
        assert np.ptp(head.logits(QUERY, texts)) < 1e-5
        models = np.array(cross.logits(QUERY, texts)) + 30.0 * np.array(similar.logits(QUERY, texts))
        expected = 0.5 * (models + 4.0 * np.array([first, second])) - 1.25
        assert whole.logits(QUERY, texts) == pytest.approx(expected, abs=1e-5)


def test_a_deadline_holds_while_words_are_counted(folder, monkeypatch):
    count(folder, TEXTS).write(folder)
    said(folder, bi_encoder="beside", lexical=4.0, **BLEND)
    with tamis.load(folder, dtype="float32") as fused:
        given = Overlap.__call__

        def slowly(self, query, passages):
            time.sleep(0.4)
            return given(self, query, passages)

        fused.logits(QUERY, TEXTS)
        monkeypatch.setattr(Overlap, "__call__", slowly)
        with pytest.raises(tamis.DeadlineExceeded):
            fused.logits(QUERY, TEXTS * 40, timeout=0.5)


def test_counts_of_another_tokenizer_are_refused(folder):
    Counts(np.ones(7, np.int64), 3, 2.0).write(folder)
    said(folder, bi_encoder="beside", lexical=4.0, **BLEND)
    with pytest.raises(tamis.CorruptCheckpoint, match="counts 7 pieces"):
        tamis.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(tamis.LoadError):
        tamis.load(folder)


def test_words_in_common_take_part_in_the_fit(tmp_path):
    """Neither model knows anything: what ranks, and what is calibrated, is the overlap alone."""
    collection = read_collection(save_collection(tmp_path / "modules"))
    root = tiny.save_classifier(tmp_path / "pair", "bert")
    overlap = Overlap(root, count_pieces(root, [collection]))
    with tamis.Reranker(knows(lambda q, p: False)) as nothing:
        fitted = fuse(nothing, nothing, [collection], weights=[1.0], lexical=6.0, overlap=overlap)
        with pytest.raises(tamis.InvalidInput, match="lexical is 6"):
            fuse(nothing, nothing, [collection], lexical=6.0)
    assert fitted.blend.lexical == 6.0
    assert fitted.blend.scale > 0
    assert fitted.quality[1.0] > 0.9


def knows(answer):
    return FakeScorer(lambda query, passage: 1.0 if answer(query, passage) else 0.0)


def test_the_weight_is_the_one_that_ranks_best(tmp_path):
    """The first knows one answer and errs on the rest, the second knows the rest: only together are they right."""
    collection = read_collection(save_collection(tmp_path / "modules"))
    right = {text: {PASSAGES[p] for p, grade in judged.items() if grade} for text, judged, _ in QUERIES.values()}
    first = FakeScorer(lambda q, p: 5.0 if q.startswith("how") and p in right[q] else float(p not in right.get(q, ())))
    second = knows(lambda q, p: p in right.get(q, ()))
    with tamis.Reranker(first) as cross, tamis.Reranker(second) as similar:
        fitted = fuse(cross, similar, [collection], weights=[0.0, 0.5, 2.0, 9.0])
        other_way = [fuse(similar, cross, [collection], weights=[0.0, 9.0], tolerance=t).blend.weight for t in (0, 0.9)]
    assert fitted.blend.weight == 9.0  # the highest of the best
    assert other_way == [0.0, 9.0]  # worse, but within the tolerance
    assert fitted.quality[0.0] == fitted.quality[0.5] < fitted.quality[2.0] == fitted.quality[9.0]
    assert fitted.blend.scale > 0


def test_scores_are_the_share_that_is_relevant(tmp_path):
    """One passage in three of those with a high logit is relevant, and none of the others."""
    passages = {f"p{i}": f"zip number {i}" for i in range(40)}
    queries = {f"q{j}": ("zip", {f"p{i}": 1 for i in range(20) if i % 3 == 0}, None) for j in range(3)}
    collection = read_collection(save_collection(tmp_path / "x", passages=passages, queries=queries))
    high = FakeScorer(lambda q, p: 2.0 if p in list(passages.values())[:20] else -2.0)
    with tamis.Reranker(high) as cross, tamis.Reranker(knows(lambda q, p: False)) as similar:
        blend = fuse(cross, similar, [collection], weights=[0.0]).blend
        even = fuse(cross, similar, [collection], weights=[0.0], prior=0.5).blend
    assert 1 / (1 + math.exp(-(blend.scale * 2.0 + blend.offset))) == pytest.approx(7 / 20, abs=0.02)
    assert 1 / (1 + math.exp(-(blend.scale * -2.0 + blend.offset))) < 0.03
    assert even.scale == blend.scale
    assert even.offset - blend.offset == pytest.approx(math.log(33 / 7), abs=1e-3)  # 7 of 40 are relevant here


def test_a_fit_that_has_nothing_to_fit_to(tmp_path):
    nobody = {"q1": ("zip archive", {"zip": 0}, None)}
    collection = read_collection(save_collection(tmp_path / "none", queries=nobody))
    with tamis.Reranker(FakeScorer()) as one:
        with pytest.raises(tamis.InvalidInput, match="no query with a relevant passage"):
            fuse(one, one, [collection])
        with pytest.raises(tamis.InvalidInput, match="weights is"):
            fuse(one, one, [collection], weights=[-1.0])
        with pytest.raises(tamis.InvalidInput, match="tolerance is 1"):
            fuse(one, one, [collection], tolerance=1)
        with pytest.raises(tamis.InvalidInput, match="prior is 0"):
            fuse(one, one, [collection], prior=0)
        all_of_it = {"q1": ("zip", {"zip": 1}, None)}
        whole = read_collection(save_collection(tmp_path / "all", queries=all_of_it, passages={"zip": "zip"}))
        with pytest.raises(tamis.InvalidInput, match="nothing else"):
            fuse(one, one, [whole])
        wrong = FakeScorer(lambda q, p: -5.0 if p == PASSAGES["zip"] else 5.0)
        one_right = read_collection(
            save_collection(tmp_path / "one", queries={"q1": ("zip archive", {"zip": 1}, None)})
        )
        with tamis.Reranker(wrong) as worse, pytest.raises(tamis.InvalidInput, match="lower logits"):
            fuse(worse, worse, [one_right], weights=[1.0])


def test_the_command_writes_what_load_reads(folder, tmp_path, capsys):
    data = save_collection(tmp_path / "modules")
    (folder / "fusion.json").unlink()
    with tamis.load(folder) as before:
        assert before.mode == "cross-encoder"
    assert main(["fuse", str(folder), "--bi-encoder", str(folder / "beside"), "--data", str(data), "--json"]) in (0, 2)
    told = capsys.readouterr()
    if "lower logits" in told.err:  # random weights may rank backwards; then nothing is written
        assert not (folder / "fusion.json").exists()
        return
    numbers = json.loads(told.out)
    written = json.loads((folder / "fusion.json").read_text())
    assert {name: numbers[name] for name in BLEND} == {name: written[name] for name in BLEND}
    assert Path(written["bi_encoder"]).is_absolute()
    with tamis.load(folder) as after:
        assert after.mode == "fusion"


def test_the_command_over_the_shipped_models(tmp_path, capsys):
    folder = Path(shutil.copytree(SHIPPED / MINI, tmp_path / "mine"))
    data = save_collection(tmp_path / "modules")
    assert main(["fuse", str(folder), "--data", str(data)]) == 0
    assert "weight" in capsys.readouterr().out
    assert json.loads((folder / "fusion.json").read_text())["bi_encoder"] == "embedded"
    assert main(["fuse", str(tmp_path / "nowhere"), "--data", str(data)]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["fuse", str(folder), "--data", str(data), "--lexical", "3"]) == 0
    assert json.loads((folder / "fusion.json").read_text())["lexical"] == 3.0
    assert Counts.read(folder).total == len(PASSAGES)
    with tamis.load(folder) as mine:
        assert mine.rank(QUERY, TEXTS)[0].passage.text == PASSAGES["zip"]
    assert main(["fuse", str(folder), "--data", str(data), "--lexical", "-1"]) == 2
    assert "--lexical is -1" in capsys.readouterr().err
    assert main(["fuse", str(folder), "--data", str(data), "--limit", "0"]) == 2
    assert "--limit is 0" in capsys.readouterr().err
    assert main(["fuse", str(folder), "--data", str(data), "--seed", "-1"]) == 2
    assert "The seed is -1" in capsys.readouterr().err


def test_training_judges_the_one_that_was_trained(folder):
    from tamis.training.cross_encoder import Options, load

    with load(folder, Options()) as judged:
        assert judged.mode == "cross-encoder"


def test_what_is_written_is_what_was_given(tmp_path):
    write_fusion(tmp_path, "acme/encoder", Blend(2.0, 0.25, -1.0))
    assert json.loads((tmp_path / "fusion.json").read_text()) == {
        "bi_encoder": "acme/encoder", "weight": 2.0, "scale": 0.25, "offset": -1.0, "lexical": 0.0,
    }  # fmt: skip


def test_a_forgotten_reranker_leaves_both_models_for_the_next(folder):
    first = tamis.load(folder, dtype="float32")
    loaded = [first._scorer._cross._lease.loaded, first._scorer._similar.passage.lease.loaded]
    del first
    gc.collect()
    with tamis.load(folder, dtype="float32") as again:
        assert [again._scorer._cross._lease.loaded, again._scorer._similar.passage.lease.loaded] == loaded

"""Cutting, windows and refusal, and what a hit says of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tamis
import tiny
from tamis.long_documents import OVERLAP, check_policy, pieces, spans_of, windows

QUERY = "how is a zip archive read?"
NEEDLE = "A zip archive is read with the zipfile module"


@given(length=st.integers(0, 3000), room=st.integers(1, 600), full=st.booleans())
def test_windows_cover_the_text(length, room, full):
    spans = windows(length, room, full=full)
    assert spans[0].start == 0
    assert spans[-1].stop == length
    assert not full or spans[-1].stop - spans[-1].start == min(length, room)
    assert all(0 <= span.stop - span.start <= room for span in spans)
    for before, after in pairwise(spans):
        assert before.start < after.start <= before.stop
        if (after is not spans[-1] or not full) and room >= 8:
            assert before.stop - after.start == min(OVERLAP, room // 4)


def test_the_last_window_is_as_wide_as_the_others_unless_asked():
    assert windows(9, 4)[1:] == [slice(3, 7), slice(5, 9)]
    assert windows(9, 4, full=False)[1:] == [slice(3, 7), slice(6, 9)]


def test_an_unknown_policy_is_refused_with_those_there_are():
    with pytest.raises(tamis.InvalidInput, match="'cut'; pass one of 'truncate', 'max_window', 'error'"):
        check_policy("cut")


def test_pieces_of_several_passages():
    parts, cut = pieces([3, 4, 5, 0], 4, "truncate")
    assert parts == [(0, slice(0, 3)), (1, slice(0, 4)), (2, slice(0, 4)), (3, slice(0, 0))]
    assert cut.tolist() == [False, False, True, False]
    parts, cut = pieces([9, 2, 9], 4, "max_window", full=False)
    assert parts == [(i, window) for i, length in enumerate([9, 2, 9]) for window in windows(length, 4, full=False)]
    assert not cut.any()
    assert pieces([9], 4, "max_window")[0] == [(0, window) for window in windows(9, 4, full=True)]


def test_pieces_refuse_what_does_not_fit_by_the_callers_number():
    assert pieces([4], 4, "error")[0] == [(0, slice(0, 4))]
    with pytest.raises(tamis.InputTooLong, match=r"^Passage 2 has 5 tokens or more, and 4 fit"):
        pieces([1, 1, 5], 4, "error")
    with pytest.raises(tamis.InputTooLong, match=r"^Passage 12 "):
        pieces([1, 1, 5], 4, "error", 10)


def test_spans_are_asked_for_where_there_are_several_parts_only():
    offsets = {1: np.array([[0, 2], [3, 5], [6, 9]])}
    parts = [(0, slice(0, 3)), (1, slice(0, 2)), (1, slice(1, 3)), (2, slice(0, 1))]
    assert spans_of(parts, offsets.__getitem__) == [None, (0, 5), (3, 9), None]


def test_truncation_reads_the_beginning_and_says_so(classifier):
    folder = classifier("bert")
    long = tiny.text(2000, 1)
    with tamis.load(folder, dtype="float32", max_length=128) as reranker:
        ranking = reranker.rank(QUERY, [long, "short", " ".join(long.split()[:600]) + " another end"])
    assert {hit.index: hit.truncated for hit in ranking} == {0: True, 1: False, 2: True}
    by_index = {hit.index: hit.logit for hit in ranking}
    assert by_index[0] == pytest.approx(by_index[2], abs=1e-5)
    assert ranking.usage.tokens < 2 * 128 + 40


def test_max_window_is_the_best_of_windows_scored_apart(classifier):
    from transformers import AutoTokenizer

    folder = classifier("bert")
    long = tiny.text(900, 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.encode(QUERY, add_special_tokens=False)
    ids = tokenizer.encode(long, add_special_tokens=False)
    room = 128 - len(asked) - 3
    texts = [tokenizer.decode(ids[span]) for span in windows(len(ids), room)]
    with (
        tamis.load(folder, dtype="float32", max_length=128) as plain,
        tamis.load(folder, dtype="float32", max_length=128, long_documents="max_window") as reranker,
    ):
        apart = plain.logits(QUERY, texts)
        ranking = reranker.rank(QUERY, ["short", long, ""])
        assert reranker.logits(QUERY, ["short"]) == pytest.approx(plain.logits(QUERY, ["short"]), abs=1e-5)
    found = {hit.index: hit for hit in ranking}
    assert len(texts) > 5
    # decoding and encoding again may move a piece at a window's border
    assert found[1].logit == pytest.approx(max(apart), abs=0.05 * np.ptp(apart))
    assert not any(hit.truncated for hit in ranking)


def test_windows_find_what_truncation_misses(embedded):
    haystack = " ".join(["The garden was quiet and the rain fell on the roof."] * 120)
    late = haystack + " " + NEEDLE + ". " + haystack
    with tamis.load(mode="bi-encoder", dtype="float32", long_documents="max_window") as windowed:
        gain = windowed.logits(QUERY, [late])[0] - embedded.logits(QUERY, [late])[0]
        assert not windowed.rank(QUERY, [late])[0].truncated
    assert gain > 0.1
    assert embedded.rank(QUERY, [late])[0].truncated


def test_a_hit_says_which_window_won(embedded):
    haystack = " ".join(["The garden was quiet and the rain fell on the roof."] * 90)
    late = f"{haystack} {NEEDLE}. {haystack}"
    with tamis.load(mode="bi-encoder", dtype="float32", long_documents="max_window") as reranker:
        for _ in range(2):  # from the model, and from the cache
            found = {hit.index: hit for hit in reranker.rank(QUERY, ["short", late, haystack, NEEDLE])}
            assert found[0].window is None
            assert found[3].window is None
            start, stop = found[1].window
            assert NEEDLE in late[start:stop]
            assert stop - start < len(late) / 4
            assert reranker.logits(QUERY, [late[start:stop]])[0] == pytest.approx(found[1].logit, abs=0.02)
        assert all(hit.window is None for hit in reranker.rank(QUERY, ["short", "shorter"]))
    assert embedded.rank(QUERY, [late])[0].window is None


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_the_window_of_a_pair_is_the_text_that_was_read(classifier, name):
    from tamis.tokenizing import TextTokenizer

    folder, long = classifier(name), "käse \ud83d\ude00 \ud83d " + tiny.text(400, 2)
    tokenizer = TextTokenizer(tiny.ENCODERS[name][0]())
    passages = ["short", long, long[9:], long[:800]]
    with (
        tamis.load(folder, dtype="float32", max_length=128, long_documents="max_window") as reranker,
        tamis.load(folder, dtype="float32", max_length=128) as plain,
    ):
        hits = {hit.index: hit for hit in reranker.rank(QUERY, passages)}
        room = 128 - plain.rank(QUERY, [""]).usage.tokens
        assert hits[0].window is None
        for i in (1, 2, 3):
            start, stop = hits[i].window
            ids = tokenizer.encode([passages[i]])[0].tolist()
            read = tokenizer.encode([passages[i][start:stop]])[0].tolist()
            assert abs(len(read) - room) <= 2  # a word that was cut may be spelt in other pieces, or gain a mark
            assert any(read[2:-2] == ids[k : k + len(read) - 4] for k in range(len(ids)))
            if read in [ids[k : k + room] for k in range(len(ids))]:
                assert plain.logits(QUERY, [passages[i][start:stop]])[0] == pytest.approx(hits[i].logit, abs=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
@given(text=st.text(st.characters(exclude_categories=()), max_size=60))
@settings(deadline=None, max_examples=50)
def test_offsets_are_places_in_the_text_as_it_was_passed_in(name, text):
    from tamis.tokenizing import TextTokenizer, clean

    tokenizer = TextTokenizer(tiny.ENCODERS[name][0]())
    offsets = tokenizer.offsets(text)
    assert len(offsets) == len(tokenizer.encode([text])[0])
    assert ((offsets >= 0) & (offsets <= len(text))).all()
    for start, stop in offsets.tolist():  # no joined pair is cut in two
        assert clean(text[:start]) + clean(text[start:stop]) + clean(text[stop:]) == clean(text)


def test_every_window_has_the_prompt(tmp_path):
    """Windows of a passage against sentence-transformers, which reads the text of each with the prompt before it."""
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_layout(
        tiny.save_encoder(tmp_path, "bert"), "mean", ("Normalize", None), prompts={"document": "search document: "}
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    long, short = tiny.text(300, 3), tiny.text(10, 4)
    tokenizer = tiny.wordpiece()
    encoded = tokenizer(long, add_special_tokens=False, return_offsets_mapping=True)
    prompt = len(tokenizer.encode("search document: ", add_special_tokens=False))
    spans = [
        (encoded["offset_mapping"][part][0][0], encoded["offset_mapping"][part][-1][1])
        for part in windows(len(encoded["input_ids"]), 64 - 2 - prompt)
    ]
    whole = [(a, b) for a, b in spans if long[a - 1 : a] in ("", " ") and long[b : b + 1] in ("", " ")]
    peer = SentenceTransformer(str(folder), device="cpu")
    asked, *rows = peer.encode(
        [QUERY, "search document: " + short, *("search document: " + long[a:b] for a, b in whole)]
    )
    with tamis.load(folder, dtype="float32", long_documents="max_window") as reranker:
        hits = {hit.index: hit for hit in reranker.rank(QUERY, [short, long])}
    assert len(whole) > 2
    assert hits[0].logit == pytest.approx(float(rows[0] @ asked), abs=1e-4)
    assert hits[1].window in spans
    if hits[1].window in whole:
        assert hits[1].logit == pytest.approx(float(rows[1 + whole.index(hits[1].window)] @ asked), abs=1e-4)
    assert hits[1].logit >= max(float(row @ asked) for row in rows[1:]) - 1e-4


def test_error_refuses_and_names_the_passage(classifier):
    with tamis.load(classifier("bert"), dtype="float32", max_length=64, long_documents="error") as reranker:
        assert len(reranker.logits(QUERY, ["fits"])) == 1
        with pytest.raises(tamis.InputTooLong, match="Passage 301 "):
            reranker.rank(QUERY, ["fits"] * 301 + [tiny.text(100)])
        with pytest.raises(tamis.InputTooLong, match="query"):
            reranker.rank(tiny.text(100), ["fits"])


def test_a_long_query(classifier):
    long = tiny.text(300, 4)
    with tamis.load(classifier("bert"), dtype="float32", max_length=96) as reranker:
        ranking = reranker.rank(long, ["short", tiny.text(60, 5)])
        assert all(hit.truncated for hit in ranking)
        assert ranking.usage.tokens == 2 * 96
    with (
        tamis.load(classifier("bert"), dtype="float32", max_length=96, long_documents="max_window") as reranker,
        pytest.raises(tamis.InputTooLong, match="query"),
    ):
        reranker.rank(long, ["short"])


def test_a_query_gives_way_only_where_the_pair_is_too_long(classifier):
    query = tiny.text(30, 4)  # more than three quarters of the room, with a short passage it still fits
    with tamis.load(classifier("bert"), dtype="float32") as whole:
        tokens = whole.rank(query, ["a"]).usage.tokens
        expected = whole.logits(query, ["a"])
    with tamis.load(classifier("bert"), dtype="float32", max_length=tokens) as tight:
        ranking = tight.rank(query, ["a", tiny.text(50, 6)])
        assert tight.logits(query, ["a"]) == pytest.approx(expected, abs=1e-5)
    assert {hit.index: hit.truncated for hit in ranking} == {0: False, 1: True}


def test_ten_megabytes_in_one_passage(embedded, classifier):
    giants = ["word " * 2_000_000, "x" * 10_000_000, " " * 10_000_000, "word " * 500_000 + "end"]
    ranking = embedded.rank(QUERY, [*giants, NEEDLE])
    assert ranking[0].index == 4
    assert {hit.index for hit in ranking if hit.truncated} == {0, 3}  # one word of any length is one unknown token
    for name in ("roberta", "xlm-roberta"):
        with tamis.load(classifier(name), dtype="float32") as reranker:
            assert {hit.index for hit in reranker.rank(QUERY, giants[:2]) if hit.truncated} == {0, 1}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_the_head_of_a_long_text_has_the_same_tokens(classifier, name):
    from transformers import AutoTokenizer

    from tamis.tokenizing import TextTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifier(name))
    text = tiny.text(20_000, 7)
    whole = tokenizer.encode(text, add_special_tokens=False)
    for limit in (1, 50, 500):
        assert TextTokenizer(tokenizer).encode([text], limit=limit)[0].tolist() == whole[: limit + 1]

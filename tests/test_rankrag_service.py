"""RankRAG as it is called: answers, streams, limits, bad input; many at once, and what ends early."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

import tamis
import tiny
import tiny_lm
from rankrag_reference import PASSAGES, QUESTION, save_speaker
from tamis.engine.lm_sequences import Writing
from tamis.rankrag.answers import Growing, Piece

PAIR = ["Faust is a tragic play.", "Goethe wrote it."]


def load(folder, **options):
    return tamis.load_rankrag(folder, **{"dtype": "float32", **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that writes nonsense, and ranks by it."""
    return tiny_lm.save(tmp_path_factory.mktemp("llama"), "llama", "ForCausalLM")


@pytest.fixture
def rag(folder):
    with load(folder) as rag:
        yield rag


@pytest.fixture
def speaker(tmp_path):
    """`speaker("Mars", b"!")`: a model that says this."""
    loaded = []

    def make(*said, forever=False, **options):
        folder = save_speaker(tmp_path / str(len(loaded)), said, forever=forever)
        loaded.append(load(folder, **options))
        return loaded[-1]

    yield make
    for one in loaded:
        one.close()


@pytest.fixture
def talker(speaker):
    """A model that does not stop by itself."""
    return speaker(" on", " and", forever=True)


def idle(rag, seconds=10.0):
    """Whether nothing waits or runs any more."""
    end = time.monotonic() + seconds
    engine = rag._scorer.lease.loaded.engine
    while time.monotonic() < end:
        if not engine._queue._pending and not rag.stats()["queued_sequences"]:
            return True
        time.sleep(0.01)
    return False


# -- one answer --------------------------------------------------------------------------------------------------------


def test_an_answer_and_all_that_it_tells(speaker):
    rag = speaker(" Goethe", " wrote", " it", b".")
    passages = [tamis.Passage(text, id=str(i)) for i, text in enumerate([*PAIR, "And more."])]
    answer = rag.answer("Who wrote Faust?", passages, top_k=2)
    assert answer.text == str(answer) == "Goethe wrote it."
    assert answer.found
    assert len(answer.ranking) == 3
    assert list(answer.contexts) == list(answer.ranking[:2])
    assert all(hit.passage is passages[hit.index] for hit in answer.ranking)
    assert answer.usage.completion_tokens == 5  # and the one that ends it
    prompts = rag._scorer.prompts
    texts = [hit.passage.text for hit in answer.contexts]
    pieces = [prompts.system, *prompts.numbered(texts), prompts.replying("Who wrote Faust?", "short", ())]
    assert answer.usage.prompt_tokens == sum(map(len, pieces))
    assert answer.usage.reused_tokens == len(prompts.system)
    assert answer.usage.ranking_tokens == answer.ranking.usage.tokens > 0
    assert 0 < answer.timings.ranking < answer.timings.first_token <= answer.timings.total
    assert rag.model.endswith("0")
    assert answer.ranking.model == rag.model


def test_no_passages_is_no_call_of_the_model(rag):
    before = rag.stats()["batches"]
    answer = rag.answer(QUESTION, [])
    assert (answer.text, answer.found, answer.contexts, len(answer.ranking)) == ("", False, (), 0)
    assert rag.answer(QUESTION, [], answer_anyway=True).text == ""
    assert [*rag.stream(QUESTION, [])][-1].answer.found is False
    assert len(rag.rank(QUESTION, [])) == 0
    assert rag.stats()["batches"] == before
    assert answer.usage.completion_tokens == answer.usage.ranking_tokens == answer.timings.first_token == 0


def test_nothing_relevant_and_no_answer_is_made_up(rag):
    ranked = rag.rank(QUESTION, PASSAGES)
    scores = [hit.score for hit in ranked]
    between = (scores[1] + scores[2]) / 2
    answer = rag.answer(QUESTION, PASSAGES, min_score=between, max_new_tokens=3)
    assert [hit.index for hit in answer.contexts] == [hit.index for hit in ranked][:2]
    # Kept keys are read now, whose batches have other shapes: products of other shapes may round otherwise.
    assert [hit.score for hit in answer.contexts] == pytest.approx(scores[:2], abs=1e-6)
    assert len(answer.ranking) == 2
    assert answer.ranking.usage.below_min_score == len(PASSAGES) - 2
    before = rag.stats()["tokens_computed"]
    prompts = rag._scorer.prompts
    answer = rag.answer(QUESTION, PASSAGES, min_score=1.0)
    assert (answer.text, answer.found, answer.contexts, len(answer.ranking)) == ("", False, (), 0)
    asked = len(prompts.asking(QUESTION, "short", ()))
    assert rag.stats()["tokens_computed"] - before == len(PASSAGES) * asked  # it ranked, and wrote nothing
    anyway = rag.answer(QUESTION, PASSAGES, min_score=1.0, answer_anyway=True, top_k=2, max_new_tokens=6)
    plainly = rag.answer(QUESTION, PASSAGES, top_k=2, max_new_tokens=6)
    assert anyway.text == plainly.text
    assert anyway.contexts == plainly.contexts
    assert len(anyway.ranking) == 0


@pytest.mark.parametrize(
    "said, found", [(" Goethe", True), ("The answer cannot be found in the context.", False), ("\n \n", False)]
)
def test_whether_the_model_says_that_there_is_none(speaker, said, found):
    answer = speaker(said).answer(QUESTION, PAIR)
    assert answer.found is found
    assert answer.text == said.strip()
    assert len(answer.contexts) == 2


def test_texts_end_where_they_should(speaker):
    rag = speaker(" one", " two", " three", b"END", " four", style="plain")

    def said(**options):
        answer = rag.answer(QUESTION, PAIR, **options)
        return answer.text, answer.usage.completion_tokens

    assert said() == ("one two threeEND four", 8)
    assert said(max_new_tokens=2) == ("one two", 2)
    assert said(max_new_tokens=1) == ("one", 1)
    assert said(stop=["END"]) == ("one two three", 6)
    assert said(stop=["four", "D", " thr"]) == ("one two", 3)
    assert said(stop=["NOT"]) == ("one two threeEND four", 8)
    assert said(stop=["one"]) == ("", 1)
    assert rag.answer(QUESTION, PAIR, stop=["one"]).found is False


def test_the_wording_has_stop_strings_of_its_own(speaker):
    rag = speaker(" Goethe", "\n\nUser:", " next", style="plain")
    answer = rag.answer(QUESTION, PAIR)
    assert answer.text == "Goethe"
    assert answer.usage.completion_tokens == 2
    chat = speaker(" Goethe", "\n\nUser:", " next", style="chat")
    assert chat.answer(QUESTION, PAIR).text == "Goethe\n\nUser: next"


def test_the_length_limits_of_the_tasks(talker):
    def written(**options):
        return talker.answer(QUESTION, PAIR, **options).usage.completion_tokens

    assert [written(task=task) for task in ("short", "full", "claim", "conversation")] == [32, 128, 8, 128]
    assert written() == 32
    assert written(history=[("user", "a"), ("assistant", "b")]) == 128
    assert written(task="claim", max_new_tokens=11) == 11


def test_the_task_of_the_load_is_the_default(folder):
    with load(folder, task="claim") as claim, load(folder) as short:
        mine, theirs = claim.rank(QUESTION, PASSAGES), short.rank(QUESTION, PASSAGES, task="claim")
        assert [hit.index for hit in mine] == [hit.index for hit in theirs]
        # the first of them ran the passages, the second read what was kept of them, in batches of another shape
        assert [hit.logit for hit in mine] == pytest.approx([hit.logit for hit in theirs], abs=1e-5)
        assert claim.answer(QUESTION, PASSAGES).text == short.answer(QUESTION, PASSAGES, task="claim").text
        assert claim.reranker.logits(QUESTION, PASSAGES) != short.reranker.logits(QUESTION, PASSAGES)


def test_a_conversation_is_read(rag):
    turns = [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe."}]
    with_history = rag.rank("When?", PASSAGES, history=turns)
    assert [hit.logit for hit in with_history] != [hit.logit for hit in rag.rank("When?", PASSAGES)]
    answer = rag.answer("When?", PASSAGES, history=turns, max_new_tokens=4)
    assert [hit.logit for hit in answer.ranking] == pytest.approx([hit.logit for hit in with_history], abs=1e-4)
    prompts = rag._scorer.prompts
    end = prompts.replying("When?", "conversation", [("user", "Who wrote Faust?"), ("assistant", "Goethe.")])
    pieces = prompts.numbered([hit.passage.text for hit in answer.contexts])
    assert answer.usage.prompt_tokens == len(prompts.system) + sum(map(len, pieces)) + len(end)


def test_with_a_history_every_call_has_the_same_task(folder):
    turns = [("user", "Who wrote Faust?"), ("assistant", "Goethe.")]
    with load(folder, task="claim") as rag:  # the one that ranks by other words
        ranked = [hit.logit for hit in rag.rank("When?", PASSAGES, history=turns)]
        answered = [hit.logit for hit in rag.answer("When?", PASSAGES, history=turns, max_new_tokens=1).ranking]
        assert ranked == pytest.approx(answered, abs=1e-4)
        named = [hit.logit for hit in rag.rank("When?", PASSAGES, history=turns, task="conversation")]
        claimed = [hit.logit for hit in rag.rank("When?", PASSAGES, history=turns, task="claim")]
        assert ranked == pytest.approx(named, abs=1e-4)
        assert np.abs(np.subtract(ranked, claimed)).max() > 1e-2
        assert rag.signature("When?", history=turns) == rag.signature("When?", history=turns, task="conversation")
        assert rag.signature("When?", history=turns) != rag.signature("When?", history=turns, task="claim")
        assert rag.signature("When?") == rag.signature("When?", task="claim") == rag.reranker.signature("When?")


# -- passages and prompts that are too long ----------------------------------------------------------------------------


def test_a_passage_longer_than_the_context_is_cut_and_flagged(folder):
    long = "zip archive " * 400
    with load(folder, max_length=512) as rag:
        prompts = rag._scorer.prompts
        answer = rag.answer(QUESTION, [long, "Sorting is stable."], max_new_tokens=8)
        flags = {hit.index: hit.truncated for hit in answer.ranking}
        assert flags == {0: True, 1: False}
        assert answer.usage.prompt_tokens <= 512 - 8
        read = {hit.index: hit.truncated for hit in answer.contexts}
        assert read[0] is True
        assert answer.usage.prompt_tokens > 512 - 8 - 16  # as much of it as there was room for
        assert all(hit.passage.text in (long, "Sorting is stable.") for hit in answer.contexts)
        end = prompts.replying(QUESTION, "short", ())
        alone = rag.answer(QUESTION, [long], max_new_tokens=8)
        assert alone.contexts[0].truncated
        assert alone.usage.prompt_tokens >= len(prompts.system) + len(end) + 16
        with pytest.raises(tamis.InvalidInput, match="no room for a passage"):
            rag.answer("why " * 300, ["a"], max_new_tokens=8)
        with pytest.raises(tamis.InputTooLong, match="Shorten the question or its history"):
            rag.rank("why " * 300, ["a"])


def test_the_best_passage_may_stand_beside_the_question(folder):
    with load(folder) as usual, load(folder, best_passage="last") as rag:
        prompts = rag._scorer.prompts
        answer, before = (one.answer(QUESTION, PASSAGES, top_k=3, max_new_tokens=8) for one in (rag, usual))
        assert [hit.index for hit in answer.contexts] == [hit.index for hit in answer.ranking[:3]]
        assert [hit.index for hit in before.contexts] == [hit.index for hit in answer.contexts]
        texts = [hit.passage.text for hit in answer.contexts]
        asked = rag._asked(QUESTION, PASSAGES, {"top_k": 3, "max_new_tokens": 8})
        for one, ordered in ((rag, texts[::-1]), (usual, texts)):
            expected = [prompts.system, *prompts.numbered(ordered), prompts.replying(QUESTION, "short", ())]
            assert one._prompt(asked, list(answer.contexts)).ids.tolist() == np.concatenate(expected).tolist()
        with load(folder, wording=replace(prompts.wording, best="first"), best_passage="last") as named:
            assert named.answer(QUESTION, PASSAGES, top_k=3, max_new_tokens=8).text == answer.text
    with pytest.raises(tamis.InvalidInput, match="best_passage is 'middle'; pass 'first' or 'last'"):
        load(folder, best_passage="middle")
    with pytest.raises(tamis.InvalidInput, match=r"Wording\.best is 'middle'"):
        replace(prompts.wording, best="middle")


@pytest.mark.parametrize("best_passage", ["first", "last"])
def test_what_follows_the_passages_is_never_cut(folder, best_passage):
    seen = []

    with load(folder, max_length=420, best_passage=best_passage) as rag:
        prompts = rag._scorer.prompts
        asked = rag._asked(QUESTION, [tiny.text(40, seed) for seed in range(9)], {"top_k": 9, "max_new_tokens": 20})
        ranking = rag.rank(QUESTION, asked.passages)
        for count in range(1, 10):
            prompt = rag._prompt(asked, list(ranking[:count]))
            ids, contexts = prompt.ids, prompt.contexts
            seen.append(len(contexts))
            assert len(ids) <= 400
            end = prompts.replying(QUESTION, "short", ())
            assert ids[-len(end) :].tolist() == end.tolist()
            assert [hit.truncated for hit in contexts[:-1]] == [False] * (len(contexts) - 1)
            assert [hit.index for hit in contexts] == [hit.index for hit in ranking[: len(contexts)]]
    assert seen[0] == 1
    assert seen[-1] == max(seen) < 9


def test_a_hit_that_ranking_cut_and_the_answer_read_whole(folder):
    """The question's turn is shorter when it is answered, so that a passage may fit there alone."""
    with load(folder, max_length=600) as rag:
        prompts = rag._scorer.prompts
        ranking_room = 600 - len(prompts.system) - len(prompts.asking(QUESTION, "short", ()))
        text = "a"
        while len(prompts.ranked([text])[0]) <= ranking_room:
            text += " a"
        answer = rag.answer(QUESTION, [text], max_new_tokens=1)
        assert answer.ranking[0].truncated
        assert not answer.contexts[0].truncated


def test_of_a_passage_in_windows_the_best_one_is_read(folder):
    text = tiny.text(150, 3) + " zip archive " + tiny.text(150, 4)
    with load(folder, max_length=512, long_documents="max_window") as rag:
        answer = rag.answer(QUESTION, [text], max_new_tokens=8)
        [ranked], [read] = answer.ranking, answer.contexts
        assert not ranked.truncated
        assert read.truncated
        assert read.window[0] == ranked.window[0]
        assert read.window[1] > read.window[0]
        assert answer.usage.prompt_tokens <= 512 - 8


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question, passages, options, message",
    [
        ("", ["a"], {}, "The query is empty"),
        (" \n", ["a"], {}, "The query is empty"),
        (None, ["a"], {}, "The query is a NoneType"),
        ("q", None, {}, "passages is a NoneType"),
        ("q", "text", {}, "passages is a str"),
        ("q", ["a", 1], {}, "Passage 1 is a int"),
        ("q", ["a"], {"top_k": 0}, "top_k is 0"),
        ("q", ["a"], {"top_k": None}, "top_k is None"),
        ("q", ["a"], {"top_k": 2.0}, "top_k is 2.0"),
        ("q", ["a"], {"top_k": True}, "top_k is True"),
        ("q", ["a"], {"min_score": 2}, "min_score is 2"),
        ("q", ["a"], {"task": "essay"}, "task='essay'; pass one of 'short'"),
        ("q", ["a"], {"history": "hello"}, "history is a list of turns"),
        ("q", ["a"], {"history": [("user", "x")]}, "ends with the user's turn"),
        ("q", ["a"], {"max_new_tokens": 0}, "max_new_tokens=0; pass an int from 1 to 4095"),
        ("q", ["a"], {"max_new_tokens": True}, "max_new_tokens=True"),
        ("q", ["a"], {"max_new_tokens": 5000}, "half of what the model reads and writes"),
        ("q", ["a"], {"stop": "END"}, "stop is a list of strings"),
        ("q", ["a"], {"stop": None}, "stop is a list of strings"),
        ("q", ["a"], {"stop": [""]}, "stop is a list of strings that are not empty"),
        ("q", ["a"], {"timeout": 0}, "timeout is 0"),
    ],
)
def test_bad_input(rag, question, passages, options, message):
    with pytest.raises(tamis.InvalidInput, match=message):
        rag.answer(question, passages, **options)
    with pytest.raises(tamis.InvalidInput, match=message):
        rag.stream(question, passages, **options)  # at once, before anything is asked of it
    with pytest.raises(tamis.InvalidInput, match=message):
        asyncio.run(rag.aanswer(question, passages, **options))
    assert idle(rag)


def test_what_cannot_count_is_refused_before_anything_is_ranked(rag):
    for passages in ([], PASSAGES):
        with pytest.raises(tamis.InvalidInput, match="tokenizer= is a int"):
            rag.rank("why? " * 5000, passages, max_tokens=9, tokenizer=7)  # too long, which ranking would say


def test_numbers_of_numpy_are_numbers(rag):
    assert len(rag.answer(QUESTION, PASSAGES, top_k=np.int64(3), max_new_tokens=np.int64(1)).contexts) == 3


def test_passages_may_be_any_iterable_and_are_not_changed(rag):
    given = list(PASSAGES)
    expected = rag.answer(QUESTION, given, max_new_tokens=4)
    assert rag.answer(QUESTION, (text for text in given), max_new_tokens=4).text == expected.text
    assert rag.answer(QUESTION, tuple(given), max_new_tokens=4).text == expected.text
    assert [hit.index for hit in rag.rank(QUESTION, iter(given))] == [hit.index for hit in expected.ranking]
    assert given == PASSAGES


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_answer_in_pieces(speaker):
    rag = speaker(" Goethe", " wrote", "  ", " it", b".", " ")
    pieces = list(rag.stream(QUESTION, PAIR, top_k=1))
    assert pieces == ["", "Goethe", " wrote", "   it", ".", ""]
    first, last = pieces[0], pieces[-1]
    assert [hit.passage.text for hit in first.contexts] == [hit.passage.text for hit in last.answer.contexts]
    assert len(first.contexts) == 1
    assert all(isinstance(piece, Piece) and piece.answer is None for piece in pieces[:-1])
    assert "".join(pieces) == last.answer.text == "Goethe wrote   it."
    assert last.answer.found


async def test_an_asynchronous_stream_too(speaker, rag):
    said = speaker(" Goethe", " wrote", " it", b".")
    assert [piece async for piece in said.astream(QUESTION, PAIR)] == ["", "Goethe", " wrote", " it", ".", ""]
    with pytest.raises(tamis.InvalidInput):
        [piece async for piece in rag.astream("", PAIR)]

    async def text(question):
        pieces = [piece async for piece in rag.astream(question, PASSAGES, max_new_tokens=20)]
        assert "".join(pieces) == pieces[-1].answer.text
        return pieces[-1].answer.text

    questions = [f"why {i}?" for i in range(6)]
    expected = [rag.answer(question, PASSAGES, max_new_tokens=20).text for question in questions]
    assert await asyncio.gather(*map(text, questions)) == expected


def test_the_first_piece_comes_before_the_text_is_done(talker):
    start = time.perf_counter()
    stream = talker.stream(QUESTION, PAIR, max_new_tokens=4000)
    assert next(stream) == ""
    assert next(stream) == "on"
    assert time.perf_counter() - start < 5
    stream.close()
    assert idle(talker)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_characters_of_several_bytes_are_never_split(speaker, style):
    text = "é日€😀"  # of two, three, three and four bytes, each byte a token
    rag = speaker(text.encode(), " end", style=style)
    pieces = list(rag.stream(QUESTION, PAIR))
    assert pieces == ["", "é", "日", "€", "😀", " end", ""]
    for count in range(1, 12):
        [*pieces, last] = rag.stream(QUESTION, PAIR, max_new_tokens=count)
        whole = text.encode()[:count].decode(errors="ignore")
        assert "".join(pieces) == last.answer.text == whole  # half a character is not shown at all
        assert last.answer.usage.completion_tokens == count


def test_stop_strings_are_never_shown_in_part(speaker):
    rag = speaker(" Mars", " ", b"STO", " but", b"XQP", style="plain")
    pieces = list(rag.stream(QUESTION, PAIR, stop=["STOP", "XQP"]))
    assert pieces == ["", "Mars", " STO but", ""]
    assert list(rag.stream(QUESTION, PAIR, stop=["STO", "never"])) == ["", "Mars", ""]
    assert list(rag.stream(QUESTION, PAIR, stop=["TO b"])) == ["", "Mars", " S", ""]
    ended = list(rag.stream(QUESTION, PAIR, stop=["STOP"], max_new_tokens=4))
    assert ended == ["", "Mars", " ST", ""]  # no stop string after all


def grown(tokens, ends=(), stop=(), limit=10**6):
    """The pieces that bytes give, one a token, and how many were taken."""
    shown: list[str] = []
    growing = Growing(
        lambda ids: bytes(ids).decode(errors="replace"), ends=ends, stop=stop, limit=limit, show=shown.append
    )
    taken = 0
    for token in tokens:
        taken += 1
        if not growing.add(token):
            break
    assert "".join(shown) == growing.text
    assert all(shown)
    assert growing.written == taken
    return shown, taken


def test_any_text_grows_by_whole_characters():
    alphabet = ["a", "\n", "é", "€", "日本", "😀", "STOP", "ST", "\u200d", "👩\u200d👩", " "]
    for seed in range(200):
        generator = random.Random(seed)
        text = "".join(generator.choices(alphabet, k=12))
        data = text.encode()
        expected = text.split("STOP")[0]
        shown, _ = grown([*data, 256], ends=[256], stop=["STOP"])
        assert "".join(shown) == expected
        assert all("\ufffd" not in piece for piece in shown)
        limit = generator.randrange(1, len(data) + 1)
        cut = data[:limit].decode(errors="ignore").split("STOP")[0]
        shown, taken = grown(data, stop=["STOP"], limit=limit)
        assert "".join(shown) == cut
        assert taken <= limit


def test_bytes_that_are_no_text_are_shown_as_such():
    shown, _ = grown([ord("a"), 0xFF, ord("b"), 0xE2, 0x82, ord("c"), 256], ends=[256])
    assert "".join(shown) == "a\ufffdb\ufffdc"


# -- what ends early ---------------------------------------------------------------------------------------------------


def test_closing_a_stream_frees_its_place(talker):
    for count in range(4):
        stream = talker.stream(QUESTION, PAIR, max_new_tokens=4000)
        for _ in range(count):
            next(stream)
        stream.close()  # also before the first piece, and before the first text
        assert idle(talker)
    streams = [talker.stream(f"why {i}?", PAIR, max_new_tokens=4000) for i in range(5)]
    for stream in streams:
        assert [next(stream) for _ in range(3)] == ["", "on", " and"]
    streams.pop().close()
    del streams, stream  # nobody reads them any more
    gc.collect()
    assert idle(talker)
    assert talker.answer(QUESTION, PAIR, max_new_tokens=3).text == "on and on"


def test_a_stream_that_nobody_reads_runs_nothing(talker):
    before = talker.stats()["batches"]
    talker.stream(QUESTION, PAIR, max_new_tokens=4000)
    gc.collect()
    assert idle(talker)
    assert talker.stats()["batches"] == before


async def test_an_asynchronous_stream_that_ends_early(talker):
    async def first(count):
        stream = talker.astream(QUESTION, PAIR, max_new_tokens=4000)
        pieces = [await anext(stream) for _ in range(count)]
        await stream.aclose()
        return pieces

    assert await first(0) == []
    assert await asyncio.gather(*map(first, (1, 2, 3))) == [[""], ["", "on"], ["", "on", " and"]]
    assert idle(talker)

    async def for_ever():
        async for _ in talker.astream(QUESTION, PAIR, max_new_tokens=4000):
            pass

    task = asyncio.create_task(for_ever())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert idle(talker)


def test_a_loop_that_is_gone(talker):
    """An event loop that ends with a stream half read hurts nobody."""

    async def begin():
        stream = talker.astream(QUESTION, PAIR, max_new_tokens=4000)
        return [await anext(stream) for _ in range(2)], stream

    loop = asyncio.new_event_loop()
    (pieces, stream) = loop.run_until_complete(begin())
    assert pieces == ["", "on"]
    loop.close()
    time.sleep(0.1)
    assert talker.stats()["deaths"] == 0
    with pytest.raises(StopIteration):
        stream.aclose().send(None)
    assert idle(talker)


def test_deadlines(talker):
    options = {"max_new_tokens": 4000}
    with pytest.raises(tamis.DeadlineExceeded):
        talker.answer(QUESTION, PAIR, timeout=0.2, **options)
    assert idle(talker)
    with pytest.raises(tamis.DeadlineExceeded):
        list(talker.stream(QUESTION, PAIR, timeout=0.2, **options))
    assert idle(talker)

    async def late():
        with pytest.raises(tamis.DeadlineExceeded):
            await talker.aanswer(QUESTION, PAIR, timeout=0.2, **options)
        with pytest.raises(tamis.DeadlineExceeded):
            [piece async for piece in talker.astream(QUESTION, PAIR, timeout=0.2, **options)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await talker.aanswer(QUESTION, PAIR, **options)

    asyncio.run(late())
    assert idle(talker)
    assert talker.answer(QUESTION, PAIR, timeout=30, max_new_tokens=2).text == "on and"


def test_closing_ends_who_waits_and_nobody_else(tmp_path):
    folder = save_speaker(tmp_path, [" on", " and"], forever=True)
    one, two = load(folder), load(folder)
    stream = one.stream(QUESTION, PAIR, max_new_tokens=4000)
    other = two.stream(QUESTION, PAIR, max_new_tokens=4000)
    assert [next(stream), next(other), next(stream), next(other)] == ["", "", "on", "on"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(one.answer, QUESTION, PAIR, max_new_tokens=4000)
        time.sleep(0.2)
        one.close()
        with pytest.raises(tamis.Closed):
            answer.result(30)
    with pytest.raises(tamis.Closed):
        list(stream)
    with pytest.raises(tamis.Closed):
        one.answer(QUESTION, PAIR)
    with pytest.raises(tamis.Closed):
        list(one.stream(QUESTION, PAIR))
    assert next(other) == " and"
    with two:
        other.close()
        assert two.answer(QUESTION, PAIR, max_new_tokens=2).text == "on and"
    one.close()


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_two_hundred_mixed_requests_and_none_is_lost(folder):
    generator = random.Random(0)
    texts = [tiny.text(generator.randrange(1, 30), seed) for seed in range(40)]
    jobs = []
    for number in range(200):
        passages = generator.sample(texts, generator.randrange(1, 6))
        kind = generator.choice(["rank", "rank", "answer", "stream"])
        jobs.append((kind, f"{QUESTION} {number % 90}", passages, generator.randrange(1, 12)))
    with load(folder) as rag:

        async def run(kind, question, passages, count):
            if kind == "rank":
                return [(hit.index, hit.logit) for hit in await rag.arank(question, passages)]
            if kind == "answer":
                return (await rag.aanswer(question, passages, top_k=3, max_new_tokens=count)).text
            stream = rag.astream(question, passages, top_k=3, max_new_tokens=count)
            return "".join([piece async for piece in stream])

        together = await asyncio.wait_for(asyncio.gather(*(run(*job) for job in jobs)), 120)
        assert idle(rag)
        assert rag.stats()["deaths"] == 0
        for job, given in zip(jobs, together, strict=True):
            alone = await run(*job)
            if job[0] == "rank":
                assert [index for index, _ in given] == [index for index, _ in alone]
                assert [x for _, x in given] == pytest.approx([x for _, x in alone], abs=1e-4)
            else:
                assert given == alone


def test_nothing_is_left_of_texts_that_ended(talker):
    def some():
        for i in range(10):
            with ThreadPoolExecutor(4) as pool:
                pool.submit(talker.answer, QUESTION, PAIR, max_new_tokens=10)
                stream = talker.stream(f"why {i}?", PAIR, max_new_tokens=4000)
                for _ in range(4):
                    next(stream)
                stream.close()
        assert idle(talker)

    some()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(4):
        some()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Writing]
    assert psutil.Process().memory_info().rss - before < 30 * 2**20


def test_ranking_goes_on_beside_a_long_text(talker):
    stream = talker.stream(QUESTION, PAIR, max_new_tokens=4000)
    next(stream), next(stream)
    for i in range(5):
        assert len(talker.rank(f"why {i}?", PAIR)) == 2
    assert next(stream)
    stream.close()


# -- memory of the device ----------------------------------------------------------------------------------------------


def test_out_of_memory_is_split_and_texts_go_on(folder):
    """What does not fit fails after everything has been computed, which is the worst moment."""
    with load(folder) as rag:
        questions = [f"{QUESTION} {i}" for i in range(6)]

        def all_of_them():
            with ThreadPoolExecutor(12) as pool:
                answers = [pool.submit(rag.answer, q, PASSAGES, top_k=3, max_new_tokens=15) for q in questions]
                rankings = [pool.submit(rag.reranker.logits, q, PASSAGES) for q in questions]
                return [one.result(60).text for one in answers], [one.result(60) for one in rankings]

        texts, logits = all_of_them()
        backbone = rag._scorer.lease.loaded.engine._devices[0].runner.backbone
        through = backbone.through

        def tight(layout):
            hidden = through(layout)
            if layout.rows > 450:
                raise torch.OutOfMemoryError("no room")
            return hidden

        backbone.through = tight
        again, same = all_of_them()
        assert rag.stats()["out_of_memory"] > 0
        assert again == texts
        assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(same, logits, strict=True))


def test_one_that_fails_fails_alone(folder):
    with load(folder) as rag:
        runner = rag._scorer.lease.loaded.engine._devices[0].runner
        run = runner.run
        expected = rag.answer(QUESTION, PASSAGES, max_new_tokens=9).text
        poison = rag._scorer.prompts.asking("poison?", "short", ()).tobytes()

        def touchy(batch):
            if any(poison in tokens.ids.tobytes() for tokens in batch):
                raise RuntimeError("poisoned")
            return run(batch)

        runner.run = touchy
        gate = threading.Barrier(3)

        def ask(question):
            gate.wait()
            return rag.answer(question, PASSAGES, max_new_tokens=9)

        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, question) for question in (QUESTION, "poison?", QUESTION)]
            with pytest.raises(RuntimeError, match="poisoned"):
                asked[1].result(60)
            assert {asked[0].result(60).text, asked[2].result(60).text} == {expected}
        assert idle(rag)

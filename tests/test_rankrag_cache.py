"""Passages' keys and values: what is kept, where, how much of it, and that nobody finds what is not his."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tamis
import tiny
import tiny_lm
from rankrag_reference import PASSAGES, QUESTION, Plain
from tamis.cache import ENTRY_BYTES
from tamis.engine.keyvalues import ROOM, Home, KeyValues
from tamis.engine.passages import Disk, HostMemory, PassageCache
from tamis.rankrag.prompts import Wording
from tamis.tokenizing import TextTokenizer

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, as it trains


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("llama"), "llama", "ForCausalLM", bos=True)


@pytest.fixture(scope="module")
def expected(folder):
    return Plain(folder).relevances("chat", QUESTION, PASSAGES)


@pytest.fixture(scope="module")
def passage_bytes(folder):
    """What the longest of `PASSAGES` takes."""
    with load(folder) as rag:
        rag.warm([max(PASSAGES, key=len)])
        return rag.stats()["passage_bytes"]


def load(folder, **options):
    return tamis.load_rankrag(folder, **{"dtype": "float32", **options})


def values(tokens, seed=0, layers=2, dtype=torch.float32):
    torch.manual_seed(seed)
    pairs = [(torch.randn(2, tokens, 4).to(dtype), torch.randn(2, tokens, 4).to(dtype)) for _ in range(layers)]
    return KeyValues(pairs, tokens)


def equal(a, b):
    return all(
        torch.equal(x, y) for one, two in zip(a.layers, b.layers, strict=True) for x, y in zip(one, two, strict=True)
    )


def counted(stats):
    return stats["passage_hits"], stats["passage_misses"]


# -- the device's tier -------------------------------------------------------------------------------------------------


def test_the_oldest_go_first_and_the_bound_holds():
    size = values(10).nbytes
    assert size == 2 * 2 * 2 * 10 * 4 * 4
    cache = PassageCache(3 * (size + ENTRY_BYTES), CPU)
    for i in range(5):
        cache.put(b"%d" % i, values(10, i))
        assert cache.stats()["passage_bytes"] <= 3 * (size + ENTRY_BYTES)
        cache.get(b"0")  # which makes it the newest
    assert [cache.get(b"%d" % i) is not None for i in range(5)] == [True, False, False, True, True]
    assert counted(cache.stats()) == (5 + 3, 2)
    cache.put(b"huge", values(1000))
    assert cache.get(b"huge") is None
    assert cache.get(b"4") is not None  # nothing had to go for what does not fit
    cache.clear()
    assert cache.stats()["passage_bytes"] == 0


def test_what_leaves_the_device_comes_back_from_the_second_tier():
    size = values(10).nbytes + ENTRY_BYTES
    behind = HostMemory(2 * size)
    cache = PassageCache(size, CPU, behind)
    entries = [values(10, i) for i in range(4)]
    for i, entry in enumerate(entries):
        cache.put(b"%d" % i, entry)
    assert cache.stats()["passage_bytes_behind"] == behind.size == 2 * size
    assert cache.get(b"0") is None  # was the oldest of the second tier
    assert equal(cache.get(b"1"), entries[1])
    assert equal(cache.get(b"3"), entries[3])  # had to make room for it, and came back
    assert cache.stats()["passage_bytes"] <= size
    cache.put(b"large", values(15))  # more than the device's tier holds, and less than the other
    assert equal(cache.get(b"large"), values(15))
    exact = PassageCache(size - 1, CPU, HostMemory(size))  # the entry fits, its place in the table does not
    exact.put(b"0", entries[0])
    assert equal(exact.get(b"0"), entries[0])


def test_the_bound_holds_while_ten_thousand_passages_stream_through(tmp_path):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", num_hidden_layers=1, head_dim=8, num_attention_heads=2)
    count, limit = 10_000, 400 * (2 * 2 * 8 * 4) + 20 * ENTRY_BYTES  # keys and values, 2 heads, 8 dimensions, float32
    texts = [f"{i:05} {tiny.text(2, i)}" for i in range(count)]
    seen: list[int] = []
    done = threading.Event()

    def watch(rag):
        while not done.is_set():
            seen.append(rag.stats()["passage_bytes"])
            time.sleep(0.001)

    with load(folder, passage_bytes=limit) as rag:
        watcher = threading.Thread(target=watch, args=(rag,))
        watcher.start()
        try:
            assert rag.warm(texts) == count
        finally:
            done.set()
            watcher.join()
        stats = rag.stats()
        assert counted(stats) == (0, count)
        assert len(seen) > 100
        assert max(seen) <= limit
        assert stats["passage_bytes"] > 0.8 * limit
        rag.warm(texts[:3])
        rag.rank(QUESTION, texts[:3])
        assert rag.stats()["passage_hits"] == 3


@pytest.mark.parametrize("second", ["none", "host", "disk"])
def test_entries_that_go_while_a_request_reads_them(folder, expected, passage_bytes, tmp_path, second):
    """Room for one passage or two, batches of several, and other requests in between."""
    tiers = {"none": {}, "host": {"host_bytes": passage_bytes}, "disk": {"passage_dir": tmp_path}}
    with load(folder, passage_bytes=int(1.2 * passage_bytes), batch_tokens=1200, **tiers[second]) as rag:
        for _ in range(3):
            assert rag.reranker.logits(QUESTION, PASSAGES * 3) == pytest.approx(expected * 3, abs=1e-4)
            assert rag.stats()["passage_bytes"] <= 1.2 * passage_bytes
        results: list[object] = []

        def ask():
            results.append(rag.reranker.logits(QUESTION, PASSAGES[::-1]))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 6
        assert all(given == pytest.approx(expected[::-1], abs=1e-4) for given in results)


def test_nothing_is_kept_where_no_bytes_are_given(folder, expected):
    with load(folder, passage_bytes=0) as rag:
        for _ in range(2):
            assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
        assert rag.stats()["passage_bytes"] == 0
        assert rag.stats()["passage_hits"] == 0
        assert rag.warm(PASSAGES) == len(PASSAGES)


# -- warm --------------------------------------------------------------------------------------------------------------


def test_warm_fills_it_and_later_questions_cost_their_own_tokens(folder, expected, capsys):
    with load(folder) as rag:
        assert rag.warm([]) == 0
        assert rag.warm([*PASSAGES, tamis.Passage(PASSAGES[0], id="again")]) == len(PASSAGES) + 1
        before = rag.stats()
        assert rag.warm(PASSAGES) == len(PASSAGES)  # again, and nothing is run
        assert rag.stats()["tokens_computed"] == before["tokens_computed"]
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
        after = rag.stats()
        asked = len(rag._scorer.prompts.asking(QUESTION, "short", ()))
        assert after["tokens_computed"] - before["tokens_computed"] == len(PASSAGES) * asked
        assert capsys.readouterr().err == ""  # no bar unless asked for
        with pytest.raises(tamis.InvalidInput, match="Passage 1 is a int"):
            rag.warm(["a", 1])
        with pytest.raises(tamis.InvalidInput, match="timeout"):
            rag.warm(["a"], timeout=0)


def test_warm_windows_and_cuts_as_ranking_does(tmp_path):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM")
    long = [tiny.text(300, 1), tiny.text(5, 2)]
    for policy in ("truncate", "max_window"):
        with load(folder, max_length=600, long_documents=policy) as rag:
            assert rag.warm(long) == 2
            given = rag.reranker.logits(QUESTION, long)
            assert rag.reranker.logits(QUESTION, long) == pytest.approx(given, abs=1e-4)
    with load(folder, max_length=600, long_documents="error") as rag, pytest.raises(tamis.InputTooLong):
        rag.warm(long)


def test_windows_of_texts_that_tokenise_unevenly_keep_the_wording(tmp_path):
    """A cut inside a character, or a word, makes more tokens of it; what follows the passage is there all the same."""
    folder = tiny_lm.save(tmp_path, "qwen3", "ForCausalLM")
    draw = random.Random(0)
    texts = ["".join(draw.choice(letters) for _ in range(700)) for letters in ("𓀀𓁀😀 ", "龍虎豹", "äöüß€ ", "zip tar ")]
    for policy in ("truncate", "max_window"):
        with load(folder, max_length=400, long_documents=policy) as rag:
            scorer = rag._scorer
            end = scorer.prompts.ranked(["a"])[0][-1:]
            pieces, cut = scorer._fitted(texts, room := scorer._room(60), 0)
            assert cut.all() == (policy == "truncate")
            for number, ids, span in pieces:
                assert len(ids) <= room
                assert ids[-1:].tolist() == end.tolist()
                if span is not None:
                    whole = scorer.prompts.ranked([texts[number][slice(*span)]])[0]
                    assert ids.tolist() == whole.tolist()
            assert sorted({number for number, _, _ in pieces}) == [0, 1, 2, 3]


def test_a_passage_is_tokenised_once_for_all_its_windows(tmp_path, monkeypatch):
    folder = tiny_lm.save(tmp_path, "qwen3", "ForCausalLM")
    with load(folder, max_length=400, long_documents="max_window") as rag:
        calls = []
        given = TextTokenizer.offsets
        monkeypatch.setattr(TextTokenizer, "offsets", lambda self, text: calls.append(len(text)) or given(self, text))
        pieces, _ = rag._scorer._fitted([tiny.text(2000)], 300, 0)
    assert len(pieces) > 10
    assert len(calls) == 1


# -- nobody finds what is not his --------------------------------------------------------------------------------------


def test_a_changed_passage_or_prompt_hits_nothing(folder, expected):
    with load(folder, style="chat") as rag:
        rag.warm(PASSAGES)
        changed = [text + "." for text in PASSAGES]
        rag.rank(QUESTION, changed)
        assert counted(rag.stats()) == (0, 2 * len(PASSAGES))
        plain = Plain(folder)
        assert rag.reranker.logits(QUESTION, changed) == pytest.approx(
            plain.relevances("chat", QUESTION, changed), abs=1e-4
        )
    opening = Wording(opening="You rank.\n\n")
    label = Wording(ranked="Text: {passage}\n\n")
    with load(folder, style="plain") as one, load(folder, wording=opening) as two, load(folder, wording=label) as three:
        given = []
        for rag in (one, two, three):
            rag.warm(PASSAGES)
            assert rag.stats()["passage_hits"] == 0
            given.append(rag.reranker.logits(QUESTION, PASSAGES))
        assert np.abs(np.diff(given, axis=0)).max(1).min() > 0.01


def test_the_same_folder_for_other_models_dtypes_and_adapters(folder, tmp_path):
    peft = pytest.importorskip("peft")
    other = tiny_lm.save(tmp_path / "other", "llama", "ForCausalLM", seed=1, bos=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    ways = [
        {"model": folder},
        {"model": folder, "dtype": "bfloat16"},
        {"model": folder, "adapter": tmp_path / "adapter"},
        {"model": folder, "num_layers": 2},
        {"model": folder, "style": "plain"},
        {"model": folder, "wording": Wording(opening="You rank.\n\n")},
        {"model": other},
    ]
    cold = []
    for way in ways:
        with tamis.load_rankrag(**{"dtype": "float32", **way}) as rag:
            cold.append(rag.reranker.logits(QUESTION, PASSAGES))
    for again in (False, True):
        for way, logits in zip(ways, cold, strict=True):
            with tamis.load_rankrag(**{"dtype": "float32", **way}, passage_dir=tmp_path / "kept") as rag:
                assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(
                    logits, abs=0.1 if "dtype" in way else 1e-4
                )
                assert rag.stats()["passage_hits"] == (len(PASSAGES) if again else 0)


# -- files -------------------------------------------------------------------------------------------------------------


def files(folder):
    return sorted(Path(folder).rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_brings_back_what_was_put(tmp_path, dtype):
    disk = Disk(tmp_path, 10**6, "model")
    entry = values(7, dtype=dtype)
    disk.put(b"key", entry)
    for one in (disk, Disk(tmp_path, 10**6, "model")):  # also for the next process
        found = one.get(b"key")
        assert equal(found, entry)
        assert len(found) == 7
        assert found.layers[0][0].dtype == dtype
        assert one.size == sum(path.stat().st_size for path in files(tmp_path))
    assert Disk(tmp_path, 10**6, "another").get(b"key") is None
    assert disk.get(b"other") is None


def test_the_bound_of_the_files(tmp_path):
    size = 0
    for i in range(12):
        disk = Disk(tmp_path, 6000, "model")
        for j in range(4):
            disk.put(b"%d %d" % (i, j), values(10, j))
            size = sum(path.stat().st_size for path in files(tmp_path))
            assert disk.size == size <= 6000
    assert size > 3000
    assert disk.get(b"11 3") is not None
    disk.put(b"huge", values(1000))
    assert disk.get(b"huge") is None
    assert disk.get(b"11 3") is not None
    assert Disk(tmp_path, 0, "model").size == 0
    assert not files(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty", "gone"])
def test_a_damaged_file_is_run_again(tmp_path, folder, expected, damage):
    options = {"passage_dir": tmp_path, "passage_bytes": 0}
    with load(folder, **options) as rag:
        rag.warm(PASSAGES)
    assert len(files(tmp_path)) == len(PASSAGES)
    path = max(files(tmp_path), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-9])
    elif damage == "changed":  # one bit, of a number's exponent
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 0x40]))
    elif damage == "other":
        path.write_bytes(min(files(tmp_path), key=lambda path: path.stat().st_size).read_bytes()[:-1] + b"\0")
    elif damage == "empty":
        path.write_bytes(b"")
    with load(folder, **options) as rag:
        if damage == "gone":
            path.unlink()  # by another process, meanwhile
        for hits in (len(PASSAGES) - 1, 2 * len(PASSAGES) - 1):
            assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
            assert rag.stats()["passage_hits"] == hits
    assert path.read_bytes() == data


def test_a_second_load_finds_what_the_first_has_kept(tmp_path, folder, expected):
    with load(folder, passage_dir=tmp_path) as rag:
        rag.warm(PASSAGES)
        assert not files(tmp_path)  # everything has room on the device, and is written at the end
    assert len(files(tmp_path)) == len(PASSAGES)
    with load(folder, passage_dir=tmp_path) as rag:
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
        assert counted(rag.stats()) == (len(PASSAGES), 0)
        assert rag.stats()["passage_bytes_behind"] == sum(path.stat().st_size for path in files(tmp_path))


def test_a_disk_that_cannot_be_written_to(tmp_path, caplog):
    disk = Disk(tmp_path / "kept", 10**6, "model")
    [inner] = (tmp_path / "kept").iterdir()
    inner.rmdir()
    with caplog.at_level(logging.WARNING):
        disk.put(b"key", values(3))
    assert "could not be kept" in caplog.text
    assert disk.get(b"key") is None
    assert disk.size == 0


def test_two_processes_write_the_same(tmp_path):
    ways = [Disk(tmp_path, 10**6, "model") for _ in range(2)]
    entry = values(200)

    def write(disk):
        for _ in range(20):
            disk.put(b"key", entry)
            disk._sizes.clear()  # as if it had not been there

    threads = [threading.Thread(target=write, args=(disk,)) for disk in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal(Disk(tmp_path, 10**6, "model").get(b"key"), entry)
    assert not list(tmp_path.rglob("*.part"))


# -- a text that grows -------------------------------------------------------------------------------------------------


def test_a_home_grows_and_keeps_what_it_had():
    torch.manual_seed(0)
    beginnings = (values(5, 1, layers=1), values(3, 2, layers=1))
    home = Home(beginnings, room=2)
    expected = [torch.cat([one.layers[0][i] for one in beginnings], dim=1) for i in range(2)]
    for length in (2, 1, 1, ROOM, 3 * ROOM, 1):
        new = (torch.randn(2, length, 4), torch.randn(2, length, 4))
        for _ in range(2):  # a batch that failed is run again
            given = home.put(0, *new)
            assert len(home) == expected[0].shape[1]
        expected = [torch.cat(pair, dim=1) for pair in zip(expected, new, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
        home.moved_in(length)
    assert len(home) == 8 + 5 + 4 * ROOM
    assert beginnings[0].layers[0][0].shape == (2, 5, 4)

"""The device thread: batches, faults, memory, closing."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tamis
from fakes import FakeRunner, sequence
from tamis.engine.engine import Engine
from tamis.engine.sequences import cut
from tamis.engine.shared import Shared


@given(st.lists(st.integers(1, 50)), st.integers(1, 100), st.booleans())
def test_cut_covers_everything_once_within_the_budget(lengths, budget, padded):
    batches = cut([sequence(length) for length in lengths], budget, padded=padded)
    assert [i for batch in batches for i in range(len(lengths))[batch]] == list(range(len(lengths)))
    for batch in batches:
        part = lengths[batch]
        cost = max(part) * len(part) if padded else sum(part)
        assert cost <= budget or len(part) == 1


def test_rows_come_back_in_order_and_batches_are_even():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=64)
    lengths = [3, 50, 7, 30, 1, 64, 90, 12]
    rows = engine.submit([sequence(length) for length in lengths]).result(5)
    assert [row[0] for row in rows] == lengths
    assert runner.batches == [[90], [64], [50], [30, 12, 7, 3, 1]]
    assert len(runner.threads) == 1
    stats = engine.stats()
    assert (stats["sequences"], stats["tokens"], stats["batches"]) == (8, sum(lengths), 4)
    engine.close()
    assert runner.freed


def test_requests_that_gather_share_batches():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=100)
    runner.go.clear()
    first = engine.submit([sequence(5)])
    assert runner.started.wait(5)
    rest = [engine.submit([sequence(10), sequence(10)]) for _ in range(5)]
    runner.go.set()
    assert not wait([first, *rest], timeout=5).not_done
    assert runner.batches == [[5], [10] * 10]
    engine.close()


def test_out_of_memory_splits_and_is_remembered():
    runner = FakeRunner(fits=40)
    engine = Engine([runner], batch_tokens=1000)
    lengths = list(range(1, 31))
    assert np.ravel(engine.submit([sequence(length) for length in lengths]).result(5)).tolist() == lengths
    assert max(map(sum, runner.batches)) <= 40
    assert engine.stats()["batch_tokens"] <= 40
    before = engine.stats()["out_of_memory"]
    assert before >= 1
    engine.submit([sequence(length) for length in lengths]).result(5)
    assert engine.stats()["out_of_memory"] == before
    engine.close()


def test_one_sequence_that_does_not_fit_is_an_error_of_its_own():
    engine = Engine([FakeRunner(fits=40)], batch_tokens=100)
    bad, good = engine.submit([sequence(41)]), engine.submit([sequence(8)])
    with pytest.raises(tamis.OutOfMemory, match="41 tokens"):
        bad.result(5)
    assert good.result(5)[0][0] == 8
    engine.close()


def test_a_poisoned_sequence_fails_alone():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=1000)
    runner.go.clear()
    engine.submit([sequence(2)])
    assert runner.started.wait(5)  # the others gather behind it
    good = [engine.submit([sequence(length), sequence(length + 1)]) for length in range(3, 40, 2)]
    bad = engine.submit([sequence(50), sequence(51, first=-1)])
    runner.go.set()
    with pytest.raises(RuntimeError, match="poisoned"):
        bad.result(5)
    assert [[row.tolist() for row in future.result(5)] for future in good] == [[[n], [n + 1]] for n in range(3, 40, 2)]
    assert engine.stats()["splits"] > 0
    assert engine.submit([sequence(4)]).result(5)[0][0] == 4
    engine.close()


def test_what_never_ran_alone_is_not_to_blame():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=10_000)
    runner.go.clear()
    engine.submit([sequence(2)])
    assert runner.started.wait(5)
    good = [engine.submit([sequence(length)]) for length in range(3, 40, 2)]
    bad = engine.submit([sequence(length, first=-1) for length in range(4, 41, 2)])  # between the good ones, by length
    runner.go.set()
    with pytest.raises(RuntimeError, match="poisoned"):
        bad.result(5)
    assert [future.result(5)[0].tolist() for future in good] == [[length] for length in range(3, 40, 2)]
    engine.close()


def test_another_runtime_error_is_not_taken_for_out_of_memory():
    engine = Engine([FakeRunner()], batch_tokens=1000)
    with pytest.raises(RuntimeError, match="poisoned"):
        engine.submit([sequence(4, first=-1)]).result(5)
    assert engine.stats()["out_of_memory"] == 0
    assert engine.stats()["batch_tokens"] == 1000
    engine.close()


class Tight(FakeRunner):
    """Raises for a poisoned batch first, and what is left of it may still not fit."""

    def run(self, batch):
        if any(tokens.ids[0] == -1 for tokens in batch):
            raise RuntimeError("poisoned")
        return super().run(batch)


def test_out_of_memory_while_a_poisoned_sequence_is_sought():
    runner = Tight(fits=100)
    engine = Engine([runner], batch_tokens=1000)
    runner.go.clear()
    engine.submit([sequence(2)])
    assert runner.started.wait(5)
    good = [engine.submit([sequence(length)]) for length in range(3, 40)]
    bad = engine.submit([sequence(12, first=-1)])
    runner.go.set()
    with pytest.raises(RuntimeError, match="poisoned"):
        bad.result(5)
    assert [future.result(5)[0].tolist() for future in good] == [[length] for length in range(3, 40)]
    assert engine.stats()["out_of_memory"] >= 1
    assert engine.stats()["batch_tokens"] < 1000
    assert max(map(sum, runner.batches)) <= 100
    engine.close()


def test_a_sequence_that_alone_does_not_fit_beside_a_poisoned_one():
    runner = Tight(fits=40)
    engine = Engine([runner], batch_tokens=1000)
    runner.go.clear()
    engine.submit([sequence(2)])
    assert runner.started.wait(5)
    large, bad = engine.submit([sequence(41)]), engine.submit([sequence(8, first=-1)])
    runner.go.set()
    with pytest.raises(tamis.OutOfMemory, match="41 tokens"):
        large.result(5)
    with pytest.raises(RuntimeError, match="poisoned"):
        bad.result(5)
    assert engine.stats()["out_of_memory"] == 1
    assert engine.submit([sequence(30)]).result(5)[0][0] == 30
    engine.close()


def test_a_model_that_always_raises_is_not_run_for_ever():
    class Broken(FakeRunner):
        def run(self, batch):
            super().run(batch)
            raise RuntimeError("broken")

    runner = Broken()
    engine = Engine([runner], batch_tokens=10_000)
    runner.go.clear()
    futures = [engine.submit([sequence(5)])]
    assert runner.started.wait(5)
    futures += [engine.submit([sequence(5)]) for _ in range(99)]
    runner.go.set()
    for future in futures:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(5)
    assert len(runner.batches) < 50
    engine.close()


def test_a_withdrawn_request_is_not_run():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=100)
    runner.go.clear()
    running = engine.submit([sequence(5)])
    assert runner.started.wait(5)
    gone, stays = engine.submit([sequence(6)]), engine.submit([sequence(7)])
    gone.cancel()
    runner.go.set()
    assert stays.result(5)[0][0] == 7
    assert running.result(5)[0][0] == 5
    assert runner.batches == [[5], [7]]
    with pytest.raises(CancelledError):
        gone.result(0)
    engine.close()


def test_an_idle_engine_keeps_nothing_of_a_withdrawn_request():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=8)
    runner.go.clear()
    held = engine.submit([sequence(5)])
    assert runner.started.wait(5)
    gone = sequence(7)
    engine.submit([gone]).cancel()
    runner.go.set()
    held.result(5)
    gc.collect()
    assert not gc.get_referrers(gone)  # a running frame is not one
    engine.close()


def test_close_rejects_whoever_waits():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=10)
    runner.go.clear()
    running = engine.submit([sequence(5), sequence(9)])
    assert runner.started.wait(5)
    waiting = [engine.submit([sequence(5)]) for _ in range(3)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    runner.go.set()
    closing.join(5)
    assert not closing.is_alive()
    for future in [running, *waiting]:
        with pytest.raises(tamis.Closed):
            future.result(5)
    with pytest.raises(tamis.Closed):
        engine.submit([sequence(1)])
    engine.close()
    assert runner.freed


def test_no_sequences_no_batch():
    engine = Engine([FakeRunner()], batch_tokens=10)
    assert engine.submit([]).result(1) == []
    engine.close()


def test_a_real_model_out_of_memory_gives_the_same_logits(classifier):
    """The runner of a real model, made to fail as a GPU does above a number of tokens."""
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        passages = ["zip " * n for n in range(1, 40)]
        expected = reranker.logits("zip", passages)
        runner = reranker._scorer._lease.loaded.engine._devices[0].runner
        run, seen = runner.run, []

        def tight(batch):
            tokens = sum(map(len, batch))
            if tokens > 120:
                raise torch.OutOfMemoryError
            seen.append(tokens)
            return run(batch)

        runner.run = tight
        np.testing.assert_allclose(reranker.logits("zip", passages), expected, atol=1e-5)
        assert reranker.stats()["out_of_memory"] > 0
        assert max(seen) <= 120


def test_shared_values_are_made_once_and_counted():
    closed = []
    shared = Shared(closed.append)
    made = []
    gate = threading.Barrier(10)

    def make():
        made.append(1)
        return "value"

    def take():
        gate.wait(5)
        assert shared.take("key", make) == "value"

    threads = [threading.Thread(target=take) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(made) == 1
    for _ in range(9):
        shared.give_back("key")
    assert not closed
    shared.give_back("key")
    assert closed == ["value"]


def test_shared_failure_is_not_remembered():
    shared = Shared(lambda _: None)

    def fail():
        raise OSError("half a file")

    for _ in range(2):
        with pytest.raises(OSError, match="half"):
            shared.take("key", fail)
    assert shared.take("key", lambda: "mended") == "mended"


def test_dropped_values_stay_for_the_next_and_the_oldest_goes():
    closed = []
    shared = Shared(closed.append, idle=1)
    for key in "ab":
        shared.take(key, lambda key=key: key)
        shared.drop(key)
    shared.take("c", lambda: "c")
    assert closed == ["a"]
    assert shared.take("b", lambda: "made again") == "b"
    shared.give_back("b")
    assert closed == ["a", "b"]


def test_two_loads_share_one_engine(classifier):
    folder = classifier("bert")
    first, second = tamis.load(folder, dtype="float32"), tamis.load(str(folder), dtype="float32", max_length=64)
    assert first._scorer._lease.loaded is second._scorer._lease.loaded
    other = tamis.load(folder, dtype="bfloat16")
    assert other._scorer._lease.loaded is not first._scorer._lease.loaded
    first.close()
    assert second.score("a", ["b"])
    second.close()
    other.close()


def test_a_forgotten_reranker_leaves_the_model_for_the_next(classifier):
    folder = classifier("bert", num_hidden_layers=2)
    reranker = tamis.load(folder, dtype="float32")
    loaded = reranker._scorer._lease.loaded
    del reranker
    gc.collect()
    again = tamis.load(folder, dtype="float32")
    assert again._scorer._lease.loaded is loaded
    again.close()


def test_ten_threads_load_once(classifier):
    folder = classifier("bert", num_hidden_layers=1)
    found, gate = [], threading.Barrier(10)

    def load():
        gate.wait(10)
        found.append(tamis.load(folder, dtype="float32"))

    threads = [threading.Thread(target=load) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({id(reranker._scorer._lease.loaded) for reranker in found}) == 1
    assert len(found) == 10
    for reranker in found:
        reranker.close()

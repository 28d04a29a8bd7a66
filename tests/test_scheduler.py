"""The scheduler's promises, on random arrivals."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.engine.scheduler import Job, Scheduler, Work
from tamis.tenants import LEAST

BUDGET = 100
COSTS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def scheduler():
    return Scheduler(quantum=16, fresh_tokens=2 * BUDGET)


def add(queue, costs, tenant="", weight=1.0, job=None):
    job = job or Job(tenant, weight)
    works = [Work((job, i), cost) for i, cost in enumerate(costs)]
    queue.add(job, works)
    return job, works


@given(st.lists(st.tuples(st.sampled_from("abc"), COSTS), max_size=12), st.integers(1, 150))
def test_everything_runs_once_within_the_budget(jobs, budget):
    queue = scheduler()
    works = [work for tenant, costs in jobs for work in add(queue, costs, tenant)[1]]
    taken = []
    while queue:
        batch = queue.take(budget)
        assert batch
        assert sum(work.cost for work in batch) <= budget or len(batch) == 1
        taken += batch
    assert sorted(map(id, taken)) == sorted(map(id, works))
    assert queue.tokens == queue.count == 0
    assert queue.take(budget) == []


@given(st.lists(COSTS, min_size=1, max_size=10))
def test_fresh_jobs_are_served_in_their_order(jobs):
    small = [costs[:3] for costs in jobs]  # none of them ever gets old
    queue = scheduler()
    made = [add(queue, costs)[0] for costs in small]
    taken = []
    while queue:
        taken += queue.take(BUDGET)
    assert [work.payload[0] for work in taken] == [job for job, costs in zip(made, small, strict=True) for _ in costs]


@given(COSTS)
def test_a_job_runs_longest_first(costs):
    queue = scheduler()
    add(queue, costs)
    taken = []
    while queue:
        taken += queue.take(BUDGET)
    assert [work.cost for work in taken] == sorted(costs, reverse=True)


def test_a_small_job_overtakes_a_huge_one_within_two_batches():
    queue = scheduler()
    huge, _ = add(queue, [10] * 5000)
    for _ in range(5):
        queue.take(BUDGET)
    _, small = add(queue, [10] * 10)
    batches = [queue.take(BUDGET) for _ in range(2)]
    assert all(work in batches[0] + batches[1] for work in small)
    assert huge.todo


@settings(max_examples=30)
@given(st.integers(0, 40))
def test_a_huge_job_is_not_starved_by_small_ones(seed):
    queue = scheduler()
    huge, works = add(queue, [10] * 300)
    done = 0
    for turn in range(400):
        add(queue, [7 + (turn * 13 + seed) % 5] * 20)  # more than the device can do
        done += sum(work.payload[0] is huge for work in queue.take(BUDGET))
        if done == len(works):
            break
    assert done == len(works)
    assert turn < 200


@given(st.integers(1, 5), st.integers(1, 5))
def test_tenants_share_by_weight(first, second):
    queue = scheduler()
    add(queue, [10] * 20_000, "a", float(first))
    add(queue, [10] * 20_000, "b", float(second))
    tokens = {"a": 0, "b": 0}
    for _ in range(300):
        for work in queue.take(BUDGET):
            tokens[work.payload[0].tenant] += work.cost
    assert abs(tokens["a"] / sum(tokens.values()) - first / (first + second)) < 0.05


def test_the_least_weight_is_served_and_quickly():
    queue = scheduler()
    add(queue, [60] * 3, "least", LEAST)
    assert [len(queue.take(BUDGET)) for _ in range(3)] == [1, 1, 1]


def test_a_tenant_that_was_idle_has_saved_nothing():
    queue = scheduler()
    add(queue, [10], "idle")
    while queue:
        queue.take(BUDGET)
    add(queue, [10] * 1000, "busy")
    for _ in range(20):
        queue.take(BUDGET)
    add(queue, [10] * 1000, "idle")
    taken = [work.payload[0].tenant for _ in range(10) for work in queue.take(BUDGET)]
    assert 0.4 < taken.count("idle") / len(taken) < 0.6


def test_dropped_work_leaves_the_queue():
    queue = scheduler()
    _, works = add(queue, [10] * 100)
    for work in works[:99]:
        queue.drop(work)
        queue.drop(work)
    assert (queue.tokens, queue.count) == (10, 1)
    assert queue.take(BUDGET) == works[99:]
    assert not queue


def test_shared_work_runs_once_with_whoever_comes_first():
    queue = scheduler()
    _, works = add(queue, [10] * 1000)
    for _ in range(5):
        queue.take(BUDGET)
    small = Job("")
    last = works[-1]
    queue.share(small, last)
    assert last in queue.take(BUDGET)
    taken = []
    while queue:
        taken += queue.take(BUDGET)
    assert last not in taken
    assert len(taken) == 1000 - 6 * 10

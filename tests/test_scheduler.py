"""The scheduler's promises, on random arrivals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.engine.scheduler import Job, Scheduler, Work
from tamis.errors import InvalidInput
from tamis.tenants import LEAST, MOST, Tenant

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
    for tenant, weight in (("a", first), ("b", second)):
        add(queue, [10] * 3_000, tenant, float(weight))  # more than is taken of both together
    tokens = {"a": 0, "b": 0}
    for _ in range(300):
        for work in queue.take(BUDGET):
            tokens[work.payload[0].tenant] += work.cost
    assert abs(tokens["a"] / sum(tokens.values()) - first / (first + second)) < 0.05


def test_the_least_weight_is_served_and_quickly():
    queue = scheduler()
    add(queue, [60] * 3, "least", LEAST)
    assert [len(queue.take(BUDGET)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("weight", [LEAST / 2, 0, -1, 2 * MOST, float("nan"), True, "2"])
def test_weights_out_of_range_are_refused(weight):
    with pytest.raises(InvalidInput, match=f"weight={weight!r}; pass a number from 0.001 to 1000"):
        Tenant("a", weight)


def test_weights_at_the_ends_of_the_range():
    assert [Tenant("a", weight).weight for weight in (LEAST, 1, MOST)] == [0.001, 1, 1000]


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


# -- the rules to the token -------------------------------------------------------------------------------------------


def named(queue, room, takes):
    """The jobs whose work is taken, a letter each, in the order in which it is."""
    return "".join(work.payload[0] for _ in range(takes) for work in queue.take(room))


def put(queue, letter, costs, *, job=None, **about):
    """Work under a letter, for a new job or a given one."""
    job = job or Job(**about)
    queue.add(job, [Work((letter, place), cost) for place, cost in enumerate(costs)])
    return job


def test_a_visit_brings_tokens_by_weight_and_what_is_left_is_kept():
    queue = Scheduler(quantum=16, fresh_tokens=10_000)
    put(queue, "a", [16] * 4, tenant="a")
    put(queue, "b", [8] * 8, tenant="b")
    put(queue, "c", [12] * 10, tenant="c", weight=2.0)
    # c gains 32: two of 12, and 8 are left; three of the 40 then, and 4 are left; three of 36.
    assert named(queue, 1, 22) == "abbcc" + "abbccc" + "abbccc" + "abbcc"
    assert not queue


def test_a_visit_goes_on_in_the_next_batch():
    queue = Scheduler(quantum=40, fresh_tokens=10_000)
    for letter in "ab":
        put(queue, letter, [10] * 8, tenant=letter)
    assert [named(queue, 60, 1) for _ in range(3)] == ["aaaabb", "bbaaaa", "bbbb"]


def test_a_tenant_that_ran_dry_starts_anew():
    queue = Scheduler(quantum=40, fresh_tokens=10_000)
    put(queue, "a", [10], tenant="a")
    put(queue, "b", [10] * 9, tenant="b")
    assert named(queue, 10, 2) == "ab"
    put(queue, "a", [10] * 9, tenant="a")  # 30 were left of its visit, which is over
    assert named(queue, 10, 17) == "bbb" + "aaaa" + "bbbb" + "aaaa" + "b" + "a"


def test_the_latest_request_says_what_a_tenant_weighs():
    queue = Scheduler(quantum=10, fresh_tokens=10_000)
    put(queue, "a", [10] * 4, tenant="a")
    put(queue, "b", [10] * 4, tenant="b")
    put(queue, "A", [10] * 2, tenant="a", weight=2.0)
    assert named(queue, 10, 10) == "aab" + "aab" + "AAb" + "b"


def test_a_batch_is_filled_to_the_token():
    queue = scheduler()
    put(queue, "a", [60, 40, 30])
    assert (queue.tokens, queue.count) == (130, 3)
    assert named(queue, 100, 1) == "aa"
    assert (queue.tokens, queue.count) == (30, 1)
    assert named(queue, 29, 1) == "a"  # larger than the room, and alone


def test_old_jobs_have_a_quarter_while_fresh_ones_wait():
    queue = Scheduler(quantum=16, fresh_tokens=20)
    put(queue, "a", [10] * 20)
    assert named(queue, 10, 10) == "a" * 10
    for letter in "bcde":
        put(queue, letter, [10] * 2)
    assert named(queue, 10, 14) == "bbc" + "a" + "cdd" + "a" + "ee" + "aaaa"


def test_old_jobs_are_paid_for_to_the_token():
    queue = Scheduler(quantum=16, fresh_tokens=30)
    put(queue, "a", [10] * 9)
    assert named(queue, 10, 5) == "aaaaa"  # alone, which owes the others nothing
    put(queue, "b", [29, 1])
    assert [named(queue, 10, 1) for _ in range(4)] == ["b", "b", "a", "a"]  # 29 do not pay for 10, 30 do


def test_a_job_is_old_when_it_has_had_its_tokens():
    queue = Scheduler(quantum=16, fresh_tokens=20)
    put(queue, "a", [10] * 5)
    put(queue, "b", [10] * 5)
    # Both are old after two each, a first; the second a comes when three fresh ones have paid for it.
    assert named(queue, 10, 10) == "aab" + "a" + "b" + "aa" + "bbb"


def test_a_job_that_gets_more_stands_in_line_once():
    queue = Scheduler(quantum=16, fresh_tokens=20)
    job = put(queue, "a", [10] * 2)
    put(queue, "a", [10] * 2, job=job)
    put(queue, "b", [10] * 2)
    assert named(queue, 10, 6) == "aab" + "a" + "b" + "a"


def test_the_tenant_without_a_name_is_one_like_the_others():
    queue = Scheduler(quantum=10, fresh_tokens=10_000)
    put(queue, "a", [10] * 2)
    put(queue, "b", [10] * 2, tenant="b")
    assert named(queue, 10, 4) == "abab"


def test_a_job_that_comes_back_is_as_old_as_it_was():
    queue = Scheduler(quantum=16, fresh_tokens=20)
    job = put(queue, "a", [10] * 2)
    assert named(queue, 10, 2) == "aa"
    put(queue, "a", [10], job=job)
    put(queue, "b", [10])
    assert named(queue, 10, 2) == "ba"


def test_a_job_whose_work_is_gone_can_have_more():
    queue = scheduler()
    job, works = add(queue, [10, 10])
    for work in works:
        queue.drop(work)
    assert queue.take(BUDGET) == []
    _, more = add(queue, [10], job=job)
    assert queue.take(BUDGET) == more


@pytest.mark.parametrize("served", [0, 3 * BUDGET])
def test_nothing_of_dropped_work_stays_in_an_idle_queue(served):
    queue = scheduler()
    job, (work,) = add(queue, [10], "a", job=Job("a", served=served))
    _, (other,) = add(queue, [10], "b")
    queue.share(job, other)
    queue.drop(work)
    assert list(queue._tenants) == ["a", "b"]
    queue.drop(other)
    assert not queue._tenants
    assert not job.todo
    add(queue, [10], "c")
    add(queue, [30], job=job)
    assert [work.cost for work in queue.take(BUDGET)] == [10, 30]


def test_no_work_leaves_no_tenant_behind():
    queue = scheduler()
    add(queue, [], "empty")
    add(queue, [10], "busy")
    assert list(queue._tenants) == ["busy"]
    assert len(queue.take(BUDGET)) == 1
    assert not queue._tenants  # a service has one for each of its users

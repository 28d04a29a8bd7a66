"""Which sequences run next. Pure bookkeeping: no thread, no clock, no model; the engine holds its lock around it.

Three rules, from the outside in:

- *Tenants* share the device by deficit round robin (Shreedhar and Varghese 1995): each visit of a tenant adds tokens
  to what it may take, in proportion to its weight, and what it does not use it keeps for its next visit while it has
  work. One that has nothing waiting keeps nothing.
- Inside a tenant, *jobs* are served oldest first while they are fresh. A job that has had `fresh_tokens` of the device
  goes to the back and shares a quarter of the tenant's tokens with the other old ones, oldest first, while fresh work
  waits; all of them when none does. So a huge job delays a small one by a batch or two, and is itself never starved.
- Inside a job, the longest sequence comes first, so that batches are even.

One piece of work may stand in several jobs, where several asked for the same sequence: whichever comes first takes it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

OLD_SHARE = 3  # fresh tokens for each token of old jobs, while both wait


@dataclass(slots=True, eq=False)
class Work(Generic[T]):
    """One sequence to run.

    Attributes:
        payload: What the engine runs and delivers.
        cost: Its tokens.
        waiting: Whether it is still to be run; the scheduler forgets it otherwise.
    """

    payload: T
    cost: int
    waiting: bool = True


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """The work of one request.

    Attributes:
        tenant: Whose it is.
        weight: The tenant's share, as this request states it.
        served: Tokens that it has had.
        in_line: Whether it stands in one of its tenant's lines.
    """

    tenant: str = ""
    weight: float = 1.0
    served: int = 0
    in_line: bool = False
    todo: deque[Work[T]] = field(default_factory=deque)

    def head(self) -> Work[T] | None:
        """The next work that still waits."""
        while self.todo and not self.todo[0].waiting:
            self.todo.popleft()
        return self.todo[0] if self.todo else None


@dataclass(slots=True, eq=False)
class _Tenant(Generic[T]):
    weight: float = 1.0
    credit: float = 0.0  # tokens that it may take
    owed: int = 0  # tokens of fresh work since old work last had its share
    fresh: deque[Job[T]] = field(default_factory=deque)
    old: deque[Job[T]] = field(default_factory=deque)

    def next(self) -> Job[T] | None:
        """The job whose turn it is; its head is not None."""
        fresh, old = _first(self.fresh), _first(self.old)
        if fresh is None or old is None:
            return fresh or old
        head = old.head()
        return old if head is not None and self.owed >= OLD_SHARE * head.cost else fresh


class Scheduler(Generic[T]):
    """What waits, and in which order it is taken.

    Args:
        quantum: Tokens that a tenant of weight 1 gains a visit.
        fresh_tokens: Tokens after which a job is old.
    """

    def __init__(self, quantum: int, fresh_tokens: int) -> None:
        self._quantum = quantum
        self._fresh_tokens = fresh_tokens
        self._tenants: OrderedDict[str, _Tenant[T]] = OrderedDict()  # those with work; the first has its turn
        self._visited: str | None = None  # who has got its credit for this turn
        self.tokens = 0  # that wait
        self.count = 0  # sequences that wait

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, job: Job[T], works: Iterable[Work[T]]) -> None:
        """Puts new work at the end of a job's, the longest first."""
        added = sorted(works, key=lambda work: -work.cost)
        self.tokens += sum(work.cost for work in added)
        self.count += len(added)
        self._queue(job, added)

    def share(self, job: Job[T], work: Work[T]) -> None:
        """Puts work that waits elsewhere into another job too, which may have its turn sooner."""
        self._queue(job, [work])

    def drop(self, work: Work[T]) -> None:
        """Forgets work that nobody wants any more."""
        self._leave(work)
        if not self.count:  # nothing is taken next, which would find what was dropped in the lines and let it go
            self._empty()

    def take(self, room: int) -> list[Work[T]]:
        """The work that runs next, at most `room` tokens of it; one that is larger is taken alone.

        Empty only if nothing waits.
        """
        taken: list[Work[T]] = []
        left = room
        while self._tenants:
            name, tenant = next(iter(self._tenants.items()))
            if self._visited != name:
                self._visited = name
                tenant.credit += self._quantum * tenant.weight
            while (job := tenant.next()) is not None:
                work = job.head()
                assert work is not None  # noqa: S101 - next() gives jobs that have one
                if work.cost > tenant.credit:
                    break
                if work.cost > left and taken:
                    return taken  # the tenant's turn goes on with the next batch
                self._serve(tenant, job, work)
                taken.append(work)
                left -= work.cost
            self._visited = None
            if job is None:
                del self._tenants[name]
            else:
                self._tenants.move_to_end(name)
        return taken

    def _leave(self, work: Work[T]) -> None:
        if work.waiting:
            work.waiting = False
            self.tokens -= work.cost
            self.count -= 1

    def _empty(self) -> None:
        for tenant in self._tenants.values():
            for job in (*tenant.fresh, *tenant.old):
                job.in_line = False
                job.todo.clear()
        self._tenants.clear()
        self._visited = None

    def _queue(self, job: Job[T], works: list[Work[T]]) -> None:
        if not works:
            return
        tenant = self._tenants.setdefault(job.tenant, _Tenant())
        tenant.weight = job.weight
        job.todo.extend(works)
        if not job.in_line:
            job.in_line = True
            (tenant.old if job.served >= self._fresh_tokens else tenant.fresh).append(job)

    def _serve(self, tenant: _Tenant[T], job: Job[T], work: Work[T]) -> None:
        job.todo.popleft()
        self._leave(work)
        tenant.credit -= work.cost
        was_fresh = job.served < self._fresh_tokens
        tenant.owed = tenant.owed + work.cost if was_fresh else max(0, tenant.owed - OLD_SHARE * work.cost)
        job.served += work.cost
        if was_fresh and job.served >= self._fresh_tokens:
            tenant.fresh.popleft()  # `next` gave the first of the line
            tenant.old.append(job)


def _first(jobs: deque[Job[T]]) -> Job[T] | None:
    while jobs and jobs[0].head() is None:
        jobs.popleft().in_line = False
    return jobs[0] if jobs else None

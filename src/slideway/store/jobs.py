"""Work to be done, each once: leased for a time, fenced against late workers, tried again, quarantined in the end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select

from slideway.core.errors import ConflictError, LeaseLostError
from slideway.store.facet import Facet, hash_json
from slideway.store.schema import JOBS, TENANTS, canonical_json

FIRST_WAIT_MS = 5_000
LONGEST_WAIT_MS = 3_600_000
# A row written this far in the future was written by a clock that has since been set back: it is not waited for.
CLOCK_SLACK_MS = 300_000


_CHANCE = random.Random()  # noqa: S311  # whose turn it is among equals, no secret


class JobState(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    LEASED = "leased"
    DONE = "done"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Job:
    """One step with one model on one slide.

    Attributes:
        tenant: Whose it is.
        job_id: Sha256 over tenant, slide, step and model: the same work has the same id everywhere.
        slide_sha256: The slide.
        step: What is to be done, e.g. `encode`.
        model: Id and fingerprint of the model; empty for a step without one.
        state: Where it is.
        is_urgent: Goes before all others.
        priority: Lower goes first.
        payload: What the worker needs to know.
        attempts: Times it was leased.
        attempts_allowed: After so many it is quarantined.
        fence: Grows with every lease; only the newest may finish the job.
        worker: Who holds it; None when nobody does.
        leased_until_ms: When the lease ends; None without one.
        not_before_ms: Not leased earlier.
        reason: Why the last attempt failed.
        result: What came of it; None until it is done.
    """

    tenant: str
    job_id: str
    slide_sha256: str
    step: str
    model: str
    state: JobState
    is_urgent: bool
    priority: int
    payload: Mapping[str, Any]
    attempts: int
    attempts_allowed: int
    fence: int
    worker: str | None
    leased_until_ms: int | None
    not_before_ms: int
    reason: str
    result: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))


class Jobs(Facet):
    """Jobs of a tenant; in the transaction of all, jobs of all tenants can be leased."""

    def enqueue(
        self,
        slide_sha256: str,
        step: str,
        *,
        model: str = "",
        payload: Mapping[str, Any] | None = None,
        is_urgent: bool = False,
        priority: int = 100,
        attempts_allowed: int = 5,
        not_before_ms: int = 0,
    ) -> Job:
        """Add a job, or give the one that is there: a step with a model is done once for a slide (invariant I3).

        Args:
            slide_sha256: The slide, which must be there.
            step: What is to be done, e.g. `encode`.
            model: Id and fingerprint of the model; empty for a step without one.
            payload: What the worker needs to know; no patient data.
            is_urgent: Goes before all others.
            priority: Lower goes first.
            attempts_allowed: At least 1.
            not_before_ms: UTC; 0 for at once.
        """
        job_id = name_job(self._own, slide_sha256, step, model)
        now = self._clock()
        job, _ = self._add(
            Job,
            JOBS,
            {"job_id": job_id},
            slide_sha256=slide_sha256,
            step=step,
            model=model,
            state=JobState.WAITING.value,
            is_urgent=is_urgent,
            priority=priority,
            payload=dict(payload or {}),
            attempts_allowed=attempts_allowed,
            not_before_ms=not_before_ms,
            created_ms=now,
            changed_ms=now,
        )
        return job

    def get(self, job_id: str) -> Job:
        """The job of an id."""
        return self._get(Job, JOBS, job_id=job_id)

    def find(self, slide_sha256: str, step: str, *, model: str = "") -> Job | None:
        """The job of a slide, step and model, or None."""
        return self._find(Job, JOBS, self._key(JOBS, job_id=name_job(self._own, slide_sha256, step, model)))

    def find_of(self, slides: Sequence[str], step: str, *, model: str = "") -> dict[str, Job]:
        """The jobs of some slides with one step and model, by slide."""
        names = [name_job(self._own, sha256, step, model) for sha256 in slides]
        return {job.slide_sha256: job for job in self._list(Job, JOBS, JOBS.c.job_id.in_(names))}

    def lease(self, worker: str, *, seconds: float, steps: Sequence[str] = ()) -> Job | None:
        """Take the most pressing job for a time; None when there is nothing to do.

        Urgent first, then by priority, then oldest first. In the transaction of all, tenants take turns within one
        urgency and priority, so that one with ten thousand slides does not hold up the others: first who has the fewest
        in hand, among equals by chance. A job whose lease ran out is taken again, with a higher
        fence, unless its attempts are used up: see `quarantine_spent`. On PostgreSQL workers never wait for each other.

        Args:
            worker: Who takes it, for people to read.
            seconds: How long it may take until the first heartbeat.
            steps: Only these; empty for all.
        """
        where = [JOBS.c.attempts < JOBS.c.attempts_allowed]
        where += [JOBS.c.step.in_(steps)] if steps else []
        job, now = self._choose(where), self._clock()
        if job is None:
            return None
        here = and_(JOBS.c.tenant == job.tenant, JOBS.c.job_id == job.job_id)
        self._change(
            JOBS,
            here,
            state=JobState.LEASED.value,
            worker=worker,
            fence=job.fence + 1,
            attempts=job.attempts + 1,
            leased_until_ms=now + round(seconds * 1000),
            changed_ms=now,
        )
        return self._find(Job, JOBS, here)

    def heartbeat(self, job: Job, *, seconds: float) -> Job:
        """Hold a job for longer.

        Raises:
            LeaseLostError: It was given to another worker, or is finished.
        """
        self._settle(job, leased_until_ms=self._clock() + round(seconds * 1000))
        return self.get(job.job_id)

    def complete(self, job: Job, *, result: Mapping[str, Any] | None = None) -> Job:
        """Finish a job; to finish it again with the same result does nothing.

        Raises:
            LeaseLostError: It was given to another worker meanwhile; what this one did must be thrown away, which the
                transaction does when the error leaves it.
            ConflictError: It was finished with another result.
        """
        now_there, made = self.get(job.job_id), dict(result or {})
        if now_there.state is JobState.DONE and now_there.fence == job.fence:
            if canonical_json(now_there.result) != canonical_json(made):
                raise ConflictError(f"job {job.step} of slide {job.slide_sha256[:12]} was finished with another result")
            return now_there
        self._settle(job, state=JobState.DONE.value, result=made, worker=None, leased_until_ms=None, reason="")
        return self.get(job.job_id)

    def fail(self, job: Job, *, reason: str, can_retry: bool = True) -> Job:
        """Give a job back after a failure: it waits, twice as long each time, or is quarantined.

        Who quarantines a job has a duty to its slide: refer or reject it in the same transaction (invariant I1).

        Args:
            job: As it was leased.
            reason: An error's code, or a sentence without patient data.
            can_retry: False when another attempt would fail alike.

        Raises:
            LeaseLostError: It was given to another worker meanwhile.
        """
        is_over = not can_retry or job.attempts >= job.attempts_allowed
        self._settle(
            job,
            state=(JobState.QUARANTINED if is_over else JobState.WAITING).value,
            reason=reason,
            worker=None,
            leased_until_ms=None,
            not_before_ms=self._clock() + wait_ms(job.attempts, job.job_id),
        )
        return self.get(job.job_id)

    def give_back(self, job: Job) -> Job:
        """Give a job back undone, as at a shutdown: it costs no attempt.

        Raises:
            LeaseLostError: It was given to another worker meanwhile.
        """
        self._settle(job, state=JobState.WAITING.value, attempts=job.attempts - 1, worker=None, leased_until_ms=None)
        return self.get(job.job_id)

    def find_spent(self) -> list[Job]:
        """Jobs whose last allowed attempt ran out without an answer; in the transaction of all, of all tenants."""
        return self._list(Job, JOBS, self._is_spent(), order=[JOBS.c.tenant.asc(), JOBS.c.job_id.asc()])

    def quarantine_spent(self, *, reason: str = "worker-stopped", job_id: str = "") -> list[Job]:
        """Quarantine jobs whose last allowed attempt ran out without an answer, as when a slide kills every worker.

        Args:
            reason: A code, where no attempt left one.
            job_id: Only this job; empty for all.

        Returns:
            Them, for the caller to refer or reject their slides in the same transaction (invariant I1).
        """
        where = [self._is_spent(), *([JOBS.c.job_id == job_id] if job_id else [])]
        jobs = self._list(Job, JOBS, *where, order=[JOBS.c.tenant.asc(), JOBS.c.job_id.asc()], skip_locked=True)
        for job in jobs:
            here = and_(JOBS.c.tenant == job.tenant, JOBS.c.job_id == job.job_id)
            self._change(
                JOBS,
                here,
                state=JobState.QUARANTINED.value,
                fence=job.fence + 1,
                worker=None,
                leased_until_ms=None,
                reason=job.reason or reason,
                changed_ms=self._clock(),
            )
        return jobs

    def free_all(self) -> int:
        """End every lease, at the start of the only process that has workers; how many there were."""
        leased = JOBS.c.state == JobState.LEASED.value
        return self._change(JOBS, leased, leased_until_ms=0, changed_ms=self._clock())

    def find_all(self, *, state: JobState | None = None, limit: int | None = None) -> list[Job]:
        """Jobs, urgent first, then by priority, then oldest first."""
        where = [] if state is None else [JOBS.c.state == state.value]
        order = [JOBS.c.is_urgent.desc(), JOBS.c.priority.asc(), JOBS.c.created_ms.asc(), JOBS.c.job_id.asc()]
        return self._list(Job, JOBS, *where, order=order, limit=limit)

    def make_urgent(self, slide_sha256: str, *, is_urgent: bool = True) -> int:
        """Put what is still to be done for a slide before all others, or back among them; how many jobs."""
        is_open = JOBS.c.state.in_([JobState.WAITING.value, JobState.LEASED.value])
        return self._change(JOBS, and_(self._key(JOBS, slide_sha256=slide_sha256), is_open), is_urgent=is_urgent)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are where; every state is named."""
        statement = select(JOBS.c.state, func.count()).where(self._mine(JOBS)).group_by(JOBS.c.state)
        found = {row[0]: int(row[1]) for row in self._connection.execute(statement)}
        return {state: found.get(state.value, 0) for state in JobState}

    def _choose(self, where: list[ColumnElement[bool]]) -> Job | None:
        """The most pressing of these jobs that no other transaction holds."""
        order = [JOBS.c.is_urgent.desc(), JOBS.c.priority.asc(), JOBS.c.created_ms.asc(), JOBS.c.job_id.asc()]
        turns = self._take_turns(where) if self._tenant is None else []
        # Each state by itself: then the index gives the oldest, and ten thousand others need not be sorted.
        tries = [[state, *mine] for mine in turns for state in (self._is_left(), self._is_ready())]
        for mine in (*tries, [self._is_due()]):  # at last, where others hold all of these, whatever there is
            if found := self._list(Job, JOBS, *where, *mine, order=order, limit=1, skip_locked=True):
                return found[0]
        return None

    def _take_turns(self, where: list[ColumnElement[bool]]) -> list[list[ColumnElement[bool]]]:
        """Filters for the highest class of the due ones: one for each tenant that has some, in the order of turns."""
        for is_urgent in (True, False):
            if best := self._find_best(where, is_urgent=is_urgent):
                break
        else:
            return []
        priority = min(best.values())
        first = [tenant for tenant, its_best in best.items() if its_best == priority]
        if len(first) > 1:
            in_hand = self._count_in_hand()
            _CHANCE.shuffle(first)
            first.sort(key=lambda tenant: in_hand.get(tenant, 0))
        its_class = [JOBS.c.is_urgent.is_(is_urgent), JOBS.c.priority == priority]
        return [[JOBS.c.tenant == tenant, *its_class] for tenant in first]

    def _find_best(self, where: list[ColumnElement[bool]], *, is_urgent: bool) -> dict[str, int]:
        """The first priority of each tenant that has due jobs: a look into an index for each, however many wait."""

        def find_first(due: ColumnElement[bool]) -> ColumnElement[Any]:
            own = and_(JOBS.c.tenant == TENANTS.c.tenant, JOBS.c.is_urgent.is_(is_urgent), due, *where)
            first = select(JOBS.c.priority).where(own).order_by(JOBS.c.priority.asc()).limit(1)
            return first.correlate(TENANTS).scalar_subquery()

        statement = select(TENANTS.c.tenant, find_first(self._is_ready()), find_first(self._is_left()))
        rows = [
            (str(row[0]), [int(best) for best in row[1:] if best is not None])
            for row in self._connection.execute(statement)
        ]
        return {tenant: min(found) for tenant, found in rows if found}

    def _count_in_hand(self) -> dict[str, int]:
        """How many jobs of each tenant workers hold."""
        is_held = and_(JOBS.c.state == JobState.LEASED.value, JOBS.c.leased_until_ms > self._clock())
        statement = select(JOBS.c.tenant, func.count()).where(is_held).group_by(JOBS.c.tenant)
        return {str(row[0]): int(row[1]) for row in self._connection.execute(statement)}

    def _is_due(self) -> ColumnElement[bool]:
        """Waiting long enough, or leased too long; a clock that was set back makes nothing wait."""
        return or_(self._is_ready(), self._is_left())

    def _is_ready(self) -> ColumnElement[bool]:
        """Waiting long enough."""
        is_late = or_(JOBS.c.not_before_ms <= self._clock(), self._is_from_the_future())
        return and_(JOBS.c.state == JobState.WAITING.value, is_late)

    def _is_left(self) -> ColumnElement[bool]:
        """Leased, and its worker was not heard of for too long."""
        is_late = or_(JOBS.c.leased_until_ms <= self._clock(), self._is_from_the_future())
        return and_(JOBS.c.state == JobState.LEASED.value, is_late)

    def _is_spent(self) -> ColumnElement[bool]:
        """Leased for the last time, and its worker was not heard of for too long."""
        return and_(self._is_left(), JOBS.c.attempts >= JOBS.c.attempts_allowed)

    def _is_from_the_future(self) -> ColumnElement[bool]:
        return JOBS.c.changed_ms > self._clock() + CLOCK_SLACK_MS

    def _settle(self, job: Job, **values: Any) -> None:
        """Change a job if the caller still holds it."""
        holds = and_(
            self._key(JOBS, job_id=job.job_id), JOBS.c.fence == job.fence, JOBS.c.state == JobState.LEASED.value
        )
        if self._change(JOBS, holds, changed_ms=self._clock(), **values) != 1:
            raise LeaseLostError(
                f"job {job.step} of slide {job.slide_sha256[:12]}: the lease {job.fence} ended and the job went on "
                "without it; throw away what was done under it"
            )


def name_job(tenant: str, slide_sha256: str, step: str, model: str) -> str:
    """The id of a job: the same for the same work."""
    return hash_json([tenant, slide_sha256, step, model])


def wait_ms(attempts: int, key: str) -> int:
    """How long to wait after so many failures: doubled each time, spread by up to a quarter so that none march in step.

    The spread comes from the key and the count, so that a run can be repeated.

    Example:
        >>> 5_000 <= wait_ms(1, "a") <= 6_250, 10_000 <= wait_ms(2, "a") <= 12_500
        (True, True)
    """
    doubled = min(FIRST_WAIT_MS << min(max(attempts - 1, 0), 20), LONGEST_WAIT_MS)
    spread = hashlib.sha256(f"{key} {attempts}".encode()).digest()[0] / 255
    return doubled + round(doubled * spread / 4)

"""Work to be done, each once: leased for a time, fenced against late workers, tried again, quarantined in the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select

from slideway.core.errors import ConflictError, LeaseLostError
from slideway.store.facet import Facet, hash_json
from slideway.store.schema import JOBS, canonical_json

FIRST_WAIT_MS = 5_000
LONGEST_WAIT_MS = 3_600_000
# A row written this far in the future was written by a clock that has since been set back: it is not waited for.
CLOCK_SLACK_MS = 300_000


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
        self._insert(
            JOBS,
            job_id=job_id,
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
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """The job of an id."""
        return self._get(Job, JOBS, job_id=job_id)

    def find(self, slide_sha256: str, step: str, *, model: str = "") -> Job | None:
        """The job of a slide, step and model, or None."""
        return self._find(Job, JOBS, self._key(JOBS, job_id=name_job(self._own, slide_sha256, step, model)))

    def lease(self, worker: str, *, seconds: float, steps: Sequence[str] = ()) -> Job | None:
        """Take the most pressing job for a time; None when there is nothing to do.

        Urgent first, then by priority, then oldest first. A job whose lease ran out is taken again, with a higher
        fence, unless its attempts are used up: see `quarantine_spent`. On PostgreSQL workers never wait for each other.

        Args:
            worker: Who takes it, for people to read.
            seconds: How long it may take until the first heartbeat.
            steps: Only these; empty for all.
        """
        where = [self._is_due(), JOBS.c.attempts < JOBS.c.attempts_allowed]
        where += [JOBS.c.step.in_(steps)] if steps else []
        order = [JOBS.c.is_urgent.desc(), JOBS.c.priority.asc(), JOBS.c.created_ms.asc(), JOBS.c.job_id.asc()]
        found = self._list(Job, JOBS, *where, order=order, limit=1, skip_locked=True)
        if not found:
            return None
        job, now = found[0], self._clock()
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

    def quarantine_spent(self, *, reason: str = "worker-stopped") -> list[Job]:
        """Quarantine jobs whose last allowed attempt ran out without an answer, as when a slide kills every worker.

        Returns:
            Them, for the caller to refer or reject their slides in the same transaction (invariant I1).
        """
        spent = and_(JOBS.c.state == JobState.LEASED.value, self._is_due(), JOBS.c.attempts >= JOBS.c.attempts_allowed)
        jobs = self._list(Job, JOBS, spent, order=[JOBS.c.tenant.asc(), JOBS.c.job_id.asc()], skip_locked=True)
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

    def release_from_quarantine(self, job_id: str) -> Job:
        """Let a person try a quarantined job again, with all its attempts."""
        job = self.get(job_id)
        if job.state is not JobState.QUARANTINED:
            raise ConflictError(f"job {job.step} of slide {job.slide_sha256[:12]} is {job.state}, not quarantined")
        here = self._key(JOBS, job_id=job_id)
        self._change(JOBS, here, state=JobState.WAITING.value, attempts=0, not_before_ms=0, changed_ms=self._clock())
        return self.get(job_id)

    def find_all(self, *, state: JobState | None = None, limit: int | None = None) -> list[Job]:
        """Jobs, urgent first, then by priority, then oldest first."""
        where = [] if state is None else [JOBS.c.state == state.value]
        order = [JOBS.c.is_urgent.desc(), JOBS.c.priority.asc(), JOBS.c.created_ms.asc(), JOBS.c.job_id.asc()]
        return self._list(Job, JOBS, *where, order=order, limit=limit)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are where; every state is named."""
        statement = select(JOBS.c.state, func.count()).where(self._mine(JOBS)).group_by(JOBS.c.state)
        found = {row[0]: int(row[1]) for row in self._connection.execute(statement)}
        return {state: found.get(state.value, 0) for state in JobState}

    def _is_due(self) -> ColumnElement[bool]:
        """Waiting long enough, or leased too long; a clock that was set back makes nothing wait."""
        now = self._clock()
        is_from_the_future = JOBS.c.changed_ms > now + CLOCK_SLACK_MS
        return or_(
            and_(JOBS.c.state == JobState.WAITING.value, or_(JOBS.c.not_before_ms <= now, is_from_the_future)),
            and_(JOBS.c.state == JobState.LEASED.value, or_(JOBS.c.leased_until_ms <= now, is_from_the_future)),
        )

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

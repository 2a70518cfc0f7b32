"""Diagnose what has come: lease a job, compute in a child process, let the opinion leave in one transaction."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from typing import Any

from slideway.cloud.chores import Chore
from slideway.cloud.diagnose import Request, diagnose_bundle
from slideway.cloud.ingest import DIAGNOSE
from slideway.cloud.logs import log
from slideway.cloud.metrics import Metrics
from slideway.cloud.opinions import ALL_TIERS, describe_given_up, put_ask, put_settled_opinion
from slideway.cloud.settings import CloudSettings
from slideway.cloud.slides import advance, bundle_of, lets_regions
from slideway.core.crash import crash_here
from slideway.core.errors import (
    BlobError,
    BrokenBlobError,
    ConflictError,
    LeaseLostError,
    LineRefusedError,
    MessageTooLargeError,
    MissingBlobError,
    SlidewayError,
    StoreError,
)
from slideway.store.audit import Detail
from slideway.store.blobs import Blobs
from slideway.store.database import Store
from slideway.store.jobs import Job, JobState
from slideway.store.slides import SlideState
from slideway.store.work import Work
from slideway.sync.identity import Keys

IDLE_SECONDS = 0.5
_LOOK_SECONDS = 0.5  # so soon a worker hears that it is to stop
_HOUSEKEEPING_SECONDS = 30.0
_CHILD_NICE = 10  # where cores are few, bundles are taken in before those that came are diagnosed


@dataclass(frozen=True)
class Tools:
    """What workers share.

    Attributes:
        store: Jobs and outbox.
        blobs: Bundles.
        keys: Opens what is locked to the cloud.
        settings: Of the cloud.
        metrics: Counts.
    """

    store: Store
    blobs: Blobs
    keys: Keys
    settings: CloudSettings
    metrics: Metrics


class OverdueError(Exception):
    """A job took longer than it may."""


class Crew:
    """Workers of one process: so many threads, each with a child that computes."""

    def __init__(self, tools: Tools, *, name: str = "") -> None:
        self._tools, self._name = tools, name or f"worker-{os.getpid()}"
        self._stop = Event()
        count = tools.settings.worker.count
        self._workers = [Worker(tools, f"{self._name}.{number}", self._stop) for number in range(count)]
        self._threads = [Thread(target=worker.run, name=worker.name, daemon=True) for worker in self._workers]
        self._threads.append(Thread(target=self._keep_house, name="housekeeping", daemon=True))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, within_seconds: float) -> bool:
        """Take no more jobs; those in hand are finished or given back. True when all ended in time."""
        self._stop.set()
        for worker in self._workers:
            worker.give_up_at = time.monotonic() + within_seconds * 0.8
        until = time.monotonic() + within_seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _keep_house(self) -> None:
        chore = Chore("housekeeping", lambda: refer_spent(self._tools), every_seconds=_HOUSEKEEPING_SECONDS)
        while not self._stop.is_set():
            self._stop.wait(chore.run())


class Worker:
    """Takes one job after the other."""

    def __init__(self, tools: Tools, name: str, stop: Event) -> None:
        self.name, self.give_up_at, self._held_until = name, float("inf"), 0.0
        self._tools, self._stop, self._bench = tools, stop, Bench(tools.settings)

    def run(self) -> None:
        """Until it is to stop; a bug in one job is logged and costs that job an attempt."""
        try:
            while not self._stop.is_set():
                try:
                    did_something = self.work_once()
                except SlidewayError as error:  # the store is away: wait for it
                    log("worker-waits", level=logging.WARNING, worker=self.name, code=error.code)
                    did_something = False
                except Exception as error:  # noqa: BLE001  # the worker's top loop
                    log("bug", level=logging.ERROR, error=error, worker=self.name)
                    did_something = False
                if not did_something:
                    self._stop.wait(IDLE_SECONDS)
        finally:
            self._bench.close()

    def work_once(self) -> bool:
        """Take one job and finish it, whichever way; False when there was none."""
        worker = self._tools.settings.worker
        with self._tools.store.transaction_of_all() as work:
            job = work.jobs.lease(self.name, seconds=worker.lease_seconds, steps=(DIAGNOSE,))
        if job is None:
            return False
        crash_here("cloud.after-lease")
        started = time.monotonic()
        self._held_until = started + worker.lease_seconds / 4
        try:
            self._do(job)
        except LeaseLostError:
            log("lease-lost", job=job.job_id, tenant=job.tenant, worker=self.name)
        self._tools.metrics.job_seconds.observe(time.monotonic() - started)
        return True

    def _do(self, job: Job) -> None:
        store = self._tools.store
        try:
            told = self._compute(job)
        except _GiveBackError:
            store.retrying(job.tenant, lambda work: work.jobs.give_back(job))
            log("job-given-back", job=job.job_id, tenant=job.tenant, worker=self.name)
        except LeaseLostError:
            raise
        except (OverdueError, BrokenProcessPool, SlidewayError) as error:
            if _is_outage(error):  # not the slide's fault: it costs no attempt, or a day without blobs would refer all
                store.retrying(job.tenant, lambda work: work.jobs.give_back(job))
                raise
            self._fail(job, error)
        else:
            self._settle(job, told)

    def _settle(self, job: Job, told: dict[str, Any]) -> None:
        ask = self._tools.settings.regions.ask
        try:
            self._tools.store.retrying(job.tenant, lambda work: settle_opinion(work, job, told, ask=ask))
        except (MessageTooLargeError, LineRefusedError) as error:  # no other attempt would say it in another way
            self._fail(job, error)
            return
        crash_here("cloud.after-opinion")
        kind = "provisional" if told["provisional"] else "whole"
        self._tools.metrics.opinions.labels(kind).inc()
        log("opinion", tenant=job.tenant, slide=job.slide_sha256, tier=told["tier"], worker=self.name)

    def _compute(self, job: Job) -> dict[str, Any]:
        tools, payload = self._tools, job.payload
        with tools.store.reading(job.tenant) as work:
            whole = work.jobs.find(job.slide_sha256, DIAGNOSE, model=job.model.removesuffix(":t1"))
        if int(payload["tier"]) < ALL_TIERS and whole is not None:
            return {"overtaken": True, "provisional": True, "tier": payload["tier"]}
        regions = tools.settings.regions
        asked = Request(
            bundle=str(payload["bundle"]),
            tier=int(payload["tier"]),
            heads=tools.settings.worker.heads,
            explain=tools.settings.worker.explain,
            ask_count=regions.count if regions.ask else 0,
            ask_for_research=regions.for_research,
        )
        content = tools.blobs.get(job.tenant, str(payload["blob"]))
        private = tools.keys.receiving.private_bytes_raw()
        return self._bench.run(content, private, asked, while_waiting=lambda: self._hold(job))

    def _hold(self, job: Job) -> None:
        """Keep the lease while the child computes; called often, written a few times in each lease."""
        now, seconds = time.monotonic(), self._tools.settings.worker.lease_seconds
        if now > self.give_up_at:
            raise _GiveBackError
        if now >= self._held_until:
            self._tools.store.retrying(job.tenant, lambda work: work.jobs.heartbeat(job, seconds=seconds))
            self._held_until = now + seconds / 4

    def _fail(self, job: Job, error: Exception) -> None:
        code = error.code if isinstance(error, SlidewayError) else "worker-stopped"
        code = "worker-overdue" if isinstance(error, OverdueError) else code
        can_retry = not isinstance(error, SlidewayError) or isinstance(error, StoreError | BlobError)

        def fail(work: Work) -> None:
            work.slides.get(job.slide_sha256)  # first, as in `settle_opinion`
            failed = work.jobs.fail(job, reason=code, can_retry=can_retry)
            if failed.state is JobState.QUARANTINED:
                refer_slide(work, failed)

        self._tools.store.retrying(job.tenant, fail)
        self._tools.metrics.job_failures.labels(code).inc()
        log("job-failed", level=logging.WARNING, job=job.job_id, tenant=job.tenant, code=code, attempt=job.attempts)


def _is_outage(error: Exception) -> bool:
    """The database or the place for blobs is away; a blob that is not there, or broken, is another thing."""
    return isinstance(error, StoreError | BlobError) and not isinstance(error, MissingBlobError | BrokenBlobError)


class _GiveBackError(Exception):
    """The process goes down: another one will do it."""


class Bench:
    """Where computing happens: a child process, or this thread when isolation is off."""

    def __init__(self, settings: CloudSettings) -> None:
        self._settings = settings.worker
        self._pool: ProcessPoolExecutor | None = None

    def run(
        self, content: bytes, private: bytes, asked: Request, *, while_waiting: Callable[[], None]
    ) -> dict[str, Any]:
        """Diagnose; `while_waiting` is called now and then meanwhile.

        Raises:
            OverdueError: It took too long; the child was ended.
            BrokenProcessPool: The child died.
        """
        if not self._settings.isolate:
            return diagnose_bundle(content, private, asked)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # threads and locks are not inherited half-way
            self._pool = ProcessPoolExecutor(1, context, initializer=_begin_child, initargs=(self._settings.threads,))
        try:
            return self._wait(self._pool.submit(diagnose_bundle, content, private, asked), while_waiting)
        except SlidewayError:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        children = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
            child.join(5)

    def _wait(self, future: Future[dict[str, Any]], while_waiting: Callable[[], None]) -> dict[str, Any]:
        until = time.monotonic() + self._settings.job_seconds
        while True:
            try:
                return future.result(timeout=_LOOK_SECONDS)
            except FutureTimeoutError:
                if time.monotonic() > until:
                    raise OverdueError from None
                while_waiting()


def _begin_child(threads: int) -> None:
    """Children compute with few threads, after what takes bundles in, and leave Ctrl-C to their parent."""
    import signal  # noqa: PLC0415  # only in the child

    from threadpoolctl import threadpool_limits  # noqa: PLC0415  # only in the child

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(threads)
    if hasattr(os, "nice"):  # not on Windows
        os.nice(_CHILD_NICE)


def settle_opinion(work: Work, job: Job, told: dict[str, Any], *, ask: bool) -> None:
    """Finish a job: findings kept, opinion and request for regions in the outbox of every node that has the slide."""
    if told.get("overtaken"):
        work.jobs.complete(job, result={"overtaken": True})
        return
    body = {key: value for key, value in told.items() if key != "ask"}
    # First the slide, then the job, as where bundles are taken in: a node whose bundle comes in this moment is either
    # among the slide's nodes here, or finds the job done there.
    slide = work.slides.get(job.slide_sha256)
    done = work.jobs.complete(job, result={"opinion": body})
    if not body["provisional"]:
        _keep_findings(work, job.slide_sha256, body)
        advance(work, job.slide_sha256, SlideState.ENCODED)
        advance(work, job.slide_sha256, SlideState.ANSWERED)
    for node in slide.facts.get("nodes", []):
        put_settled_opinion(work, slide, node, done)
        if ask and told["ask"] and not body["provisional"] and lets_regions(work, node):
            put_ask(work, node, job.slide_sha256, bundle_of(slide, node, job), told["ask"], "finding-unsure")
    details: dict[str, Detail] = {
        "bundle": str(body["bundle"]),
        "tier": int(body["tier"]),
        "findings": len(body["findings"]),
    }
    work.audit.append("opinion-given", actor="cloud", subject=job.slide_sha256, details=details)
    crash_here("cloud.before-opinion")


def _keep_findings(work: Work, slide: str, body: dict[str, Any]) -> None:
    for finding in body["findings"]:
        head = finding["head"]
        try:
            work.findings.record(
                slide,
                finding["task"],
                finding,
                place="cloud",
                head_id=head["id"],
                head_version=head["version"],
                head_sha256=head["sha256"],
                fingerprint=str(body["encoder"]["fingerprint"]),
            )
        except ConflictError:
            work.audit.append("finding-differs", actor="cloud", subject=slide, details={"task": finding["task"]})


def refer_slide(work: Work, job: Job) -> None:
    """The duty of a job that is given up: the slide goes to a person, and its nodes hear why."""
    slide, code = work.slides.get(job.slide_sha256), job.reason
    if not describe_given_up(slide, job, code)["provisional"]:
        advance(work, job.slide_sha256, SlideState.REFERRED, reason=code)
        for node in slide.facts.get("nodes", []):
            put_settled_opinion(work, slide, node, job)
    work.audit.append("job-given-up", actor="cloud", subject=job.slide_sha256, details={"code": code})


def refer_spent(tools: Tools) -> int:
    """Give up jobs whose last attempt ran out, as when a slide kills every worker; how many there were.

    Each in a transaction of its own: one that cannot be given up now keeps no other slide from a person.
    """
    with tools.store.reading_of_all() as work:
        spent = work.jobs.find_spent()
    count = 0
    for job in spent:
        try:
            count += tools.store.retrying(job.tenant, partial(_refer_spent, job=job))
        except Exception as error:  # noqa: BLE001  # the chore's next turn takes it again
            code = error.code if isinstance(error, SlidewayError) else "bug"
            bug = None if isinstance(error, SlidewayError) else error
            log("job-not-given-up", level=logging.ERROR, error=bug, job=job.job_id, tenant=job.tenant, code=code)
    return count


def _refer_spent(work: Work, *, job: Job) -> bool:
    """Give up one of them, unless somebody was faster."""
    work.slides.get(job.slide_sha256)  # first, as in `settle_opinion`
    given_up = work.jobs.quarantine_spent(job_id=job.job_id)
    for own in given_up:
        refer_slide(work, work.jobs.get(own.job_id))
    return bool(given_up)

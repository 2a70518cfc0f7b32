"""A bounded crew of workers: each leases a slide, reads it in a process of its own, and commits what came of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideway.core.crash import crash_here
from slideway.core.errors import FullStoreError, LeaseLostError, StoreError
from slideway.edge.logs import log
from slideway.edge.node import READ, REGIONS, Node, case_of
from slideway.edge.outcome import FINAL, NODES_FAULT, record_failure, record_reading, record_regions
from slideway.store.jobs import Job
from slideway.store.slides import SlideRecord

_POLL_SECONDS = 5.0
_FAULT_PAUSE_SECONDS = 30.0
_BUSY_PAUSE_SECONDS = 1.0
_AWAY_SECONDS = 60.0  # a slide whose share is gone is looked for again after so long
_LOOK_SECONDS = 0.25
_STOPPED, _TOO_LONG, _DIED, _GONE, _AWAY = "stopped", "reading-too-long", "worker-stopped", "slide-gone", "folder-away"
_NO_PROCESS = "no-process"


@dataclass(frozen=True)
class Told:
    """How a child ended.

    Attributes:
        done: What it made; None when it made nothing.
        code: Why it made nothing; empty when it did.
    """

    done: Mapping[str, Any] | None = None
    code: str = ""


class Crew:
    """The workers of a node.

    Attributes:
        fault: Why nothing can be read now that is not a slide's fault, as a code; empty when all is well.
        reading: Hashes of the slides that are in hand.
    """

    def __init__(
        self,
        node: Node,
        *,
        is_away: Callable[[Path], bool],
        threads_each: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hire nobody yet.

        Args:
            node: Whose.
            is_away: Whether the folder that a slide lies in is away.
            threads_each: Cores for each worker.
            monotonic: Seconds that only go on.
        """
        self._node, self._is_away, self._threads_each, self._monotonic = node, is_away, threads_each, monotonic
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pause_until = float("-inf")
        self._away: list[tuple[float, Job]] = []
        self._away_lock = threading.Lock()
        self.fault = ""
        self.reading: set[str] = set()

    def start(self) -> None:
        """Let all of them work."""
        with self._node.store.transaction(self._node.tenant) as work:
            work.jobs.free_all()  # this is the only process that has workers: who held them is gone
        for number in range(self._node.settings.reading.workers):
            thread = threading.Thread(target=self._work, args=(f"edge-{number}",), name=f"worker-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, *, within_seconds: float = 10.0) -> bool:
        """Give back what is in hand; whether all ended in time."""
        self._stop.set()
        self._node.has_work.set()
        ends = self._monotonic() + within_seconds
        for thread in self._threads:
            thread.join(max(0.0, ends - self._monotonic()))
        self._give_back_away(everything=True)
        return not any(thread.is_alive() for thread in self._threads)

    def run_once(self, name: str = "edge-0") -> bool:
        """Do the most pressing job, if there is one."""
        node = self._node
        self._give_back_away()
        with node.store.transaction(node.tenant) as work:
            job = work.jobs.lease(name, seconds=node.settings.reading.lease_seconds, steps=(READ, REGIONS))
        if self.fault.startswith("store-") or self.fault in (_DIED, _NO_PROCESS):
            self.fault = ""
        if job is None:
            return False
        crash_here("edge.after-lease")
        self.reading.add(job.slide_sha256)
        try:
            self._do(job)
        finally:
            self.reading.discard(job.slide_sha256)
        return True

    def _work(self, name: str) -> None:
        while not self._stop.is_set():
            try:
                is_free = not self._node.is_paused and self._monotonic() >= self._pause_until
                if is_free and self.run_once(name):
                    continue
            except StoreError as error:
                self._note_fault(error.code)
            except Exception as error:  # noqa: BLE001  # the worker's top loop: a bug costs one job an attempt
                log("bug", level=logging.ERROR, error=type(error).__name__)
                self._note_fault(_DIED)
            self._node.has_work.wait(_POLL_SECONDS)
            self._node.has_work.clear()

    def _do(self, job: Job) -> None:
        slide, path, code = self._find_slide(job)
        told = Told(code=code) if path is None else self._run_child(job, path, case_of(slide))
        try:
            if told.done is not None:
                crash_here("edge.after-read")
                self._commit(job, told.done)
                crash_here("edge.after-outcome")
                self.fault = ""
                log(f"{job.step}-done", slide=job.slide_sha256[:12], attempt=job.attempts)
            else:
                self._settle_failure(job, told.code)
        except LeaseLostError:
            log("lease-lost", slide=job.slide_sha256[:12])

    def _commit(self, job: Job, done: Mapping[str, Any]) -> None:
        node = self._node

        def commit(work: Any) -> None:
            if job.step == REGIONS:
                record_regions(work, node, job, done["regions"])
            else:
                record_reading(work, node, job, done)

        node.store.retrying(node.tenant, commit)
        node.wake_pump()

    def _settle_failure(self, job: Job, code: str) -> None:
        node = self._node
        if code == _AWAY:
            self._hold(job)
            return
        if code in NODES_FAULT or code == _STOPPED:
            if code != _STOPPED:
                self._note_fault(code)
            with node.store.transaction(node.tenant) as work:
                work.jobs.give_back(job)
            return
        can_retry = code not in FINAL and code != "policy-refuses"
        is_over = node.store.retrying(
            node.tenant, lambda work: record_failure(work, node, job, code, can_retry=can_retry)
        )
        node.wake_pump()
        log("slide-failed", slide=job.slide_sha256[:12], code=code, attempt=job.attempts, over=is_over)

    def _note_fault(self, code: str) -> None:
        if code != self.fault:
            log("reading-waits", code=code)
        self.fault = code
        is_brief = code in ("store-busy", "store-unreachable")
        self._pause_until = self._monotonic() + (_BUSY_PAUSE_SECONDS if is_brief else _FAULT_PAUSE_SECONDS)

    def _hold(self, job: Job) -> None:
        """Keep a job whose slide's folder is away for a while, so that it stands in no other slide's way."""
        node, until = self._node, self._monotonic() + _AWAY_SECONDS
        with node.store.transaction(node.tenant) as work:
            held = work.jobs.heartbeat(job, seconds=10 * _AWAY_SECONDS)
        with self._away_lock:
            self._away.append((until, held))
            node.away.add(job.slide_sha256)
        log("slide-away", slide=job.slide_sha256[:12])

    def _give_back_away(self, *, everything: bool = False) -> None:
        """Give held jobs back when their time has come; it costs them no attempt."""
        now = self._monotonic()
        with self._away_lock:
            due = [job for until, job in self._away if everything or until <= now]
            self._away = [(until, job) for until, job in self._away if not (everything or until <= now)]
        if not due:
            return
        self._node.away.difference_update(job.slide_sha256 for job in due)
        try:
            with self._node.store.transaction(self._node.tenant) as work:
                for job in due:
                    work.jobs.give_back(job)
        except (StoreError, LeaseLostError) as error:
            log("not-given-back", code=error.code)  # the lease ends by itself

    def _find_slide(self, job: Job) -> tuple[SlideRecord, Path | None, str]:
        """The slide, and where it lies now, or why it cannot be read."""
        with self._node.store.reading(self._node.tenant) as work:
            slide = work.slides.get(job.slide_sha256)
        places = [Path(place) for place in slide.facts.get("places", {})]
        for path in places:
            try:
                if path.exists():
                    return slide, path, ""
            except OSError:
                continue
        return slide, None, _AWAY if any(self._is_away(path) for path in places) else _GONE

    def _run_child(self, job: Job, path: Path, case: str) -> Told:
        own = self._node.settings.reading
        order = {
            "step": job.step,
            "slide": job.slide_sha256,
            "path": str(path),
            "folder": str(self._node.places.folder),
            "policy": str(self._node.settings.policy_file.resolve()),
            "receiver": self._node.settings.policy.receiver,
            "encoder": own.encoder,
            "fingerprint": self._node.model.partition(":")[2],
            "engine": own.engine,
            "threads": self._threads_each,
            "profile": own.profile,
            "heads": list(own.heads) or None,
            "site": own.site,
            "case": case,
            "estimate_mpp": own.estimate_mpp,
            "rectangles": job.payload.get("rectangles", []),
        }
        try:
            child = _start_child()
        except OSError:
            return Told(code=_NO_PROCESS)
        answer: list[bytes] = []
        listener = threading.Thread(target=lambda: answer.append(_listen(child)), daemon=True)
        listener.start()
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(order).encode() + b"\n")
            child.stdin.flush()
            code = self._wait(job, listener)
        except OSError:
            code = _DIED
        finally:
            child.kill()
            child.wait()
            listener.join(5)
            for pipe in (child.stdin, child.stdout):
                _close_quietly(pipe)
        return Told(code=code) if code else _read_answer(answer[0] if answer else b"")

    def _wait(self, job: Job, listener: threading.Thread) -> str:
        """Wait for a child and hold its job; why it must end early, else empty."""
        own = self._node.settings.reading
        began = beat = self._monotonic()
        while listener.is_alive():
            listener.join(_LOOK_SECONDS)
            now = self._monotonic()
            if self._stop.is_set():
                return _STOPPED
            if now - began > own.slide_seconds:
                return _TOO_LONG
            if now - beat > own.lease_seconds / 3:
                beat = now
                try:
                    with self._node.store.transaction(self._node.tenant) as work:
                        work.jobs.heartbeat(job, seconds=own.lease_seconds)
                except FullStoreError:
                    continue  # the lease may run out; then what was read is found whole and taken
        return ""


def _start_child() -> subprocess.Popen[bytes]:
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
    return subprocess.Popen(
        [sys.executable, "-m", "slideway.edge.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries may print what a slide says of a patient
        **options,
    )


def _listen(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    try:
        return child.stdout.readline()
    except (OSError, ValueError):
        return b""


def _read_answer(line: bytes) -> Told:
    try:
        told = json.loads(line)
        if "error" in told:
            return Told(code=str(told["error"]))
        return Told(done=dict(told["done"]))
    except (ValueError, KeyError, TypeError):
        return Told(code=_DIED)


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:
        return

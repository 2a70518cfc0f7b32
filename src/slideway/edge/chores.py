"""What must be seen to now and then: what was sent, what waits too long, what policy forbids now, how the node is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import slideway
from slideway.bundles.policy import Level
from slideway.core.crash import crash_here
from slideway.core.errors import StoreError
from slideway.edge.ends import decide_end
from slideway.edge.logs import log
from slideway.edge.node import ACTOR, Node, end_slide
from slideway.edge.space import Space
from slideway.store.outbox import OPEN, OutboxState
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message

_SLOW_SECONDS = 60.0
_HOUR_MS = 3_600_000
_MOST_STATUSES = 10**6
_DONE = {OutboxState.ACKNOWLEDGED, OutboxState.WITHDRAWN}


class Chores:
    """Done one after the other by one thread; each is idempotent."""

    def __init__(self, node: Node, space: Space, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._node, self._space, self._monotonic = node, space, monotonic
        self._acknowledged = -1
        self._slow, self._told = float("-inf"), float("-inf")
        self._level: Level | None = None
        self._statuses, self._base, self._last_status = 0, 0, ""

    def begin(self) -> None:
        """Note the start; what the last life left half-done is swept."""
        node = self._node
        with node.store.transaction(node.tenant) as work:
            work.audit.append("edge-started", actor=ACTOR, subject="node", details={"version": slideway.__version__})
        with node.store.reading(node.tenant) as work:
            # Grows with every start, whatever the clock says: the newest status is the newest.
            self._base = work.audit.head().entries * _MOST_STATUSES
            rows = work.outbox.find_all()
        node.outgoing.sweep({row.blob_sha256 for row in rows if row.blob_sha256})
        open_statuses = [row.key for row in rows if row.kind == "status" and row.state.value in OPEN]
        if open_statuses:
            with node.store.transaction(node.tenant) as work:
                for key in open_statuses:
                    work.outbox.withdraw(key, reason="newer-status")

    def run_once(self) -> None:
        """Do what is due."""
        self._space.keep_reserve()
        now = self._monotonic()
        is_slow = now - self._slow >= _SLOW_SECONDS
        self._quarantine()
        self._obey_policy()
        self._note_sent()
        if is_slow:
            self._slow = now
            self._answer_alone()
            self._space.evict()
        if now - self._told >= self._node.settings.cloud.status_minutes * 60 and self._node.rights.is_enrolled:
            self._told = now
            self._tell_status()

    def _quarantine(self) -> None:
        node = self._node
        with node.store.reading(node.tenant) as work:
            is_any = work.jobs.counts()
        if not any(is_any[state] for state in is_any if state.value == "leased"):
            return

        def quarantine(work: Work) -> int:
            jobs = work.jobs.quarantine_spent()
            for job in jobs:
                if job.step == "read":
                    end_slide(work, job.slide_sha256, SlideState.REJECTED, job.reason, tell=node.rights.may_tell)
            return len(jobs)

        node.store.retrying(node.tenant, quarantine)

    def _obey_policy(self) -> None:
        """What waits and may not leave any more is withdrawn; the slide then ends by what the edge says."""
        right = self._node.rights.now()
        if self._level is not None and right.level >= self._level:
            self._level = right.level
            return
        self._node.store.retrying(self._node.tenant, lambda work: self._withdraw(work, right.level))
        self._level = right.level

    def _withdraw(self, work: Work, level: Level) -> None:
        about_slides = [row for row in work.outbox.find_all() if row.state.value in OPEN and row.slide_sha256]
        for row in about_slides:
            slide = work.slides.get(str(row.slide_sha256))
            needed = Level.OPINIONS
            if row.kind == "bundle":
                needed = Level[str((slide.facts.get("leaving") or {}).get("level", "slide")).upper()]
                needed = min(needed, Level.FEATURES)  # more than features is never in a bundle
            elif row.kind in ("region", "regions"):
                needed = Level.REGIONS
            if level < needed:
                work.outbox.withdraw(row.key, reason="policy-changed")
                work.audit.append("withdrawn", actor=ACTOR, subject=slide.slide_sha256, details={"kind": row.kind})
                if row.kind == "bundle" and row.tier == 0:
                    self._end_alone(work, slide)

    def _note_sent(self) -> None:
        """A slide whose bundle the cloud has is sent; looked at only when a receipt came."""
        node = self._node
        with node.store.reading(node.tenant) as work:
            acknowledged = work.outbox.counts()[OutboxState.ACKNOWLEDGED]
            if acknowledged == self._acknowledged:
                return
            sent = [slide for slide in work.slides.find_all(state=SlideState.ENCODED) if self._is_sent(work, slide)]

        def note(work: Work) -> None:
            for slide in sent:
                if work.slides.get(slide.slide_sha256).state is SlideState.ENCODED:
                    work.slides.move(slide.slide_sha256, SlideState.SENT)
                    work.audit.append("slide-sent", actor=ACTOR, subject=slide.slide_sha256)
            crash_here("edge.before-sent")

        if sent:
            node.store.retrying(node.tenant, note)
        self._acknowledged = acknowledged

    def _is_sent(self, work: Work, slide: SlideRecord) -> bool:
        leaving = slide.facts.get("leaving")
        if not leaving:
            return False
        states = [
            row.state
            for row in work.outbox.find_all(slide_sha256=slide.slide_sha256)
            if row.blob_sha256 == leaving["sha256"]
        ]
        return OutboxState.ACKNOWLEDGED in states and set(states) <= _DONE

    def _answer_alone(self) -> None:
        """Slides that the cloud has not answered for too long end by what the edge says."""
        node, late = self._node, []
        after_ms = round(node.settings.cloud.answer_alone_after_hours * _HOUR_MS)
        now_ms = time.time_ns() // 1_000_000
        with node.store.reading(node.tenant) as work:
            for state in (SlideState.ENCODED, SlideState.SENT):
                late += [slide for slide in work.slides.find_all(state=state) if now_ms - slide.changed_ms > after_ms]
        for slide in late:
            node.store.retrying(node.tenant, partial(self._end_alone, slide=slide))
            crash_here("edge.after-alone")
            log("slide-ended-alone", slide=slide.slide_sha256[:12])

    def _end_alone(self, work: Work, slide: SlideRecord) -> None:
        edge = [record.content for record in work.findings.of_slide(slide.slide_sha256, place="edge")]
        end = decide_end(str(slide.facts.get("reading", {}).get("verdict", "")), edge, None)
        end_slide(work, slide.slide_sha256, end.state, end.reason, tell=self._node.rights.may_tell)

    def _tell_status(self) -> None:
        """Say how the node is; of statuses that could not be sent only the newest waits."""
        node, right = self._node, self._node.rights.now()
        self._statuses += 1
        sequence = self._base + self._statuses
        body: dict[str, Any] = {"version": slideway.__version__, "may_leave": right.level.word}

        def tell(work: Work) -> None:
            if right.level > Level.NOTHING:
                body.update(self._count(work))
            if self._last_status:
                work.outbox.withdraw(self._last_status, reason="newer-status")
            put_message(work, Message(f"status:{sequence}", "status", "", sequence, body))

        node.store.retrying(node.tenant, tell)
        self._last_status = f"status:{sequence}"
        node.wake_pump()

    def _count(self, work: Work) -> dict[str, Any]:
        slides, outbox = work.slides.counts(), work.outbox.counts()
        waiting = outbox[OutboxState.WAITING] + outbox[OutboxState.SENT]
        disk = self._space.state()
        oldest_ms = min((row.created_ms for row in work.outbox.find_open(peer="cloud", limit=500)), default=None)
        lag_ms = 0 if oldest_ms is None else time.time_ns() // 1_000_000 - oldest_ms
        left = sum(slide.size_bytes for slide in work.slides.find_all() if slide.facts.get("leaving"))
        return {
            "queue": slides[SlideState.ACCEPTED],
            "waiting": waiting,
            "waiting_bytes": work.outbox.waiting_bytes(),
            "lag_seconds": max(0, lag_ms // 1000),
            "saved_bytes": max(0, left - work.bytes.total(direction="out").total_bytes),
            "ended": sum(slides[state] for state in (SlideState.REPORTED, SlideState.REFERRED)),
            "failures": slides[SlideState.REJECTED],
            "disk_free_bytes": shutil.disk_usage(self._node.places.folder).free,
            "intake": "stopped" if disk.stopped_because else "open",
        }

    def run_fenced(self) -> str:
        """`run_once`; why it could not be done, as a code: then it is done at the next turn."""
        try:
            self.run_once()
        except StoreError as error:
            return error.code
        return ""

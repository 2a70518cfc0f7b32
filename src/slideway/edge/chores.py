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
from slideway.edge.ends import decide_end
from slideway.edge.logs import log
from slideway.edge.node import ACTOR, Node, end_slide
from slideway.edge.space import Space
from slideway.store.outbox import OutboxState
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message

_SLOW_SECONDS = 60.0
_HOUR_S = 3600
_CLOUD = "cloud"
_MOST_AT_A_TIME = 500
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
            named = work.outbox.blobs()
            open_statuses = [row.key for row in work.outbox.find_open(peer=_CLOUD) if row.kind == "status"]
        node.outgoing.sweep(named)
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
        self.obey_policy()
        self._note_sent()
        if is_slow:
            self._slow = now
            self._answer_alone()
            self._space.evict()
        if now - self._told >= self._node.settings.cloud.status_minutes * 60 and self._node.rights.is_enrolled:
            self._told = now
            self._tell_status()
        self._keep_served()

    def _keep_served(self) -> None:
        """Last, and without an end of the turn: on a full disk, policy and eviction must go on."""
        try:
            self._node.served.keep()
        except OSError as error:
            log("served-not-kept", code=type(error).__name__)  # in memory it goes on; tried again at the next turn

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
                    end_slide(work, node, job.slide_sha256, SlideState.REJECTED, job.reason)
            return len(jobs)

        node.store.retrying(node.tenant, quarantine)

    def obey_policy(self) -> None:
        """What waits and may not leave any more is withdrawn; the slide then ends by what the edge says."""
        right = self._node.rights.now()
        if self._level is not None and right.level >= self._level:
            self._level = right.level
            return
        self._node.store.retrying(self._node.tenant, lambda work: self._withdraw(work, right.level))
        self._level = right.level

    def _withdraw(self, work: Work, level: Level) -> None:
        about_slides = [row for row in work.outbox.find_open(peer=_CLOUD) if row.slide_sha256]
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
                    self._end_alone(work, slide.slide_sha256)

    def _note_sent(self) -> None:
        """A slide whose bundle the cloud has is sent; looked at only when a receipt came."""
        node = self._node
        with node.store.reading(node.tenant) as work:
            acknowledged = work.outbox.counts()[OutboxState.ACKNOWLEDGED]
            if acknowledged == self._acknowledged:
                return
            sent = [slide for slide in work.slides.find_delivered(limit=_MOST_AT_A_TIME) if self._is_sent(work, slide)]

        def note(work: Work) -> None:
            for slide in sent:
                if work.slides.get(slide.slide_sha256).state is SlideState.ENCODED:
                    work.slides.move(slide.slide_sha256, SlideState.SENT)
                    work.audit.append("slide-sent", actor=ACTOR, subject=slide.slide_sha256)
            crash_here("edge.before-sent")

        if sent:
            node.store.retrying(node.tenant, note)
        if len(sent) < _MOST_AT_A_TIME:
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
        """Slides that the cloud has not answered for too long end by what the edge says.

        The time is the node's own time of service: a clock that jumps must not let a slide end without the cloud.
        """
        node, late = self._node, []
        after_s = node.settings.cloud.answer_alone_after_hours * _HOUR_S
        with node.store.reading(node.tenant) as work:
            for slide in work.slides.walk((SlideState.ENCODED, SlideState.SENT)):
                for_s = node.served.since(slide.facts.get("encoded_at_s"))
                if for_s is None or for_s > after_s:
                    late.append((slide.slide_sha256, for_s is None))
        for sha256, is_unknown in late:
            if is_unknown:  # of an older Slideway, or the node's count was lost: its time begins now
                facts = {"encoded_at_s": node.served.seconds()}
                node.store.retrying(node.tenant, partial(_add_facts, sha256=sha256, facts=facts))
                continue
            node.store.retrying(node.tenant, partial(self._end_alone, sha256=sha256))
            crash_here("edge.after-alone")
            log("slide-ended-alone", slide=sha256[:12])

    def _end_alone(self, work: Work, sha256: str) -> None:
        slide = work.slides.get(sha256)
        edge = [record.content for record in work.findings.of_slide(sha256, place="edge")]
        end = decide_end(str(slide.facts.get("reading", {}).get("verdict", "")), edge, None)
        end_slide(work, self._node, sha256, end.state, end.reason)

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
        oldest_ms = work.outbox.oldest_open_ms(peer=_CLOUD)
        lag_ms = 0 if oldest_ms is None else time.time_ns() // 1_000_000 - oldest_ms
        left = work.slides.total_bytes(with_bundle=True)
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


def _add_facts(work: Work, sha256: str, facts: dict[str, Any]) -> None:
    work.slides.add_facts(sha256, facts)

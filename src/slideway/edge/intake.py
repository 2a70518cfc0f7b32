"""Take settled slides in: hash once, then slide, job, message and audit in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slideway.core.crash import crash_here
from slideway.core.errors import SlidewayError, StoreError
from slideway.edge.logs import log
from slideway.edge.node import ACTOR, READ, Node, tell_accepted
from slideway.edge.watch import SettledSlide, Watcher
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work

HashSlide = Callable[[Path], str]


class Intake:
    """Takes slides in as long as there is room."""

    def __init__(self, node: Node, watcher: Watcher, *, hash_slide: HashSlide) -> None:
        self._node, self._watcher, self._hash_slide = node, watcher, hash_slide
        self.waiting = 0  # settled slides that there was no room for, at the last look

    def recall(self) -> None:
        """Tell the watcher what the store knows, so that nothing is hashed twice."""
        with self._node.store.reading(self._node.tenant) as work:
            slides = work.slides.find_all()
        for slide in slides:
            self._watcher.remember(slide.facts.get("places", {}))

    def run_once(self, *, has_room: Callable[[], bool]) -> list[str]:
        """Look once and take in what has settled; hashes of the slides.

        Args:
            has_room: Asked before each: below the high-water mark nothing more is taken in.
        """
        taken: list[str] = []
        settled = self._watcher.look()
        self.waiting = 0
        for number, slide in enumerate(settled):
            if not has_room():
                self.waiting = len(settled) - number
                break
            sha256 = self._take(slide)
            if sha256 is not None:
                taken.append(sha256)
        return taken

    def _take(self, slide: SettledSlide) -> str | None:
        try:
            sha256 = self._hash_slide(slide.path)
        except SlidewayError as error:
            log("slide-not-hashed", code=error.code)
            self._watcher.note_unreadable(slide)
            return None
        if not self._watcher.is_still_so(slide):
            self._watcher.note_unreadable(slide)  # it changed under our hands: it had not settled
            return None
        crash_here("edge.after-hash")
        try:
            is_new = self._node.store.retrying(self._node.tenant, lambda work: self._accept(work, slide, sha256))
        except StoreError as error:
            log("slide-not-taken", code=error.code)
            return None  # it lies where it lay, and is seen again
        crash_here("edge.after-accept")
        self._watcher.note_taken(slide)
        if is_new:
            log("slide-accepted", slide=sha256[:12], urgent=slide.is_urgent, n_bytes=slide.stamp.n_bytes)
            self._node.has_work.set()
            self._node.wake_pump()
        return sha256

    def _accept(self, work: Work, slide: SettledSlide, sha256: str) -> bool:
        known = work.slides.find(sha256)
        places = {str(slide.path): slide.stamp.text}
        if known is not None:
            work.slides.add_facts(sha256, {"places": known.facts.get("places", {}) | places})
            if known.state is SlideState.ACCEPTED:
                self._enqueue(work, known)
            return False
        facts = {"places": places}
        accepted = work.slides.accept(sha256, is_urgent=slide.is_urgent, size_bytes=slide.stamp.n_bytes, facts=facts)
        self._enqueue(work, accepted)
        details = {"bytes": slide.stamp.n_bytes, "urgent": slide.is_urgent}
        work.audit.append("slide-accepted", actor=ACTOR, subject=sha256, details=details)
        if self._node.rights.may_tell:
            tell_accepted(work, accepted)
        return True

    def _enqueue(self, work: Work, slide: SlideRecord) -> None:
        work.jobs.enqueue(
            slide.slide_sha256,
            READ,
            model=self._node.model,
            is_urgent=slide.is_urgent,
            attempts_allowed=self._node.settings.reading.attempts,
        )

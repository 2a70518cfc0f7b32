"""Take settled slides in: hash once, then slide, job, message and audit in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slideway.core.crash import crash_here
from slideway.core.errors import ConflictError, SlidewayError, StoreError
from slideway.edge.logs import log
from slideway.edge.node import ACTOR, READ, Node, tell_accepted
from slideway.edge.watch import SettledSlide, Watcher
from slideway.registry.pseudonym import load_pseudonym_secret, make_pseudonym, write_alike
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work

_MOST_ACCESSION = 64  # letters, as the store keeps it
HashSlide = Callable[[Path], str]


class Intake:
    """Takes slides in as long as there is room."""

    def __init__(self, node: Node, watcher: Watcher, *, hash_slide: HashSlide) -> None:
        self._node, self._watcher, self._hash_slide = node, watcher, hash_slide
        self.waiting = 0  # settled slides that there was no room for, at the last look

    def recall(self) -> None:
        """Tell the watcher what the store knows, so that nothing is hashed twice."""
        with self._node.store.reading(self._node.tenant) as work:
            for slide in work.slides.walk():
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
        case = find_case(self._node, slide.path.name)
        if known is not None:
            work.slides.add_facts(sha256, {"places": known.facts.get("places", {}) | places})
            if case is not None:
                self._match(work, sha256, case)
            if known.state is SlideState.ACCEPTED:
                self._enqueue(work, known)
            return False
        facts = {"places": places}
        accepted = work.slides.accept(sha256, is_urgent=slide.is_urgent, size_bytes=slide.stamp.n_bytes, facts=facts)
        if case is not None:
            self._match(work, sha256, case)
        self._enqueue(work, accepted)
        details = {"bytes": slide.stamp.n_bytes, "urgent": slide.is_urgent}
        work.audit.append("slide-accepted", actor=ACTOR, subject=sha256, details=details)
        if self._node.rights.may_tell:
            tell_accepted(work, accepted)
        return True

    def _match(self, work: Work, sha256: str, case: tuple[str, str]) -> None:
        """Note which case a slide belongs to; what was noted first stands, and the audit says that they differ."""
        pseudonym, accession = case
        work.cases.add(pseudonym, accession=accession)
        try:
            work.slides.match(sha256, case_id=pseudonym)
        except ConflictError:
            work.audit.append("case-differs", actor=ACTOR, subject=sha256, details={"case": pseudonym})

    def _enqueue(self, work: Work, slide: SlideRecord) -> None:
        work.jobs.enqueue(
            slide.slide_sha256,
            READ,
            model=self._node.model,
            is_urgent=slide.is_urgent,
            attempts_allowed=self._node.settings.reading.attempts,
        )


def find_case(node: Node, name: str) -> tuple[str, str] | None:
    """Pseudonym and accession number of the case that a slide's file name tells; None when it tells none.

    The number stays in the node's own store; only the pseudonym, made with a secret of this node, may leave.
    """
    pattern = node.settings.case_pattern
    found = pattern.search(name) if pattern is not None else None
    accession = write_alike(found["case"] or "") if found is not None else ""
    if not accession or len(accession) > _MOST_ACCESSION:
        return None
    return make_pseudonym(load_pseudonym_secret(node.places.keys), accession), accession

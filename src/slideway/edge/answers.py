"""What each kind of message from the cloud does, inside the transaction that takes it in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slideway.bundles.policy import Level
from slideway.core.crash import crash_here
from slideway.core.errors import ConflictError
from slideway.edge.consult import take_answer, take_state
from slideway.edge.ends import decide_end, restore_finding
from slideway.edge.node import ACTOR, REGIONS, Node, end_slide, set_urgent
from slideway.edge.outcome import record_finding
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work
from slideway.sync.mailbox import Arrival, Handler
from slideway.sync.outgoing import FIRST_TIER, withdraw_tiers

CLOUD = "cloud"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOLD = ("provisional", "tier", "bundle", "quality", "tiles", "groups", "novelty", "heads", "silent")
MOST_REGIONS = 64


class Answers:
    """What a node does with what its cloud says."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def handlers(self) -> dict[str, Handler]:
        """By kind of message; `enough` is understood by whatever carries messages."""
        return {
            "opinion": self.take_opinion,
            "rejected": self.take_rejection,
            "ask-regions": self.take_question,
            "consult-answer": self.take_consultation,
            "consult-state": self.take_consultation_state,
            "command": self.take_command,
        }

    def take_opinion(self, work: Work, arrival: Arrival) -> None:
        """Keep the cloud's opinion beside the edge's; a final one lets the slide end."""
        body = arrival.message.body
        slide = _find_slide(work, body, arrival)
        if slide is None:
            return
        if arrival.is_newest:
            work.slides.add_facts(slide.slide_sha256, {"cloud": {key: body.get(key) for key in _TOLD}})
        if body.get("provisional") is True:
            return
        findings = [item for item in body.get("findings", []) if isinstance(item, dict)]
        self._keep_findings(work, slide, findings)
        crash_here("edge.in-opinion")
        if slide.is_ended:
            work.audit.append("opinion-late", actor=CLOUD, subject=slide.slide_sha256)
            return
        if slide.state is SlideState.ACCEPTED:
            return  # another node sent it; here it is still to be read
        work.slides.move(slide.slide_sha256, SlideState.ANSWERED)
        work.audit.append(
            "slide-answered", actor=CLOUD, subject=slide.slide_sha256, details={"findings": len(findings)}
        )
        edge = [record.content for record in work.findings.of_slide(slide.slide_sha256, place="edge")]
        end = decide_end(str(slide.facts.get("reading", {}).get("verdict", "")), edge, findings)
        end_slide(work, self._node, slide.slide_sha256, end.state, end.reason)

    def take_rejection(self, work: Work, arrival: Arrival) -> None:
        """The cloud refused a bundle for good: a person looks at the slide. A region that it refuses only stays."""
        body = arrival.message.body
        slide = _find_slide(work, body, arrival)
        code, kind = _word(body.get("code")), "region" if body.get("kind") == "region" else "bundle"
        if isinstance(body.get("bundle"), str):
            first = FIRST_TIER[kind]
            withdraw_tiers(work, kind, str(body["bundle"]), from_tier=first, reason=f"rejected:{code}")
        if slide is None:
            return
        if kind == "region":
            work.audit.append("region-rejected", actor=CLOUD, subject=slide.slide_sha256, details={"code": code})
            return
        if slide.state is SlideState.ACCEPTED:
            return
        work.audit.append("bundle-rejected", actor=CLOUD, subject=slide.slide_sha256, details={"code": code})
        work.slides.add_facts(slide.slide_sha256, {"refused": code})
        end_slide(work, self._node, slide.slide_sha256, SlideState.REFERRED, "cloud-refused-bundle")

    def take_question(self, work: Work, arrival: Arrival) -> None:
        """The cloud asks for pixels: a job where the policy lets regions leave, else only a note that it asked."""
        body = arrival.message.body
        slide = _find_slide(work, body, arrival)
        if slide is None:
            return
        boxes, bundle = _read_boxes(body.get("rectangles")), body.get("bundle")
        if not boxes or not isinstance(bundle, str) or not _SHA256.fullmatch(bundle):
            work.audit.append("question-malformed", actor=CLOUD, subject=slide.slide_sha256)
            return
        details: dict[str, str | int | bool | None] = {"count": len(boxes), "because": _word(body.get("because"))}
        if self._node.rights.now().level < Level.REGIONS:
            work.audit.append("regions-refused", actor=ACTOR, subject=slide.slide_sha256, details=details)
            return
        payload = {"bundle": bundle, "rectangles": boxes}
        work.jobs.enqueue(
            slide.slide_sha256, REGIONS, model=bundle, payload=payload, is_urgent=slide.is_urgent, priority=50
        )
        work.audit.append("regions-asked", actor=CLOUD, subject=slide.slide_sha256, details=details)
        self._node.has_work.set()

    def take_consultation(self, work: Work, arrival: Arrival) -> None:
        """A specialist has answered."""
        slide = _find_slide(work, arrival.message.body, arrival)
        if slide is not None:
            take_answer(work, slide, arrival)

    def take_consultation_state(self, work: Work, arrival: Arrival) -> None:
        """A specialist has taken a question, or given it back."""
        slide = _find_slide(work, arrival.message.body, arrival)
        if slide is not None:
            take_state(work, slide, arrival)

    def take_command(self, work: Work, arrival: Arrival) -> None:
        """Pause or resume reading, or put a slide first; nothing else can be commanded from outside."""
        body = arrival.message.body
        order = _word(body.get("do"))
        if not arrival.is_newest:  # on a stick an older one may come later
            work.audit.append("command-late", actor=CLOUD, subject="node", details={"do": order})
            return
        work.audit.append("command", actor=CLOUD, subject="node", details={"do": order})
        # Before the commit: a crash between lets the message come again, with the same effect.
        if order == "pause":
            self._node.places.paused.touch()
        elif order == "resume":
            self._node.places.paused.unlink(missing_ok=True)
            self._node.has_work.set()
        elif order == "priority" and isinstance(body.get("urgent"), bool):
            slide = _find_slide(work, body, arrival)
            if slide is not None:
                set_urgent(work, self._node, slide.slide_sha256, is_urgent=body["urgent"], actor=CLOUD)

    def _keep_findings(self, work: Work, slide: SlideRecord, findings: list[dict[str, Any]]) -> None:
        fingerprint = str(slide.facts.get("reading", {}).get("fingerprint", ""))
        for finding in findings:
            if restore_finding(finding) is None or not _has_head(finding):
                # Refused, the message would come for ever; what cannot be understood is not kept, and that is noted.
                work.audit.append("finding-malformed", actor=CLOUD, subject=slide.slide_sha256)
                continue
            try:
                record_finding(work, slide.slide_sha256, finding, place="cloud", fingerprint=fingerprint)
            except ConflictError:
                # The first answer stands; that there was another is not passed over.
                work.audit.append("opinion-changed", actor=CLOUD, subject=slide.slide_sha256)


def _find_slide(work: Work, body: Mapping[str, Any], arrival: Arrival) -> SlideRecord | None:
    """The slide that a message is about; None, and a note, when it is not ours: refused, it would come for ever."""
    sha256 = body.get("slide")
    found = work.slides.find(sha256) if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None
    if found is None:
        details = {"kind": _word(arrival.message.kind)}
        work.audit.append("message-of-unknown-slide", actor=CLOUD, subject="-", details=details)
    return found


def _read_boxes(boxes: Any) -> list[list[int]]:
    if not isinstance(boxes, list) or len(boxes) > MOST_REGIONS:
        return []
    is_right = all(
        isinstance(box, list) and len(box) == 4 and all(type(edge) is int and abs(edge) < 2**31 for edge in box)
        for box in boxes
    )
    return [list(box) for box in boxes] if is_right else []


def _word(value: Any) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "-"


def _has_head(finding: Mapping[str, Any]) -> bool:
    head = finding.get("head")
    if not isinstance(head, dict) or len(str(finding["task"])) > 128:
        return False
    lengths = {"id": 128, "version": 64}
    is_named = all(0 < len(str(head.get(key, ""))) <= most for key, most in lengths.items())
    return is_named and _SHA256.fullmatch(str(head.get("sha256"))) is not None

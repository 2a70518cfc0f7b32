"""What the cloud notes of a slide: its nodes, its case, how far it came; tolerant of things that come in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slideway.core.errors import ConflictError
from slideway.store.jobs import Job
from slideway.store.slides import ENDS, TRANSITIONS, SlideRecord, SlideState
from slideway.store.work import Work

# Policy levels, as a node's status says them, at which pixels of regions may come from it.
_LETS_REGIONS = ("regions", "slide")


@dataclass(frozen=True)
class Sent:
    """A whole bundle that a node sent of a slide.

    Attributes:
        bundle: Hash of its file.
        model: What reads it: model of its job.
    """

    bundle: str
    model: str


def accept_slide(
    work: Work,
    slide_sha256: str,
    node: str,
    facts: Mapping[str, Any] | None = None,
    *,
    is_urgent: bool = False,
    sent: Sent | None = None,
) -> SlideRecord:
    """The slide, known from now on, that this node speaks of it, and what is known of it now.

    Args:
        work: Transaction.
        slide_sha256: The slide.
        node: Who speaks of it.
        facts: What is known of it now.
        is_urgent: Goes before others.
        sent: The bundle that came whole from this node.
    """
    new = {**(facts or {}), "nodes": [node], **({} if sent is None else {"sent": {node: asdict(sent)}})}
    slide = work.slides.accept(slide_sha256, is_urgent=is_urgent, facts=new)
    nodes = list(slide.facts.get("nodes", []))
    more = {name: fact for name, fact in (facts or {}).items() if name not in slide.facts or slide.facts[name] != fact}
    more |= {} if node in nodes else {"nodes": [*nodes, node]}
    known, now = slide.facts.get("sent", {}), None if sent is None else asdict(sent)
    more |= {} if now is None or known.get(node) == now else {"sent": {**known, node: now}}
    return work.slides.add_facts(slide_sha256, more, held=slide) if more else slide


def bundle_of(slide: SlideRecord, node: str, job: Job) -> str:
    """The bundle that an answer to a job is about for a node: its own, where it sent one that the job stands for.

    A node that reads a slide anew, or whose disk was replaced, or a second one that has the same slide, sends a bundle
    of its own; the job is done once.
    """
    sent = slide.facts.get("sent", {}).get(node, {})
    is_of_job = sent.get("model") == job.model
    return str(sent["bundle"] if is_of_job else job.payload["bundle"])


def lets_regions(work: Work, node: str) -> bool:
    """Whether a node said, when it last spoke of itself, that its policy lets pixels of regions leave."""
    known = work.nodes.find(node)  # not held: workers that settle slides of several nodes would wait for each other
    return known is not None and known.status.get("may_leave") in _LETS_REGIONS


def match_case(work: Work, slide: SlideRecord, pseudonym: str, site: str) -> None:
    """Note the pseudonym of a slide's case; one that was noted otherwise stays, and the audit says so."""
    if not pseudonym or slide.case_id == pseudonym:
        return
    work.cases.add(pseudonym, site=site)
    try:
        work.slides.match(slide.slide_sha256, case_id=pseudonym, held=slide)
    except ConflictError:
        work.audit.append("case-differs", actor="cloud", subject=slide.slide_sha256, details={"case": pseudonym})


def advance(
    work: Work, slide_sha256: str, state: SlideState, *, reason: str = "", held: SlideRecord | None = None
) -> bool:
    """Move a slide on where that is a way on; False, and nothing changed, where it is further already."""
    slide = held or work.slides.get(slide_sha256)
    if state not in TRANSITIONS[slide.state]:
        return slide.state is state
    work.slides.move(slide_sha256, state, reason=reason, held=slide)
    return True


def end_slide(work: Work, slide_sha256: str, state: SlideState, *, node: str, reason: str) -> None:
    """Note how a slide ended at its node; an end that was noted before stays, and the audit says that they differ."""
    assert state in ENDS
    slide = work.slides.get(slide_sha256)
    if slide.is_ended:
        if slide.state is not state:
            details = {"is": slide.state.value, "said": state.value}
            work.audit.append("end-differs", actor=node, subject=slide_sha256, details=details)
        return
    if state is SlideState.REPORTED:
        advance(work, slide_sha256, SlideState.ENCODED)  # a report stands on what was read, here or there
    work.slides.move(slide_sha256, state, reason=reason if state is not SlideState.REPORTED else "")

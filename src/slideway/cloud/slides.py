"""What the cloud notes of a slide: its nodes, its case, how far it came; tolerant of things that come in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slideway.core.errors import ConflictError
from slideway.store.slides import ENDS, TRANSITIONS, SlideRecord, SlideState
from slideway.store.work import Work


def accept_slide(
    work: Work, slide_sha256: str, node: str, facts: Mapping[str, Any] | None = None, *, is_urgent: bool = False
) -> SlideRecord:
    """The slide, known from now on, that this node speaks of it, and what is known of it now."""
    slide = work.slides.accept(slide_sha256, is_urgent=is_urgent)
    nodes = list(slide.facts.get("nodes", []))
    more = {name: fact for name, fact in (facts or {}).items() if name not in slide.facts or slide.facts[name] != fact}
    more |= {} if node in nodes else {"nodes": [*nodes, node]}
    return work.slides.add_facts(slide_sha256, more) if more else slide


def match_case(work: Work, slide: SlideRecord, pseudonym: str, site: str) -> None:
    """Note the pseudonym of a slide's case; one that was noted otherwise stays, and the audit says so."""
    if not pseudonym or slide.case_id == pseudonym:
        return
    work.cases.add(pseudonym, site=site)
    try:
        work.slides.match(slide.slide_sha256, case_id=pseudonym)
    except ConflictError:
        work.audit.append("case-differs", actor="cloud", subject=slide.slide_sha256, details={"case": pseudonym})


def advance(work: Work, slide_sha256: str, state: SlideState, *, reason: str = "") -> bool:
    """Move a slide on where that is a way on; False, and nothing changed, where it is further already."""
    slide = work.slides.get(slide_sha256)
    if state not in TRANSITIONS[slide.state]:
        return slide.state is state
    work.slides.move(slide_sha256, state, reason=reason)
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

"""The cloud's messages to a node, each under a name that makes it one message however often it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slideway.cloud.fit import fit_opinion
from slideway.cloud.slides import bundle_of
from slideway.core.errors import ConflictError
from slideway.store.consultations import Consultation
from slideway.store.database import now_ms
from slideway.store.jobs import Job, JobState
from slideway.store.slides import SlideRecord
from slideway.store.work import Work
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message

READING = "reading"
"""What `pause` and `resume` are about."""
ALL_TIERS = 2  # the last tier of a bundle that an opinion needs


def put_opinion(work: Work, node: str, body: Mapping[str, Any], *, is_urgent: bool = False) -> None:
    """Let an opinion go to a node; the first one on a tier of a bundle counts."""
    bundle, tier, slide = str(body["bundle"]), int(body["tier"]), str(body["slide"])
    message = fit_opinion(Message(f"opinion:{bundle}:t{tier}:{node}", "opinion", slide, tier, body))
    _put_once(work, node, message, slide, is_urgent=is_urgent)


def put_settled_opinion(work: Work, slide: SlideRecord, node: str, job: Job) -> None:
    """Give a node what a job that has ended came to, about the node's own bundle; nothing of one that goes on.

    The job may have ended long ago: a slide is diagnosed once by each encoder, and bundles of it may come again, from
    this node or another.
    """
    body = (job.result or {}).get("opinion")
    if job.state is JobState.QUARANTINED:
        body = describe_given_up(slide, job, job.reason)
    if not isinstance(body, Mapping) or (job.state is JobState.QUARANTINED and body["provisional"]):
        return
    put_opinion(work, node, {**body, "bundle": bundle_of(slide, node, job)}, is_urgent=slide.is_urgent)


def describe_given_up(slide: SlideRecord, job: Job, code: str) -> dict[str, Any]:
    """The opinion on a slide of which the cloud could read nothing: a person has to look."""
    tier = int(job.payload["tier"])
    return {
        "slide": slide.slide_sha256,
        "bundle": str(job.payload["bundle"]),
        "tier": tier,
        "provisional": tier < ALL_TIERS,
        "quality": str(slide.facts.get("verdict", "")),
        "tiles": 0,
        "findings": [],
        "heads": [],
        "silent": [f"The cloud could not read this bundle ({code})."],
        "groups": None,
        "novelty": None,
        "trouble": code,
    }


def put_ask(work: Work, node: str, slide: str, bundle: str, rectangles: Sequence[Sequence[int]], because: str) -> None:
    """Ask a node for regions as pixels.

    Args:
        work: Transaction.
        node: Whom.
        slide: Hash of the slide.
        bundle: Hash of the bundle that raised the question.
        rectangles: x, y, width and height in level-0 pixels.
        because: Code of the reason.
    """
    body = {"slide": slide, "bundle": bundle, "rectangles": [list(box) for box in rectangles], "because": because}
    _put_once(work, node, Message(f"ask:{bundle}:{node}", "ask-regions", slide, 0, body), slide)


def put_enough(work: Work, node: str, slide: str, bundle: str, *, from_tier: int) -> None:
    """Say that further tiers of a bundle are not wanted."""
    body = {"bundle": bundle, "slide": slide, "from_tier": from_tier}
    _put_once(work, node, Message(f"enough:{bundle}:{node}", "enough", slide, 0, body), slide)


def put_rejected(work: Work, node: str, slide: str, bundle: str, *, kind: str, code: str, text: str) -> None:
    """Say that a file was refused for good, and why.

    Args:
        work: Transaction.
        node: Whom.
        slide: Hash of the slide; empty when not said.
        bundle: Hash of the file: a bundle's, or a region's.
        kind: Which of them.
        code: Of the error.
        text: Of the error.
    """
    body = {"bundle": bundle, "kind": kind, "slide": slide, "code": code, "message": text[:500]}
    _put_once(work, node, Message(f"rejected:{bundle}:{code}:{node}", "rejected", slide, 0, body), slide or None)


def put_answer(work: Work, node: str, consultation: str, slide: str, body: Mapping[str, Any]) -> None:
    """Let a specialist's answer go to the node that asked."""
    _put_once(work, node, Message(f"consult-answer:{consultation}", "consult-answer", slide, 0, body), slide)


def put_consult_state(work: Work, row: Consultation) -> None:
    """Let the node that asked know that somebody took its question, or gave it back."""
    body = {
        "consultation": row.consultation_id,
        "slide": row.slide_sha256,
        "state": row.state.value,
        "specialist": row.specialist or "",
        "changed_ms": row.changed_ms,
    }
    name = f"consult-state:{row.consultation_id}:{row.state.value}:{row.changed_ms}"
    message = Message(name, "consult-state", row.consultation_id, row.changed_ms, body)
    _put_once(work, str(row.question["node"]), message, row.slide_sha256)


def put_command(work: Work, node: str, name: str, body: Mapping[str, Any]) -> None:
    """Let a command go to a node: `pause`, `resume` or `priority`.

    On a stick commands may come in any order: of `pause` and `resume` the one that was given last counts, and so of the
    priorities of one slide. Hold the node's row meanwhile, so that no two are given at the same place.

    Raises:
        ConflictError: The name is there with another body.
    """
    given = work.outbox.find(name)
    if given is not None:  # the same command again: as it was
        subject, sequence = str(given.payload["subject"]), int(given.payload["sequence"])
    else:
        last = work.outbox.find_last(peer=node, kind="command")
        before = 0 if last is None else int(last.payload["sequence"])
        subject, sequence = str(body.get("slide") or READING), max(now_ms(), before + 1)
    put_message(work, Message(name, "command", subject, sequence, body), peer=node, priority=10)


def _put_once(work: Work, node: str, message: Message, slide: str | None, *, is_urgent: bool = False) -> None:
    try:
        put_message(work, message, peer=node, slide_sha256=slide, is_urgent=is_urgent)
    except ConflictError:
        return  # said before, in other words: what was said stays

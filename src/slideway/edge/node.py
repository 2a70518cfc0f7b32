"""What the parts of a node share: its store, places and settings, and the few effects that several of them have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from slideway.core.pseudonym import is_pseudonym
from slideway.edge.rights import Rights
from slideway.edge.served import ServedTime
from slideway.edge.settings import EdgeSettings, Places
from slideway.edge.shelves import Outgoing
from slideway.store.database import Store
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message

ACTOR = "edge"
READ, REGIONS = "read", "regions"


@dataclass
class Node:
    """A node at work.

    Attributes:
        settings: As `edge.toml` says.
        store: Open for writing.
        tenant: Under which everything is kept.
        rights: What may leave now.
        outgoing: Files that leave.
        model: Id and fingerprint of the encoder.
        wake_pump: Called when something was put into the outbox.
        has_work: Set when there may be a slide to read.
        away: Hashes of slides that cannot be read now because their folder is away.
        after_referral: Called with hash and reason in the transaction in which a slide is referred.
        served: For how long it has served.
    """

    settings: EdgeSettings
    store: Store
    tenant: str
    rights: Rights
    outgoing: Outgoing
    model: str
    wake_pump: Callable[[], None] = lambda: None
    has_work: threading.Event = field(default_factory=threading.Event)
    away: set[str] = field(default_factory=set)
    after_referral: Callable[[Work, Node, str, str], None] | None = None

    def __post_init__(self) -> None:
        self.served = ServedTime(self.places.served)

    @property
    def places(self) -> Places:
        """Where things lie."""
        return self.settings.places

    @property
    def is_paused(self) -> bool:
        """The cloud's operator has paused reading."""
        return self.places.paused.exists()


def tell_accepted(work: Work, slide: SlideRecord) -> None:
    """Let the cloud know that a slide will come."""
    body = {"slide": slide.slide_sha256, "urgent": slide.is_urgent}
    message = Message(f"slide-accepted:{slide.slide_sha256}", "slide-accepted", slide.slide_sha256, 0, body)
    put_message(work, message, slide_sha256=slide.slide_sha256, is_urgent=slide.is_urgent)


def end_slide(work: Work, node: Node, slide_sha256: str, state: SlideState, reason: str, *, tell: bool = True) -> None:
    """Let a slide end, once, with its reason, and tell the cloud where it may know.

    Args:
        work: Transaction.
        node: Whose slide it is.
        slide_sha256: The slide; one that has ended stays as it is.
        state: Reported, referred or rejected.
        reason: A code.
        tell: The cloud should know; it does only where the policy lets it.
    """
    slide = work.slides.get(slide_sha256)
    if slide.is_ended:
        return
    work.slides.move(slide_sha256, state, reason=reason)
    work.slides.add_facts(slide_sha256, {"ended_at_s": node.served.seconds()})
    work.audit.append(f"slide-{state.value}", actor=ACTOR, subject=slide_sha256, details={"reason": reason})
    if tell and node.rights.may_tell:
        body = {"slide": slide_sha256, "state": state.value, "reason": reason}
        put_message(
            work,
            Message(f"slide-ended:{slide_sha256}", "slide-ended", slide_sha256, 0, body),
            slide_sha256=slide_sha256,
        )
    if state is SlideState.REFERRED and node.after_referral is not None:
        node.after_referral(work, node, slide_sha256, reason)


def set_urgent(work: Work, node: Node, slide_sha256: str, *, is_urgent: bool = True, actor: str = ACTOR) -> bool:
    """Put a slide, what is still to be done for it and what waits of it before all others, or back among them.

    Args:
        work: Transaction.
        node: Whose slide it is.
        slide_sha256: The slide.
        is_urgent: Before all others; otherwise in its turn.
        actor: Who wants it; the cloud is told of what is wanted here.

    Returns:
        Whether that changed anything.
    """
    is_changed = work.slides.make_urgent(slide_sha256, is_urgent=is_urgent)
    work.jobs.make_urgent(slide_sha256, is_urgent=is_urgent)
    work.outbox.make_urgent(slide_sha256, is_urgent=is_urgent)
    if not is_changed:
        return False
    work.audit.append("slide-urgent", actor=actor, subject=slide_sha256, details={"urgent": is_urgent})
    if actor == ACTOR and is_urgent and node.rights.may_tell and not work.slides.get(slide_sha256).is_ended:
        body = {"slide": slide_sha256, "urgent": True}
        message = Message(f"slide-urgent:{slide_sha256}", "slide-accepted", slide_sha256, 1, body)
        put_message(work, message, slide_sha256=slide_sha256, is_urgent=True, priority=20)
    node.has_work.set()
    return True


def case_of(slide: SlideRecord) -> str:
    """What may stand for a slide's case where others read it: its pseudonym; empty when it has none."""
    return slide.case_id if slide.case_id is not None and is_pseudonym(slide.case_id) else ""

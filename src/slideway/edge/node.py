"""What the parts of a node share: its store, places and settings, and the few effects that several of them have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from slideway.edge.rights import Rights
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


def end_slide(work: Work, slide_sha256: str, state: SlideState, reason: str, *, tell: bool) -> None:
    """Let a slide end, once, with its reason, and tell the cloud where it may know.

    Args:
        work: Transaction.
        slide_sha256: The slide; one that has ended stays as it is.
        state: Reported, referred or rejected.
        reason: A code.
        tell: The cloud may know.
    """
    slide = work.slides.get(slide_sha256)
    if slide.is_ended:
        return
    work.slides.move(slide_sha256, state, reason=reason)
    work.audit.append(f"slide-{state.value}", actor=ACTOR, subject=slide_sha256, details={"reason": reason})
    if tell:
        body = {"slide": slide_sha256, "state": state.value, "reason": reason}
        put_message(
            work,
            Message(f"slide-ended:{slide_sha256}", "slide-ended", slide_sha256, 0, body),
            slide_sha256=slide_sha256,
        )

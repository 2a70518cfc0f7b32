"""The cloud's messages to a node, each under a name that makes it one message however often it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slideway.core.errors import ConflictError
from slideway.store.work import Work
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message


def put_opinion(work: Work, node: str, body: Mapping[str, Any], *, is_urgent: bool = False) -> None:
    """Let an opinion go to a node; the first one on a tier of a bundle counts."""
    bundle, tier, slide = str(body["bundle"]), int(body["tier"]), str(body["slide"])
    message = Message(f"opinion:{bundle}:t{tier}:{node}", "opinion", slide, tier, body)
    _put_once(work, node, message, slide, is_urgent=is_urgent)


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
    body = {"bundle": bundle, "slide": slide, "tier": from_tier}
    _put_once(work, node, Message(f"enough:{bundle}:{node}", "enough", slide, 0, body), slide)


def put_rejected(work: Work, node: str, slide: str, bundle: str, *, code: str, text: str) -> None:
    """Say that a bundle was refused for good, and why."""
    body = {"bundle": bundle, "slide": slide, "code": code, "message": text[:500]}
    _put_once(work, node, Message(f"rejected:{bundle}:{code}:{node}", "rejected", slide, 0, body), slide or None)


def put_answer(work: Work, node: str, consultation: str, slide: str, body: Mapping[str, Any]) -> None:
    """Let a specialist's answer go to the node that asked."""
    _put_once(work, node, Message(f"consult-answer:{consultation}", "consult-answer", slide, 0, body), slide)


def put_command(work: Work, node: str, name: str, body: Mapping[str, Any]) -> None:
    """Let a command go to a node: `pause`, `resume` or `priority`."""
    put_message(work, Message(name, "command", "", 0, body), peer=node, priority=10)


def _put_once(work: Work, node: str, message: Message, slide: str | None, *, is_urgent: bool = False) -> None:
    try:
        put_message(work, message, peer=node, slide_sha256=slide, is_urgent=is_urgent)
    except ConflictError:
        return  # said before, in other words: what was said stays

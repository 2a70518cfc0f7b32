"""Put into the outbox what is to leave, in the same transaction as what caused it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slideway.core.errors import MessageTooLargeError
from slideway.store.outbox import OutboxMessage
from slideway.store.work import Work
from slideway.sync.messages import MAX_MESSAGE_BYTES, Message, parse_message

# The tier that a file's first byte belongs to; a bundle holds tiers 0 to 3, regions are tier 3, whole slides tier 4.
FIRST_TIER = {"bundle": 0, "region": 3, "slide": 4}


@dataclass(frozen=True)
class Piece:
    """A stretch of a file that is acknowledged by itself.

    Attributes:
        tier: 0 to 4.
        key: Its name in outbox, inbox and receipt.
        start_bytes: Its first byte.
        end_bytes: The byte after its last.
    """

    tier: int
    key: str
    start_bytes: int
    end_bytes: int


@dataclass(frozen=True)
class UploadPlan:
    """One file that leaves, and where each of its tiers ends.

    Attributes:
        kind: `bundle`, `region` or `slide`.
        sha256: Hash of the whole file as it travels.
        slide: Hash of the slide that it belongs to.
        ends_bytes: Where each tier ends, tier after tier; the last is the file's length. A tier that is not there
            ends where the one before it ends.
    """

    kind: str
    sha256: str
    slide: str
    ends_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind not in FIRST_TIER or not self.ends_bytes or FIRST_TIER[self.kind] + len(self.ends_bytes) > 5:
            raise ValueError(f"{self.kind} with {len(self.ends_bytes)} tiers: no such upload")
        if self.ends_bytes[0] < 0 or list(self.ends_bytes) != sorted(self.ends_bytes):
            raise ValueError("tiers end one after the other")

    @property
    def length_bytes(self) -> int:
        """Length of the file."""
        return self.ends_bytes[-1]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Its tiers, in order."""
        first, starts = FIRST_TIER[self.kind], (0, *self.ends_bytes)
        return tuple(
            Piece(first + i, name_piece(self.kind, self.sha256, first + i), starts[i], end)
            for i, end in enumerate(self.ends_bytes)
        )


def name_piece(kind: str, sha256: str, tier: int) -> str:
    """Name of a tier of a file in outbox, inbox and receipt."""
    return f"{kind}:{sha256}:t{tier}"


def put_upload(
    work: Work, plan: UploadPlan, *, is_urgent: bool = False, priority: int = 100, peer: str = "cloud"
) -> list[OutboxMessage]:
    """Let a file leave, each tier as a duty of its own; twice is once.

    The file itself must already lie where the pump reads, under its sha256.
    """
    payload = {"slide": plan.slide, "ends": list(plan.ends_bytes)}
    return [
        work.outbox.put(
            plan.kind,
            piece.key,
            peer=peer,
            payload=payload,
            blob_sha256=plan.sha256,
            slide_sha256=plan.slide or None,
            tier=piece.tier,
            is_urgent=is_urgent,
            priority=priority,
            size_bytes=piece.end_bytes - piece.start_bytes,
        )
        for piece in plan.pieces
    ]


def put_message(
    work: Work,
    message: Message,
    *,
    peer: str = "cloud",
    slide_sha256: str | None = None,
    is_urgent: bool = False,
    priority: int = 50,
) -> OutboxMessage:
    """Let a message leave; twice is once.

    Raises:
        ConflictError: Its id is there with other content.
        LineRefusedError: No receiver would take it: an id, kind or subject too long, or no JSON that both sides keep.
        MessageTooLargeError: It has more than `MAX_MESSAGE_BYTES`.
    """
    parse_message(message.content)
    if message.size_bytes > MAX_MESSAGE_BYTES:
        raise MessageTooLargeError(
            f"{message.kind}: a message has at most {MAX_MESSAGE_BYTES:,} bytes, and this one {message.size_bytes:,}; "
            "letters beyond ASCII take 2 to 4 bytes each: say it in fewer words"
        )
    payload = {"subject": message.subject, "sequence": message.sequence, "body": dict(message.body)}
    return work.outbox.put(
        message.kind,
        message.id,
        peer=peer,
        payload=payload,
        slide_sha256=slide_sha256,
        tier=0,
        is_urgent=is_urgent,
        priority=priority,
    )


def withdraw_tiers(work: Work, kind: str, sha256: str, *, from_tier: int, reason: str) -> int:
    """Send no more of a file from a tier on: the other side has enough; how many duties ended with that."""
    ended = 0
    for tier in range(from_tier, 5):
        found = work.outbox.find(name_piece(kind, sha256, tier))
        if found is not None:
            work.outbox.withdraw(found.key, reason=reason)
            ended += 1
    return ended


def is_upload(row: OutboxMessage) -> bool:
    """Whether a row of the outbox is a tier of a file, not a message."""
    return row.blob_sha256 is not None and row.kind in FIRST_TIER


def plan_of(row: OutboxMessage) -> UploadPlan:
    """The file that a row of the outbox is a tier of."""
    payload: Mapping[str, Any] = row.payload
    assert row.blob_sha256 is not None
    return UploadPlan(row.kind, row.blob_sha256, str(payload["slide"]), tuple(int(end) for end in payload["ends"]))


def message_of(row: OutboxMessage) -> Message:
    """The message that a row of the outbox holds."""
    payload = row.payload
    return Message(row.key, row.kind, str(payload["subject"]), int(payload["sequence"]), payload["body"])

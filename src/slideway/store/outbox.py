"""What must leave, kept until the other side says that it is durably there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select

from slideway.core.errors import ConflictError
from slideway.store.facet import PAGE, Facet
from slideway.store.jobs import CLOCK_SLACK_MS, wait_ms
from slideway.store.schema import OUTBOX, canonical_json


class OutboxState(StrEnum):
    """How far a message has come."""

    WAITING = "waiting"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    WITHDRAWN = "withdrawn"


OPEN = (OutboxState.WAITING.value, OutboxState.SENT.value)


@dataclass(frozen=True)
class OutboxMessage:
    """One thing that must leave.

    Attributes:
        number: Grows with every message of the store; the receiver may take messages in any order.
        tenant: Whose it is.
        key: Its name; put twice it is one message.
        peer: To whom.
        kind: What it is, e.g. `bundle` or `opinion`.
        payload: The message itself, or what goes with the blob; small.
        blob_sha256: Bytes that go with it; None without.
        slide_sha256: Slide that it is about; None without.
        tier: Tier of the bundle, 0 for messages.
        is_urgent: Goes before what is not.
        priority: Lower goes first.
        size_bytes: Of the blob, or of the payload.
        state: How far it has come.
        attempts: Times it was tried.
        not_before_ms: Not tried earlier.
        reason: Why the last attempt failed, or why it was withdrawn.
        receipt: What the other side signed for it; None until then.
        created_ms: When it was put here.
        changed_ms: When it was last changed.
    """

    number: int
    tenant: str
    key: str
    peer: str
    kind: str
    payload: Mapping[str, Any]
    blob_sha256: str | None
    slide_sha256: str | None
    tier: int
    is_urgent: bool
    priority: int
    size_bytes: int
    state: OutboxState
    attempts: int
    not_before_ms: int
    reason: str
    receipt: str | None
    created_ms: int
    changed_ms: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", OutboxState(self.state))


class Outbox(Facet):
    """Messages of a tenant that must leave."""

    def put(
        self,
        kind: str,
        key: str,
        *,
        peer: str = "cloud",
        payload: Mapping[str, Any] | None = None,
        blob_sha256: str | None = None,
        slide_sha256: str | None = None,
        tier: int = 0,
        is_urgent: bool = False,
        priority: int = 100,
        size_bytes: int | None = None,
    ) -> OutboxMessage:
        """Add a message; the same key with the same content is one message.

        Raises:
            ConflictError: The key is there with other content.
        """
        now, content = self._clock(), dict(payload or {})
        self._insert(
            OUTBOX,
            key=key,
            peer=peer,
            kind=kind,
            payload=content,
            blob_sha256=blob_sha256,
            slide_sha256=slide_sha256,
            tier=tier,
            is_urgent=is_urgent,
            priority=priority,
            size_bytes=len(canonical_json(content)) if size_bytes is None else size_bytes,
            state=OutboxState.WAITING.value,
            not_before_ms=0,
            created_ms=now,
            changed_ms=now,
        )
        message = self.get(key)
        same = (message.kind, message.peer, message.blob_sha256, canonical_json(message.payload))
        if same != (kind, peer, blob_sha256, canonical_json(content)):
            raise ConflictError(f"outbox: {key} is there already with other content; give the new one its own key")
        return message

    def get(self, key: str) -> OutboxMessage:
        """The message of a key."""
        return self._get(OutboxMessage, OUTBOX, key=key)

    def find(self, key: str) -> OutboxMessage | None:
        """The message of a key, or None."""
        return self._find(OutboxMessage, OUTBOX, self._key(OUTBOX, key=key))

    def next_due(
        self, *, peer: str = "cloud", limit: int = 1, tiers: Sequence[int] = (), include_sent: bool = True
    ) -> list[OutboxMessage]:
        """What to send now, most pressing first.

        First tier 0 of everything, urgent slides before others; then urgent slides by tier, then the rest by tier. What
        was sent without a receipt comes again when its time has come.

        Args:
            peer: To whom.
            limit: At most so many.
            tiers: Only these; empty for all.
            include_sent: Also what waits for its receipt too long already.
        """
        now = self._clock()
        is_due = or_(OUTBOX.c.not_before_ms <= now, OUTBOX.c.changed_ms > now + CLOCK_SLACK_MS)
        states = OPEN if include_sent else OPEN[:1]
        where = [OUTBOX.c.peer == peer, OUTBOX.c.state.in_(states), is_due]
        where += [OUTBOX.c.tier.in_(tiers)] if tiers else []
        return self._list(OutboxMessage, OUTBOX, *where, order=_pressing(), limit=limit)

    def mark_sent(self, key: str, *, wait_seconds: float) -> OutboxMessage:
        """Note that a message left; without a receipt it is due again after this time."""
        message = self.get(key)
        due_ms = self._clock() + round(wait_seconds * 1000)
        self._change_open(
            key, state=OutboxState.SENT.value, attempts=message.attempts + 1, not_before_ms=due_ms, reason=""
        )
        return self.get(key)

    def mark_failed(self, key: str, *, reason: str, wait_seconds: float | None = None) -> OutboxMessage:
        """Note that a message did not get through; it waits, twice as long each time, and is never given up.

        Args:
            key: Of the message.
            reason: An error's code, or a sentence without patient data.
            wait_seconds: What the other side asked for; None for our own.
        """
        message = self.get(key)
        attempts = message.attempts + (message.state is OutboxState.WAITING)
        own_ms = wait_ms(attempts, f"{message.tenant} {key}")
        due_ms = self._clock() + (own_ms if wait_seconds is None else round(wait_seconds * 1000))
        self._change_open(key, state=OutboxState.WAITING.value, attempts=attempts, not_before_ms=due_ms, reason=reason)
        return self.get(key)

    def mark_acknowledged(self, key: str, *, receipt: str) -> OutboxMessage:
        """Note the receipt: the other side has it durably. Twice the same receipt is once.

        Raises:
            ConflictError: There is another receipt, or an empty one was given.
        """
        message = self.get(key)
        if not receipt or (message.receipt is not None and message.receipt != receipt):
            raise ConflictError(f"outbox: {key} has no valid receipt, or has another; ask the other side which holds")
        if message.receipt is None:
            # A receipt is true whatever we thought of the message: also of one withdrawn meanwhile.
            self._change(
                OUTBOX,
                self._key(OUTBOX, key=key),
                state=OutboxState.ACKNOWLEDGED.value,
                receipt=receipt,
                reason="",
                changed_ms=self._clock(),
            )
        return self.get(key)

    def find_open(self, *, peer: str, limit: int | None = None) -> list[OutboxMessage]:
        """What a peer has not acknowledged yet, due or not, most pressing first: for a peer that fetches."""
        where = [OUTBOX.c.peer == peer, OUTBOX.c.state.in_(OPEN)]
        return self._list(OutboxMessage, OUTBOX, *where, order=_pressing(), limit=limit)

    def find_last(self, *, peer: str, kind: str) -> OutboxMessage | None:
        """The last message of a kind that was put there for a peer, whatever became of it."""
        where = [OUTBOX.c.peer == peer, OUTBOX.c.kind == kind]
        found = self._list(OutboxMessage, OUTBOX, *where, order=[OUTBOX.c.number.desc()], limit=1)
        return found[0] if found else None

    def peers_with_open(self) -> set[tuple[str, str]]:
        """(tenant, peer) of all that have something to fetch; of the operator's view, over all tenants."""
        statement = select(OUTBOX.c.tenant, OUTBOX.c.peer).where(self._mine(OUTBOX), OUTBOX.c.state.in_(OPEN))
        return {(str(row[0]), str(row[1])) for row in self._connection.execute(statement.distinct())}

    def open_sums(self) -> dict[tuple[str, str], tuple[int, int]]:
        """How many messages wait for each (tenant, peer), and their bytes; of the operator's view, over all tenants."""
        sums = func.count(), func.sum(OUTBOX.c.size_bytes)
        statement = select(OUTBOX.c.tenant, OUTBOX.c.peer, *sums).where(self._mine(OUTBOX), OUTBOX.c.state.in_(OPEN))
        rows = self._connection.execute(statement.group_by(OUTBOX.c.tenant, OUTBOX.c.peer))
        return {(str(row[0]), str(row[1])): (int(row[2]), int(row[3])) for row in rows}

    def withdraw_all(self, *, peer: str, reason: str) -> int:
        """Send a peer nothing any more of what waits for it; how many messages there were."""
        waiting = and_(OUTBOX.c.peer == peer, OUTBOX.c.state.in_(OPEN))
        state = OutboxState.WITHDRAWN.value
        return self._change(OUTBOX, waiting, state=state, reason=reason, changed_ms=self._clock())

    def acknowledge_numbers(self, numbers: Sequence[int], *, peer: str, receipt: str) -> int:
        """Note that a peer has taken exactly these messages, by its own word; how many were still open."""
        taken = and_(OUTBOX.c.peer == peer, OUTBOX.c.number.in_(numbers), OUTBOX.c.state.in_(OPEN))
        state = OutboxState.ACKNOWLEDGED.value
        return self._change(OUTBOX, taken, state=state, receipt=receipt, reason="", changed_ms=self._clock())

    def withdraw(self, key: str, *, reason: str) -> OutboxMessage:
        """Send a message no more: the server said stop, or the policy changed. What is acknowledged stays so."""
        self.get(key)
        self._change_open(key, state=OutboxState.WITHDRAWN.value, reason=reason)
        return self.get(key)

    def find_all(
        self, *, state: OutboxState | None = None, slide_sha256: str | None = None, limit: int | None = None
    ) -> list[OutboxMessage]:
        """Messages in the order in which they would leave."""
        where = [] if state is None else [OUTBOX.c.state == state.value]
        where += [] if slide_sha256 is None else [OUTBOX.c.slide_sha256 == slide_sha256]
        return self._list(OutboxMessage, OUTBOX, *where, order=_pressing(), limit=limit)

    def make_urgent(self, slide_sha256: str, *, is_urgent: bool = True) -> int:
        """Let what waits of a slide go before all others, or back among them; how many messages."""
        is_open = and_(self._key(OUTBOX, slide_sha256=slide_sha256), OUTBOX.c.state.in_(OPEN))
        return self._change(OUTBOX, is_open, is_urgent=is_urgent)

    def find_released(self, *, after: int = 0, limit: int = PAGE) -> list[OutboxMessage]:
        """First tiers of bundles whose first tier waits no more, in the order in which they were put here.

        Args:
            after: Only with a higher number.
            limit: At most so many.
        """
        where = and_(OUTBOX.c.kind == "bundle", OUTBOX.c.tier == 0, OUTBOX.c.state.not_in(OPEN))
        order = [OUTBOX.c.number.asc()]
        return self._list(OutboxMessage, OUTBOX, where, OUTBOX.c.number > after, order=order, limit=limit)

    def blobs(self) -> set[str]:
        """Hashes of all files that a message names, whatever became of it."""
        statement = select(OUTBOX.c.blob_sha256).where(self._mine(OUTBOX), OUTBOX.c.blob_sha256.is_not(None))
        return {str(row[0]) for row in self._connection.execute(statement.distinct())}

    def oldest_open_ms(self, *, peer: str) -> int | None:
        """When the oldest of what a peer has not acknowledged was put here; None when there is nothing."""
        where = (self._mine(OUTBOX), OUTBOX.c.peer == peer, OUTBOX.c.state.in_(OPEN))
        found = self._connection.execute(select(func.min(OUTBOX.c.created_ms)).where(*where)).scalar()
        return None if found is None else int(found)

    def count_open(self, *, kind: str) -> int:
        """How many messages of a kind have not been acknowledged yet."""
        where = (self._mine(OUTBOX), OUTBOX.c.kind == kind, OUTBOX.c.state.in_(OPEN))
        return int(self._connection.execute(select(func.count()).select_from(OUTBOX).where(*where)).scalar_one())

    def count_reasons(self, *, peer: str) -> dict[str, int]:
        """Why what a peer has not acknowledged did not get through the last time, as codes, each with how many."""
        where = (self._mine(OUTBOX), OUTBOX.c.peer == peer, OUTBOX.c.state.in_(OPEN), OUTBOX.c.reason != "")
        statement = select(OUTBOX.c.reason, func.count()).where(*where).group_by(OUTBOX.c.reason)
        return {str(row[0]): int(row[1]) for row in self._connection.execute(statement)}

    def waiting_bytes(self) -> int:
        """Bytes that have not been acknowledged yet."""
        statement = select(func.sum(OUTBOX.c.size_bytes)).where(self._mine(OUTBOX), OUTBOX.c.state.in_(OPEN))
        return int(self._connection.execute(statement).scalar() or 0)

    def counts(self) -> dict[OutboxState, int]:
        """How many messages are where; every state is named."""
        statement = select(OUTBOX.c.state, func.count()).where(self._mine(OUTBOX)).group_by(OUTBOX.c.state)
        found = {row[0]: int(row[1]) for row in self._connection.execute(statement)}
        return {state: found.get(state.value, 0) for state in OutboxState}

    def _change_open(self, key: str, **values: Any) -> None:
        is_open = and_(self._key(OUTBOX, key=key), OUTBOX.c.state.in_(OPEN))
        self._change(OUTBOX, is_open, changed_ms=self._clock(), **values)


def _pressing() -> list[ColumnElement[Any]]:
    """Tier 0 of all before anything else; then urgent, tier, priority, age."""
    return [
        case((OUTBOX.c.tier == 0, 0), else_=1).asc(),
        OUTBOX.c.is_urgent.desc(),
        OUTBOX.c.tier.asc(),
        OUTBOX.c.priority.asc(),
        OUTBOX.c.number.asc(),
    ]

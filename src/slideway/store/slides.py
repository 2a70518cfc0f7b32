"""Slides and how far each has come: every accepted slide ends in exactly one of three ways (invariants I1 and I2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, exists, func, select

from slideway.core.errors import ConflictError, TransitionError
from slideway.store.facet import PAGE, Facet
from slideway.store.schema import OUTBOX, SLIDES


class SlideState(StrEnum):
    """How far a slide has come."""

    ACCEPTED = "accepted"
    ENCODED = "encoded"
    SENT = "sent"
    ANSWERED = "answered"
    REPORTED = "reported"
    REFERRED = "referred"
    REJECTED = "rejected"


ENDS = frozenset({SlideState.REPORTED, SlideState.REFERRED, SlideState.REJECTED})

# From where a slide may go where; what is not here is refused. Nothing leads out of an end.
# `sent` and `answered` may be left out: without a line a doctor reports what the edge says.
TRANSITIONS: Mapping[SlideState, frozenset[SlideState]] = {
    SlideState.ACCEPTED: frozenset({SlideState.ENCODED, SlideState.REFERRED, SlideState.REJECTED}),
    SlideState.ENCODED: frozenset({SlideState.SENT, SlideState.ANSWERED}) | ENDS,
    SlideState.SENT: frozenset({SlideState.ANSWERED}) | ENDS,
    SlideState.ANSWERED: ENDS,
    SlideState.REPORTED: frozenset(),
    SlideState.REFERRED: frozenset(),
    SlideState.REJECTED: frozenset(),
}


@dataclass(frozen=True)
class SlideRecord:
    """One slide as the store knows it.

    Attributes:
        tenant: Whose it is.
        slide_sha256: Identity of its content, in hex.
        case_id: Its case; None until it is matched.
        block_id: Its block; None when not known.
        container_id: What the barcode says; None when it has none.
        state: How far it has come.
        reason: Why it was referred or rejected, as a code or a sentence without patient data.
        is_urgent: Goes before all others.
        size_bytes: Of the scanner's file or files.
        facts: What else is known: format, microns per pixel, quality; no patient data.
        accepted_ms: When it was taken in.
        changed_ms: When its state last changed.
    """

    tenant: str
    slide_sha256: str
    case_id: str | None
    block_id: str | None
    container_id: str | None
    state: SlideState
    reason: str
    is_urgent: bool
    size_bytes: int
    facts: Mapping[str, Any]
    accepted_ms: int
    changed_ms: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", SlideState(self.state))

    @property
    def is_ended(self) -> bool:
        """It was reported, referred or rejected."""
        return self.state in ENDS


class Slides(Facet):
    """Slides of a tenant."""

    def accept(
        self,
        slide_sha256: str,
        *,
        case_id: str | None = None,
        block_id: str | None = None,
        container_id: str | None = None,
        is_urgent: bool = False,
        size_bytes: int = 0,
        facts: Mapping[str, Any] | None = None,
    ) -> SlideRecord:
        """Take a slide in, or give the one that is there: a slide scanned or delivered twice is one slide."""
        held = None if self._is_reading else self._find_key(SlideRecord, SLIDES, lock=True, slide_sha256=slide_sha256)
        if held is not None:
            return held
        now = self._clock()
        slide, _ = self._add(
            SlideRecord,
            SLIDES,
            {"slide_sha256": slide_sha256},
            case_id=case_id,
            block_id=block_id,
            container_id=container_id,
            state=SlideState.ACCEPTED.value,
            is_urgent=is_urgent,
            size_bytes=size_bytes,
            facts=dict(facts or {}),
            accepted_ms=now,
            changed_ms=now,
        )
        return slide

    def get(self, slide_sha256: str) -> SlideRecord:
        """The slide of a hash."""
        return self._get(SlideRecord, SLIDES, slide_sha256=slide_sha256)

    def find(self, slide_sha256: str) -> SlideRecord | None:
        """The slide of a hash, or None."""
        return self._find_key(SlideRecord, SLIDES, slide_sha256=slide_sha256)

    def match(
        self, slide_sha256: str, *, case_id: str, block_id: str | None = None, held: SlideRecord | None = None
    ) -> SlideRecord:
        """Say which case a slide belongs to; once said, it is not changed silently.

        Args:
            slide_sha256: The slide.
            case_id: Its case.
            block_id: Its block; None when not known.
            held: Its row, when this transaction holds it already.

        Raises:
            ConflictError: It belongs to another case already.
        """
        slide = held or self.get(slide_sha256)
        if slide.case_id not in (None, case_id):
            raise ConflictError(
                f"slide {slide_sha256[:12]} belongs to case {slide.case_id}; a person must undo that first"
            )
        return self._moved(slide_sha256, case_id=case_id, block_id=block_id or slide.block_id)

    def move(
        self, slide_sha256: str, state: SlideState, *, reason: str = "", held: SlideRecord | None = None
    ) -> SlideRecord:
        """Move a slide on; to move it where it is already does nothing.

        Args:
            slide_sha256: The slide.
            state: Where to.
            reason: Why, of an end that needs one.
            held: Its row, when this transaction holds it already.

        Raises:
            TransitionError: The way is not in the table, or an end lacks its reason or would get another.
        """
        slide, state = held or self.get(slide_sha256), SlideState(state)
        if slide.state is state and (not state_needs_reason(state) or slide.reason == reason):
            return slide
        if state not in TRANSITIONS[slide.state]:
            raise TransitionError(
                f"slide {slide_sha256[:12]} is {slide.state}"
                + (f" ({slide.reason})" if slide.reason else "")
                + f" and cannot become {state}"
                + ("; an end is never changed: amend the report, or ask for a consultation" if slide.is_ended else "")
            )
        if state_needs_reason(state) and not reason:
            raise TransitionError(f"slide {slide_sha256[:12]}: say why it is {state}")
        return self._moved(slide_sha256, state=state.value, reason=reason, changed_ms=self._clock())

    def add_facts(self, slide_sha256: str, facts: Mapping[str, Any], *, held: SlideRecord | None = None) -> SlideRecord:
        """Add to what is known of a slide; a fact of the same name is replaced.

        Args:
            slide_sha256: The slide.
            facts: What is known now.
            held: Its row, when this transaction holds it already.
        """
        slide = held or self.get(slide_sha256)
        return self._moved(slide_sha256, facts={**slide.facts, **facts})

    def _moved(self, slide_sha256: str, **values: Any) -> SlideRecord:
        slide = self._replace(SlideRecord, SLIDES, {"slide_sha256": slide_sha256}, **values)
        assert slide is not None  # whoever calls this holds it
        return slide

    def find_all(
        self, *, state: SlideState | None = None, case_id: str | None = None, limit: int | None = None
    ) -> list[SlideRecord]:
        """Slides, urgent first, then oldest first."""
        where = [] if state is None else [SLIDES.c.state == state.value]
        where += [] if case_id is None else [SLIDES.c.case_id == case_id]
        order = [SLIDES.c.is_urgent.desc(), SLIDES.c.accepted_ms.asc(), SLIDES.c.slide_sha256.asc()]
        return self._list(SlideRecord, SLIDES, *where, order=order, limit=limit)

    def page(
        self, states: Sequence[SlideState], *, limit: int, skip: int = 0, newest_first: bool = False
    ) -> list[SlideRecord]:
        """Some of the slides that are in these states, for a list that a person looks at.

        Args:
            states: Which.
            limit: At most so many.
            skip: So many before them are left out.
            newest_first: What changed last comes first; otherwise urgent first, then oldest first.
        """
        order = [SLIDES.c.is_urgent.desc(), SLIDES.c.accepted_ms.asc(), SLIDES.c.slide_sha256.asc()]
        if newest_first:
            order = [SLIDES.c.changed_ms.desc(), SLIDES.c.slide_sha256.asc()]
        where = SLIDES.c.state.in_([state.value for state in states])
        # The keys first: to sort whole rows would carry the facts of every slide along.
        keys = select(SLIDES.c.slide_sha256).where(self._mine(SLIDES), where).order_by(*order).limit(limit)
        here = SLIDES.c.slide_sha256.in_(list(self._connection.execute(keys.offset(skip)).scalars()))
        return self._list(SlideRecord, SLIDES, here, order=order)

    def walk(self, states: Sequence[SlideState] = ()) -> Iterator[SlideRecord]:
        """All slides in these states, or in any, by their hash: a thousand at a time, for there may be many."""
        where = [SLIDES.c.state.in_([state.value for state in states])] if states else []
        after = ""
        while found := self._list(
            SlideRecord,
            SLIDES,
            *where,
            SLIDES.c.slide_sha256 > after,
            order=[SLIDES.c.slide_sha256.asc()],
            limit=PAGE,
        ):
            yield from found
            after = found[-1].slide_sha256

    def find_by_prefix(self, prefix: str, *, limit: int = 2) -> list[SlideRecord]:
        """Slides whose hash begins so, at most `limit`."""
        where = and_(SLIDES.c.slide_sha256 >= prefix, SLIDES.c.slide_sha256 < f"{prefix}g")
        return self._list(SlideRecord, SLIDES, where, order=[SLIDES.c.slide_sha256.asc()], limit=limit)

    def find_delivered(self, *, limit: int) -> list[SlideRecord]:
        """Encoded slides with a bundle of which something is acknowledged and nothing waits any more."""
        here = and_(
            OUTBOX.c.tenant == SLIDES.c.tenant,
            OUTBOX.c.slide_sha256 == SLIDES.c.slide_sha256,
            OUTBOX.c.kind == "bundle",
        )
        where = and_(
            SLIDES.c.state == SlideState.ENCODED.value,
            exists().where(here, OUTBOX.c.state == "acknowledged"),
            ~exists().where(here, OUTBOX.c.state.in_(["waiting", "sent"])),
        )
        return self._list(SlideRecord, SLIDES, where, order=[SLIDES.c.slide_sha256.asc()], limit=limit)

    def total_bytes(self, *, with_bundle: bool = False) -> int:
        """Size of all slides together, or of those of which a bundle was made to leave."""
        statement = select(func.sum(SLIDES.c.size_bytes)).where(self._mine(SLIDES))
        if with_bundle:
            statement = statement.where(
                exists().where(
                    OUTBOX.c.tenant == SLIDES.c.tenant,
                    OUTBOX.c.slide_sha256 == SLIDES.c.slide_sha256,
                    OUTBOX.c.kind == "bundle",
                )
            )
        return int(self._connection.execute(statement).scalar() or 0)

    def make_urgent(self, slide_sha256: str, *, is_urgent: bool = True) -> bool:
        """Put a slide before all others, or back among them; whether that changed it. Its jobs and messages: theirs."""
        self.get(slide_sha256)
        here = and_(self._key(SLIDES, slide_sha256=slide_sha256), SLIDES.c.is_urgent.is_not(is_urgent))
        return self._change(SLIDES, here, is_urgent=is_urgent) == 1

    def counts(self) -> dict[SlideState, int]:
        """How many slides are where; every state is named."""
        statement = select(SLIDES.c.state, func.count()).where(self._mine(SLIDES)).group_by(SLIDES.c.state)
        found = {row[0]: int(row[1]) for row in self._connection.execute(statement)}
        return {state: found.get(state.value, 0) for state in SlideState}


def state_needs_reason(state: SlideState) -> bool:
    """A slide that is referred or rejected says why."""
    return state in (SlideState.REFERRED, SlideState.REJECTED)

"""A person is asked for a second opinion: by organ, with a time by which the answer is due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, select

from slideway.core.errors import ConflictError, TransitionError
from slideway.store.facet import Facet, hash_json
from slideway.store.schema import CONSULTATIONS


class ConsultationState(StrEnum):
    """How far a consultation has come."""

    OPEN = "open"
    TAKEN = "taken"
    ANSWERED = "answered"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Consultation:
    """One question to a specialist.

    Attributes:
        tenant: Who asks: the answer is theirs.
        consultation_id: Its name.
        slide_sha256: Slide that it is about.
        organ: Id of the catalogue's site; it is routed by this.
        centre: Centre that is asked; empty for any.
        asked_by: Id of the person who asks.
        question: The question.
        is_urgent: Goes before all others.
        state: How far it has come.
        specialist: Id of who took it; None while nobody has.
        answer: The answer; None until then.
        asked_ms: When it was asked.
        due_ms: By when it should be answered.
        changed_ms: When it was last changed; later than any change before, also where the clock was set back.
    """

    tenant: str
    consultation_id: str
    slide_sha256: str
    organ: str
    centre: str
    asked_by: str
    question: Mapping[str, Any]
    is_urgent: bool
    state: ConsultationState
    specialist: str | None
    answer: Mapping[str, Any] | None
    asked_ms: int
    due_ms: int
    changed_ms: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", ConsultationState(self.state))


class Consultations(Facet):
    """Consultations of a tenant; in the transaction of all, a centre's desk sees what is open."""

    def ask(
        self,
        consultation_id: str,
        *,
        slide_sha256: str,
        organ: str,
        asked_by: str,
        question: Mapping[str, Any],
        within_seconds: float,
        centre: str = "",
        is_urgent: bool = False,
    ) -> Consultation:
        """Ask; the same id with the same question is asked once.

        Raises:
            ConflictError: The id is there with another question.
        """
        now = self._clock()
        self._insert(
            CONSULTATIONS,
            consultation_id=consultation_id,
            slide_sha256=slide_sha256,
            organ=organ,
            centre=centre,
            asked_by=asked_by,
            question=dict(question),
            is_urgent=is_urgent,
            state=ConsultationState.OPEN.value,
            asked_ms=now,
            due_ms=now + round(within_seconds * 1000),
            changed_ms=now,
        )
        kept = self.get(consultation_id)
        if (kept.slide_sha256, hash_json(kept.question)) != (slide_sha256, hash_json(question)):
            raise ConflictError(
                f"consultation {consultation_id} asks something else already; give the new one its own id"
            )
        return kept

    def take(self, consultation_id: str, *, specialist: str) -> Consultation:
        """Let a specialist take a question; to take it again does nothing.

        Raises:
            TransitionError: Another specialist has it, or it is answered or withdrawn.
        """
        kept = self.get(consultation_id)
        if kept.state is ConsultationState.TAKEN and kept.specialist == specialist:
            return kept
        self._move(kept, ConsultationState.OPEN, state=ConsultationState.TAKEN.value, specialist=specialist)
        return self.get(consultation_id)

    def give_back(self, consultation_id: str, *, specialist: str) -> Consultation:
        """Let a specialist give a question back for others."""
        kept = self._of(consultation_id, specialist)
        self._move(kept, ConsultationState.TAKEN, state=ConsultationState.OPEN.value, specialist=None)
        return self.get(consultation_id)

    def answer(self, consultation_id: str, *, specialist: str, answer: Mapping[str, Any]) -> Consultation:
        """Answer; the same answer twice is one, and it never changes (invariant I2).

        Raises:
            ConflictError: Another specialist has the question, or it was answered otherwise.
        """
        kept = self._of(consultation_id, specialist)
        if kept.state is ConsultationState.ANSWERED:
            if hash_json(kept.answer) != hash_json(answer):
                raise ConflictError(
                    f"consultation {consultation_id} was answered otherwise; ask a new one to correct it"
                )
            return kept
        self._move(kept, ConsultationState.TAKEN, state=ConsultationState.ANSWERED.value, answer=dict(answer))
        return self.get(consultation_id)

    def withdraw(self, consultation_id: str) -> Consultation:
        """Take a question back that nobody has answered yet."""
        kept = self.get(consultation_id)
        if kept.state is ConsultationState.WITHDRAWN:
            return kept
        self._move(kept, ConsultationState.OPEN, ConsultationState.TAKEN, state=ConsultationState.WITHDRAWN.value)
        return self.get(consultation_id)

    def get(self, consultation_id: str) -> Consultation:
        """The consultation of an id."""
        return self._get(Consultation, CONSULTATIONS, consultation_id=consultation_id)

    def of_slide(self, slide_sha256: str) -> list[Consultation]:
        """Consultations on a slide, oldest first."""
        where = self._key(CONSULTATIONS, slide_sha256=slide_sha256)
        return self._list(Consultation, CONSULTATIONS, where, order=[CONSULTATIONS.c.asked_ms.asc()])

    def states_of(self, slides: Sequence[str]) -> dict[str, set[ConsultationState]]:
        """How far the questions on some slides have come; a slide without one is not in the answer."""
        where = (self._mine(CONSULTATIONS), CONSULTATIONS.c.slide_sha256.in_(slides))
        statement = select(CONSULTATIONS.c.slide_sha256, CONSULTATIONS.c.state).where(*where).distinct()
        found: dict[str, set[ConsultationState]] = {}
        for sha256, state in self._connection.execute(statement):
            found.setdefault(str(sha256), set()).add(ConsultationState(state))
        return found

    def find_open(
        self, *, organs: Sequence[str] = (), centre: str = "", limit: int | None = None
    ) -> list[Consultation]:
        """What waits for a specialist: urgent first, then by the time it is due.

        Args:
            organs: Only these; empty for all.
            centre: What is asked of this centre or of any; empty for all.
            limit: At most so many; None for all.
        """
        where = [CONSULTATIONS.c.state == ConsultationState.OPEN.value]
        where += [CONSULTATIONS.c.organ.in_(organs)] if organs else []
        where += [CONSULTATIONS.c.centre.in_(["", centre])] if centre else []
        order = [CONSULTATIONS.c.is_urgent.desc(), CONSULTATIONS.c.due_ms.asc(), CONSULTATIONS.c.consultation_id.asc()]
        return self._list(Consultation, CONSULTATIONS, *where, order=order, limit=limit)

    def find_taken(self, specialist: str, *, limit: int | None = None) -> list[Consultation]:
        """What a specialist has taken and not answered yet: urgent first, then by the time it is due."""
        where = [CONSULTATIONS.c.state == ConsultationState.TAKEN.value, CONSULTATIONS.c.specialist == specialist]
        order = [CONSULTATIONS.c.is_urgent.desc(), CONSULTATIONS.c.due_ms.asc(), CONSULTATIONS.c.consultation_id.asc()]
        return self._list(Consultation, CONSULTATIONS, *where, order=order, limit=limit)

    def count_open(self) -> dict[str, int]:
        """How many wait for a specialist, by organ."""
        is_open = CONSULTATIONS.c.state == ConsultationState.OPEN.value
        statement = select(CONSULTATIONS.c.organ, func.count()).where(self._mine(CONSULTATIONS), is_open)
        return {str(row[0]): int(row[1]) for row in self._connection.execute(statement.group_by(CONSULTATIONS.c.organ))}

    def counts(self) -> dict[ConsultationState, int]:
        """How many consultations are where; every state is named."""
        statement = select(CONSULTATIONS.c.state, func.count()).where(self._mine(CONSULTATIONS))
        found = {row[0]: int(row[1]) for row in self._connection.execute(statement.group_by(CONSULTATIONS.c.state))}
        return {state: found.get(state.value, 0) for state in ConsultationState}

    def find_recent(self, *, limit: int) -> list[Consultation]:
        """What was asked last, newest first."""
        order = [CONSULTATIONS.c.asked_ms.desc(), CONSULTATIONS.c.consultation_id.asc()]
        return self._list(Consultation, CONSULTATIONS, order=order, limit=limit)

    def find(self, consultation_id: str) -> Consultation | None:
        """The consultation of an id, or None."""
        return self._find(Consultation, CONSULTATIONS, self._key(CONSULTATIONS, consultation_id=consultation_id))

    def count_overdue(self) -> int:
        """How many should have been answered by now."""
        statement = select(func.count()).where(self._mine(CONSULTATIONS), *self._overdue())
        return int(self._connection.execute(statement).scalar_one())

    def _overdue(self) -> list[ColumnElement[bool]]:
        unanswered = CONSULTATIONS.c.state.in_([ConsultationState.OPEN.value, ConsultationState.TAKEN.value])
        return [unanswered, CONSULTATIONS.c.due_ms < self._clock()]

    def _of(self, consultation_id: str, specialist: str) -> Consultation:
        kept = self.get(consultation_id)
        if kept.specialist != specialist:
            raise ConflictError(f"consultation {consultation_id} is not with {specialist}: take it first")
        return kept

    def _move(self, kept: Consultation, *states: ConsultationState, **values: Any) -> None:
        if kept.state not in states:
            raise TransitionError(
                f"consultation {kept.consultation_id} is {kept.state}"
                + (f" by {kept.specialist}" if kept.specialist else "")
            )
        here = self._key(CONSULTATIONS, consultation_id=kept.consultation_id, state=kept.state.value)
        # It only grows, whatever the clock does: who hears of two changes knows by it which is the newer.
        changed_ms = max(self._clock(), kept.changed_ms + 1)
        if self._change(CONSULTATIONS, here, changed_ms=changed_ms, **values) != 1:
            raise ConflictError(f"consultation {kept.consultation_id} was changed by someone else just now; look again")

"""Second opinions by people: a node asks, the question goes to specialists of that organ, the answer goes back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slideway.cloud.opinions import put_answer, put_consult_state
from slideway.cloud.people import ALL_ORGANS, Person
from slideway.cloud.settings import ConsultationSettings
from slideway.cloud.slides import accept_slide
from slideway.core.catalogue import load_catalogue
from slideway.core.errors import LineRefusedError, UnknownRecordError
from slideway.store.consultations import Consultation, ConsultationState
from slideway.store.database import Store
from slideway.store.work import Work
from slideway.sync.mailbox import Arrival

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9._@-]{0,63}")
MAX_QUESTION_LETTERS = 4_000
_LIVE = (ConsultationState.OPEN, ConsultationState.TAKEN)


@dataclass(frozen=True)
class Request:
    """A question as a node asks it, checked.

    Attributes:
        consultation: The node's own id for it.
        slide: Hash of the slide.
        organ: Id of the catalogue's site.
        question: The question in words.
        is_urgent: Goes before others.
        centre: Centre that is asked; empty for any.
        asked_by: Id of the person who asks; empty when not said.
    """

    consultation: str
    slide: str
    organ: str
    question: str
    is_urgent: bool
    centre: str
    asked_by: str


class Desk:
    """Consultations of all tenants, each seen by the specialists of its organ and its centre."""

    def __init__(self, store: Store, settings: ConsultationSettings) -> None:
        self._store, self._settings = store, settings

    def take_request(self, work: Work, arrival: Arrival) -> None:
        """`consult-request`: a question of a node."""
        asked = read_request(arrival.message.body)
        accept_slide(work, asked.slide, arrival.sender, is_urgent=asked.is_urgent)
        hours = self._settings.urgent_within_hours if asked.is_urgent else self._settings.within_hours
        work.consultations.ask(
            asked.consultation,
            slide_sha256=asked.slide,
            organ=asked.organ,
            asked_by=asked.asked_by or arrival.sender,
            question={"text": asked.question, "node": arrival.sender},
            within_seconds=hours * 3600,
            centre=asked.centre,
            is_urgent=asked.is_urgent,
        )
        details = {"consultation": asked.consultation, "organ": asked.organ}
        work.audit.append("consultation-asked", actor=arrival.sender, subject=asked.slide, details=details)

    def take_withdrawal(self, work: Work, arrival: Arrival) -> None:
        """`withdrawn`: of one consultation, or of all that are open on a slide; only of what this node asked."""
        body = arrival.message.body
        one, slide = body.get("consultation"), body.get("slide")
        if isinstance(one, str) and _ID.fullmatch(one):
            rows = [_find(work, one)]
        elif isinstance(slide, str) and _SHA256.fullmatch(slide):
            rows = list(work.consultations.of_slide(slide))
        else:
            raise _malformed("names a consultation or a slide")
        for row in rows:
            if row is not None and row.state in _LIVE and row.question.get("node") == arrival.sender:
                work.consultations.withdraw(row.consultation_id)
                details = {"consultation": row.consultation_id}
                work.audit.append(
                    "consultation-withdrawn", actor=arrival.sender, subject=row.slide_sha256, details=details
                )

    def list_for(self, person: Person, *, limit: int = 200) -> list[Consultation]:
        """What waits for a person, urgent first, then by the time it is due."""
        organs = () if ALL_ORGANS in person.organs else person.organs
        with self._store.reading_of_all() as work:
            rows = work.consultations.find_open(organs=organs, centre=person.centre, limit=limit)
        return [row for row in rows if may_see(person, row)]

    def list_taken(self, person: Person, *, limit: int = 200) -> list[Consultation]:
        """What a person took and has not answered, urgent first, then by the time it is due."""
        with self._store.reading_of_all() as work:
            rows = work.consultations.find_taken(person.name, limit=limit)
        return [row for row in rows if may_see(person, row)]

    def get(self, person: Person, tenant: str, consultation_id: str) -> Consultation:
        """One consultation that a person may see.

        Raises:
            UnknownRecordError: There is none, or it is not theirs: they cannot tell which.
        """
        with self._store.reading(tenant) as work:
            return require_seen(person, work.consultations.get(consultation_id))

    def take(self, person: Person, tenant: str, consultation_id: str) -> Consultation:
        """Let a person take a question."""

        def take(work: Work) -> Consultation:
            before = require_seen(person, work.consultations.get(consultation_id))
            taken = work.consultations.take(consultation_id, specialist=person.name)
            if before.state is not taken.state:
                _note_state(work, taken, person, "consultation-taken")
            return taken

        return self._store.retrying(tenant, take)

    def give_back(self, person: Person, tenant: str, consultation_id: str) -> Consultation:
        """Let a person give a question back for others."""

        def give_back(work: Work) -> Consultation:
            require_seen(person, work.consultations.get(consultation_id))
            given_back = work.consultations.give_back(consultation_id, specialist=person.name)
            _note_state(work, given_back, person, "consultation-given-back")
            return given_back

        return self._store.retrying(tenant, give_back)

    def answer(self, person: Person, tenant: str, consultation_id: str, answer: Mapping[str, Any]) -> Consultation:
        """Keep a person's answer, and let it go to the node that asked, in one transaction."""

        def answer_it(work: Work) -> Consultation:
            before = require_seen(person, work.consultations.get(consultation_id))
            done = work.consultations.answer(consultation_id, specialist=person.name, answer=answer)
            if before.state is not ConsultationState.ANSWERED:
                body = {
                    "consultation": consultation_id,
                    "slide": done.slide_sha256,
                    "answer": dict(answer),
                    "specialist": person.name,
                    "answered_ms": done.changed_ms,
                }
                put_answer(work, str(done.question["node"]), consultation_id, done.slide_sha256, body)
                details = {"consultation": consultation_id}
                work.audit.append(
                    "consultation-answered", actor=person.name, subject=done.slide_sha256, details=details
                )
            return done

        return self._store.retrying(tenant, answer_it)


def read_request(body: Mapping[str, Any]) -> Request:
    """Read a question from a message.

    Raises:
        LineRefusedError: It is none.
    """
    id_, slide, organ = body.get("consultation"), body.get("slide"), body.get("organ")
    question, centre, asked_by = body.get("question", ""), body.get("centre", ""), body.get("asked_by", "")
    if isinstance(question, dict):
        question = question.get("text", "")
    if not isinstance(id_, str) or not _ID.fullmatch(id_):
        raise _malformed("consultation is an id of at most 64 signs")
    if not isinstance(slide, str) or not _SHA256.fullmatch(slide):
        raise _malformed("slide is a sha256 in hex")
    if organ not in {site.id for site in load_catalogue().sites}:
        raise _malformed("organ is a site of the catalogue")
    if not isinstance(question, str) or len(question) > MAX_QUESTION_LETTERS:
        raise _malformed(f"question is a text of at most {MAX_QUESTION_LETTERS} letters")
    if not all(isinstance(word, str) and _WORD.fullmatch(word) for word in (centre, asked_by)):
        raise _malformed("centre and asked_by are ids")
    return Request(id_, slide, str(organ), question, body.get("urgent") is True, centre, asked_by)


def may_see(person: Person, row: Consultation) -> bool:
    """Theirs by organ and centre, and free or with them."""
    is_routed = person.covers(row.organ) and (not row.centre or not person.centre or row.centre == person.centre)
    return is_routed and row.specialist in (None, person.name)


def require_seen(person: Person, row: Consultation) -> Consultation:
    """The consultation, when a person may see it.

    Raises:
        UnknownRecordError: They may not; it says the same as when there is none.
    """
    if not may_see(person, row):
        raise UnknownRecordError(f"consultations: nothing under {row.consultation_id} for this tenant")
    return row


def _note_state(work: Work, row: Consultation, person: Person, action: str) -> None:
    put_consult_state(work, row)
    work.audit.append(
        action, actor=person.name, subject=row.slide_sha256, details={"consultation": row.consultation_id}
    )


def _find(work: Work, consultation_id: str) -> Consultation | None:
    try:
        return work.consultations.get(consultation_id)
    except UnknownRecordError:
        return None


def _malformed(what: str) -> LineRefusedError:
    return LineRefusedError(f"consultation: {what}", status=422, refusal="message-malformed")

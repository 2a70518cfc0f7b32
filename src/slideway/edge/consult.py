"""Ask a specialist at the cloud about a slide, where the policy lets the question leave, and keep what comes back."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from slideway.core.catalogue import load_catalogue
from slideway.core.errors import ConflictError, PolicyError, WrongUseError
from slideway.edge.node import ACTOR, Node
from slideway.edge.words import say_reason
from slideway.store.audit import Detail
from slideway.store.consultations import Consultation, ConsultationState
from slideway.store.outbox import OutboxState
from slideway.store.schema import canonical_json
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work
from slideway.sync.identity import read_endpoint
from slideway.sync.mailbox import Arrival
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message

KIND = "consult-request"
MAX_QUESTION_LETTERS = 4_000
_CLOUD = "cloud"
_LEAST_NAME = 4  # letters: shorter names of files are words of a question by chance
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_PERSON = re.compile(r"[A-Za-z0-9._@-]{1,63}")
# Another opinion on the pixels helps none of these: the glass, or the bundle, must be seen to.
_NOT_TO_ASK = frozenset(["no-tissue", "rescan", "cloud-refused-bundle"])


def ask_specialist(
    work: Work, node: Node, slide_sha256: str, *, organ: str, question: str, is_urgent: bool = False, by: str = "person"
) -> tuple[Consultation, bool]:
    """Ask, in one transaction with the message that leaves; the same question to the same specialists is asked once.

    Args:
        work: Transaction.
        node: Whose slide it is.
        slide_sha256: The slide.
        organ: Whom, as a site of the catalogue.
        question: In the person's own words, without names.
        is_urgent: Goes before others.
        by: Who asks: `person` or `rule`.

    Returns:
        The consultation, and whether it is new.

    Raises:
        PolicyError: The policy does not let it leave.
        WrongUseError: The organ is none, or the text is empty, too long or holds a name that is known here.
        UnknownRecordError: There is no such slide.
    """
    slide = work.slides.get(slide_sha256)
    right = node.rights.require_question(node.settings.reading.site)
    text = check_question(work, slide, question)
    if organ not in {site.id for site in load_catalogue().sites}:
        raise WrongUseError(f"{organ or 'no organ'}: not a site of the catalogue; `slideway coverage` lists them")
    if slide.state is SlideState.REJECTED:
        raise WrongUseError("this slide was rejected, so the cloud has nothing of it that a specialist could look at")
    id_, known = _find_place(work, node, slide_sha256, organ, text)
    if known is not None:
        return known, False
    asked = work.consultations.ask(
        id_,
        slide_sha256=slide_sha256,
        organ=organ,
        asked_by=ACTOR,
        question={"text": text, "by": by},
        within_seconds=0,  # by when it is due is the cloud's to say
        is_urgent=is_urgent,
    )
    body = {"consultation": id_, "slide": slide_sha256, "organ": organ, "question": text, "urgent": is_urgent}
    message = Message(_name_message(id_), KIND, id_, 0, body)
    put_message(work, message, slide_sha256=slide_sha256, is_urgent=is_urgent)
    details: dict[str, Detail] = {"consultation": id_, "organ": organ, "by": by, "letters": len(text)}
    details["level"] = right.level.word
    work.audit.append("consultation-asked", actor=ACTOR, subject=slide_sha256, details=details)
    return asked, True


def check_question(work: Work, slide: SlideRecord, question: str) -> str:
    """The text of a question as it may leave.

    What is known here of a patient's slide is looked for: its files' names and its accession number. Names of people
    are not known here; whoever writes the question answers for them.

    Raises:
        WrongUseError: It is empty, too long, or holds one of these.
    """
    text = unicodedata.normalize("NFC", question.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text:
        raise WrongUseError("the question is empty; say what the specialist should look at")
    if len(text) > MAX_QUESTION_LETTERS:
        raise WrongUseError(f"the question has {len(text):,} letters; at most {MAX_QUESTION_LETTERS:,} leave")
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in text):
        raise WrongUseError("the question holds a sign that is no letter; type it again")
    case = work.cases.find(slide.case_id) if slide.case_id else None
    if case is not None and case.accession and case.accession.casefold() in text.casefold():
        raise WrongUseError("the question holds the accession number of its case; write it without")
    names = {name for place in slide.facts.get("places", {}) for name in _name_parts(PurePath(place).stem)}
    if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text.casefold()) for name in names):
        raise WrongUseError(
            "the question holds the name of the slide's file, or a number in it, which may be a patient's; write it "
            "without"
        )
    return text


def guess_organ(work: Work, node: Node, slide: SlideRecord, *, in_force_only: bool = False) -> str:
    """The organ that a question about a slide is probably about, as a site of the catalogue; empty when not known.

    Args:
        work: Transaction.
        node: Whose slide it is.
        slide: The slide.
        in_force_only: Believe no head whose question is off: nobody looks at the guess.
    """
    if node.settings.reading.site:
        return node.settings.reading.site
    known = {site.id for site in load_catalogue().sites}
    for record in work.findings.of_slide(slide.slide_sha256):
        said, labels = record.content, record.content.get("labels") or [""]
        is_believed = said.get("in_force") is True or not in_force_only
        if record.task == "organ" and said.get("answer") == "answer" and is_believed and labels[0] in known:
            return str(labels[0])
    return ""


def ask_when_referred(work: Work, node: Node, slide_sha256: str, reason: str) -> None:
    """Ask about a slide that a rule referred, where its bundle leaves.

    What keeps the question here, an organ that nobody knows or the policy, stands in the audit.
    """
    slide = work.slides.get(slide_sha256)
    if reason in _NOT_TO_ASK or not slide.facts.get("leaving"):
        return
    text = f"A rule referred this slide: {say_reason(reason)}."
    organ = guess_organ(work, node, slide, in_force_only=True)
    why = "" if organ else "organ-unknown"
    if not why:
        try:
            ask_specialist(work, node, slide_sha256, organ=organ, question=text, is_urgent=slide.is_urgent, by="rule")
        except (PolicyError, WrongUseError) as error:
            why = error.code
    if why:
        work.audit.append("consultation-not-asked", actor=ACTOR, subject=slide_sha256, details={"reason": why})


def take_state(work: Work, slide: SlideRecord, arrival: Arrival) -> None:
    """A specialist took a question, or gave it back."""
    body = arrival.message.body
    kept = _find(work, body.get("consultation"))
    if kept is None or not arrival.is_newest or kept.slide_sha256 != slide.slide_sha256:
        return
    specialist = _person(body.get("specialist"))
    if body.get("state") == "taken":
        _hand_to(work, slide, kept, specialist)
    elif body.get("state") == "open" and kept.state is ConsultationState.TAKEN and kept.specialist:
        work.consultations.give_back(kept.consultation_id, specialist=kept.specialist)


def take_answer(work: Work, slide: SlideRecord, arrival: Arrival) -> None:
    """A specialist has answered; the first answer stands."""
    body = arrival.message.body
    id_, answer = body.get("consultation"), body.get("answer")
    if not isinstance(id_, str) or not _ID.fullmatch(id_) or not isinstance(answer, Mapping):
        work.audit.append("answer-malformed", actor=_CLOUD, subject=slide.slide_sha256)
        return
    kept = _find(work, id_)
    if kept is None:  # of a store that was brought back from an older backup: the answer is worth keeping
        kept = work.consultations.ask(
            id_, slide_sha256=slide.slide_sha256, organ="", asked_by="-", question={"text": ""}, within_seconds=0
        )
    details = {"consultation": id_}
    specialist = _person(body.get("specialist"))
    try:
        if kept.state is not ConsultationState.ANSWERED:
            _hand_to(work, slide, kept, specialist)
        work.consultations.answer(id_, specialist=specialist, answer=answer)
    except ConflictError:
        work.audit.append("consultation-changed", actor=_CLOUD, subject=slide.slide_sha256, details=details)
        return
    work.audit.append("consultation-answered", actor=_CLOUD, subject=slide.slide_sha256, details=details)


def find_message_state(work: Work, consultation_id: str) -> OutboxState | None:
    """How far the message of a question has come; None when it was not asked here."""
    row = work.outbox.find(_name_message(consultation_id))
    return None if row is None else row.state


def _find_place(work: Work, node: Node, slide_sha256: str, organ: str, text: str) -> tuple[str, Consultation | None]:
    """The id of a question, and the question when it was asked before; one that did not leave is asked anew."""
    about = [node.tenant, read_endpoint(node.places.endpoint).node, slide_sha256, organ, text]
    again = 0
    while True:
        id_ = hashlib.sha256(canonical_json([*about, again]).encode()).hexdigest()[:32]
        known = work.consultations.find(id_)
        if known is None or find_message_state(work, id_) is not OutboxState.WITHDRAWN:
            return id_, known
        again += 1


def _name_parts(stem: str) -> list[str]:
    """A file's name, and each part of it with a digit: such a part is a number, not a word that a question needs."""
    name = unicodedata.normalize("NFC", stem).casefold()
    parts = [name, *re.split(r"[\s_.,;^=]+", name)]
    return [part for part in parts if len(part) >= _LEAST_NAME and (part == name or any(map(str.isdigit, part)))]


def _hand_to(work: Work, slide: SlideRecord, kept: Consultation, specialist: str) -> None:
    """Note who has a question, and since when."""
    if kept.state is ConsultationState.TAKEN and kept.specialist and kept.specialist != specialist:
        kept = work.consultations.give_back(kept.consultation_id, specialist=kept.specialist)
    if kept.state is not ConsultationState.OPEN:
        return
    taken = work.consultations.take(kept.consultation_id, specialist=specialist)
    facts = work.slides.get(slide.slide_sha256).facts.get("consultations", {})
    known = {**facts, kept.consultation_id: {"taken_ms": taken.changed_ms}}
    work.slides.add_facts(slide.slide_sha256, {"consultations": known})
    details = {"consultation": kept.consultation_id}
    work.audit.append("consultation-taken", actor=_CLOUD, subject=slide.slide_sha256, details=details)


def _find(work: Work, id_: Any) -> Consultation | None:
    return work.consultations.find(id_) if isinstance(id_, str) and _ID.fullmatch(id_) else None


def _person(name: Any) -> str:
    return name if isinstance(name, str) and _PERSON.fullmatch(name) else "-"


def _name_message(consultation_id: str) -> str:
    return f"{KIND}:{consultation_id}"

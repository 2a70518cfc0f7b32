"""What the pages show of slides: where each is, since when, why it waits, and what edge and cloud say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from slideway.core.catalogue import load_catalogue
from slideway.core.errors import PolicyError
from slideway.core.opinion import Answer
from slideway.edge.consult import find_message_state, guess_organ
from slideway.edge.ends import combine, restore_finding
from slideway.edge.node import READ, Node
from slideway.edge.status import EdgeStatus
from slideway.edge.words import LEVELS, LINES, QUESTIONS, STATES, say_reason, say_since
from slideway.store.consultations import Consultation, ConsultationState
from slideway.store.findings import FindingRecord
from slideway.store.jobs import Job, JobState
from slideway.store.outbox import OutboxState
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work

PAGE_ROWS = 100
_OF_LIST = {
    "open": (SlideState.ACCEPTED, SlideState.ENCODED, SlideState.SENT, SlideState.ANSWERED),
    "refer": (SlideState.REFERRED,),
    "reported": (SlideState.REPORTED,),
    "rejected": (SlideState.REJECTED,),
}
_ASKED = {
    ConsultationState.ANSWERED: "a specialist answered",
    ConsultationState.TAKEN: "a specialist looks at it",
    ConsultationState.OPEN: "a specialist was asked",
}
AGREEMENTS = {
    "same": "the same",
    "narrowed": "both narrow it down",
    "resolved": "the cloud answers what the edge left open",
    "one-unsure": "one of them is not sure",
    "contradiction": "they contradict each other",
}


@dataclass(frozen=True)
class Row:
    """A line of the worklist.

    Attributes:
        sha256: The slide.
        name: Of its file; shown on this computer only, never in an address or a log.
        state: As a code.
        state_words: As people say it.
        why: Why it waits, or why it ended so.
        since: How long it has been so, in words.
        is_urgent: It goes first.
        verdict: Of its quality; empty until it is read.
        facts: Size, tissue and tiles in words.
        asked: How far a question to a specialist has come at most, in words; empty when none was asked.
        has_picture: There is a thumbnail.
    """

    sha256: str
    name: str
    state: str
    state_words: str
    why: str
    since: str
    is_urgent: bool
    verdict: str
    facts: str
    asked: str
    has_picture: bool


@dataclass(frozen=True)
class Said:
    """What one side says to one question.

    Attributes:
        answer: In words.
        doubt: Why it does not go further, or what to keep in mind.
        head: Who says so.
        in_force: The head's question is switched on.
        probability: Of the label that is answered; None when none is.
    """

    answer: str
    doubt: str
    head: str
    in_force: bool
    probability: float | None


@dataclass(frozen=True)
class Question:
    """One question, and both opinions beside each other.

    Attributes:
        title: As a person reads it.
        edge: What the edge says; None when it says nothing.
        cloud: What the cloud says.
        agreement: How they agree, in words; empty when only one speaks.
        is_contradiction: They share no label.
    """

    title: str
    edge: Said | None
    cloud: Said | None
    agreement: str
    is_contradiction: bool


@dataclass(frozen=True)
class Asked:
    """A question to a specialist, and what became of it.

    Attributes:
        sha256: Of the slide.
        name: Of the slide's file.
        organ: Whom it goes to, in words.
        question: As it was asked.
        is_urgent: It goes before others.
        is_by_rule: A rule asked, not a person.
        state: As a code.
        state_words: As people say it.
        steps: (what, when) of each step, in order.
        specialist: Who has it or answered it; empty while nobody has.
        answer: The answer's text; empty until then.
    """

    sha256: str
    name: str
    organ: str
    question: str
    is_urgent: bool
    is_by_rule: bool
    state: str
    state_words: str
    steps: tuple[tuple[str, str], ...]
    specialist: str
    answer: str


@dataclass(frozen=True)
class AskForm:
    """The form in which a specialist is asked.

    Attributes:
        organs: (id, title) of whom may be asked.
        organ: Chosen; empty for none yet.
        question: Typed so far.
        is_urgent: Ticked.
        may_leave: What the policy lets the specialist see, in words.
        reason: Why, in the policy's words.
        refusal: Why nobody can be asked; empty when somebody can.
        error: What was wrong with what was sent; empty for nothing.
    """

    organs: tuple[tuple[str, str], ...]
    organ: str
    question: str
    is_urgent: bool
    may_leave: str
    reason: str
    refusal: str
    error: str


@dataclass(frozen=True)
class SlideView:
    """All that the page of one slide shows."""

    row: Row
    questions: tuple[Question, ...]
    cloud: Mapping[str, Any] | None
    asked: tuple[Asked, ...]
    ask: AskForm
    leaving: Mapping[str, Any] | None
    stays: str
    sent_bytes: int
    size_bytes: int
    has_report: bool
    evicted: str
    accepted: str


def first_list(slides: Mapping[str, int]) -> str:
    """The list to begin with: the first that holds something, so that nobody looks at an empty page.

    Example:
        >>> first_list({"accepted": 0, "referred": 3}), first_list({})
        ('refer', 'open')
    """
    filled = (name for name, states in _OF_LIST.items() if any(slides.get(state.value) for state in states))
    return next(filled, "open")


def view_worklist(work: Work, node: Node, status: EdgeStatus, shown: str, *, page: int = 1) -> list[Row]:
    """One page of a list: what is open in the order in which it is read, what has ended newest first."""
    slides = work.slides.page(
        _OF_LIST[shown], limit=PAGE_ROWS, skip=(page - 1) * PAGE_ROWS, newest_first=shown != "open"
    )
    return view_rows(work, node, slides, status)


def count_pages(slides: Mapping[str, int], shown: str) -> int:
    """Pages of a list.

    Example:
        >>> count_pages({"referred": 101}, "refer"), count_pages({}, "open")
        (2, 1)
    """
    return max(1, -(-sum(slides.get(state.value, 0) for state in _OF_LIST[shown]) // PAGE_ROWS))


def view_rows(work: Work, node: Node, slides: Sequence[SlideRecord], status: EdgeStatus | None) -> list[Row]:
    """Slides as lines; what else is known of all of them is asked for once."""
    hashes = [slide.slide_sha256 for slide in slides]
    queued = [slide.slide_sha256 for slide in slides if slide.state is SlideState.ACCEPTED]
    jobs, asked = work.jobs.find_of(queued, READ, model=node.model), work.consultations.states_of(hashes)
    return [
        _view_row(node, slide, jobs.get(slide.slide_sha256), asked.get(slide.slide_sha256, set()), status)
        for slide in slides
    ]


def _view_row(
    node: Node, slide: SlideRecord, job: Job | None, asked: set[ConsultationState], status: EdgeStatus | None
) -> Row:
    reading = slide.facts.get("reading", {})
    places = list(slide.facts.get("places", {}))
    parts = []
    if reading:
        parts = [
            f"{reading['tissue_mm2']:.1f} mm² tissue",
            f"{reading['tiles']:,} tiles",
            f"{reading['mpp']:.3g} µm/px",
        ]
    return Row(
        sha256=slide.slide_sha256,
        name=PurePath(places[0]).name if places else slide.slide_sha256[:12],
        state=slide.state.value,
        state_words=STATES[slide.state.value],
        why=_say_why(node, slide, job, status),
        since=say_since(max(0.0, time.time() - slide.changed_ms / 1000)),
        is_urgent=slide.is_urgent,
        verdict=str(reading.get("verdict", "")),
        facts=" · ".join(parts),
        asked=next((words for state, words in _ASKED.items() if state in asked), ""),
        has_picture=(node.places.answers / slide.slide_sha256 / "thumbnail.jpg").exists(),
    )


def view_slide(work: Work, node: Node, slide: SlideRecord, *, form: AskForm | None = None) -> SlideView:
    """A slide with all that is known of it.

    Args:
        work: Transaction.
        node: Whose.
        slide: The slide.
        form: What was typed before, when it could not be taken; None for an empty form.
    """
    edge = work.findings.of_slide(slide.slide_sha256, place="edge")
    cloud = work.findings.of_slide(slide.slide_sha256, place="cloud")
    return SlideView(
        row=view_rows(work, node, [slide], None)[0],
        questions=tuple(_compare(edge, cloud)),
        cloud=slide.facts.get("cloud"),
        asked=tuple(
            view_asked(work, kept, slide) for kept in reversed(work.consultations.of_slide(slide.slide_sha256))
        ),
        ask=form or view_form(work, node, slide),
        leaving=slide.facts.get("leaving"),
        stays=str(slide.facts.get("stays", "")),
        sent_bytes=work.bytes.total(slide_sha256=slide.slide_sha256, direction="out").total_bytes,
        size_bytes=slide.size_bytes,
        has_report=(node.places.answers / slide.slide_sha256 / "report.html").exists(),
        evicted=str(slide.facts.get("evicted", "")),
        accepted=_say_time(slide.accepted_ms),
    )


def view_form(
    work: Work,
    node: Node,
    slide: SlideRecord,
    *,
    organ: str = "",
    question: str = "",
    is_urgent: bool = False,
    error: str = "",
) -> AskForm:
    """The form in which a specialist is asked about a slide, with what was typed before."""
    refusal, right = "", node.rights.now()
    try:
        right = node.rights.require_question(node.settings.reading.site)
    except PolicyError as refused:
        refusal = str(refused)
    if slide.state is SlideState.REJECTED:
        refusal = "This slide was rejected, so the cloud has nothing of it that a specialist could look at."
    return AskForm(
        organs=tuple((site.id, site.title) for site in load_catalogue().sites),
        organ=organ or guess_organ(work, node, slide),
        question=question,
        is_urgent=is_urgent,
        may_leave=LEVELS[right.level.word],
        reason=right.reason,
        refusal=refusal,
        error=error,
    )


def view_recent(work: Work) -> list[Asked]:
    """The latest questions to specialists."""
    return [
        view_asked(work, kept, work.slides.get(kept.slide_sha256)) for kept in work.consultations.find_recent(limit=20)
    ]


def view_asked(work: Work, kept: Consultation, slide: SlideRecord) -> Asked:
    """A question and how far it has come."""
    message = find_message_state(work, kept.consultation_id)
    steps = [("asked", _say_time(kept.asked_ms))]
    state, words = kept.state.value, QUESTIONS[kept.state.value]
    taken_ms = slide.facts.get("consultations", {}).get(kept.consultation_id, {}).get("taken_ms")
    if kept.state is ConsultationState.OPEN and message is OutboxState.WITHDRAWN:
        state, words = "withdrawn", "not sent: the policy changed"
    elif kept.state is ConsultationState.OPEN and message is not OutboxState.ACKNOWLEDGED:
        words = "waits for the line"
    if kept.state is not ConsultationState.OPEN and taken_ms:
        steps.append(("taken", _say_time(taken_ms)))
    if kept.state is ConsultationState.ANSWERED:
        steps.append(("answered", _say_time(kept.changed_ms)))
    places = list(slide.facts.get("places", {}))
    return Asked(
        sha256=kept.slide_sha256,
        name=PurePath(places[0]).name if places else kept.slide_sha256[:12],
        organ=next((site.title for site in load_catalogue().sites if site.id == kept.organ), kept.organ),
        question=str(kept.question.get("text", "")),
        is_urgent=kept.is_urgent,
        is_by_rule=kept.question.get("by") == "rule",
        state=state,
        state_words=words,
        steps=tuple(steps),
        specialist=kept.specialist or "",
        answer="" if kept.answer is None else say_answer(kept.answer),
    )


def say_answer(answer: Mapping[str, Any]) -> str:
    """A specialist's answer as text: what they wrote, and whatever else they sent, by name."""
    lines = [str(answer["text"])] if answer.get("text") else []
    return "\n".join(lines + [f"{name}: {value}" for name, value in answer.items() if name != "text"])


def _say_time(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000))


def _say_why(node: Node, slide: SlideRecord, job: Job | None, status: EdgeStatus | None) -> str:
    if slide.is_ended:
        return say_reason(slide.reason) if slide.reason else ""
    if slide.state is SlideState.ACCEPTED:
        return _say_queue(job, node, status)
    if slide.state is SlideState.ENCODED:
        return "read; its bundle waits for the line" + (f" ({LINES[status.line]})" if status is not None else "")
    return "the cloud has its bundle; its opinion is awaited"


def _say_queue(job: Job | None, node: Node, status: EdgeStatus | None) -> str:
    if job is None:
        return "waits to be queued again: its encoder was changed"
    if job.state is JobState.LEASED:
        if job.slide_sha256 in node.away:
            return f"waits: {say_reason('folder-away')}"
        return "is being read" + (f", attempt {job.attempts}" if job.attempts > 1 else "")
    waits = status.reading_waits if status is not None else ""
    if node.is_paused or waits:
        return "waits: " + ("reading is paused by the cloud's operator" if node.is_paused else say_reason(waits))
    if job.attempts:
        wait = max(0.0, job.not_before_ms / 1000 - time.time())
        return f"attempt {job.attempts} failed ({say_reason(job.reason)}); tried again in {say_since(wait)}"
    return "waits for its turn"


def _compare(edge: list[FindingRecord], cloud: list[FindingRecord]) -> list[Question]:
    first = {record.task: record.content for record in edge}
    second = {record.task: record.content for record in cloud}
    restored = [[found for found in map(restore_finding, side.values()) if found] for side in (first, second)]
    together = combine(restored[0], restored[1])
    questions = []
    for task in dict.fromkeys([*first, *second]):
        agreement = together.get(task, ("", None))[0]
        entry = first.get(task) or second[task]
        questions.append(
            Question(
                title=str(entry["title"]),
                edge=_say(first.get(task)),
                cloud=_say(second.get(task)),
                agreement=AGREEMENTS.get(agreement, ""),
                is_contradiction=agreement == "contradiction",
            )
        )
    return questions


def _say(entry: Mapping[str, Any] | None) -> Said | None:
    finding = restore_finding(entry) if entry is not None else None
    if entry is None or finding is None:
        return None
    words = {
        Answer.ANSWER: "".join(finding.labels[:1]),
        Answer.SET: " or ".join(finding.labels),
        Answer.REFER: "refer to a person",
        Answer.NOT_READABLE: "not readable",
    }
    doubts = [reason.text for reason in finding.reasons] or [item["text"] for item in entry.get("cautions", [])]
    return Said(
        answer=words[finding.answer],
        doubt=" ".join(doubts[:2]),
        head=f"{entry['head']['id']} {entry['head']['version']}",
        in_force=finding.in_force,
        probability=finding.probabilities.get(finding.leading) if finding.answer is Answer.ANSWER else None,
    )

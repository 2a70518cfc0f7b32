"""What the pages show of slides: where each is, since when, why it waits, and what edge and cloud say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from slideway.core.opinion import Answer
from slideway.edge.ends import combine, restore_finding
from slideway.edge.node import READ, Node
from slideway.edge.status import EdgeStatus
from slideway.edge.words import LINES, STATES, say_reason, say_since
from slideway.store.findings import FindingRecord
from slideway.store.jobs import Job, JobState
from slideway.store.slides import SlideRecord, SlideState
from slideway.store.work import Work

MOST_ROWS = 200
_OF_LIST = {
    "open": (SlideState.ACCEPTED, SlideState.ENCODED, SlideState.SENT, SlideState.ANSWERED),
    "refer": (SlideState.REFERRED,),
    "reported": (SlideState.REPORTED,),
    "rejected": (SlideState.REJECTED,),
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
class SlideView:
    """All that the page of one slide shows."""

    row: Row
    questions: tuple[Question, ...]
    cloud: Mapping[str, Any] | None
    consultations: tuple[Mapping[str, Any], ...]
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


def view_worklist(work: Work, node: Node, status: EdgeStatus, shown: str) -> list[Row]:
    """Lines of a list: what is open in the order in which it is read, what has ended newest first."""
    slides = [slide for state in _OF_LIST[shown] for slide in work.slides.find_all(state=state)]
    if shown == "open":
        slides.sort(key=lambda slide: (not slide.is_urgent, slide.accepted_ms))
    else:
        slides.sort(key=lambda slide: -slide.changed_ms)
    return [view_row(work, node, slide, status) for slide in slides[:MOST_ROWS]]


def view_row(work: Work, node: Node, slide: SlideRecord, status: EdgeStatus | None) -> Row:
    """A slide as a line."""
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
        why=_say_why(work, node, slide, status),
        since=say_since(max(0.0, time.time() - slide.changed_ms / 1000)),
        is_urgent=slide.is_urgent,
        verdict=str(reading.get("verdict", "")),
        facts=" · ".join(parts),
        has_picture=(node.places.answers / slide.slide_sha256 / "thumbnail.jpg").exists(),
    )


def view_slide(work: Work, node: Node, slide: SlideRecord) -> SlideView:
    """A slide with all that is known of it."""
    edge = work.findings.of_slide(slide.slide_sha256, place="edge")
    cloud = work.findings.of_slide(slide.slide_sha256, place="cloud")
    consultations = slide.facts.get("consultations", {})
    return SlideView(
        row=view_row(work, node, slide, None),
        questions=tuple(_compare(edge, cloud)),
        cloud=slide.facts.get("cloud"),
        consultations=tuple(consultations.values()),
        leaving=slide.facts.get("leaving"),
        stays=str(slide.facts.get("stays", "")),
        sent_bytes=work.bytes.total(slide_sha256=slide.slide_sha256, direction="out").total_bytes,
        size_bytes=slide.size_bytes,
        has_report=(node.places.answers / slide.slide_sha256 / "report.html").exists(),
        evicted=str(slide.facts.get("evicted", "")),
        accepted=time.strftime("%Y-%m-%d %H:%M", time.localtime(slide.accepted_ms / 1000)),
    )


def _say_why(work: Work, node: Node, slide: SlideRecord, status: EdgeStatus | None) -> str:
    if slide.is_ended:
        return say_reason(slide.reason) if slide.reason else ""
    if slide.state is SlideState.ACCEPTED:
        return _say_queue(work.jobs.find(slide.slide_sha256, READ, model=node.model), node, status)
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

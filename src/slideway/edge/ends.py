"""How a slide ends until a doctor's desk decides: by what edge and cloud say, and never by a machine's silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideway.core.opinion import NEGATIVE, POSITIVE, Answer, Finding, Kind, TaskQuestion
from slideway.core.tissue import Reason, Verdict
from slideway.heads.discordance import CONTRADICTION, compare_findings
from slideway.store.slides import SlideState

ALONE, TOGETHER = "edge-alone", "edge-and-cloud"
_UNREADABLE = (Verdict.NO_TISSUE.value, Verdict.RESCAN.value)
_UNKNOWN = Reason("not-said", "The reason was not told.")


@dataclass(frozen=True)
class End:
    """How a slide ends.

    Attributes:
        state: Reported or referred.
        reason: Why, as a code.
    """

    state: SlideState
    reason: str


def decide_end(verdict: str, edge: Sequence[Mapping[str, Any]], cloud: Sequence[Mapping[str, Any]] | None) -> End:
    """The rule: whatever is not a plain answer by a head in force goes to a person.

    Args:
        verdict: Of the slide's quality.
        edge: Findings of the edge, as result.json has them.
        cloud: Findings of the cloud; None when the edge answers alone.
    """
    if verdict in _UNREADABLE:
        return End(SlideState.REFERRED, verdict)
    found = [finding for finding in map(restore_finding, edge) if finding is not None]
    second = [finding for finding in map(restore_finding, cloud or ()) if finding is not None]
    together = combine(found, second)
    if any(agreement == CONTRADICTION for agreement, _ in together.values()):
        return End(SlideState.REFERRED, "opinions-contradict")
    in_force = [finding for _, finding in together.values() if finding.in_force]
    if not in_force:
        return End(SlideState.REFERRED, "no-head-in-force")
    if all(finding.answer is Answer.ANSWER for finding in in_force):
        return End(SlideState.REPORTED, ALONE if cloud is None else TOGETHER)
    return End(SlideState.REFERRED, "not-sure")


def combine(edge: Sequence[Finding], cloud: Sequence[Finding]) -> dict[str, tuple[str, Finding]]:
    """Task to agreement and what may be said of both; a question that only one was asked stays as it is."""
    second = {finding.task.id: finding for finding in cloud}
    told: dict[str, tuple[str, Finding]] = {}
    for finding in edge:
        other = second.pop(finding.task.id, None)
        if other is None or other.task.labels != finding.task.labels:
            told[finding.task.id] = ("", finding)
        else:
            compared = compare_findings(finding, other)
            told[finding.task.id] = (compared.agreement, compared.combined)
    return told | {task: ("", finding) for task, finding in second.items()}


def restore_finding(entry: Mapping[str, Any]) -> Finding | None:
    """A finding from its JSON; None when it is none."""
    try:
        kind = Kind(entry["kind"])
        shares = {str(label): float(share) for label, share in entry["probabilities"].items()}
        labels = (NEGATIVE, POSITIVE) if kind is Kind.BINARY else tuple(sorted({*shares, *entry["labels"]}))
        answer = Answer(entry["answer"])
        reasons = tuple(Reason(reason["code"], reason["text"]) for reason in entry["reasons"])
        return Finding(
            task=TaskQuestion(str(entry["task"]), str(entry["title"]), kind, labels),
            answer=answer,
            labels=tuple(entry["labels"]),
            probabilities=shares,
            reasons=() if answer is Answer.ANSWER else reasons or (_UNKNOWN,),
            in_force=entry["in_force"] is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None

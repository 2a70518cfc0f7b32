"""What came of a reading, into the store in one transaction: state, findings, what leaves, and the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slideway.bundles.policy import Level
from slideway.core.crash import crash_here
from slideway.edge.ends import decide_end
from slideway.edge.node import ACTOR, Node, end_slide
from slideway.store.audit import Detail
from slideway.store.jobs import Job
from slideway.store.slides import SlideState
from slideway.store.work import Work
from slideway.sync.messages import Message
from slideway.sync.outgoing import UploadPlan, put_message, put_upload

# Errors that another attempt would meet again: the slide itself is at fault, or a person must decide.
FINAL = frozenset(
    [
        "slide-unreadable",
        "slide-format-unknown",
        "slide-reader-missing",
        "slide-broken",
        "slide-companion-missing",
        "slide-too-large",
        "resolution-unknown",
    ]
)
# Not the slide's fault: it waits, without losing an attempt, until the node is mended.
NODES_FAULT = frozenset(
    [
        "disk-full",
        "output-not-writable",
        "encoder-unknown",
        "encoder-untrusted",
        "encoder-retired",
        "head-unknown",
        "head-untrusted",
        "fingerprint-mismatch",
        "wrong-use",
        "blob-failed",
        "no-process",
    ]
)


def record_reading(work: Work, node: Node, job: Job, told: Mapping[str, Any]) -> None:
    """Record a reading; what it says counts only if the job is still ours.

    Raises:
        LeaseLostError: It is not; nothing of this is kept.
    """
    slide = job.slide_sha256
    leaving, stays = _take_leave(node, told)
    kept = {key: leaving[key] for key in ("sha256", "level", "ends")} if leaving else None
    work.jobs.complete(job, result={"leaving": kept["sha256"] if kept else "", "verdict": told["facts"]["verdict"]})
    work.slides.add_facts(slide, {"reading": told["facts"], "leaving": kept, "stays": stays})
    for finding in told["findings"]:
        record_finding(work, slide, finding, place="edge", fingerprint=told["fingerprint"])
    details = {"verdict": told["facts"]["verdict"], "findings": len(told["findings"])}
    if work.slides.get(slide).state is SlideState.ACCEPTED:
        work.slides.move(slide, SlideState.ENCODED)
        work.slides.add_facts(slide, {"encoded_at_s": node.served.seconds()})
        work.audit.append("slide-encoded", actor=ACTOR, subject=slide, details=details)
    if leaving:
        plan = UploadPlan("bundle", leaving["sha256"], slide, tuple(leaving["ends"]))
        put_upload(work, plan, is_urgent=work.slides.get(slide).is_urgent)  # it may have become so meanwhile
        released = {"sha256": leaving["sha256"], "level": leaving["level"], "bytes": plan.length_bytes}
        work.audit.append("bundle-released", actor=ACTOR, subject=slide, details=released)
    else:
        end = decide_end(told["facts"]["verdict"], told["findings"], None)
        end_slide(work, node, slide, end.state, end.reason)
    crash_here("edge.before-outcome")


def _take_leave(node: Node, told: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    """What of a reading leaves, and why the rest stays.

    The policy may have become stricter since the child asked. What is put into the outbox after that is not withdrawn
    by `Chores`, which look at a change of the policy once: so it is asked here again, in the transaction.
    """
    leaving = told["leaving"]
    if leaving and node.rights.now().level < min(Level[str(leaving["level"]).upper()], Level.FEATURES):
        return None, "policy-changed"
    return leaving, str(told["stays"])


def record_finding(work: Work, slide: str, finding: Mapping[str, Any], *, place: Any, fingerprint: str) -> None:
    """Keep a finding as result.json has it."""
    head = finding["head"]
    work.findings.record(
        slide,
        str(finding["task"]),
        finding,
        place=place,
        head_id=str(head["id"]),
        head_version=str(head["version"]),
        head_sha256=str(head["sha256"]),
        fingerprint=fingerprint,
    )


def record_failure(work: Work, node: Node, job: Job, code: str, *, can_retry: bool) -> bool:
    """Give a job back after a failure; when it is over, its slide is rejected with the reason. Whether it is over."""
    failed = work.jobs.fail(job, reason=code, can_retry=can_retry)
    if failed.state.value != "quarantined":
        return False
    if job.step == "read":
        end_slide(work, node, job.slide_sha256, SlideState.REJECTED, code)
    else:
        details = {"reason": code}
        work.audit.append("regions-not-sent", actor=ACTOR, subject=job.slide_sha256, details=details)
    return True


def record_regions(work: Work, node: Node, job: Job, regions: Sequence[Mapping[str, Any]]) -> None:
    """Let regions leave, each as a file, and say which is which.

    Raises:
        LeaseLostError: The job is not ours any more.
    """
    slide, bundle = job.slide_sha256, str(job.payload["bundle"])
    if node.rights.now().level < Level.REGIONS:  # stricter since the child asked, as in `_take_leave`
        work.jobs.complete(job, result={"regions": []})
        details: dict[str, Detail] = {"reason": "policy-changed"}
        work.audit.append("regions-not-sent", actor=ACTOR, subject=slide, details=details)
        return
    work.jobs.complete(job, result={"regions": [row["sha256"] for row in regions]})
    is_urgent = work.slides.get(slide).is_urgent
    for row in regions:
        put_upload(work, UploadPlan("region", row["sha256"], slide, (row["n_bytes"],)), is_urgent=is_urgent)
    said = [{key: row[key] for key in ("sha256", "rectangle", "mpp")} for row in regions]
    body = {"slide": slide, "bundle": bundle, "regions": said}
    put_message(work, Message(f"regions:{bundle}", "regions", slide, 0, body), slide_sha256=slide)
    n_bytes = sum(row["n_bytes"] for row in regions)
    details = {"count": len(regions), "bytes": n_bytes}
    work.audit.append("regions-released", actor=ACTOR, subject=slide, details=details)

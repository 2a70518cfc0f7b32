"""The fleet as an operator sees it: each node, how long ago it was heard of, what waits, what came, what failed."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any
from weakref import WeakKeyDictionary

from slideway.store.database import Store, now_ms
from slideway.store.facet import Clock
from slideway.store.jobs import JobState
from slideway.store.nodes import Node, NodeState
from slideway.store.work import WorkOfAll

# To count jobs and slides takes time that grows with the years. When it takes longer than this, the counts are given
# again until counting would take no more than a hundredth of the time.
SLOW_COUNT_SECONDS = 0.25
SILENT_SECONDS = 900.0  # three missed reports of a node that reports every five minutes


@dataclass(frozen=True)
class NodeLine:
    """One node.

    Attributes:
        tenant: Whose it is.
        node: Its id.
        name: Its name for people.
        state: `invited`, `enrolled` or `revoked`.
        version: That it last said it runs.
        seen_seconds: How long ago it was heard of, by the cloud's clock; None when never.
        is_silent: Enrolled, and not heard of for a quarter of an hour.
        waiting: Messages that it has not fetched.
        bytes_in: Payload that came from it.
        bytes_out: Payload of messages that wait for it.
        status: What it last said of itself: queue, lag, saved bytes, failures.
        reason: Why it was revoked.
    """

    tenant: str
    node: str
    name: str
    state: str
    version: str
    seen_seconds: float | None
    is_silent: bool
    waiting: int
    bytes_in: int
    bytes_out: int
    status: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Fleet:
    """All nodes and what the cloud has to do.

    Attributes:
        nodes: By tenant and id.
        jobs: How many are in which state; these and slides may be some time old where there are very many.
        slides: How many are in which state.
        open_consultations: Questions that nobody has answered, by organ.
        overdue_consultations: Of these, past their time.
        at_ms: When this was looked up, by the cloud's clock.
    """

    nodes: tuple[NodeLine, ...]
    jobs: dict[str, int]
    slides: dict[str, int]
    open_consultations: dict[str, int]
    overdue_consultations: int
    at_ms: int


@dataclass(frozen=True)
class _Counted:
    jobs: dict[str, int]
    slides: dict[str, int]
    until: float


_counted: WeakKeyDictionary[Store, _Counted] = WeakKeyDictionary()


def view_fleet(store: Store, *, clock: Clock = now_ms) -> Fleet:
    """Look at everything, at one moment."""
    now = clock()
    with store.reading_of_all() as work:
        counted = _count(store, work)
        waiting, came = work.outbox.open_sums(), work.bytes.sums_by_peer(direction="in")
        organs, overdue = work.consultations.count_open(), work.consultations.count_overdue()
        lines = []
        for node in work.nodes.find_all():
            key = (node.tenant, node.node)
            total = came.get(key)
            lines.append(_describe(node, now, *waiting.get(key, (0, 0)), 0 if total is None else total.payload_bytes))
    return Fleet(tuple(lines), dict(counted.jobs), dict(counted.slides), organs, overdue, now)


def _count(store: Store, work: WorkOfAll) -> _Counted:
    """Jobs and slides by state, counted over all that ever was; now, or a while ago where that takes long."""
    found, began = _counted.get(store), time.monotonic()
    if found is not None and began < found.until:
        return found
    jobs = {state.value: count for state, count in work.jobs.counts().items()}
    slides = {state.value: count for state, count in work.slides.counts().items()}
    took = time.monotonic() - began
    _counted[store] = found = _Counted(jobs, slides, began + (100 * took if took > SLOW_COUNT_SECONDS else 0))
    return found


def _describe(node: Node, now: int, waiting: int, bytes_out: int, bytes_in: int) -> NodeLine:
    seen = None if node.seen_ms is None else max(0.0, (now - node.seen_ms) / 1000)
    is_silent = node.state is NodeState.ENROLLED and (seen is None or seen > SILENT_SECONDS)
    return NodeLine(
        tenant=node.tenant,
        node=node.node,
        name=node.name,
        state=node.state.value,
        version=node.version,
        seen_seconds=seen,
        is_silent=is_silent,
        waiting=waiting,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        status=dict(node.status),
        reason=node.reason,
    )


def gauge_fleet(store: Store, folder: Any) -> dict[tuple[str, str], dict[str, float]]:
    """Queue lengths for Prometheus."""
    fleet = view_fleet(store)
    return {
        ("slideway_jobs", "state"): {state: float(fleet.jobs[state]) for state in JobState},
        ("slideway_slides", "state"): {state: float(count) for state, count in fleet.slides.items()},
        ("slideway_consultations_open", "organ"): {organ: float(n) for organ, n in fleet.open_consultations.items()},
        ("slideway_nodes", "state"): {s: float(n) for s, n in Counter(line.state for line in fleet.nodes).items()},
        ("slideway_queue", "what"): {
            "consultations-overdue": float(fleet.overdue_consultations),
            "messages-to-nodes": float(sum(line.waiting for line in fleet.nodes)),
            "nodes-silent": float(sum(line.is_silent for line in fleet.nodes)),
            "disk-free-bytes": float(shutil.disk_usage(folder).free),
        },
    }


def render_fleet(fleet: Fleet) -> str:
    """The fleet as a plain page: no script, nothing from elsewhere."""
    head = ("Tenant", "Node", "State", "Version", "Last heard of", "Queue there", "Lag there", "Waits for it", "Came",
            "Saved", "Failures")  # fmt: skip
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(line))}</tr>" for line in fleet.nodes)
    jobs = ", ".join(f"{count} {state}" for state, count in fleet.jobs.items())
    slides = ", ".join(f"{count} {state}" for state, count in fleet.slides.items())
    organs = ", ".join(f"{count} {organ}" for organ, count in sorted(fleet.open_consultations.items())) or "none"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Slideway fleet</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="30">'
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1d2327}table{border-collapse:collapse}"
        "td,th{padding:.35rem .7rem;border-bottom:1px solid #d6d9dc;text-align:left}th{font-weight:600}</style>"
        f"<h1>Fleet</h1><table><thead><tr>{''.join(f'<th scope=col>{name}</th>' for name in head)}</tr></thead>"
        f"<tbody>{rows or '<tr><td colspan=11>No node was invited yet.</td></tr>'}</tbody></table>"
        f"<p>Jobs: {jobs}.</p><p>Slides: {slides}.</p>"
        f"<p>Consultations open: {escape(organs)}; overdue: {fleet.overdue_consultations}.</p></html>"
    )


def _cells(line: NodeLine) -> tuple[str, ...]:
    status = line.status
    lag = status.get("lag_seconds")
    return (
        line.tenant,
        line.node,
        f"{line.state}: {line.reason}" if line.reason else line.state,
        line.version or "–",
        _say_ago(line.seen_seconds) + (" (silent)" if line.is_silent else ""),
        str(status.get("queue", "–")),
        _say_ago(lag).removesuffix(" ago") if isinstance(lag, int | float) else "–",
        f"{line.waiting} messages",
        _say_bytes(line.bytes_in),
        _say_bytes(status["saved_bytes"]) if isinstance(status.get("saved_bytes"), int) else "–",
        str(status.get("failures", "–")),
    )


def _say_ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _say_bytes(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"

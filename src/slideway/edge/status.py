"""How the node is, as one record and in plain words: what waits, since when, and why."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import slideway
from slideway.core.errors import UnknownTenantError
from slideway.edge.consult import KIND
from slideway.edge.node import Node
from slideway.edge.rights import make_rights
from slideway.edge.settings import EdgeSettings
from slideway.edge.shelves import ALONE, open_own_store
from slideway.edge.space import DiskState
from slideway.edge.words import LEVELS, LINES, say_bytes, say_reason, say_since
from slideway.store.outbox import OutboxState
from slideway.store.work import Work
from slideway.sync.identity import read_endpoint

_ASK_SECONDS = 3.0
_LINE_ALARMS = ("captive", "clock", "refused", "revoked")
_UNREADABLE = ("blob-missing", "blob-failed")
WARNING, ALARM = "warning", "alarm"


@dataclass(frozen=True)
class Folder:
    """A watched folder.

    Attributes:
        name: Its last part; where it lies is the settings' business.
        is_there: It can be looked into.
        reason: Why not; empty when it can.
        away_seconds: For how long; None while it is there.
        slides: That lie in it.
        settling: Of these, still changing or lacking a file.
        lacking: Of these, lacking a file that their index names.
    """

    name: str
    is_there: bool
    reason: str
    away_seconds: float | None
    slides: int
    settling: int
    lacking: int


@dataclass(frozen=True)
class EdgeStatus:
    """How a node is.

    Attributes:
        version: Of Slideway.
        tenant: Under which it keeps its slides.
        node: Its id at the cloud; empty when it is not enrolled.
        is_serving: It was asked while it serves; otherwise only its store was looked at.
        slides: How many are in each state.
        reading: Slides in hand.
        reading_waits: Why nothing can be read now, as a code; empty when slides are read.
        is_paused: The cloud's operator has paused reading.
        line: State of the line, as a code.
        line_seconds: For how long it has been so; None when not known.
        line_reason: What the last failure said.
        retry_seconds: Until the line is tried again.
        waiting: Things in the outbox.
        waiting_bytes: Their bytes.
        oldest_seconds: How long the oldest of them waits; None when nothing does.
        sent_bytes: All bytes that went over the line.
        received_bytes: All bytes that came.
        slide_bytes: Size of the slides that were taken in.
        may_leave: Level of the policy.
        policy_reason: Why it may, or why nothing may.
        disk: The disk.
        store_waits: Why the store cannot be written now, as a code; empty when it can.
        folders: The watched folders.
        not_taken: Settled slides that there is no room for.
        encoder: Model that slides are read with.
        questions: Questions to specialists, by how far they have come.
        questions_waiting: Of these, questions that have not reached the cloud yet.
        unreadable: Things in the outbox whose file cannot be read here: they wait until it can.
        attention: (kind, sentence) of what a person should see to.
    """

    version: str
    tenant: str
    node: str
    is_serving: bool
    slides: Mapping[str, int]
    reading: int
    reading_waits: str
    is_paused: bool
    line: str
    line_seconds: float | None
    line_reason: str
    retry_seconds: float
    waiting: int
    waiting_bytes: int
    oldest_seconds: float | None
    sent_bytes: int
    received_bytes: int
    slide_bytes: int
    may_leave: str
    policy_reason: str
    disk: DiskState | None
    store_waits: str
    folders: tuple[Folder, ...]
    not_taken: int
    encoder: str
    questions: Mapping[str, int] = field(default_factory=dict)
    questions_waiting: int = 0
    unreadable: int = 0
    attention: tuple[tuple[str, str], ...] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True)
class Momentary:
    """What only the serving process knows.

    Attributes:
        reading: Slides in hand.
        reading_waits: Why nothing can be read now.
        line: State of the line.
        line_seconds: For how long.
        line_reason: What the last failure said.
        retry_seconds: Until it is tried again.
        disk: The disk.
        store_waits: Why the store cannot be written now.
        folders: The watched folders.
        not_taken: Settled slides that there is no room for.
    """

    reading: int = 0
    reading_waits: str = ""
    line: str = "unknown"
    line_seconds: float | None = None
    line_reason: str = ""
    retry_seconds: float = 0.0
    disk: DiskState | None = None
    store_waits: str = ""
    folders: tuple[Folder, ...] = ()
    not_taken: int = 0


class LineWatch:
    """Remembers since when the line is as it is."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._state, self._since = "unknown", monotonic()

    def note(self, state: str) -> float:
        """The line is in this state now; seconds since it is."""
        if state != self._state:
            self._state, self._since = state, self._monotonic()
        return self._monotonic() - self._since


def gather_status(work: Work, node: Node, now: Momentary, *, is_serving: bool = True) -> EdgeStatus:
    """How a node is, from its store and from what its process knows."""
    settings = node.settings
    right = node.rights.now()
    outbox, slides = work.outbox.counts(), work.slides.counts()
    waiting = outbox[OutboxState.WAITING] + outbox[OutboxState.SENT]
    now_ms = time.time_ns() // 1_000_000
    oldest = work.outbox.oldest_open_ms(peer="cloud")
    reasons = work.outbox.count_reasons(peer="cloud")
    out = work.bytes.total(direction="out").total_bytes
    came = work.bytes.total(direction="in").total_bytes
    endpoint = read_endpoint(node.places.endpoint) if node.rights.is_enrolled else None
    found = EdgeStatus(
        version=slideway.__version__,
        tenant=node.tenant,
        node="" if endpoint is None else endpoint.node,
        is_serving=is_serving,
        slides={state.value: count for state, count in slides.items()},
        reading=now.reading,
        reading_waits=now.reading_waits,
        is_paused=node.is_paused,
        line="none" if endpoint is None else now.line if endpoint.url else "stick",
        line_seconds=now.line_seconds,
        line_reason=now.line_reason,
        retry_seconds=now.retry_seconds,
        waiting=waiting,
        waiting_bytes=work.outbox.waiting_bytes(),
        oldest_seconds=None if oldest is None else max(0.0, (now_ms - oldest) / 1000),
        sent_bytes=out,
        received_bytes=came,
        slide_bytes=work.slides.total_bytes(),
        may_leave=right.level.word,
        policy_reason=right.reason,
        disk=now.disk,
        store_waits=now.store_waits,
        folders=now.folders,
        not_taken=now.not_taken,
        encoder=settings.reading.encoder,
        questions={state.value: count for state, count in work.consultations.counts().items()},
        questions_waiting=work.outbox.count_open(kind=KIND),
        unreadable=sum(reasons.get(code, 0) for code in _UNREADABLE),
    )
    return EdgeStatus(**{**vars(found), "attention": tuple(find_attention(found))})


def find_attention(status: EdgeStatus) -> list[tuple[str, str]]:
    """What a person should see to: (kind, sentence)."""
    told: list[tuple[str, str]] = []
    if status.disk is not None and status.disk.stopped_because:
        more = f" {_count(status.not_taken, 'slide')} wait in their folders." if status.not_taken else ""
        told.append(
            (
                ALARM,
                f"No slide is taken in: {status.disk.stopped_because}. It goes on by itself when there is room.{more}",
            )
        )
    if status.store_waits:
        told.append((ALARM, f"Nothing can be written down: {say_reason(status.store_waits)}."))
    if status.reading_waits:
        told.append((ALARM, f"No slide is read: {say_reason(status.reading_waits)}."))
    if status.line in _LINE_ALARMS:
        told.append((ALARM, f"The line: {LINES[status.line]}."))
    if status.unreadable:
        told.append(
            (
                ALARM,
                f"{_count(status.unreadable, 'thing')} cannot leave, for the file in state/outgoing cannot be read; "
                "the others go on. Check the disk and the rights of that folder.",
            )
        )
    if status.is_paused:
        told.append((WARNING, "Reading is paused by the cloud's operator."))
    for folder in status.folders:
        if not folder.is_there:
            since = f" for {say_since(folder.away_seconds)}" if folder.away_seconds is not None else ""
            told.append((WARNING, f"The folder {folder.name} cannot be looked into{since}: {folder.reason}."))
        if folder.lacking:
            told.append(
                (WARNING, f"{folder.name}: {_count(folder.lacking, 'slide')} lack a file that belongs to them.")
            )
    return told


def describe(status: EdgeStatus) -> list[str]:
    """The status in sentences, most pressing first."""
    lines = [f"{'ALARM' if kind == ALARM else 'Note'}: {sentence}" for kind, sentence in status.attention]
    return [
        *lines,
        *_say_slides(status),
        _say_line(status),
        *_say_outbox(status),
        *_say_questions(status),
        _say_policy(status),
        *_say_disk(status),
    ]


def _say_slides(status: EdgeStatus) -> list[str]:
    slides = status.slides
    ended = [f"{slides[state]} {state}" for state in ("reported", "referred", "rejected") if slides[state]]
    lines = [f"Slides: {sum(slides.values())} taken in" + (f"; {', '.join(ended)}" if ended else "") + "."]
    queue = slides["accepted"] - status.reading
    if status.reading or queue > 0:
        lines.append(f"Reading: {status.reading} now, {max(0, queue)} wait for their turn.")
    if slides["encoded"]:
        lines.append(f"Read here and not yet wholly at the cloud: {slides['encoded']}.")
    if slides["sent"] or slides["answered"]:
        lines.append(f"At the cloud, whose opinion is awaited: {slides['sent'] + slides['answered']}.")
    for folder in status.folders:
        if folder.is_there:
            more = f", {folder.settling} still being written" if folder.settling else ""
            lines.append(f"Folder {folder.name}: {_count(folder.slides, 'slide')} in it{more}.")
    return lines


def _say_line(status: EdgeStatus) -> str:
    if not status.is_serving:
        return "Line: not known; this node does not serve now (`slideway edge serve`)."
    since = (
        ""
        if status.line_seconds is None or status.line in ("none", "stick")
        else f" (for {say_since(status.line_seconds)})"
    )
    retry = f"; tried again in {say_since(status.retry_seconds)}" if status.retry_seconds >= 1 else ""
    goes_on = "; reading goes on without it" if status.line in ("down", *_LINE_ALARMS) else ""
    says = f" It says: {status.line_reason.rstrip('.')}." if status.line in _LINE_ALARMS and status.line_reason else ""
    return f"Line: {LINES.get(status.line, status.line)}{since}{retry}{goes_on}.{says}"


def _say_outbox(status: EdgeStatus) -> list[str]:
    lines = []
    if status.waiting:
        old = "" if status.oldest_seconds is None else f", the oldest for {say_since(status.oldest_seconds)}"
        lines.append(f"Waiting to leave: {_count(status.waiting, 'thing')}, {say_bytes(status.waiting_bytes)}{old}.")
    elif status.line != "none":
        lines.append("Waiting to leave: nothing.")
    if status.sent_bytes and status.slide_bytes:
        share = 100 * status.sent_bytes / status.slide_bytes
        lines.append(
            f"Sent so far: {say_bytes(status.sent_bytes)} with all overhead, {share:.2f} % of the slides' "
            f"{say_bytes(status.slide_bytes)}."
        )
    return lines


def _say_questions(status: EdgeStatus) -> list[str]:
    asked, taken, answered = (status.questions.get(state, 0) for state in ("open", "taken", "answered"))
    if not asked + taken + answered:
        return []
    waiting = min(status.questions_waiting, asked)  # an answer may come before the receipt
    waits = f" ({waiting} not at the cloud yet)" if waiting else ""
    return [f"Questions to specialists: {asked} asked{waits}, {taken} taken, {answered} answered."]


def _say_policy(status: EdgeStatus) -> str:
    return f"Policy: {LEVELS[status.may_leave]} ({status.policy_reason.rstrip('.')})."


def _say_disk(status: EdgeStatus) -> list[str]:
    disk = status.disk
    if disk is None:
        return []
    return [
        f"Disk: {say_bytes(disk.used_bytes)} of the budget of {say_bytes(disk.budget_bytes)} used, "
        f"{say_bytes(disk.free_bytes)} free."
    ]


def ask_status(settings: EdgeSettings) -> dict[str, Any]:
    """The status as JSON: from the node while it serves, else from its store.

    Raises:
        UnknownTenantError: It has not served yet.
    """
    found = _ask_serving(settings)
    if found is not None:
        return found
    places = settings.places
    tenant = read_endpoint(places.endpoint).tenant if places.endpoint.exists() else ALONE
    rights = make_rights(settings)
    try:
        with open_own_store(places, read_only=True) as store, store.reading(tenant) as work:
            looked_at = Node(settings, store, tenant, rights, outgoing=None, model="")  # type: ignore[arg-type]
            return gather_status(work, looked_at, Momentary(), is_serving=False).as_json()
    except UnknownTenantError as error:  # the first start makes it
        raise UnknownTenantError(
            "this node has not served since it was made or enrolled, so there is nothing to tell yet; start "
            "`slideway edge serve`"
        ) from error


def _ask_serving(settings: EdgeSettings) -> dict[str, Any] | None:
    try:
        url = json.loads(settings.places.serving.read_text(encoding="utf-8"))["url"]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/api/status", timeout=_ASK_SECONDS) as answer:
            found = json.loads(answer.read())
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
    return found if isinstance(found, dict) and found.get("version") else None


def read_status(found: Mapping[str, Any]) -> EdgeStatus:
    """A status from its JSON."""
    disk = found.get("disk")
    return EdgeStatus(
        **{
            **found,
            "disk": None if disk is None else DiskState(**disk),
            "folders": tuple(Folder(**folder) for folder in found.get("folders", ())),
            "attention": tuple((kind, text) for kind, text in found.get("attention", ())),
        }
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

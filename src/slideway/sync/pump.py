"""Empty the outbox over the line, most pressing first, and bring in what the cloud has to say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from slideway.core.crash import crash_here
from slideway.core.errors import (
    BlobError,
    CaptivePortalError,
    InvalidReceiptError,
    LineDownError,
    LineError,
    LineRefusedError,
    NodeRevokedError,
    StoreError,
)
from slideway.store.database import Store
from slideway.store.outbox import OutboxMessage, OutboxState
from slideway.store.work import Work
from slideway.sync.identity import check_receipt
from slideway.sync.line import Line, Progress
from slideway.sync.mailbox import Arrival, Handler, take_messages
from slideway.sync.outgoing import (
    Piece,
    UploadPlan,
    is_upload,
    message_of,
    name_piece,
    plan_of,
    withdraw_tiers,
)
from slideway.sync.pace import Backoff, Monotonic, NightWindow, PartSize

ReadRange = Callable[[str, int, int], bytes]
"""(sha256, start, end) → bytes of a file that leaves; raises BlobError when they are not there."""

_BATCH_MESSAGES = 64
_RECEIPT_WAIT_SECONDS = 60.0
_REVOKED_WAIT_SECONDS = 3600.0
_WITH_CREATION_BYTES = 16 * 2**10  # so much goes with the request that begins an upload: a tier 0 needs no second one


class LineState(StrEnum):
    """How the line is, in one word."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    CAPTIVE = "captive"
    REFUSED = "refused"
    REVOKED = "revoked"


@dataclass(frozen=True)
class LineReport:
    """What people are told of the line.

    Attributes:
        state: In one word.
        reason: What the last failure said; empty when there was none.
        failures: Failures in a row.
        part_bytes: Size of the next part: what the line carries in about ten seconds.
        seconds_to_wait: Until it is tried again; 0 when it may be tried now.
    """

    state: LineState
    reason: str
    failures: int
    part_bytes: int
    seconds_to_wait: float


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        sent: Keys that the step was about, in the order in which they were chosen.
        acknowledged: Keys whose receipts were verified.
        received: Messages of the cloud that were taken in.
        error: Why it ended early; None when it did not.
    """

    sent: tuple[str, ...] = ()
    acknowledged: tuple[str, ...] = ()
    received: int = 0
    error: str | None = None

    @property
    def is_idle(self) -> bool:
        """There was nothing to do, or it could not be done."""
        return not (self.sent or self.acknowledged or self.received) or self.error is not None


@dataclass(frozen=True)
class PumpSettings:
    """How a pump behaves.

    Attributes:
        window: Hours for large tiers; None for any hour.
        poll_seconds: How often to look into the outbox when nothing wakes the pump.
        wait_seconds: How long to wait at the cloud for a message.
    """

    window: NightWindow | None = None
    poll_seconds: float = 2.0
    wait_seconds: float = 25.0


@dataclass
class _Retry:
    """When the line may be tried again."""

    state: LineState = LineState.UNKNOWN
    reason: str = ""
    not_before: float = float("-inf")
    is_asked: bool = False  # the other side said how long to wait
    backoff: Backoff = field(default_factory=Backoff)


class Pump:
    """Sends and receives for one node; all that it must remember is in the store and at the cloud."""

    def __init__(
        self,
        store: Store,
        line: Line,
        read_range: ReadRange,
        handlers: Mapping[str, Handler],
        *,
        settings: PumpSettings | None = None,
        part_size: PartSize | None = None,
        backoff: Backoff | None = None,
        monotonic: Monotonic = time.monotonic,
        local_now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Make a pump.

        Args:
            store: Of the node.
            line: To the cloud; its endpoint names tenant and node.
            read_range: Gives bytes of files that leave.
            handlers: What each kind of message from the cloud does; `enough` is understood here.
            settings: How to behave.
            part_size: How large parts are.
            backoff: Pauses after failures.
            monotonic: Seconds that only go on.
            local_now: The local clock, for the night window only.
        """
        self._store, self._line, self._read_range = store, line, read_range
        self._handlers: dict[str, Handler] = {"enough": note_enough, **handlers}
        self._settings, self._part_size = settings or PumpSettings(), part_size or PartSize()
        self._monotonic, self._local_now = monotonic, local_now
        self._tenant, self._node = line.endpoint.tenant, line.endpoint.node
        self._sending = _Retry(backoff=backoff or Backoff())
        self._receiving = _Retry(backoff=self._sending.backoff.twin())
        self._paths: dict[str, Progress] = {}
        self._taken: list[int] = []
        self._wake = threading.Event()
        self._stop: threading.Event | None = None

    def report(self) -> LineReport:
        """How the line is, for people."""
        retry = self._sending
        wait = max(0.0, retry.not_before - self._monotonic())
        return LineReport(retry.state, retry.reason, retry.backoff.failures, self._part_size.n_bytes, wait)

    def wake(self) -> None:
        """Something was put into the outbox: look now."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Send and receive until told to stop; what a request that still waits brings then is left for next time."""
        self._stop = stop
        receiver = threading.Thread(target=self._receive_until, args=(stop,), name="receive", daemon=True)
        receiver.start()
        while not stop.is_set():
            step = self.send_once()
            if step.is_idle:
                self._pause(stop, self._sending)
        self._line.close()
        receiver.join(timeout=1)

    def run_once(self) -> Step:
        """One step of sending, then one of receiving, without waiting."""
        sent = self.send_once()
        received = self.receive_once(wait_seconds=0)
        return Step(sent.sent, sent.acknowledged, received.received, sent.error or received.error)

    def send_once(self) -> Step:
        """Send the most pressing thing: a batch of messages, or the next part of a file."""
        if self._monotonic() < self._sending.not_before:
            return Step(error=self._sending.state.value)
        self._line.take_traffic()
        rows: list[OutboxMessage] = []
        try:
            rows = self._choose()
            if not rows:
                return Step()
            crash_here("sync.before-request")
            acknowledged = self._send_part(rows[0]) if is_upload(rows[0]) else self._send_messages(rows)
        except (LineError, InvalidReceiptError, StoreError) as error:
            self._note_failed(self._sending, error)
            self._note_traffic(rows[0] if rows else None, payload_bytes=0)
            return Step(tuple(row.key for row in rows), error=error.code)
        self._note_up(self._sending)
        if self._receiving.state is LineState.DOWN and not self._receiving.is_asked:
            self._receiving.not_before = float("-inf")  # the line is back: answers need not wait longer either
        return Step(tuple(row.key for row in rows), tuple(acknowledged))

    def receive_once(self, *, wait_seconds: float = 0) -> Step:
        """Fetch messages and let them take effect; the next fetch tells the cloud which are taken."""
        if self._monotonic() < self._receiving.not_before:
            return Step(error=self._receiving.state.value)
        self._line.take_traffic()
        try:
            deliveries = self._line.receive_messages(self._taken, wait_seconds=wait_seconds)
            self._taken = []
            if self._stop is not None and self._stop.is_set():
                return Step()  # the store may be closed by now; what came is not said to be taken, and comes again
            crash_here("sync.before-message")
            messages = [delivery.message for delivery in deliveries]
            taken = take_messages(self._store, self._tenant, "cloud", messages, self._handlers)
            self._taken = [delivery.number for delivery in deliveries if delivery.message.id in taken.ids]
            crash_here("sync.after-message")
        except (LineError, StoreError) as error:
            if self._stop is not None and self._stop.is_set():
                return Step(error=error.code)
            self._note_failed(self._receiving, error)
            self._note_traffic(None, payload_bytes=0)
            return Step(error=error.code)
        if taken.refused:  # they stay at the cloud and come again: not at once, or we would spin
            self._receiving.not_before = self._monotonic() + _RECEIPT_WAIT_SECONDS
        self._note_traffic(None, payload_bytes=0)
        self._note_up(self._receiving)
        if self._sending.state is LineState.DOWN and not self._sending.is_asked:
            self._sending.not_before = float("-inf")  # the line is back: what waits need not wait longer
            self._wake.set()
        return Step(received=len(self._taken))

    def _choose(self) -> list[OutboxMessage]:
        """The most pressing row; with it the further messages that are due, when it is one."""
        window = self._settings.window
        tiers = window.tiers(self._local_now()) if window else ()
        with self._store.reading(self._tenant) as work:
            rows = work.outbox.next_due(limit=1, tiers=tiers)
            if not rows or is_upload(rows[0]):
                return rows
            more = work.outbox.next_due(limit=_BATCH_MESSAGES, tiers=(0,))
        return [row for row in more if not is_upload(row)]

    def _send_messages(self, rows: Sequence[OutboxMessage]) -> list[str]:
        answer = self._line.send_messages([message_of(row) for row in rows])
        crash_here("sync.after-receipts")
        acknowledged = []
        with self._store.transaction(self._tenant) as work:
            for row in rows:
                receipt, refusal = answer.receipts.get(row.key), answer.refused.get(row.key)
                if receipt is not None:
                    self._acknowledge(work, row.key, message_of(row).sha256, receipt)
                    acknowledged.append(row.key)
                else:
                    reason = refusal.code if refusal else InvalidReceiptError.code
                    work.outbox.mark_failed(row.key, reason=reason)
        crash_here("sync.after-receipts-kept")
        self._note_traffic(rows[0], payload_bytes=sum(row.size_bytes for row in rows))
        return acknowledged

    def _send_part(self, row: OutboxMessage) -> list[str]:
        plan = plan_of(row)
        try:
            known = self._paths.get(plan.sha256)
            payload, progress = (0, known) if known else self._begin(row, plan)
            if not payload:
                payload, progress = self._send_next(row, plan, progress)
        except LineRefusedError as error:
            self._note_refused(row, plan, error)
            return []
        except BlobError as error:
            with self._store.transaction(self._tenant) as work:
                work.outbox.mark_failed(row.key, reason=error.code)
            return []
        self._paths[plan.sha256] = progress
        crash_here("sync.after-answer")
        acknowledged = self._note_progress(row, plan, progress)
        crash_here("sync.after-acknowledged")
        self._note_traffic(row, payload_bytes=payload)
        return acknowledged

    def _begin(self, row: OutboxMessage, plan: UploadPlan) -> tuple[int, Progress]:
        """Begin or find an upload; a small first tier goes along."""
        first = plan.pieces[0]
        most = min(_WITH_CREATION_BYTES, self._part_size.n_bytes)
        goes_along = row.tier == first.tier and not row.attempts and first.end_bytes <= most
        content = self._read_range(plan.sha256, 0, first.end_bytes) if goes_along else b""
        return len(content), self._line.begin_upload(plan, content)

    def _send_next(self, row: OutboxMessage, plan: UploadPlan, progress: Progress) -> tuple[int, Progress]:
        """Send one part towards the end of a row's tier; nothing when that is reached."""
        offset, piece = progress.offset_bytes, _piece_at(plan, progress.offset_bytes)
        is_wanted = progress.stop is None or row.tier < progress.stop
        if piece is None or piece.tier > row.tier or not is_wanted:
            return 0, self._line.find_upload(progress.path) if plan.sha256 in self._paths else progress
        end = min(piece.end_bytes, offset + self._part_size.n_bytes)
        content = self._read_range(plan.sha256, offset, end)
        began = self._monotonic()
        try:
            progress = self._line.send_part(progress.path, offset, content)
        except LineDownError:
            self._part_size.note_failed()
            raise
        self._part_size.note_sent(len(content), self._monotonic() - began)
        return len(content), progress

    def _note_progress(self, row: OutboxMessage, plan: UploadPlan, progress: Progress) -> list[str]:
        acknowledged: list[str] = []
        with self._store.transaction(self._tenant) as work:
            for tier, receipt in progress.receipts.items():
                key = name_piece(plan.kind, plan.sha256, tier)
                found = work.outbox.find(key)
                if found is not None and found.state is not OutboxState.ACKNOWLEDGED:
                    self._acknowledge(work, key, plan.sha256, receipt)
                    acknowledged.append(key)
            if progress.stop is not None:
                withdraw_tiers(work, plan.kind, plan.sha256, from_tier=progress.stop, reason="enough")
            ends = {piece.tier: piece.end_bytes for piece in plan.pieces}
            if row.key not in acknowledged and progress.offset_bytes >= ends[row.tier]:
                # All is there and nothing is signed: it is asked for again, later.
                work.outbox.mark_sent(row.key, wait_seconds=_RECEIPT_WAIT_SECONDS)
        return acknowledged

    def _note_refused(self, row: OutboxMessage, plan: UploadPlan, error: LineRefusedError) -> None:
        """The cloud has it otherwise than we thought: ask anew, at once where that helps, later where it refuses."""
        if error.status in (401, 403):
            raise error  # it is we who are refused, not this file
        is_known = self._paths.pop(plan.sha256, None) is not None
        if is_known and error.status in (404, 409, 410, 460):
            return
        with self._store.transaction(self._tenant) as work:
            work.outbox.mark_failed(row.key, reason=(error.refusal or error.code)[:200])

    def _acknowledge(self, work: Work, key: str, sha256: str, receipt: str) -> None:
        check_receipt(
            receipt,
            cloud_key=self._line.endpoint.cloud_key,
            tenant=self._tenant,
            node=self._node,
            key=key,
            sha256=sha256,
        )
        work.outbox.mark_acknowledged(key, receipt=receipt)

    def _note_traffic(self, row: OutboxMessage | None, *, payload_bytes: int) -> None:
        """Write what the last requests cost into the ledger; also of those that failed."""
        traffic = self._line.take_traffic()
        if not traffic.all_out_bytes and not traffic.all_in_bytes:
            return
        slide = (row.slide_sha256 or "") if row else ""
        tier = row.tier if row and is_upload(row) else None
        payload_bytes = min(payload_bytes, traffic.all_out_bytes)
        transport = "tus" if row and is_upload(row) else "messages"
        overhead = traffic.all_out_bytes - payload_bytes
        try:
            with self._store.transaction(self._tenant) as work:
                work.bytes.record(slide, tier, "out", payload_bytes, overhead, "cloud", transport)
                work.bytes.record(slide, tier, "in", 0, traffic.all_in_bytes, "cloud", transport)
        except StoreError:
            return  # the count is lost, nothing else

    def _note_up(self, retry: _Retry) -> None:
        retry.state, retry.reason = LineState.UP, ""
        retry.backoff.note_success()

    def _note_failed(self, retry: _Retry, error: LineError | InvalidReceiptError | StoreError) -> None:
        retry.state, retry.reason = _name_state(error), str(error)
        asked = error.retry_after_seconds if isinstance(error, LineDownError) else None
        retry.is_asked = asked is not None
        pause = retry.backoff.note_failed(asked_seconds=asked)
        if isinstance(error, NodeRevokedError):
            pause = _REVOKED_WAIT_SECONDS
        retry.not_before = self._monotonic() + pause
        if not isinstance(error, StoreError):
            self._paths.clear()  # ask where it stands before going on

    def _pause(self, stop: threading.Event, retry: _Retry) -> None:
        """Wait until the line may be tried again, or until something is put into the outbox."""
        pause = retry.not_before - self._monotonic()
        if pause > 0:
            stop.wait(min(pause, self._settings.poll_seconds))
            return
        self._wake.wait(self._settings.poll_seconds)
        self._wake.clear()

    def _receive_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            step = self.receive_once(wait_seconds=self._settings.wait_seconds)
            if step.error is not None:
                stop.wait(min(max(0.1, self._receiving.not_before - self._monotonic()), self._settings.poll_seconds))


def note_enough(work: Work, arrival: Arrival) -> None:
    """The cloud wants no further tiers of a bundle: `{"bundle": sha256, "tier": first that is not wanted}`."""
    body = arrival.message.body
    sha256, tier = body.get("bundle"), body.get("tier")
    if isinstance(sha256, str) and isinstance(tier, int):
        withdraw_tiers(work, "bundle", sha256, from_tier=tier, reason="enough")


def _piece_at(plan: UploadPlan, offset_bytes: int) -> Piece | None:
    """The tier that the next byte belongs to; None at the end."""
    return next((piece for piece in plan.pieces if piece.start_bytes <= offset_bytes < piece.end_bytes), None)


def _name_state(error: Exception) -> LineState:
    if isinstance(error, CaptivePortalError):
        return LineState.CAPTIVE
    if isinstance(error, NodeRevokedError):
        return LineState.REVOKED
    if isinstance(error, LineRefusedError | InvalidReceiptError):
        return LineState.REFUSED
    return LineState.DOWN

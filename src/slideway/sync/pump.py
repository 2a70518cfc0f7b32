"""Empty the outbox over the line, most pressing first, and bring in what the cloud has to say."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial

from slideway.core.crash import crash_here
from slideway.core.errors import (
    BlobError,
    BrokenBlobError,
    CaptivePortalError,
    ClockWrongError,
    InvalidReceiptError,
    LineDownError,
    LineError,
    LineRefusedError,
    NodeRevokedError,
    SlidewayError,
    StoreError,
)
from slideway.store.database import Store
from slideway.store.outbox import OutboxMessage, OutboxState
from slideway.store.work import Work
from slideway.sync.bugs import BUG, describe_bug, log_bug
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
_PATIENCE = 3  # so often in a row one thing may fail while the line is up, before it stands back for the others
_REVOKED_WAIT_SECONDS = 3600.0
_REFUSED_WAIT_SECONDS = 3600.0  # a message that is refused here again and again is asked for again after so long
_WITH_CREATION_BYTES = 16 * 2**10  # so much goes with the request that begins an upload: a tier 0 needs no second one


class LineState(StrEnum):
    """How the line is, in one word; the further down, the worse."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    CLOCK = "clock"
    CAPTIVE = "captive"
    REFUSED = "refused"
    REVOKED = "revoked"


_WORSE = tuple(LineState)
# What a request that gets through, of either kind, proves to be over.
_OVER = (LineState.DOWN, LineState.CLOCK, LineState.CAPTIVE, LineState.REVOKED)


@dataclass(frozen=True)
class LineReport:
    """What people are told of the line: the worse of sending and receiving.

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


@dataclass(frozen=True)
class _Cost:
    """What requests cost, until it stands in the ledger."""

    slide: str
    tier: int | None
    transport: str
    payload_bytes: int
    overhead_bytes: int
    in_bytes: int


@dataclass(frozen=True)
class _Aside:
    """A message of the cloud that was refused here, perhaps only for now: when it is asked for again."""

    not_before: float
    seconds: float


@dataclass
class _Retry:
    """When the line may be tried again, and what it has cost since that was last written down."""

    state: LineState = LineState.UNKNOWN
    reason: str = ""
    not_before: float = float("-inf")
    is_asked: bool = False  # the other side said how long to wait
    backoff: Backoff = field(default_factory=Backoff)
    owed: list[_Cost] = field(default_factory=list)


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
        self._refused: dict[int, _Aside] = {}  # by number; of this session only: after an update all come again
        self._batch = _BATCH_MESSAGES
        self._is_files_turn = False
        self._failures: Counter[str] = Counter()  # of one thing, in a row, while the line is up
        self._begun_again: Counter[str] = Counter()  # uploads whose bytes the cloud lost, by hash
        self._wake = threading.Event()
        self._stop: threading.Event | None = None

    def report(self) -> LineReport:
        """How the line is, for people: nothing may be to be sent for hours while nothing can be received."""
        retry = max(self._sending, self._receiving, key=lambda retry: _WORSE.index(retry.state))
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
            step = self._fenced(self.send_once, self._sending, "sending")
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
        retry = self._sending
        if self._monotonic() < retry.not_before:
            return Step(error=retry.state.value)
        rows: list[OutboxMessage] = []
        try:
            rows = self._choose()
            if not rows:
                self._batch = _BATCH_MESSAGES
                return Step()
            crash_here("sync.before-request")
            acknowledged = self._send_part(rows[0]) if is_upload(rows[0]) else self._send_messages(rows)
        except (LineError, InvalidReceiptError, StoreError) as error:
            self._note_failed(retry, error)
            self._stand_back(rows, error)
            self._note_traffic(retry, rows[0] if rows else None, payload_bytes=0)
            return Step(tuple(row.key for row in rows), error=error.code)
        except BlobError as error:
            return self._note_unreadable(rows[0], error)
        except Exception as error:  # noqa: BLE001  # a thread's outermost place: what waits must not wait for ever
            return Step(tuple(row.key for row in rows), error=self._note_bug(retry, "sending", rows, error))
        self._failures.clear()
        self._note_up(retry, self._receiving)
        return Step(tuple(row.key for row in rows), tuple(acknowledged))

    def receive_once(self, *, wait_seconds: float = 0) -> Step:
        """Fetch messages and let them take effect; the next fetch tells the cloud which are taken."""
        retry = self._receiving
        if self._monotonic() < retry.not_before:
            return Step(error=retry.state.value)
        try:
            without = self._list_refused()
            deliveries = self._line.receive_messages(self._taken, wait_seconds=wait_seconds, without=without)
            self._taken = []
            if self._is_stopping:
                return Step()  # the store may be closed by now; what came is not said to be taken, and comes again
            crash_here("sync.before-message")
            messages = [delivery.message for delivery in deliveries]
            self._owe(retry, None, payload_bytes=0)
            owed = list(retry.owed)
            taken = take_messages(
                self._store, self._tenant, "cloud", messages, self._handlers, also=lambda work: _record(work, owed)
            )
            retry.owed.clear()
            self._taken = [delivery.number for delivery in deliveries if delivery.message.id in taken.ids]
            crash_here("sync.after-message")
        except (LineError, StoreError) as error:
            if self._is_stopping:
                return Step(error=error.code)
            self._note_failed(retry, error)
            self._note_traffic(retry, None, payload_bytes=0)
            return Step(error=error.code)
        except Exception as error:  # noqa: BLE001  # a thread's outermost place: opinions must not wait for ever
            return Step(error=BUG if self._is_stopping else self._note_bug(retry, "receiving", (), error))
        refused = [delivery.number for delivery in deliveries if delivery.message.id in taken.refused]
        self._set_refused_aside(refused)
        if not set(without).isdisjoint(refused):  # given out although we said not to: not at once, or we would spin
            retry.not_before = self._monotonic() + _RECEIPT_WAIT_SECONDS
        if self._note_up(retry, self._sending):
            self._wake.set()
        return Step(received=len(self._taken))

    def _list_refused(self) -> list[int]:
        """Numbers of messages that are not to come now: they would keep newer ones out."""
        now = self._monotonic()
        return [number for number, aside in self._refused.items() if now < aside.not_before]

    def _set_refused_aside(self, numbers: Sequence[int]) -> None:
        """They stay at the cloud and are asked for again, twice as late each time."""
        for number in self._taken:
            self._refused.pop(number, None)
        for number in numbers:
            known = self._refused.get(number)
            seconds = _RECEIPT_WAIT_SECONDS if known is None else min(2 * known.seconds, _REFUSED_WAIT_SECONDS)
            self._refused[number] = _Aside(self._monotonic() + seconds, seconds)

    @property
    def _is_stopping(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _choose(self) -> list[OutboxMessage]:
        """The most pressing row; with it the further messages that are due, when it is one.

        After messages it is a file's turn: on a line where a request takes longer than the node's reports are apart,
        there is always a report due, and no slide would ever leave.
        """
        window = self._settings.window
        tiers = window.tiers(self._local_now()) if window else ()
        with self._store.reading(self._tenant) as work:
            rows = work.outbox.next_due(limit=1, tiers=tiers)
            is_turn, self._is_files_turn = self._is_files_turn, bool(rows) and not is_upload(rows[0])
            if not rows or is_upload(rows[0]):
                return rows
            waiting = work.outbox.next_due(limit=_BATCH_MESSAGES, tiers=tiers) if is_turn else []
            if files := [row for row in waiting if is_upload(row)]:
                self._is_files_turn = False
                return files[:1]
            if self._batch == 1:
                return rows
            more = work.outbox.next_due(limit=self._batch, tiers=(0,))
        return [row for row in more if not is_upload(row)]

    def _send_messages(self, rows: Sequence[OutboxMessage]) -> list[str]:
        try:
            answer = self._line.send_messages([message_of(row) for row in rows])
        except LineRefusedError as error:
            if error.status in (401, 403):
                raise  # it is we who are refused, not these messages
            self._note_refused_messages(rows, error)
            return []
        crash_here("sync.after-receipts")
        wrong: InvalidReceiptError | None = None
        receipts, reasons = dict[str, str](), dict[str, str]()
        for row in rows:
            receipt, refusal = answer.receipts.get(row.key), answer.refused.get(row.key)
            reasons[row.key] = (refusal.code if refusal else InvalidReceiptError.code)[:200]
            try:
                if receipt is not None:
                    self._check(row.key, message_of(row).sha256, receipt)
                    receipts[row.key] = receipt
            except InvalidReceiptError as error:
                wrong = error
        if wrong is not None and not receipts:
            raise wrong  # somebody else signs, or the cloud has another key: nothing can be said of these messages
        self._owe(self._sending, rows[0], payload_bytes=sum(row.size_bytes for row in rows))
        with self._store.transaction(self._tenant) as work:
            for row in rows:
                if row.key in receipts:
                    work.outbox.mark_acknowledged(row.key, receipt=receipts[row.key])
                else:
                    work.outbox.mark_failed(row.key, reason=reasons[row.key])
            _record(work, self._sending.owed)
        self._sending.owed.clear()
        crash_here("sync.after-receipts-kept")
        return list(receipts)

    def _note_refused_messages(self, rows: Sequence[OutboxMessage], error: LineRefusedError) -> None:
        """One of a batch may be what is refused: send them one by one, and set that one aside."""
        if len(rows) > 1:
            self._batch = 1
            self._owe(self._sending, rows[0], payload_bytes=0)
            return
        with self._store.transaction(self._tenant) as work:
            work.outbox.mark_failed(rows[0].key, reason=(error.refusal or error.code)[:200])

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
        self._paths[plan.sha256] = progress
        crash_here("sync.after-answer")
        self._owe(self._sending, row, payload_bytes=payload)
        acknowledged = self._note_progress(row, plan, progress)
        crash_here("sync.after-acknowledged")
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
                    self._check(key, plan.sha256, receipt)
                    work.outbox.mark_acknowledged(key, receipt=receipt)
                    acknowledged.append(key)
            if progress.stop is not None:
                withdraw_tiers(work, plan.kind, plan.sha256, from_tier=progress.stop, reason="enough")
            ends = {piece.tier: piece.end_bytes for piece in plan.pieces}
            if row.key not in acknowledged and progress.offset_bytes >= ends[row.tier]:
                # All is there and nothing is signed: it is asked for again, later.
                work.outbox.mark_sent(row.key, wait_seconds=_RECEIPT_WAIT_SECONDS)
            _record(work, self._sending.owed)
        self._sending.owed.clear()
        if acknowledged:
            self._begun_again.pop(plan.sha256, None)
        if row.key in acknowledged and progress.offset_bytes >= plan.length_bytes:
            self._paths.pop(plan.sha256, None)
        return acknowledged

    def _note_unreadable(self, row: OutboxMessage, error: BlobError) -> Step:
        """Bytes are not here: that says nothing of the line."""
        try:
            self._set_aside(row, reason=error.code)
        except StoreError as failure:
            self._note_failed(self._sending, failure)
            return Step((row.key,), error=failure.code)
        return Step((row.key,))

    def _note_refused(self, row: OutboxMessage, plan: UploadPlan, error: LineRefusedError) -> None:
        """The cloud has it otherwise than we thought: ask anew, at once where that helps, later where it refuses."""
        if error.status in (401, 403):
            raise error  # it is we who are refused, not this file
        is_known = self._paths.pop(plan.sha256, None) is not None
        if is_known and error.status in (404, 409, 410, 460) and error.refusal != BrokenBlobError.code:
            self._begun_again[plan.sha256] += 1
            if self._begun_again[plan.sha256] < _PATIENCE:
                self._owe(self._sending, row, payload_bytes=0)
                return
        # Sent again at once for ever, one file would take the line from all others.
        self._begun_again.pop(plan.sha256, None)
        self._set_aside(row, reason=error.refusal or error.code)

    def _set_aside(self, row: OutboxMessage, *, reason: str, wait_seconds: float | None = None) -> None:
        """Let the others go on; this one is tried again, twice as late each time."""
        self._owe(self._sending, row, payload_bytes=0)
        with self._store.transaction(self._tenant) as work:
            work.outbox.mark_failed(row.key, reason=reason[:200], wait_seconds=wait_seconds)
            _record(work, self._sending.owed)
        self._sending.owed.clear()

    def _stand_back(self, rows: Sequence[OutboxMessage], error: LineError | InvalidReceiptError | StoreError) -> None:
        """After so many failures of one thing, on a line that is up, let the others go first."""
        if not rows or isinstance(error, StoreError):
            return
        key, is_receipt = rows[0].key, isinstance(error, InvalidReceiptError)
        if not (is_receipt or (isinstance(error, LineDownError) and self._receiving.state is LineState.UP)):
            return
        self._failures = Counter({key: self._failures[key] + 1})
        if self._failures[key] < _PATIENCE:
            return
        self._failures.clear()
        if not is_upload(rows[0]) and len(rows) > 1:
            self._batch = 1
        with suppress(SlidewayError):  # of the store: then it is the first again
            self._set_aside(rows[0], reason=error.code, wait_seconds=_RECEIPT_WAIT_SECONDS if is_receipt else None)
            if not is_receipt:  # it was the thing's failure, not the line's
                self._sending.state, self._sending.reason = LineState.UNKNOWN, ""
                self._sending.not_before = float("-inf")
                self._sending.backoff.note_success()

    def _note_bug(self, retry: _Retry, during: str, rows: Sequence[OutboxMessage], error: Exception) -> str:
        """Nobody expected this: say what and where, set aside what it was about, and go on after a pause."""
        log_bug(during, error)
        reason = error.code if isinstance(error, SlidewayError) else BUG
        retry.reason = f"{describe_bug(error)}; it is tried again"
        retry.not_before = self._monotonic() + retry.backoff.note_failed()
        if retry is self._sending:
            self._paths.clear()
        with suppress(Exception):
            if len(rows) > 1:
                self._batch = 1  # one of them is it
            elif rows:
                self._set_aside(rows[0], reason=reason)
            self._note_traffic(retry, None, payload_bytes=0)
        return reason

    def _check(self, key: str, sha256: str, receipt: str) -> None:
        cloud_key = self._line.endpoint.cloud_key
        check_receipt(receipt, cloud_key=cloud_key, tenant=self._tenant, node=self._node, key=key, sha256=sha256)

    def _owe(self, retry: _Retry, row: OutboxMessage | None, *, payload_bytes: int) -> None:
        """Remember what the last requests cost, also those that failed, until it is written into the ledger."""
        traffic = self._line.take_traffic()
        if not traffic.all_out_bytes and not traffic.all_in_bytes:
            return
        slide = (row.slide_sha256 or "") if row else ""
        is_file = row is not None and is_upload(row)
        tier = row.tier if row is not None and is_file else None
        payload_bytes = min(payload_bytes, traffic.all_out_bytes)
        overhead = traffic.all_out_bytes - payload_bytes
        transport = "tus" if is_file else "messages"
        retry.owed.append(_Cost(slide, tier, transport, payload_bytes, overhead, traffic.all_in_bytes))

    def _note_traffic(self, retry: _Retry, row: OutboxMessage | None, *, payload_bytes: int) -> None:
        """Write what requests cost that had no other effect; what cannot be written now is written with the next."""
        self._owe(retry, row, payload_bytes=payload_bytes)
        if not retry.owed:
            return
        with suppress(StoreError):
            with self._store.transaction(self._tenant) as work:
                _record(work, retry.owed)
            retry.owed.clear()

    def _note_up(self, retry: _Retry, other: _Retry) -> bool:
        """This way works; whether the other way, which did not, may be tried again at once with that."""
        retry.state, retry.reason = LineState.UP, ""
        retry.backoff.note_success()
        if other.state not in _OVER or other.is_asked:
            return False
        other.state, other.reason, other.not_before = LineState.UNKNOWN, "", float("-inf")
        return True

    def _note_failed(self, retry: _Retry, error: LineError | InvalidReceiptError | StoreError) -> None:
        retry.state, retry.reason = _name_state(error), str(error)
        asked = error.retry_after_seconds if isinstance(error, LineDownError) else None
        retry.is_asked = asked is not None
        pause = retry.backoff.note_failed(asked_seconds=asked)
        if isinstance(error, NodeRevokedError):
            pause = _REVOKED_WAIT_SECONDS
        retry.not_before = self._monotonic() + pause
        if retry is self._sending and not isinstance(error, StoreError):
            self._paths.clear()  # ask where it stands before going on

    def _pause(self, stop: threading.Event, retry: _Retry) -> None:
        """Wait until the line may be tried again, or until something is put into the outbox."""
        pause = retry.not_before - self._monotonic()
        if pause > 0:
            stop.wait(min(pause, self._settings.poll_seconds))
            return
        self._wake.wait(self._settings.poll_seconds)
        self._wake.clear()

    def _fenced(self, step: Callable[[], Step], retry: _Retry, during: str) -> Step:
        """A step whose failure, even in what it does about a failure, ends no thread."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001  # a thread that ends silently would stop the whole node
            return Step(error=self._note_bug(retry, during, (), error))

    def _receive_until(self, stop: threading.Event) -> None:
        receive = partial(self.receive_once, wait_seconds=self._settings.wait_seconds)
        while not stop.is_set():
            step = self._fenced(receive, self._receiving, "receiving")
            if step.error is not None:
                stop.wait(min(max(0.1, self._receiving.not_before - self._monotonic()), self._settings.poll_seconds))


def note_enough(work: Work, arrival: Arrival) -> None:
    """The cloud wants no further tiers of a bundle: `{"bundle": sha256, "from_tier": first that is not wanted}`."""
    body = arrival.message.body
    sha256, tier = body.get("bundle"), body.get("from_tier")
    if isinstance(sha256, str) and type(tier) is int:
        withdraw_tiers(work, "bundle", sha256, from_tier=max(0, tier), reason="enough")


def _record(work: Work, owed: Sequence[_Cost]) -> None:
    for cost in owed:
        work.bytes.record(
            cost.slide, cost.tier, "out", cost.payload_bytes, cost.overhead_bytes, "cloud", cost.transport
        )
        work.bytes.record(cost.slide, cost.tier, "in", 0, cost.in_bytes, "cloud", cost.transport)


def _piece_at(plan: UploadPlan, offset_bytes: int) -> Piece | None:
    """The tier that the next byte belongs to; None at the end."""
    return next((piece for piece in plan.pieces if piece.start_bytes <= offset_bytes < piece.end_bytes), None)


def _name_state(error: Exception) -> LineState:
    if isinstance(error, ClockWrongError):
        return LineState.CLOCK
    if isinstance(error, CaptivePortalError):
        return LineState.CAPTIVE
    if isinstance(error, NodeRevokedError):
        return LineState.REVOKED
    if isinstance(error, LineRefusedError | InvalidReceiptError):
        return LineState.REFUSED
    return LineState.DOWN

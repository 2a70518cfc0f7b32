"""One node, one cloud, a real socket: what is put into the outbox arrives once and is acknowledged."""

from __future__ import annotations

import hashlib
import threading
import time

from slideway.store.database import Store
from slideway.store.outbox import OutboxState
from slideway.sync.line import Line
from slideway.sync.mailbox import Handler
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message, put_upload
from slideway.sync.pump import LineState, Pump, PumpSettings

from .conftest import NODE, SLIDE, TENANT, Cloud, a_file, a_plan, effects, note_arrival

HANDLERS: dict[str, Handler] = {"opinion": note_arrival, "command": note_arrival}


def make_pump(edge: Store, line: Line, files: dict[str, bytes]) -> Pump:
    def read(sha256: str, start: int, end: int) -> bytes:
        return files[sha256][start:end]

    return Pump(edge, line, read, HANDLERS, settings=PumpSettings(poll_seconds=0.05, wait_seconds=1))


def test_bundle_and_messages_arrive_once_and_answers_come_back(cloud: Cloud, line: Line, edge: Store) -> None:
    content = a_file(200_000)
    plan = a_plan(content, 1_000, 31_000, 200_000)
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
        put_message(work, Message("a1", "slide-accepted", SLIDE, 1, {"priority": 5}))
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("o1", "opinion", SLIDE, 1, {"finding": "x"}), peer=NODE)
    pump = make_pump(edge, line, {plan.sha256: content})
    for _ in range(20):
        pump.run_once()
    with edge.reading(TENANT) as work:
        assert work.outbox.counts()[OutboxState.ACKNOWLEDGED] == 4
        assert all(row.state is OutboxState.ACKNOWLEDGED for row in work.outbox.find_all(slide_sha256=SLIDE))
        sent = work.bytes.totals("tier", slide_sha256=SLIDE, direction="out")
    assert [sent[tier].payload_bytes for tier in (0, 1, 2)] == [1_000, 30_000, 169_000]
    assert effects(cloud.store, "took") == [piece.key for piece in plan.pieces]
    assert effects(cloud.store, "message") == ["a1"]
    assert effects(edge, "message") == ["o1"]
    assert cloud.intake.kept[plan.pieces[2].key] == content
    with cloud.store.reading(TENANT) as work:
        assert work.outbox.get("o1").state is OutboxState.ACKNOWLEDGED
    assert pump.report().state is LineState.UP


def test_pump_that_runs_sends_what_is_put_later_and_stops_when_told(cloud: Cloud, line: Line, edge: Store) -> None:
    content = a_file(3_000)
    plan = a_plan(content)
    pump = make_pump(edge, line, {plan.sha256: content})
    stop = threading.Event()
    thread = threading.Thread(target=pump.run, args=(stop,))
    thread.start()
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    pump.wake()
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("o1", "opinion", SLIDE, 1, {}), peer=NODE)
    deadline = time.monotonic() + 10
    while effects(edge, "message") != ["o1"] or not effects(cloud.store, "took"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_cloud_that_says_stop_gets_no_further_tier(cloud: Cloud, line: Line, edge: Store) -> None:
    content = a_file(50_000)
    plan = a_plan(content, 1_000, 5_000, 50_000)
    cloud.intake.stop = 2
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    pump = make_pump(edge, line, {plan.sha256: content})
    for _ in range(10):
        pump.run_once()
    with edge.reading(TENANT) as work:
        states = [row.state for row in work.outbox.find_all()]
        assert states == [OutboxState.ACKNOWLEDGED, OutboxState.ACKNOWLEDGED, OutboxState.WITHDRAWN]
        assert work.bytes.totals("tier", direction="out")[1].payload_bytes == 4_000
        assert 2 not in work.bytes.totals("tier", direction="out")
    assert hashlib.sha256(cloud.intake.kept[plan.pieces[1].key]).digest() == hashlib.sha256(content[:5_000]).digest()

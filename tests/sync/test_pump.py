"""What nobody expected, and what fails for ever: the pump says so, sets it aside, and goes on with the rest."""

from __future__ import annotations

import base64
import logging
import threading
import time as real_time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from slideway.core.errors import (
    BlobError,
    ClockWrongError,
    FullStoreError,
    LineDownError,
    LineRefusedError,
    MissingBlobError,
)
from slideway.store.database import Store
from slideway.store.outbox import OutboxState
from slideway.store.work import Work
from slideway.sync import face, messages
from slideway.sync.line import Line
from slideway.sync.mailbox import Arrival, take_messages
from slideway.sync.messages import Message, pack_json, parse_message
from slideway.sync.outgoing import put_message, put_upload
from slideway.sync.pace import read_window
from slideway.sync.pump import LineState, Pump, PumpSettings, Step

from .conftest import NODE, SLIDE, TENANT, Clock, Cloud, a_file, a_plan, effects, note_arrival, serve
from .test_line import Time, make_certificates

NAME = "Doe^Jane"  # stands for contents that no log may hold


def say(edge: Store, *names: str) -> None:
    with edge.transaction(TENANT) as work:
        for name in names:
            put_message(work, Message(name, "status", "", 1, {}))


def tell(cloud: Cloud, *names: str, kind: str = "opinion") -> None:
    with cloud.store.transaction(TENANT) as work:
        for name in names:
            put_message(work, Message(name, kind, SLIDE, 1, {}), peer=NODE)


def state_of(edge: Store, key: str) -> tuple[OutboxState, str]:
    with edge.reading(TENANT) as work:
        row = work.outbox.get(key)
        return row.state, row.reason


def stand_still(edge: Store) -> Clock:
    """A wall clock of the node that goes on only when it is told to."""
    clock = Clock()
    edge._clock = clock
    return clock


def test_threads_survive_what_nobody_expected_and_log_its_place_without_contents(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = {"send": 2, "receive": 2}
    send, receive = line.send_messages, line.receive_messages

    def fail_then(name: str, do: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **more: object) -> object:
            if failing[name]:
                failing[name] -= 1
                raise KeyError(NAME)
            return do(*args, **more)

        return wrapped

    monkeypatch.setattr(line, "send_messages", fail_then("send", send))
    monkeypatch.setattr(line, "receive_messages", fail_then("receive", receive))
    monkeypatch.setattr("slideway.sync.pace.Backoff.note_failed", lambda *_, **__: 0.01)
    monkeypatch.setattr("slideway.store.outbox.wait_ms", lambda *_: 10)
    pump = Pump(edge, line, lambda *_: b"", {"opinion": note_arrival}, settings=PumpSettings(None, 0.02, 0.2))
    say(edge, "s")
    tell(cloud, "o")
    stop = threading.Event()
    with caplog.at_level(logging.ERROR, "slideway.edge"):
        thread = threading.Thread(target=pump.run, args=(stop,))
        thread.start()
        ends = real_time.monotonic() + 20
        while effects(cloud.store, "message") != ["s"] or effects(edge, "message") != ["o"]:
            assert real_time.monotonic() < ends
            assert thread.is_alive()
            real_time.sleep(0.02)
        stop.set()
        thread.join(10)
    said = [record.__dict__["slideway"] for record in caplog.records if record.getMessage() == "bug"]
    assert len(said) == 4
    assert all(line["error"] == "KeyError" and line["place"].startswith("test_pump.py:") for line in said)
    assert {line["during"] for line in said} == {"sending", "receiving"}
    assert NAME not in caplog.text


def test_interrupt_is_not_swallowed(edge: Store, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    say(edge, "s")
    pump = Pump(edge, line, lambda *_: b"", {})
    monkeypatch.setattr(line, "send_messages", interrupt)
    monkeypatch.setattr(line, "receive_messages", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pump.send_once()
    with pytest.raises(KeyboardInterrupt):
        pump.receive_once()


@pytest.mark.parametrize("error", [MissingBlobError("gone"), BlobError("short"), ZeroDivisionError("bug")])
def test_file_that_cannot_be_read_is_set_aside_with_its_reason_and_the_others_go(
    cloud: Cloud, line: Line, edge: Store, error: Exception
) -> None:
    clock, time = stand_still(edge), Time()
    good, bad = a_file(900), a_file(800, seed=2)
    is_back = False

    def read(sha256: str, start: int, end: int) -> bytes:
        if sha256 == a_plan(bad).sha256:
            if not is_back:
                raise error
            return bad[start:end]
        return good[start:end]

    pump = Pump(edge, line, read, {}, monotonic=time)
    with edge.transaction(TENANT) as work:
        put_upload(work, a_plan(bad, 100, 800), is_urgent=True)
        put_upload(work, a_plan(good, 100, 900))
    say(edge, "s")
    for _ in range(8):
        pump.send_once()
        time.sleep(400)
    key = f"bundle:{a_plan(bad).sha256}:t0"
    assert state_of(edge, key) == (OutboxState.WAITING, getattr(error, "code", "bug"))
    assert [key[-2:] for key in effects(cloud.store, "took")] == ["t0", "t1"]
    assert effects(cloud.store, "message") == ["s"]
    with edge.reading(TENANT) as work:
        first = work.outbox.get(key).not_before_ms
        assert work.outbox.count_reasons(peer="cloud") == {getattr(error, "code", "bug"): 2}
    clock.move(10)
    pump.send_once()
    with edge.reading(TENANT) as work:
        assert work.outbox.get(key).not_before_ms - clock() > (first - clock()) + 5_000  # later each time
    is_back = True
    clock.move(3_600)
    for _ in range(6):
        time.sleep(400)
        pump.send_once()
    assert state_of(edge, key)[0] is OutboxState.ACKNOWLEDGED


def test_file_whose_bytes_rotted_does_not_take_the_line_for_ever(cloud: Cloud, line: Line, edge: Store) -> None:
    stand_still(edge)
    time, content = Time(), a_file(150_000)
    plan = a_plan(content)
    rotten = content[:-1] + b"!"
    sent = 0

    def read(sha256: str, start: int, end: int) -> bytes:
        nonlocal sent
        sent += end - start
        return (rotten if sha256 == plan.sha256 else b"")[start:end]

    pump = Pump(edge, line, read, {}, monotonic=time)
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    for _ in range(30):
        pump.send_once()
    say(edge, "s")
    pump.send_once()
    assert effects(cloud.store, "message") == ["s"]
    assert sent == 150_000
    assert state_of(edge, plan.pieces[0].key) == (OutboxState.WAITING, "blob-broken")


def fault_at(cloud: Cloud, url: str, is_bad: Callable[[httpx.Request], bool]) -> httpx.BaseTransport:
    """A cloud that has a fault of its own with some requests."""

    class Faulty(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if is_bad(request):
                return httpx.Response(500, headers=face.MARK)
            return super().handle_request(request)

    return Faulty()


def test_upload_at_which_the_cloud_itself_fails_steps_back_for_the_others(cloud: Cloud, url: str, edge: Store) -> None:
    stand_still(edge)
    time, bad, good = Time(), a_file(300, seed=8), a_file(400, seed=9)
    metadata = base64.b64encode(a_plan(bad).sha256.encode()).decode()
    faulty = fault_at(cloud, url, lambda request: metadata in request.headers.get("upload-metadata", ""))
    line = Line(cloud.endpoint(url), cloud.node_keys, transport=faulty)
    pump = Pump(edge, line, lambda sha, a, b: {a_plan(c).sha256: c for c in (bad, good)}[sha][a:b], {}, monotonic=time)
    with edge.transaction(TENANT) as work:
        put_upload(work, a_plan(bad), is_urgent=True)
        put_upload(work, a_plan(good))
    for _ in range(6):
        pump.receive_once()
        pump.send_once()
        time.sleep(400)
    assert effects(cloud.store, "took") == [a_plan(good).pieces[0].key]
    assert state_of(edge, a_plan(bad).pieces[0].key) == (OutboxState.WAITING, "line-down")
    assert pump.report().state is LineState.UP
    line.close()


def test_outage_sets_nothing_aside(cloud: Cloud, edge: Store) -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    line = Line(cloud.endpoint("http://cloud"), cloud.node_keys, transport=httpx.MockTransport(nobody))
    time = Time()
    pump = Pump(edge, line, lambda *_: b"", {}, monotonic=time)
    say(edge, "s")
    for _ in range(10):
        pump.run_once()
        time.sleep(400)
    with edge.reading(TENANT) as work:
        assert (work.outbox.get("s").attempts, work.outbox.get("s").reason) == (0, "")


def test_message_that_makes_the_cloud_refuse_its_batch_goes_alone_and_the_others_arrive(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_still(edge)
    say(edge, "a", "b", "c")
    monkeypatch.setattr(messages, "parse_message", _parse_all_but_b)
    pump = Pump(edge, line, lambda *_: b"", {})
    for _ in range(6):
        pump.send_once()
    assert effects(cloud.store, "message") == ["a", "c"]
    assert state_of(edge, "b") == (OutboxState.WAITING, "message-malformed")


def _parse_all_but_b(item: dict[str, object]) -> Message:
    """A cloud of another version, which does not understand one of them."""
    if item["id"] == "b":
        raise LineRefusedError("no message", status=422, refusal="message-malformed")
    return parse_message(item)


def test_handler_with_a_bug_keeps_no_other_message_out(cloud: Cloud, line: Line, edge: Store) -> None:
    def stumble(work: Work, arrival: Arrival) -> None:
        if arrival.message.id == "bad":
            raise KeyError(NAME)
        note_arrival(work, arrival)

    tell(cloud, "bad", "good")
    pump = Pump(edge, line, lambda *_: b"", {"opinion": stumble})
    assert pump.receive_once().received == 1
    assert effects(edge, "message") == ["good"]
    taken = take_messages(edge, TENANT, "cloud", [Message("bad", "opinion", SLIDE, 1, {})], {"opinion": stumble})
    assert taken.refused["bad"].code == "bug"
    assert NAME not in taken.refused["bad"].message


def test_message_of_the_cloud_that_cannot_be_read_keeps_no_other_out(cloud: Cloud, edge: Store) -> None:
    right = {"number": 2, **Message("o", "opinion", SLIDE, 1, {}).content}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/messages":
            return httpx.Response(200, headers=face.MARK, content=pack_json({"messages": [{"number": 1}, right]}))
        return httpx.Response(
            201 if request.method == "POST" else 200, headers=face.MARK,
            json={"session": "s", "challenge": "c", "token": "t", "seconds": 60},
        )  # fmt: skip

    line = Line(cloud.endpoint("http://cloud"), cloud.node_keys, transport=httpx.MockTransport(answer))
    assert Pump(edge, line, lambda *_: b"", {"opinion": note_arrival}).receive_once().received == 1


def test_bytes_stand_in_the_ledger_as_soon_as_the_receipt_does(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if name in ("sync.after-acknowledged", "sync.after-receipts-kept", "sync.after-message"):
            raise Killed

    content = a_file(500)
    with edge.transaction(TENANT) as work:
        put_upload(work, a_plan(content))
    pump = Pump(edge, line, lambda sha, a, b: content[a:b], {"opinion": note_arrival})
    monkeypatch.setattr("slideway.sync.pump.crash_here", kill)
    with pytest.raises(Killed):
        pump.send_once()
    with edge.reading(TENANT) as work:
        assert work.outbox.counts()[OutboxState.ACKNOWLEDGED] == 1
        assert work.bytes.total(direction="out", slide_sha256=SLIDE).payload_bytes == 500
    say(edge, "s")
    with pytest.raises(Killed):
        pump.send_once()
    with edge.reading(TENANT) as work:
        messages = work.bytes.totals("transport", direction="out")["messages"]
        assert messages.payload_bytes > 0
    tell(cloud, "o")
    with pytest.raises(Killed):
        pump.receive_once()
    with edge.reading(TENANT) as work:
        assert work.bytes.totals("transport", direction="out")["messages"].entries == messages.entries + 1


def test_bytes_that_the_full_disk_did_not_take_are_noted_with_the_next(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, content = Time(), a_file(500)
    with edge.transaction(TENANT) as work:
        put_upload(work, a_plan(content))
    pump = Pump(edge, line, lambda sha, a, b: content[a:b], {}, monotonic=time)
    begin = edge.transaction

    def full(tenant: str) -> None:
        raise FullStoreError("the disk is full")

    monkeypatch.setattr(edge, "transaction", full)
    assert pump.send_once().error == "store-full"
    monkeypatch.setattr(edge, "transaction", begin)
    time.sleep(400)
    pump.send_once()
    with edge.reading(TENANT) as work:
        assert work.bytes.total(direction="out", slide_sha256=SLIDE).payload_bytes == 500


def test_empty_tier_has_no_bytes_to_wait_for(edge: Store) -> None:
    with edge.transaction(TENANT) as work:
        rows = put_upload(work, a_plan(a_file(900), 100, 100, 900))
        assert [row.size_bytes for row in rows] == [100, 0, 800]
        assert work.outbox.waiting_bytes() == 900


def test_line_that_is_down_shows_though_nothing_is_to_be_sent(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time()
    pump = Pump(edge, line, lambda *_: b"", {}, monotonic=time)
    fetch = line.receive_messages
    say(edge, "s")
    pump.run_once()
    assert pump.report().state is LineState.UP

    def down(*_: object, **__: object) -> None:
        raise LineDownError("nobody answers")

    monkeypatch.setattr(line, "receive_messages", down)
    pump.run_once()
    assert pump.report().state is LineState.DOWN
    assert "nobody answers" in pump.report().reason
    monkeypatch.setattr(line, "receive_messages", fetch)
    time.sleep(400)
    pump.run_once()
    assert pump.report().state is LineState.UP
    # The other way round: what was to be sent failed and was withdrawn meanwhile.
    monkeypatch.setattr(line, "send_messages", down)
    say(edge, "t")
    pump.send_once()
    assert pump.report().state is LineState.DOWN
    with edge.transaction(TENANT) as work:
        work.outbox.withdraw("t", reason="newer-status")
    pump.run_once()
    assert pump.report().state is LineState.UP


@pytest.mark.parametrize("years", [10, -10])
@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_clock_that_jumps_by_years_in_the_middle_of_sending_changes_nothing(
    cloud: Cloud, url: str, edge: Store, years: int, side: str
) -> None:
    clocks = {"edge": stand_still(edge), "cloud": cloud.store._clock}
    cloud.sessions._clock = lambda: cloud.store._clock() / 1000  # type: ignore[method-assign]
    time, content = Time(), a_file(60_000)
    plan = a_plan(content, 1_000, 30_000, 60_000)
    fails = [1]

    class Losing(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "PATCH" and fails[0] > 0:
                fails[0] -= 1
                raise httpx.ReadTimeout("lost")
            return super().handle_request(request)

    line = Line(cloud.endpoint(url), cloud.node_keys, transport=Losing(), monotonic=time)
    now = [datetime(2026, 1, 1, 12)]
    pump = Pump(
        edge, line, lambda sha, a, b: content[a:b], {"opinion": note_arrival}, monotonic=time,
        settings=PumpSettings(window=None), local_now=lambda: now[0],
    )  # fmt: skip
    pump._part_size.n_bytes = 20_000
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
        put_message(work, Message("new", "regions", "", 1, {}))  # refused: waits by the wall clock
    tell(cloud, "o")
    for _ in range(3):
        pump.run_once()
        time.sleep(1)
    clocks[side].move(years * 365 * 86_400)  # in the middle: a part was lost, one is there, a token is in use
    now[0] += timedelta(days=years * 365)
    cloud.shelf.remove_expired(TENANT)
    for _ in range(14):
        pump.run_once()
        time.sleep(60)
    clocks[side].move(-years * 365 * 86_400)  # and somebody sets it right
    clocks["edge"].move(400)
    cloud.handlers["regions"] = note_arrival
    for _ in range(4):
        pump.run_once()
        time.sleep(60)
    assert effects(cloud.store, "took") == [piece.key for piece in plan.pieces]
    assert effects(cloud.store, "message") == ["new"]
    assert effects(edge, "message") == ["o"]
    with edge.reading(TENANT) as work:
        assert not work.outbox.find_open(peer="cloud")
    assert pump.report().state is LineState.UP
    line.close()


def test_window_follows_a_clock_that_jumps_and_nothing_is_lost(cloud: Cloud, line: Line, edge: Store) -> None:
    content, now = a_file(900), [datetime(2026, 1, 1, 12)]
    settings = PumpSettings(window=read_window("20:00-06:00"))
    pump = Pump(edge, line, lambda sha, a, b: content[a:b], {}, settings=settings, local_now=lambda: now[0])
    with edge.transaction(TENANT) as work:
        put_upload(work, a_plan(content, 100, 300, 900))
    for moment in (datetime(1970, 1, 1, 12), datetime(2036, 1, 1, 12)):
        now[0] = moment
        pump.send_once()
        pump.send_once()
    assert len(effects(cloud.store, "took")) == 2
    now[0] = datetime(1970, 1, 1, 23)
    pump.send_once()
    assert len(effects(cloud.store, "took")) == 3


@pytest.mark.parametrize(("from_days", "to_days", "word"), [(-20, -10, "expired"), (10, 20, "not yet")])
def test_clock_that_does_not_fit_the_certificate_is_named_with_both_dates(
    cloud: Cloud, edge: Store, tmp_path: Path, from_days: int, to_days: int, word: str
) -> None:
    now = datetime.now(UTC)
    begins, ends = now + timedelta(days=from_days), now + timedelta(days=to_days)
    authority, files = make_certificates(tmp_path, begins=begins, ends=ends)
    with serve(cloud.app(), **files) as url:
        line = Line(replace(cloud.endpoint(url), ca_pem=authority), cloud.node_keys)
        with pytest.raises(ClockWrongError) as wrong:
            line.receive_messages()
        said = str(wrong.value)
        assert f"clock says {now:%Y-%m-%d}" in said
        assert f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M}" in said
        say(edge, "s")
        pump = Pump(edge, line, lambda *_: b"", {})
        assert pump.send_once().error == "clock-wrong"
        assert pump.report().state is LineState.CLOCK
        assert "clock says" in pump.report().reason
        line.close()


def test_reports_that_come_as_fast_as_they_are_sent_keep_no_file_waiting(cloud: Cloud, line: Line, edge: Store) -> None:
    content = a_file(2_000)
    plan = a_plan(content, 100, 800, 2_000)
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    pump = Pump(edge, line, lambda sha256, start, end: content[start:end], {})
    for number in range(20):
        say(edge, f"status-{number}")  # on a slow line the next report is due before the last one is through
        pump.send_once()
    with edge.reading(TENANT) as work:
        assert all(row.state is OutboxState.ACKNOWLEDGED for row in work.outbox.find_all(slide_sha256=SLIDE))
    assert effects(cloud.store, "took") == [piece.key for piece in plan.pieces]


def test_messages_that_are_refused_keep_no_newer_one_out(cloud: Cloud, line: Line, edge: Store) -> None:
    time = Time()
    tell(cloud, *(f"new-{number}" for number in range(150)), kind="of-a-later-version")
    tell(cloud, "opinion")
    pump = Pump(edge, line, lambda *_: b"", {"opinion": note_arrival}, monotonic=time)
    assert [pump.receive_once().received for _ in range(2)] == [0, 1]
    assert effects(edge, "message") == ["opinion"]
    assert pump.receive_once() == Step()
    time.sleep(61)  # what refused them may be over: they come again
    later = Pump(edge, line, lambda *_: b"", {"of-a-later-version": note_arrival}, monotonic=time)
    assert [later.receive_once().received for _ in range(3)] == [100, 50, 0]


def test_a_message_that_is_refused_again_and_again_is_asked_for_less_and_less_often(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, fetch, came = Time(), line.receive_messages, list[int]()

    def count(*args: Any, **more: Any) -> object:
        found = fetch(*args, **more)
        came.append(len(found))
        return found

    monkeypatch.setattr(line, "receive_messages", count)
    tell(cloud, "new", kind="of-a-later-version")
    pump = Pump(edge, line, lambda *_: b"", {}, monotonic=time)
    for _ in range(20):
        pump.receive_once()
        time.sleep(30)
    assert [place for place, n in enumerate(came) if n] == [0, 2, 6, 14]


def test_a_cloud_that_gives_out_what_was_refused_is_not_asked_all_the_time(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, fetch = Time(), line.receive_messages

    def as_before(taken: Any, *, wait_seconds: float, **_: Any) -> object:
        return fetch(taken, wait_seconds=wait_seconds)

    monkeypatch.setattr(line, "receive_messages", as_before)
    tell(cloud, "new", kind="of-a-later-version")
    pump = Pump(edge, line, lambda *_: b"", {}, monotonic=time)
    assert pump.receive_once().error is None
    assert pump.receive_once().error is None
    assert pump.receive_once().error is not None
    time.sleep(61)
    assert pump.receive_once().error is None


def test_traffic_stands_in_the_ledger_once_when_the_answer_to_a_commit_is_lost(
    edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = edge.retrying

    def twice(tenant: str, do: Any) -> object:
        once(tenant, do)
        return once(tenant, do)

    def cost(work: Work) -> None:
        work.bytes.record("", None, "in", 0, 70, "cloud", "messages")

    monkeypatch.setattr(edge, "retrying", twice)
    opinions = [Message("o", "opinion", SLIDE, 1, {})]
    take_messages(edge, TENANT, "cloud", opinions, {"opinion": note_arrival}, also=cost)
    assert effects(edge, "message") == ["o"]
    with edge.reading(TENANT) as work:
        assert work.bytes.totals("transport")["messages"].overhead_bytes == 70
    monkeypatch.setattr(edge, "retrying", once)
    take_messages(edge, TENANT, "cloud", opinions, {"opinion": note_arrival}, also=cost)  # it came again: that costs
    with edge.reading(TENANT) as work:
        assert work.bytes.totals("transport")["messages"].overhead_bytes == 140

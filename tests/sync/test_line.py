"""The line as it is: slow, lossy, somebody else's, of the wrong year; and what it costs, counted."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time as real_time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from slideway.core.errors import (
    CaptivePortalError,
    FullStoreError,
    InvalidReceiptError,
    LineDownError,
    LineRefusedError,
    NodeRevokedError,
    WrongUseError,
)
from slideway.store.database import Store
from slideway.store.outbox import OutboxState
from slideway.sync.identity import (
    check_receipt,
    load_keys,
    make_keys,
    read_endpoint,
    sign_receipt,
    write_endpoint,
)
from slideway.sync.line import Line, LineSettings
from slideway.sync.mailbox import read_numbers, write_numbers
from slideway.sync.messages import Message, pack_json, parse_message, unpack_json
from slideway.sync.outgoing import put_message, put_upload
from slideway.sync.pace import Backoff, Limit, NightWindow, PartSize, read_window
from slideway.sync.pump import LineState, Pump, PumpSettings

from .conftest import NODE, SLIDE, TENANT, Cloud, a_file, a_plan, effects, note_arrival, serve

Answerer = Callable[[httpx.Request], httpx.Response]


class Time:
    """Seconds that go on only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class SlowLine(httpx.BaseTransport):
    """A line of so many bits a second that loses some requests, in simulated time."""

    def __init__(self, under: httpx.BaseTransport, time: Time, *, bits_per_second: float, loss: float) -> None:
        self._under, self._time, self._bits, self._loss = under, time, bits_per_second, loss
        self._rng = random.Random(7)
        self.sizes: list[int] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        n_bytes = len(body) + 400
        if request.method == "PATCH":
            self.sizes.append(len(body))
        # Packets of 1,400 bytes are lost with this probability; TCP sends them again, and sometimes gives up.
        lost = sum(self._rng.random() < self._loss for _ in range(n_bytes // 1400 + 1))
        self._time.sleep((n_bytes + lost * 1400) * 8 / self._bits + 0.3 * (lost > 0))
        if self._rng.random() < self._loss:
            raise httpx.ReadTimeout("lost")
        return self._under.handle_request(
            httpx.Request(request.method, request.url, headers=request.headers, content=body)
        )

    def close(self) -> None:
        self._under.close()


def test_64_kbit_line_with_5_percent_loss_finishes_with_parts_of_about_ten_seconds(
    cloud: Cloud, url: str, edge: Store
) -> None:
    time, content = Time(), a_file(400_000)
    plan = a_plan(content, 2_000, 32_000, 400_000)
    slow = SlowLine(httpx.HTTPTransport(), time, bits_per_second=64_000, loss=0.05)
    line = Line(cloud.endpoint(url), cloud.node_keys, transport=slow, monotonic=time, sleep=time.sleep)
    pump = Pump(
        edge,
        line,
        lambda sha, a, b: content[a:b],
        {},
        backoff=Backoff(rng=random.Random(3)),
        monotonic=time,
    )
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    while time.now < 3_600:
        step = pump.send_once()
        if step.is_idle:
            time.sleep(1)
        with edge.reading(TENANT) as work:
            if all(row.state is OutboxState.ACKNOWLEDGED for row in work.outbox.find_all(slide_sha256=SLIDE)):
                break
    line.close()
    assert effects(cloud.store, "took") == [piece.key for piece in plan.pieces]
    assert time.now < 3 * 400_000 * 8 / 64_000
    assert 40_000 < max(slow.sizes) < 120_000  # 80,000 bytes take ten seconds


def test_parts_follow_the_line_up_and_down_within_bounds() -> None:
    parts = PartSize()
    for _ in range(20):
        parts.note_sent(parts.n_bytes, parts.n_bytes / 20_000)
    assert parts.n_bytes == pytest.approx(200_000, rel=0.01)
    for _ in range(20):
        parts.note_sent(parts.n_bytes, parts.n_bytes / 1e9)
    assert parts.n_bytes == 4 * 2**20
    for _ in range(40):
        parts.note_failed()
    assert parts.n_bytes == 4 * 2**10


def test_small_last_part_does_not_make_the_next_ones_small() -> None:
    parts = PartSize()
    before = parts.n_bytes
    parts.note_sent(100, 0.5)
    assert parts.n_bytes == before


def test_pauses_are_spread_over_their_whole_length_and_bounded() -> None:
    pauses = []
    for seed in range(200):
        backoff = Backoff(first_seconds=1, most_seconds=300, rng=random.Random(seed))
        for _ in range(20):
            last = backoff.note_failed()
        pauses.append(last)
    assert max(pauses) <= 300
    assert min(pauses) < 30 < 270 < max(pauses)
    assert Backoff(rng=random.Random(1)).note_failed() <= 1
    assert 120 <= Backoff(rng=random.Random(1)).note_failed(asked_seconds=120) <= 121
    assert Backoff(rng=random.Random(1)).note_failed(asked_seconds=1e9) == 300


@pytest.mark.parametrize("bytes_per_second", [1_000, 8_000, 1_000_000])
def test_limit_is_kept_within_ten_percent(bytes_per_second: float) -> None:
    time = Time()
    limit = Limit(bytes_per_second, monotonic=time, sleep=time.sleep)
    sent, rng = 0, random.Random(5)
    while time.now < 60:
        n_bytes = rng.randint(1, limit.step_bytes)
        limit.take(n_bytes)
        sent += n_bytes
    assert sent / time.now == pytest.approx(bytes_per_second, rel=0.1)


def test_limit_counts_what_goes_over_a_real_socket_headers_included(cloud: Cloud, url: str) -> None:
    time = Time()
    line = Line(
        cloud.endpoint(url),
        cloud.node_keys,
        LineSettings(bytes_per_second=8_000),
        monotonic=time,
        sleep=time.sleep,
    )
    content = a_file(100_000)
    progress = line.begin_upload(a_plan(content))
    for start in range(0, 100_000, 10_000):
        progress = line.send_part(progress.path, start, content[start : start + 10_000])
    traffic = line.take_traffic()
    line.close()
    assert traffic.out_bytes / time.now == pytest.approx(8_000, rel=0.1)


def test_meter_agrees_with_what_a_relay_saw_on_the_wire(cloud: Cloud, url: str) -> None:
    seen = {"out": 0, "in": 0}
    host, port = url.removeprefix("http://").split(":")
    relay = socket.create_server(("127.0.0.1", 0))

    def carry(one: socket.socket, other: socket.socket, way: str) -> None:
        with suppress(OSError):
            while content := one.recv(65_536):
                seen[way] += len(content)
                other.sendall(content)
            other.shutdown(socket.SHUT_WR)

    def accept() -> None:
        inner, _ = relay.accept()
        with inner, socket.create_connection((host, int(port))) as outer:
            back = threading.Thread(target=carry, args=(outer, inner, "in"), daemon=True)
            back.start()
            carry(inner, outer, "out")
            back.join(5)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    line = Line(cloud.endpoint(f"http://127.0.0.1:{relay.getsockname()[1]}"), cloud.node_keys)
    content = a_file(50_000)
    progress = line.begin_upload(a_plan(content, 1_000, 50_000), content[:1_000])
    line.send_part(progress.path, 1_000, content[1_000:])
    line.send_messages([Message("m", "status", "", 1, {"a": 1})])
    line.receive_messages()
    traffic = line.take_traffic()
    assert (traffic.out_bytes, traffic.in_bytes) == (seen["out"], seen["in"])
    assert traffic.tls_out_bytes == 0
    line.close()
    relay.close()
    thread.join(5)


def answering(cloud: Cloud, answer: Answerer) -> Line:
    return Line(cloud.endpoint("http://cloud"), cloud.node_keys, transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<html>log in</html>"),
        httpx.Response(302, headers={"Location": "http://portal/"}),
        httpx.Response(511, html="<html>log in</html>"),
        httpx.Response(407),
        httpx.Response(201, json={"session": "a", "challenge": "b"}),
        httpx.Response(404, html="not here"),
        httpx.Response(204),
    ],
)
def test_somebody_else_who_answers_is_no_acknowledgement(cloud: Cloud, edge: Store, answer: httpx.Response) -> None:
    line = answering(
        cloud, lambda _: httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
    )
    with pytest.raises(CaptivePortalError):
        line.send_messages([Message("m", "status", "", 1, {})])
    pump = Pump(edge, line, lambda *_: b"", {})
    with edge.transaction(TENANT) as work:
        put_message(work, Message("m", "status", "", 1, {}))
    assert pump.send_once().error == "line-captive"
    assert pump.report().state is LineState.CAPTIVE
    with edge.reading(TENANT) as work:
        assert work.outbox.get("m").state is OutboxState.WAITING


def test_certificate_of_somebody_else_is_a_portal_and_silence_is_not(cloud: Cloud) -> None:
    def wrong_certificate(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("tls") from ssl.SSLCertVerificationError("self-signed certificate")

    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(CaptivePortalError, match="certificate"):
        answering(cloud, wrong_certificate).receive_messages()
    with pytest.raises(LineDownError):
        answering(cloud, nobody).receive_messages()


def test_cloud_that_asks_for_time_gets_it_and_a_date_is_not_compared_with_our_clock(cloud: Cloud) -> None:
    def busy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "42"})

    def busy_until(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})

    with pytest.raises(LineDownError) as down:
        answering(cloud, busy).receive_messages()
    assert down.value.retry_after_seconds == 42
    with pytest.raises(LineDownError) as down:
        answering(cloud, busy_until).receive_messages()
    assert down.value.retry_after_seconds is None


def test_revoked_node_is_told_so_at_its_next_request_and_waits_long(cloud: Cloud, line: Line, edge: Store) -> None:
    line.receive_messages()
    with cloud.store.transaction(TENANT) as work:
        work.nodes.revoke(NODE, reason="stolen")
    with pytest.raises(NodeRevokedError):
        line.receive_messages()
    pump = Pump(edge, line, lambda *_: b"", {})
    with edge.transaction(TENANT) as work:
        put_message(work, Message("m", "status", "", 1, {}))
    pump.send_once()
    assert pump.report().state is LineState.REVOKED
    assert pump.report().seconds_to_wait > 3_000


def test_token_that_ran_out_is_renewed_without_a_word(cloud: Cloud, line: Line) -> None:
    line.receive_messages()
    cloud.sessions._secret = b"t" * 32  # as after a change of the secret: no old token holds
    assert line.receive_messages() == []


def test_stranger_with_another_key_gets_no_session(cloud: Cloud, url: str) -> None:
    stranger = Line(cloud.endpoint(url), make_keys())
    with pytest.raises(LineRefusedError) as refused:
        stranger.receive_messages()
    assert (refused.value.status, refused.value.refusal) == (401, "token-invalid")
    stranger.close()


def test_clocks_of_1999_and_2099_change_nothing(cloud: Cloud, url: str, edge: Store) -> None:
    edge_ms = 915_148_800_000  # 1999
    edge._clock = lambda: edge_ms
    cloud.store._clock.now_ms = 4_070_908_800_000  # type: ignore[attr-defined]  # 2099
    content = a_file(5_000)
    plan = a_plan(content, 500, 5_000)
    line = Line(cloud.endpoint(url), cloud.node_keys)
    pump = Pump(edge, line, lambda sha, a, b: content[a:b], {})
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
        put_message(work, Message("m", "status", "", 1, {}))
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("e", "enough", "", 1, {"bundle": "0" * 64, "from_tier": 2}), peer=NODE)
    for _ in range(8):
        pump.run_once()
    with edge.reading(TENANT) as work, cloud.store.reading(TENANT) as there:
        assert not work.outbox.find_open(peer="cloud")
        assert not there.outbox.find_open(peer=NODE)
    line.close()


def test_message_that_one_side_does_not_know_stands_in_nobodys_way(cloud: Cloud, line: Line, edge: Store) -> None:
    with edge.transaction(TENANT) as work:
        put_message(work, Message("new", "regions", "", 1, {}))
        put_message(work, Message("old", "status", "", 1, {}))
    Pump(edge, line, lambda *_: b"", {}).send_once()
    with edge.reading(TENANT) as work:
        assert work.outbox.get("old").state is OutboxState.ACKNOWLEDGED
        assert (work.outbox.get("new").state, work.outbox.get("new").reason) == (OutboxState.WAITING, "message-unknown")


def test_enough_ends_the_tiers_that_are_not_wanted(cloud: Cloud, line: Line, edge: Store) -> None:
    content = a_file(900)
    plan = a_plan(content, 100, 500, 900)
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("e", "enough", plan.sha256, 1, {"bundle": plan.sha256, "from_tier": 1}), peer=NODE)
    Pump(edge, line, lambda sha, a, b: content[a:b], {}).receive_once()
    with edge.reading(TENANT) as work:
        states = [row.state for row in work.outbox.find_all()]
    assert states == [OutboxState.WAITING, OutboxState.WITHDRAWN, OutboxState.WITHDRAWN]


def test_tier_0_of_all_goes_before_tier_2_of_any_and_urgent_first(cloud: Cloud, line: Line, edge: Store) -> None:
    files = {}
    with edge.transaction(TENANT) as work:
        for i in range(3):
            content = a_file(900, seed=i)
            plan = a_plan(content, 100, 300, 900)
            files[plan.sha256] = content
            put_upload(work, plan, is_urgent=i == 2)
    pump = Pump(edge, line, lambda sha, a, b: files[sha][a:b], {})
    for _ in range(12):
        pump.send_once()
    order = [key[7:11] + key[-2:] for key in effects(cloud.store, "took")]
    plans = [key[:4] for key in files]
    a, b, urgent = plans
    assert order == [
        f"{urgent}t0", f"{a}t0", f"{b}t0", f"{urgent}t1", f"{urgent}t2", f"{a}t1", f"{b}t1", f"{a}t2", f"{b}t2",
    ]  # fmt: skip


def test_large_tiers_wait_for_the_night_and_small_ones_do_not(cloud: Cloud, line: Line, edge: Store) -> None:
    content = a_file(900)
    plan = a_plan(content, 100, 300, 900)
    hour = [12]
    pump = Pump(
        edge,
        line,
        lambda sha, a, b: content[a:b],
        {},
        settings=PumpSettings(window=read_window("20:00-06:00")),
        local_now=lambda: datetime(2026, 1, 1, hour[0]),
    )
    with edge.transaction(TENANT) as work:
        put_upload(work, plan)
    for _ in range(5):
        pump.send_once()
    assert len(effects(cloud.store, "took")) == 2
    hour[0] = 23
    pump.send_once()
    assert len(effects(cloud.store, "took")) == 3


def test_window_over_midnight_and_by_day() -> None:
    night = NightWindow(time_of_day(20), time_of_day(6))
    day = NightWindow(time_of_day(8), time_of_day(18))
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert [night.is_open(noon), day.is_open(noon)] == [False, True]
    assert [night.is_open(noon + timedelta(hours=9)), day.is_open(noon + timedelta(hours=9))] == [True, False]
    assert [night.is_open(noon + timedelta(hours=16)), day.is_open(noon - timedelta(hours=5))] == [True, False]
    with pytest.raises(WrongUseError):
        read_window("late")


def test_many_nodes_may_wait_for_messages_and_only_the_right_one_hears(cloud: Cloud) -> None:
    keys = {f"n{i}": make_keys() for i in range(5)}
    heard: dict[str, int] = {}
    from .conftest import enrol

    for node, own in keys.items():
        enrol(cloud.store, own, node=node)
    with serve(cloud.app()) as url:

        def wait(node: str) -> None:
            endpoint = cloud.endpoint(url)
            line = Line(type(endpoint)(**{**vars(endpoint), "node": node}), keys[node])
            heard[node] = len(line.receive_messages(wait_seconds=2 if node == "n3" else 1))
            line.close()

        threads = [threading.Thread(target=wait, args=(node,)) for node in keys]
        for thread in threads:
            thread.start()
        with cloud.store.transaction(TENANT) as work:
            put_message(work, Message("x", "opinion", "", 1, {}), peer="n3")
        for thread in threads:
            thread.join()
    assert heard == {"n0": 0, "n1": 0, "n2": 0, "n3": 1, "n4": 0}


def test_repeated_messages_cost_little() -> None:
    words = [Message(f"slide-accepted:{i:064x}", "slide-accepted", f"{i:064x}", i, {"queue": i}) for i in range(64)]
    plain = sum(len(pack_json(word.content)) for word in words)
    packed = pack_json({"messages": [word.content for word in words]})
    assert len(packed) < plain / 3
    assert unpack_json(packed)["messages"][5] == words[5].content


def test_bomb_of_zeros_and_nonsense_are_refused() -> None:
    with pytest.raises(LineRefusedError):
        unpack_json(pack_json("0" * 5_000_000))
    for nonsense in (b"", b"<html>", b"\x28\xb5\x2f\xfd", pack_json("[")[:-3]):
        with pytest.raises(LineRefusedError):
            unpack_json(nonsense)


@pytest.mark.parametrize(
    "content",
    [
        {"id": "a", "kind": "status", "subject": "", "sequence": 1, "body": {"x": float("nan")}},
        {"id": "a", "kind": "status", "subject": "", "sequence": 1, "body": {"x": "\ud800"}},
        {"id": "a\0", "kind": "status", "subject": "", "sequence": 1, "body": {}},
        {"id": "", "kind": "status", "subject": "", "sequence": 1, "body": {}},
        {"id": "a", "kind": "status", "subject": "s" * 129, "sequence": 1, "body": {}},
        {"id": "a", "kind": "status", "subject": "", "sequence": True, "body": {}},
        {"id": "a", "kind": "status", "subject": "", "sequence": 1, "body": []},
        [],
    ],
)
def test_message_that_could_not_be_kept_is_refused(content: object) -> None:
    with pytest.raises(LineRefusedError):
        parse_message(content)


def test_numbers_survive_the_line() -> None:
    for numbers in ([], [4], [1, 2, 3], [4, 5, 6, 9], [9, 1, 2]):
        assert read_numbers(write_numbers(numbers)) == sorted(numbers)
    assert write_numbers([4, 5, 6, 9]) == "4-6,9"
    huge = "9" * 5_000
    for wrong in ("a", "1-", "1-99999", "-3", "1,,x", "٣", "9-4", "1-9999999999", f"1-{huge}", huge, "1-500,1001-1501"):
        with pytest.raises(LineRefusedError):
            read_numbers(wrong)


@pytest.mark.parametrize("taken", ["1-9999999999", "1-" + "9" * 3_000, "9-4"])
def test_numbers_that_nobody_gave_out_are_refused_over_the_line(line: Line, taken: str) -> None:
    with pytest.raises(LineRefusedError) as refused:
        line._ask_json("GET", "/v1/messages", query={"taken": taken})
    assert (refused.value.status, refused.value.refusal) == (422, "message-malformed")


def test_receipt_holds_for_exactly_what_it_names() -> None:
    keys = make_keys()
    facts = {"tenant": "t", "node": "n", "key": "k", "sha256": "0" * 64}
    receipt = sign_receipt(keys.signing, **facts)
    assert len(receipt) == 88
    check_receipt(receipt, cloud_key=keys.signing.public_bytes, **facts)
    for name in facts:
        with pytest.raises(InvalidReceiptError):
            check_receipt(receipt, cloud_key=keys.signing.public_bytes, **{**facts, name: "other"})
    for wrong in ("", "x", receipt[:-4] + "AAA=", "ä"):
        with pytest.raises(InvalidReceiptError):
            check_receipt(wrong, cloud_key=keys.signing.public_bytes, **facts)
    with pytest.raises(InvalidReceiptError):
        check_receipt(receipt, cloud_key=make_keys().signing.public_bytes, **facts)


def test_keys_and_endpoint_are_the_same_when_read_again(cloud: Cloud, tmp_path) -> None:
    first, again = load_keys(tmp_path / "keys"), load_keys(tmp_path / "keys")
    assert (first.public_key, first.receiving_key) == (again.public_key, again.receiving_key)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    endpoint = cloud.endpoint("https://cloud.example")
    write_endpoint(endpoint, tmp_path / "endpoint.toml")
    assert read_endpoint(tmp_path / "endpoint.toml") == endpoint
    (tmp_path / "keys" / "signing-key.pem").chmod(0o644)
    with pytest.raises(WrongUseError, match="chmod"):
        load_keys(tmp_path / "keys")
    (tmp_path / "endpoint.toml").write_text("url = 1")
    with pytest.raises(WrongUseError, match="enrol"):
        read_endpoint(tmp_path / "endpoint.toml")


def test_message_that_the_full_disk_did_not_take_is_not_said_to_be_taken(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("o", "opinion", "", 1, {}), peer=NODE)
    time = Time()
    pump = Pump(edge, line, lambda *_: b"", {"opinion": note_arrival}, monotonic=time)
    begin = edge.transaction

    def full(tenant: str) -> None:
        raise FullStoreError("the disk is full")

    monkeypatch.setattr(edge, "transaction", full)
    assert pump.receive_once().error == "store-full"
    time.sleep(400)
    assert pump.receive_once().error == "store-full"
    with cloud.store.reading(TENANT) as work:
        assert work.outbox.get("o").state is OutboxState.WAITING
    monkeypatch.setattr(edge, "transaction", begin)
    time.sleep(400)
    assert pump.receive_once().received == 1
    pump.receive_once()
    assert effects(edge, "message") == ["o"]
    with cloud.store.reading(TENANT) as work:
        assert work.outbox.get("o").state is OutboxState.ACKNOWLEDGED


def make_certificates(
    folder: Path, *, begins: datetime | None = None, ends: datetime | None = None
) -> tuple[str, dict[str, str]]:
    """An authority (PEM), and files of a server certificate that it signed for loopback; the dates are the latter's."""
    now = datetime.now(UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    days = {"not_valid_before": now - timedelta(days=1), "not_valid_after": now + timedelta(days=1)}
    of_server = {
        "not_valid_before": begins or days["not_valid_before"],
        "not_valid_after": ends or days["not_valid_after"],
    }
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        dates = days if subject == name else of_server
        builder = x509.CertificateBuilder(name, subject, key.public_key(), x509.random_serial_number(), **dates)
        for extension in (*extensions, x509.SubjectKeyIdentifier.from_public_key(key.public_key()), aki):
            is_critical = isinstance(extension, x509.BasicConstraints)
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority = build(name, authority_key, x509.BasicConstraints(ca=True, path_length=0))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    server = build(subject, server_key, x509.BasicConstraints(ca=False, path_length=None), names)
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(server)
    (folder / "server-key.pem").write_bytes(key)
    files = {"ssl_certfile": str(folder / "server.pem"), "ssl_keyfile": str(folder / "server-key.pem")}
    return authority.decode(), files


def test_only_the_clouds_own_authority_is_believed_and_tls_is_counted(cloud: Cloud, tmp_path: Path) -> None:
    authority, files = make_certificates(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = make_certificates(tmp_path / "other")
    with serve(cloud.app(), **files) as url:
        right = Line(replace(cloud.endpoint(url), ca_pem=authority), cloud.node_keys)
        assert right.receive_messages() == []
        traffic = right.take_traffic()
        assert traffic.tls_out_bytes >= 700
        assert traffic.tls_in_bytes >= 2_000
        right.close()
        wrong = Line(replace(cloud.endpoint(url), ca_pem=other), cloud.node_keys)
        with pytest.raises(CaptivePortalError, match="certificate"):
            wrong.receive_messages()
        wrong.close()


def test_answers_do_not_wait_once_sending_works_again(
    cloud: Cloud, line: Line, edge: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("o", "opinion", "", 1, {}), peer=NODE)
    with edge.transaction(TENANT) as work:
        put_message(work, Message("s", "status", "", 1, {}))
    time = Time()
    pump = Pump(edge, line, lambda *_: b"", {"opinion": note_arrival}, monotonic=time)
    fetch = line.receive_messages

    def down(*_: object, **__: object) -> None:
        raise LineDownError("nobody answers")

    monkeypatch.setattr(line, "receive_messages", down)
    for _ in range(12):  # an outage of an hour: the next try is minutes away
        time.sleep(400)
        assert pump.receive_once().error == "line-down"
    monkeypatch.setattr(line, "receive_messages", fetch)
    assert pump.receive_once().error == "down"
    assert pump.send_once().sent == ("s",)
    assert pump.receive_once().received == 1


@pytest.mark.parametrize("refused", ["x", "5-4", "1-1001", "1,2,1-999"])
def test_numbers_that_cannot_have_been_refused_are_told_by_name(line: Line, refused: str) -> None:
    with pytest.raises(LineRefusedError, match="not: ") as told:
        line._ask_json("GET", "/v1/messages", query={"not": refused})
    assert (told.value.status, told.value.refusal) == (422, "message-malformed")


def test_a_node_that_waits_hears_nothing_of_what_it_refused_until_there_is_more(cloud: Cloud, line: Line) -> None:
    def tell(name: str) -> None:
        with cloud.store.transaction(TENANT) as work:
            put_message(work, Message(name, "opinion", "", 1, {}), peer=NODE)

    tell("refused")
    (first,) = line.receive_messages()
    began = real_time.monotonic()
    assert line.receive_messages(wait_seconds=1.2, without=[first.number]) == []
    assert real_time.monotonic() - began > 1.1
    tell("new")
    assert [item.message.id for item in line.receive_messages(without=[first.number])] == ["new"]


def test_more_refused_numbers_than_the_cloud_reads_are_cut(line: Line) -> None:
    assert line.receive_messages(without=range(10**12, 10**12 + 5_000, 2)) == []

"""What the gate lets through, what it counts, and what it writes down."""

from __future__ import annotations

import io
import json
import logging
import socket
import time

import pytest
from tests.cloud.conftest import run_cloud

from slideway.cloud.gate import Bucket
from slideway.cloud.logs import LOGGER, log, set_up_logs
from slideway.core.errors import LineError
from slideway.sync.messages import Message

PLANTED = "Jane-Doe-19500101"


@pytest.fixture
def written():
    """What is logged from now on."""
    stream, loggers = io.StringIO(), [logging.getLogger(name) for name in (LOGGER, "uvicorn", "uvicorn.error")]
    before = [(own.handlers, own.level, own.propagate) for own in loggers]
    set_up_logs(stream, level=logging.DEBUG)
    yield stream
    for own, (handlers, level, propagate) in zip(loggers, before, strict=True):
        own.handlers, own.propagate = handlers, propagate
        own.setLevel(level)


def test_no_patient_data_reaches_log_metrics_or_audit(house, written):
    node, operator = house.enrol("north", "lab-1"), house.operator
    weber = house.person()
    with house.client() as client:
        client.get(f"/v1/{PLANTED}?name={PLANTED}", headers={"User-Agent": PLANTED, "X-Patient": PLANTED})
        client.get(f"/v1/consultations/north/{PLANTED}", headers=weber)
        client.get("/v1/consultations", headers={"Authorization": f"Bearer {PLANTED}"})
        client.post("/v1/enrol", json={"code": PLANTED, "public_key": PLANTED, "patient": PLANTED})
        client.post("/v1/enrol", content=f"{{{PLANTED}".encode(), headers={"Content-Type": "application/json"})
        client.post("/v1/sessions", json={"tenant": PLANTED, "node": PLANTED})
        client.put(f"/v1/sessions/{PLANTED}", json={"signature": PLANTED})
        client.request("PATCH", f"/v1/uploads/{PLANTED}", headers={"Upload-Metadata": PLANTED})
        client.request(PLANTED.upper(), "/health/live")
        body = {
            "version": f"{PLANTED} x",
            "name of": PLANTED,
            "queue": f"{PLANTED} sentence",
            "note": {"a": f"x {PLANTED}"},
        }
        node.line.send_messages([Message(f"m-{PLANTED}", "status", "", 1, body)])
        node.line.send_messages([Message(PLANTED, PLANTED, PLANTED, 2, {"patient": PLANTED})])
        body = {"slide": "ab" * 32, "state": "referred", "reason": f"{PLANTED} has something"}
        node.line.send_messages([Message("m-3", "slide-ended", "ab" * 32, 3, body)])
        with pytest.raises(LineError):
            node.send(node.pack(case=PLANTED))
        figures = client.get("/metrics", headers=operator).text
        fleet = client.get("/v1/fleet", headers=operator).text + client.get("/fleet", headers=operator).text
    log("bug", error=_bug())
    logging.getLogger("uvicorn.error").error("x", exc_info=_bug())
    text = written.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum(line["event"] == "request" for line in lines) > 12
    assert "bundle-rejected" in {line["event"] for line in lines}
    with house.cloud.store.reading("north") as work:
        audit = repr(list(work.audit.entries()))
    for where, content in {"log": text, "metrics": figures, "fleet": fleet, "audit": audit}.items():
        assert PLANTED.lower() not in content.lower(), where


def _bug() -> Exception:
    try:
        raise ValueError(f"could not read {PLANTED}")
    except ValueError as error:
        return error


def test_a_field_that_is_not_on_the_list_is_not_written():
    with pytest.raises(ValueError, match="patient"):
        log("x", patient="Jane")


def test_every_answer_has_an_id_a_mark_and_no_cache(house, written):
    with house.client() as client:
        answers = [client.get("/health/live"), client.get("/nowhere"), client.get("/v1/fleet"), client.post("/v1/ca")]
    for answer in answers:
        assert answer.headers["slideway"] == "1"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    ids = {answer.headers["slideway-request"] for answer in answers}
    assert len(ids) == 4
    until = time.monotonic() + 5
    while len(lines := [line for line in written.getvalue().splitlines() if '"request"' in line]) < 4:
        assert time.monotonic() < until  # a line follows its answer
        time.sleep(0.01)
    assert ids == {json.loads(line)["request_id"] for line in lines}
    assert [answer.status_code for answer in answers] == [200, 404, 401, 405]
    assert answers[1].json()["code"] == "route-unknown"


def test_a_body_that_is_too_long_is_refused_before_it_is_here(house):
    with house.client() as client:
        json_type = {"Content-Type": "application/json"}
        for content in (b"x" * (5 * 2**20), (b"x" * 2**20 for _ in range(5))):  # with its length said, and without
            answer = client.post("/v1/enrol", content=content, headers=json_type)
            assert (answer.status_code, answer.json()["code"]) == (413, "body-too-long")


def test_too_many_enrolments_from_one_address_wait(write_settings):
    settings = write_settings()
    from slideway.cloud.settings import parse_settings

    text = (settings.folder / "cloud.toml").read_text().replace("enrols_per_minute = 1000", "enrols_per_minute = 3")
    with run_cloud(parse_settings(text, settings.folder)) as house, house.client() as client:
        said = {"code": "never-given-out", "public_key": "A" * 43 + "="}
        answers = [client.post("/v1/enrol", json=said) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
    assert answers[-1].json()["code"] == "too-many-requests"


def test_a_bucket_fills_again():
    bucket = Bucket(60)
    assert [bucket.take("a", 0.0) > 0 for _ in range(61)] == [False] * 60 + [True]
    assert bucket.take("b", 0.0) == 0
    assert bucket.take("a", 2.0) == 0


def _ask_slowly(house, first: bytes) -> tuple[bytes, float]:
    """Send a beginning and nothing more: what comes back until the line ends, and how long that took."""
    host, port = house.url.removeprefix("http://").split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(first)
        heard = b""
        while chunk := line.recv(4096):
            heard += chunk
    return heard, time.monotonic() - started


def test_a_client_that_is_slow_with_its_head_is_cut_off(house):
    heard, seconds = _ask_slowly(house, b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
    assert heard == b""
    assert 0.5 < seconds < 5


def test_a_client_that_stops_within_its_body_is_cut_off(write_settings):
    from slideway.cloud.settings import parse_settings

    settings = write_settings()
    text = (settings.folder / "cloud.toml").read_text().replace("idle_seconds = 3", "idle_seconds = 0.5")
    with run_cloud(parse_settings(text, settings.folder)) as house:
        head = b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n"
        heard, seconds = _ask_slowly(house, head + b"Connection: close\r\n\r\n{")
    assert b"400" in heard.split(b"\r\n")[0]
    assert 0.3 < seconds < 5


def test_figures_tell_requests_receipts_jobs_and_refusals(house):
    node = house.enrol("north", "lab-1")
    node.send(node.pack())
    house.work()
    with pytest.raises(LineError):
        node.send(node.pack(seed=1, lock=False))
    with house.client() as client:
        text = client.get("/metrics", headers=house.operator).text
    for line in (
        'slideway_acknowledgements_total{kind="bundle",tier="t2"} 1.0',
        "slideway_bundles_total 1.0",
        'slideway_opinions_total{kind="whole"} 1.0',
        'slideway_jobs{state="done"} 1.0',
        'slideway_refusals_total{code="bundle-locked"}',
        'slideway_queue{what="messages-to-nodes"} 2.0',
        "slideway_job_seconds_count 1.0",
    ):
        assert line in text, line


def test_uploads_that_pass_by_the_framework_are_named_in_figures_and_described(house):
    node = house.enrol("north", "lab-1")
    node.send(node.pack())
    with house.client() as client:
        assert client.put("/v1/uploads").status_code == 405  # what is no upload's method goes to the framework
        assert client.options("/v1/uploads/").status_code in (204, 307)
        figures = client.get("/metrics", headers=house.operator).text
        described = client.get("/openapi.json").json()["paths"]
    assert {"/v1/uploads", "/v1/uploads/{upload_id}"} <= described.keys()
    assert 'route="/v1/uploads",status="201"' in figures
    assert 'route="/v1/uploads/{upload_id}",status="204"' in figures


def test_the_fleet_tells_when_each_node_was_heard_of_and_what_waits(house):
    node = house.enrol("north", "lab-1")
    house.enrol("south", "lab-2")
    said = {"version": "0.9.1", "queue": 7, "lag_seconds": 120, "saved_bytes": 3_000_000_000, "failures": 2}
    node.line.send_messages([Message("s-1", "status", "", 1, said)])
    content = node.pack()
    node.send(content)
    house.work()
    with house.client() as client:
        fleet = client.get("/v1/fleet", headers=house.operator).json()
        page = client.get("/fleet", auth=("anybody", house.operator["Authorization"].removeprefix("Bearer "))).text
    first, second = fleet["nodes"]
    assert (first["tenant"], first["version"], first["bytes_in"], first["waiting"]) == (
        "north",
        "0.9.1",
        len(content),
        1,
    )
    assert 0 <= first["seen_seconds"] < 60
    assert first["status"]["saved_bytes"] == 3_000_000_000
    assert (second["tenant"], second["waiting"], second["version"]) == ("south", 0, "0.1.0")
    for said in ("lab-1", "0.9.1", "3.0 GB", "2 min", "<td>7</td>"):
        assert said in page
    assert "<script" not in page


def test_what_a_node_calls_itself_is_shown_as_text(house):
    house.cloud.store.add_tenant("north")
    from slideway.cloud.enrolment import revoke_node

    house.enrol("north", "lab-1")
    revoke_node(house.cloud.store, "north", "lab-1", reason="<script>alert(1)</script>")
    with house.client() as client:
        assert "<script" not in client.get("/fleet", headers=house.operator).text


def test_a_command_reaches_its_node_once(house):
    node = house.enrol("north", "lab-1")
    with house.client() as client:
        for _ in range(2):
            said = {"id": "c-1", "do": "pause"}
            assert (
                client.post("/v1/tenants/north/nodes/lab-1/commands", headers=house.operator, json=said).status_code
                == 202
            )
    assert [told["do"] for told in node.fetch("command")] == ["pause"]


def test_a_late_status_does_not_overwrite_a_newer_one(house):
    node = house.enrol("north", "lab-1")
    for number, queue in ((5, 50), (3, 30)):
        node.line.send_messages([Message(f"s-{number}", "status", "", number, {"queue": queue})])
    with house.cloud.store.reading("north") as work:
        assert work.nodes.get("lab-1").status["queue"] == 50

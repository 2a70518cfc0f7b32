"""The same journey on what a cloud runs on for real: PostgreSQL, S3, child processes; and every route fuzzed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import imagecodecs
import pytest
from hypothesis import strategies as st
from tests.cloud.conftest import run_cloud

from slideway.cloud.settings import CloudSettings, parse_settings
from slideway.cloud.worker import Crew, Worker
from slideway.sync.messages import Message
from slideway.testing import postgres, s3

WORDS = ["slide", "state", "reason", "regions", "sha256", "rectangle", "consultation", "organ", "question", "urgent",
         "centre", "asked_by", "numbers", "version", "queue", "text", "lung"]  # fmt: skip


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres.serve_or_skip() as server:
        yield server.add_database("cloud", owner="slideway")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    program = s3.find_weed()
    if program is None:
        pytest.skip(s3.WHY_NOT)
    with s3.run_s3(program) as endpoint:
        yield f'endpoint = "{endpoint}"\naccess_key_id = "any"\nsecret_access_key = "any"'


def _go(settings: CloudSettings, tenant: str) -> None:
    """Enrol, send, diagnose in two workers at once, ask a person, answer."""
    with run_cloud(settings) as house:
        node, other = house.enrol(tenant, "lab-1"), house.enrol(f"{tenant}-2", "lab-1")
        content = node.pack()
        first = node.send(content)
        assert sorted(first) == [0, 1, 2]
        assert node.send(content) == first
        with ThreadPool(2) as pool:
            done = pool.map(lambda n: Worker(house.cloud.tools, f"w{n}", threading.Event()).work_once(), range(2))
        assert sorted(done) == [False, True]
        assert len(node.fetch("opinion")) == 1
        slide = hashlib.sha256(b"0").hexdigest()
        asked = {"consultation": f"c-{tenant}", "slide": slide, "organ": "lung", "question": "malignant?"}
        node.line.send_messages([Message("m-1", "consult-request", slide, 0, asked)])
        weber = house.person()
        with house.client() as client:
            one = f"/v1/consultations/{tenant}/c-{tenant}"
            assert client.post(f"{one}/taking", headers=weber).status_code == 200
            assert client.put(f"{one}/answer", headers=weber, json={"text": "No."}).status_code == 200
            assert client.get("/health/ready").json()["status"] == "ready"
        assert [told["answer"]["text"] for told in node.fetch("consult-answer")] == ["No."]
        assert other.fetch() == []
        assert house.cloud.blobs.get(tenant, hashlib.sha256(content).hexdigest()) == content
        with house.cloud.store.reading(tenant) as work:
            work.audit.verify_chain()


def test_the_journey_on_postgresql(write_settings, database):
    _go(write_settings(store=database), "north")


def test_the_journey_with_blobs_on_an_s3_server(write_settings, bucket):
    _go(write_settings(blobs="s3://slideway/cloud", more_blobs=bucket), "south")


def test_several_processes_share_a_store_in_postgresql(write_settings, database, cloud_folder):
    """A worker process beside the API: a bundle that came there is answered here, and both end in order."""
    settings = write_settings(store=database)
    with run_cloud(settings) as house:
        node = house.enrol("east", "lab-1")
        node.send(node.pack())
        command = [sys.executable, "-m", "slideway", "cloud", "serve", "--role", "worker"]
        config = ["--config", str(cloud_folder / "cloud.toml")]
        with subprocess.Popen([*command, *config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                until = time.monotonic() + 30
                while not node.fetch("opinion"):
                    assert time.monotonic() < until
                    time.sleep(0.1)
            finally:
                process.terminate()
            if os.name == "posix":
                assert process.wait(20) == 0


def test_a_child_computes_and_one_that_dies_costs_an_attempt_only(write_settings, monkeypatch):
    text = (write_settings().folder / "cloud.toml").read_text().replace("isolate = false", "isolate = true")
    settings = parse_settings(text, write_settings().folder)
    with run_cloud(settings) as house:
        node = house.enrol("north", "lab-1")
        node.send(node.pack())
        worker = Worker(house.cloud.tools, "toy", threading.Event())
        with monkeypatch.context() as patch:
            patch.setattr(
                "slideway.cloud.worker._begin_child", os._exit
            )  # dies as under a bundle that kills its reader
            assert worker.work_once()
        with house.cloud.store.reading("north") as work:
            (job,) = work.jobs.find_all()
            assert (job.state, job.attempts, job.reason) == ("waiting", 1, "worker-stopped")
        later = house.cloud.store
        later._clock = lambda: time.time_ns() // 1_000_000 + 60_000
        assert worker.work_once()
        assert len(node.fetch("opinion")) == 1
        worker._bench.close()


def _with(write_settings, **changed: str) -> CloudSettings:
    """Settings of a worker whose child does nothing for half a minute."""
    settings = write_settings()
    more = {"isolate": "true", "threads": "30", **changed}
    lines = "".join(f"{name} = {value}\n" for name, value in more.items())
    return parse_settings(
        (settings.folder / "cloud.toml").read_text().replace("isolate = false\n", lines), settings.folder
    )


def test_a_job_in_hand_is_given_back_at_a_shutdown_and_costs_no_attempt(write_settings, monkeypatch):
    monkeypatch.setattr("slideway.cloud.worker._begin_child", time.sleep)  # for as many seconds as it has threads
    with run_cloud(_with(write_settings)) as house:
        node = house.enrol("north", "lab-1")
        node.send(node.pack())
        crew = Crew(house.cloud.tools)
        crew.start()
        until = time.monotonic() + 10
        while _only_job(house).state != "leased":
            assert time.monotonic() < until
            time.sleep(0.05)
        started = time.monotonic()
        assert crew.stop(within_seconds=3)
        assert time.monotonic() - started < 6
        assert (_only_job(house).state, _only_job(house).attempts) == ("waiting", 0)


def test_a_job_that_takes_too_long_is_ended_and_tried_again(write_settings, monkeypatch):
    monkeypatch.setattr("slideway.cloud.worker._begin_child", time.sleep)
    with run_cloud(_with(write_settings, job_seconds="0.1")) as house:
        node = house.enrol("north", "lab-1")
        node.send(node.pack())
        worker = Worker(house.cloud.tools, "toy", threading.Event())
        assert worker.work_once()
        job = _only_job(house)
        assert (job.state, job.attempts, job.reason) == ("waiting", 1, "worker-overdue")


def _only_job(house):
    with house.cloud.store.reading("north") as work:
        (job,) = work.jobs.find_all()
    return job


@pytest.mark.slow
def test_no_request_that_openapi_allows_finds_a_fault(house):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    _fuzz(schemathesis, house, examples=int(os.environ.get("SLIDEWAY_FUZZ_EXAMPLES", "40")))


def _fuzz(schemathesis, house, *, examples: int) -> None:
    """Every operation, with each kind of token; what is looked for is a fault of the server, nothing else."""
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as hypothesis_settings

    for media_type in ("application/offset+octet-stream", "application/vnd.slideway+zstd"):
        schemathesis.serializer.alias(media_type, "application/octet-stream")
    node = house.enrol("north", "lab-1")
    node.send(node.pack())
    house.work()
    tokens = [
        f"Bearer {node.line._get_token()}",
        house.operator["Authorization"],
        house.person(organs="*")["Authorization"],
    ]
    with house.client() as client:
        content = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(content)
        count = 0
        for result in schema.get_all_operations():
            operation = result.ok()

            @hypothesis_settings(
                max_examples=examples, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def attempt(case):
                nonlocal count
                for token in tokens:
                    case.headers = {**(case.headers or {}), "Authorization": token}
                    if case.query and "wait" in case.query:
                        case.query["wait"] = 0
                    answer = case.call(base_url=house.url, timeout=20)
                    count += 1
                    assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            attempt()
    assert count > 20


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["ab" * 32, "\ud800", "\0", "lung"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=300) | st.sampled_from(["a\ud800", "a\0"]) | JSON,
        "kind": st.sampled_from(
            ["status", "slide-accepted", "slide-ended", "regions", "consult-request", "withdrawn", "taken"]
        ),
        "subject": st.text(max_size=140) | st.sampled_from(["a\ud800", "a\0"]),
        "sequence": st.integers(-(2**63), 2**63) | JSON,
        "body": st.dictionaries(st.sampled_from(WORDS), JSON, max_size=6) | JSON,
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_message_whatever_is_in_it_finds_a_fault(write_settings, request, kind):
    store = "sqlite:///slideway.db" if kind == "sqlite" else request.getfixturevalue("database")
    with run_cloud(write_settings(store=store)) as house:
        _send_anything(house)


def _send_anything(house) -> None:
    from hypothesis import HealthCheck, given
    from hypothesis import settings as hypothesis_settings

    node = house.enrol("fuzz", "lab-1")
    token = {"Authorization": f"Bearer {node.line._get_token()}"}
    with house.client() as client:

        @hypothesis_settings(
            max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(messages=st.lists(MESSAGE, max_size=3))
        def attempt(messages):
            packed = imagecodecs.zstd_encode(json.dumps({"messages": messages}).encode())
            answer = client.post("/v1/messages", content=bytes(packed), headers=token)
            assert answer.status_code < 500, (messages, answer.text)

        attempt()

"""Chores go on whatever fails, a start waits for its database, and readiness says what is away."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from dataclasses import replace

import httpx
import pytest
from tests.cloud.conftest import run_cloud

from slideway.cloud import serve
from slideway.cloud.app import make_shelf
from slideway.cloud.chores import Chore
from slideway.cloud.logs import LOGGER, set_up_logs
from slideway.cloud.pki import choose_host
from slideway.cloud.serve import make_config, name_address, open_patiently
from slideway.cloud.settings import parse_settings
from slideway.cloud.worker import Crew
from slideway.core.errors import StoreError, UnreachableStoreError, WrongUseError
from slideway.testing import postgres


@pytest.fixture
def lines():
    """What is logged, as its fields."""
    names = (LOGGER, "uvicorn", "uvicorn.error")
    before = {name: dict(vars(logging.getLogger(name))) for name in names}
    stream = io.StringIO()
    set_up_logs(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for name in names:
        for fact in ("handlers", "propagate"):
            setattr(logging.getLogger(name), fact, before[name][fact])
        logging.getLogger(name).setLevel(before[name]["level"])


def test_a_chore_that_fails_is_done_again_less_and_less_often_and_told_without_its_message(lines):
    errors = [OSError("Jane Doe"), StoreError("Jane Doe"), ValueError("Jane Doe"), None, OSError("Jane Doe")]

    def do():
        error = errors.pop(0)
        if error:
            raise error

    chore = Chore("sweeping", do, every_seconds=10)
    assert [chore.run() for _ in range(5)] == [20, 40, 80, 10, 20]
    said = lines()
    assert [(line["event"], line.get("error"), line.get("code"), line["attempt"]) for line in said] == [
        ("sweeping-failed", "OSError", None, 1), ("sweeping-failed", None, StoreError.code, 2),
        ("sweeping-failed", "ValueError", None, 3), ("sweeping-failed", "OSError", None, 1),
    ]  # fmt: skip
    assert "Jane" not in json.dumps(said)
    for _ in range(30):
        errors.append(OSError())
    assert max(chore.run() for _ in range(30)) == 3600


def test_housekeeping_outlives_what_nobody_expected(house, monkeypatch, lines):
    calls, done = [], threading.Event()

    def refer(_tools):
        calls.append(1)
        if len(calls) < 3:
            raise OSError("disk")
        done.set()

    monkeypatch.setattr("slideway.cloud.worker.refer_spent", refer)
    monkeypatch.setattr("slideway.cloud.worker._HOUSEKEEPING_SECONDS", 0.01)
    crew = Crew(house.cloud.tools)
    crew._workers.clear()
    crew._threads = crew._threads[-1:]
    crew.start()
    assert done.wait(5)
    assert crew.stop(within_seconds=5)
    assert [line["event"] for line in lines() if "failed" in line["event"]] == ["housekeeping-failed"] * 2


def test_expiry_outlives_what_nobody_expected(house, monkeypatch, lines):
    calls = []

    def remove(_shelf, tenant):
        calls.append(tenant)
        raise PermissionError("no")

    house.cloud.store.add_tenant("north")
    monkeypatch.setattr("slideway.sync.shelf.Shelf.remove_expired", remove)
    monkeypatch.setattr(serve, "_EXPIRE_SECONDS", 0.01)

    async def run():
        task = asyncio.create_task(serve._expire(house.cloud))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if len(calls) >= 3:
                break
        assert not task.done()
        task.cancel()

    asyncio.run(run())
    assert calls[:3] == ["north"] * 3
    assert {line["error"] for line in lines() if line["event"] == "expiry-failed"} == {"PermissionError"}


def test_a_tenant_whose_uploads_cannot_expire_does_not_stop_the_others(house, monkeypatch):
    calls = []

    def remove(_shelf, tenant):
        calls.append(tenant)
        if tenant == "east":
            raise PermissionError("no")

    for tenant in ("east", "north", "west"):
        house.cloud.store.add_tenant(tenant)
    monkeypatch.setattr("slideway.sync.shelf.Shelf.remove_expired", remove)
    with pytest.raises(PermissionError):
        serve.expire_all(house.cloud, make_shelf(house.cloud))
    assert sorted(calls) == ["east", "north", "west"]


@pytest.fixture
def server():
    with postgres.serve_or_skip() as running:
        running.add_database("cloud", owner="slideway")
        yield running


def test_a_start_waits_for_a_database_that_comes_later_and_readiness_says_when_it_is_away(
    server, write_settings, lines
):
    settings, waits = write_settings(store=server.url("cloud", "slideway")), []
    server.stop()

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            server.start()

    open_patiently(settings, wait=wait).close()
    assert len(waits) == 2
    assert [(line["event"], line["code"]) for line in lines()] == [("waiting-for-database", "store-unreachable")] * 2
    assert "slideway@" not in json.dumps(lines())
    with run_cloud(settings) as house, house.client() as client:
        assert client.get("/health/ready").json()["checks"]["database"] == "ok"
        server.stop()
        away = client.get("/health/ready")
        assert (away.status_code, away.json()["checks"]["database"]) == (503, "store-unreachable")
        assert client.get("/health/live").status_code == 200
        figures = client.get("/metrics", headers=house.operator)
        assert figures.status_code == 200
        assert "slideway_store_up 0.0" in figures.text
        assert "slideway_requests_total" in figures.text
        server.start()
        assert client.get("/health/ready").status_code == 200
        figures = client.get("/metrics", headers=house.operator).text
        assert "slideway_store_up 1.0" in figures
        assert "slideway_slides{" in figures


def test_a_start_ends_with_a_clear_error_when_the_database_stays_away(write_settings):
    settings = write_settings(store="postgresql+psycopg://slideway@127.0.0.1:1/cloud")
    times = iter(range(0, 1000, 25))
    waits = []
    with pytest.raises(UnreachableStoreError, match="does not answer"):
        open_patiently(settings, wait=waits.append, clock=lambda: next(times))
    assert waits == [2.0, 2.0]  # at 25 and 50 of 60 seconds
    at_once = replace(settings, store=replace(settings.store, wait_seconds=0.0))
    with pytest.raises(UnreachableStoreError):
        open_patiently(at_once, wait=waits.append)
    assert len(waits) == 2


def test_a_store_in_a_file_is_not_waited_for(write_settings, tmp_path):
    settings = write_settings(store="sqlite:////nowhere-at-all/slideway.db")
    with pytest.raises(StoreError):
        open_patiently(settings, wait=pytest.fail)


def seen_address(cloud, headers, *, came_from="10.0.0.2"):
    """Who a request is taken to come from, behind uvicorn's own layers."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = make_config(cloud, app)
    transport = httpx.ASGITransport(config.loaded_app, client=(came_from, 1234))

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
            await client.get("/", headers=headers)

    asyncio.run(ask())
    return seen[0]


@pytest.mark.parametrize(
    ("more", "came_from", "taken_for"),
    [
        ("", "10.0.0.2", "10.0.0.2"),
        ("", "127.0.0.1", "127.0.0.1"),
        ('proxy_addresses = ["10.0.0.2"]\n', "10.0.0.2", "203.0.113.9"),
        ('proxy_addresses = ["10.0.0.0/24"]\n', "10.0.0.77", "203.0.113.9"),
        ('proxy_addresses = ["10.0.0.2"]\n', "10.0.0.3", "10.0.0.3"),
    ],
)
def test_only_a_proxy_that_the_settings_name_may_say_for_whom_it_comes(house, monkeypatch, more, came_from, taken_for):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    folder = house.cloud.folder.path
    settings = parse_settings(f"[server]\ntls = false\nbehind_proxy = true\n{more}", folder)
    cloud = replace(house.cloud, settings=settings)
    headers = {"X-Forwarded-For": "203.0.113.9"}
    assert seen_address(cloud, headers, came_from=came_from) == taken_for


@pytest.mark.parametrize("address", ["*", "proxy.example", "10.0.0.1/8", ""])
def test_an_address_of_a_proxy_that_is_none_is_refused(tmp_path, address):
    with pytest.raises(WrongUseError, match="neither an address nor a network"):
        parse_settings(f'[server]\nproxy_addresses = ["{address}"]\n', tmp_path)


def test_the_address_that_is_told_can_be_typed(house):
    def told(host, *, tls=True):
        server = replace(house.cloud.settings.server, host=host, tls=tls)
        return name_address(replace(house.cloud, settings=replace(house.cloud.settings, server=server)), 8443)

    assert told("10.0.0.5") == "https://10.0.0.5:8443"
    assert told("127.0.0.1", tls=False) == "http://127.0.0.1:8443"
    assert told("::1") == "https://[::1]:8443"
    assert "0.0.0.0" not in told("0.0.0.0")
    assert told("::") == told("0.0.0.0") == "https://localhost:8443"  # this cloud's certificate is for nothing else
    assert choose_host(["localhost", "127.0.0.1", "cloud.example"]) == "cloud.example"
    assert choose_host([]) == "localhost"

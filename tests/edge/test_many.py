"""Twenty thousand slides: pages and chores ask the database for what they show, and load no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import insert
from starlette.testclient import TestClient

from slideway.edge.app import Edge
from slideway.edge.space import _AT_A_TIME
from slideway.edge.web.app import create_pages
from slideway.edge.web.views import PAGE_ROWS
from slideway.store import facet
from slideway.store.schema import OUTBOX, SLIDES
from slideway.store.slides import SlideState

from .conftest import TENANT
from .test_answers import acknowledge, finding, read

MANY = 20_000


def name(number: int) -> str:
    return f"{number:064x}"


def fill(edge: Edge, state: SlideState, count: int = MANY) -> None:
    """Slides of which the bundle waits or is at the cloud, as after months."""
    common = {"tenant": TENANT, "is_urgent": False, "size_bytes": 10, "reason": "not-sure"}
    facts = {"places": {"/scans/a.svs": "1:1:1"}, "leaving": {"sha256": "b" * 64, "ends": [9]}, "encoded_at_s": 0}
    if state is SlideState.REFERRED:
        facts |= {"ended_at_s": 0, "evicted": "bulk"}
    slides = [
        common | {"slide_sha256": name(n), "state": state.value, "facts": facts, "accepted_ms": n, "changed_ms": n}
        for n in range(count)
    ]
    row_state = "acknowledged" if state is SlideState.REFERRED else "waiting"
    more = {"tenant": TENANT, "peer": "cloud", "kind": "bundle", "tier": 0, "state": row_state, "receipt": "r"}
    rows = [
        more
        | {"key": f"b{n}", "slide_sha256": name(n), "blob_sha256": name(n), "created_ms": n, "changed_ms": n,
           "payload": {}, "size_bytes": 9, "not_before_ms": 0, "priority": 100}
        for n in range(count)
    ]  # fmt: skip
    with edge.node.store.transaction(TENANT) as work:
        work.slides._connection.execute(insert(SLIDES), slides)
        work.slides._connection.execute(insert(OUTBOX), rows)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kinds of all records that were loaded."""
    found: list[str] = []
    make = facet._as_record

    def count(record: type, row: object) -> object:
        found.append(record.__name__)
        return make(record, row)  # type: ignore[arg-type]

    monkeypatch.setattr(facet, "_as_record", count)
    yield found


def test_pages_load_what_they_show_and_turn(edge: Edge, loaded: list[str]) -> None:
    fill(edge, SlideState.REFERRED)
    client = TestClient(create_pages(edge), base_url="http://127.0.0.1")
    loaded.clear()
    page = client.get("/?show=refer").text
    assert f"page 1 of {MANY // PAGE_ROWS}" in page
    assert page.count("<tr>") == PAGE_ROWS + 1
    assert name(MANY - 1) in page  # the newest first
    assert len(loaded) <= 2 * PAGE_ROWS
    last = client.get(f"/?show=refer&page={MANY // PAGE_ROWS}").text
    assert name(0) in last
    assert "next" not in last
    for odd in ("0", "-1", "x", "9" * 30, "²", "1e3"):
        assert client.get("/", params={"show": "refer", "page": odd}).status_code == 200
    loaded.clear()
    assert f"{MANY:,}".replace(",", "") in client.get("/status").text
    assert client.get("/api/status").json()["slide_bytes"] == 10 * MANY
    assert loaded == []


def test_what_is_under_way_pages_too(edge: Edge, loaded: list[str]) -> None:
    fill(edge, SlideState.ENCODED, 250)
    client = TestClient(create_pages(edge), base_url="http://127.0.0.1")
    first, third = client.get("/").text, client.get("/?page=3").text
    assert name(0) in first
    assert name(249) in third
    assert name(0) not in third


def test_a_receipt_costs_no_look_at_every_slide_that_waits(edge: Edge, loaded: list[str]) -> None:
    fill(edge, SlideState.ENCODED, 2_000)
    read(edge.node, [finding()])
    with edge.node.store.transaction(TENANT) as work:
        acknowledge(work)
    loaded.clear()
    edge.chores._note_sent()
    assert len(loaded) < 50
    with edge.node.store.reading(TENANT) as work:
        assert work.slides.counts()[SlideState.SENT] == 1


def test_what_has_gone_from_the_disk_is_not_looked_at_again(edge: Edge, loaded: list[str]) -> None:
    fill(edge, SlideState.REFERRED, 1_000)
    edge.space._free_bytes = lambda _: 0  # tight for ever
    edge.space.evict()
    loaded.clear()
    edge.space.evict()
    assert len(loaded) < 2 * _AT_A_TIME + 10

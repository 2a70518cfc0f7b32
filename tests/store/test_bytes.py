"""Every byte, by slide, tier, direction and peer."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from slideway.core.errors import ConflictError
from slideway.store import facet
from slideway.store.byte_ledger import ByteTotal

SLIDE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def written(store, clock):
    rows = [
        (SLIDE, 0, "out", 1000, 100, "cloud", "tus"), (SLIDE, 1, "out", 50_000, 500, "cloud", "tus"),
        (OTHER, 0, "out", 900, 90, "cloud", "folder"), (SLIDE, None, "in", 300, 30, "cloud", "messages"),
        ("", None, "out", 0, 40, "ntp", "messages"),
    ]  # fmt: skip
    for row in rows:
        clock.move(10)
        with store.transaction("north") as work:
            work.bytes.record(*row)
    return store


def test_sums_by_every_property(written):
    with written.reading("north") as work:
        assert work.bytes.totals("slide") == {
            "": ByteTotal(0, 40, 1), SLIDE: ByteTotal(51_300, 630, 3), OTHER: ByteTotal(900, 90, 1),
        }  # fmt: skip
        assert {tier: total.total_bytes for tier, total in work.bytes.totals("tier").items()} == {
            None: 370, 0: 2090, 1: 50_500,
        }  # fmt: skip
        assert {way: total.total_bytes for way, total in work.bytes.totals("direction").items()} == {
            "in": 330, "out": 52_630,
        }  # fmt: skip
        assert list(work.bytes.totals("peer")) == ["cloud", "ntp"]
        assert list(work.bytes.totals("transport")) == ["folder", "messages", "tus"]
        assert work.bytes.total().total_bytes == 52_960


def test_sums_of_a_part(written, clock):
    with written.reading("north") as work:
        assert work.bytes.totals("tier", slide_sha256=SLIDE, direction="out") == {
            0: ByteTotal(1000, 100, 1), 1: ByteTotal(50_000, 500, 1),
        }  # fmt: skip
        assert work.bytes.total(since_ms=clock.now_ms - 10_000).total_bytes == 370
        assert work.bytes.total(slide_sha256="c" * 64) == ByteTotal(0, 0, 0)
        assert [entry.payload_bytes for entry in work.bytes.entries(slide_sha256=SLIDE)] == [1000, 50_000, 300]
        assert next(work.bytes.entries()).at_ms == clock.now_ms - 40_000


def test_many_entries_come_in_order(store, monkeypatch):
    monkeypatch.setattr(facet, "PAGE", 5)
    with store.transaction("north") as work:
        for number in range(17):
            work.bytes.record(SLIDE, 2, "out", number, 0, "cloud", "tus")
    with store.reading("north") as work:
        assert [entry.payload_bytes for entry in work.bytes.entries()] == list(range(17))


@pytest.mark.parametrize(
    "bad",
    [(5, "out", 1, 1), (0, "up", 1, 1), (0, "out", -1, 1), (0, "out", 1, -1)],
    ids=["tier", "way", "less", "more"],
)
def test_what_makes_no_sense_is_refused_and_not_swallowed(store, bad):
    with pytest.raises(ConflictError), store.transaction("north") as work:
        work.bytes.record(SLIDE, *bad, "cloud", "tus")
    with store.reading("north") as work:
        assert work.bytes.total().entries == 0


def test_bytes_of_a_transaction_that_failed_are_not_there_twice(written):
    with pytest.raises(RuntimeError), written.transaction("north") as work:
        work.bytes.record(SLIDE, 0, "out", 1, 1, "cloud", "tus")
        raise RuntimeError
    with written.reading("north") as work:
        assert work.bytes.total().entries == 5


def test_sums_by_peer_are_what_the_ledger_says_and_cost_a_row_for_each(written):
    with written.transaction("south") as work:
        work.bytes.record(SLIDE, 0, "out", 5, 1, "cloud", "tus")
    said = []
    with written.reading_of_all() as everything:
        event.listen(written.engine, "before_cursor_execute", lambda *told: said.append(told[2]))
        sums = everything.bytes.sums_by_peer(direction="out")
    assert sums == {
        ("north", "cloud"): ByteTotal(51_900, 690, 3), ("north", "ntp"): ByteTotal(0, 40, 1),
        ("south", "cloud"): ByteTotal(5, 1, 1),
    }  # fmt: skip
    assert len(said) == 1 and "FROM byte_sums" in said[0]
    with written.reading("north") as work:
        ledger = work.bytes.totals("peer", direction="out")
        assert work.bytes.total(direction="out") == ByteTotal(51_900, 730, 4)
        assert work.bytes.total(direction="in") == ByteTotal(300, 30, 1)
        assert work.bytes.total() == ByteTotal(52_200, 760, 5)
        assert {peer: sums["north", peer] for peer in ("cloud", "ntp")} == ledger
        assert set(work.bytes.sums_by_peer(direction="out")) == {("north", "cloud"), ("north", "ntp")}

"""What must leave: once, most pressing first, until there is a receipt."""

from __future__ import annotations

import pytest

from slideway.core.errors import ConflictError
from slideway.store.outbox import OutboxState

BLOB, SLIDE, OTHER = "b" * 64, "a" * 64, "c" * 64


def test_a_message_put_twice_is_one_and_cannot_be_replaced(store):
    with store.transaction("north") as work:
        first = work.outbox.put("bundle", "k", payload={"a": 1, "b": 2}, blob_sha256=BLOB)
        assert work.outbox.put("bundle", "k", payload={"b": 2, "a": 1}, blob_sha256=BLOB) == first
        for other in ({"payload": {"a": 2}, "blob_sha256": BLOB}, {"payload": {"a": 1, "b": 2}, "blob_sha256": OTHER}):
            with pytest.raises(ConflictError):
                work.outbox.put("bundle", "k", **other)
        assert len(work.outbox.find_all()) == 1


def test_state_and_the_duty_it_creates_are_kept_together_or_not_at_all(store):
    with pytest.raises(RuntimeError), store.transaction("north") as work:
        work.slides.accept(SLIDE)
        work.slides.move(SLIDE, "encoded")
        work.outbox.put("bundle", "k", slide_sha256=SLIDE)
        work.audit.append("encoded", actor="w", subject=SLIDE)
        raise RuntimeError("the process dies here")
    with store.reading("north") as work:
        assert work.slides.find(SLIDE) is None and not work.outbox.find_all() and work.audit.head().entries == 0


def test_tier_0_of_all_leaves_before_tier_2_of_any_and_urgent_first(store):
    with store.transaction("north") as work:
        for key, tier, is_urgent in [
            ("routine-2", 2, False), ("routine-0", 0, False), ("urgent-2", 2, True), ("urgent-0", 0, True),
            ("urgent-1", 1, True), ("routine-1", 1, False), ("routine-3", 3, False), ("urgent-3", 3, True),
        ]:  # fmt: skip
            work.outbox.put("bundle", key, tier=tier, is_urgent=is_urgent)
        assert [message.key for message in work.outbox.next_due(limit=9)] == [
            "urgent-0", "routine-0", "urgent-1", "urgent-2", "urgent-3", "routine-1", "routine-2", "routine-3",
        ]  # fmt: skip
        assert [message.key for message in work.outbox.next_due(limit=1, tiers=[1])] == ["urgent-1"]


def test_what_was_sent_comes_again_until_there_is_a_receipt(store, clock):
    with store.transaction("north") as work:
        work.outbox.put("bundle", "k", size_bytes=7)
        work.outbox.mark_sent("k", wait_seconds=60)
        assert work.outbox.next_due() == [] and work.outbox.waiting_bytes() == 7
        clock.move(61)
        assert work.outbox.next_due(include_sent=False) == []
        assert [message.attempts for message in work.outbox.next_due()] == [1]
        assert work.outbox.mark_acknowledged("k", receipt="r1").state is OutboxState.ACKNOWLEDGED
        clock.move(10_000)
        assert work.outbox.next_due() == [] and work.outbox.waiting_bytes() == 0


def test_the_same_receipt_twice_is_once_and_another_is_refused(store):
    with store.transaction("north") as work:
        work.outbox.put("bundle", "k")
        done = work.outbox.mark_acknowledged("k", receipt="r1")
        assert work.outbox.mark_acknowledged("k", receipt="r1") == done
        for receipt in ("r2", ""):
            with pytest.raises(ConflictError):
                work.outbox.mark_acknowledged("k", receipt=receipt)


def test_late_news_does_not_undo_a_receipt(store):
    with store.transaction("north") as work:
        work.outbox.put("bundle", "k")
        done = work.outbox.mark_acknowledged("k", receipt="r1")
        work.outbox.mark_sent("k", wait_seconds=1)
        work.outbox.mark_failed("k", reason="timeout")
        work.outbox.withdraw("k", reason="stop")
        assert work.outbox.get("k") == done


def test_a_message_is_never_given_up(store, clock):
    with store.transaction("north") as work:
        work.outbox.put("bundle", "k")
        for _ in range(30):
            clock.move(2 * 3600)
            assert len(work.outbox.next_due()) == 1
            failed = work.outbox.mark_failed("k", reason="no-line")
        assert failed.attempts == 30 and failed.not_before_ms - clock.now_ms <= 4_500_000
        work.outbox.mark_failed("k", reason="asked-to-wait", wait_seconds=7)
        clock.move(7)
        assert len(work.outbox.next_due()) == 1


def test_a_clock_that_was_set_back_holds_nothing_up(store, clock):
    with store.transaction("north") as work:
        work.outbox.put("bundle", "k")
        work.outbox.mark_failed("k", reason="no-line")
        clock.move(-365 * 86_400)
        assert len(work.outbox.next_due()) == 1


def test_each_peer_has_its_own_queue(store):
    with store.transaction("north") as work:
        work.outbox.put("opinion", "k1", peer="node1")
        work.outbox.put("opinion", "k2", peer="node2")
        assert [message.key for message in work.outbox.next_due(peer="node2", limit=9)] == ["k2"]


def test_what_waits_for_each_peer_is_counted_and_can_be_withdrawn_at_once(store):
    for tenant, key, peer in (("north", "a", "lab-1"), ("north", "b", "lab-1"), ("north", "c", "lab-2"),
                              ("south", "d", "lab-1")):  # fmt: skip
        with store.transaction(tenant) as work:
            work.outbox.put("opinion", key, peer=peer, size_bytes=10)
    with store.transaction("north") as work:
        work.outbox.mark_acknowledged("b", receipt="taken")
    with store.reading_of_all() as everything:
        assert everything.outbox.open_sums() == {
            ("north", "lab-1"): (1, 10), ("north", "lab-2"): (1, 10), ("south", "lab-1"): (1, 10),
        }  # fmt: skip
    with store.transaction("north") as work:
        assert work.outbox.withdraw_all(peer="lab-1", reason="moved") == 1
        assert work.outbox.get("b").state == "acknowledged"
        assert (work.outbox.get("a").state, work.outbox.get("a").reason) == ("withdrawn", "moved")
    with store.reading_of_all() as everything:
        assert set(everything.outbox.open_sums()) == {("north", "lab-2"), ("south", "lab-1")}

"""What arrives takes effect once, however often and in whatever order it comes."""

from __future__ import annotations

import threading

import pytest

from slideway.core.errors import ConflictError

CONTENT, OTHER = "a" * 64, "b" * 64


def test_a_message_delivered_twice_gets_the_same_receipt_and_takes_effect_once(store, clock):
    with store.transaction("north") as work:
        first = work.inbox.accept("node1", "m1", kind="bundle", sha256=CONTENT)
    clock.move(86_400)
    with store.transaction("north") as work:
        again = work.inbox.accept("node1", "m1", kind="bundle", sha256=CONTENT)
    assert (first.is_new, again.is_new) == (True, False)
    assert first.receipt == again.receipt != ""


def test_an_id_used_for_other_content_is_refused(store):
    with store.transaction("north") as work:
        work.inbox.accept("node1", "m1", kind="bundle", sha256=CONTENT)
        with pytest.raises(ConflictError):
            work.inbox.accept("node1", "m1", kind="bundle", sha256=OTHER)
        assert work.inbox.accept("node2", "m1", kind="bundle", sha256=OTHER).is_new


def test_a_message_whose_transaction_failed_is_new_when_it_comes_again(store):
    with pytest.raises(RuntimeError), store.transaction("north") as work:
        work.inbox.accept("node1", "m1", kind="bundle", sha256=CONTENT)
        raise RuntimeError
    with store.transaction("north") as work:
        assert work.inbox.accept("node1", "m1", kind="bundle", sha256=CONTENT).is_new


def test_a_late_message_is_accepted_and_known_to_be_late(store):
    came = []
    with store.transaction("north") as work:
        for sequence in (1, 4, 2, 5, 3, 5):
            got = work.inbox.accept(
                "cloud", f"m{sequence}", kind="opinion", sha256=CONTENT, sequence=sequence, subject="slide1"
            )
            came.append((sequence, got.is_new, got.is_newest))
        other = work.inbox.accept("cloud", "x", kind="opinion", sha256=CONTENT, sequence=2, subject="slide2")
    assert came == [
        (1, True, True),
        (4, True, True),
        (2, True, False),
        (5, True, True),
        (3, True, False),
        (5, False, True),
    ]
    assert other.is_newest


def test_two_deliveries_at_once_take_effect_once(store):
    answers = []

    def deliver() -> None:
        with store.transaction("north") as work:
            answers.append(work.inbox.accept("node1", "m1", kind="bundle", sha256=CONTENT))

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.is_new for answer in answers) == [False, False, False, True]
    assert len({answer.receipt for answer in answers}) == 1

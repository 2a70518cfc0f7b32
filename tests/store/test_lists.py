"""What lists, sums and urgency ask of the database, so that nobody loads all slides to count; rights of its file."""

from __future__ import annotations

import os
import sys

import pytest

from slideway.store.database import open_store
from slideway.store.slides import ENDS, SlideState


def name(number):
    return f"{number:064x}"


def fill(work, count):
    for number in range(count):
        work.slides.accept(name(number), is_urgent=number == count - 1, size_bytes=10)


def test_a_page_holds_some_slides_in_the_order_in_which_they_are_read(store, clock):
    with store.transaction("north") as work:
        fill(work, 7)
        found = [work.slides.page([SlideState.ACCEPTED], limit=3, skip=skip) for skip in (0, 3, 6, 9)]
    assert [[int(slide.slide_sha256, 16) for slide in page] for page in found] == [[6, 0, 1], [2, 3, 4], [5], []]


def test_what_ended_last_comes_first(store, clock):
    with store.transaction("north") as work:
        fill(work, 3)
    for number in (1, 0, 2):
        clock.move(1)
        with store.transaction("north") as work:
            work.slides.move(name(number), SlideState.REFERRED, reason="why")
    with store.reading("north") as work:
        found = work.slides.page(sorted(ENDS), limit=2, newest_first=True)
    assert [int(slide.slide_sha256, 16) for slide in found] == [2, 0]


def test_a_walk_passes_every_slide_once_and_only_those_of_its_states_and_tenant(store):
    with store.transaction("south") as work:
        fill(work, 2)
    with store.transaction("north") as work:
        fill(work, 1005)
        work.slides.move(name(4), SlideState.REFERRED, reason="why")
        assert [slide.slide_sha256 for slide in work.slides.walk()] == [name(n) for n in range(1005)]
        assert [slide.slide_sha256 for slide in work.slides.walk([SlideState.REFERRED])] == [name(4)]


def test_sizes_are_added_by_the_database(store):
    with store.transaction("north") as work:
        assert work.slides.total_bytes() == 0
        fill(work, 5)
        for tier in (0, 1):
            work.outbox.put("bundle", f"b{tier}", blob_sha256=name(9), slide_sha256=name(1), tier=tier)
        assert (work.slides.total_bytes(), work.slides.total_bytes(with_bundle=True)) == (50, 10)
    with store.transaction("south") as work:
        assert work.slides.total_bytes() == 0


def test_a_slide_is_delivered_when_its_bundle_is_acknowledged_and_nothing_of_it_waits(store):
    with store.transaction("north") as work:
        fill(work, 2)
        for number in range(2):
            work.slides.move(name(number), SlideState.ENCODED)
        for tier in (0, 1):
            work.outbox.put("bundle", f"b{tier}", blob_sha256=name(9), slide_sha256=name(1), tier=tier)
        work.outbox.put("status", "status")
        assert work.slides.find_delivered(limit=9) == []
        work.outbox.mark_acknowledged("b0", receipt="r")
        assert work.slides.find_delivered(limit=9) == []
        work.outbox.withdraw("b1", reason="enough")
        assert [slide.slide_sha256 for slide in work.slides.find_delivered(limit=9)] == [name(1)]
        assert [row.key for row in work.outbox.find_released()] == ["b0"]
        assert work.outbox.blobs() == {name(9)}


def test_urgent_puts_a_slide_its_open_jobs_and_what_waits_first_and_back(store):
    with store.transaction("north") as work:
        fill(work, 3)
        for number in range(3):
            work.jobs.enqueue(name(number), "read")
            work.outbox.put("bundle", f"b{number}", blob_sha256=name(9), slide_sha256=name(number), tier=1)
        assert work.slides.make_urgent(name(1))
        assert not work.slides.make_urgent(name(1))
        assert work.jobs.make_urgent(name(1)) == work.outbox.make_urgent(name(1)) == 1
        assert work.jobs.lease("w", seconds=9).slide_sha256 == name(1)
        assert work.outbox.next_due()[0].slide_sha256 == name(1)
        assert work.slides.make_urgent(name(1), is_urgent=False)
        work.outbox.make_urgent(name(1), is_urgent=False)
        assert work.outbox.next_due()[0].slide_sha256 == name(0)


def test_the_oldest_that_waits_and_why_things_wait(store, clock):
    with store.transaction("north") as work:
        assert work.outbox.oldest_open_ms(peer="cloud") is None
        work.outbox.put("a", "a")
        clock.move(5)
        work.outbox.put("b", "b")
        work.outbox.mark_failed("b", reason="blob-missing")
        assert work.outbox.oldest_open_ms(peer="cloud") == work.outbox.get("a").created_ms
        assert work.outbox.count_reasons(peer="cloud") == {"blob-missing": 1}
        work.outbox.withdraw("a", reason="enough")
        assert work.outbox.oldest_open_ms(peer="cloud") == work.outbox.get("b").created_ms


def test_a_slide_is_found_by_how_its_hash_begins(store):
    with store.transaction("north") as work:
        work.slides.accept("abc1" + "0" * 60)
        work.slides.accept("abcf" + "f" * 60)
        assert len(work.slides.find_by_prefix("abc")) == 2
        assert [slide.slide_sha256[:4] for slide in work.slides.find_by_prefix("abcf")] == ["abcf"]
        assert work.slides.find_by_prefix("b") == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
def test_only_its_user_may_read_the_file_of_a_store_whatever_the_mask(tmp_path):
    path, before = tmp_path / "s.db", os.umask(0o022)
    try:
        with open_store(f"sqlite:///{path}") as store:
            store.add_tenant("north")
            files = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        assert set(files) >= {"s.db", "s.db-wal", "s.db-shm"}
        assert set(files.values()) == {0o600}
        path.chmod(0o644)  # as an older Slideway made it
        open_store(f"sqlite:///{path}").close()
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_jobs_and_questions_of_a_page_are_found_at_once_and_only_this_tenants(store):
    for tenant in ("south", "north"):
        with store.transaction(tenant) as work:
            fill(work, 3)
            work.jobs.enqueue(name(0), "read", model="m")
            work.jobs.enqueue(name(1), "read", model="other")
            if tenant == "south":
                continue
            for id_, slide in (("c1", 0), ("c2", 0), ("c3", 2)):
                work.consultations.ask(
                    id_, slide_sha256=name(slide), organ="lung", asked_by="-", question={"text": id_}, within_seconds=1
                )
            work.consultations.take("c2", specialist="x")
    with store.reading("north") as work:
        assert {
            slide: job.tenant for slide, job in work.jobs.find_of([name(0), name(1)], "read", model="m").items()
        } == {name(0): "north"}
        assert work.consultations.states_of([name(0), name(1)]) == {name(0): {"open", "taken"}}
        assert work.consultations.counts()["open"] == 2
        assert [row.consultation_id for row in work.consultations.find_recent(limit=2)] == ["c1", "c2"]
        assert work.consultations.find("c9") is None
    with store.reading("south") as work:
        assert work.consultations.states_of([name(0)]) == {}
        assert work.consultations.find("c1") is None

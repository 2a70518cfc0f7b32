"""A computer's clock that jumps: nothing goes early, and no slide ends without the cloud because of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slideway.edge.app import Edge
from slideway.edge.served import ServedTime
from slideway.edge.space import Space
from slideway.store.slides import SlideState

from .conftest import TENANT, Site
from .test_answers import SLIDE, finding, look, read
from .test_space import Disk, end_and_fill

YEAR_S = 366 * 86_400


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=[YEAR_S, -YEAR_S], ids=["a year on", "a year back"])
def jump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that sets this computer's clock wrong."""
    real, real_ns = time.time, time.time_ns

    def jump() -> None:
        monkeypatch.setattr(time, "time", lambda: real() + request.param)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + request.param * 10**9)

    return jump


def test_clock_that_jumps_removes_no_answer(edge: Edge, jump: Callable[[], None]) -> None:
    folder = end_and_fill(edge.node)
    jump()
    assert edge.space.evict() == []
    assert len(list(folder.iterdir())) == 5


def test_clock_that_jumps_ends_no_slide_alone(edge: Edge, jump: Callable[[], None]) -> None:
    read(edge.node, [finding()])
    jump()
    edge.chores.run_once()
    assert look(edge.node)[0] == "encoded"


def test_after_its_time_of_service_an_answer_goes_whatever_the_clock_says(edge: Edge, jump: Callable[[], None]) -> None:
    clock = Clock()
    edge.node.served = ServedTime(edge.node.places.served, monotonic=clock)
    folder = end_and_fill(edge.node)
    jump()
    clock.now += 89 * 86_400
    assert edge.space.evict() == []
    clock.now += 2 * 86_400
    assert edge.space.evict() == [SLIDE]
    assert not folder.exists()


def test_after_hours_of_service_the_edge_answers_alone(edge: Edge, jump: Callable[[], None]) -> None:
    clock = Clock()
    edge.node.served = ServedTime(edge.node.places.served, monotonic=clock)
    read(edge.node, [finding()])
    jump()
    edge.chores._answer_alone()
    assert look(edge.node)[0] == "encoded"
    clock.now += 25 * 3600
    edge.chores._answer_alone()
    assert look(edge.node) == ("reported", "edge-alone")


def test_slides_of_an_older_slideway_begin_their_time_now(edge: Edge) -> None:
    clock = Clock()
    edge.node.served = ServedTime(edge.node.places.served, monotonic=clock)
    clock.now += YEAR_S
    with edge.node.store.transaction(TENANT) as work:
        for number, state in (("1", SlideState.REPORTED), ("2", SlideState.ENCODED)):
            sha256 = number * 64
            work.slides.accept(sha256, facts={"leaving": {"sha256": sha256}})
            work.slides.move(sha256, SlideState.ENCODED)
            if state is not SlideState.ENCODED:
                work.slides.move(sha256, state)
                work.outbox.put("bundle", f"b{number}", blob_sha256=sha256, slide_sha256=sha256)
                work.outbox.mark_acknowledged(f"b{number}", receipt="r")
    assert edge.space.evict() == []
    edge.chores._answer_alone()
    clock.now += 100 * 86_400
    assert edge.space.evict() == ["1" * 64]
    edge.chores._answer_alone()
    with edge.node.store.reading(TENANT) as work:
        assert work.slides.get("2" * 64).state is SlideState.REFERRED


def test_when_it_is_tight_what_was_released_first_goes_first_whatever_the_clock_said(
    make_site: Callable[..., Site], jump: Callable[[], None]
) -> None:
    edge = make_site().open()
    node, disk = edge.node, Disk()
    space, names = Space(node, free_bytes=disk), ["5" * 64, "1" * 64, "9" * 64]
    for number, sha256 in enumerate(names):
        if number == 1:
            jump()
        with node.store.transaction(TENANT) as work:
            work.slides.accept(sha256, facts={"leaving": {"sha256": sha256}})
            work.slides.move(sha256, SlideState.ENCODED)
            work.slides.move(sha256, SlideState.REPORTED)
            work.outbox.put("bundle", sha256, blob_sha256=sha256, slide_sha256=sha256)
            work.outbox.mark_acknowledged(sha256, receipt="r")
    disk.free = 0
    assert space.evict() == names
    node.store.close()


def test_seconds_of_service_are_kept_over_starts_and_a_damaged_file_counts_anew(tmp_path: Path) -> None:
    file, clock = tmp_path / "served", Clock()
    served = ServedTime(file, monotonic=clock)
    clock.now += 59
    served.keep()
    assert not file.exists()  # about once a minute
    clock.now += 41
    served.keep()
    assert ServedTime(file, monotonic=clock).seconds() == 100
    clock.now -= 50  # a monotonic clock does not, but were it to: time stands, it does not run back
    assert ServedTime(file, monotonic=clock).seconds() == 100
    for damaged in (b"", b"-5", b"\xff", b"9" * 400):
        file.write_bytes(damaged)
        assert ServedTime(file, monotonic=clock).seconds() == 0


def test_when_the_count_of_service_is_lost_every_time_begins_anew(edge: Edge) -> None:
    clock, place = Clock(), edge.node.places.served
    place.write_text("90000000\n")
    edge.node.served = ServedTime(place, monotonic=clock)
    end_and_fill(edge.node)
    with edge.node.store.transaction(TENANT) as work:
        work.slides.accept("2" * 64, facts={"encoded_at_s": edge.node.served.seconds()})
        work.slides.move("2" * 64, SlideState.ENCODED)
    place.write_text("500\n")  # an older backup was put back
    edge.node.served = ServedTime(place, monotonic=clock)
    assert edge.space.evict() == []
    edge.chores._answer_alone()
    clock.now += 25 * 3600
    edge.chores._answer_alone()
    with edge.node.store.reading(TENANT) as work:
        assert work.slides.get("2" * 64).state is SlideState.REFERRED
    clock.now += 91 * 86_400
    assert edge.space.evict() == [SLIDE]


def test_a_full_disk_ends_no_turn_before_policy_and_eviction(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edge.node.served, "keep", fail)
    monkeypatch.setattr(edge.chores, "obey_policy", lambda: done.append("policy"))
    monkeypatch.setattr(edge.space, "evict", lambda: done.append("evict"))
    edge.chores.run_once()
    assert done == ["policy", "evict"]

"""Workers: what is a slide's fault costs it an attempt, what is not costs nothing, and a node tells why it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slideway.edge.app import Edge
from slideway.edge.outcome import FINAL, NODES_FAULT
from slideway.edge.status import describe
from slideway.edge.words import LINES, REASONS
from slideway.store.jobs import Job, JobState
from slideway.store.slides import SlideRecord
from slideway.sync.pump import LineState

from .conftest import TENANT, Site, wait_for
from .test_answers import SLIDE


def put(edge: Edge, path: Path, *, attempts: int = 4) -> None:
    with edge.node.store.transaction(TENANT) as work:
        work.slides.accept(SLIDE, facts={"places": {str(path): "1:1:1"}})
        work.jobs.enqueue(SLIDE, "read", model=edge.node.model, attempts_allowed=attempts)


def look(edge: Edge) -> tuple[SlideRecord, Job]:
    with edge.node.store.reading(TENANT) as work:
        return work.slides.get(SLIDE), work.jobs.find_all()[0]


def test_slide_that_is_gone_is_rejected_when_its_attempts_are_used_up(edge: Edge) -> None:
    put(edge, edge.node.settings.folders[0] / "gone.svs", attempts=1)
    assert edge.crew.run_once()
    slide, job = look(edge)
    assert (slide.state.value, slide.reason) == ("rejected", "slide-gone")
    assert job.state is JobState.QUARANTINED
    assert not edge.crew.run_once()


def test_slide_whose_whole_folder_is_away_waits_and_loses_no_attempt(edge: Edge) -> None:
    put(edge, edge.node.settings.folders[0] / "a.svs", attempts=1)
    edge.node.settings.folders[0].rmdir()
    assert edge.crew.run_once()
    slide, job = look(edge)
    assert (slide.state.value, job.state, edge.node.away) == ("accepted", JobState.LEASED, {SLIDE})
    assert not edge.crew.run_once()  # it stands in nobody's way
    edge.crew.stop()
    _, job = look(edge)
    assert (job.state, job.attempts) == (JobState.WAITING, 0)
    edge.watcher.look()
    assert any("cannot be looked into" in sentence for sentence in describe(edge.status()))


def test_reading_that_takes_too_long_is_stopped(make_site: Callable[..., Site], tiny_slides: list[Path]) -> None:
    site = make_site()
    text = (site.folder / "edge.toml").read_text("utf-8")
    (site.folder / "edge.toml").write_text(text.replace("threads = 1", "threads = 1\nslide_seconds = 0.1"), "utf-8")
    edge = site.open()
    put(edge, tiny_slides[0])
    began = time.monotonic()
    edge.crew.run_once()
    slide, job = look(edge)
    assert (slide.state.value, job.reason, job.attempts) == ("accepted", "reading-too-long", 1)
    assert time.monotonic() - began < 5
    edge.node.store.close()


def test_slide_in_hand_at_the_end_is_given_back_without_losing_an_attempt(edge: Edge, tiny_slides: list[Path]) -> None:
    put(edge, tiny_slides[0])
    thread = threading.Thread(target=edge.crew.run_once)
    thread.start()
    wait_for(lambda: edge.crew.reading)
    assert edge.crew.stop(within_seconds=5)
    thread.join(5)
    assert not thread.is_alive()
    _, job = look(edge)
    assert (job.state, job.attempts) == (JobState.WAITING, 0)


def test_slide_that_changed_after_it_was_taken_in_is_not_read_as_what_it_was(
    edge: Edge, tiny_slides: list[Path]
) -> None:
    put(edge, tiny_slides[0], attempts=1)  # under a hash that is not its own
    edge.crew.run_once()
    slide, _ = look(edge)
    assert (slide.state.value, slide.reason) == ("rejected", "slide-access")


def test_encoder_at_fault_stops_reading_and_no_slide(edge: Edge, tiny_slides: list[Path], encoder: Path) -> None:
    put(edge, tiny_slides[0], attempts=1)
    weights = encoder / "weights.onnx"
    content = weights.read_bytes()
    weights.write_bytes(content + b"changed")
    try:
        edge.crew.run_once()
    finally:
        weights.write_bytes(content)
    slide, job = look(edge)
    assert (slide.state.value, job.attempts) == ("accepted", 0)
    assert edge.crew.fault == "encoder-untrusted"


def test_bug_ends_no_worker_and_is_told(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def explode(name: str) -> bool:
        calls.append(name)
        raise KeyError(name)

    monkeypatch.setattr(edge.crew, "run_once", explode)
    thread = threading.Thread(target=edge.crew._work, args=("edge-0",))
    thread.start()
    wait_for(lambda: edge.crew.fault)
    assert (edge.crew.fault, thread.is_alive(), calls) == ("worker-stopped", True, ["edge-0"])
    edge.crew.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_bug_in_a_look_or_a_chore_ends_neither(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slideway.edge.app._BUG_SECONDS", 0.01)
    looks: list[int] = []

    def explode() -> None:
        looks.append(1)
        if len(looks) == 3:
            edge._stop.set()
        raise KeyError("x")

    edge._go_on(explode)
    assert len(looks) == 3


def test_computer_that_starts_no_program_costs_the_slide_nothing(
    edge: Edge, tiny_slides: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("slideway.edge.worker._start_child", refuse)
    put(edge, tiny_slides[0], attempts=1)
    assert edge.crew.run_once()
    slide, job = look(edge)
    assert (slide.state.value, job.state, job.attempts) == ("accepted", JobState.WAITING, 0)
    assert edge.crew.fault == "no-process"


@pytest.mark.parametrize("code", sorted(FINAL | NODES_FAULT - {"blob-failed"}))
def test_every_reason_has_plain_words(code: str) -> None:
    assert code in REASONS


def test_every_state_of_the_line_has_plain_words() -> None:
    assert {state.value for state in LineState} | {"none", "stick"} == set(LINES)

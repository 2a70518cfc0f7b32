"""The disk: intake stops at the high-water mark and goes on by itself; only what the cloud has is ever removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slideway.edge.app import Edge
from slideway.edge.node import Node, end_slide
from slideway.edge.space import Space
from slideway.store.slides import SlideState
from slideway.sync.outgoing import UploadPlan, put_upload

from .conftest import TENANT, Site, wait_for
from .test_answers import SLIDE, acknowledge, finding, read

MB = 10**6


class Disk:
    """A disk whose free bytes a test decides."""

    def __init__(self) -> None:
        self.free = 10**12

    def __call__(self, folder: Path) -> int:
        return self.free


def make_space(make_site: Callable[..., Site], more: str) -> tuple[Node, Space, Disk]:
    site = make_site()
    text = (site.folder / "edge.toml").read_text("utf-8")
    (site.folder / "edge.toml").write_text(text.replace("reserve_mb = 0\nmin_free_gb = 0.001", more), "utf-8")
    edge, disk = site.open(), Disk()
    return edge.node, Space(edge.node, free_bytes=disk), disk


def end_and_fill(node: Node, *, is_acknowledged: bool = True) -> Path:
    """A slide that has ended, with an answer of some size."""
    read(node, [finding()])
    content = b"x" * 9000
    folder = node.places.answers / SLIDE
    folder.mkdir(parents=True)
    for name in ("bag.safetensors", "bundle.swb", "overlay.png", "report.html", "result.json"):
        (folder / name).write_bytes(content)
    (node.places.outgoing / ("b" * 64)).write_bytes(content)
    with node.store.transaction(TENANT) as work:
        if is_acknowledged:
            acknowledge(work)
        end_slide(work, node, SLIDE, SlideState.REPORTED, "edge-alone", tell=False)
    return folder


def test_intake_stops_below_the_mark_and_goes_on_with_a_little_more(make_site: Callable[..., Site]) -> None:
    _, space, disk = make_space(make_site, "min_free_gb = 1.0\nreserve_mb = 0")
    assert space.has_room()
    disk.free = 999 * MB
    assert not space.has_room()
    assert "only 999.0 MB are free" in space.state().stopped_because
    disk.free = 1_010 * MB
    assert not space.has_room()  # or it would flutter
    disk.free = 1_051 * MB
    assert space.has_room()


def test_budget_stops_intake_too(make_site: Callable[..., Site]) -> None:
    node, space, _ = make_space(make_site, "budget_gb = 0.002\nreserve_mb = 0")
    assert space.has_room()
    (node.places.folder / "large").write_bytes(b"x" * 2_000_000)
    space.measure()
    assert "budget" in space.state().stopped_because


def test_slides_wait_in_their_folder_while_intake_is_stopped(edge: Edge, tmp_path: Path) -> None:
    (edge.node.settings.folders[0] / "a.svs").write_bytes(b"x")
    edge.watcher.quiet_seconds = 0
    assert edge.intake.run_once(has_room=lambda: False) == []
    assert edge.intake.waiting == 1
    assert len(edge.intake.run_once(has_room=lambda: True)) == 1
    assert edge.intake.run_once(has_room=lambda: True) == []


def test_reserve_is_given_up_when_the_disk_is_full_and_made_anew(make_site: Callable[..., Site]) -> None:
    node, space, disk = make_space(make_site, "reserve_mb = 2\nmin_free_gb = 0.01")
    space.keep_reserve()
    assert node.places.reserve.stat().st_size == 2 * MB
    disk.free = 100_000
    space.keep_reserve()
    assert not node.places.reserve.exists()
    space.keep_reserve()
    disk.free = 15 * MB
    space.keep_reserve()
    assert node.places.reserve.exists()


def test_tight_disk_takes_the_bulk_of_what_the_cloud_has(make_site: Callable[..., Site]) -> None:
    node, space, disk = make_space(make_site, "min_free_gb = 1.0\nreserve_mb = 0")
    folder = end_and_fill(node)
    assert space.evict() == []  # there is room
    disk.free = 5
    assert space.evict() == [SLIDE]
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "result.json"]
    assert not node.outgoing.has("b" * 64)
    assert space.evict() == []


def test_regions_that_left_go_with_the_answer(make_site: Callable[..., Site]) -> None:
    node, space, disk = make_space(make_site, "reserve_mb = 0\nmin_free_gb = 0.001")
    end_and_fill(node)
    region = node.outgoing.put(b"a region as pixels")
    with node.store.transaction(TENANT) as work:
        for row in put_upload(work, UploadPlan("region", region, SLIDE, (18,))):
            work.outbox.mark_acknowledged(row.key, receipt="r")
    disk.free = 0
    assert space.evict() == [SLIDE]
    assert not node.outgoing.has(region)


def test_what_the_cloud_has_not_is_never_removed(make_site: Callable[..., Site]) -> None:
    node, space, disk = make_space(make_site, "min_free_gb = 1.0\nreserve_mb = 0\nkept_days = -1.0")
    folder = end_and_fill(node, is_acknowledged=False)
    disk.free = 5
    assert space.evict() == []
    assert len(list(folder.iterdir())) == 5
    assert node.outgoing.has("b" * 64)


def test_slide_that_has_not_ended_keeps_its_answer(make_site: Callable[..., Site]) -> None:
    node, space, disk = make_space(make_site, "min_free_gb = 1.0\nreserve_mb = 0\nkept_days = -1.0")
    read(node, [finding()])
    with node.store.transaction(TENANT) as work:
        acknowledge(work)
    disk.free = 5
    assert space.evict() == []


def test_after_its_time_an_answer_goes_and_the_scanners_file_stays(make_site: Callable[..., Site]) -> None:
    node, space, _ = make_space(make_site, "reserve_mb = 0\nkept_days = -1.0")
    original = node.settings.folders[0] / "a.svs"
    original.write_bytes(b"x")
    folder = end_and_fill(node)
    assert space.evict() == [SLIDE]
    assert not folder.exists()
    assert original.exists()
    with node.store.reading(TENANT) as work:
        assert work.slides.get(SLIDE).facts["evicted"] == "all"
        assert list(work.audit.entries())[-1].action == "answer-evicted"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB, really full when it is full."""
    folder = tmp_path / "node" / "state"
    folder.mkdir(parents=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk is mounted by root on Linux only")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill a disk to its last byte, or nearly."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while shutil.disk_usage(folder).free > leave:
                file.write(b"x" * min(65_536, max(1, shutil.disk_usage(folder).free - leave)))
        except OSError:
            pass
    return path


def test_full_disk_stops_intake_loses_nothing_and_recovers_by_itself(
    small_disk: Path, make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make_site()
    text = (site.folder / "edge.toml").read_text("utf-8")
    (site.folder / "edge.toml").write_text(text.replace("min_free_gb = 0.001", "min_free_gb = 0.012"), "utf-8")
    process = site.serve()
    site.put(tiny_slides[0])
    wait_for(lambda: list(site.states().values()) == ["encoded"])
    filler = fill(small_disk, leave=5 * MB)
    site.put(tiny_slides[1])
    status = wait_for(lambda: (found := site.ask())["not_taken"] == 1 and found)
    assert "must stay free" in status["disk"]["stopped_because"]
    assert any(kind == "alarm" for kind, _ in status["attention"])
    assert len(site.states()) == 1
    filler.unlink()
    wait_for(lambda: sorted(site.states().values()) == ["encoded", "encoded"])
    assert site.stop(process) == 0


@pytest.mark.slow
def test_disk_that_fills_while_a_slide_is_read_costs_the_slide_nothing(
    small_disk: Path, make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make_site()
    site.put(tiny_slides[0])
    process = site.serve()
    wait_for(lambda: list(site.states().values()) == ["accepted"], step=0.02)
    filler = fill(small_disk)
    wait_for(lambda: site.ask()["reading_waits"] in ("disk-full", "store-full"))
    assert list(site.states().values()) == ["accepted"]
    filler.unlink()
    wait_for(lambda: list(site.states().values()) == ["encoded"], seconds=120)
    with site.look() as store, store.reading(TENANT) as work:
        work.audit.verify_chain()
        assert work.jobs.find_all()[0].attempts <= 2
    assert site.stop(process) == 0

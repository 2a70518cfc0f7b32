"""A node killed at any named place and started again: one end, one bundle, and the audit's chain whole."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from slideway.cli.edge import command
from slideway.core.crash import CRASH_POINTS
from slideway.store.database import Store
from slideway.store.slides import ENDS

from .conftest import TENANT, RealCloud, Site, wait_for
from .test_answers import SLIDE, acknowledge, read, say

OWN = tuple(point for point in CRASH_POINTS if point.startswith("edge."))
# What the other tests of this file reach; the rest are reached by a slide that goes its whole way.
APART = {"edge.before-sent", "edge.after-alone", "edge.child-after-regions"}
QUICK = {"edge.before-outcome"}
MANY = pytest.mark.slow


def change(site: Site, old: str, new: str) -> None:
    path = site.folder / "edge.toml"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


def enrol(site: Site, cloud: RealCloud, tenant: str) -> None:
    code = cloud.invite(tenant, "lab-1")
    done = CliRunner().invoke(command, ["enrol", cloud.url, code, "--config", str(site.folder / "edge.toml")])
    assert done.exit_code == 0, done.output
    assert "pinned in it" in done.output


def wait_until_dead(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(60) == -signal.SIGKILL


def wait_until_ended(site: Site, tenant: str, count: int) -> None:
    wait_for(lambda: len(found := site.states(tenant)) == count and set(found.values()) <= ENDS, seconds=60)


def check_once(store: Store, tenant: str, site: Site) -> None:
    """Each slide: taken in once, encoded once, one bundle, one end; the chain is whole, no file is nobody's."""
    with store.reading(tenant) as work:
        work.audit.verify_chain()
        entries = list(work.audit.entries())
        for slide in work.slides.find_all():
            own = [entry.action for entry in entries if entry.subject == slide.slide_sha256]
            ends = [action for action in own if action in {f"slide-{end.value}" for end in ENDS}]
            assert len(ends) == 1, own
            for action in ("slide-accepted", "slide-encoded", "bundle-released"):
                assert own.count(action) == 1, own
            blobs = {row.blob_sha256 for row in work.outbox.find_all(slide_sha256=slide.slide_sha256)} - {None}
            assert len(blobs) == 1
        kept = {row.blob_sha256 for row in work.outbox.find_all()} - {None}
    left = {path.name for path in site.settings.places.outgoing.iterdir()}
    assert left <= kept


def test_every_point_of_the_node_is_driven_by_a_test_here() -> None:
    assert set(OWN) >= QUICK | APART
    assert len(OWN) == 13


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=() if point in QUICK else MANY) for point in OWN if point not in APART]
)
def test_killed_on_the_way_a_slide_has_one_end_and_one_bundle(
    point: str, make_site: Callable[..., Site], real_cloud: RealCloud, tiny_slides: list[Path]
) -> None:
    site, tenant = make_site(enrolled=False), point.replace(".", "-")
    enrol(site, real_cloud, tenant)
    if point == "edge.after-evict":
        change(site, "reserve_mb = 0", "reserve_mb = 0\nkept_days = -1.0")
    site.put(tiny_slides[0])
    process = site.serve(point)
    if ".child-" in point:

        def has_failed() -> bool:
            with site.look() as store, store.reading(tenant) as work:
                return any(job.reason == "worker-stopped" for job in work.jobs.find_all())

        wait_for(lambda: site.folder.joinpath("state/serving.json").exists() and has_failed(), seconds=60)
        process.kill()
    elif point == "edge.after-evict":
        wait_until_ended(site, tenant, 1)
        process.kill()
        process.wait()
        process = site.serve(point)  # the first look at the disk comes with the start
        wait_until_dead(process)
    else:
        wait_until_dead(process)
    process.wait()
    again = site.serve()
    wait_until_ended(site, tenant, 1)
    wait_for(lambda: real_cloud.bundles(tenant) and set(real_cloud.bundles(tenant).values()) == {1})
    with site.look() as store:
        check_once(store, tenant, site)
    assert site.stop(again) == 0


def test_killed_node_leaves_no_reader_behind(make_site: Callable[..., Site], tiny_slides: list[Path]) -> None:
    site = make_site()
    site.put(tiny_slides[0])
    process = site.serve()
    readers = wait_for(lambda: psutil.Process(process.pid).children(recursive=True), step=0.01)
    process.kill()
    process.wait()
    wait_for(lambda: not any(reader.is_running() for reader in readers), seconds=10)


@MANY
def test_killed_while_it_notes_what_was_sent(make_site: Callable[..., Site]) -> None:
    site = make_site()
    edge = site.open()
    read(edge.node, [])
    with edge.node.store.transaction(TENANT) as work:
        acknowledge(work)
    edge.node.store.close()
    wait_until_dead(site.serve("edge.before-sent"))
    assert site.states() == {SLIDE: "encoded"}
    again = site.serve()
    wait_for(lambda: site.states() == {SLIDE: "sent"})
    assert site.stop(again) == 0


@MANY
def test_killed_after_it_answered_alone(make_site: Callable[..., Site], tiny_slides: list[Path]) -> None:
    site = make_site()
    change(site, "wait_seconds = 1", "answer_alone_after_hours = -1.0")
    edge = site.open()
    read(edge.node, [])
    edge.node.store.close()
    wait_until_dead(site.serve("edge.after-alone"))
    again = site.serve()
    wait_until_ended(site, TENANT, 1)
    with site.look() as store, store.reading(TENANT) as work:
        ends = [entry for entry in work.audit.entries() if entry.action == "slide-referred"]
        assert len(ends) == 1
        assert work.outbox.find(f"slide-ended:{SLIDE}") is not None
    assert site.stop(again) == 0


@MANY
def test_killed_while_it_cuts_regions(make_site: Callable[..., Site], tiny_slides: list[Path]) -> None:
    site = make_site(policy="regions")
    site.put(tiny_slides[0])
    process = site.serve()
    wait_for(lambda: list(site.states().values()) == ["encoded"])
    assert site.stop(process) == 0
    edge = site.open()
    (slide,) = site.states()
    body = {"slide": slide, "bundle": "b" * 64, "rectangles": [[0, 0, 64, 64], [100, 90, 32, 16]], "because": "x"}
    say(edge.node, "ask-regions", body)
    edge.node.store.close()
    process = site.serve("edge.child-after-regions")

    def look(is_so: Callable[[list[tuple[str, str]]], bool]) -> bool:
        with site.look() as store, store.reading(TENANT) as work:
            return is_so([(job.step, job.reason or job.state.value) for job in work.jobs.find_all()])

    wait_for(lambda: look(lambda jobs: ("regions", "worker-stopped") in jobs))
    process.kill()
    process.wait()
    again = site.serve()
    wait_for(lambda: look(lambda jobs: ("regions", "done") in jobs))
    with site.look() as store, store.reading(TENANT) as work:
        rows = [row for row in work.outbox.find_all() if row.kind == "region"]
        assert [row.tier for row in rows] == [3, 3]
        assert {path.name for path in site.settings.places.outgoing.iterdir()} == {
            row.blob_sha256 for row in work.outbox.find_all() if row.blob_sha256
        }
        message = work.outbox.find(f"regions:{'b' * 64}")
        assert message is not None
        assert [row["rectangle"] for row in message.payload["body"]["regions"]] == body["rectangles"]
    assert site.stop(again) == 0

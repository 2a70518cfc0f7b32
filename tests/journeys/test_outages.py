"""A node left alone: eight days without its cloud within a disk budget, and a disk that is really full.

Days are simulated by turning the clocks of the real processes on, the wall's and the monotonic one, an hour at a time
(`_zygote.Clock`); settings that are hours and days in use stay so. The disk is a small tmpfs where mounting is allowed.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.journeys._kinds import SlideKind, make_kinds, write_head
from tests.journeys._nodes import (
    CloudHome,
    EdgeHome,
    check_all,
    enrol,
    invite,
    is_settled,
    make_cloud,
    make_edge,
    make_encoder,
    make_unique,
    read_states,
    wait_until,
)
from tests.journeys._zygote import Zygote

from slideway.edge.status import ask_status

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
HOUR_S = 3600.0
MB = 10**6
PATIENCE_S = 120.0  # far above what anything here takes on a computer with nothing else to do


@dataclass
class Site:
    """A node and its cloud, on SQLite and a folder, without a relay between."""

    cloud: CloudHome
    edge: EdgeHome
    zygote: Zygote
    kinds: dict[str, SlideKind]
    folder: Path
    pids: dict[str, int] = field(default_factory=dict)

    def serve(self, name: str) -> None:
        home = self.cloud if name == "cloud" else self.edge
        words = ("serve", "--role", "all") if name == "cloud" else ("serve",)
        pid = self.zygote.start(name, *words, "--config", str(home.config), log=self.folder / f"{name}.log")
        self.pids[name] = pid

    def kill(self, name: str) -> None:
        assert self.zygote.kill(self.pids[name]), f"{name} had ended: {self.log(name)}"

    def stop(self, name: str) -> None:
        """As the system does when it shuts down."""
        assert self.zygote.kill(self.pids[name], 15), f"{name} had ended: {self.log(name)}"
        wait_until(lambda: self._status(name) is not None, f"{name} ends", seconds=PATIENCE_S)
        assert self._status(name) == 0, self.log(name)

    def log(self, name: str) -> str:
        """The end of what it wrote."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8")[-3000:] if path.exists() else ""

    def put(self, kind: str) -> None:
        """Let the scanner leave a slide."""
        own, number = self.kinds[kind], len(self.edge.put)
        self.edge.drop(make_unique(own.content, str(number)), f"s{number}{own.suffix}", own.expected)

    def ask(self) -> dict[str, Any]:
        """What `slideway edge status` would tell, of the node that serves."""
        return ask_status(self.edge.settings)

    def wait(self, is_so: Any, what: str, seconds: float = PATIENCE_S) -> Any:
        try:
            return wait_until(is_so, what, seconds=seconds)
        except AssertionError as error:
            states = "; ".join(read_states([self.edge]))
            raise AssertionError(f"{error}: {states}; {self.log('edge')}") from error

    def in_hand(self) -> int:
        """Slides that were taken in and are not read yet."""
        return self.edge.states()["accepted"]

    def taken(self) -> int:
        return sum(self.edge.states().values())

    def _status(self, name: str) -> int | None:
        status = next(one["status"] for one in self.zygote.look() if one["pid"] == self.pids[name])
        return None if status is None else int(status)


@contextlib.contextmanager
def make_site(folder: Path, *, state_mb: int = 0, **edge_settings: Any) -> Iterator[Site]:
    """Made, enrolled and serving; with `state_mb` the node's state lies on a disk of that size, or the test skips."""
    cloud = make_cloud(folder / "cloud", tls=False, isolate=False)
    encoder = make_encoder(folder / "toy")
    write_head(folder / "models", encoder)
    edge = make_edge(folder / "edge", encoder, "north", "lab-1", **edge_settings)
    code = invite(cloud, edge)
    with contextlib.ExitStack() as stack:
        if state_mb:
            stack.enter_context(_small_disk(folder / "edge" / "state", state_mb))
        zygote = Zygote(folder, models=folder / "models")
        stack.callback(zygote.close)
        site = Site(cloud, edge, zygote, make_kinds(folder / "kinds"), folder)
        site.serve("cloud")
        url = f"http://127.0.0.1:{cloud.settings.server.port}"
        site.wait(lambda: "http://" in site.log("cloud"), "the cloud serves")
        enrol(edge, url, code)
        site.serve("edge")
        site.wait(lambda: "serving" in site.log("edge"), "the node serves")
        yield site


@contextlib.contextmanager
def _small_disk(folder: Path, size_mb: int) -> Iterator[None]:
    kept = folder.with_name("state-before")
    folder.rename(kept)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("no program `mount` here")
    if done.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _check(site: Site) -> dict[str, int]:
    site.stop("edge")
    site.stop("cloud")
    found = check_all([site.edge], site.cloud)
    assert not found.wrong
    return found.counted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_days_without_a_cloud_stay_within_the_disk_budget_and_all_is_delivered_then(tmp_path: Path) -> None:
    """On the fifth day something else fills the node's folder up to its budget; on the ninth the cloud is back."""
    budget = 8 * MB
    with make_site(tmp_path, budget_gb=budget / 1000 / MB, status_minutes=60.0) as site:
        site.put("sure-no")
        site.wait(lambda: is_settled(site.edge), "a first slide with the cloud")
        site.kill("cloud")
        kinds = itertools.cycle(["sure-no", "unsure", "sure-yes", "glass"])
        for _ in range(8):  # four days, a slide each twelve hours
            _let_half_a_day_pass(site, next(kinds))
            assert site.taken() == len(site.edge.put)
            assert not site.ask()["disk"]["stopped_because"]
        states = site.edge.states()
        assert states["reported"] > 1, f"no slide was answered by the node alone after a day: {states}"
        assert states["referred"] > 1
        filler = site.edge.folder / "state" / "filler"
        filler.write_bytes(bytes(budget - site.ask()["disk"]["used_bytes"] + MB // 4))
        site.zygote.let_pass(60)  # what the folder holds is added up again after half a minute
        site.wait(lambda: site.ask()["disk"]["stopped_because"], "intake stops at the budget")
        assert any(kind == "alarm" for kind, _ in site.ask()["attention"])
        taken = site.taken()
        for _ in range(8):
            _let_half_a_day_pass(site, next(kinds))
        assert site.taken() == taken, "a slide was taken in above the budget"
        waits = site.edge.waiting()
        assert waits > taken
        site.serve("cloud")
        site.wait(lambda: not site.edge.waiting(), "what waited for eight days is delivered, with no room yet", 300)
        assert site.taken() == taken
        filler.unlink()
        site.zygote.let_pass(60)
        site.wait(lambda: is_settled(site.edge), "intake goes on by itself, and all is delivered", 300)
        counted = _check(site)
        print(f"{dict(counted)}; {taken} slides and {waits} rows waited for the cloud")  # noqa: T201


def _let_half_a_day_pass(site: Site, kind: str) -> None:
    """A slide comes and is read, if there is room; then twelve hours, in which the node's pages answer."""
    site.put(kind)
    site.wait(lambda: site.taken() == len(site.edge.put) or site.ask()["not_taken"], "the slide is seen")
    site.wait(lambda: not site.in_hand(), "slides are read without a line")
    for _ in range(12):
        site.zygote.let_pass(HOUR_S)
        time.sleep(0.05)
    assert site.ask()["version"]


@pytest.mark.timeout(300)
def test_full_disk_stops_intake_and_with_room_everything_is_delivered(tmp_path: Path) -> None:
    with make_site(tmp_path, state_mb=24) as site:
        state = site.edge.folder / "state"
        site.put("sure-no")
        site.wait(lambda: is_settled(site.edge), "a first slide")
        filler = _fill(state)
        site.put("sure-yes")
        status = site.wait(lambda: (told := site.ask())["not_taken"] == 1 and told, "intake stops")
        assert "must stay free" in status["disk"]["stopped_because"]
        assert any(kind == "alarm" for kind, _ in status["attention"])
        assert site.taken() == 1
        filler.unlink()
        site.wait(lambda: is_settled(site.edge), "it goes on by itself")
        counted = _check(site)
        assert counted["ended reported"] == 2


def _fill(folder: Path) -> Path:
    """Fill a disk to its last byte."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65_536)
    return path

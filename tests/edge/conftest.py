"""A node on a folder of its own, a toy encoder that reads in no time, small slides, and a real process when needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slideway.core.errors import UnknownTenantError
from slideway.edge.app import Edge, open_edge
from slideway.edge.init import init_edge
from slideway.edge.settings import EdgeSettings, read_settings
from slideway.store.database import Store, open_store
from slideway.sync.identity import Endpoint, Keys, make_keys, write_endpoint
from slideway.testing.encoders import ToyGraph, write_toy_encoder
from slideway.testing.slides import make_levels, paint_tissue, write_pyramid

TENANT, NODE = "north", "lab-1"
FAST = """
[watch]
poll_seconds = 0.2
quiet_seconds = 0.3
[reading]
encoder = '{encoder}'
threads = 1
lease_seconds = 5
[disk]
reserve_mb = 0
min_free_gb = 0.001
[cloud]
poll_seconds = 0.2
wait_seconds = 1
[web]
port = 0
{more}
"""


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that encodes a tile in no time."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    write_toy_encoder(folder, graph=ToyGraph(tile_px=224))
    return folder


@pytest.fixture(scope="session")
def tiny_slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three slides of different content, some 100 kB each."""
    folder = tmp_path_factory.mktemp("tiny")
    return [
        write_pyramid(folder / f"s{seed}.tif", make_levels(paint_tissue(768, 576, seed=seed)), mpp=0.5)
        for seed in range(3)
    ]


@dataclass
class Site:
    """A node's folder, and what a test does with it."""

    folder: Path
    cloud: Keys
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def scans(self) -> Path:
        return self.folder / "scans"

    @property
    def settings(self) -> EdgeSettings:
        return read_settings(self.folder / "edge.toml")

    def open(self) -> Edge:
        return open_edge(self.settings)

    def look(self) -> Store:
        return open_store(self.settings.places.store_url, read_only=True)

    def put(self, slide: Path, name: str = "") -> Path:
        target = self.scans / (name or slide.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.copy")
        shutil.copy(slide, part)
        return part.replace(target)

    def serve(self, crash: str = "") -> subprocess.Popen[bytes]:
        """Start a real process."""
        environment = {**os.environ, "SLIDEWAY_CRASH_AT": crash}
        command = [sys.executable, "-m", "slideway", "edge", "serve", "--config", str(self.folder / "edge.toml")]
        self.settings.places.serving.unlink(missing_ok=True)  # of one that was killed
        log = (self.folder / "serve.log").open("ab")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        log.close()
        self.processes.append(process)
        return process

    def url(self) -> str:
        place = self.settings.places.serving
        wait_for(lambda: place.exists() and place.read_text("utf-8"), seconds=30)
        return str(json.loads(place.read_text("utf-8"))["url"])

    def ask(self, path: str = "/api/status") -> Any:
        with urllib.request.urlopen(self.url() + path, timeout=10) as answer:
            return json.loads(answer.read())

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        self.url()  # a signal before it serves would find nobody who obeys it
        process.send_signal(signal.SIGTERM)
        return process.wait(30)

    def states(self, tenant: str = TENANT) -> dict[str, str]:
        try:
            with self.look() as store, store.reading(tenant) as work:
                return {slide.slide_sha256: slide.state.value for slide in work.slides.find_all()}
        except UnknownTenantError:  # it has not served yet
            return {}


@pytest.fixture
def make_site(tmp_path: Path, encoder: Path) -> Iterator[Callable[..., Site]]:
    """A function that makes a node, enrolled with a cloud that is not there unless a URL is given."""
    made: list[Site] = []

    def make(
        more: str = "", *, policy: str | None = "features", enrolled: bool = True, url: str = "", name: str = "node"
    ) -> Site:
        folder = tmp_path / name
        init_edge(folder, policy=policy)
        (folder / "edge.toml").write_text(FAST.format(encoder=encoder.as_posix(), more=more), encoding="utf-8")
        site = Site(folder, make_keys())
        if enrolled:
            enrol_by_hand(site, url or "http://127.0.0.1:9")
        made.append(site)
        return site

    yield make
    for site in made:
        for process in site.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def enrol_by_hand(site: Site, url: str) -> None:
    """Write what an enrolment would."""
    from slideway.edge.init import pin_receiver

    raw = site.cloud.receiving.public_key().public_bytes_raw()
    endpoint = Endpoint(url, TENANT, NODE, site.cloud.signing.public_bytes, raw)
    write_endpoint(endpoint, site.settings.places.endpoint)
    pin_receiver(site.settings.policy_file, "cloud", raw)


def wait_for(is_so: Callable[[], Any], *, seconds: float = 60, step: float = 0.1) -> Any:
    """Wait until something is so; what it was."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = is_so()
        if found:
            return found
        time.sleep(step)
    raise AssertionError("it did not become so in time")


@pytest.fixture
def edge(make_site: Callable[..., Site]) -> Iterator[Edge]:
    """A node that is open and does nothing by itself."""
    opened = make_site().open()
    yield opened
    opened.node.store.close()


@dataclass
class RealCloud:
    """A cloud in a process of its own, with TLS on loopback."""

    folder: Path
    process: subprocess.Popen[bytes]
    url: str

    def invite(self, tenant: str, node: str) -> str:
        """A tenant's node; the code that its operator types."""
        from slideway.cloud.client import ask_cloud
        from slideway.cloud.init import open_folder
        from slideway.cloud.settings import read_settings as read_cloud

        settings, own = read_cloud(self.folder / "cloud.toml"), open_folder(self.folder)
        ask_cloud(settings, own, "POST", "/v1/tenants", {"tenant": tenant, "name": ""})
        path = f"/v1/tenants/{tenant}/nodes/{node}/invitation"
        return str(ask_cloud(settings, own, "POST", path, {"name": "", "hours": 1})["code"])

    def bundles(self, tenant: str) -> dict[str, int]:
        """Slide to how many bundles of it the cloud has taken."""
        taken: dict[str, set[object]] = {}
        with (
            open_store(f"sqlite:///{self.folder / 'slideway.db'}", read_only=True) as store,
            store.reading(tenant) as w,
        ):
            for entry in w.audit.entries():
                if entry.action == "bundle-taken":
                    taken.setdefault(entry.subject, set()).add(entry.details["sha256"])
        return {slide: len(bundles) for slide, bundles in taken.items()}


@pytest.fixture(scope="session")
def real_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """One for all tests; each takes a tenant of its own."""
    import socket

    from slideway.cloud.init import init_cloud

    folder = tmp_path_factory.mktemp("cloud")
    init_cloud(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "cloud.toml"
    config.write_text(config.read_text("utf-8").replace("port = 8443", f"port = {port}"), "utf-8")
    command = [sys.executable, "-m", "slideway", "cloud", "serve", "--config", str(config)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for(lambda: "https://" in (folder / "serve.log").read_text("utf-8"), seconds=60)
    yield RealCloud(folder, process, f"https://127.0.0.1:{port}")
    process.send_signal(signal.SIGTERM)
    process.wait(60)

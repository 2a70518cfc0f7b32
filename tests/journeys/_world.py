"""Nodes and a cloud as real processes over TLS, each node behind a line of its own whose weather can change."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from slideway.testing import postgres, s3
from slideway.testing.line import BadLine, Weather

from ._kinds import write_head
from ._nodes import (
    CloudHome,
    EdgeHome,
    Findings,
    SlideFactory,
    check_all,
    invite,
    is_settled,
    make_cloud,
    make_edge,
    make_encoder,
    read_states,
    wait_until,
)

NODES = (("north", "lab-1"), ("north", "lab-2"), ("south", "lab-3"))


class Road(Protocol):
    """What lies between a node and the cloud.

    Attributes:
        weather: As it is now; set it.
        host: Where the node finds the cloud.
        port: There.
        carried_bytes: Up (to the cloud) and down.
        seen: What happened, by name.
        entrance: Words before a command that is to run where the node stands; none where that is here.
    """

    weather: Weather
    host: str
    port: int
    carried_bytes: dict[str, int]
    seen: Counter[str]
    entrance: tuple[str, ...]

    def close(self) -> None:
        """Take it away."""


MakeRoad = Callable[[int, int], Road]
"""Make one, of the cloud's port and a number."""


def make_relay(target_port: int, number: int) -> Road:
    """A relay on loopback."""
    return BadLine(target_port, seed=number)


@dataclass
class World:
    """Nodes, each behind a line of its own, and a cloud."""

    cloud: CloudHome
    edges: list[EdgeHome]
    lines: list[Road]
    slides: SlideFactory
    models: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def serve_cloud(self) -> None:
        self._start("cloud", ["cloud", "serve", "--config", str(self.cloud.config)])
        wait_until(lambda: b"https://" in self._log("cloud"), "the cloud serves", seconds=60)

    def serve_edge(self, edge: EdgeHome) -> None:
        self._start(edge.node, ["edge", "serve", "--config", str(edge.config)], self._entrance_of(edge))

    def run(self, edge: EdgeHome, *words: str) -> str:
        """Run `slideway edge` with these words where a node stands; what it prints."""
        command = [*self._entrance_of(edge), sys.executable, "-m", "slideway", "edge", *words]
        command += ["--config", str(edge.config)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env=self._environment()
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, self._log(name)[-2000:]

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        for line in self.lines:
            line.close()

    def put(self, count: int = 1) -> None:
        for edge in self.edges:
            for _ in range(count):
                edge.drop(self.slides.make(edge.node), f"s{len(edge.put)}.tif")

    def weather(self, weather: Weather) -> None:
        for line in self.lines:
            line.weather = weather

    def settle(self, what: str, seconds: float = 90.0) -> None:
        def is_so() -> bool:
            return all(is_settled(edge) for edge in self.edges)

        try:
            wait_until(is_so, what, seconds=seconds, step=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}: {'; '.join(read_states(self.edges))}") from error

    def wait_for_state(self, state: str, count: int) -> None:
        wait_until(
            lambda: all(edge.states()[state] >= count for edge in self.edges), f"{count} {state} each", seconds=90
        )

    def _entrance_of(self, edge: EdgeHome) -> tuple[str, ...]:
        return self.lines[self.edges.index(edge)].entrance

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLIDEWAY_MODELS": str(self.models)}

    def _start(self, name: str, words: list[str], entrance: Sequence[str] = ()) -> None:
        command = [*entrance, sys.executable, "-m", "slideway", *words]
        with (self.cloud.folder.parent / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment()
            )

    def _log(self, name: str) -> bytes:
        return (self.cloud.folder.parent / f"{name}.log").read_bytes()


@contextlib.contextmanager
def make_world(
    folder: Path, count: int, *, make_road: MakeRoad = make_relay, hosts: Sequence[str] = (), **cloud: Any
) -> Iterator[World]:
    """All in one folder, enrolled through their lines, and serving."""
    home = make_cloud(folder / "cloud", tls=True, isolate=True, hosts=hosts, **cloud)
    encoder = make_encoder(folder / "toy")
    write_head(folder / "models", encoder)
    lines = [make_road(home.settings.server.port, number) for number in range(count)]
    edges = [make_edge(folder / node, encoder, tenant, node) for tenant, node in NODES[:count]]
    codes = [invite(home, edge) for edge in edges]
    # Slides of enough tiles for a tier 2.
    world = World(home, edges, lines, SlideFactory(folder / "kinds", 3200, 2400), folder / "models")
    try:
        world.serve_cloud()
        for edge, line, code in zip(edges, lines, codes, strict=True):
            said = world.run(edge, "enrol", f"https://{line.host}:{line.port}", code)
            assert "pinned in it" in said
            world.serve_edge(edge)
        yield world
    finally:
        world.close()


def check_world(world: World) -> Findings:
    """End all in order, and look."""
    for edge in world.edges:
        world.stop(edge.node)
    world.stop("cloud")
    found = check_all(world.edges, world.cloud)
    assert not found.wrong
    assert found.counted["ended reported"] + found.counted["ended referred"] == found.counted["bundles"]
    assert found.counted["ended reported"] > 0
    assert found.counted["bundles"] == sum(len(edge.put) for edge in world.edges)
    _check_bytes(world)
    return found


def _check_bytes(world: World) -> None:
    """What a node noted is what it had to send, and about what its line carried."""
    for edge, line in zip(world.edges, world.lines, strict=True):
        with edge.look() as store, store.reading(edge.tenant) as work:
            sent = work.bytes.totals("transport", direction="out")["tus"].payload_bytes
            ends = {row.blob_sha256: row.payload["ends"] for row in work.outbox.find_all() if row.kind == "bundle"}
            sizes = sum(end[-1] for end in ends.values())
            assert all(0 < end[0] < end[1] < end[2] for end in ends.values())
            out, came = work.bytes.total(direction="out").total_bytes, work.bytes.total(direction="in").total_bytes
        assert sent >= sizes, f"{edge.node}: {sent} bytes of bundles noted, {sizes} were to be sent"
        assert sent <= sizes * 1.5
        assert 0.7 < out / line.carried_bytes["up"] < 1.3, (edge.node, out, line.carried_bytes)
        assert 0.5 < came / line.carried_bytes["down"] < 1.5, (edge.node, came, line.carried_bytes)


def check_first_tiers_first(edge: EdgeHome, slides: set[str]) -> None:
    """Of slides that waited together: tier 0 of all was acknowledged before tier 2 of any."""
    told = "SELECT slide_sha256, tier, changed_ms FROM outbox WHERE kind = 'bundle' AND state = 'acknowledged'"
    rows = edge.ask(told)
    first = [at for slide, tier, at in rows if slide in slides and tier == 0]
    last = [at for slide, tier, at in rows if slide in slides and tier == 2]
    assert len(first) == len(last) == len(slides)
    assert max(first) <= min(last)


@contextlib.contextmanager
def run_big_cloud() -> Iterator[tuple[postgres.PostgresServer, dict[str, str]]]:
    """PostgreSQL as in use, synced to disk, and an S3 server; skips where one is not there."""
    programs, weed = postgres.find_postgres(), s3.find_weed()
    if programs is None:
        pytest.skip(postgres.WHY_NOT)
    if weed is None:
        pytest.skip(s3.WHY_NOT)
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    with postgres.run_postgres(programs, is_durable=True) as server, s3.run_s3(weed) as endpoint:
        server.add_role("slideway")
        url = server.add_database("cloud", owner="slideway")
        more = f'endpoint = "{endpoint}"\naccess_key_id = "any"\nsecret_access_key = "any"'
        yield server, {"store": url, "blobs": "s3://slideway/cloud", "more_blobs": more}

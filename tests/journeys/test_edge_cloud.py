"""Three nodes of two tenants and a cloud, all real processes over TLS, on lines that are cut, slow, lossy and far.

On PostgreSQL and S3 where both are there; else that journey is skipped with the reason, and the short one on SQLite
and a folder stands for it. Shortened against real use: intervals of polling and status (`_nodes.EDGE`), and hours until
a node answers alone (seconds here, so that the days for which a cloud is down pass in a minute).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.journeys._nodes import (
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

from slideway.core.errors import BlobError, MissingBlobError
from slideway.testing import postgres, s3
from slideway.testing.line import CUT, FAR, GOOD, LOSSY, SLOW, BadLine, Weather

NODES = (("north", "lab-1"), ("north", "lab-2"), ("south", "lab-3"))


@dataclass
class World:
    """Nodes, each behind a line of its own, and a cloud."""

    cloud: CloudHome
    edges: list[EdgeHome]
    lines: list[BadLine]
    slides: SlideFactory
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def serve_cloud(self) -> None:
        self._start("cloud", ["cloud", "serve", "--config", str(self.cloud.config)])
        wait_until(lambda: b"https://" in self._log("cloud"), "the cloud serves", seconds=60)

    def serve_edge(self, edge: EdgeHome) -> None:
        self._start(edge.node, ["edge", "serve", "--config", str(edge.config)])

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "slideway", *words], capture_output=True, text=True, timeout=60, check=False
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

    def _start(self, name: str, words: list[str]) -> None:
        with (self.cloud.folder.parent / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "slideway", *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _log(self, name: str) -> bytes:
        return (self.cloud.folder.parent / f"{name}.log").read_bytes()


@contextlib.contextmanager
def _make_world(folder: Path, count: int, **cloud: Any) -> Iterator[World]:
    """All in one folder, enrolled through their lines, and serving."""
    home = make_cloud(folder / "cloud", tls=True, isolate=True, **cloud)
    encoder = make_encoder(folder / "toy")
    lines = [BadLine(home.settings.server.port, seed=number) for number in range(count)]
    edges = [make_edge(folder / node, encoder, tenant, node) for tenant, node in NODES[:count]]
    codes = [invite(home, edge) for edge in edges]
    world = World(home, edges, lines, SlideFactory(folder / "kinds", 3200, 2400))  # enough tiles for a tier 2
    try:
        world.serve_cloud()
        for edge, line, code in zip(edges, lines, codes, strict=True):
            url = f"https://127.0.0.1:{line.port}"
            said = world.run("edge", "enrol", url, code, "--config", str(edge.config))
            assert "pinned in it" in said
            world.serve_edge(edge)
        yield world
    finally:
        world.close()


def _check(world: World) -> Findings:
    """End all in order, and look."""
    for edge in world.edges:
        world.stop(edge.node)
    world.stop("cloud")
    found = check_all(world.edges, world.cloud)
    assert not found.wrong
    assert found.counted["ended reported"] + found.counted["ended referred"] == found.counted["bundles"]
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


def _check_first_tiers_first(edge: EdgeHome, slides: set[str]) -> None:
    """Of slides that waited together: tier 0 of all was acknowledged before tier 2 of any."""
    told = "SELECT slide_sha256, tier, changed_ms FROM outbox WHERE kind = 'bundle' AND state = 'acknowledged'"
    rows = edge.ask(told)
    first = [at for slide, tier, at in rows if slide in slides and tier == 0]
    last = [at for slide, tier, at in rows if slide in slides and tier == 2]
    assert len(first) == len(last) == len(slides)
    assert max(first) <= min(last)


@pytest.mark.timeout(240)
def test_a_line_that_is_cut_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    with _make_world(tmp_path, 1) as world:
        (edge,) = world.edges
        world.weather(CUT)
        world.put(2)
        world.wait_for_state("encoded", 2)
        assert edge.waiting() > 0
        world.weather(GOOD)
        world.settle("a cut line is back")
        _check_first_tiers_first(edge, set(edge.put))
        _check(world)


@pytest.fixture
def big_cloud() -> Iterator[tuple[postgres.PostgresServer, dict[str, str]]]:
    """PostgreSQL as in use, synced to disk, and an S3 server."""
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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="a backend of PostgreSQL is killed by SIGKILL")
def test_three_nodes_on_every_kind_of_line_and_a_database_that_is_killed(big_cloud: Any, tmp_path: Path) -> None:
    server, cloud = big_cloud
    with _make_world(tmp_path, 3, **cloud) as world:
        world.put()
        world.settle("a good line")
        _go_through_bad_lines(world)
        _go_through_days_without_a_cloud(world)
        killed = _go_through_kills_of_the_database(world, server)
        found = _check(world)
    print(f"{dict(found.counted)}, killed in a commit: {killed}, {[line.seen for line in world.lines]}")  # noqa: T201
    assert killed >= 3


def _go_through_bad_lines(world: World) -> None:
    world.weather(CUT)
    before = [set(edge.put) for edge in world.edges]
    world.put(2)
    world.wait_for_state("encoded", 2)
    world.weather(SLOW)
    world.settle("64 kbit/s", seconds=180)
    for edge, known in zip(world.edges, before, strict=True):
        _check_first_tiers_first(edge, set(edge.put) - known)
    world.weather(LOSSY)
    world.put()
    world.settle("a lossy line", seconds=180)
    world.weather(FAR)
    world.put()
    world.settle("two seconds of delay", seconds=240)
    world.weather(GOOD)
    assert all(line.seen["stalls"] + line.seen["resets"] > 0 for line in world.lines)


def _go_through_days_without_a_cloud(world: World) -> None:
    """The cloud is killed; one node decides alone, the others wait; then it is back."""
    world.kill("cloud")
    world.put()
    world.wait_for_state("encoded", 1)
    alone = world.edges[1]
    world.stop(alone.node)
    text = alone.config.read_text(encoding="utf-8")
    soon = text.replace("answer_alone_after_hours = 24.0", "answer_alone_after_hours = 0.0001")
    alone.config.write_text(soon, encoding="utf-8")
    world.serve_edge(alone)
    wait_until(lambda: not alone.states()["encoded"], "a node answers alone", seconds=60)
    assert alone.waiting() > 0
    assert world.edges[0].states()["encoded"] == 1
    world.stop(alone.node)
    alone.config.write_text(text, encoding="utf-8")
    world.serve_edge(alone)
    world.serve_cloud()
    world.settle("the cloud is back")


def _go_through_kills_of_the_database(world: World, server: postgres.PostgresServer) -> int:
    """Kill server processes of PostgreSQL while they commit, then the whole of it; how many in a commit."""
    import psycopg

    where = f"host=127.0.0.1 port={server.port} user=admin"
    with psycopg.connect(f"{where} dbname=postgres", autocommit=True) as asking:
        asking.execute("ALTER DATABASE cloud SET commit_delay = 50000")  # a commit takes 50 ms: one can be met
        asking.execute("ALTER DATABASE cloud SET commit_siblings = 0")
    world.kill("cloud")
    world.serve_cloud()  # with connections that have it
    killed, stop = [0], threading.Event()

    def kill_commits() -> None:
        while not stop.is_set() and killed[0] < 6:
            with contextlib.suppress(psycopg.Error), psycopg.connect(f"{where} dbname=postgres") as asking:
                while not stop.is_set():
                    committing = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query ILIKE 'commit%'"
                    row = asking.execute(committing).fetchone()
                    asking.rollback()
                    if row is not None:
                        os.kill(row[0], signal.SIGKILL)
                        killed[0] += 1
                        time.sleep(1.5)  # it recovers, and the cloud gets on a little
                        break
                    time.sleep(0.005)
            time.sleep(0.2)

    killer = threading.Thread(target=kill_commits, daemon=True)
    killer.start()
    world.put(2)
    wait_until(lambda: killed[0] >= 3, "three commits were met", seconds=60)
    stop.set()
    killer.join(10)
    server.kill()
    world.put()
    ends = time.monotonic() + 30
    while True:
        try:
            server.start()
            break
        except RuntimeError:  # processes of the killed one still hold its memory
            assert time.monotonic() < ends
            time.sleep(0.2)
    world.settle("the database is back", seconds=180)
    return killed[0]


def test_a_place_for_blobs_that_is_away_costs_no_attempt_and_one_that_lost_a_blob_does(tmp_path: Path) -> None:
    """Two minutes without S3 must not use up the attempts of every slide in hand, and refer it."""
    from dataclasses import replace

    from slideway.cloud.app import open_cloud
    from slideway.cloud.ingest import DIAGNOSE
    from slideway.cloud.worker import Worker

    class Away:
        error: type[BlobError] = BlobError

        def get(self, *_: str) -> bytes:
            raise self.error("away")

    slide = "ab" * 32
    cloud = open_cloud(make_cloud(tmp_path / "cloud", tls=False, isolate=False).settings)
    cloud.store.add_tenant("north")
    with cloud.store.transaction("north") as work:
        work.slides.accept(slide)
        work.jobs.enqueue(slide, DIAGNOSE, payload={"bundle": "cd" * 32, "blob": "cd" * 32, "tier": 2})
    away = Away()
    worker = Worker(replace(cloud.tools, blobs=away), "toy", threading.Event())  # type: ignore[arg-type]
    for _ in range(20):
        with pytest.raises(BlobError):
            worker.work_once()
    with cloud.store.reading("north") as work:
        (job,) = work.jobs.find_all()
        assert (job.state.value, job.attempts) == ("waiting", 0)
    away.error = MissingBlobError
    assert worker.work_once()
    with cloud.store.reading("north") as work:
        (job,) = work.jobs.find_all()
        assert (job.state.value, job.attempts, job.reason) == ("waiting", 1, "blob-missing")
    cloud.close()

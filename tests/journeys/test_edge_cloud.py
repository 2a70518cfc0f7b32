"""Three nodes of two tenants and a cloud, all real processes over TLS, on lines that are cut, slow, lossy and far.

On PostgreSQL and S3 where both are there; else that journey is skipped with the reason, and the short one on SQLite
and a folder stands for it. Shortened against real use: intervals of polling and status (`_nodes.EDGE`), and hours until
a node answers alone (seconds here, so that the days for which a cloud is down pass in a minute).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.journeys._nodes import make_cloud, wait_until
from tests.journeys._world import World, check_first_tiers_first, check_world, make_world, run_big_cloud

from slideway.core.errors import BlobError, MissingBlobError
from slideway.testing import postgres
from slideway.testing.line import CUT, FAR, GOOD, LOSSY, SLOW


@pytest.mark.timeout(240)
def test_a_line_that_is_cut_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    with make_world(tmp_path, 1) as world:
        (edge,) = world.edges
        world.weather(CUT)
        world.put(2)
        world.wait_for_state("encoded", 2)
        assert edge.waiting() > 0
        world.weather(GOOD)
        world.settle("a cut line is back")
        check_first_tiers_first(edge, set(edge.put))
        check_world(world)


@pytest.fixture
def big_cloud() -> Iterator[tuple[postgres.PostgresServer, dict[str, str]]]:
    with run_big_cloud() as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="a backend of PostgreSQL is killed by SIGKILL")
def test_three_nodes_on_every_kind_of_line_and_a_database_that_is_killed(big_cloud: Any, tmp_path: Path) -> None:
    server, cloud = big_cloud
    with make_world(tmp_path, 3, **cloud) as world:
        world.put()
        world.settle("a good line")
        _go_through_bad_lines(world)
        _go_through_days_without_a_cloud(world)
        killed = _go_through_kills_of_the_database(world, server)
        found = check_world(world)
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
        check_first_tiers_first(edge, set(edge.put) - known)
    world.weather(LOSSY)
    for _ in range(5):  # a slide is some forty packets: a line may come through one of them untouched
        world.put()
        world.settle("a lossy line", seconds=180)
        if all(line.seen["stalls"] + line.seen["resets"] > 0 for line in world.lines):
            break
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

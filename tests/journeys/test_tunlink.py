"""The same journey over real IP packets that are lost, late and few: each node in a network namespace of its own.

An emulator of a bad link joins two namespaces by TUN devices; SLIDEWAY_TUNLINK names its script, which is called as
`SCRIPT nsA ipA nsB ipB delay_ms jitter_ms loss rate_kbit` and holds the link up as long as it lives. Needs Linux, root,
`ip` and /dev/net/tun. Here TCP itself answers to loss; in `test_edge_cloud.py` a relay stands for the line.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.journeys._world import Road, World, check_first_tiers_first, check_world, make_world, run_big_cloud

from slideway.testing.line import CUT, GOOD, SLOW, BadLine, Weather

VARIABLE = "SLIDEWAY_TUNLINK"
LOST = Weather(stall_chance=0.05)  # of a hundred packets five never come, either way
FAR = Weather(delay_seconds=2.0)  # each way: four seconds for an answer
_CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why no such link can be made here; empty when it can."""
    script = os.environ.get(VARIABLE, "")
    if not script or not Path(script).is_file():
        return f"{VARIABLE} names no emulator of a bad link"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces are made by root on Linux only"
    if shutil.which("ip") is None or not Path("/dev/net/tun").exists():
        return "no program `ip`, or no /dev/net/tun"
    name = f"sw{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    _run("ip", "netns", "del", name)
    return ""


class TunRoad:
    """A link of two namespaces: the node in the first; in the second a relay to the cloud, which counts."""

    def __init__(self, target_port: int, number: int) -> None:
        """Make it, in good weather.

        Args:
            target_port: Of the cloud, on 127.0.0.1 where this process stands.
            number: Of the link: it has a network of its own.
        """
        self._near, self._far = (f"sw{os.getpid()}-{number}{side}" for side in "ab")
        self._addresses = f"10.77.{number}.1", f"10.77.{number}.2"
        for name in (self._near, self._far):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        self._link: subprocess.Popen[bytes] | None = None
        self._weather = GOOD
        self.entrance = "ip", "netns", "exec", self._near
        self._relay = BadLine(target_port, listening=_listen_in(self._far))
        self.host, self.port = self._addresses[1], self._relay.port
        self.carried_bytes, self.seen = self._relay.carried_bytes, self._relay.seen
        self.weather = GOOD

    @property
    def weather(self) -> Weather:
        """As it is now; setting it ends the link and begins another."""
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        self._end_link()
        if weather.is_cut:
            return
        rate_kbit = weather.bytes_per_second * 8 / 1000
        facts = (weather.delay_seconds * 1000, weather.jitter_seconds * 1000, weather.stall_chance, rate_kbit)
        ends = self._near, self._addresses[0], self._far, self._addresses[1]
        self._link = subprocess.Popen([sys.executable, os.environ[VARIABLE], *ends, *map(str, facts)])
        until = time.monotonic() + 20
        while "tl0" not in _run("ip", "-n", self._far, "-o", "addr", "show", "up"):
            assert self._link.poll() is None, "the link broke"
            assert time.monotonic() < until, "the link did not come up"
            time.sleep(0.05)

    def close(self) -> None:
        """Take it away."""
        self._relay.close()
        self._end_link()
        for name in (self._near, self._far):
            _run("ip", "netns", "del", name)

    def _end_link(self) -> None:
        if self._link is not None:
            self._link.kill()
            self._link.wait()
            self._link = None


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _listen_in(namespace: str) -> socket.socket:
    """A socket that listens in a namespace: it stays where it was made, whoever holds it."""
    library = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    try:
        assert library.setns(there, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            return socket.create_server(("", 0), backlog=256)
        finally:
            assert library.setns(here, _CLONE_NEWNET) == 0
    finally:
        os.close(here)
        os.close(there)


@contextlib.contextmanager
def _make_world(folder: Path) -> Iterator[World]:
    made: list[TunRoad] = []

    def make_road(target_port: int, number: int) -> Road:
        made.append(TunRoad(target_port, number))
        return made[-1]

    hosts = [f"10.77.{number}.2" for number in range(3)]
    with run_big_cloud() as (_, cloud), make_world(folder, 3, make_road=make_road, hosts=hosts, **cloud) as world:
        yield world


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_nodes_over_links_that_lose_delay_and_starve_real_packets(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with _make_world(tmp_path) as world:
        world.put()
        world.settle("a good link", seconds=180)
        world.weather(CUT)
        before = [set(edge.put) for edge in world.edges]
        world.put(2)
        world.wait_for_state("encoded", 2)
        world.weather(SLOW)
        world.settle("64 kbit/s", seconds=240)
        for edge, known in zip(world.edges, before, strict=True):
            check_first_tiers_first(edge, set(edge.put) - known)
        for weather, name in ((LOST, "5 % of packets lost"), (FAR, "two seconds of delay each way")):
            world.weather(weather)
            world.put()
            world.settle(name, seconds=300)
        world.weather(CUT)
        world.put()
        world.wait_for_state("encoded", 1)
        world.weather(GOOD)
        world.settle("good again", seconds=180)
        found = check_world(world)
    print(f"{dict(found.counted)}, carried {[line.carried_bytes for line in world.lines]}")  # noqa: T201

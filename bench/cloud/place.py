"""One cloud as an operator runs it: PostgreSQL that syncs, a folder of blobs, TLS, and processes that are watched."""

from __future__ import annotations

import os
import platform
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from clients import Connection

from slideway.cloud.init import init_cloud, read_operator_token
from slideway.edge.enrol import enrol_edge
from slideway.sync.identity import Endpoint, Keys, make_keys
from slideway.testing.postgres import WHY_NOT, find_postgres, run_postgres

_SETTINGS = """\
[server]
port = 0
enrols_per_minute = 100000
sessions_per_minute = {sessions}
[store]
url = "{store}"
[blobs]
url = "file:blobs"
[worker]
count = {workers}
"""
_START_SECONDS = 60


@dataclass
class Place:
    """A cloud that runs.

    Attributes:
        folder: Its keys, part files and blobs.
        urls: Where its API processes are.
        processes: Name to process: `api-0`, perhaps `worker-1`, and `postgres`.
    """

    folder: Path
    urls: list[str]
    processes: dict[str, psutil.Process]

    def enrol(self, tenant: str, node: str) -> tuple[Keys, Endpoint]:
        """Invite a node through the operator's API and enrol it as a node does."""
        tls = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        token = read_operator_token(self.folder)
        with httpx.Client(base_url=self.url, verify=tls, headers={"Authorization": f"Bearer {token}"}) as client:
            client.post("/v1/tenants", json={"tenant": tenant}).raise_for_status()
            answer = client.post(f"/v1/tenants/{tenant}/nodes/{node}/invitation", json={}).raise_for_status()
        keys = make_keys()
        return keys, enrol_edge(self.url, answer.json()["code"], keys, self.folder / f"{tenant}-{node}.toml")

    @property
    def url(self) -> str:
        """Where the first is."""
        return self.urls[0]

    def connect(self, number: int, tls: ssl.SSLContext) -> Connection:
        """A connection of a node, to the API processes in turn as a balancer would; TLS contexts are shared."""
        address = urlsplit(self.urls[number % len(self.urls)])
        return Connection(address.hostname or "", address.port or 0, tls)

    def trust(self) -> ssl.SSLContext:
        """TLS that believes this cloud's authority only."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(str(self.folder / "ca.pem"))
        return tls

    def usage(self) -> dict[str, tuple[float, float]]:
        """Name to (processor seconds so far, MB of memory), children included; memory as PSS, which counts once."""
        return {name: _sum_usage(process) for name, process in self.processes.items()}


@contextmanager
def run_place(
    folder: Path, *, roles: Sequence[str] = ("all",), workers: int = 1, sessions: int = 3000
) -> Iterator[Place]:
    """Run PostgreSQL with fsync and `slideway cloud serve` for a while.

    Args:
        folder: An empty folder for all that the cloud keeps, on the disk that is measured.
        roles: One process each.
        workers: Slides at a time.
        sessions: Sessions that one address may begin in a minute.
    """
    programs = find_postgres()
    if programs is None:
        sys.exit(WHY_NOT)
    with ExitStack() as stack:
        server = stack.enter_context(run_postgres(programs, is_durable=True))
        server.add_role("slideway")
        store = server.add_database("cloud", owner="slideway")
        init_cloud(folder)
        config = folder / "cloud.toml"
        config.write_text(_SETTINGS.format(store=store, workers=workers, sessions=sessions), encoding="utf-8")
        assert server._process is not None
        processes = {"postgres": psutil.Process(server._process.pid)}
        urls = []
        for number, role in enumerate(roles):
            pid, url = stack.enter_context(_serve(config, role, number))
            processes[f"{role}-{number}"] = psutil.Process(pid)
            urls += [url] if role != "worker" else []
        yield Place(folder, urls, processes)


def describe_machine() -> str:
    """Processor, cores, system."""
    model = "processor"
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"
    )


@contextmanager
def _serve(config: Path, role: str, number: int) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "slideway", "cloud", "serve", "--config", str(config), "--role", role]
    with (config.parent / f"log-{role}-{number}.jsonl").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            if "http" not in line:
                raise RuntimeError(f"the cloud did not start: {line}{process.stderr.read()[-2000:]}")
            yield process.pid, line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_START_SECONDS)


def _sum_usage(process: psutil.Process) -> tuple[float, float]:
    seconds = memory = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
            memory += one.memory_full_info().pss / 2**20
        except psutil.NoSuchProcess:
            continue
    return seconds, memory


def since(began: float) -> float:
    """Seconds since a moment of the monotonic clock."""
    return time.monotonic() - began

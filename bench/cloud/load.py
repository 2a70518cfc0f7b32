"""Load of one cloud: many nodes send bundles over TLS; the same bytes go to a plain S3 server beside it.

python bench/cloud/load.py [--bundles 50000] [--rate 20] [--whole] [--roles api,api] [--json FILE] [--note WORDS]

Phases, one after the other on the same machine: (1) as fast as it goes, (2) at a fixed rate, with latencies counted
from the moment a bundle was due, (3) the same bytes by multipart upload to SeaweedFS, with as many connections.
How far it is goes to standard error each half minute; `--note` adds the run to `evidence.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from clients import Node, RefusedError
from place import Place, describe_machine, run_place

from bundles import BundleMaker, Sendable
from slideway.testing.s3 import BUCKET, find_weed, run_s3

_SAMPLE_SECONDS = 5.0
_TELL_SECONDS = 30.0
_MEMORY_ROWS = 20
_EVIDENCE = Path(__file__).with_name("evidence.json")


@dataclass
class Phase:
    """What was seen while bundles went.

    Attributes:
        name: Of the phase.
        seconds: From the first byte to the last receipt.
        whole: (bundles) Seconds from when a bundle was due to its last receipt.
        last: (bundles) Seconds of its last request alone.
        each: (requests) Seconds of each request until its receipt.
        samples: (seconds since the begin, bundles done, name to (processor seconds, MB)).
    """

    name: str
    seconds: float = 0.0
    whole: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    samples: list[tuple[float, int, dict[str, tuple[float, float]]]] = field(default_factory=list)

    def table(self) -> dict[str, object]:
        """Figures of the phase."""
        if not self.whole:
            return {"phase": self.name}
        first, last = self.samples[0], self.samples[-1]
        cores = {
            name: round((last[2][name][0] - first[2][name][0]) / max(last[0] - first[0], 1e-9), 2) for name in last[2]
        }
        return {
            "phase": self.name,
            "bundles": len(self.whole),
            "seconds": round(self.seconds, 1),
            "per_second": round(len(self.whole) / self.seconds, 1),
            "whole_s": _spread(self.whole),
            "last_request_s": _spread(self.last),
            "each_request_s": _spread(self.each),
            "cores": cores,
            "processor_ms_per_bundle": {
                name: round(share * self.seconds / len(self.whole) * 1000, 1) for name, share in cores.items()
            },
            "machine_load": round(os.getloadavg()[0], 1),
        }

    def note(self, seconds: Sequence[float], since: float) -> None:
        """A bundle is done: its requests, and when it was due."""
        self.each += seconds
        self.last.append(seconds[-1])
        self.whole.append(time.monotonic() - since)

    def memory(self, *, rows: int = _MEMORY_ROWS) -> list[dict[str, object]]:
        """MB over time."""
        step = max(1, len(self.samples) // rows)
        chosen = [*self.samples[::step], self.samples[-1]]
        return [
            {"bundles": done, "seconds": round(at), **{name: round(usage[1]) for name, usage in used.items()}}
            for at, done, used in chosen
        ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--bundles", type=int, default=5000, help="at the fixed rate")
    parser.add_argument("--fast", type=int, default=1000, help="as fast as it goes; also those of the S3 server")
    parser.add_argument("--rate", type=float, default=20.0, help="bundles a second")
    parser.add_argument("--whole", action="store_true", help="each in one piece, not tier by tier")
    parser.add_argument("--roles", default="api", help="processes, e.g. `all`, `api,api` or `api,worker`")
    parser.add_argument("--workers", type=int, default=1, help="slides at a time in a worker's process")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--note", help="add the run to evidence.json under these words")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=own.folder, prefix="slideway-load-") as scratch:
        result = asyncio.run(measure(own, Path(scratch)))
    text = json.dumps(result, indent=1)
    print(text)
    if own.json is not None:
        own.json.write_text(text + "\n", encoding="utf-8")
    if own.note is not None:
        known = json.loads(_EVIDENCE.read_text(encoding="utf-8"))
        known["load"].append({"run": f"{own.bundles} at {own.rate:g} a second", "note": own.note, **result})
        _EVIDENCE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


async def measure(own: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """All phases of one run."""
    troubles: Counter[str] = Counter()
    roles = own.roles.split(",")
    result: dict[str, object] = {"machine": describe_machine(), "when": time.strftime("%Y-%m-%d")}
    with run_place(scratch / "cloud", roles=roles, workers=own.workers) as place:
        nodes = enrol_nodes(place, own.nodes, own.tenants, troubles)
        stock = Stock(scratch / "stock", nodes, BundleMaker())
        await asyncio.gather(*(node.begin_session() for node in nodes))
        fast, steady = Phase("as fast as it goes"), Phase(f"{own.rate:g} bundles a second")
        if own.fast:
            stock.fill(own.fast)
            await run_fast(place, nodes, stock, fast, by_tier=not own.whole)
        result["bundle_bytes"] = stock.n_bytes
        if own.bundles:
            await run_steady(place, nodes, stock, steady, own, troubles)
        result |= {"fast": fast.table(), "steady": steady.table(), "troubles": dict(troubles)}
        result["memory_mb"] = steady.memory() if steady.samples else fast.memory()
        if {"all", "worker"} & set(roles):
            result["jobs_waiting"] = count_jobs(place)
    if own.fast:
        stock.fill(own.fast)
        result["s3"] = await run_s3_phases(stock, own)
        for found in result["s3"].values():  # type: ignore[attr-defined]
            found["ratio"] = round(result["fast"]["per_second"] / found["per_second"], 3)  # type: ignore[index]
    return result


def enrol_nodes(place: Place, n_nodes: int, n_tenants: int, troubles: Counter[str]) -> list[Node]:
    """Nodes that are enrolled, spread over tenants."""
    tls = place.trust()
    made = []
    for i in range(n_nodes):
        keys, endpoint = place.enrol(f"hospital-{i % n_tenants}", f"node-{i}")
        made.append(Node(keys, endpoint, place.connect(i, tls), troubles))
    return made


class Stock:
    """Bundles made beforehand, on disk: what makes them does not compete with what is measured."""

    def __init__(self, folder: Path, nodes: Sequence[Node], maker: BundleMaker) -> None:
        folder.mkdir()
        self._folder, self._nodes, self._maker = folder, nodes, maker
        self._made: list[tuple[int, Path, Sendable]] = []
        self.n_bytes = 0

    def fill(self, count: int) -> None:
        """Make so many, for the nodes in turn."""
        for number in range(count):
            node = self._nodes[number % len(self._nodes)]
            made = self._maker.make(node.keys, node.endpoint)
            path = self._folder / str(number)
            path.write_bytes(made.content)
            self.n_bytes = len(made.content)
            self._made.append((number % len(self._nodes), path, Sendable(b"", made.plan)))
        os.sync()

    def make_now(self, node: Node) -> Sendable:
        """One more, made on the spot."""
        return self._maker.make(node.keys, node.endpoint)

    def take(self) -> Iterator[tuple[int, Sendable]]:
        """Each once: number of its node, and the bundle."""
        while self._made:
            number, path, made = self._made.pop()
            yield number, Sendable(path.read_bytes(), made.plan)
            path.unlink()


async def run_fast(place: Place, nodes: Sequence[Node], stock: Stock, phase: Phase, *, by_tier: bool) -> None:
    """Every node sends one bundle after the other, all at once."""
    queues: dict[int, list[Sendable]] = {}
    for number, bundle in stock.take():
        queues.setdefault(number, []).append(bundle)

    async def send_all(number: int) -> None:
        for bundle in queues.get(number, []):
            began = time.monotonic()
            phase.note(await nodes[number].send(bundle, by_tier=by_tier), began)

    async with _Sampling(place, phase):
        await asyncio.gather(*(send_all(number) for number in range(len(nodes))))


async def run_steady(
    place: Place,
    nodes: Sequence[Node],
    stock: Stock,
    phase: Phase,
    own: argparse.Namespace,
    troubles: Counter[str],
) -> None:
    """Bundles fall due at random moments (Poisson) at any node; to wait for the node's own line counts too."""
    random_ = random.Random(7)  # not a secret
    locks = [asyncio.Lock() for _ in nodes]
    running: set[asyncio.Task[None]] = set()

    async def send(number: int, due: float) -> None:
        async with locks[number]:
            bundle = stock.make_now(nodes[number])
            try:
                phase.note(await nodes[number].send(bundle, by_tier=not own.whole), due)
            except (RefusedError, OSError, EOFError, TimeoutError) as error:  # counted, never passed over in silence
                troubles[f"lost: {type(error).__name__} {error}"[:120]] += 1

    async with _Sampling(place, phase):
        due = time.monotonic()
        for _ in range(own.bundles):
            due += random_.expovariate(own.rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(send(random_.randrange(len(nodes)), due))
            running.add(task)
            task.add_done_callback(running.discard)
        while running:
            await asyncio.gather(*running)


async def run_s3_phases(stock: Stock, own: argparse.Namespace) -> dict[str, dict[str, object]]:
    """The same bytes to SeaweedFS as it comes, and as one that syncs each write to disk."""
    program = find_weed()
    if program is None:
        return {}
    found: dict[str, dict[str, object]] = {}
    bundles = [bundle.content for _, bundle in stock.take()]
    for name, is_synced in (("as it comes", False), ("with fsync", True)):
        with run_s3(program) as endpoint:
            if is_synced:
                turn_fsync_on(str(program))
            found[name] = await upload_multipart(endpoint, bundles, own.nodes)
    return found


def turn_fsync_on(program: str) -> None:
    """Tell the SeaweedFS that we just started to sync what it writes."""
    import subprocess

    line = next(p.cmdline() for p in psutil.Process().children() if p.exe() == os.path.realpath(program))
    ports = {word.split("=")[0]: word.split("=")[1] for word in line if "=" in word}
    order = f"fs.configure -locationPrefix=/buckets/{BUCKET} -fsync -apply\n"
    where = [f"-master=127.0.0.1:{ports['-master.port']}", f"-filer=127.0.0.1:{ports['-filer.port']}"]
    done = subprocess.run(
        [program, "shell", *where], input=order, text=True, capture_output=True, check=True, timeout=60
    )
    if not re.search(r'"fsync":\s*true', done.stdout):
        raise RuntimeError(f"fsync was not turned on: {done.stdout[-500:]} {done.stderr[-500:]}")


async def upload_multipart(endpoint: str, bundles: Sequence[bytes], connections: int) -> dict[str, object]:
    """Multipart uploads by obstore, so many at a time."""
    import obstore
    from obstore.store import S3Store

    store = S3Store.from_url(
        f"s3://{BUCKET}/load",
        region="us-east-1",
        endpoint=endpoint,
        access_key_id="any",
        secret_access_key="any",  # any key is taken
        client_options={"allow_http": True},
    )
    waiting, seconds = list(enumerate(bundles)), []

    async def send_all() -> None:
        while waiting:
            number, content = waiting.pop()
            at = time.monotonic()
            await obstore.put_async(store, str(number), content, use_multipart=True)
            seconds.append(time.monotonic() - at)

    began = time.monotonic()
    await asyncio.gather(*(send_all() for _ in range(connections)))
    took = time.monotonic() - began
    return {
        "bundles": len(bundles),
        "seconds": round(took, 1),
        "per_second": round(len(bundles) / took, 1),
        "whole_s": _spread(seconds),
        "machine_load": round(os.getloadavg()[0], 1),
    }


def count_jobs(place: Place) -> dict[str, int]:
    """Jobs by state, as the fleet view counts them."""
    from slideway.store.database import open_store

    url = next(line for line in (place.folder / "cloud.toml").read_text().splitlines() if "postgresql" in line)
    with open_store(url.split('"')[1]) as store, store.engine.connect() as connection:
        from sqlalchemy import text

        connection.execute(text("SELECT set_config('slideway.tenant', '*', false)"))
        return {row[0]: row[1] for row in connection.execute(text("SELECT state, count(*) FROM jobs GROUP BY state"))}


class _Sampling:
    """Look at the processes now and then."""

    def __init__(self, place: Place, phase: Phase) -> None:
        self._place, self._phase, self._told = place, phase, time.monotonic()

    async def __aenter__(self) -> None:
        self._began = time.monotonic()
        self._look()
        self._task = asyncio.create_task(self._go_on())

    async def __aexit__(self, *_: object) -> None:
        self._phase.seconds = time.monotonic() - self._began
        self._task.cancel()
        self._look()

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            self._look()
            if time.monotonic() - self._told >= _TELL_SECONDS:
                self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        at, done, usage = self._phase.samples[-1]
        memory = ", ".join(f"{name} {used[1]:.0f} MB" for name, used in usage.items())
        late = _spread(self._phase.whole[-600:])["p99"] if done else 0.0
        print(
            f"{self._phase.name}: {done:,} in {at:.0f} s; last 600: p99 {late} s; {memory}", file=sys.stderr, flush=True
        )

    def _look(self) -> None:
        usage = self._place.usage()
        times = psutil.Process().cpu_times()
        usage["clients"] = (times.user + times.system, psutil.Process().memory_info().rss / 2**20)
        self._phase.samples.append((time.monotonic() - self._began, len(self._phase.whole), usage))


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        "most": round(ordered[-1], 3),
    }


if __name__ == "__main__":
    main()

"""A thundering herd: the line of a whole region comes back, and every node connects in the same second.

python bench/cloud/herd.py [--clients 2000] [--json FILE]

Each client has an upload that its lost line cut off behind tier 0. All at once they open a TLS connection, prove who
they are, ask where their upload stands (HEAD), send the rest (PATCH), verify the receipt, and ask for messages. They
try again as a node does: full jitter, and what `Retry-After` asks for. Clients that do not recover are told by name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

from clients import Node
from load import _spread, enrol_nodes
from place import describe_machine, run_place

from bundles import BundleMaker, Sendable


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=50, help="enrolled; clients share their keys")
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=60, help="of each bundle")
    parser.add_argument("--sessions", type=int, default=3000, help="[server] sessions_per_minute")
    parser.add_argument("--roles", default="api")
    parser.add_argument("--json", type=Path)
    own = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16_384, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    with tempfile.TemporaryDirectory(prefix="slideway-herd-") as scratch:
        result = asyncio.run(measure(own, Path(scratch)))
    text = json.dumps(result, indent=1)
    print(text)
    if own.json is not None:
        own.json.write_text(text + "\n", encoding="utf-8")


async def measure(own: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Cut so many uploads off, let all come back at once, and count."""
    troubles: Counter[str] = Counter()
    with run_place(scratch / "cloud", roles=own.roles.split(","), sessions=own.sessions) as place:
        enrolled = enrol_nodes(place, own.nodes, own.tenants, troubles)
        for node in enrolled:
            await node.begin_session()
        cut_off = await cut_off_uploads(enrolled, own.clients, BundleMaker(own.tiles))
        tls = place.trust()
        herd = [
            (
                Node(enrolled[i % own.nodes].keys, enrolled[i % own.nodes].endpoint, place.connect(i, tls), troubles),
                *item,
            )
            for i, item in enumerate(cut_off)
        ]
        used, began, seconds = place.usage(), time.monotonic(), []
        outcomes = await asyncio.gather(
            *(come_back(node, bundle, path, i, seconds) for i, (node, bundle, path) in enumerate(herd)),
            return_exceptions=True,
        )
        took, after = time.monotonic() - began, place.usage()
    lost = Counter(f"{type(item).__name__}: {item}" for item in outcomes if item is not None)
    return {
        "machine": describe_machine(),
        "when": time.strftime("%Y-%m-%d"),
        "clients": own.clients,
        "drained_s": round(took, 1),
        "client_s": _spread(seconds) if seconds else {},
        "errors_recovered": dict(sorted(troubles.items())),
        "not_recovered": dict(lost),
        "cores": {name: round((after[name][0] - used[name][0]) / took, 2) for name in after},
        "memory_mb": {name: [round(used[name][1]), round(after[name][1])] for name in after},
        "machine_load": round(os.getloadavg()[0], 1),
    }


async def cut_off_uploads(nodes: list[Node], count: int, maker: BundleMaker) -> list[tuple[Sendable, str]]:
    """Uploads of which tier 0 came, and the paths under which they go on."""
    made: list[tuple[Sendable, str]] = [None] * count  # type: ignore[list-item]

    async def begin(number: int) -> None:
        for i in range(number, count, len(nodes)):
            bundle = maker.make(nodes[number].keys, nodes[number].endpoint)
            made[i] = bundle, (await nodes[number].begin(bundle))[0]
        nodes[number].connection.close()

    await asyncio.gather(*(begin(number) for number in range(len(nodes))))
    return made


async def come_back(node: Node, bundle: Sendable, path: str, seed: int, seconds: list[float]) -> None:
    """One client's way from no line to nothing left to say."""
    random_ = random.Random(seed)  # not a secret
    began = time.monotonic()
    await node.until_done("session", node.begin_session, random_)
    await node.until_done("upload", lambda: node.resume(bundle, path), random_)
    await node.until_done("messages", node.poll, random_)
    node.connection.close()
    seconds.append(time.monotonic() - began)


if __name__ == "__main__":
    main()

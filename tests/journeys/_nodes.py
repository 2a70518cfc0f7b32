"""Nodes and a cloud in folders of their own, slides for them, and what must be true of all of them at the end."""

from __future__ import annotations

import hashlib
import shutil
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slideway.cloud.app import open_blobs_of
from slideway.cloud.enrolment import invite_node
from slideway.cloud.init import init_cloud, open_folder
from slideway.cloud.settings import CloudSettings, parse_settings
from slideway.core.errors import UnknownTenantError
from slideway.edge.enrol import enrol_edge
from slideway.edge.init import init_edge, pin_receiver
from slideway.edge.settings import EdgeSettings, read_settings
from slideway.store.database import Store, open_store
from slideway.store.slides import ENDS
from slideway.store.work import Work
from slideway.sync.identity import load_keys, write_endpoint
from slideway.testing.encoders import write_toy_encoder
from slideway.testing.slides import make_levels, paint_tissue, write_pyramid

from ._kinds import ANY_END, GRAPH, Expected

EDGE = """\
[watch]
poll_seconds = 0.2
quiet_seconds = 0.3
[reading]
encoder = '{encoder}'
threads = 1
lease_seconds = 5
attempts = 1000
[disk]
reserve_mb = 0
budget_gb = {budget_gb}
min_free_gb = 0.001
kept_days = {kept_days}
[cloud]
status_minutes = {status_minutes}
poll_seconds = 0.2
wait_seconds = 2
answer_alone_after_hours = {alone_hours}
[web]
port = 0
"""
CLOUD = """\
[server]
port = {port}
tls = {tls}
drain_seconds = 5
[store]
url = "{store}"
[blobs]
url = "{blobs}"
{more_blobs}
[uploads]
min_free_mb = 1
[worker]
isolate = {isolate}
lease_seconds = 3
provisional_after_seconds = {provisional}
[regions]
count = 2
"""
_END_ACTIONS = {f"slide-{end.value}" for end in ENDS}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SlideFactory:
    """Slides, each with a content of its own."""

    def __init__(self, folder: Path, width_px: int, height_px: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._kinds = [
            write_pyramid(
                folder / f"kind-{seed}.tif", make_levels(paint_tissue(width_px, height_px, seed=seed)), mpp=0.5
            )
            for seed in range(3)
        ]
        self._count = 0

    def make(self, name: str) -> bytes:
        """A slide's bytes."""
        self._count += 1
        kind = self._kinds[self._count % len(self._kinds)]
        return make_unique(kind.read_bytes(), f"{name} {self._count}")


def make_unique(content: bytes, name: str) -> bytes:
    """The same slide in another file: what is behind the end of a TIFF is read by nobody."""
    return content + hashlib.sha256(name.encode()).digest()


@dataclass
class EdgeHome:
    """A node's folder.

    Attributes:
        folder: It.
        tenant: Whose.
        node: Its name.
        put: Hash of each slide that was put into it, and how it may end.
    """

    folder: Path
    tenant: str
    node: str
    put: dict[str, Expected] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "edge.toml"

    @property
    def settings(self) -> EdgeSettings:
        return read_settings(self.config)

    @property
    def database(self) -> Path:
        return self.folder / "state" / "slideway.db"

    def drop(self, content: bytes, name: str, expected: Expected = ANY_END) -> str:
        """Do as a scanner does: write a file into the folder, whole at once; its hash."""
        target = self.folder / "scans" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(content)
        part.replace(target)
        sha256 = hashlib.sha256(content).hexdigest()
        self.put[sha256] = expected
        return sha256

    def states(self) -> Counter[str]:
        """How many slides are in which state, asked of the file itself."""
        return Counter({row[0]: row[1] for row in self.ask("SELECT state, count(*) FROM slides WHERE tenant = ? "
                                                           "GROUP BY state", self.tenant)})  # fmt: skip

    def waiting(self) -> int:
        """Rows of the outbox that the cloud has not acknowledged."""
        rows = self.ask(
            "SELECT count(*) FROM outbox WHERE tenant = ? AND state IN ('waiting', 'sent') AND kind <> 'status'",
            self.tenant,
        )
        return int(rows[0][0])

    def ask(self, statement: str, *values: Any) -> list[Any]:
        """Ask the node's database, whatever the node does."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as database:
            return list(database.execute(statement, values))

    def look(self) -> Store:
        return open_store(self.settings.places.store_url, read_only=True)


@dataclass
class CloudHome:
    """A cloud's folder.

    Attributes:
        folder: It.
        settings: As its cloud.toml says.
    """

    folder: Path
    settings: CloudSettings

    @property
    def config(self) -> Path:
        return self.folder / "cloud.toml"

    def open(self) -> Store:
        return open_store(self.settings.store_url, read_only=self.settings.is_embedded)


def make_cloud(
    folder: Path,
    *,
    tls: bool,
    isolate: bool,
    store: str = "sqlite:///slideway.db",
    blobs: str = "file:blobs",
    more_blobs: str = "",
    provisional: float = 60.0,
    hosts: Sequence[str] = (),
) -> CloudHome:
    """Make a cloud that will listen on a free port; its store is migrated."""
    init_cloud(folder, hosts=hosts)
    text = CLOUD.format(
        port=free_port(),
        tls=str(tls).lower(),
        isolate=str(isolate).lower(),
        store=store,
        blobs=blobs,
        more_blobs=more_blobs,
        provisional=provisional,
    )
    (folder / "cloud.toml").write_text(text, encoding="utf-8")
    settings = parse_settings(text, folder)
    open_store(settings.store_url, allow_without_backup=True).close()
    return CloudHome(folder, settings)


def make_encoder(folder: Path) -> Path:
    """A toy that encodes a tile in no time."""
    write_toy_encoder(folder, graph=GRAPH)
    return folder


def make_edge(
    folder: Path,
    encoder: Path,
    tenant: str,
    node: str,
    *,
    policy: str = "features",
    kept_days: float = 90.0,
    alone_hours: float = 24.0,
    status_minutes: float = 0.05,
    budget_gb: float = 50.0,
) -> EdgeHome:
    """Make a node's folder, not enrolled yet."""
    init_edge(folder, policy=policy)
    text = EDGE.format(
        encoder=encoder.as_posix(),
        kept_days=kept_days,
        alone_hours=alone_hours,
        status_minutes=status_minutes,
        budget_gb=budget_gb,
    )
    (folder / "edge.toml").write_text(text, encoding="utf-8")
    return EdgeHome(folder, tenant, node)


def invite(cloud: CloudHome, edge: EdgeHome) -> str:
    """An invitation, while the cloud does not serve or its store takes several."""
    with open_store(cloud.settings.store_url) as store:
        store.add_tenant(edge.tenant)
        return invite_node(store, edge.tenant, edge.node, ca_pem=open_folder(cloud.folder).ca_pem)


def enrol(edge: EdgeHome, url: str, code: str) -> None:
    """Do what `slideway edge enrol` does."""
    places = edge.settings.places
    endpoint = enrol_edge(url, code, load_keys(places.keys), places.endpoint)
    assert (endpoint.tenant, endpoint.node) == (edge.tenant, edge.node)
    write_endpoint(endpoint, places.endpoint)
    assert pin_receiver(edge.settings.policy_file, "cloud", endpoint.receiver.public_bytes_raw()) == "pinned"


def wait_until(is_so: Callable[[], Any], what: str, *, seconds: float, step: float = 0.1) -> Any:
    """Wait until something is so; what it was."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = is_so()
        if found:
            return found
        time.sleep(step)
    raise AssertionError(f"after {seconds:.0f} s it was still not so: {what}")


def is_settled(edge: EdgeHome) -> bool:
    """Every slide that was put there has ended, and the cloud has acknowledged all that leaves."""
    states = edge.states()
    is_ended = sum(states.values()) == len(edge.put) and set(states) <= {end.value for end in ENDS}
    return is_ended and edge.waiting() == 0


@dataclass
class Findings:
    """What is wrong at the end, and how much was looked at.

    Attributes:
        wrong: Sentences; empty when all is well.
        counted: How many of what.
    """

    wrong: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def require(self, is_right: bool, sentence: str) -> None:
        """Note a sentence when something is not right."""
        if not is_right:
            self.wrong.append(sentence)


def check_all(edges: Iterable[EdgeHome], cloud: CloudHome) -> Findings:
    """Look at every store: nothing lost, nothing twice, every chain whole, one end for each slide."""
    found, edges = Findings(), list(edges)
    blobs = open_blobs_of(cloud.settings)
    with cloud.open() as there:
        for tenant in sorted({edge.tenant for edge in edges}):
            with there.reading(tenant) as work:
                found.counted["audit entries at the cloud"] += work.audit.verify_chain().entries
        for edge in edges:
            with edge.look() as here, here.reading(edge.tenant) as own, there.reading(edge.tenant) as theirs:
                found.counted["audit entries at nodes"] += own.audit.verify_chain().entries
                _check_edge(found, edge, own)
                _check_receipts(found, edge, own, theirs)
                actions = _actions_by_slide(theirs)
                for slide, expected in edge.put.items():
                    if expected.is_readable:
                        _check_at_cloud(found, edge, slide, own, theirs, actions.get(slide, []), blobs)
    return found


def _actions_by_slide(work: Work) -> dict[str, list[Any]]:
    actions: dict[str, list[Any]] = {}
    for entry in work.audit.entries():
        actions.setdefault(entry.subject, []).append(entry)
    return actions


def _check_edge(found: Findings, edge: EdgeHome, work: Work) -> None:
    slides, actions = {slide.slide_sha256: slide for slide in work.slides.find_all()}, _actions_by_slide(work)
    found.require(set(slides) == set(edge.put), f"{edge.node}: {len(slides)} slides of {len(edge.put)} put there")
    for sha256, slide in slides.items():
        name, own = f"{edge.node} {sha256[:8]}", Counter(entry.action for entry in actions.get(sha256, []))
        expected = edge.put.get(sha256, ANY_END)
        is_readable = expected.is_readable
        found.counted[f"ended {slide.state.value}"] += 1
        found.counted[f"  {slide.state.value} because {slide.reason}"] += 1
        found.require(slide.state in ENDS, f"{name}: {slide.state.value} is no end")
        found.require(sum(own[action] for action in _END_ACTIONS) == 1, f"{name}: ends {own}")
        found.require(own[f"slide-{slide.state.value}"] == 1, f"{name}: {slide.state.value}, audit says {own}")
        found.require(own["slide-accepted"] == 1, f"{name}: accepted {own['slide-accepted']} times")
        found.require(slide.state.value in expected.states, f"{name}: {slide.state.value}, not {expected.states}")
        is_reason = slide.reason in expected.reasons if expected.reasons else bool(slide.reason)
        found.require(is_reason, f"{name}: {slide.state.value} because {slide.reason}, not {expected.reasons}")
        for action in ("slide-encoded", "bundle-released"):
            found.require(own[action] == int(is_readable), f"{name}: {action} {own[action]} times")
        rows = work.outbox.find_all(slide_sha256=sha256)
        bundles = {row.blob_sha256 for row in rows if row.kind == "bundle"}
        found.require(len(bundles) == int(is_readable), f"{name}: {len(bundles)} bundles in the outbox")
        reads = [job for job in work.jobs.find_all() if job.slide_sha256 == sha256 and job.step == "read"]
        found.require(len(reads) == 1, f"{name}: {len(reads)} reading jobs")
    kept = {row.blob_sha256 for row in work.outbox.find_all() if row.blob_sha256}
    orphans = {path.name for path in edge.settings.places.outgoing.iterdir()} - kept
    found.require(not orphans, f"{edge.node}: files that nobody names: {orphans}")
    out = work.bytes.total(direction="out").payload_bytes
    sizes = sum(row.size_bytes for row in work.outbox.find_all() if row.state.value == "acknowledged")
    found.counted["payload bytes noted by nodes"] += out
    found.counted["bytes acknowledged to nodes"] += sizes


def _check_receipts(found: Findings, edge: EdgeHome, own: Work, theirs: Work) -> None:
    """What the cloud has signed for, it has."""
    for row in own.outbox.find_all():
        found.require(row.state.value in ("acknowledged", "withdrawn") or row.kind == "status",
                      f"{edge.node}: {row.key} is {row.state.value}")  # fmt: skip
        if row.state.value == "acknowledged":
            found.counted["receipts"] += 1
            found.require(theirs.inbox.find(edge.node, row.key) is not None,
                          f"{edge.node}: the cloud signed for {row.key} and does not have it")  # fmt: skip


def _check_at_cloud(
    found: Findings, edge: EdgeHome, slide: str, own: Work, theirs: Work, entries: list[Any], blobs: Any
) -> None:
    name = f"{edge.node} {slide[:8]} at the cloud"
    if edge.put[slide].is_hopeless and any(entry.action == "bundle-enough" for entry in entries):
        _check_stopped(found, edge, slide, theirs, entries)
        return
    taken = [entry for entry in entries if entry.action == "bundle-taken" and entry.actor == edge.node]
    found.require(len(taken) == 1, f"{name}: bundle taken {len(taken)} times")
    whole = [entry for entry in entries if entry.action == "opinion-given" and entry.details["tier"] == 2]
    found.require(len(whole) == 1, f"{name}: {len(whole)} opinions given")
    jobs = [job for job in theirs.jobs.find_all() if job.slide_sha256 == slide and job.payload["tier"] == 2]
    found.require([job.state.value for job in jobs] == ["done"], f"{name}: jobs {[job.state.value for job in jobs]}")
    rows = [row for row in theirs.outbox.find_all(slide_sha256=slide) if row.peer == edge.node]
    final = [row for row in rows if row.kind == "opinion" and not row.payload["body"]["provisional"]]
    found.require(len(final) == 1, f"{name}: {len(final)} final opinions in the outbox")
    if not taken:
        return
    found.counted["bundles"] += 1
    bundle = str(taken[0].details["sha256"])
    sent = {row.blob_sha256 for row in own.outbox.find_all(slide_sha256=slide) if row.kind == "bundle"}
    found.require(sent == {bundle}, f"{name}: another bundle than was sent")
    content = blobs.get(edge.tenant, bundle)
    found.require(hashlib.sha256(content).hexdigest() == bundle, f"{name}: its blob is broken")
    counted = theirs.bytes.total(slide_sha256=slide, direction="in").payload_bytes
    regions = sum(row.size_bytes for row in own.outbox.find_all(slide_sha256=slide) if row.kind == "region")
    came = len(content) + regions
    found.require(counted == came, f"{name}: {counted} bytes counted, {came} came")


def _check_stopped(found: Findings, edge: EdgeHome, slide: str, theirs: Work, entries: list[Any]) -> None:
    """Of a slide that nothing can be read of: tier 0 was taken once, more refused once, and its opinion given once."""
    name = f"{edge.node} {slide[:8]} at the cloud"
    own = [entry for entry in entries if entry.action == "bundle-enough" and entry.actor == edge.node]
    found.require(len(own) == 1, f"{name}: more of it refused {len(own)} times")
    jobs = [job for job in theirs.jobs.find_all() if job.slide_sha256 == slide]
    found.require(not jobs, f"{name}: {len(jobs)} jobs for a slide of which nothing can be read")
    rows = Counter(row.kind for row in theirs.outbox.find_all(slide_sha256=slide) if row.peer == edge.node)
    found.require(rows["opinion"] == 1 and rows["enough"] == 1, f"{name}: {dict(rows)} in the outbox")
    found.counted["bundles stopped after tier 0"] += 1


def read_states(edges: Iterable[EdgeHome]) -> Iterator[str]:
    """How nodes stand, for people who look at a failure."""
    for edge in edges:
        try:
            yield f"{edge.node}: put {len(edge.put)}, {dict(edge.states())}, {edge.waiting()} wait"
        except (sqlite3.Error, UnknownTenantError) as error:
            yield f"{edge.node}: {error}"


def keep(folder: Path, target: Path) -> None:
    """Keep a folder of a failed run for people."""
    shutil.copytree(folder, target, dirs_exist_ok=True)

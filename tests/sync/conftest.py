"""A cloud on a real socket and a node with its own store; and the same without a socket, for faults."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from slideway.store.database import Store, open_store
from slideway.store.work import Work
from slideway.sync.face import Face, make_router
from slideway.sync.identity import Endpoint, Keys, make_keys
from slideway.sync.line import Line, LineSettings
from slideway.sync.mailbox import Arrival, Handler
from slideway.sync.outgoing import Piece, UploadPlan
from slideway.sync.sessions import Sender, Sessions
from slideway.sync.shelf import Intake, Shelf
from slideway.sync.tus import TusServer

TENANT, NODE = "north", "node-1"
SLIDE = "5" * 64


class Clock:
    """A wall clock that stands until it is moved; also backwards."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def move(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


class KeepingIntake(Intake):
    """Writes down what took effect, in the store's audit, and keeps the bytes of each tier."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.refuse: Exception | None = None
        self.stop: int | None = None

    def keep(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        content = path.read_bytes()[: piece.end_bytes] if piece.end_bytes else b""
        self.kept[piece.key] = content

    def take(self, work: Work, sender: Sender, plan: UploadPlan, piece: Piece) -> None:
        if self.refuse is not None:
            raise self.refuse
        work.audit.append("took", actor=sender.node, subject=piece.key)

    def stop_at(self, work: Work, sender: Sender, plan: UploadPlan) -> int | None:
        return self.stop


def note_arrival(work: Work, arrival: Arrival) -> None:
    work.audit.append("message", actor=arrival.sender, subject=arrival.message.id)


def effects(store: Store, action: str) -> list[str]:
    """Subjects of what took effect, in order."""
    with store.reading(TENANT) as work:
        return [entry.subject for entry in work.audit.entries() if entry.action == action]


@dataclass
class Cloud:
    """A cloud's parts, without a socket."""

    folder: Path
    keys: Keys
    node_keys: Keys
    store: Store
    intake: KeepingIntake
    shelf: Shelf
    tus: TusServer
    sessions: Sessions
    handlers: dict[str, Handler] = field(default_factory=dict)

    @property
    def sender(self) -> Sender:
        return Sender(TENANT, NODE)

    def endpoint(self, url: str) -> Endpoint:
        receiving = self.keys.receiving.public_key().public_bytes_raw()
        return Endpoint(url, TENANT, NODE, self.keys.signing.public_bytes, receiving)

    @property
    def face(self) -> Face:
        return Face(self.store, self.sessions, self.tus, self.handlers, self.keys.signing)

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(make_router(self.face), prefix="/v1")
        return app


def enrol(store: Store, keys: Keys, *, tenant: str = TENANT, node: str = NODE) -> None:
    store.add_tenant(tenant)
    code = hashlib.sha256(f"{tenant}/{node}".encode()).hexdigest()
    with store.transaction(tenant) as work:
        work.nodes.invite(node, code_sha256=code, within_seconds=3600)
    with store.transaction_of_all() as work:
        work.nodes.enrol(code, public_key=keys.public_key)


def make_cloud(folder: Path, made: Path, *, clock: Callable[[], int] | None = None) -> Cloud:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, folder / "cloud.db")
    store = open_store(f"sqlite:///{folder / 'cloud.db'}", clock=clock or Clock())
    keys, node_keys, intake = make_keys(), make_keys(), KeepingIntake()
    enrol(store, node_keys)
    shelf = Shelf(store, folder / "parts", signing=keys.signing, intake=intake)
    kinds = ("status", "slide-accepted", "slide-ended", "consult-request")
    return Cloud(
        folder, keys, node_keys, store, intake, shelf, TusServer(shelf), Sessions(store, secret=b"s" * 32),
        dict.fromkeys(kinds, note_arrival),
    )  # fmt: skip


@contextmanager
def serve(app: FastAPI, **tls: str) -> Iterator[str]:
    """Serve on a real socket of loopback; yields the address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none", **tls))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def cloud(tmp_path: Path, made: Path) -> Iterator[Cloud]:
    cloud = make_cloud(tmp_path / "cloud", made)
    yield cloud
    cloud.store.close()


@pytest.fixture
def url(cloud: Cloud) -> Iterator[str]:
    with serve(cloud.app()) as address:
        yield address


@pytest.fixture
def line(cloud: Cloud, url: str) -> Iterator[Line]:
    line = Line(cloud.endpoint(url), cloud.node_keys, LineSettings())
    yield line
    line.close()


@pytest.fixture
def edge(tmp_path: Path, made: Path) -> Iterator[Store]:
    shutil.copy(made, tmp_path / "edge.db")
    with open_store(f"sqlite:///{tmp_path / 'edge.db'}") as store:
        store.add_tenant(TENANT)
        yield store


def a_file(n_bytes: int, *, seed: int = 1) -> bytes:
    """Bytes that no two places share."""
    out = bytearray()
    counter = 0
    while len(out) < n_bytes:
        out += hashlib.sha256(f"{seed}/{counter}".encode()).digest()
        counter += 1
    return bytes(out[:n_bytes])


def a_plan(content: bytes, *ends: int, kind: str = "bundle") -> UploadPlan:
    return UploadPlan(kind, hashlib.sha256(content).hexdigest(), SLIDE, ends or (len(content),))

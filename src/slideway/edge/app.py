"""Wire a node together from its settings; the only place where its parts meet."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideway.core.errors import SlidewayError, StoreError
from slideway.core.files import write_whole
from slideway.edge.answers import Answers
from slideway.edge.chores import Chores
from slideway.edge.consult import ask_when_referred
from slideway.edge.intake import Intake
from slideway.edge.logs import log
from slideway.edge.node import Node, end_slide
from slideway.edge.rights import make_rights
from slideway.edge.settings import EdgeSettings
from slideway.edge.shelves import ALONE, Outgoing, open_own_store
from slideway.edge.space import Space
from slideway.edge.status import EdgeStatus, Folder, LineWatch, Momentary, gather_status
from slideway.edge.stick import sweep_spool, take_jobs
from slideway.edge.watch import Watcher
from slideway.edge.worker import Crew
from slideway.registry.pseudonym import load_pseudonym_secret
from slideway.registry.store import find_encoder
from slideway.slides.files import hash_slide
from slideway.store.slides import ENDS, SlideState
from slideway.sync.identity import load_keys, read_endpoint
from slideway.sync.line import Line, LineSettings
from slideway.sync.pace import read_window
from slideway.sync.pump import Pump, PumpSettings

_CHORE_SECONDS = 2.0
_STICK_SECONDS = 1.0
_BUG_SECONDS = 30.0


@dataclass
class Edge:
    """A node with all its parts.

    Attributes:
        node: What the parts share.
        watcher: Looks into the scanners' folders.
        intake: Takes slides in.
        crew: Reads them.
        space: Watches the disk.
        chores: Sees to what is due.
        pump: Sends and receives; None when the node is not enrolled.
        line_watch: Since when the line is as it is.
        store_waits: Why the store cannot be written now; empty when it can.
        is_started: It has begun to watch, read and send.
        token: What a form of these pages carries, so that no other page can send one; another one at every start.
    """

    node: Node
    watcher: Watcher
    intake: Intake
    crew: Crew
    space: Space
    chores: Chores
    pump: Pump | None
    line_watch: LineWatch
    store_waits: str = ""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.is_started = False
        self.token = secrets.token_urlsafe(32)

    def start(self) -> None:
        """Begin to watch, read, send and see to chores, each in a thread of its own."""
        self.is_started = True
        self.chores.begin()
        sweep_spool(self.node.places)
        self.crew.start()
        works: dict[str, Callable[[], None]] = {
            "watch": lambda: self._go_on(self._watch),
            "chores": lambda: self._go_on(self._do_chores),
            "stick": lambda: self._go_on(self._take_sticks),
        }
        if self.pump is not None:
            pump = self.pump
            works["pump"] = lambda: pump.run(self._stop)
        for name, work in works.items():
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def note_serving(self, url: str) -> None:
        """Leave word where the pages are."""
        content = {"url": url, "process": os.getpid(), "token": self.token}
        write_whole(self.node.places.serving, json.dumps(content).encode(), mode=0o600)

    def stop(self, *, within_seconds: float = 15.0) -> bool:
        """Finish or give back what is in hand, then close; whether all ended in time."""
        ends = time.monotonic() + within_seconds
        self._stop.set()
        if self.pump is not None:
            self.pump.wake()
        is_ended = self.crew.stop(within_seconds=within_seconds)
        for thread in self._threads:
            thread.join(max(0.1, ends - time.monotonic()))
        self.node.places.serving.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.node.served.keep(at_once=True)
        self.node.store.close()
        return is_ended and not any(thread.is_alive() for thread in self._threads)

    def status(self) -> EdgeStatus:
        """How it is now."""
        report = self.pump.report() if self.pump is not None else None
        line = report.state.value if report is not None else "none"
        now = time.monotonic()
        folders = tuple(
            Folder(
                name=state.path.name or str(state.path),
                is_there=state.away_since is None,
                reason=state.reason,
                away_seconds=None if state.away_since is None else now - state.away_since,
                slides=state.slides,
                settling=state.settling,
                lacking=state.lacking,
            )
            for state in self.watcher.states
        )
        momentary = Momentary(
            reading=len(self.crew.reading),
            reading_waits=self.crew.fault,
            line=line,
            line_seconds=self.line_watch.note(line),
            line_reason=report.reason if report is not None else "",
            retry_seconds=report.seconds_to_wait if report is not None else 0.0,
            disk=self.space.state(),
            store_waits=self.store_waits,
            folders=folders,
            not_taken=self.intake.waiting,
        )
        with self.node.store.reading(self.node.tenant) as work:
            return gather_status(work, self.node, momentary)

    def _go_on(self, work: Callable[[], None]) -> None:
        """Do something until the end; after a bug again: a thread that ends silently would stop the whole node."""
        while not self._stop.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001  # a thread's outermost place
                log("bug", level=logging.ERROR, error=type(error).__name__)
                self._stop.wait(_BUG_SECONDS)

    def _watch(self) -> None:
        own = self.node.settings.watch
        is_recalled = False
        while not self._stop.is_set():
            try:
                if not is_recalled:
                    _find_slides([])  # loads what it needs, so that the first look is as quick as the others
                    self.intake.recall()
                    is_recalled = True
                self.intake.run_once(has_room=self.space.has_room)
            except (SlidewayError, OSError) as error:
                log("look-failed", code=error.code if isinstance(error, SlidewayError) else type(error).__name__)
            self._stop.wait(self.watcher.rest_seconds(own.poll_seconds))

    def _take_sticks(self) -> None:
        """Take in what `slideway edge import` brought while this process has the store."""
        while not self._stop.is_set():
            try:
                take_jobs(self.node)
            except StoreError as error:
                log("stick-waits", code=error.code)
            self._stop.wait(_STICK_SECONDS)

    def _do_chores(self) -> None:
        while not self._stop.is_set():
            try:
                self.chores.run_once()
                self.store_waits = ""
            except StoreError as error:
                if error.code != self.store_waits:
                    log("store-waits", code=error.code)
                self.store_waits = error.code
            except (SlidewayError, OSError) as error:
                log("chore-failed", code=error.code if isinstance(error, SlidewayError) else type(error).__name__)
            if self.pump is not None:
                self.line_watch.note(self.pump.report().state.value)
            self._stop.wait(_CHORE_SECONDS)


def open_edge(settings: EdgeSettings) -> Edge:
    """Open a node: its store is locked from here on.

    Raises:
        LockedStoreError: Another process serves from this folder.
        UnknownEncoderError: The encoder that the settings name is not installed.
        WrongUseError: A setting cannot be met.
    """
    places = settings.places
    window = read_window(settings.cloud.night_window) if settings.cloud.night_window else None
    card = find_encoder(_name_encoder(settings))
    places.folder.mkdir(parents=True, exist_ok=True)
    keys = load_keys(places.keys)
    if settings.case_pattern is not None:
        load_pseudonym_secret(places.keys)  # one that is damaged is said at the start, not with every slide
    store = open_own_store(places)
    try:
        endpoint = read_endpoint(places.endpoint) if places.endpoint.exists() else None
        tenant = ALONE if endpoint is None else endpoint.tenant
        store.add_tenant(ALONE, name="before the node was enrolled")
        store.add_tenant(tenant)
        rights = make_rights(settings)
        outgoing = Outgoing(places.outgoing)
        node = Node(settings, store, tenant, rights, outgoing, f"{card.id}:{card.fingerprint}")
        if settings.edge.ask_when_referred:
            node.after_referral = ask_when_referred
        if endpoint is not None:
            _close_alone(node)
        pump = None
        if endpoint is not None and endpoint.url:  # a node that was enrolled by a stick has no line
            line_settings = LineSettings(
                bytes_per_second=settings.cloud.bytes_per_second or None, proxy=settings.cloud.proxy or None
            )
            pump = Pump(
                store,
                Line(endpoint, keys, line_settings),
                outgoing.read_range,
                Answers(node).handlers(),
                settings=PumpSettings(window, settings.cloud.poll_seconds, settings.cloud.wait_seconds),
            )
            node.wake_pump = pump.wake
        return _assemble(node, pump)
    except BaseException:
        store.close()
        raise


def _assemble(node: Node, pump: Pump | None) -> Edge:
    own = node.settings
    watcher = Watcher(own.folders, own.watch.quiet_seconds, own.watch.urgent_folders, _find_slides)
    space = Space(node)
    threads = own.reading.threads or max(1, (os.cpu_count() or 1) // own.reading.workers)
    return Edge(
        node=node,
        watcher=watcher,
        intake=Intake(node, watcher, hash_slide=hash_slide),
        crew=Crew(node, is_away=watcher.is_away, threads_each=threads),
        space=space,
        chores=Chores(node, space),
        pump=pump,
        line_watch=LineWatch(),
    )


def _find_slides(paths: Any) -> list[Path]:
    from slideway.pipeline.folder import find_slides  # the science behind it is loaded once the pages are up

    return find_slides(paths)


def _name_encoder(settings: EdgeSettings) -> str | Path:
    name = settings.reading.encoder
    return (settings.root / name).resolve() if any(mark in name for mark in ("/", "\\")) else name


def _close_alone(node: Node) -> None:
    """End what was in hand before the node was enrolled.

    What still lies in its folder is taken in anew, under the tenant of the cloud.
    """
    with node.store.transaction(ALONE) as work:
        for slide in work.slides.walk([state for state in SlideState if state not in ENDS]):
            end_slide(work, node, slide.slide_sha256, SlideState.REJECTED, "enrolled-since", tell=False)

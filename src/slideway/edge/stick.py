"""A node without a line: enrol, send and hear by a folder that somebody carries, whether the node serves or not.

The store has one writer. While the node serves, the command line writes what it brought into a spool of the node's own
folder, and the serving process takes it in; otherwise the command line does it itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import slideway
from slideway.core.errors import LockedStoreError, SlidewayError, StoreError, UnknownTenantError, WrongUseError
from slideway.core.files import write_whole
from slideway.edge.act import stand_in
from slideway.edge.answers import Answers
from slideway.edge.chores import Chores
from slideway.edge.logs import log
from slideway.edge.node import Node
from slideway.edge.settings import EdgeSettings, Places
from slideway.edge.shelves import Outgoing, open_own_store
from slideway.edge.space import Space
from slideway.store.nodes import TENANT_NAME
from slideway.store.work import Work
from slideway.sync.folder import (
    ENDING,
    MOST_BYTES,
    TO_NODE,
    Exported,
    Newcomer,
    OnBytes,
    Spent,
    export_to_folder,
    import_answers,
    record_spent,
    write_enrolment,
)
from slideway.sync.identity import Endpoint, Keys, decode_key, load_keys, read_endpoint, write_endpoint
from slideway.sync.invitation import find_invitation, sign_code, split_code

_BYTES = "bytes.json"
_JOB, _PART, _DONE = ".job", ".part", ".json"
_WAIT_SECONDS = 120.0
_LOOK_SECONDS = 0.2
_LEFT_SECONDS = 3600.0


@dataclass(frozen=True)
class TakenIn:
    """What a node took in from a folder.

    Attributes:
        packets: Names of the packets that were taken.
        refused: Name of a file to why it was not taken; the others are not affected.
        foreign: How many packets are for others.
        receipts: How many things the cloud has signed for.
        messages: How many messages took effect, now or before.
        is_pending: The serving node has it and takes it in later.
    """

    packets: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    foreign: int = 0
    receipts: int = 0
    messages: int = 0
    is_pending: bool = False


def enrol_from_folder(folder: Path, code: str, keys: Keys, endpoint_file: Path) -> Endpoint:
    """Enrol by an invitation that lies in a folder, and lay the answer beside it for the cloud's next import.

    Args:
        folder: On the stick.
        code: The one line that `slideway cloud invite --to-folder` printed; it must come on another way than the stick.
        keys: Of this node.
        endpoint_file: Where to write what is known of the cloud.

    Raises:
        WrongUseError: The code is not of its form, or no invitation there is the one that it names.
        OSError: The folder cannot be written; nothing was changed.
    """
    secret, pin = split_code(code)
    said = find_invitation(folder, pin)
    endpoint = Endpoint(
        "", said.tenant, said.node, decode_key(said.cloud_key), decode_key(said.cloud_receiving_key), said.ca_pem
    )
    if not TENANT_NAME.fullmatch(endpoint.tenant) or not TENANT_NAME.fullmatch(endpoint.node):
        raise WrongUseError(f"{folder.name}: its invitation names no tenant or node; ask for a new one")
    signature = sign_code(keys, secret)
    newcomer = Newcomer(endpoint.tenant, endpoint.node, secret, keys.public_key, slideway.__version__, signature)
    write_enrolment(endpoint, keys, folder, newcomer)
    write_endpoint(endpoint, endpoint_file)
    return endpoint


def export_stick(settings: EdgeSettings, folder: Path, *, on_bytes: OnBytes | None = None) -> Exported:
    """Write what waits for the cloud into a folder.

    Args:
        settings: Of the node.
        folder: On the stick; it exists.
        on_bytes: Told how far it is.

    Raises:
        WrongUseError: The node is not enrolled.
        OSError: The folder is gone or cannot be written.
    """
    places = settings.places
    endpoint, keys, outgoing = read_endpoint(places.endpoint), load_keys(places.keys), Outgoing(places.outgoing)
    read = outgoing.read_range
    with _own_node(settings) as node:
        if node is not None:
            return export_to_folder(node.store, endpoint, keys, folder, read, on_bytes=on_bytes)
    spent: list[Spent] = []
    try:
        with open_own_store(places, read_only=True) as store:
            done = export_to_folder(store, endpoint, keys, folder, read, on_bytes=on_bytes, spend=spent.append)
    except UnknownTenantError as error:
        raise WrongUseError(
            "the node that serves was started before it was enrolled; stop it and start it again"
        ) from error
    if spent:
        _Spool(places).put(bytes_=[asdict(item) for item in spent])
    return done


def import_stick(settings: EdgeSettings, folder: Path, *, wait_seconds: float = _WAIT_SECONDS) -> TakenIn:
    """Take in what the cloud wrote into a folder; packets that were taken are removed from it.

    Args:
        settings: Of the node.
        folder: On the stick.
        wait_seconds: How long to wait for a node that serves.

    Raises:
        WrongUseError: The node is not enrolled.
        StoreError: The store cannot be written now; do it again, nothing is lost.
        OSError: The folder cannot be read.
    """
    read_endpoint(settings.places.endpoint)
    with _own_node(settings) as node:
        taken = None if node is None else _take_answers(node, folder)
    if taken is None:
        paths = sorted(folder.glob(f"{TO_NODE}-*{ENDING}"))
        if not paths:
            return TakenIn()
        spool = _Spool(settings.places)
        taken = spool.wait(spool.put(paths=paths), wait_seconds)
    for name in taken.packets:
        with suppress(OSError):  # a stick that cannot be written is read all the same
            (folder / name).unlink()
    return taken


def take_jobs(node: Node) -> int:
    """What the command line brought while this node serves; how many jobs were done.

    Raises:
        StoreError: The store cannot be written now; what is there stays for the next time.
    """
    spool = _Spool(node.places)
    jobs = spool.jobs()
    for job in jobs:
        try:
            taken = _do_job(node, job)
        except StoreError:
            raise
        except (SlidewayError, OSError, ValueError, TypeError) as error:
            code = error.code if isinstance(error, SlidewayError) else type(error).__name__
            log("stick-failed", level=logging.ERROR, code=code)
            why = str(error) if isinstance(error, SlidewayError) else f"cannot be taken in ({code})"
            taken = TakenIn(refused={job.stem: why})
        spool.finish(job, taken)
    return len(jobs)


def sweep_spool(places: Places) -> None:
    """Remove what killed commands left long ago."""
    for path in _Spool(places).folder.glob("*"):
        if abs(time.time() - path.stat().st_mtime) < _LEFT_SECONDS:
            continue
        if path.suffix == _PART:
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == _DONE:
            path.unlink(missing_ok=True)


class _Spool:
    """Jobs for the serving node, each a folder that is there whole or not at all."""

    def __init__(self, places: Places) -> None:
        self.folder = places.folder / "stick"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, *, paths: list[Path] | None = None, bytes_: list[dict[str, Any]] | None = None) -> str:
        """Lay a job down; its name."""
        name = secrets.token_hex(8)
        part = self.folder / f"{name}{_PART}"
        part.mkdir(mode=0o700)
        try:
            for path in paths or []:
                if path.is_file() and path.stat().st_size <= MOST_BYTES:
                    write_whole(part / path.name, path.read_bytes(), mode=0o600)
            if bytes_:
                write_whole(part / _BYTES, json.dumps(bytes_).encode("utf-8"), mode=0o600)
            part.rename(self.folder / f"{name}{_JOB}")
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return name

    def jobs(self) -> list[Path]:
        """All jobs."""
        return sorted(self.folder.glob(f"*{_JOB}"))

    def finish(self, job: Path, taken: TakenIn) -> None:
        """Say what came of a job, then let it go: killed between, it is done again and takes no effect."""
        if any(path.suffix == ENDING for path in job.iterdir()):
            write_whole(job.with_suffix(_DONE), json.dumps(asdict(taken)).encode("utf-8"), mode=0o600)
        shutil.rmtree(job)

    def wait(self, name: str, seconds: float) -> TakenIn:
        """What came of a job; pending when the node takes longer."""
        done, ends = self.folder / f"{name}{_DONE}", time.monotonic() + seconds
        while not done.exists():
            if time.monotonic() >= ends:
                return TakenIn(is_pending=True)
            time.sleep(_LOOK_SECONDS)
        said = json.loads(done.read_text(encoding="utf-8"))
        done.unlink(missing_ok=True)
        return TakenIn(**{**said, "packets": tuple(said["packets"])})


def _do_job(node: Node, job: Path) -> TakenIn:
    listed = job / _BYTES
    if listed.exists():
        content = listed.read_bytes()
        items = [Spent(**item) for item in json.loads(content)]
        sha256 = hashlib.sha256(content).hexdigest()

        def note(work: Work) -> None:
            if work.inbox.accept("stick", f"bytes:{job.stem}", kind="bytes", sha256=sha256).is_new:
                for item in items:
                    record_spent(work, item)

        node.store.retrying(node.tenant, note)
    return _take_answers(node, job)


def _take_answers(node: Node, folder: Path) -> TakenIn:
    places = node.places
    endpoint = read_endpoint(places.endpoint)
    if endpoint.tenant != node.tenant:
        raise WrongUseError("enrolled since this node was started; stop it and start it again")
    done = import_answers(node.store, endpoint, load_keys(places.keys), Answers(node).handlers(), folder)
    log("stick-taken", packets=len(done.taken), refused=len(done.refused), receipts=len(done.acknowledged))
    node.wake_pump()
    return TakenIn(tuple(done.taken), done.refused, len(done.foreign), len(done.acknowledged), done.received)


@contextmanager
def _own_node(settings: EdgeSettings) -> Iterator[Node | None]:
    """This node, opened for writing; None when another process serves it."""
    try:
        store = open_own_store(settings.places)
    except LockedStoreError:
        yield None
        return
    with store:
        node = stand_in(settings, store)
        store.add_tenant(node.tenant)
        Chores(node, Space(node)).obey_policy()  # what may not leave any more does not leave on a stick either
        take_jobs(node)
        yield node

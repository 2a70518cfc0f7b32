"""Carry the same things on a stick: signed, sealed packets in a folder, for a hospital without a line.

A packet is a case bundle's container with other parts in it: a signed list, every part encrypted to its receiver. What
is in it goes the same way as what comes over the line, so a packet that comes twice, late or half-copied does no harm.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from slideway.bundles.container import Part, iterate_parts, pack_container, read_head
from slideway.bundles.lock import Unlocker, lock_parts
from slideway.core.errors import (
    BlobError,
    BrokenBlobError,
    BrokenBundleError,
    BrokenPacketError,
    ConflictError,
    InvalidReceiptError,
    LineRefusedError,
    LockedBundleError,
    MissingBlobError,
    SlidewayError,
    StoreError,
    UnknownRecordError,
    UnknownTenantError,
)
from slideway.core.files import write_whole
from slideway.registry.staging import FULL
from slideway.store.database import Store
from slideway.store.nodes import NodeState
from slideway.store.outbox import OutboxMessage, OutboxState
from slideway.store.uploads import UploadState
from slideway.store.work import Work
from slideway.sync.bugs import describe_bug, log_bug
from slideway.sync.identity import Endpoint, Keys, check_receipt, decode_key, encode_key
from slideway.sync.mailbox import (
    Delivery,
    Handler,
    accept_messages,
    cut_batches,
    find_messages,
    take_messages,
    write_numbers,
)
from slideway.sync.messages import Message, pack_json, parse_message, parse_messages, unpack_json
from slideway.sync.outgoing import UploadPlan, is_upload, message_of, name_piece, plan_of, put_message, withdraw_tiers
from slideway.sync.pump import ReadRange, note_enough
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Shelf, name_upload
from slideway.sync.tus import metadata_of, read_plan

ENDING = ".swp"
TO_CLOUD, TO_NODE = "to-cloud", "to-node"
_VERSION = 1
PACKET_BYTES = 64 * 2**20  # what a packet holds of a file at most: it is sealed in memory
MOST_BYTES = 2 * PACKET_BYTES  # no packet is so large: such a file is not looked into
_MESSAGES = 64
_RECEIPTS = 5_000
_LEFT_SECONDS = 3600.0
_ANSWER_BYTES = 2**20  # so much stays free on a stick, or the cloud's answer would find no room
_MOST = 2**50
_NAME_LETTERS = 100
_STRANGE = re.compile(r"[^A-Za-z0-9._() -]")
_FOREIGN = "sealed for somebody else"

OnBytes = Callable[[int, int], None]
"""(bytes done, bytes in all) of what is written into a folder."""


@dataclass(frozen=True)
class Newcomer:
    """What a node without a line says of itself when it enrols.

    Attributes:
        tenant: Tenant that its invitation names.
        node: Its id.
        code: One-time code.
        public_key: (base64) Key that it signs with, and has signed this packet with.
        version: That it runs.
        signature: (base64) Its signature over the code.
    """

    tenant: str
    node: str
    code: str
    public_key: str
    version: str
    signature: str


Enrol = Callable[[Newcomer], Sender]
"""Turns an invitation into a node with a key, and says which; an error of the tree refuses it."""


@dataclass(frozen=True)
class Exported:
    """What was written into a folder.

    Attributes:
        packets: Names of the files that are there for the other side, old and new.
        n_bytes: Bytes that were written now.
        left: Things that found no room: they go with the next folder.
        left_bytes: Their bytes.
        missing: Files of which bytes are not here; the status says which.
    """

    packets: tuple[str, ...]
    n_bytes: int
    left: int = 0
    left_bytes: int = 0
    missing: int = 0


@dataclass
class Imported:
    """What came out of a folder.

    Attributes:
        taken: Packets that were taken in, now or before.
        refused: Name of a file to why it was not; the others are not affected.
        foreign: Packets that others can open, and we cannot: one stick serves several nodes.
        acknowledged: Keys of our own that the other side has durably.
        received: Messages that took effect now or before.
        enrolled: Nodes that were enrolled by this, as `tenant/node`.
    """

    taken: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    received: int = 0
    enrolled: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Spent:
    """What a packet cost: for the byte ledger."""

    slide: str
    tier: int
    payload_bytes: int
    overhead_bytes: int


Spend = Callable[[Spent], None]


@dataclass(frozen=True)
class _Packet:
    name: str
    facts: dict[str, Any]
    parts: Mapping[str, bytes]
    signer: bytes


def export_to_folder(
    store: Store,
    endpoint: Endpoint,
    keys: Keys,
    folder: Path,
    read_range: ReadRange,
    *,
    limit_bytes: int = 2**40,
    on_bytes: OnBytes | None = None,
    spend: Spend | None = None,
) -> Exported:
    """Write what waits in a node's outbox as packets, most pressing first; what is there already stays.

    Nothing counts as sent by this: only the cloud's receipts, brought back, end a duty. This node's own packets of
    which nothing waits any more are removed.

    Args:
        store: Of the node; may be open for reading only, when `spend` is given.
        endpoint: Of the cloud.
        keys: Of the node.
        folder: On the stick.
        read_range: Gives bytes of files that leave.
        limit_bytes: Write at most so much: sticks are small.
        on_bytes: Told how far it is.
        spend: Notes what a packet cost; None for the store's byte ledger.

    Raises:
        OSError: The stick is gone or cannot be written; packets that are whole are good. A full one is no error.
    """
    with store.reading(endpoint.tenant) as work:
        rows = work.outbox.find_open(peer="cloud")
    note = spend or (lambda spent: _note_bytes(store, endpoint.tenant, spent))
    facts = {"to": TO_CLOUD, "tenant": endpoint.tenant, "node": endpoint.node, "receiving_key": keys.receiving_key}
    contents = list(_list_content(rows))
    total, done, written, missing = sum(_size(content) for content in contents), 0, 0, 0
    names: list[str] = []
    rest = list(contents)
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        if written >= limit_bytes:
            break
        try:
            packed = _fill(content, facts, read_range)
        except BlobError:
            missing += 1  # it is missing here: the pump and the status say so
            rest.pop(0)
            continue
        try:
            name, n_bytes = _write(folder, *packed, keys, endpoint.receiver, spare_bytes=_ANSWER_BYTES)
        except OSError as error:
            if error.errno not in FULL:
                raise
            break
        rest.pop(0)
        names.append(name)
        written += n_bytes
        if isinstance(content, _Stretch) and n_bytes:
            size = content.end_bytes - content.start_bytes
            note(Spent(content.row.slide_sha256 or "", content.row.tier, size, max(0, n_bytes - size)))
        done += _size(content)
        if on_bytes is not None:
            on_bytes(done, total)
    if not rest and not missing:
        _remove_stale(folder, keys, names)
    return Exported(tuple(names), written, len(rest), sum(_size(content) for content in rest), missing)


def write_enrolment(endpoint: Endpoint, keys: Keys, folder: Path, newcomer: Newcomer) -> str:
    """Write the packet with which a node without a line enrols; name of the file."""
    facts = {"to": TO_CLOUD, "tenant": endpoint.tenant, "node": endpoint.node, "receiving_key": keys.receiving_key}
    said = {"code": newcomer.code, "version": newcomer.version, "signature": newcomer.signature}
    content = json.dumps(said, sort_keys=True).encode("utf-8")
    return _write(folder, facts, {"enrolment": content}, keys, endpoint.receiver)[0]


def import_from_folder(
    store: Store,
    keys: Keys,
    shelf: Shelf,
    handlers: Mapping[str, Handler],
    folder: Path,
    *,
    enrol: Enrol | None = None,
) -> Imported:
    """Take in, at the cloud, what nodes wrote into a folder, and write receipts and messages for them beside it.

    Args:
        store: Of the cloud.
        keys: Of the cloud.
        shelf: Where uploads grow: the same as over the line.
        handlers: What each kind of message does.
        folder: On the stick.
        enrol: Enrols nodes without a line; None to refuse them.

    Raises:
        StoreError: The store cannot write now; do it again, nothing is lost.
    """
    desk = _Desk(store, keys, shelf, handlers, enrol)
    waiting = sorted(folder.glob(f"{TO_CLOUD}-*{ENDING}"))
    while waiting:  # enrolments first, and stretches of one file in their order: go round while one fits
        left = [path for path in waiting if not desk.take(path)]
        if len(left) == len(waiting):
            desk.give_up(left)
            break
        waiting = desk.sort(left)
    desk.write_back(folder)
    return desk.imported


class _Desk:
    """Takes packets in one by one; what is wrong with one is said of that one."""

    def __init__(
        self, store: Store, keys: Keys, shelf: Shelf, handlers: Mapping[str, Handler], enrol: Enrol | None
    ) -> None:
        self.imported = Imported()
        self._store, self._keys, self._shelf, self._handlers, self._enrol = store, keys, shelf, handlers, enrol
        self._receiving_keys = dict[Sender, bytes]()
        self._receipts: dict[Sender, dict[str, str]] = {}
        self._refusals: dict[Sender, dict[str, str]] = {}
        self._starts = dict[Path, int]()
        self._unknown = dict[Path, str]()
        self._spoilt = dict[str, str]()

    def take(self, path: Path) -> bool:
        """Whether this packet is settled; False when something else must come first."""
        try:
            return self._take(path)
        except StoreError:
            raise
        except (SlidewayError, OSError) as error:
            self.imported.refused[_name(path)] = _say(error)
        except Exception as error:  # noqa: BLE001  # whatever somebody wrote onto a stick must not keep the others out
            log_bug("import", error)
            self.imported.refused[_name(path)] = f"cannot be taken in ({describe_bug(error)})"
        return True

    def sort(self, paths: list[Path]) -> list[Path]:
        """In an order in which they fit: each was looked into, and is not to be opened once more for nothing."""
        return sorted(paths, key=lambda path: (self._starts.get(path, 0), path.name))

    def give_up(self, paths: Sequence[Path]) -> None:
        """Nothing that these wait for is there."""
        for path in paths:
            why = self._unknown.get(path, "what comes before it in its file is not here yet")
            self.imported.refused[_name(path)] = why

    def write_back(self, folder: Path) -> None:
        """Receipts, refusals and messages for each node that something came from."""
        for sender, receiving_key in self._receiving_keys.items():
            try:
                _write_back(
                    self._store, self._keys, sender, receiving_key,
                    self._receipts.get(sender, {}), self._refusals.get(sender, {}), folder,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                why = "the stick is full; make room and import again" if _is_full(error) else _say(error)
                self.imported.refused[f"answer for {sender.tenant}/{sender.node}"] = f"not written: {why}"

    def _take(self, path: Path) -> bool:
        packet = _read(path, self._keys.receiving)
        if packet.facts.get("to") != TO_CLOUD:
            raise BrokenPacketError(f"{_name(path)}: for the other direction")
        receiving_key = decode_key(str(packet.facts.get("receiving_key")))
        if "enrolment" in packet.parts:
            self._enrol_newcomer(packet)
        try:
            sender = _identify(self._store, packet)
        except BrokenPacketError as error:
            self._unknown[path] = str(error)
            return False  # its enrolment may lie beside it
        self._receiving_keys[sender] = receiving_key
        if "messages" in packet.parts:
            self._take_messages(sender, packet)
        if "file" in packet.parts and not self._take_file(sender, packet, path):
            self._unknown.pop(path, None)
            return False
        self.imported.taken.append(packet.name)
        return True

    def _enrol_newcomer(self, packet: _Packet) -> None:
        tenant, node = str(packet.facts.get("tenant")), str(packet.facts.get("node"))
        with suppress(BrokenPacketError):
            _identify(self._store, packet)
            return  # it came before
        if self._enrol is None:
            raise BrokenPacketError(f"{packet.name}: nodes are not enrolled here")
        try:
            said = json.loads(packet.parts["enrolment"])
            texts = {name: str(said[name]) for name in ("code", "version", "signature")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BrokenPacketError(f"{packet.name}: its enrolment cannot be read") from error
        newcomer = Newcomer(tenant=tenant, node=node, public_key=encode_key(packet.signer), **texts)
        enrolled = self._enrol(newcomer)  # as the code says, whatever the packet says of itself
        self.imported.enrolled.append(f"{enrolled.tenant}/{enrolled.node}")

    def _take_messages(self, sender: Sender, packet: _Packet) -> None:
        content = unpack_json(packet.parts["messages"])
        try:
            messages = parse_messages(content["messages"])
        except (KeyError, TypeError) as error:
            raise BrokenPacketError(f"{packet.name}: its messages cannot be read") from error
        receipts, refused = accept_messages(
            self._store, sender.tenant, sender.node, messages, self._handlers, self._keys.signing
        )
        self._receipts.setdefault(sender, {}).update(receipts)
        self._refusals.setdefault(sender, {}).update({key: refusal.code for key, refusal in refused.items()})
        if refused:
            codes = ", ".join(sorted({refusal.code for refusal in refused.values()}))
            self.imported.refused[packet.name] = f"{len(refused)} of its {len(messages)} messages: {codes}"

    def _take_file(self, sender: Sender, packet: _Packet, path: Path) -> bool:
        plan, start, n_bytes = _read_stretch(packet)
        name = name_upload(sender, plan)
        if name in self._spoilt:
            self.imported.refused[packet.name] = self._spoilt[name]
            raise BrokenPacketError(self._spoilt[name])
        self._starts[path] = start
        content = packet.parts["file"][:n_bytes]  # a part of a container is never empty, a tier may be
        try:
            found = _take_stretch(self._shelf, sender, plan, start, content)
        except (StoreError, ConflictError):
            raise
        except SlidewayError as error:
            if not isinstance(error, BlobError):
                self._spoilt[name] = f"its file was refused: {error}"
                code = error.refusal if isinstance(error, LineRefusedError) and error.refusal else error.code
                refusals = self._refusals.setdefault(sender, {})
                refusals |= {piece.key: code for piece in plan.pieces}
            raise
        self._receipts.setdefault(sender, {}).update(found or {})
        return found is not None


def import_answers(
    store: Store, endpoint: Endpoint, keys: Keys, handlers: Mapping[str, Handler], folder: Path
) -> Imported:
    """Take in, at the node, the receipts and messages that the cloud wrote into a folder.

    Raises:
        StoreError: The store cannot write now; do it again, nothing is lost.
    """
    imported, ours = Imported(), {"enough": note_enough, **handlers}
    for path in sorted(folder.glob(f"{TO_NODE}-*{ENDING}")):
        try:
            _take_answer(store, endpoint, _read(path, keys.receiving), ours, imported)
        except StoreError:
            raise
        except LockedBundleError:
            imported.foreign.append(_name(path))
        except (SlidewayError, OSError) as error:
            imported.refused[_name(path)] = _say(error)
        except Exception as error:  # noqa: BLE001  # whatever lies on a stick must not keep the others out
            log_bug("import", error)
            imported.refused[_name(path)] = f"cannot be taken in ({describe_bug(error)})"
        else:
            imported.taken.append(_name(path))
    return imported


def _take_answer(
    store: Store, endpoint: Endpoint, packet: _Packet, handlers: Mapping[str, Handler], imported: Imported
) -> None:
    facts = packet.facts
    is_ours = (facts.get("tenant"), facts.get("node")) == (endpoint.tenant, endpoint.node)
    if facts.get("to") != TO_NODE or packet.signer != endpoint.cloud_key or not is_ours:
        raise BrokenPacketError("not from this node's cloud, or for another node")
    content = unpack_json(packet.parts["answer"])
    _note_receipts(store, endpoint, content, imported)
    _take_answers(store, endpoint.tenant, content["messages"], handlers, imported)


@dataclass(frozen=True)
class _Stretch:
    row: OutboxMessage
    plan: UploadPlan
    start_bytes: int
    end_bytes: int


def _list_content(rows: Sequence[OutboxMessage]) -> Iterator[list[Message] | _Stretch]:
    """What goes into packets, in the order of the outbox: batches of messages, stretches of files."""
    messages = [message_of(row) for row in rows if not is_upload(row)]
    for i in range(0, len(messages), _MESSAGES):
        yield messages[i : i + _MESSAGES]
    for row in rows:
        if not is_upload(row):
            continue
        plan = plan_of(row)
        piece = next(piece for piece in plan.pieces if piece.tier == row.tier)
        # At least one packet for each tier: also an empty tier has a receipt.
        for start in range(piece.start_bytes, max(piece.end_bytes, piece.start_bytes + 1), PACKET_BYTES):
            yield _Stretch(row, plan, start, min(piece.end_bytes, start + PACKET_BYTES))


def _size(content: list[Message] | _Stretch) -> int:
    return content.end_bytes - content.start_bytes if isinstance(content, _Stretch) else 0


def _fill(
    content: list[Message] | _Stretch, facts: dict[str, Any], read_range: ReadRange
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Facts and parts of a packet."""
    if not isinstance(content, _Stretch):
        return facts, {"messages": pack_json({"messages": [message.content for message in content]})}
    plan = content.plan
    piece = read_range(plan.sha256, content.start_bytes, content.end_bytes)
    said = {"kind": plan.kind, "sha256": plan.sha256, "slide": plan.slide, "ends": list(plan.ends_bytes)}
    return facts | {"file": {**said, "start": content.start_bytes, "n_bytes": len(piece)}}, {"file": piece}


def _remove_stale(folder: Path, keys: Keys, names: Sequence[str]) -> None:
    """Remove our own packets of which nothing waits any more: all that waits lies in those of these names."""
    for path in folder.glob(f".{TO_CLOUD}-*{ENDING}.*.part"):  # of a stick that was pulled out while it was written
        with suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) > _LEFT_SECONDS:
                path.unlink()
    for path in folder.glob(f"{TO_CLOUD}-*{ENDING}"):
        if path.name in names:
            continue
        with suppress(OSError, BrokenBundleError):
            with path.open("rb") as file:
                head = read_head(file, path.name)
            names_of_parts = {entry.name for entry in head.entries}
            if head.signer == keys.signing.public_bytes and "enrolment" not in names_of_parts:
                path.unlink()


def _read_stretch(packet: _Packet) -> tuple[UploadPlan, int, int]:
    """Which bytes of which file a packet holds, checked as over the line."""
    said = packet.facts.get("file")
    wrong = BrokenPacketError(f"{packet.name}: what it says of its file cannot be read")
    try:
        kind, sha256, slide, ends = (said[name] for name in ("kind", "sha256", "slide", "ends"))  # type: ignore[index]
        start, n_bytes = said["start"], said["n_bytes"]  # type: ignore[index]
        are_numbers = all(type(number) is int and 0 <= number < _MOST for number in (*ends, start, n_bytes))
        if not are_numbers or not all(isinstance(text, str) for text in (kind, sha256, slide)):
            raise wrong
        plan = UploadPlan(kind, sha256, slide, tuple(ends))
        read_plan(metadata_of(plan), plan.length_bytes)
    except (KeyError, TypeError, ValueError, LineRefusedError) as error:
        raise wrong from error
    return plan, start, n_bytes


def _take_stretch(shelf: Shelf, sender: Sender, plan: UploadPlan, start: int, content: bytes) -> dict[str, str] | None:
    """Receipts for what a stretch brought; None when something else of its file must come first."""
    if start:
        known = shelf.find(sender, name_upload(sender, plan))
        if known is None or known.state is UploadState.ENDED:
            return None
    upload = shelf.begin(sender, plan, plan.length_bytes)
    if start > upload.offset_bytes:
        return None
    try:
        new = content[upload.offset_bytes - start :]
        if new and upload.state is UploadState.OPEN:
            upload = shelf.append(upload, upload.offset_bytes, new)
        standing = shelf.settle(sender, upload)
    except (StoreError, ConflictError):
        raise
    except SlidewayError as error:
        if not isinstance(error, BlobError) or isinstance(error, MissingBlobError | BrokenBlobError):
            shelf.end(upload)  # as over the line: nothing of it stays
        raise
    receipts = {name_piece(plan.kind, plan.sha256, tier): text for tier, text in standing.receipts.items()}
    if standing.stop is not None:
        receipts[f"stop:{plan.kind}:{plan.sha256}"] = str(standing.stop)
    return receipts


def _identify(store: Store, packet: _Packet) -> Sender:
    """The enrolled node whose key signed a packet.

    Raises:
        BrokenPacketError: There is none, or it names another.
    """
    tenant, node = packet.facts.get("tenant"), packet.facts.get("node")
    wrong = BrokenPacketError(f"{packet.name}: not signed by an enrolled node that it names; not taken")
    if not isinstance(tenant, str) or not isinstance(node, str):
        raise wrong
    try:
        with store.reading(tenant) as work:
            found = work.nodes.get(node)
    except (UnknownTenantError, UnknownRecordError) as error:
        raise wrong from error
    if found.state is not NodeState.ENROLLED or decode_key(found.public_key) != packet.signer:
        raise wrong
    return Sender(tenant, node, transport="folder")


def _write_back(
    store: Store,
    keys: Keys,
    sender: Sender,
    receiving_key: bytes,
    receipts: Mapping[str, str],
    refused: Mapping[str, str],
    folder: Path,
) -> None:
    """Write all that a node is to hear; as many packets as it takes."""
    with store.reading(sender.tenant) as work:
        deliveries = find_messages(work, sender.node, limit=_RECEIPTS)
    facts = {"to": TO_NODE, "tenant": sender.tenant, "node": sender.node}
    receiver = X25519PublicKey.from_public_bytes(receiving_key)
    codes = {key: code for key, code in refused.items() if key not in receipts}
    for said, why, told in _share_out(receipts, codes, deliveries):
        stops = {key: value for key, value in said.items() if key.startswith("stop:")}
        content = {
            "receipts": {key: value for key, value in said.items() if key not in stops},
            "stops": stops,
            "refused": why,
            "messages": [{"number": item.number, **item.message.content} for item in told],
        }
        _write(folder, facts, {"answer": pack_json(content)}, keys, receiver)


def _share_out(
    receipts: Mapping[str, str], refused: Mapping[str, str], deliveries: Sequence[Delivery]
) -> Iterator[tuple[Mapping[str, str], Mapping[str, str], Sequence[Delivery]]]:
    """Receipts, refusals and messages of each packet: no more than its receiver unpacks."""
    if len(receipts) + len(refused) <= _RECEIPTS:  # one packet also when there is nothing of either
        yield receipts, refused, []
    else:
        for some in _cut(receipts):
            yield some, {}, []
        for some in _cut(refused):
            yield {}, some, []
    for batch in cut_batches(deliveries, most=_MESSAGES):
        yield {}, {}, batch


def _cut(said: Mapping[str, str]) -> Iterator[dict[str, str]]:
    items = list(said.items())
    for i in range(0, len(items), _RECEIPTS):
        yield dict(items[i : i + _RECEIPTS])


def _note_receipts(store: Store, endpoint: Endpoint, content: Mapping[str, Any], imported: Imported) -> None:
    receipts, stops, refused = content["receipts"], content["stops"], content.get("refused", {})

    def note(work: Work) -> list[str]:
        done = []
        for key, receipt in receipts.items():
            row = work.outbox.find(key)
            if row is None or row.state is OutboxState.ACKNOWLEDGED:
                continue
            sha256 = row.blob_sha256 if is_upload(row) else message_of(row).sha256
            check_receipt(
                receipt,
                cloud_key=endpoint.cloud_key,
                tenant=endpoint.tenant,
                node=endpoint.node,
                key=key,
                sha256=sha256 or "",
            )
            work.outbox.mark_acknowledged(key, receipt=receipt)
            done.append(key)
        for key, tier in stops.items():
            _, kind, sha256 = key.split(":")
            withdraw_tiers(work, kind, sha256, from_tier=int(tier), reason="enough")
        for key, code in refused.items():
            row = work.outbox.find(key)
            if row is not None and row.state in (OutboxState.WAITING, OutboxState.SENT):
                work.outbox.mark_failed(key, reason=str(code)[:200])
        return done

    try:
        imported.acknowledged += store.retrying(endpoint.tenant, note)
    except (InvalidReceiptError, ConflictError, ValueError) as error:
        raise BrokenPacketError(str(error)) from error


def _take_answers(
    store: Store, tenant: str, items: Sequence[Any], handlers: Mapping[str, Handler], imported: Imported
) -> None:
    messages = {int(item["number"]): parse_message(item) for item in items}
    taken = take_messages(store, tenant, "cloud", list(messages.values()), handlers)
    numbers = [number for number, message in messages.items() if message.id in taken.ids]
    imported.received += len(numbers)
    if numbers:
        text = write_numbers(numbers)
        store.retrying(tenant, lambda work: _say_taken(work, text))


def _say_taken(work: Work, text: str) -> None:
    """Let the cloud know what was taken; anew when it gives out the same numbers again, as after a restored backup."""
    stem, again = f"taken:{hashlib.sha256(text.encode()).hexdigest()[:32]}", 0
    while (found := work.outbox.find(f"{stem}:{again}")) is not None and found.receipt is not None:
        again += 1
    put_message(work, Message(f"{stem}:{again}", "taken", "", again, {"numbers": text}))


def _write(
    folder: Path,
    facts: dict[str, Any],
    parts: Mapping[str, bytes],
    keys: Keys,
    receiver: X25519PublicKey,
    *,
    spare_bytes: int = 0,
) -> tuple[str, int]:
    """Seal a packet and write it, whole or not at all; (name, bytes written), 0 when it is there already.

    Raises:
        OSError: It cannot be written, or less than `spare_bytes` would stay free.
    """
    said = json.dumps({"slideway_packet": _VERSION, **facts}, sort_keys=True).encode("utf-8")
    plain = [Part("packet", 0, said), *(Part(name, 0, content or b"\0") for name, content in parts.items())]
    digest = hashlib.sha256(keys.signing.public_bytes + b"".join(part.content for part in plain)).hexdigest()
    path = folder / f"{facts['to']}-{digest[:32]}{ENDING}"
    if _is_whole(path):
        return path.name, 0
    locked, lock = lock_parts(plain, receiver)
    packed = pack_container(locked, lock=lock, signer=keys.signing)
    folder.mkdir(parents=True, exist_ok=True)
    if spare_bytes and _free_bytes(folder) < len(packed) + spare_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path.name)
    write_whole(path, packed)
    return path.name, len(packed)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = read_head(file, path.name)
            return len(list(iterate_parts(file, head, path.name))) == len(head.entries)
    except (OSError, BrokenBundleError):
        return False


def _name(path: Path) -> str:
    """A file's name as people are told it: a stick comes from outside, and a terminal obeys some characters."""
    return _STRANGE.sub("?", path.name[:_NAME_LETTERS])


def _say(error: Exception) -> str:
    """Why, in words without a path."""
    if isinstance(error, LockedBundleError):
        return _FOREIGN
    if isinstance(error, OSError):
        return f"the disk does not take or give it ({error.strerror or type(error).__name__})"
    return str(error)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def _read(path: Path, private: X25519PrivateKey) -> _Packet:
    name = _name(path)
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise BrokenPacketError(f"{name}: no file, or larger than any packet")
    file = io.BytesIO(path.read_bytes())
    head = read_head(file, name)
    locked = list(iterate_parts(file, head, name))
    if head.lock is None or head.signer is None or len(locked) < len(head.entries):
        raise BrokenPacketError(f"{name}: not sealed, not signed, or cut off; copy it again")
    unlocker = Unlocker(head.lock, private, name)
    parts = {part.name: unlocker.unlock(i, part).content for i, part in enumerate(locked)}
    try:
        facts = json.loads(parts.pop("packet"))
    except (KeyError, ValueError, RecursionError) as error:
        raise BrokenPacketError(f"{name}: a bundle or another file, not a packet") from error
    if not isinstance(facts, dict) or facts.get("slideway_packet") != _VERSION:
        raise BrokenPacketError(f"{name}: of a newer version; update Slideway")
    if facts.get("file", {}) == {} and "file" in parts:
        raise BrokenPacketError(f"{name}: a file about which nothing is said")
    return _Packet(name, facts, parts, head.signer)


def _note_bytes(store: Store, tenant: str, spent: Spent) -> None:
    store.retrying(tenant, lambda work: record_spent(work, spent))


def record_spent(work: Work, spent: Spent) -> None:
    """Note in the byte ledger what a packet cost."""
    work.bytes.record(spent.slide, spent.tier, "out", spent.payload_bytes, spent.overhead_bytes, "cloud", "folder")

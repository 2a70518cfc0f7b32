"""Carry the same things on a stick: signed, sealed packets in a folder, for a hospital without a line.

A packet is a case bundle's container with other parts in it: a signed list, every part encrypted to its receiver. What
is in it goes the same way as what comes over the line, so a packet that comes twice, late or half-copied does no harm.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from slideway.bundles.container import Part, iterate_parts, pack_container, read_head
from slideway.bundles.lock import Unlocker, lock_parts
from slideway.core.errors import (
    BlobError,
    BrokenBundleError,
    BrokenPacketError,
    ConflictError,
    InvalidReceiptError,
    LockedBundleError,
    SlidewayError,
    StoreError,
    UnknownRecordError,
    UnknownTenantError,
)
from slideway.core.files import write_whole
from slideway.store.database import Store
from slideway.store.nodes import NodeState
from slideway.store.outbox import OutboxMessage, OutboxState
from slideway.store.uploads import UploadState
from slideway.store.work import Work
from slideway.sync.identity import Endpoint, Keys, check_receipt, decode_key
from slideway.sync.mailbox import Handler, accept_messages, next_messages, take_messages, write_numbers
from slideway.sync.messages import Message, pack_json, parse_message, unpack_json
from slideway.sync.outgoing import UploadPlan, is_upload, message_of, name_piece, plan_of, put_message, withdraw_tiers
from slideway.sync.pump import ReadRange, note_enough
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Shelf

ENDING = ".swp"
TO_CLOUD, TO_NODE = "to-cloud", "to-node"
_VERSION = 1
PACKET_BYTES = 64 * 2**20  # what a packet holds of a file at most: it is sealed in memory
_MESSAGES = 64


@dataclass(frozen=True)
class Exported:
    """What was written into a folder.

    Attributes:
        packets: Names of the files that are there for the other side, old and new.
        n_bytes: Bytes that were written now.
    """

    packets: tuple[str, ...]
    n_bytes: int


@dataclass
class Imported:
    """What came out of a folder.

    Attributes:
        taken: Packets that were taken in, now or before.
        refused: Name of a file to why it was not; the others are not affected.
        acknowledged: Keys of our own that the other side has durably.
        received: Messages that took effect now or before.
    """

    taken: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    received: int = 0


@dataclass(frozen=True)
class _Packet:
    name: str
    facts: dict[str, Any]
    parts: Mapping[str, bytes]
    signer: bytes


def export_to_folder(
    store: Store, endpoint: Endpoint, keys: Keys, folder: Path, read_range: ReadRange, *, limit_bytes: int = 2**40
) -> Exported:
    """Write what waits in a node's outbox as packets, most pressing first; what is there already stays.

    Nothing counts as sent by this: only the cloud's receipts, brought back, end a duty.

    Args:
        store: Of the node.
        endpoint: Of the cloud.
        keys: Of the node.
        folder: On the stick.
        read_range: Gives bytes of files that leave.
        limit_bytes: Write at most so much: sticks are small.

    Raises:
        OSError: The stick is full or gone; packets that are whole are good.
    """
    with store.reading(endpoint.tenant) as work:
        rows = work.outbox.find_open(peer="cloud")
    names: list[str] = []
    written = 0
    facts = {"to": TO_CLOUD, "tenant": endpoint.tenant, "node": endpoint.node, "receiving_key": keys.receiving_key}
    for content in _list_content(rows):
        if written >= limit_bytes:
            break
        if isinstance(content, _Stretch):
            plan, row = content.plan, content.row
            try:
                piece = read_range(plan.sha256, content.start_bytes, content.end_bytes)
            except BlobError:
                continue  # it is missing here: the pump and the status say so
            said = {"kind": plan.kind, "sha256": plan.sha256, "slide": plan.slide, "ends": list(plan.ends_bytes)}
            more = {"file": {**said, "start": content.start_bytes, "n_bytes": len(piece)}}
            name, n_bytes = _write(folder, facts | more, {"file": piece}, keys, endpoint.receiver)
            _note_bytes(store, endpoint.tenant, row, len(piece), n_bytes)
        else:
            packed = pack_json({"messages": [message.content for message in content]})
            name, n_bytes = _write(folder, facts, {"messages": packed}, keys, endpoint.receiver)
        names.append(name)
        written += n_bytes
    return Exported(tuple(names), written)


def import_from_folder(
    store: Store, keys: Keys, shelf: Shelf, handlers: Mapping[str, Handler], folder: Path
) -> Imported:
    """Take in, at the cloud, what nodes wrote into a folder, and write receipts and messages for them beside it.

    Args:
        store: Of the cloud.
        keys: Of the cloud.
        shelf: Where uploads grow: the same as over the line.
        handlers: What each kind of message does.
        folder: On the stick.

    Raises:
        StoreError: The store cannot write now; do it again, nothing is lost.
    """
    imported, senders = Imported(), dict[Sender, bytes]()
    receipts: dict[Sender, dict[str, str]] = {}
    waiting = sorted(folder.glob(f"{TO_CLOUD}-*{ENDING}"))
    while waiting:  # stretches of one file come in any order: go round while one fits
        left: list[Path] = []
        for path in waiting:
            packet = _try_read(path, TO_CLOUD, keys.receiving, imported)
            if packet is None:
                continue
            try:
                sender = _identify(store, packet)
                found = _take_packet(store, keys, shelf, handlers, sender, packet)
            except StoreError:
                raise
            except SlidewayError as error:
                imported.refused[packet.name] = str(error)
                continue
            if found is None:
                left.append(path)
                continue
            imported.taken.append(packet.name)
            receipts.setdefault(sender, {}).update(found)
            senders[sender] = decode_key(str(packet.facts["receiving_key"]))
        if len(left) == len(waiting):
            imported.refused |= dict.fromkeys(
                (p.name for p in left), "what comes before it in its file is not here yet"
            )
            break
        waiting = left
    for sender, receiving_key in senders.items():
        _write_back(store, keys, sender, receiving_key, receipts[sender], folder)
    return imported


def import_answers(
    store: Store, endpoint: Endpoint, keys: Keys, handlers: Mapping[str, Handler], folder: Path
) -> Imported:
    """Take in, at the node, the receipts and messages that the cloud wrote into a folder.

    Raises:
        StoreError: The store cannot write now; do it again, nothing is lost.
    """
    imported, ours = Imported(), {"enough": note_enough, **handlers}
    for path in sorted(folder.glob(f"{TO_NODE}-*{ENDING}")):
        packet = _try_read(path, TO_NODE, keys.receiving, imported)
        if packet is None:
            continue
        facts = packet.facts
        if packet.signer != endpoint.cloud_key or (facts.get("tenant"), facts.get("node")) != (
            endpoint.tenant,
            endpoint.node,
        ):
            imported.refused[packet.name] = "not from this node's cloud, or for another node"
            continue
        try:
            content = unpack_json(packet.parts["answer"])
            _note_receipts(store, endpoint, content["receipts"], content["stops"], imported)
            _take_answers(store, endpoint.tenant, content["messages"], ours, imported)
        except StoreError:
            raise
        except (SlidewayError, KeyError, TypeError, AttributeError) as error:
            imported.refused[packet.name] = str(error)
            continue
        imported.taken.append(packet.name)
    return imported


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


def _take_packet(
    store: Store, keys: Keys, shelf: Shelf, handlers: Mapping[str, Handler], sender: Sender, packet: _Packet
) -> dict[str, str] | None:
    """Receipts for what a packet brought; None when something else must come first."""
    receipts: dict[str, str] = {}
    if "messages" in packet.parts:
        content = unpack_json(packet.parts["messages"])
        try:
            messages = [parse_message(item) for item in content["messages"]]
        except (KeyError, TypeError) as error:
            raise BrokenPacketError(f"{packet.name}: its messages cannot be read") from error
        receipts, _ = accept_messages(store, sender.tenant, sender.node, messages, handlers, keys.signing)
    if "file" in packet.parts:
        found = _take_stretch(shelf, sender, packet)
        if found is None:
            return None
        receipts |= found
    return receipts


def _take_stretch(shelf: Shelf, sender: Sender, packet: _Packet) -> dict[str, str] | None:
    said = packet.facts.get("file")
    try:
        plan = UploadPlan(said["kind"], said["sha256"], said["slide"], tuple(said["ends"]))  # type: ignore[index]
        start, n_bytes = int(said["start"]), int(said["n_bytes"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenPacketError(f"{packet.name}: what it says of its file cannot be read") from error
    content = packet.parts["file"][:n_bytes]  # a part of a container is never empty, a tier may be
    upload = shelf.begin(sender, plan, plan.length_bytes)
    if start > upload.offset_bytes:
        return None
    new = content[upload.offset_bytes - start :]
    if new and upload.state is UploadState.OPEN:
        upload = shelf.append(upload, upload.offset_bytes, new)
    standing = shelf.settle(sender, upload)
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
    return Sender(tenant, node)


def _write_back(
    store: Store, keys: Keys, sender: Sender, receiving_key: bytes, receipts: Mapping[str, str], folder: Path
) -> None:
    with store.reading(sender.tenant) as work:
        deliveries = next_messages(work, sender.node)
    stops = {key: value for key, value in receipts.items() if key.startswith("stop:")}
    content = {
        "receipts": {key: value for key, value in receipts.items() if key not in stops},
        "stops": stops,
        "messages": [{"number": item.number, **item.message.content} for item in deliveries],
    }
    facts = {"to": TO_NODE, "tenant": sender.tenant, "node": sender.node}
    receiver = X25519PublicKey.from_public_bytes(receiving_key)
    _write(folder, facts, {"answer": pack_json(content)}, keys, receiver)


def _note_receipts(
    store: Store, endpoint: Endpoint, receipts: Mapping[str, str], stops: Mapping[str, str], imported: Imported
) -> None:
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
        said = Message(f"taken:{hashlib.sha256(text.encode()).hexdigest()[:32]}", "taken", "", 0, {"numbers": text})
        store.retrying(tenant, lambda work: put_message(work, said))


def _write(
    folder: Path, facts: dict[str, Any], parts: Mapping[str, bytes], keys: Keys, receiver: X25519PublicKey
) -> tuple[str, int]:
    """Seal a packet and write it, whole or not at all; (name, bytes written), 0 when it is there already."""
    said = json.dumps({"slideway_packet": _VERSION, **facts}, sort_keys=True).encode("utf-8")
    plain = [Part("packet", 0, said), *(Part(name, 0, content or b"\0") for name, content in parts.items())]
    digest = hashlib.sha256(keys.signing.public_bytes + b"".join(part.content for part in plain)).hexdigest()
    path = folder / f"{facts['to']}-{digest[:32]}{ENDING}"
    if _is_whole(path):
        return path.name, 0
    locked, lock = lock_parts(plain, receiver)
    packed = pack_container(locked, lock=lock, signer=keys.signing)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, packed)
    return path.name, len(packed)


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = read_head(file, path.name)
            return len(list(iterate_parts(file, head, path.name))) == len(head.entries)
    except (OSError, BrokenBundleError):
        return False


def _try_read(path: Path, to: str, private: X25519PrivateKey, imported: Imported) -> _Packet | None:
    """A packet for this side; None when it cannot be read, and why is noted."""
    try:
        packet = _read(path, private)
        if packet.facts.get("to") != to:
            raise BrokenPacketError(f"{path.name}: for the other direction")
    except LockedBundleError:
        imported.refused[path.name] = "sealed for somebody else"
    except (SlidewayError, OSError) as error:
        imported.refused[path.name] = str(error)
    else:
        return packet
    return None


def _read(path: Path, private: X25519PrivateKey) -> _Packet:
    content = path.read_bytes()
    file = io.BytesIO(content)
    head = read_head(file, path.name)
    locked = list(iterate_parts(file, head, path.name))
    if head.lock is None or head.signer is None or len(locked) < len(head.entries):
        raise BrokenPacketError(f"{path.name}: not sealed, not signed, or cut off; copy it again")
    unlocker = Unlocker(head.lock, private, path.name)
    parts = {part.name: unlocker.unlock(i, part).content for i, part in enumerate(locked)}
    try:
        facts = json.loads(parts.pop("packet"))
    except (KeyError, ValueError, RecursionError) as error:
        raise BrokenPacketError(f"{path.name}: a bundle or another file, not a packet") from error
    if not isinstance(facts, dict) or facts.get("slideway_packet") != _VERSION:
        raise BrokenPacketError(f"{path.name}: of a newer version; update Slideway")
    if facts.get("file", {}) == {} and "file" in parts:
        raise BrokenPacketError(f"{path.name}: a file about which nothing is said")
    return _Packet(path.name, facts, parts, head.signer)


def _note_bytes(store: Store, tenant: str, row: OutboxMessage, payload_bytes: int, packet_bytes: int) -> None:
    if packet_bytes:
        slide, overhead = row.slide_sha256 or "", packet_bytes - payload_bytes
        store.retrying(
            tenant,
            lambda work: work.bytes.record(slide, row.tier, "out", payload_bytes, max(overhead, 0), "cloud", "folder"),
        )

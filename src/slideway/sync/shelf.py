"""Where uploads grow: part files in a folder, and in the store how much of each is durably there.

Bytes are written and synced inside the transaction that notes them, so the store is never ahead of the disk, and of two
requests that write the same place one is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from slideway.core.crash import crash_here
from slideway.core.errors import (
    BlobError,
    BrokenBlobError,
    ConflictError,
    LineRefusedError,
    MissingBlobError,
    StoreError,
)
from slideway.core.files import sync_folder
from slideway.registry.keys import SigningKey
from slideway.store.database import Store
from slideway.store.uploads import OpenUploads, Upload, UploadState
from slideway.store.work import Work
from slideway.sync.bugs import log_bug
from slideway.sync.identity import sign_receipt
from slideway.sync.outgoing import Piece, UploadPlan
from slideway.sync.sessions import Sender

KEPT_SECONDS = 30 * 86_400.0  # a line may be gone for weeks; what came before is not to be sent twice
_HASH_BYTES = 2**20
_COPY_BYTES = 2**20
Result = TypeVar("Result")
_QUOTA_WAIT_SECONDS = 60
_MOST_EXPIRED = 10_000  # looked at in one go: more than could fail for ever and stand before the others
_YOUNG_SECONDS = 3600.0  # no transaction lasts so long: a file so old without a row gets none any more


@dataclass(frozen=True)
class Quota:
    """How much may be unfinished at a time; looked at when a new upload begins, so one that is open can always end.

    Attributes:
        node_uploads: Open uploads of one node.
        node_bytes: Bytes in the part files of one node.
        tenant_uploads: Open uploads of all nodes of a tenant.
        tenant_bytes: Bytes in the part files of a tenant.
    """

    node_uploads: int = 1024
    node_bytes: int = 128 * 2**30
    tenant_uploads: int = 16_384
    tenant_bytes: int = 1024 * 2**30

    def check(self, of_node: OpenUploads, of_tenant: OpenUploads) -> None:
        """Let a new upload begin.

        Raises:
            LineRefusedError: Too much is unfinished; others must end, or expire, first.
        """
        if of_node.count >= self.node_uploads or of_tenant.count >= self.tenant_uploads:
            text = (
                f"{of_node.count} uploads of this node, {of_tenant.count} of its tenant are unfinished; end some first"
            )
            raise LineRefusedError(text, status=429, refusal="uploads-too-many", wait_seconds=_QUOTA_WAIT_SECONDS)
        if of_node.n_bytes >= self.node_bytes or of_tenant.n_bytes >= self.tenant_bytes:
            text = f"{of_node.n_bytes:,} bytes of this node are in unfinished uploads; end some first"
            raise LineRefusedError(text, status=507, refusal="uploads-too-large", wait_seconds=_QUOTA_WAIT_SECONDS)


class Intake:
    """What the receiving side does with what arrives; this one takes everything and does nothing.

    A subclass overrides what it needs. An error of the tree refuses the upload for good; an error of the store, or of
    the place for blobs, says that it cannot be done now.
    """

    def keep(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        """Make the first `piece.end_bytes` bytes of the file durable, and verify what can be; twice is once.

        Called outside of any transaction, before `take`. The part file itself is durable as the folder of parts is.
        """

    def take(self, work: Work, sender: Sender, plan: UploadPlan, piece: Piece) -> None:
        """Let a tier that is durably here take effect: once, in the transaction whose commit makes the receipt true."""

    def rescue(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        """The part file is about to go, and the rest will not come: keep what was acknowledged, up to this tier."""

    def stop_at(self, work: Work, sender: Sender, plan: UploadPlan) -> int | None:  # noqa: ARG002  # for subclasses
        """The first tier that is not wanted (any more); None to go on."""
        return None


@dataclass(frozen=True)
class Seen:
    """How one transaction saw an upload.

    Attributes:
        upload: Its row.
        here: Keys of the tiers that took effect.
        stop: First tier that is not wanted; None to go on, or when something is to take effect first.
    """

    upload: Upload
    here: frozenset[str]
    stop: int | None


@dataclass(frozen=True)
class Standing:
    """How an upload stands.

    Attributes:
        upload: Its row.
        receipts: Tier to receipt, for each tier that is durably here.
        stop: First tier that is not wanted; None to go on.
    """

    upload: Upload
    receipts: dict[int, str]
    stop: int | None


class Shelf:
    """Uploads of all tenants on this machine; processes and threads may share it."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        signing: SigningKey,
        intake: Intake | None = None,
        kept_seconds: float = KEPT_SECONDS,
        write: Callable[[BinaryIO, bytes], object] | None = None,
        quota: Quota | None = None,
    ) -> None:
        """Open a shelf.

        Args:
            store: Knows the uploads.
            folder: Of the part files; all processes that share the store's uploads share it.
            signing: Signs receipts.
            intake: What is done with what arrives.
            kept_seconds: An upload that does not grow for so long is thrown away.
            write: Writes bytes to a file; a test puts a full disk here.
            quota: How much may be unfinished.
        """
        self.kept_seconds = kept_seconds
        self.folder = folder
        self._store, self._signing = store, signing
        self._intake = intake or Intake()
        self._write = write or (lambda file, content: file.write(content))
        self._quota = quota or Quota()
        self._synced_folders: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, sender: Sender, plan: UploadPlan | None, length_bytes: int) -> Upload:
        """Begin an upload, or find the one that is there; of a known hash there is one for each node.

        Args:
            sender: Whose it is.
            plan: What it is; None of a file about which nothing was said.
            length_bytes: Its length.

        Raises:
            ConflictError: It was announced with other facts.
            LineRefusedError: It is new, and too much of this node or tenant is unfinished.
        """
        return self._store.retrying(sender.tenant, lambda work: self.begin_in(work, sender, plan, length_bytes)[0])

    def begin_in(self, work: Work, sender: Sender, plan: UploadPlan | None, length_bytes: int) -> tuple[Upload, bool]:
        """As `begin`, inside a transaction; also whether it is new."""
        facts = {} if plan is None else {"kind": plan.kind, "slide": plan.slide, "ends": list(plan.ends_bytes)}
        sha256 = None if plan is None else plan.sha256
        upload_id = secrets.token_hex(20) if plan is None else name_upload(sender, plan)
        found = work.uploads.find(upload_id, lock=True)
        if found is None:
            self._quota.check(*work.uploads.count_open(sender.node))
            with suppress(ConflictError):  # another request began it just now
                begun = work.uploads.begin(
                    upload_id,
                    node=sender.node,
                    within_seconds=self.kept_seconds,
                    length_bytes=length_bytes,
                    sha256=sha256,
                    facts=facts,
                )
                crash_here("tus.after-begin")
                return begun, True
            found = work.uploads.get(upload_id)
        if (found.length_bytes, dict(found.facts)) != (length_bytes, facts):
            raise ConflictError(f"upload {upload_id} was announced with another length or other tiers")
        if found.state is UploadState.ENDED:
            self._quota.check(*work.uploads.count_open(sender.node))
        if found.state is UploadState.ENDED or (found.state is UploadState.OPEN and not self._has_bytes(found)):
            return work.uploads.begin_again(upload_id, within_seconds=self.kept_seconds), False
        return found, False

    def find(self, sender: Sender, upload_id: str) -> Upload | None:
        """The upload of an id, if it is this node's; None otherwise."""
        with self._store.reading(sender.tenant) as work:
            return self.find_in(work, sender, upload_id)

    def find_in(self, work: Work, sender: Sender, upload_id: str, *, lock: bool = False) -> Upload | None:
        """As `find`, inside a transaction; with `lock` nobody else changes it there."""
        found = work.uploads.find(upload_id, lock=lock)
        return found if found is not None and found.node == sender.node else None

    def append(self, upload: Upload, from_bytes: int, content: bytes) -> Upload:
        """Add bytes durably; when this returns, they are on disk and the store knows it.

        Raises:
            ConflictError: The upload is elsewhere, or these are more bytes than it has.
            MissingBlobError: What came before is not on disk any more; it must begin again.
            OSError: The disk does not take them; nothing was noted.
        """
        return self.append_from(upload, from_bytes, io.BytesIO(content), len(content))

    def append_from(self, upload: Upload, from_bytes: int, source: BinaryIO, n_bytes: int) -> Upload:
        """As `append`, of a stream that is copied piece by piece: never all of it in memory."""
        at = source.tell()

        def append(work: Work) -> Upload:
            source.seek(at)
            return self.append_in(work, work.uploads.get(upload.upload_id), from_bytes, source, n_bytes)

        return self.commit(upload.tenant, append)

    def append_in(self, work: Work, held: Upload, from_bytes: int, source: BinaryIO, n_bytes: int) -> Upload:
        """As `append_from`, inside a transaction that holds the upload's row."""
        if held.state is not UploadState.OPEN or held.offset_bytes != from_bytes:
            raise ConflictError(f"upload {held.upload_id} is at byte {held.offset_bytes}, not at {from_bytes}")
        if from_bytes + n_bytes > (held.length_bytes or 0):
            raise ConflictError(f"upload {held.upload_id}: more bytes than its length of {held.length_bytes}")
        if not self._has_bytes(held):
            raise MissingBlobError(f"upload {held.upload_id}: its first bytes are gone; it begins again")
        self._put(self._path(held), from_bytes, source, n_bytes)
        crash_here("tus.after-write")
        return work.uploads.advance(
            held.upload_id,
            from_bytes=from_bytes,
            to_bytes=from_bytes + n_bytes,
            within_seconds=self.kept_seconds,
            held=held,
        )

    def commit(self, tenant: str, do: Callable[[Work], Result]) -> Result:
        """Do something with uploads in one transaction, perhaps in a second try; when this returns, it is durable."""
        result = self._store.retrying(tenant, do)
        crash_here("tus.after-advance")
        return result

    def look(self, tenant: str, do: Callable[[Work], Result]) -> Result:
        """Look at uploads in one transaction."""
        with self._store.reading(tenant) as work:
            return do(work)

    def see(self, work: Work, sender: Sender, upload: Upload) -> Seen:
        """How an upload stands, for `settle`; in a transaction that is needed anyway."""
        plan = plan_of_upload(upload)
        if plan is None:
            return Seen(upload, frozenset(), None)
        whole, here = _whole_pieces(plan, upload), self._find_here(work, upload)
        is_growing = upload.state is UploadState.OPEN and upload.offset_bytes != upload.length_bytes
        if not is_growing or len(here) < len(whole):
            return Seen(upload, here, None)
        return Seen(upload, here, self._intake.stop_at(work, sender, plan))

    def settle(self, sender: Sender, upload: Upload, seen: Seen | None = None) -> Standing:
        """Let every tier that is whole take effect, once, and say how the upload stands; twice is once.

        Args:
            sender: Whose it is.
            upload: As it is now.
            seen: How a transaction saw it just now; None to look.

        Raises:
            BrokenBlobError: All bytes are here, but not with the hash that was announced; they were thrown away.
            SlidewayError: The intake refused it; it was thrown away.
        """
        plan = plan_of_upload(upload)
        if plan is None:
            return Standing(self._finish_nameless(upload), {}, None)
        try:
            upload, here, stop = self._take(sender, plan, seen or self._see_now(sender, upload))
        except FileNotFoundError:  # another request finished it and removed the file
            upload = self._reload(upload)
            if upload.state is UploadState.OPEN:
                raise
            upload, here, stop = self._take(sender, plan, self._see_now(sender, upload))
        if upload.state is UploadState.COMPLETE:
            self._path(upload).unlink(missing_ok=True)
        return Standing(upload, {piece.tier: self._sign(sender, plan, piece) for piece in here}, stop)

    def end(self, upload: Upload) -> None:
        """Give an upload up and free its bytes; what was taken from it stays."""
        self._store.retrying(upload.tenant, lambda work: self._end_in(work, upload))

    def give_up(self, upload: Upload) -> None:
        """As `end`, because its sender asks for it: what was acknowledged is kept first."""
        while not self._rescue_and_end(upload):  # a receipt was given meanwhile: at most once for each tier
            upload = self._reload(upload)

    def remove_expired(self, tenant: str) -> int:
        """Throw away uploads that did not grow for too long, and files that killed processes left; how many uploads.

        What was acknowledged is kept elsewhere first (`Intake.rescue`); where that cannot be done now, they stay. What
        fails of one does not stop the others.
        """
        with self._store.reading(tenant) as work:
            expired = work.uploads.find_expired(limit=_MOST_EXPIRED)
        ended = sum(_fenced(partial(self._rescue_and_end, upload, only_as_is=True)) for upload in expired)
        self._remove_left(tenant)
        return ended

    def _end_in(self, work: Work, upload: Upload) -> None:
        """In the transaction that ends it, not after it: whoever begins it again waits, and keeps its bytes."""
        work.uploads.end(upload.upload_id)
        self._path(upload).unlink(missing_ok=True)

    def _rescue_and_end(self, upload: Upload, *, only_as_is: bool = False) -> bool:
        """Whether it ended; not when a receipt was given since it was rescued, or it is not as it was any more."""
        rescued = self._rescue(upload)

        def end(work: Work) -> bool:
            now = work.uploads.get(upload.upload_id)
            if (only_as_is and now != upload) or self._find_here(work, now) != rescued:
                return False
            self._end_in(work, now)
            return True

        return self._store.retrying(upload.tenant, end)

    def _remove_left(self, tenant: str) -> None:
        """Remove part files of which nothing will come any more.

        A new upload's file is there before its row can be seen, and one that begins again writes before its row says
        so. Hence the row is held while its file goes, and without a row only an old file goes.
        """
        folder = self.folder / tenant
        paths = list(folder.glob("*.part"))
        if not paths:
            return
        with self._store.reading(tenant) as work:
            left = [path for path in paths if _is_left(work.uploads.find(path.stem))]
        if not left:
            return
        now_seconds = _read_clock(folder)
        for path in left:
            _fenced(partial(self._store.retrying, tenant, partial(_remove_one, path, now_seconds)))

    def _rescue(self, upload: Upload) -> frozenset[str]:
        """Before a part file goes: what a receipt was given for stays, in the place that the intake has for it.

        Returns:
            Keys of the tiers that a receipt was given for.
        """
        plan = plan_of_upload(upload)
        if plan is None:
            return frozenset()
        with self._store.reading(upload.tenant) as work:
            here = self._find_here(work, upload)
        taken = [piece for piece in _whole_pieces(plan, upload) if piece.key in here]
        if taken and self._has_bytes(upload):
            self._intake.rescue(Sender(upload.tenant, upload.node), plan, taken[-1], self._path(upload))
        return here

    def _find_here(self, work: Work, upload: Upload) -> frozenset[str]:
        """Keys of its tiers that took effect."""
        plan = plan_of_upload(upload)
        whole = [] if plan is None else _whole_pieces(plan, upload)
        return frozenset(work.inbox.find_known(upload.node, [piece.key for piece in whole]) if whole else ())

    def _see_now(self, sender: Sender, upload: Upload) -> Seen:
        with self._store.reading(sender.tenant) as work:
            return self.see(work, sender, upload)

    def _take(self, sender: Sender, plan: UploadPlan, seen: Seen) -> tuple[Upload, list[Piece], int | None]:
        """Let what is new take effect; the upload as it is then, which pieces are here, and which tier ends it."""
        upload, whole = seen.upload, _whole_pieces(plan, seen.upload)
        here = [piece for piece in whole if piece.key in seen.here]
        new = [piece for piece in whole if piece.key not in seen.here]
        has_all = upload.offset_bytes == upload.length_bytes
        if upload.state is not UploadState.OPEN or (not new and not has_all):
            return upload, here, seen.stop
        if has_all:
            self._verify(upload)
        for piece in new:
            self._intake.keep(sender, plan, piece, self._path(upload))
            crash_here("tus.after-keep")

        def take(work: Work) -> tuple[Upload, int | None]:
            now = work.uploads.get(upload.upload_id)  # held: while a receipt becomes true, nobody throws it away
            if now.state is UploadState.ENDED and not has_all:
                raise ConflictError(f"upload {upload.upload_id} was given up meanwhile; it begins again")
            for piece in new:
                _, is_new = work.inbox.add(
                    sender.node, piece.key, kind=plan.kind, sha256=plan.sha256, sequence=piece.tier, subject=plan.slide
                )
                if is_new:
                    self._intake.take(work, sender, plan, piece)
            if not has_all:
                return upload, self._intake.stop_at(work, sender, plan)
            is_open = now.state is UploadState.OPEN and now.offset_bytes == now.length_bytes
            return (work.uploads.complete(now.upload_id, sha256=plan.sha256, held=now) if is_open else now), None

        settled, stop = self._store.retrying(sender.tenant, take)
        crash_here("tus.after-take")
        return settled, whole, stop

    def _finish_nameless(self, upload: Upload) -> Upload:
        """A file about which nothing was said is kept as it came, under its id, for whoever asked for it."""
        if upload.state is not UploadState.OPEN or upload.offset_bytes != upload.length_bytes:
            return upload
        sha256 = self._hash(upload)
        return self._store.retrying(upload.tenant, lambda work: work.uploads.complete(upload.upload_id, sha256=sha256))

    def _verify(self, upload: Upload) -> None:
        with suppress(FileNotFoundError):
            if self._hash(upload) == upload.sha256:
                return
        if self._reload(upload).state is not UploadState.OPEN:
            return  # another request finished it and removed the file meanwhile
        self.end(upload)
        raise BrokenBlobError(
            f"upload {upload.upload_id}: its bytes do not have the hash that was announced; all of it is sent again"
        )

    def _reload(self, upload: Upload) -> Upload:
        with self._store.reading(upload.tenant) as work:
            return work.uploads.get(upload.upload_id)

    def _hash(self, upload: Upload) -> str:
        digest, left = hashlib.sha256(), upload.length_bytes or 0
        path = self._path(upload)
        if not left and not path.exists():
            return digest.hexdigest()
        with path.open("rb") as file:
            while left and (chunk := file.read(min(_HASH_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest()

    def _put(self, path: Path, at: int, source: BinaryIO, n_bytes: int) -> None:
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b" if is_new else "r+b") as file:
            file.truncate(at)  # what an interrupted request wrote behind the noted place is not ours
            file.seek(at)
            left = n_bytes
            while left and (content := source.read(min(_COPY_BYTES, left))):
                self._write(file, content)
                left -= len(content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
            if path.parent not in self._synced_folders:  # once for each tenant: it is there from then on
                sync_folder(path.parent.parent)
                self._synced_folders.add(path.parent)

    def _has_bytes(self, upload: Upload) -> bool:
        try:
            return self._path(upload).stat().st_size >= upload.offset_bytes
        except FileNotFoundError:
            return upload.offset_bytes == 0

    def _path(self, upload: Upload) -> Path:
        return self.folder / upload.tenant / f"{upload.upload_id}.part"

    def _sign(self, sender: Sender, plan: UploadPlan, piece: Piece) -> str:
        return sign_receipt(self._signing, tenant=sender.tenant, node=sender.node, key=piece.key, sha256=plan.sha256)


def _is_left(found: Upload | None) -> bool:
    """Whether a part file may be one that nobody needs, by its row."""
    if found is None or found.state is UploadState.ENDED:
        return True
    return found.state is UploadState.COMPLETE and bool(found.facts)


def _read_clock(folder: Path) -> float:
    """Now, as the file system of a folder tells it to its files; before all of them where it takes no file."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # full: what has a row can be removed all the same
        return float("-inf")


def _remove_one(path: Path, now_seconds: float, work: Work) -> bool:
    """Remove a part file, unless its row is needed after all or may be about to be seen."""
    found = work.uploads.find(path.stem, lock=True)
    if not _is_left(found) or (found is None and now_seconds - path.stat().st_mtime < _YOUNG_SECONDS):
        return False
    path.unlink(missing_ok=True)
    return True


def _fenced(do: Callable[[], bool]) -> bool:
    """Do something of which one failure must not stop the others; False when it failed: it is tried again later."""
    try:
        return do()
    except (StoreError, BlobError, FileNotFoundError):  # not now, or done meanwhile
        return False
    except Exception as error:  # noqa: BLE001  # whatever is wrong with one, the disk must not fill up with the others
        log_bug("expiry", error)
        return False


def _whole_pieces(plan: UploadPlan, upload: Upload) -> list[Piece]:
    """Tiers all of whose bytes are here."""
    return [piece for piece in plan.pieces if piece.end_bytes <= upload.offset_bytes]


def name_upload(sender: Sender, plan: UploadPlan) -> str:
    """Id of an upload: the same file of the same node is one upload."""
    return hashlib.sha256(f"{sender.tenant}\n{sender.node}\n{plan.kind}\n{plan.sha256}".encode()).hexdigest()[:40]


def plan_of_upload(upload: Upload) -> UploadPlan | None:
    """What an upload was announced as; None when nothing was said."""
    if upload.sha256 is None or "kind" not in upload.facts:
        return None
    facts = upload.facts
    return UploadPlan(facts["kind"], upload.sha256, facts["slide"], tuple(facts["ends"]))

"""Where uploads grow: part files in a folder, and in the store how much of each is durably there.

Bytes are written and synced inside the transaction that notes them, so the store is never ahead of the disk, and of two
requests that write the same place one is refused.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from slideway.core.crash import crash_here
from slideway.core.errors import BrokenBlobError, ConflictError, MissingBlobError
from slideway.core.files import sync_folder
from slideway.registry.keys import SigningKey
from slideway.store.database import Store
from slideway.store.uploads import Upload, UploadState
from slideway.store.work import Work
from slideway.sync.identity import sign_receipt
from slideway.sync.outgoing import Piece, UploadPlan
from slideway.sync.sessions import Sender

KEPT_SECONDS = 30 * 86_400.0  # a line may be gone for weeks; what came before is not to be sent twice
_HASH_BYTES = 2**20


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

    def stop_at(self, work: Work, sender: Sender, plan: UploadPlan) -> int | None:  # noqa: ARG002  # for subclasses
        """The first tier that is not wanted (any more); None to go on."""
        return None


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
    ) -> None:
        """Open a shelf.

        Args:
            store: Knows the uploads.
            folder: Of the part files; all processes that share the store's uploads share it.
            signing: Signs receipts.
            intake: What is done with what arrives.
            kept_seconds: An upload that does not grow for so long is thrown away.
            write: Writes bytes to a file; a test puts a full disk here.
        """
        self.kept_seconds = kept_seconds
        self._store, self._folder, self._signing = store, folder, signing
        self._intake = intake or Intake()
        self._write = write or (lambda file, content: file.write(content))
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, sender: Sender, plan: UploadPlan | None, length_bytes: int) -> Upload:
        """Begin an upload, or find the one that is there; of a known hash there is one for each node.

        Args:
            sender: Whose it is.
            plan: What it is; None of a file about which nothing was said.
            length_bytes: Its length.

        Raises:
            ConflictError: It was announced with other facts.
        """
        facts = {} if plan is None else {"kind": plan.kind, "slide": plan.slide, "ends": list(plan.ends_bytes)}
        sha256 = None if plan is None else plan.sha256
        upload_id = secrets.token_hex(20) if plan is None else name_upload(sender, plan)

        def begin(work: Work) -> Upload:
            found = work.uploads.find(upload_id)
            if found is None:
                with suppress(ConflictError):  # another request began it just now
                    return work.uploads.begin(
                        upload_id,
                        node=sender.node,
                        within_seconds=self.kept_seconds,
                        length_bytes=length_bytes,
                        sha256=sha256,
                        facts=facts,
                    )
                found = work.uploads.get(upload_id)
            if (found.length_bytes, dict(found.facts)) != (length_bytes, facts):
                raise ConflictError(f"upload {upload_id} was announced with another length or other tiers")
            if found.state is UploadState.ENDED or (found.state is UploadState.OPEN and not self._has_bytes(found)):
                return work.uploads.begin_again(upload_id, within_seconds=self.kept_seconds)
            return found

        upload = self._store.retrying(sender.tenant, begin)
        crash_here("tus.after-begin")
        return upload

    def find(self, sender: Sender, upload_id: str) -> Upload | None:
        """The upload of an id, if it is this node's; None otherwise."""
        with self._store.reading(sender.tenant) as work:
            found = work.uploads.find(upload_id)
        return found if found is not None and found.node == sender.node else None

    def append(self, upload: Upload, from_bytes: int, content: bytes) -> Upload:
        """Add bytes durably; when this returns, they are on disk and the store knows it.

        Raises:
            ConflictError: The upload is elsewhere, or these are more bytes than it has.
            MissingBlobError: What came before is not on disk any more; it must begin again.
            OSError: The disk does not take them; nothing was noted.
        """

        def append(work: Work) -> Upload:
            now = work.uploads.get(upload.upload_id)
            if now.state is not UploadState.OPEN or now.offset_bytes != from_bytes:
                raise ConflictError(f"upload {now.upload_id} is at byte {now.offset_bytes}, not at {from_bytes}")
            if from_bytes + len(content) > (now.length_bytes or 0):
                raise ConflictError(f"upload {now.upload_id}: more bytes than its length of {now.length_bytes}")
            if not self._has_bytes(now):
                raise MissingBlobError(f"upload {now.upload_id}: its first bytes are gone; it begins again")
            self._put(self._path(now), from_bytes, content)
            crash_here("tus.after-write")
            to_bytes = from_bytes + len(content)
            return work.uploads.advance(
                now.upload_id, from_bytes=from_bytes, to_bytes=to_bytes, within_seconds=self.kept_seconds
            )

        with self._store.transaction(upload.tenant) as work:
            grown = append(work)
        crash_here("tus.after-advance")
        return grown

    def settle(self, sender: Sender, upload: Upload) -> Standing:
        """Let every tier that is whole take effect, once, and say how the upload stands; twice is once.

        Raises:
            BrokenBlobError: All bytes are here, but not with the hash that was announced; they were thrown away.
            SlidewayError: The intake refused it; it was thrown away.
        """
        plan = plan_of_upload(upload)
        if plan is None:
            return Standing(self._finish_nameless(upload), {}, None)
        whole = [piece for piece in plan.pieces if piece.end_bytes <= upload.offset_bytes]
        if upload.state is UploadState.OPEN and upload.offset_bytes == upload.length_bytes:
            self._verify(upload)
        try:
            upload, here, stop = self._take(sender, upload, plan, whole)
        except FileNotFoundError:  # another request finished it and removed the file
            upload = self._reload(upload)
            if upload.state is UploadState.OPEN:
                raise
            upload, here, stop = self._take(sender, upload, plan, whole)
        if upload.state is UploadState.COMPLETE:
            self._path(upload).unlink(missing_ok=True)
        return Standing(upload, {piece.tier: self._sign(sender, plan, piece) for piece in here}, stop)

    def end(self, upload: Upload) -> None:
        """Give an upload up and free its bytes; what was taken from it stays."""
        self._store.retrying(upload.tenant, lambda work: work.uploads.end(upload.upload_id))
        self._path(upload).unlink(missing_ok=True)

    def remove_expired(self, tenant: str) -> int:
        """Throw away uploads that did not grow for too long, and files that killed processes left; how many uploads."""
        paths = list(
            (self._folder / tenant).glob("*.part")
        )  # first: an upload is in the store before its file is there
        with self._store.reading(tenant) as work:
            expired = work.uploads.find_expired()
            parts = {path: work.uploads.find(path.stem) for path in paths}
        for upload in expired:
            self.end(upload)
        for path, found in parts.items():
            if (
                found is None
                or found.state is UploadState.ENDED
                or (found.state is UploadState.COMPLETE and found.facts)
            ):
                path.unlink(missing_ok=True)
        return len(expired)

    def _take(
        self, sender: Sender, upload: Upload, plan: UploadPlan, whole: list[Piece]
    ) -> tuple[Upload, list[Piece], int | None]:
        """Let what is new take effect; the upload as it is then, which pieces are here, and which tier ends it."""
        is_open = upload.state is UploadState.OPEN
        with self._store.reading(sender.tenant) as work:
            here = [piece for piece in whole if work.inbox.find(sender.node, piece.key) is not None]
            new = [piece for piece in whole if piece not in here]
            if not is_open or (not new and upload.offset_bytes != upload.length_bytes):
                return upload, here, self._intake.stop_at(work, sender, plan) if is_open else None
        for piece in new:
            self._intake.keep(sender, plan, piece, self._path(upload))
            crash_here("tus.after-keep")

        def take(work: Work) -> tuple[Upload, int | None]:
            for piece in new:
                accepted = work.inbox.accept(
                    sender.node, piece.key, kind=plan.kind, sha256=plan.sha256, sequence=piece.tier, subject=plan.slide
                )
                if accepted.is_new:
                    self._intake.take(work, sender, plan, piece)
            now = work.uploads.get(upload.upload_id)
            if now.state is UploadState.OPEN and now.offset_bytes == now.length_bytes:
                now = work.uploads.complete(upload.upload_id, sha256=plan.sha256)
            return now, self._intake.stop_at(work, sender, plan) if now.state is UploadState.OPEN else None

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

    def _put(self, path: Path, at: int, content: bytes) -> None:
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b" if is_new else "r+b") as file:
            file.truncate(at)  # what an interrupted request wrote behind the noted place is not ours
            file.seek(at)
            self._write(file, content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
            sync_folder(path.parent.parent)

    def _has_bytes(self, upload: Upload) -> bool:
        try:
            return self._path(upload).stat().st_size >= upload.offset_bytes
        except FileNotFoundError:
            return upload.offset_bytes == 0

    def _path(self, upload: Upload) -> Path:
        return self._folder / upload.tenant / f"{upload.upload_id}.part"

    def _sign(self, sender: Sender, plan: UploadPlan, piece: Piece) -> str:
        return sign_receipt(self._signing, tenant=sender.tenant, node=sender.node, key=piece.key, sha256=plan.sha256)


def name_upload(sender: Sender, plan: UploadPlan) -> str:
    """Id of an upload: the same file of the same node is one upload."""
    return hashlib.sha256(f"{sender.tenant}\n{sender.node}\n{plan.kind}\n{plan.sha256}".encode()).hexdigest()[:40]


def plan_of_upload(upload: Upload) -> UploadPlan | None:
    """What an upload was announced as; None when nothing was said."""
    if upload.sha256 is None or "kind" not in upload.facts:
        return None
    facts = upload.facts
    return UploadPlan(facts["kind"], upload.sha256, facts["slide"], tuple(facts["ends"]))

"""How much of each upload is durably here, so that it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, func, literal_column, select

from slideway.core.errors import ConflictError, TransitionError
from slideway.store.facet import Facet
from slideway.store.schema import UPLOADS


class UploadState(StrEnum):
    """Where an upload is."""

    OPEN = "open"
    COMPLETE = "complete"
    ENDED = "ended"


@dataclass(frozen=True)
class Upload:
    """One file on its way to us.

    Attributes:
        tenant: Whose it is.
        upload_id: Its name in the address.
        node: Who sends it.
        sha256: Hash that the whole must have; None when not said.
        length_bytes: Its length; None while not said.
        offset_bytes: Bytes that are durably here.
        facts: What the sender said of it.
        state: Where it is.
        expires_ms: Thrown away after this unless it grows.
    """

    tenant: str
    upload_id: str
    node: str
    sha256: str | None
    length_bytes: int | None
    offset_bytes: int
    facts: Mapping[str, Any]
    state: UploadState
    expires_ms: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", UploadState(self.state))


@dataclass(frozen=True)
class OpenUploads:
    """How much is unfinished: `count` uploads, of which `n_bytes` are here."""

    count: int
    n_bytes: int


_COUNT, _SUM = func.count(), func.sum(UPLOADS.c.offset_bytes)
_IS_OF_NODE = UPLOADS.c.node == bindparam("own_node")
_COUNT_OPEN = select(_COUNT.filter(_IS_OF_NODE), _SUM.filter(_IS_OF_NODE), _COUNT, _SUM).where(
    UPLOADS.c.tenant == bindparam("own_tenant"),
    # A word in the statement, so that a prepared one too is planned for the few rows that are open.
    UPLOADS.c.state == literal_column(f"'{UploadState.OPEN.value}'"),
)


class Uploads(Facet):
    """Uploads of a tenant."""

    def begin(
        self,
        upload_id: str,
        *,
        node: str,
        within_seconds: float,
        length_bytes: int | None = None,
        sha256: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Upload:
        """Begin an upload.

        Raises:
            ConflictError: The id is taken.
        """
        now = self._clock()
        upload, is_new = self._add(
            Upload,
            UPLOADS,
            {"upload_id": upload_id},
            node=node,
            sha256=sha256,
            length_bytes=length_bytes,
            facts=dict(facts or {}),
            state=UploadState.OPEN.value,
            expires_ms=now + round(within_seconds * 1000),
            created_ms=now,
            changed_ms=now,
        )
        if not is_new:
            raise ConflictError(f"upload {upload_id} is there already")
        return upload

    def advance(
        self, upload_id: str, *, from_bytes: int, to_bytes: int, within_seconds: float, held: Upload | None = None
    ) -> Upload:
        """Note that more of it is durably here.

        Args:
            upload_id: The upload.
            from_bytes: Where the caller thinks it was.
            to_bytes: Where it is now.
            within_seconds: Thrown away after this unless it grows again.
            held: Its row, when this transaction holds it already.

        Raises:
            ConflictError: It was elsewhere: another request writes it too.
        """
        upload = held or self.get(upload_id)
        if upload.offset_bytes != from_bytes or to_bytes < from_bytes:
            raise ConflictError(
                f"upload {upload_id} is at byte {upload.offset_bytes}, not at {from_bytes}; go on from there"
            )
        if upload.length_bytes is not None and to_bytes > upload.length_bytes:
            raise ConflictError(
                f"upload {upload_id}: {to_bytes} bytes are more than its length of {upload.length_bytes}"
            )
        return self._change_open(upload, offset_bytes=to_bytes, expires_ms=self._clock() + round(within_seconds * 1000))

    def complete(self, upload_id: str, *, sha256: str, held: Upload | None = None) -> Upload:
        """Note that all of it is durably here and has the right hash; twice is once.

        Args:
            upload_id: The upload.
            sha256: Hash of what is here.
            held: Its row, when this transaction holds it already.

        Raises:
            ConflictError: Bytes are missing, or it was to have another hash.
        """
        upload = held or self.get(upload_id)
        if upload.sha256 not in (None, sha256) or upload.length_bytes != upload.offset_bytes:
            raise ConflictError(f"upload {upload_id} is not whole, or not what was announced; send it again")
        if upload.state is UploadState.COMPLETE:
            return upload
        return self._change_open(upload, state=UploadState.COMPLETE.value, sha256=sha256)

    def end(self, upload_id: str) -> Upload:
        """Note that an upload is given up and its bytes are gone; twice is once."""
        upload = self.get(upload_id)
        if upload.state is not UploadState.OPEN:
            return upload
        return self._change_open(upload, state=UploadState.ENDED.value)

    def begin_again(self, upload_id: str, *, within_seconds: float) -> Upload:
        """Take an upload that was given up, or whose bytes were lost, from its first byte again."""
        now = self._clock()
        is_unfinished = self._key(UPLOADS, upload_id=upload_id) & (UPLOADS.c.state != UploadState.COMPLETE.value)
        self._change(
            UPLOADS,
            is_unfinished,
            state=UploadState.OPEN.value,
            offset_bytes=0,
            expires_ms=now + round(within_seconds * 1000),
            changed_ms=now,
        )
        return self.get(upload_id)

    def find(self, upload_id: str, *, lock: bool = False) -> Upload | None:
        """The upload of an id, or None; of this tenant only. With `lock` nobody else changes it in this transaction."""
        return self._find_key(Upload, UPLOADS, lock=lock, upload_id=upload_id)

    def get(self, upload_id: str) -> Upload:
        """The upload of an id; of this tenant only."""
        return self._get(Upload, UPLOADS, upload_id=upload_id)

    def count_open(self, node: str) -> tuple[OpenUploads, OpenUploads]:
        """What is unfinished: of a node, and of all nodes of this tenant."""
        row = self._connection.execute(_COUNT_OPEN, {"own_tenant": self._own, "own_node": node}).one()
        return OpenUploads(int(row[0]), int(row[1] or 0)), OpenUploads(int(row[2]), int(row[3] or 0))

    def find_expired(self, *, limit: int = 100) -> list[Upload]:
        """Open uploads whose time is over, oldest first; the caller removes their bytes and ends them."""
        where = [UPLOADS.c.state == UploadState.OPEN.value, UPLOADS.c.expires_ms <= self._clock()]
        return self._list(Upload, UPLOADS, *where, order=[UPLOADS.c.expires_ms.asc()], limit=limit)

    def _change_open(self, upload: Upload, **values: Any) -> Upload:
        here = {
            "upload_id": upload.upload_id,
            "state": UploadState.OPEN.value,
            "offset_bytes": upload.offset_bytes,
        }
        changed = self._replace(Upload, UPLOADS, here, changed_ms=self._clock(), **values)
        if changed is None:
            raise TransitionError(f"upload {upload.upload_id} is {upload.state} and takes nothing more")
        return changed

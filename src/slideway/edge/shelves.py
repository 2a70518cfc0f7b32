"""The node's own store and its shelf of files that leave."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from slideway.core.errors import BlobError, LockedStoreError, MissingBlobError
from slideway.core.files import write_whole
from slideway.edge.settings import Places
from slideway.store.database import Store, open_store

ALONE = "alone"
"""Tenant of a node that is not enrolled yet."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def open_own_store(places: Places, *, read_only: bool = False) -> Store:
    """Open the node's store.

    Raises:
        LockedStoreError: Another process serves from this folder.
    """
    try:
        return open_store(places.store_url, read_only=read_only)
    except LockedStoreError as error:
        raise LockedStoreError(
            f"{error}. Another `slideway edge` runs on {places.folder.name}: only one may; look at it with "
            "`slideway edge status`, or stop it first"
        ) from error


class Outgoing:
    """Files that leave, whole and durable or not there, each named by its hash.

    A folder of the node's own rather than `store.blobs`: only one process writes here, the pump reads ranges of it, and
    what no duty names is swept at the start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes) -> str:
        """Keep a file; when this returns it is durably there. Its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._folder / sha256
        if not path.exists():
            write_whole(path, content)
        return sha256

    def read_range(self, sha256: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file.

        Raises:
            MissingBlobError: It is not there.
            BlobError: It is shorter than that.
        """
        try:
            with self._find(sha256).open("rb") as file:
                file.seek(start)
                found = file.read(end - start)
        except OSError as error:
            raise MissingBlobError(f"outgoing {sha256[:12]}: not there; read the slide again") from error
        if len(found) != end - start:
            raise BlobError(f"outgoing {sha256[:12]}: shorter than it was; check the disk")
        return found

    def has(self, sha256: str) -> bool:
        """It is there."""
        return self._find(sha256).exists()

    def remove(self, sha256: str) -> None:
        """Remove a file; one that is not there is removed already."""
        self._find(sha256).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str]) -> int:
        """Remove files that no duty names and what was half-written, before anything writes here; how many."""
        swept = 0
        for path in list(self._folder.iterdir()):
            if path.name not in keep:
                path.unlink(missing_ok=True)
                swept += 1
        return swept

    def _find(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise MissingBlobError("outgoing: no hash")
        return self._folder / sha256

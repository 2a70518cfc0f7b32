"""Bytes by their hash, in a folder or an object store: whole and verified, or not there."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slideway.core.errors import BlobError, BrokenBlobError, MissingBlobError, WrongUseError
from slideway.core.files import sync_file, sync_folder
from slideway.store.nodes import TENANT_NAME

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK_BYTES = 5 << 20  # the least that S3 takes as a part
PARTS_AT_ONCE = 4
RETRIES = 4
LEFTOVER_SECONDS = 86_400
_STAGING = "staging"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def open_blobs(
    url: str, *, endpoint: str = "", region: str = "us-east-1", access_key_id: str = "", secret_access_key: str = ""
) -> Blobs:
    """Open a place for blobs.

    Args:
        url: `file:///folder`, `s3://bucket/folder` or `memory:///`.
        endpoint: URL of an S3 server that is not Amazon's; `http://` only where the line is private.
        region: Of the bucket.
        access_key_id: For S3; when empty, from the environment (`AWS_ACCESS_KEY_ID`) or the machine's role.
        secret_access_key: Likewise (`AWS_SECRET_ACCESS_KEY`).

    Raises:
        BlobError: The folder cannot be made.
    """
    from obstore.store import LocalStore, MemoryStore

    scheme = urlsplit(url).scheme
    if scheme == "file":
        folder = Path(url2pathname(urlsplit(url).path))
        try:
            (folder / _STAGING).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BlobError(f"{folder.name}: the folder for blobs cannot be made ({error.strerror})") from error
        _remove_leftovers(folder / _STAGING)
        return Blobs(LocalStore(folder), folder=folder)
    if scheme == "memory":
        return Blobs(MemoryStore(), folder=None)
    if scheme != "s3":
        raise WrongUseError("blobs are in file:///folder, s3://bucket/folder or memory:///")
    keys = {"endpoint": endpoint, "access_key_id": access_key_id, "secret_access_key": secret_access_key}
    return Blobs(_open_s3(url, region, {name: value for name, value in keys.items() if value}), folder=None)


def _open_s3(url: str, region: str, keys: dict[str, str]) -> ObjectStore:
    from obstore.store import S3Store

    return S3Store.from_url(
        url,
        region=region,
        client_options={"allow_http": keys.get("endpoint", "").startswith("http://"), "connect_timeout": "10s"},
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=60)},
        **keys,  # type: ignore[arg-type]
    )


class Blobs:
    """Blobs of all tenants; the same bytes of two tenants are two blobs."""

    def __init__(self, place: ObjectStore, *, folder: Path | None) -> None:
        self._place, self._folder = place, folder
        self._synced_folders: set[Path] = set()

    def put(self, tenant: str, source: Path | bytes, sha256: str) -> None:
        """Keep bytes under their hash: when this returns they are durably there, before that they cannot be seen.

        Bytes that are there already are not written again.

        Raises:
            BrokenBlobError: The bytes have another hash; nothing was kept.
            BlobError: The place is full or does not answer.
        """
        key = _key(tenant, sha256)
        if isinstance(source, bytes) and hashlib.sha256(source).hexdigest() != sha256:
            raise _broken(sha256)
        if self.exists(tenant, sha256):
            return
        if self._folder is None:
            # An object store shows an object only when all of it is there.
            self._write(key, source, sha256)
            return
        aside = f"{_STAGING}/{secrets.token_hex(16)}"
        try:
            self._write(aside, source, sha256)
            self._show(aside, key)
        finally:
            (self._folder / aside).unlink(missing_ok=True)

    def get(self, tenant: str, sha256: str) -> bytes:
        """All bytes of a blob, verified.

        Raises:
            MissingBlobError: It is not there.
            BrokenBlobError: The bytes that are there have another hash.
        """
        return b"".join(self.stream(tenant, sha256))

    def get_range(self, tenant: str, sha256: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a blob, as they lie there: whoever puts them together checks the hash of the whole.

        Raises:
            MissingBlobError: It is not there.
            BrokenBlobError: It is shorter than that.
        """
        import obstore

        if start == end:
            return b""
        with _in_our_words(sha256):
            found = bytes(obstore.get_range(self._place, _key(tenant, sha256), start=start, end=end))
        if len(found) != end - start:
            raise _broken(sha256)
        return found

    def stream(self, tenant: str, sha256: str) -> Iterator[bytes]:
        """The bytes of a blob in chunks; the last one comes only when all had the right hash.

        Raises:
            MissingBlobError: It is not there.
            BrokenBlobError: The bytes that are there have another hash.
        """
        import obstore

        with _in_our_words(sha256):
            found = obstore.get(self._place, _key(tenant, sha256))
            chunks = (bytes(chunk) for chunk in found.stream(min_chunk_size=CHUNK_BYTES))
            yield from _verified(chunks, sha256)

    def exists(self, tenant: str, sha256: str) -> bool:
        """It is there."""
        try:
            self.size_bytes(tenant, sha256)
        except MissingBlobError:
            return False
        return True

    def size_bytes(self, tenant: str, sha256: str) -> int:
        """Length of a blob.

        Raises:
            MissingBlobError: It is not there.
        """
        import obstore

        with _in_our_words(sha256):
            return int(obstore.head(self._place, _key(tenant, sha256))["size"])

    def delete(self, tenant: str, sha256: str) -> None:
        """Remove a blob; one that is not there is removed already."""
        import obstore

        try:
            with _in_our_words(sha256):
                obstore.delete(self._place, _key(tenant, sha256))
        except MissingBlobError:
            return

    def _write(self, at: str, source: Path | bytes, sha256: str) -> None:
        import obstore

        with _in_our_words(sha256):
            if isinstance(source, bytes):
                obstore.put(self._place, at, source)
                return
            chunks = _verified(_read(source), sha256)
            obstore.put(
                self._place, at, chunks, use_multipart=True, chunk_size=CHUNK_BYTES, max_concurrency=PARTS_AT_ONCE
            )

    def _show(self, aside: str, key: str) -> None:
        """Rename what was written aside to its key, durably: obstore itself does not sync."""
        import obstore

        assert self._folder is not None
        sync_file(self._folder / aside)
        with _in_our_words(key):
            obstore.rename(self._place, aside, key)
        parent = (self._folder / key).parent
        sync_folder(parent)
        if parent not in self._synced_folders:  # once: from then on it is there
            sync_folder(parent.parent)
            sync_folder(self._folder)
            self._synced_folders.add(parent)


def _key(tenant: str, sha256: str) -> str:
    """Where a blob is: under its tenant, spread over 256 folders."""
    if not TENANT_NAME.fullmatch(tenant) or tenant == _STAGING or not _SHA256.fullmatch(sha256):
        raise WrongUseError("a blob has a tenant's plain name and a sha256 in hex")
    return f"{tenant}/{sha256[:2]}/{sha256}"


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _verified(chunks: Iterable[bytes], sha256: str) -> Iterator[bytes]:
    """Pass chunks on, the last one only when all of them have the hash."""
    digest, held = hashlib.sha256(), b""
    for chunk in chunks:
        digest.update(chunk)
        if held:
            yield held
        held = chunk
    if digest.hexdigest() != sha256:
        raise _broken(sha256)
    yield held


def _broken(sha256: str) -> BrokenBlobError:
    return BrokenBlobError(f"blob {sha256[:12]}: these bytes have another hash; they were not taken")


def _remove_leftovers(staging: Path) -> None:
    """Remove what killed processes left half-written; not what another process is writing now."""
    for path in staging.iterdir():
        if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
            path.unlink(missing_ok=True)


@contextmanager
def _in_our_words(sha256: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise MissingBlobError(f"blob {sha256[:12]}: not there; ask for it again") from error
    except (BaseError, OSError) as error:
        is_full = "No space left" in str(error) or "os error 28" in str(error)
        why = (
            "the disk is full; free some space"
            if is_full
            else f"the place for blobs does not answer ({type(error).__name__})"
        )
        raise BlobError(f"blob {sha256[:12]}: {why}") from error

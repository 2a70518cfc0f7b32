"""One process writes an embedded store: a lock that the operating system takes back when the process dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slideway.core.errors import LockedStoreError, UnreachableStoreError

_PLACE = 1 << 30  # Windows locks bytes: one far behind the text, so that others can read the process id


class WriterLock:
    """Held from opening to `release`; also lost, never left behind, when the process is killed."""

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(f"{store.name}.lock")
        try:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UnreachableStoreError(
                f"{store.name}: its folder is not there or cannot be written ({error.strerror}); make it, or choose "
                "another"
            ) from error
        if not _lock(self._handle):
            holder = os.read(self._handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._handle)
            raise LockedStoreError(
                f"{store.name}: process {holder} has this store open for writing; stop it first, or open read-only"
            )
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{os.getpid()}\n".encode("ascii"))

    def release(self) -> None:
        """Let the next process write; the file stays, so that two never hold different files of one name."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _lock(handle: int) -> bool:
    """Take the lock without waiting; False when another has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _PLACE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""What a database's own errors mean in our words: full, busy, corrupt, unreachable, contradicting."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError

from slideway.core.errors import (
    BusyStoreError,
    ConflictError,
    CorruptStoreError,
    FullStoreError,
    SlidewayError,
    StoreError,
    UnreachableStoreError,
)

# Classes and codes of PostgreSQL, https://www.postgresql.org/docs/current/errcodes-appendix.html
_BUSY = {"40001", "40P01", "55P03"}  # serialization_failure, deadlock_detected, lock_not_available
_FULL = {"53100"}  # disk_full
_CORRUPT = {"XX001", "XX002"}  # data_corrupted, index_corrupted
_GONE = ("08", "57P")  # connection exceptions; operator intervention (shutdown, crash, starting up)


@contextmanager
def in_our_words(name: str) -> Iterator[None]:
    """Raise a database's error as ours; one that we cannot answer goes through as it is.

    Args:
        name: Of the store, for the message: a file's name or a database's, never a password.
    """
    try:
        yield
    except DBAPIError as error:
        ours = translate(error, name)
        if ours is None:
            raise
        raise ours from error
    except sqlite3.Error as error:  # what the driver says while it connects, before SQLAlchemy can wrap it
        ours = _by_sqlite_code(getattr(error, "sqlite_errorcode", 0) & 0xFF, name)
        if ours is None:
            raise
        raise ours from error


def translate(error: DBAPIError, name: str) -> SlidewayError | None:
    """Our error for a database's, or None when it says nothing that a caller could answer."""
    cause = error.orig
    found: SlidewayError | None
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        found = _by_sqlite_code(code, name)
    else:
        found = _by_sqlstate(str(getattr(cause, "sqlstate", None) or ""), name)
        if found is None and (error.connection_invalidated or getattr(cause, "sqlstate", "") is None):
            found = _unreachable(name)
    if found is None and isinstance(error, IntegrityError):
        return ConflictError(f"{name}: refused by the database's own rules: {_first_line(cause)}")
    return found


def _by_sqlite_code(code: int, name: str) -> StoreError | None:
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return FullStoreError(
            f"{name}: the disk is full or does not take what is written; nothing of this was written, and what was "
            "written before is kept; free some space and try again"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyStoreError(f"{name}: another transaction holds what this one needs; try again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptStoreError(f"{name}: the file is damaged; stop, keep it, and start from a backup")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return UnreachableStoreError(f"{name}: the file cannot be opened for this; check the folder and its rights")
    return None


def _by_sqlstate(state: str, name: str) -> StoreError | None:
    if state in _FULL:
        return FullStoreError(
            f"{name}: the database's disk is full; nothing of this was written; free some space there"
        )
    if state in _BUSY:
        return BusyStoreError(f"{name}: another transaction holds what this one needs; try again")
    if state in _CORRUPT:
        return CorruptStoreError(f"{name}: the database says that its files are damaged; stop, and restore a backup")
    if state.startswith(_GONE):
        return _unreachable(name)
    return None


def _first_line(cause: BaseException | None) -> str:
    """The rule that was broken; PostgreSQL's second line would repeat the row."""
    return str(cause).strip().splitlines()[0] if str(cause or "").strip() else type(cause).__name__


def _unreachable(name: str) -> UnreachableStoreError:
    return UnreachableStoreError(
        f"{name}: the database does not answer; whether the last step was kept shows when it is done again"
    )

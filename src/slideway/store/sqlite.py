"""The embedded database: one file, one writing process, safe against loss of power."""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from slideway.core.errors import FullStoreError, UnreachableStoreError, WrongUseError
from slideway.core.files import sync_file, sync_folder
from slideway.store.place import Place, nothing
from slideway.store.writer_lock import WriterLock

BUSY_MS = 10_000
_COMPANIONS = ("-wal", "-shm", "-journal")


def open_place(address: URL, *, read_only: bool) -> Place:
    """Open a file, made when it is not there; the writing process is the only one.

    Raises:
        LockedStoreError: Another process writes it.
        UnreachableStoreError: The folder is not there, or, to look only, the file.
    """
    if not address.database or address.database == ":memory:":
        raise WrongUseError("a store needs a file: sqlite:///folder/slideway.db")
    path = Path(address.database).absolute()
    if read_only and not path.is_file():
        raise UnreachableStoreError(f"{path.name}: no such store; check the path")
    lock = None if read_only else WriterLock(path)
    if not read_only:
        _make_private(path)
    return Place(
        engine=_make_engine(path, read_only=read_only),
        name=path.name,
        reading_options={},
        begin=nothing,
        check_role=nothing,
        back_up=partial(_back_up, path),
        take_turns=nothing,
        set_aside=None if read_only else partial(_set_aside, path),
        release=nothing if lock is None else lock.release,
    )


def _make_private(path: Path) -> None:
    """Only this user may read what is in it; SQLite gives its companions the rights of the file.

    Source: https://www.sqlite.org/src/file/src/os_unix.c, `findCreateFileMode`.
    """
    try:
        if not path.exists():  # closing a file that SQLite has open in this process would lose its locks
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if os.name == "posix":
            for file in (path, *(path.with_name(path.name + ending) for ending in _COMPANIONS)):
                if file.exists() and file.stat().st_mode & 0o077:
                    file.chmod(0o600)  # of an older Slideway
    except OSError:
        return  # the database itself says what is wrong, in its own words


def _make_engine(path: Path, *, read_only: bool) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), pool_size=8, max_overflow=8)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: object) -> None:
        # We begin transactions ourselves: the driver would begin them late, and not immediate.
        connection.isolation_level = None
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
        for setting in (
            "synchronous = FULL",
            "fullfsync = ON",  # macOS: fsync alone leaves it in the disk's cache
            "checkpoint_fullfsync = ON",
            "foreign_keys = ON",
            "recursive_triggers = ON",  # else INSERT OR REPLACE passes by the triggers against DELETE
            f"busy_timeout = {BUSY_MS}",
        ):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("slideway_writes", False) and not read_only
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _back_up(path: Path, schema: tuple[int, int]) -> None:
    """Write a compact copy beside the file, checked and on disk before anything is migrated."""
    major, minor = schema
    number = 1
    while (copy := path.with_name(f"{path.name}.backup-{major}.{minor}-{number}")).exists():
        number += 1
    source = sqlite3.connect(path, isolation_level=None)
    try:
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT, 0o600))  # an empty file is taken, with its rights
        source.execute("VACUUM INTO ?", (str(copy),))
        check = sqlite3.connect(copy)
        try:
            is_sound = check.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        finally:
            check.close()
    except (sqlite3.Error, OSError) as error:
        copy.unlink(missing_ok=True)
        raise FullStoreError(
            f"{path.name}: the backup before the migration failed ({error}); nothing was migrated; free some space"
        ) from error
    finally:
        source.close()
    if not is_sound:
        raise FullStoreError(f"{path.name}: the backup {copy.name} is not sound; nothing was migrated; check the disk")
    sync_file(copy)
    sync_folder(copy.parent)


def _set_aside(path: Path, at_ms: int) -> str:
    """Rename a damaged file, and what belongs to it, to a name with its date; the new name."""
    date = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    number = 0
    while (aside := path.with_name(f"{path.name}.corrupt-{date}" + (f"-{number}" if number else ""))).exists():
        number += 1
    path.rename(aside)
    for ending in _COMPANIONS:
        companion = path.with_name(path.name + ending)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + ending))
    sync_folder(path.parent)
    return aside.name

"""The cloud's database: row-level security keeps tenants apart even when a query forgets to."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from slideway.core.errors import UnsafeRoleError, WrongUseError
from slideway.store.place import Place, nothing

# Commits reach the disk before they are told; nobody waits for a lock for ever.
SETTINGS = "-c synchronous_commit=on -c lock_timeout=15s -c idle_in_transaction_session_timeout=120s"
_SAY_TENANT = text("SELECT set_config('slideway.tenant', :tenant, true)")
_IDLE_SECONDS = 1.0
_MIGRATING = 0x51D3  # any number that nobody else takes for an advisory lock


def open_place(address: URL, *, backup: Callable[[], None] | None, allow_without_backup: bool) -> Place:
    """Open a database of a running server."""
    if importlib.util.find_spec("psycopg") is None:
        raise WrongUseError("a store in PostgreSQL needs its driver: pip install 'slideway[cloud]'")
    engine = create_engine(
        address,
        pool_size=10,
        max_overflow=20,
        connect_args={"options": SETTINGS, "connect_timeout": 10},
    )
    _ask_idle_connections(engine)
    has_backup = backup is not None or allow_without_backup
    return Place(
        engine=engine,
        name=address.database or "postgresql",
        reading_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
        begin=_begin,
        check_role=_check_role,
        back_up=(lambda _: backup() if backup else None) if has_backup else None,
        take_turns=_take_turns,
        set_aside=None,
        release=nothing,
    )


def _ask_idle_connections(engine: Engine) -> None:
    """Let a server that was restarted cost a query, not an error; but ask no busy connection before each transaction.

    As SQLAlchemy's `pool_pre_ping`, of connections that lay for a while.
    """

    def note(_: Any, record: ConnectionPoolEntry | None) -> None:
        if record is not None:
            record.info["idle_since"] = time.monotonic()

    def ask(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        since = record.info.get("idle_since", time.monotonic())
        if time.monotonic() - since < _IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ask)


def _begin(connection: Connection, tenant: str) -> None:
    """Say whose transaction it is; the database forgets it at its end."""
    connection.execute(_SAY_TENANT, {"tenant": tenant})


def _check_role(connection: Connection) -> None:
    found = connection.execute(
        text("SELECT rolsuper OR rolbypassrls AS is_unsafe FROM pg_roles WHERE rolname = current_user")
    ).scalar()
    if found:
        raise UnsafeRoleError(
            "the database role is a superuser or may bypass row-level security: tenants would not be kept apart; "
            "connect as a role made by CREATE ROLE … LOGIN NOSUPERUSER NOBYPASSRLS that owns the database"
        )


def _take_turns(connection: Connection) -> None:
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATING})

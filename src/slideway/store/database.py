"""Open a store and work in it by transactions: one class over SQLite and PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from slideway.core.errors import (
    BusyStoreError,
    CorruptStoreError,
    NewerStoreError,
    OlderStoreError,
    StoreError,
    UnknownTenantError,
    UnreachableStoreError,
    WrongUseError,
)
from slideway.store import postgresql, sqlite
from slideway.store.facet import Clock
from slideway.store.faults import in_our_words
from slideway.store.nodes import TENANT_NAME
from slideway.store.place import Place
from slideway.store.schema import ALL_TENANTS, SCHEMA, TENANTS, VERSION
from slideway.store.work import Work, WorkOfAll

WAIT_FOR_WRITER_SECONDS = 30.0
RETRY_AFTER_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0)
Result = TypeVar("Result")


def now_ms() -> int:
    """UTC now, in milliseconds."""
    return time.time_ns() // 1_000_000


def open_store(
    url: str,
    *,
    clock: Clock = now_ms,
    migrate: bool = True,
    read_only: bool = False,
    backup: Callable[[], None] | None = None,
    allow_without_backup: bool = False,
) -> Store:
    """Open a store, make it when it is not there, and bring it up to date.

    Args:
        url: `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql+psycopg://user@host/database`.
        clock: Gives UTC in milliseconds.
        migrate: Make a store that is not there, and bring an older one up to date after a backup; otherwise refuse.
        read_only: Look only: takes no lock, makes nothing, migrates nothing.
        backup: Backs a PostgreSQL database up before it is migrated; SQLite is always backed up beside the file.
        allow_without_backup: Migrate PostgreSQL without `backup`: the operator has one from `pg_dump`.

    Raises:
        NewerStoreError: A newer major version wrote it.
        OlderStoreError: It is older and may not be migrated here.
        LockedStoreError: Another process has it open for writing.
        CorruptStoreError: The file is damaged; it was set aside with its date.
        UnsafeRoleError: The PostgreSQL role could read across tenants.
    """
    address = _read_url(url)
    if address.get_backend_name() == "sqlite":
        place = sqlite.open_place(address, read_only=read_only)
    else:
        place = postgresql.open_place(address, backup=backup, allow_without_backup=allow_without_backup)
    store = Store(place, clock=clock, read_only=read_only)
    try:
        _prepare(store, migrate=migrate and not read_only)
    except CorruptStoreError as error:
        place.engine.dispose()
        aside = place.set_aside(clock()) if place.set_aside else ""
        store.close()
        if not aside:
            raise
        raise CorruptStoreError(
            f"{place.name}: the file is damaged; it was set aside as {aside}, unchanged; put the last backup "
            "in its place, or start again to begin an empty store"
        ) from error
    except BaseException:
        store.close()
        raise
    return store


class Store:
    """An open store; threads may share it.

    Attributes:
        name: Of its file or database, for messages.
    """

    def __init__(self, place: Place, *, clock: Clock, read_only: bool) -> None:
        self.name = place.name
        self._place, self._clock, self._read_only = place, clock, read_only
        self._known_tenants: set[str] = set()
        # Threads of one process queue here rather than poll the file's lock.
        self._turn = Lock()
        self._takes_turns = place.engine.dialect.name == "sqlite"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """Connections to the database, for tests and inspection; everything else goes through a transaction."""
        return self._place.engine

    def add_tenant(self, tenant: str, *, name: str = "") -> None:
        """Add a tenant; one that is there stays as it is.

        Args:
            tenant: Lower-case letters, digits and hyphens, at most 63.
            name: For people to read.
        """
        if not TENANT_NAME.fullmatch(tenant):
            raise WrongUseError(f"tenant {tenant!r}: 1 to 63 lower-case letters, digits and hyphens")
        with self._begin(tenant, writes=True) as connection:
            if not _has_tenant(connection, tenant):
                connection.execute(TENANTS.insert().values(tenant=tenant, name=name, created_ms=self._clock()))

    @contextmanager
    def transaction(self, tenant: str) -> Iterator[Work]:
        """Work for one tenant: all of it is kept when the block ends, none when an error leaves it.

        Raises:
            UnknownTenantError: There is no such tenant.
            BusyStoreError: Another transaction was in the way; nothing was written, do it again.
            FullStoreError: The disk is full; nothing was written.
        """
        with self._begin(tenant, writes=True) as connection:
            self._check_tenant(connection, tenant)
            work = Work(connection, tenant, self._clock)
            yield work
            work.finish()

    @contextmanager
    def reading(self, tenant: str) -> Iterator[Work]:
        """Look at what one tenant has, all at one moment; writing is refused."""
        with self._begin(tenant, writes=False) as connection:
            self._check_tenant(connection, tenant)
            yield Work(connection, tenant, self._clock)

    @contextmanager
    def transaction_of_all(self) -> Iterator[WorkOfAll]:
        """Work across tenants: for operators, and for workers that serve all; never for a request of one tenant."""
        with self._begin(ALL_TENANTS, writes=True) as connection:
            work = WorkOfAll(connection, self._clock)
            yield work
            work.finish()

    @contextmanager
    def reading_of_all(self) -> Iterator[WorkOfAll]:
        """Look across tenants, all at one moment; writing is refused."""
        with self._begin(ALL_TENANTS, writes=False) as connection:
            yield WorkOfAll(connection, self._clock)

    def retrying(self, tenant: str, do: Callable[[Work], Result]) -> Result:
        """Do something in a transaction, again when another was in the way or the database was away for a moment.

        `do` may run several times, also after a commit whose answer was lost: it must be idempotent, as every method of
        the store is.
        """
        for seconds in RETRY_AFTER_SECONDS:
            try:
                with self.transaction(tenant) as work:
                    return do(work)
            except (BusyStoreError, UnreachableStoreError):
                time.sleep(seconds)
        with self.transaction(tenant) as work:
            return do(work)

    def check(self) -> list[str]:
        """Look for damage in an embedded store; what was found, nothing when it is sound. Reads the whole file."""
        if self._place.engine.dialect.name != "sqlite":
            return []
        try:
            with self._begin(ALL_TENANTS, writes=False) as connection:
                found = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check(20)"))]
                found += [
                    f"{row[0]}: a row refers to none" for row in connection.execute(text("PRAGMA foreign_key_check"))
                ]
        except CorruptStoreError as error:
            return [str(error)]
        return [line for line in found if line != "ok"]

    def close(self) -> None:
        """Close it and let other processes write; twice is once."""
        self._place.engine.dispose()
        self._place.release()

    @contextmanager
    def _begin(self, tenant: str, *, writes: bool) -> Iterator[Connection]:
        if writes and self._read_only:
            raise StoreError(f"{self.name} was opened read-only; open it for writing")
        with in_our_words(self.name), self._taking_turns(writes=writes), self._place.engine.connect() as connection:
            options = {} if writes else self._place.reading_options
            connection.execution_options(slideway_writes=writes, **options)
            with connection.begin():
                self._place.begin(connection, tenant)
                yield connection

    @contextmanager
    def _taking_turns(self, *, writes: bool) -> Iterator[None]:
        if not (writes and self._takes_turns):
            yield
            return
        if not self._turn.acquire(timeout=WAIT_FOR_WRITER_SECONDS):
            raise BusyStoreError(f"{self.name}: another transaction of this process has not ended; do not nest them")
        try:
            yield
        finally:
            self._turn.release()

    def _check_tenant(self, connection: Connection, tenant: str) -> None:
        if tenant in self._known_tenants:
            return
        if not TENANT_NAME.fullmatch(tenant) or not _has_tenant(connection, tenant):
            raise UnknownTenantError(f"{self.name}: no tenant {tenant!r}; `slideway cloud tenant add` makes one")
        self._known_tenants.add(tenant)


def _read_url(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise WrongUseError("a store is named by a URL: sqlite:///slideway.db or postgresql+psycopg://…") from error
    if address.drivername not in ("sqlite", "postgresql+psycopg"):
        raise WrongUseError(f"{address.drivername}: a store is in sqlite:///… or postgresql+psycopg://…")
    return address


def _has_tenant(connection: Connection, tenant: str) -> bool:
    return connection.execute(select(TENANTS.c.tenant).where(TENANTS.c.tenant == tenant)).first() is not None


def _prepare(store: Store, *, migrate: bool) -> None:
    """Compare the store with this version, and bring it up to date where that is asked for."""
    place = store._place
    with store._begin(ALL_TENANTS, writes=False) as connection:
        place.check_role(connection)
        found = _read_schema(connection, store.name)
    if found == SCHEMA:
        return
    _compare(found, store.name)
    if found is not None and found > SCHEMA:
        return
    if not migrate:
        raise OlderStoreError(f"{store.name}: {_say(found)}, and migrating was not asked for; open it with `migrate`")
    if found is not None:
        if place.back_up is None:
            raise OlderStoreError(
                f"{store.name}: {_say(found)} and will be migrated to {SCHEMA[0]}.{SCHEMA[1]}; make a backup with "
                "pg_dump, then say so: `slideway cloud serve --have-backup` (in Python: allow_without_backup)"
            )
        place.back_up(found)
    _run_migration(store)


def _run_migration(store: Store) -> None:
    from slideway.store.migrate import STEPS, run_steps  # Alembic takes longer to import than a store to open

    with store._begin(ALL_TENANTS, writes=True) as connection:
        store._place.take_turns(connection)
        if _read_schema(connection, store.name) == STEPS.schema:
            return  # another process was faster
        run_steps(connection, STEPS)
        connection.execute(VERSION.delete())
        connection.execute(VERSION.insert().values(id=1, major=STEPS.schema[0], minor=STEPS.schema[1]))


def _read_schema(connection: Connection, name: str) -> tuple[int, int] | None:
    """(major, minor) of a store; None of an empty database."""
    tables = inspect(connection).get_table_names()
    if VERSION.name in tables:
        row = connection.execute(select(VERSION.c.major, VERSION.c.minor)).one()
        return int(row.major), int(row.minor)
    if tables:
        raise StoreError(f"{name}: this database holds something else than a store; choose another")
    return None


def _compare(found: tuple[int, int] | None, name: str) -> None:
    if found is not None and found[0] > SCHEMA[0]:
        raise NewerStoreError(
            f"{name}: a newer Slideway wrote it (schema {found[0]}.{found[1]}, this is {SCHEMA[0]}.{SCHEMA[1]}); a "
            "store is never taken back: update Slideway, or restore the backup that was made before the migration"
        )


def _say(found: tuple[int, int] | None) -> str:
    return "there is no store yet" if found is None else f"the store is of schema {found[0]}.{found[1]}"
